"""Affine colour transforms of the training photos, which differ in exposure and white balance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arguments import RGBParams
from scene.dataset import View
from training.gaussian_optimizer import log_linear
from utils.files import write_json

BETAS, EPS = (0.9, 0.999), 1e-8


class Exposures:
    """A 3x4 matrix for each view, initially the identity, with its own Adam state.

    A shared Adam would keep moving a transform after its view was drawn. The mean of the transforms is kept at the
    identity; otherwise they could drift together with the colours of the Gaussians, and views without a transform
    would be rendered in wrong colours.

    Args:
        views: the training views.
        params: flags of the RGB stage.
        device: of the matrices.

    Attributes:
        matrices: [V, 3, 4].
    """

    def __init__(self, views: list[View], params: RGBParams, device: torch.device):
        self._params, self._rows = params, {view.id: row for row, view in enumerate(views)}
        self._identity = torch.eye(3, 4, device=device)
        self.matrices = self._identity.repeat(len(views), 1, 1)
        self._first, self._second = torch.zeros_like(self.matrices), torch.zeros_like(self.matrices)  # Adam's moments
        self._steps = [0] * len(views)
        self._row, self._matrix = 0, self._identity

    def apply(self, view: View, image: Tensor) -> Tensor:
        """Apply the transform of a view to a rendering [3, H, W]."""
        self._row = self._rows[view.id]
        self._matrix = self.matrices[self._row].clone().requires_grad_()
        return (self._matrix[:, :3] @ image.flatten(1) + self._matrix[:, 3:]).view_as(image)

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Take an Adam step for the view of the last `apply`, after backward."""
        params, row = self._params, self._row
        rate = log_linear(params.exposure_lr_init, params.exposure_lr_final, iteration, params.rgb_iterations)
        gradient, first, second = self._matrix.grad, self._first[row], self._second[row]
        self._steps[row] += 1
        first.lerp_(gradient, 1 - BETAS[0])
        second.lerp_(gradient * gradient, 1 - BETAS[1])
        corrections = [1 - beta ** self._steps[row] for beta in BETAS]
        step = first / ((second / corrections[1]).sqrt() + EPS)
        self.matrices[row] -= step * (rate / corrections[0])
        self.matrices -= self.matrices.mean(dim=0) - self._identity

    def save(self, path: Path) -> None:
        """Write the matrices as JSON, by view id."""
        values = self.matrices.tolist()
        write_json(path, {view: values[row] for view, row in self._rows.items()})

    def state(self) -> dict[str, Any]:
        moments = {"first": self._first, "second": self._second}
        return {"matrices": self.matrices, **moments, "steps": list(self._steps)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.matrices, self._first, self._second = (
            state[name].to(self.matrices.device) for name in ("matrices", "first", "second")
        )
        self._steps = list(state["steps"])
