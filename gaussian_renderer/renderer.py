"""Render a Gaussian model: colour with `render`, per-Gaussian scores with `ScoreRenderer`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from arguments import ModelParams
from diff_gaussian_rasterization import (
    GaussianRasterizationSettings,
    GaussianRasterizer,
    RasterPlan,
    prepare,
    rasterize_scores,
    step_kernels,
)
from gaussian_renderer.antialiasing import opacity_compensation
from gaussian_renderer.plan_cache import PlanCache
from scene.cameras import Camera
from scene.gaussian_model import GaussianModel

NO_BACKGROUND = torch.zeros(3)


class Rendering(NamedTuple):
    """A colour rendering."""

    image: Tensor  # [3, H, W], not clamped
    radii: Tensor  # int32 [N], pixels; 0 for invisible Gaussians
    means2D: Tensor  # [N, 3], receives the gradient of the projected centres (NDC); its values have no meaning
    penalty: Tensor | None  # scalar, see `activate`; None if nothing is penalised


def raster_settings(camera: Camera, background: Tensor, sh_degree: int) -> GaussianRasterizationSettings:
    """Make the rasteriser's settings for a camera and a background colour [3].

    All tensors are on the CPU, as the rasteriser reads their values, and reading from a GPU waits for all work there.
    So the background should be on the CPU, too.
    """
    viewmatrix, projmatrix, campos = _matrices(camera)
    tanfovx, tanfovy = camera.tan_half_fov
    return GaussianRasterizationSettings(
        image_height=camera.height,
        image_width=camera.width,
        tanfovx=tanfovx,
        tanfovy=tanfovy,
        bg=background.cpu(),
        scale_modifier=1.0,
        viewmatrix=viewmatrix,
        projmatrix=projmatrix,
        sh_degree=sh_degree,
        campos=campos,
        prefiltered=False,
        debug=False,
        include_feature=False,
    )


@lru_cache(maxsize=4096)
def _matrices(camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Cache `Camera.matrices`, which takes as long as launching a dozen kernels."""
    return camera.matrices()


def render(
    camera: Camera,
    gaussians: GaussianModel,
    background: Tensor,
    opacity_weight: float = 0.0,
    scale_weight: float = 0.0,
) -> Rendering:
    """Render the Gaussians in colour; differentiable in all raw parameters.

    Args:
        background: colour [3], preferably on the CPU, see `raster_settings`.
        opacity_weight, scale_weight: weights of the penalty, see `activate`.
    """
    means2D = gaussians.xyz.detach().requires_grad_(torch.is_grad_enabled())  # zeros would cost a launch
    rasterizer = GaussianRasterizer(raster_settings(camera, background, gaussians.active_sh_degree))
    opacities, scales, rotations, shs, penalty = activate(gaussians, opacity_weight, scale_weight)
    if gaussians.antialiasing:
        opacities = opacities * opacity_compensation(camera, gaussians.xyz, scales, rotations)
    image, _, radii = rasterizer(
        means3D=gaussians.xyz,
        means2D=means2D,
        opacities=opacities,
        shs=shs,
        scales=scales,
        rotations=rotations,
    )
    return Rendering(image, radii, means2D, penalty)


def activate(
    gaussians: GaussianModel, opacity_weight: float = 0.0, scale_weight: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Apply the activations of the parameters; differentiable in all of them.

    Args:
        opacity_weight, scale_weight: weights of the penalty of MCMC (Kheradmand et al. 2024).

    Returns:
        opacities [N, 1] in 0..1, scales [N, 3] (standard deviations), unit quaternions [N, 4], SH coefficients of the
        active degrees [N, M, 3], and the penalty opacity_weight mean(opacities) + scale_weight mean(scales), or None
        if both weights are 0.
    """
    if step_kernels.available(gaussians.device):
        degree = gaussians.active_sh_degree
        return step_kernels.activate(raw_parameters(gaussians), degree, opacity_weight, scale_weight)
    opacities, scales = gaussians.get_opacity, gaussians.get_scaling
    penalty = None
    if opacity_weight or scale_weight:
        penalty = opacity_weight * opacities.mean() + scale_weight * scales.mean()
    return opacities, scales, gaussians.get_rotation, gaussians.active_features, penalty


def raw_parameters(gaussians: GaussianModel) -> step_kernels.RawParameters:
    """Return the parameters as contiguous tensors for the step kernels; those of a file may have other strides."""
    names = step_kernels.RawParameters._fields
    return step_kernels.RawParameters(*(getattr(gaussians, name).contiguous() for name in names))


def background_color(model: ModelParams) -> Tensor:
    """Return white or black, [3], on the CPU."""
    return torch.ones(3) if model.white_background else torch.zeros(3)


@torch.no_grad()
def render_uint8(camera: Camera, gaussians: GaussianModel, background: Tensor) -> np.ndarray:
    """Render the Gaussians as uint8 RGB, [H, W, 3]."""
    image = render(camera, gaussians, background).image.clamp(0, 1)
    return (255 * image).round().byte().permute(1, 2, 0).cpu().numpy()


class ScoreRenderer:
    """Renders per-Gaussian scores of a frozen model; caches the raster plan of each view in `plans`.

    Args:
        gaussians: the frozen model.
        max_bytes: memory for cached plans (`utils.device.plan_bytes`).
    """

    def __init__(self, gaussians: GaussianModel, max_bytes: int):
        self._gaussians, self.plans = gaussians, PlanCache(max_bytes)
        with torch.no_grad():
            self._xyz, self._opacities = gaussians.get_xyz, gaussians.get_opacity
            self._scales, self._rotations = gaussians.get_scaling, gaussians.get_rotation

    @torch.no_grad()
    def plan(self, camera: Camera) -> RasterPlan:
        """Return the raster plan of a view, from the cache if possible."""
        return self.plans.get(_key(camera), lambda: prepare(*self._inputs(camera)))

    def render_scores(self, camera: Camera, scores: Tensor, once: bool = False) -> Tensor:
        """Blend scores [N, K] into images [K, H, W] without background; differentiable in the scores.

        Args:
            once: the view will not be rendered again, so no plan is made, which on a GPU takes longer than rendering.
        """
        if once and _key(camera) not in self.plans:
            return rasterize_scores(scores, *self._inputs(camera))
        return self.plan(camera).render(scores)

    @torch.no_grad()
    def _inputs(self, camera: Camera) -> tuple[Tensor, Tensor, GaussianRasterizationSettings, Tensor, Tensor]:
        """Return the arguments of `prepare`; with antialiasing, opacities depend on the view."""
        opacities = self._opacities
        if self._gaussians.antialiasing:
            opacities = opacities * opacity_compensation(camera, self._xyz, self._scales, self._rotations)
        return self._xyz, opacities, _score_settings(camera), self._scales, self._rotations

    @torch.no_grad()
    def lift(self, cameras: Iterable[Camera], images: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Lift images onto the Gaussians: sums over the pixels of all views, weighted by blending weights.

        With weight w_ip of Gaussian i in pixel p, sums / weights is the v_i that minimises sum_p w_ip (v_i - image_p)^2
        for each Gaussian on its own: the weighted mean of its pixels (LUDVIG, Marrie et al. 2024). It does not solve
        for values whose rendering equals the images. A constant image is lifted to that constant.

        Args:
            cameras: the views.
            images: one [C, H, W] per view, of any dtype and device; consumed one by one, so a generator saves memory.

        Returns:
            weights [N], 0 for Gaussians that no view shows, and sums [N, C], float32 on the model's device.

        Raises:
            ValueError: if there are no views, or images differ from them in number or size, or in C.
        """
        total = None
        for camera, image in zip(cameras, images, strict=True):
            plan = self.plan(camera)
            image = image.to(self._gaussians.device, plan.dtype)
            lifted = plan.backproject(torch.cat((image, image.new_ones(1, *image.shape[1:]))))  # [N, C + 1]
            if total is not None and total.shape != lifted.shape:
                raise ValueError(f"an image has {len(image)} channels, earlier ones have {total.shape[1] - 1}.")
            total = lifted if total is None else total.add_(lifted)
        if total is None:
            raise ValueError("lifting needs at least one view.")
        return total[:, -1], total[:, :-1]


@lru_cache(maxsize=256)  # each camera is rendered again for every group of sentences
def _score_settings(camera: Camera) -> GaussianRasterizationSettings:
    return raster_settings(camera, NO_BACKGROUND, sh_degree=0)


@lru_cache(maxsize=4096)
def _key(camera: Camera) -> tuple:
    """Return all that the rendering of a camera depends on; names need not be unique."""
    pose = camera.rotation.tobytes(), camera.translation.tobytes()
    return camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy, *pose
