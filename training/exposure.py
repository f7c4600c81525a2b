"""Colour transforms of the training photos, whose brightness and white balance differ: 3x4 matrices, affine in RGB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arguments import RGBParams
from scene.dataset import View
from training.rgb_schedule import log_linear
from utils.files import write_json


class Exposures:
    """One transform a view, the identity at the start, with an Adam of their own.

    Their mean stays the identity: otherwise all of them could drift away together with the colours of the Gaussians,
    and views without a transform would have wrong colours.

    Args:
        views: the training views.
        params: flags of the RGB stage.
        device: where the transforms live.
    """

    def __init__(self, views: list[View], params: RGBParams, device: torch.device):
        self._params, self._rows = params, {view.id: row for row, view in enumerate(views)}
        self._identity = torch.eye(3, 4, device=device)
        self.matrices = self._identity.repeat(len(views), 1, 1).requires_grad_()  # [V, 3, 4]
        self._optimizer = torch.optim.Adam([self.matrices], fused=True)

    def apply(self, view: View, image: Tensor) -> Tensor:
        """The picture [3, H, W] as the camera of this photo would have exposed it."""
        matrix = self.matrices[self._rows[view.id]]
        return (matrix[:, :3] @ image.flatten(1) + matrix[:, 3:]).view_as(image)

    def update(self, iteration: int) -> None:
        """One step of Adam at the learning rate of this iteration."""
        params = self._params
        rate = log_linear(params.exposure_lr_init, params.exposure_lr_final, iteration, params.rgb_iterations)
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.matrices -= self.matrices.mean(dim=0) - self._identity

    def save(self, path: Path) -> None:
        """Write the matrices by view id, as JSON."""
        values = self.matrices.detach().cpu().tolist()
        write_json(path, {view: values[row] for view, row in self._rows.items()})

    def state(self) -> dict[str, Any]:
        return {"matrices": self.matrices.detach(), "optimizer": self._optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.matrices.copy_(state["matrices"])
        self._optimizer.load_state_dict(state["optimizer"])
