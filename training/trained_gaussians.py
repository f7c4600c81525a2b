"""The Gaussians in training together with Adam and its moments, which follow when Gaussians come, go or move."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from arguments import RGBParams
from scene.gaussian_model import PARAMETER_NAMES, GaussianModel
from training.rgb_schedule import learning_rates

ADAM_EPS = 1e-15
MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainedGaussians:
    """A model whose six tensors are leaves, each the only member of one of the optimiser's groups.

    Args:
        model: the Gaussians, changed in place from here on.
        params: flags of the RGB stage.

    Attributes:
        model: the Gaussians.
        optimizer: one fused kernel a tensor, on CPUs and GPUs.
    """

    def __init__(self, model: GaussianModel, params: RGBParams):
        self.model, self._params = model, params
        for name in PARAMETER_NAMES:
            setattr(model, name, getattr(model, name).detach().clone().requires_grad_(True))
        groups = [{"params": [getattr(model, name)], "name": name} for name in PARAMETER_NAMES]
        self.optimizer = torch.optim.Adam(groups, eps=ADAM_EPS, fused=True)

    def update(self, iteration: int) -> float:
        """One step of Adam at the learning rates of this iteration, of which that of positions is returned."""
        rates = learning_rates(self._params, self.model.spatial_lr_scale, iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["name"]]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rates["xyz"]

    def append(self, extra: dict[str, Tensor]) -> None:
        """Add Gaussians, whose moments are 0."""
        for name, rows in extra.items():
            self._replace(
                name,
                torch.cat((getattr(self.model, name), rows)),
                lambda moment, rows=rows: torch.cat((moment, torch.zeros_like(rows))),
            )

    def keep(self, mask: Tensor) -> None:
        """Drop the Gaussians outside the mask [N]."""
        for name in PARAMETER_NAMES:
            self._replace(name, getattr(self.model, name)[mask], lambda moment: moment[mask])

    @torch.no_grad()
    def overwrite(self, rows: Tensor, values: dict[str, Tensor]) -> None:
        """Set some parameters of the Gaussians `rows` [R]; all moments of these Gaussians become 0."""
        for name, parameter in self.model.parameters().items():
            if name in values:
                parameter[rows] = values[name]
            state = self.optimizer.state.get(parameter)
            for moment in MOMENTS if state else ():
                state[moment][rows] = 0

    def replace_opacity(self, opacity: Tensor) -> None:
        """Set all opacity logits [N, 1]; their moments become 0."""
        self._replace("opacity", opacity, torch.zeros_like)

    def _replace(self, name: str, value: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        """Put a tensor of another length in the place of a parameter; `change` adapts Adam's moments to it."""
        group = next(group for group in self.optimizer.param_groups if group["name"] == name)
        state = self.optimizer.state.pop(group["params"][0], None)
        parameter = value.detach().clone().requires_grad_(True)
        if state:
            self.optimizer.state[parameter] = {**state, **{key: change(state[key]) for key in MOMENTS}}
        group["params"][0] = parameter
        setattr(self.model, name, parameter)
