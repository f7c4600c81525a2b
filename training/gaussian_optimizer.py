"""Adam for the parameters of a Gaussian model whose Gaussians are added, removed and moved during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from arguments import RGBParams
from diff_gaussian_rasterization import step_kernels
from scene.gaussian_model import PARAMETER_NAMES, GaussianModel

ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-15
MOMENTS = ("exp_avg", "exp_avg_sq")
COOL_DOWN_START = 0.9  # share of all steps after which --cool_down begins
SH_LR_DIVISOR = 20  # learning rate of SH degree 0 over that of higher degrees


class GaussianOptimizer:
    """Adam with one parameter group for each of the six tensors of a model.

    On GPUs one kernel updates all tensors, and the step counts in `adam` are those of the last `state`.

    Attributes:
        model: the Gaussians; their tensors become leaves and are changed in place from here on.
        adam: the fused `torch.optim.Adam` that holds the moments.
    """

    def __init__(self, model: GaussianModel, params: RGBParams):
        self.model, self._params = model, params
        for name in PARAMETER_NAMES:
            leaf = getattr(model, name).detach().clone(memory_format=torch.contiguous_format)
            setattr(model, name, leaf.requires_grad_(True))
        groups = [{"params": [getattr(model, name)], "name": name} for name in PARAMETER_NAMES]
        self.adam = torch.optim.Adam(groups, betas=ADAM_BETAS, eps=ADAM_EPS, fused=True)
        self._steps = dict.fromkeys(PARAMETER_NAMES, 0)  # by parameter, for the kernel

    def state(self) -> dict[str, Any]:
        for group in self.adam.param_groups if step_kernels.available(self.model.device) else ():
            if state := self.adam.state.get(group["params"][0]):
                state["step"].fill_(self._steps[group["name"]])
        return self.adam.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state)
        for group in self.adam.param_groups:
            moments = self.adam.state.get(group["params"][0])
            self._steps[group["name"]] = int(moments["step"]) if moments else 0

    def update(self, iteration: int) -> float:
        """Take an Adam step with the learning rates of an iteration, and return that of the positions."""
        rates = learning_rates(self._params, self.model.spatial_lr_scale, iteration)
        for group in self.adam.param_groups:
            group["lr"] = rates[group["name"]]
        if step_kernels.available(self.model.device):
            self._step_in_one_launch()
        else:
            self.adam.step()
        for group in self.adam.param_groups:
            group["params"][0].grad = None
        return rates["xyz"]

    def _step_in_one_launch(self) -> None:
        """Do what `adam.step()` does, which launches two kernels for each tensor."""
        tensors = []
        for group in self.adam.param_groups:
            (parameter,), name = group["params"], group["name"]
            if parameter.grad is None:
                continue
            state = self.adam.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state |= {moment: torch.zeros_like(parameter, requires_grad=False) for moment in MOMENTS}
            self._steps[name] += 1
            first, second = (state[moment] for moment in MOMENTS)
            step = self._steps[name]
            tensors.append(step_kernels.AdamTensor(parameter, parameter.grad, first, second, group["lr"], step))
        step_kernels.adam(tensors, ADAM_BETAS, ADAM_EPS)

    def append(self, extra: dict[str, Tensor]) -> None:
        """Add Gaussians with zero moments."""
        added = len(extra["xyz"])
        for name, rows in extra.items():
            value = torch.cat((getattr(self.model, name), rows))
            self._replace(name, value, lambda moment: torch.cat((moment, moment.new_zeros(added, *moment.shape[1:]))))

    def keep(self, mask: Tensor) -> None:
        """Remove the Gaussians outside a mask, bool [N]."""
        for name in PARAMETER_NAMES:
            self._replace(name, getattr(self.model, name)[mask], lambda moment: moment[mask])

    @torch.no_grad()
    def overwrite(self, rows: Tensor, values: dict[str, Tensor]) -> None:
        """Set some parameters of the Gaussians `rows` [R], and zero all their moments."""
        for name, parameter in self.model.parameters().items():
            if name in values:
                parameter[rows] = values[name]
            if state := self.adam.state.get(parameter):
                for moment in MOMENTS:
                    state[moment][rows] = 0

    def replace_opacity(self, opacity: Tensor) -> None:
        """Set all opacity logits [N, 1], and zero their moments."""
        self._replace("opacity", opacity, torch.zeros_like)

    def _replace(self, name: str, value: Tensor, adapt: Callable[[Tensor], Tensor]) -> None:
        """Replace a parameter by a new leaf; `adapt` maps the moments of the old one to those of the new one."""
        group = next(group for group in self.adam.param_groups if group["name"] == name)
        state = self.adam.state.pop(group["params"][0], None)
        parameter = value.detach().contiguous().requires_grad_(True)
        if state:
            self.adam.state[parameter] = {**state, **{key: adapt(state[key]) for key in MOMENTS}}
        group["params"][0] = parameter
        setattr(self.model, name, parameter)


def learning_rates(params: RGBParams, extent: float, iteration: int) -> dict[str, float]:
    """Return the learning rate of each parameter at a 1-based step; that of positions is in units of the extent."""
    position = log_linear(params.position_lr_init, params.position_lr_final, iteration, params.rgb_iterations)
    cooling_steps = max(0, iteration - COOL_DOWN_START * params.rgb_iterations)
    cooled = log_linear(1, params.cool_down, cooling_steps, (1 - COOL_DOWN_START) * params.rgb_iterations)
    sh = params.rgb_feature_lr / SH_LR_DIVISOR if params.rgb_sh_lr is None else params.rgb_sh_lr
    return {
        "xyz": position * extent,
        "features_dc": params.rgb_feature_lr * cooled,
        "features_rest": sh * cooled,
        "scaling": params.scaling_lr * cooled,
        "rotation": params.rotation_lr * cooled,
        "opacity": params.opacity_lr * cooled,
    }


def log_linear(first: float, last: float, iteration: float, iterations: float) -> float:
    """Interpolate from `first` to `last` over the steps, linearly in the logarithm."""
    share = min(iteration / max(iterations, 1), 1.0)
    return first ** (1 - share) * last**share
