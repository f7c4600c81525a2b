"""Differentiable rasterisation of 3D Gaussians: colour, extra channels, and frozen geometry for scores.

A drop-in for the Python API of the rasterisers used by 3DGS and LangSplat, written from scratch. `reference` defines
the picture in plain PyTorch; compiled kernels (csrc/, built on first use) give the same result fast. What lives here
ends at tensors: no scene, no camera class, no files but the build cache.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backends import backend_for, implementation
from .constants import NEAR_PLANE
from .constants import VERSION as __version__
from .inputs import GaussianRasterizationSettings
from .plan import RasterPlan
from .toolchain import BuildError

__project__ = "refersplat"  # forks share the package name; utils/submodules.py tells ours by this line

__all__ = [
    "BuildError",
    "GaussianRasterizationSettings",
    "GaussianRasterizer",
    "RasterPlan",
    "__version__",
    "backend_for",
    "prepare",
    "rasterize_scores",
]


class GaussianRasterizer(nn.Module):
    """Renders one view."""

    def __init__(self, raster_settings: GaussianRasterizationSettings):
        super().__init__()
        self.raster_settings = raster_settings

    def forward(
        self,
        means3D: Tensor,
        means2D: Tensor,
        opacities: Tensor,
        shs: Tensor | None = None,
        colors_precomp: Tensor | None = None,
        language_feature_precomp: Tensor | None = None,
        scales: Tensor | None = None,
        rotations: Tensor | None = None,
        cov3D_precomp: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Render colour and extra channels.

        Args:
            means3D: [N, 3] centres in the world, float32.
            means2D: [N, 3]; its values are ignored, its gradient is that of NDC x, y, and 0.
            opacities: [N, 1], 0..1.
            shs: [N, M, 3] spherical harmonics, M >= (sh_degree + 1)^2; or colors_precomp [N, 3].
            language_feature_precomp: [N, K] further values, blended without a background; K is free. Left out if
                None or if the settings have include_feature=False.
            scales: [N, 3] standard deviations, with rotations [N, 4] (w, x, y, z, normalised by the caller); or
                cov3D_precomp [N, 6] (xx, xy, xz, yy, yz, zz).

        Returns:
            color [3, H, W]; language [K, H, W]; radii [N] int32 in pixels, 0 for an invisible Gaussian.

        Raises:
            ValueError: for tensors that do not fit together.
        """
        return implementation(_device(means3D)).rasterize(
            means3D,
            means2D,
            opacities,
            self.raster_settings,
            shs,
            colors_precomp,
            language_feature_precomp,
            scales,
            rotations,
            cov3D_precomp,
        )

    @torch.no_grad()
    def markVisible(self, positions: Tensor) -> Tensor:  # noqa: N802, the name of the drop-in
        """[N] bool: which centres [N, 3] lie beyond the near plane."""
        viewmatrix = self.raster_settings.viewmatrix.to(positions)
        return positions @ viewmatrix[:3, 2] + viewmatrix[3, 2] > NEAR_PLANE


def prepare(
    means3D: Tensor,
    opacities: Tensor,
    settings: GaussianRasterizationSettings,
    scales: Tensor | None = None,
    rotations: Tensor | None = None,
    cov3D_precomp: Tensor | None = None,
) -> RasterPlan:
    """Project and sort the Gaussians of one view once, for any number of `plan.render(scores)`.

    Arguments as in `GaussianRasterizer.forward`. Nothing here is differentiable.

    Raises:
        ValueError: for tensors that do not fit together.
    """
    return implementation(_device(means3D)).prepare(means3D, opacities, settings, scales, rotations, cov3D_precomp)


def rasterize_scores(
    scores: Tensor,
    means3D: Tensor,
    opacities: Tensor,
    settings: GaussianRasterizationSettings,
    scales: Tensor | None = None,
    rotations: Tensor | None = None,
    cov3D_precomp: Tensor | None = None,
) -> Tensor:
    """Blend scores [N, K] into [K, H, W] without background: `prepare(...).render(scores)` for a view seen once."""
    return implementation(_device(means3D)).rasterize_scores(
        scores, means3D, opacities, settings, scales, rotations, cov3D_precomp
    )


def _device(means3D: Tensor) -> torch.device:
    if not isinstance(means3D, Tensor):
        raise ValueError(f"means3D must be a tensor of shape [N, 3], got {type(means3D).__name__}.")
    return means3D.device
