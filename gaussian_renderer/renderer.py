"""Render a Gaussian model: colour with `render`, per-Gaussian scores with `ScoreRenderer`."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diff_gaussian_rasterization import (
    GaussianRasterizationSettings,
    GaussianRasterizer,
    RasterPlan,
    prepare,
    rasterize_scores,
)
from gaussian_renderer.activation import activate
from gaussian_renderer.antialiasing import compensation
from gaussian_renderer.plan_cache import PlanCache
from scene.cameras import Camera
from scene.gaussian_model import GaussianModel

NO_BACKGROUND = torch.zeros(3)


class Rendering(NamedTuple):
    """What `render` returns.

    Attributes:
        image: [3, H, W], not clamped.
        radii: [N] int32, pixels; 0 where a Gaussian is not visible.
        means2D: [N, 3], whose gradient is that of the projected centres (NDC); its values mean nothing.
        penalty: scalar, on opacities and sizes; None if nothing is penalised.
    """

    image: Tensor
    radii: Tensor
    means2D: Tensor
    penalty: Tensor | None


def raster_settings(camera: Camera, background: Tensor, sh_degree: int) -> GaussianRasterizationSettings:
    """Settings of the rasteriser for one camera and a background colour [3].

    Their tensors are on the CPU, wherever the Gaussians are: the rasteriser needs plain numbers, and each one read
    from a GPU would wait for all work there. So a background on the CPU is best.
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


@functools.lru_cache(maxsize=4096)
def _matrices(camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """`Camera.matrices`, kept: making them takes as long as launching a dozen kernels."""
    return camera.matrices()


def render(
    camera: Camera,
    gaussians: GaussianModel,
    background: Tensor,
    opacity_weight: float = 0.0,
    scale_weight: float = 0.0,
) -> Rendering:
    """Colour picture of the Gaussians over a background colour [3]; differentiable in every raw parameter.

    Args:
        camera: the view.
        gaussians: the model.
        background: on the CPU is best, see `raster_settings`.
        opacity_weight, scale_weight: of the penalty, see `activate`.
    """
    means2D = gaussians.xyz.detach().requires_grad_(torch.is_grad_enabled())  # zeros would be one more launch
    rasterizer = GaussianRasterizer(raster_settings(camera, background, gaussians.active_sh_degree))
    opacities, scales, rotations, shs, penalty = activate(gaussians, opacity_weight, scale_weight)
    if gaussians.antialiasing:
        opacities = opacities * compensation(camera, gaussians.xyz, scales, rotations)
    image, _, radii = rasterizer(
        means3D=gaussians.xyz,
        means2D=means2D,
        opacities=opacities,
        shs=shs,
        scales=scales,
        rotations=rotations,
    )
    return Rendering(image, radii, means2D, penalty)


@torch.no_grad()
def picture(camera: Camera, gaussians: GaussianModel, background: Tensor) -> np.ndarray:
    """`render` as a picture for people, uint8 RGB [H, W, 3]."""
    image = render(camera, gaussians, background).image.clamp(0, 1)
    return (255 * image).round().byte().permute(1, 2, 0).cpu().numpy()


class ScoreRenderer:
    """Splats per-Gaussian scores of a frozen model; the sorted splats of a view are kept and reused.

    Args:
        gaussians: the frozen model.
        max_bytes: memory for kept plans (`utils.device.plan_bytes`).

    Attributes:
        plans: the kept plans, with their hit rate.
    """

    def __init__(self, gaussians: GaussianModel, max_bytes: int):
        self._gaussians, self.plans = gaussians, PlanCache(max_bytes)
        with torch.no_grad():
            self._geometry = {
                "means3D": gaussians.get_xyz,
                "opacities": gaussians.get_opacity,
                "scales": gaussians.get_scaling,
                "rotations": gaussians.get_rotation,
            }

    @torch.no_grad()
    def plan(self, camera: Camera) -> RasterPlan:
        """The sorted splats of a view, from the cache where they are in it."""

        def make() -> RasterPlan:
            return prepare(settings=_score_settings(camera), **self._seen_from(camera))

        return self.plans.get(_key(camera), make)

    def render_scores(self, camera: Camera, scores: Tensor, once: bool = False) -> Tensor:
        """Blend scores [N, K] into pictures [K, H, W] without background; differentiable in the scores.

        Args:
            once: the view will not be looked at again. Then no plan is made: on a GPU that takes longer than a picture.
        """
        if once and _key(camera) not in self.plans:
            return rasterize_scores(scores, settings=_score_settings(camera), **self._seen_from(camera))
        return self.plan(camera).render(scores)

    def _seen_from(self, camera: Camera) -> dict[str, Tensor]:
        """The geometry, with the opacities that a model trained with antialiasing has in this view."""
        if not self._gaussians.antialiasing:
            return self._geometry
        xyz, opacities, scales, rotations = self._geometry.values()
        with torch.no_grad():
            return {**self._geometry, "opacities": opacities * compensation(camera, xyz, scales, rotations)}

    def coverage(self, camera: Camera) -> Tensor:
        """Sum of the blending weights of each pixel, [H, W], 0 (nothing there) to 1 (opaque)."""
        return 1 - self.plan(camera).transmittance()

    @torch.no_grad()
    def lift(self, cameras: Iterable[Camera], images: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Carry pictures over to the Gaussians: sums over all pixels of all views, each with its blending weight.

        With weight w_ip of Gaussian i in pixel p, sums / weights is the value v_i that minimises
        sum_p w_ip (v_i - image_p)^2, each Gaussian on its own: a weighted mean of the pixels it shows in, in closed
        form, as LUDVIG (Marrie et al. 2024) lifts features. It is not the least-squares solution of "the picture
        blended from v equals the image": there the Gaussians of a pixel would share it. A constant image comes back
        as that constant.

        Args:
            cameras: the views.
            images: one [C, H, W] a view, of any dtype and device; drawn one by one, so a generator keeps only one in
                memory.

        Returns:
            weights [N], 0 where no view shows a Gaussian, and sums [N, C], float32 on the model's device.

        Raises:
            ValueError: without views, for images of another number or size than the views, or that differ in C.
        """
        total = None
        for camera, image in zip(cameras, images, strict=True):
            plan = self.plan(camera)
            image = image.to(self._gaussians.device, plan.dtype)
            lifted = plan.backproject(torch.cat((image, image.new_ones(1, *image.shape[1:]))))  # [N, C + 1]
            if total is not None and total.shape != lifted.shape:
                raise ValueError(f"an image has {len(image)} channels, those before it {total.shape[1] - 1}.")
            total = lifted if total is None else total.add_(lifted)
        if total is None:
            raise ValueError("there is no view to lift from.")
        return total[:, -1], total[:, :-1]


@lru_cache(maxsize=256)  # of the last cameras: each is asked for again for every group of sentences
def _score_settings(camera: Camera) -> GaussianRasterizationSettings:
    return raster_settings(camera, NO_BACKGROUND, sh_degree=0)


@lru_cache(maxsize=4096)
def _key(camera: Camera) -> tuple:
    """Everything of a camera that its picture depends on; its name may be that of another camera."""
    pose = camera.rotation.tobytes(), camera.translation.tobytes()
    return camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy, *pose
