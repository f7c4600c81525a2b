"""Pictures of a Gaussian model: colour with `render`, K per-Gaussian scalars with `ScoreRenderer`.

The rasteriser is the package `diff_gaussian_rasterization`, which picks CUDA, CPU or PyTorch by the tensors' device.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor

from scene.cameras import Camera
from scene.gaussian_model import GaussianModel
from utils.submodules import import_ours

rasterization = import_ours("diff_gaussian_rasterization")

log = logging.getLogger("refersplat")


class Rendering(NamedTuple):
    """What `render` returns.

    Attributes:
        image: [3, H, W], not clamped.
        radii: [N] int32, pixels; 0 where a Gaussian is not visible.
        means2D: [N, 3], zeros that receive the gradient of the projected centres (NDC).
    """

    image: Tensor
    radii: Tensor
    means2D: Tensor


def raster_settings(camera: Camera, background: Tensor, sh_degree: int) -> rasterization.GaussianRasterizationSettings:
    """Settings of the rasteriser for one camera and a background colour [3]."""
    viewmatrix, projmatrix, campos = camera.matrices(background.device)
    tanfovx, tanfovy = camera.tan_half_fov
    return rasterization.GaussianRasterizationSettings(
        image_height=camera.height,
        image_width=camera.width,
        tanfovx=tanfovx,
        tanfovy=tanfovy,
        bg=background,
        scale_modifier=1.0,
        viewmatrix=viewmatrix,
        projmatrix=projmatrix,
        sh_degree=sh_degree,
        campos=campos,
        prefiltered=False,
        debug=False,
        include_feature=False,
    )


def render(camera: Camera, gaussians: GaussianModel, background: Tensor) -> Rendering:
    """Colour picture of the Gaussians over a background colour [3]; differentiable in every raw parameter."""
    means2D = torch.zeros_like(gaussians.xyz, requires_grad=torch.is_grad_enabled())
    rasterizer = rasterization.GaussianRasterizer(raster_settings(camera, background, gaussians.active_sh_degree))
    image, _, radii = rasterizer(
        means3D=gaussians.get_xyz,
        means2D=means2D,
        opacities=gaussians.get_opacity,
        shs=gaussians.get_features,
        scales=gaussians.get_scaling,
        rotations=gaussians.get_rotation,
    )
    return Rendering(image, radii, means2D)


class ScoreRenderer:
    """Splats per-Gaussian scores of a frozen model; the sorted splats of a view are kept and reused.

    Args:
        gaussians: the frozen model.
        max_bytes: memory for kept plans; the least recently used view is dropped first.
    """

    def __init__(self, gaussians: GaussianModel, max_bytes: int):
        self._gaussians, self._max_bytes = gaussians, max_bytes
        self._plans: OrderedDict[tuple, rasterization.RasterPlan] = OrderedDict()
        self._bytes = 0
        with torch.no_grad():
            self._geometry = {
                "means3D": gaussians.get_xyz,
                "opacities": gaussians.get_opacity,
                "scales": gaussians.get_scaling,
                "rotations": gaussians.get_rotation,
            }

    @torch.no_grad()
    def plan(self, camera: Camera) -> rasterization.RasterPlan:
        """The sorted splats of a view, from the cache where they are in it."""
        key = (camera.name, camera.width, camera.height)
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        background = torch.zeros(3, device=self._gaussians.device)
        plan = rasterization.prepare(settings=raster_settings(camera, background, sh_degree=0), **self._geometry)
        self._plans[key] = plan
        self._bytes += plan.nbytes
        while self._bytes > self._max_bytes and len(self._plans) > 1:
            _, dropped = self._plans.popitem(last=False)
            self._bytes -= dropped.nbytes
        return plan

    def render_scores(self, camera: Camera, scores: Tensor) -> Tensor:
        """Blend scores [N, K] into pictures [K, H, W] without background; differentiable in the scores."""
        return self.plan(camera).render(scores)

    def coverage(self, camera: Camera) -> Tensor:
        """Sum of the blending weights of each pixel, [H, W], 0 (nothing there) to 1 (opaque)."""
        ones = torch.ones(len(self._gaussians), 1, device=self._gaussians.device)
        return self.render_scores(camera, ones)[0]
