"""Adaptive density control of 3DGS (Kerbl et al. 2023, Section 5): clone, split, prune, reset opacity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from arguments import RGBParams
from diff_gaussian_rasterization import step_kernels
from gaussian_renderer import Rendering
from scene.gaussian_model import PARAMETER_NAMES
from training.rgb_schedule import last_densification, most_gaussians
from training.trained_gaussians import TrainedGaussians
from utils.quaternions import rotate

MIN_OPACITY = 0.005  # below it a Gaussian is pruned
RESET_OPACITY = 0.01
SPLIT_CHILDREN = 2
SPLIT_SHRINK = 0.8 * SPLIT_CHILDREN  # children are this much smaller
MAX_WORLD_SIZE = 0.1  # of the scene extent; larger Gaussians are pruned once opacity has been reset


class DensityControl:
    """Collects screen-space gradients and changes the set of Gaussians.

    Args:
        trained: the Gaussians, changed in place.
        params: flags of the RGB stage.
        generator: of the places of children, on the CPU.
    """

    def __init__(self, trained: TrainedGaussians, params: RGBParams, generator: torch.Generator):
        self._trained, self._params, self._generator = trained, params, generator
        self._model = trained.model
        self._last, self._cap = last_densification(params), most_gaussians(params)
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

    def before_update(self, iteration: int, rendering: Rendering) -> None:
        """What comes after the gradients of a step and before Adam."""
        params = self._params
        if iteration > self._last:
            return
        self.observe(rendering.means2D.grad, rendering.radii)
        if iteration >= params.densify_from_iter and iteration % params.densification_interval == 0:
            self.densify_and_prune(prune_large=iteration > params.opacity_reset_interval)
        # not with the last densification: nothing would prune what a reset then leaves behind
        if iteration < self._last and iteration % params.opacity_reset_interval == 0:
            self.reset_opacity()

    def after_update(self, iteration: int, position_rate: float) -> None:
        """Nothing is left to do after Adam."""

    def observe(self, means2D_gradient: Tensor, radii: Tensor) -> None:
        """Add the gradient of the projected centres [N, 3] (NDC) of one view with radii [N] (pixels)."""
        if step_kernels.available(radii.device):
            step_kernels.count_visits(means2D_gradient, radii, self.gradient_sum, self.visits, self.max_radii)
            return
        # a Gaussian that is not visible has no gradient; nobody has to wait until a GPU has counted the others
        self.gradient_sum += torch.linalg.vector_norm(means2D_gradient, dim=1)
        self.visits += radii > 0
        if self._params.prune_screen_size is not None:
            self.max_radii = torch.maximum(self.max_radii, radii)

    @torch.no_grad()
    def densify_and_prune(self, prune_large: bool) -> None:
        """Clone small and split large Gaussians with a large mean gradient, then drop what is not needed.

        Args:
            prune_large: also drop Gaussians that are large in the world, or in a picture if that was asked for.
        """
        model, params, extent = self._model, self._params, self._model.spatial_lr_scale
        gradient = self.gradient_sum / self.visits.clamp_min(1)
        chosen = gradient >= params.densify_grad_threshold
        room = self._cap - len(model)
        if int(chosen.sum()) > room:
            threshold = gradient.topk(max(room, 1)).values[-1] if room > 0 else float("inf")
            chosen &= gradient >= threshold
        large = model.get_scaling.max(dim=1).values > params.percent_dense * extent
        clone, split = chosen & ~large, chosen & large
        clones = {name: tensor[clone] for name, tensor in model.parameters().items()}
        children = self._children(split)
        kept_radii = self.max_radii
        self._trained.append({name: torch.cat((clones[name], children[name])) for name in PARAMETER_NAMES})

        added = len(model) - len(split)
        drop = torch.cat((split, split.new_zeros(added)))
        drop |= model.get_opacity[:, 0] < MIN_OPACITY
        if prune_large:
            drop |= model.get_scaling.max(dim=1).values > MAX_WORLD_SIZE * extent
            if params.prune_screen_size is not None:  # the released code clears the radii before it compares them
                drop |= torch.cat((kept_radii, kept_radii.new_zeros(added))) > params.prune_screen_size
        if not drop.all():
            self._trained.keep(~drop)
        self._clear()

    def _children(self, split: Tensor) -> dict[str, Tensor]:
        """Parameters of `SPLIT_CHILDREN` smaller Gaussians drawn from each split one."""
        parents = {
            name: tensor[split].repeat_interleave(SPLIT_CHILDREN, 0)
            for name, tensor in self._model.parameters().items()
        }
        scales = torch.exp(parents["scaling"])  # [P, 3]
        noise = torch.randn(scales.shape, generator=self._generator).to(scales.device)
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
        self._trained.replace_opacity(torch.minimum(self._model.opacity, limit))
