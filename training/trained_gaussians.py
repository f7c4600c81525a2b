"""The Gaussians in training together with Adam and its moments, which follow when Gaussians come, go or move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from arguments import RGBParams
from diff_gaussian_rasterization import step_kernels
from scene.gaussian_model import PARAMETER_NAMES, GaussianModel
from training.rgb_schedule import learning_rates

ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-15
MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainedGaussians:
    """A model whose six tensors are leaves, each the only member of one of the optimiser's groups.

    Args:
        model: the Gaussians, changed in place from here on.
        params: flags of the RGB stage.

    Attributes:
        model: the Gaussians.
        optimizer: one fused kernel a tensor; on GPUs its state is updated by one kernel for all tensors, and the step
            counts in it are those of the last `state`.
    """

    def __init__(self, model: GaussianModel, params: RGBParams):
        self.model, self._params = model, params
        for name in PARAMETER_NAMES:
            leaf = getattr(model, name).detach().clone(memory_format=torch.contiguous_format)
            setattr(model, name, leaf.requires_grad_(True))
        groups = [{"params": [getattr(model, name)], "name": name} for name in PARAMETER_NAMES]
        self.optimizer = torch.optim.Adam(groups, betas=ADAM_BETAS, eps=ADAM_EPS, fused=True)
        self._steps = dict.fromkeys(PARAMETER_NAMES, 0)  # of each parameter, where the kernel runs

    def state(self) -> dict[str, Any]:
        """The state of Adam."""
        for group in self.optimizer.param_groups if step_kernels.available(self.model.device) else ():
            if state := self.optimizer.state.get(group["params"][0]):
                state["step"].fill_(self._steps[group["name"]])
        return self.optimizer.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)
        for group in self.optimizer.param_groups:
            state = self.optimizer.state.get(group["params"][0])
            self._steps[group["name"]] = int(state["step"]) if state else 0

    def update(self, iteration: int) -> float:
        """One step of Adam at the learning rates of this iteration, of which that of positions is returned."""
        rates = learning_rates(self._params, self.model.spatial_lr_scale, iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["name"]]
        if step_kernels.available(self.model.device):
            self._step_together()
        else:
            self.optimizer.step()
        for group in self.optimizer.param_groups:
            group["params"][0].grad = None
        return rates["xyz"]

    def _step_together(self) -> None:
        """`optimizer.step()` in one launch instead of two for each tensor."""
        tensors = []
        for group in self.optimizer.param_groups:
            (parameter,), name = group["params"], group["name"]
            if parameter.grad is None:
                continue
            state = self.optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state |= {moment: torch.zeros_like(parameter, requires_grad=False) for moment in MOMENTS}
            self._steps[name] += 1
            moments = (state[moment] for moment in MOMENTS)
            tensors.append(step_kernels.AdamTensor(parameter, parameter.grad, *moments, group["lr"], self._steps[name]))
        step_kernels.adam(tensors, ADAM_BETAS, ADAM_EPS)

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
        """Put a tensor of its own memory in the place of a parameter; `change` adapts Adam's moments to it."""
        group = next(group for group in self.optimizer.param_groups if group["name"] == name)
        state = self.optimizer.state.pop(group["params"][0], None)
        parameter = value.detach().contiguous().requires_grad_(True)
        if state:
            self.optimizer.state[parameter] = {**state, **{key: change(state[key]) for key in MOMENTS}}
        group["params"][0] = parameter
        setattr(self.model, name, parameter)
