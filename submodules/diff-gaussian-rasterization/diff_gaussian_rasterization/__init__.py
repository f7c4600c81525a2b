"""Differentiable rasterisation of 3D Gaussians: colour, extra channels, and frozen geometry for scores.

A drop-in for the Python API of the rasterisers used by 3DGS and LangSplat, written from scratch. `reference` defines
the picture in plain PyTorch; compiled kernels (csrc/, built on first use) give the same result fast. The package ends
at tensors: no scene, no camera class, no files but the build cache.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backends import backend_for, implementation
from .constants import NEAR_PLANE
from .constants import VERSION as __version__
from .inputs import GaussianRasterizationSettings, check_colors, check_geometry, check_tensor, make_view
from .plan import RasterPlan
from .toolchain import BuildError

__project__ = "refersplat"  # forks share the package name; utils/submodules.py recognises ours by this line

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
    """Renders one view.

    Args:
        raster_settings: the view.
        backend: overrides DGR_BACKEND, see `backend_for`.
    """

    def __init__(self, raster_settings: GaussianRasterizationSettings, backend: str | None = None):
        super().__init__()
        self.raster_settings, self.backend = raster_settings, backend

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
            means3D: [N, 3] centres in world space, float32.
            means2D: [N, 3]; its values are ignored, its gradient is that of NDC x, y, and 0.
            opacities: [N, 1], 0..1.
            shs: [N, M, 3] spherical harmonics, M >= (sh_degree + 1)^2; or colors_precomp [N, 3].
            language_feature_precomp: [N, K] further values, blended without a background, for any K. Left out if None
                or if the settings have include_feature=False.
            scales: [N, 3] standard deviations, with rotations [N, 4] (w, x, y, z, normalised by the caller); or
                cov3D_precomp [N, 6] (xx, xy, xz, yy, yz, zz).

        Returns:
            color [3, H, W]; language [K, H, W]; radii [N] int32 in pixels, 0 for an invisible Gaussian.

        Raises:
            ValueError: for tensors that do not fit together.
        """
        shape = scales, rotations, cov3D_precomp
        view = make_view(self.raster_settings)
        check_geometry(means3D, opacities, *shape)
        check_colors(means3D, shs, colors_precomp, view.sh_degree)
        check_tensor("means2D", means2D, means3D, (len(means3D), 3))
        features = language_feature_precomp if self.raster_settings.include_feature else None
        if features is not None:
            check_tensor("language_feature_precomp", features, means3D, (len(means3D), None))
        module = implementation(means3D.device, self.backend)
        return module.rasterize(view, means3D, means2D, opacities, shs, colors_precomp, features, *shape)

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
    backend: str | None = None,
) -> RasterPlan:
    """Project and sort the Gaussians of one view once, for any number of `plan.render(scores)`.

    Arguments as in `GaussianRasterizer`. Nothing here is differentiable.

    Raises:
        ValueError: for tensors that do not fit together.
    """
    geometry = means3D, opacities, scales, rotations, cov3D_precomp
    check_geometry(*geometry)
    return implementation(means3D.device, backend).prepare(make_view(settings), *geometry).packed()


def rasterize_scores(
    scores: Tensor,
    means3D: Tensor,
    opacities: Tensor,
    settings: GaussianRasterizationSettings,
    scales: Tensor | None = None,
    rotations: Tensor | None = None,
    cov3D_precomp: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Blend scores [N, K] into [K, H, W] without background: `prepare(...).render(scores)` for a view seen once."""
    geometry = means3D, opacities, scales, rotations, cov3D_precomp
    check_geometry(*geometry)
    return implementation(means3D.device, backend).prepare(make_view(settings), *geometry).render(scores)
