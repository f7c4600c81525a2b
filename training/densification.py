"""Adaptive density control of 3DGS (Kerbl et al. 2023, Section 5): clone, split, prune, reset opacity."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from arguments import RGBParams
from scene.gaussian_model import PARAMETER_NAMES, GaussianModel

MIN_OPACITY = 0.005  # below it a Gaussian is pruned
RESET_OPACITY = 0.01
SPLIT_CHILDREN = 2
SPLIT_SHRINK = 0.8 * SPLIT_CHILDREN  # children are this much smaller
MAX_SCREEN_RADIUS = 20  # pixels; larger Gaussians are pruned once opacity has been reset
MAX_WORLD_SIZE = 0.1  # of the scene extent; the same


class DensityControl:
    """Collects screen-space gradients and changes the set of Gaussians.

    The parameters of `model` are the only member of each of the optimiser's groups, which carry their names.
    """

    def __init__(self, model: GaussianModel, optimizer: torch.optim.Optimizer, params: RGBParams):
        self._model, self._optimizer, self._params = model, optimizer, params
        self._clear()

    def _clear(self) -> None:
        count, device = len(self._model), self._model.device
        self.gradient_sum = torch.zeros(count, device=device)
        self.visits = torch.zeros(count, device=device)
        self.max_radii = torch.zeros(count, dtype=torch.int32, device=device)

    def state(self) -> dict[str, Tensor]:
        return {"gradient_sum": self.gradient_sum, "visits": self.visits, "max_radii": self.max_radii}

    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            setattr(self, name, value.to(self._model.device))

    def observe(self, means2D_gradient: Tensor, radii: Tensor) -> None:
        """Add the gradient of the projected centres [N, 3] (NDC) of one view with radii [N] (pixels)."""
        visible = radii > 0
        # masks instead of indices: nobody has to wait until a GPU has counted them
        self.gradient_sum += means2D_gradient[:, :2].norm(dim=1).masked_fill(~visible, 0)
        self.visits += visible
        self.max_radii = torch.maximum(self.max_radii, radii)

    @torch.no_grad()
    def densify_and_prune(self, iteration: int, extent: float, generator: torch.Generator) -> None:
        """Clone small and split large Gaussians with a large mean gradient, then drop what is not needed."""
        model, params = self._model, self._params
        gradient = self.gradient_sum / self.visits.clamp_min(1)
        chosen = gradient >= params.densify_grad_threshold
        room = params.max_gaussians - len(model)
        if int(chosen.sum()) > room:
            threshold = gradient.topk(max(room, 1)).values[-1] if room > 0 else float("inf")
            chosen &= gradient >= threshold
        large = model.get_scaling.max(dim=1).values > params.percent_dense * extent
        clone, split = chosen & ~large, chosen & large
        clones = {name: tensor[clone] for name, tensor in model.parameters().items()}
        children = self._children(split, generator)
        kept_radii = self.max_radii
        self._append({name: torch.cat((clones[name], children[name])) for name in PARAMETER_NAMES})

        added = len(model) - len(split)
        drop = torch.cat((split, split.new_zeros(added)))
        drop |= model.get_opacity[:, 0] < MIN_OPACITY
        if iteration > params.opacity_reset_interval:
            radii = torch.cat((kept_radii, kept_radii.new_zeros(added)))
            drop |= radii > MAX_SCREEN_RADIUS
            drop |= model.get_scaling.max(dim=1).values > MAX_WORLD_SIZE * extent
        if not drop.all():
            self._keep(~drop)
        self._clear()

    def _children(self, split: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Parameters of `SPLIT_CHILDREN` smaller Gaussians drawn from each split one."""
        model = self._model
        parents = {
            name: tensor[split].repeat_interleave(SPLIT_CHILDREN, 0) for name, tensor in model.parameters().items()
        }
        scales = torch.exp(parents["scaling"])  # [P, 3]
        noise = torch.randn(scales.shape, generator=generator).to(scales.device)
        offsets = rotate(F.normalize(parents["rotation"]), noise * scales)
        return {
            **parents,
            "xyz": parents["xyz"] + offsets,
            "scaling": torch.log(scales / SPLIT_SHRINK),
        }

    @torch.no_grad()
    def reset_opacity(self) -> None:
        """Lower every opacity to at most 0.01, so that only what the pictures need comes back."""
        limit = torch.logit(torch.tensor(RESET_OPACITY, device=self._model.device))
        self._replace("opacity", torch.minimum(self._model.opacity, limit), lambda moment: torch.zeros_like(moment))

    def _append(self, extra: dict[str, Tensor]) -> None:
        for name, tensor in extra.items():
            self._replace(
                name,
                torch.cat((getattr(self._model, name), tensor)),
                lambda moment, tensor=tensor: torch.cat((moment, torch.zeros_like(tensor))),
            )

    def _keep(self, mask: Tensor) -> None:
        for name in PARAMETER_NAMES:
            self._replace(name, getattr(self._model, name)[mask], lambda moment: moment[mask])

    def _replace(self, name: str, value: Tensor, change: Any) -> None:
        """Put a tensor of another length in the place of a parameter; `change` adapts Adam's moments to it."""
        group = next(group for group in self._optimizer.param_groups if group["name"] == name)
        state = self._optimizer.state.pop(group["params"][0], None)
        parameter = value.detach().clone().requires_grad_(True)
        if state:
            moments = {key: change(state[key]) for key in ("exp_avg", "exp_avg_sq")}
            self._optimizer.state[parameter] = {**state, **moments}
        group["params"][0] = parameter
        setattr(self._model, name, parameter)


def rotate(quaternions: Tensor, vectors: Tensor) -> Tensor:
    """Rotate vectors [P, 3] by unit quaternions w x y z [P, 4]."""
    real, imaginary = quaternions[:, :1], quaternions[:, 1:]
    twice = 2 * torch.linalg.cross(imaginary, vectors)
    return vectors + real * twice + torch.linalg.cross(imaginary, twice)
