"""Adaptive density control of 3DGS (Kerbl et al. 2023, Section 5): clone, split, prune, reset opacity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from arguments import RGBParams
from diff_gaussian_rasterization import step_kernels
from gaussian_renderer import Rendering
from scene.gaussian_model import PARAMETER_NAMES
from training.gaussian_optimizer import GaussianOptimizer

# As published for 30,000 steps: the last step with densification, its share of all steps, and the default --cap_max.
LAST_STEP = {"adc": 15_000, "mcmc": 25_000}
LAST_SHARE = {"adc": 1 / 2, "mcmc": 5 / 6}
CAP = {"adc": 5_000_000, "mcmc": 1_000_000}

MIN_OPACITY = 0.005  # Gaussians below it are pruned
RESET_OPACITY = 0.01
SPLIT_CHILDREN = 2
SPLIT_SHRINK = 0.8 * SPLIT_CHILDREN  # scale of a split Gaussian over that of its children
MAX_WORLD_SIZE = 0.1  # of the scene extent; larger Gaussians are pruned after the first opacity reset


class DensityControl:
    """Accumulates screen-space gradients, and clones, splits and prunes the Gaussians of an optimiser in place.

    `generator`, on the CPU, draws the positions of split Gaussians.
    """

    def __init__(self, optimizer: GaussianOptimizer, params: RGBParams, generator: torch.Generator):
        self._optimizer, self._params, self._generator = optimizer, params, generator
        self._model = optimizer.model
        self._last_step, self._cap = last_densification(params), max_gaussians(params)
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
        """Record the gradients of a step, and densify, prune and reset opacity when due."""
        params = self._params
        if iteration > self._last_step:
            return
        assert rendering.means2D.grad is not None
        self.observe(rendering.means2D.grad, rendering.radii)
        if iteration >= params.densify_from_iter and iteration % params.densification_interval == 0:
            self.densify_and_prune(prune_large=iteration > params.opacity_reset_interval)
        # not in the last densification: nothing would prune the Gaussians that stay transparent
        if iteration < self._last_step and iteration % params.opacity_reset_interval == 0:
            self.reset_opacity()

    def after_update(self, iteration: int, position_lr: float) -> None:
        """Do nothing; MCMC does its work here."""

    def observe(self, means2D_gradient: Tensor, radii: Tensor) -> None:
        """Accumulate one view's gradients of the projected centres [N, 3] (NDC) and radii [N] (pixels)."""
        if step_kernels.available(radii.device):
            step_kernels.count_visits(means2D_gradient, radii, self.gradient_sum, self.visits, self.max_radii)
            return
        self.gradient_sum += torch.linalg.vector_norm(means2D_gradient, dim=1)  # 0 for invisible Gaussians
        self.visits += radii > 0
        if self._params.prune_screen_size is not None:
            self.max_radii = torch.maximum(self.max_radii, radii)

    @torch.no_grad()
    def densify_and_prune(self, prune_large: bool) -> None:
        """Clone small and split large Gaussians that have a large mean gradient, then prune.

        Args:
            prune_large: also prune Gaussians that are large in the world or, with --prune_screen_size, in a view.
        """
        model, params, extent = self._model, self._params, self._model.spatial_lr_scale
        gradient = self.gradient_sum / self.visits.clamp_min(1)
        densified = gradient >= params.densify_grad_threshold
        room = self._cap - len(model)
        if int(densified.sum()) > room:
            threshold = gradient.topk(max(room, 1)).values[-1] if room > 0 else float("inf")
            densified &= gradient >= threshold
        large = model.get_scaling.max(dim=1).values > params.percent_dense * extent
        clone, split = densified & ~large, densified & large
        clones = {name: tensor[clone] for name, tensor in model.parameters().items()}
        children = self._split(split)
        max_radii = self.max_radii
        self._optimizer.append({name: torch.cat((clones[name], children[name])) for name in PARAMETER_NAMES})

        added = len(model) - len(split)
        prune = torch.cat((split, split.new_zeros(added)))
        prune |= model.get_opacity[:, 0] < MIN_OPACITY
        if prune_large:
            prune |= model.get_scaling.max(dim=1).values > MAX_WORLD_SIZE * extent
            if params.prune_screen_size is not None:  # the released code clears the radii before it compares them
                prune |= torch.cat((max_radii, max_radii.new_zeros(added))) > params.prune_screen_size
        if not prune.all():
            self._optimizer.keep(~prune)
        self._clear()

    def _split(self, mask: Tensor) -> dict[str, Tensor]:
        """Sample the parameters of `SPLIT_CHILDREN` smaller Gaussians from each one in a mask, bool [N]."""
        parameters = self._model.parameters()
        parents = {name: tensor[mask].repeat_interleave(SPLIT_CHILDREN, 0) for name, tensor in parameters.items()}
        scales = torch.exp(parents["scaling"])  # [P, 3]
        noise = torch.randn(scales.shape, generator=self._generator).to(scales.device)
        offsets = rotate(F.normalize(parents["rotation"]), noise * scales)
        return {**parents, "xyz": parents["xyz"] + offsets, "scaling": torch.log(scales / SPLIT_SHRINK)}

    @torch.no_grad()
    def reset_opacity(self) -> None:
        """Lower all opacities to at most 0.01; training raises those that the photos need."""
        limit = torch.logit(torch.tensor(RESET_OPACITY, device=self._model.device))
        self._optimizer.replace_opacity(torch.minimum(self._model.opacity, limit))


def last_densification(params: RGBParams) -> int:
    """Return the last step that may change the number of Gaussians; short runs keep the published share of steps."""
    if params.densify_until_iter is not None:
        return params.densify_until_iter
    return min(LAST_STEP[params.densification], int(LAST_SHARE[params.densification] * params.rgb_iterations))


def max_gaussians(params: RGBParams) -> int:
    """Return --cap_max or its default."""
    return CAP[params.densification] if params.cap_max is None else params.cap_max


def rotate(quaternions: Tensor, vectors: Tensor) -> Tensor:
    """Rotate vectors [P, 3] by unit quaternions w x y z [P, 4]."""
    real, imaginary = quaternions[:, :1], quaternions[:, 1:]
    twice = 2 * torch.linalg.cross(imaginary, vectors)
    return vectors + real * twice + torch.linalg.cross(imaginary, twice)
