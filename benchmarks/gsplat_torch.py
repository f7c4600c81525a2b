"""gsplat's own PyTorch functions (gsplat/cuda/_torch_impl.py), as far as they run on a machine without CUDA.

Two helpers of its rasterisation exist for CUDA only: the search for (Gaussian, pixel) intersections, and nerfacc's
accumulation along rays. Intersections are therefore found by reference.py beforehand, which is not timed, and nerfacc's
two functions are replaced by plain PyTorch ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from diff_gaussian_rasterization import reference
from diff_gaussian_rasterization.inputs import make_view
from scene.cameras import Camera

Geometry = dict[str, Tensor]  # means3D, opacities, scales, rotations


class Gsplat:
    """The steps on one set of Gaussians and one camera.

    Raises:
        Exception: whatever importing gsplat raises where it is not installed or broken.
    """

    def __init__(self, camera: Camera, device: torch.device):
        from gsplat.cuda import _torch_impl

        self.functions, self.camera = _torch_impl, camera
        self.columns, self.rows = -(-camera.width // 16), -(-camera.height // 16)
        self.view = torch.from_numpy(camera.world_to_camera()).float().to(device)[None]  # [1, 4, 4]
        intrinsics = [[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]]
        self.intrinsics = torch.tensor(intrinsics).float().to(device)[None]  # [1, 3, 3]

    def project(self, means3D: Tensor, scales: Tensor, rotations: Tensor) -> tuple[Tensor, ...]:
        """radii, means2d, depths, conics of one camera."""
        covariances, _ = self.functions._quat_scale_to_covar_preci(rotations, scales, True, False)
        size = (self.camera.width, self.camera.height)
        return self.functions._fully_fused_projection(
            means3D, covariances, self.view, self.intrinsics, *size, near_plane=0.2
        )[:4]

    def project_both(self, means3D: Tensor, scales: Tensor, rotations: Tensor) -> None:
        """Forward and backward."""
        leaves = [t.detach().requires_grad_() for t in (means3D, scales, rotations)]
        _, means2d, _, conics = self.project(*leaves)
        (means2d.nan_to_num().sum() + conics.nan_to_num().sum()).backward()

    def tile_lists(self, radii: Tensor, means2d: Tensor, depths: Tensor) -> None:
        """Its lists of the tiles, made in Python loops."""
        _, ids, _ = self.functions._isect_tiles(means2d, radii, depths, 16, self.columns, self.rows)
        self.functions._isect_offset_encode(ids, 1, self.columns, self.rows)

    def accumulation(self, geometry: Geometry, settings) -> Callable[[Tensor], Tensor]:
        """A function from scores [N, K] to the picture [H, W, K], with the intersections found now."""
        inputs = (geometry["means3D"], geometry["scales"], geometry["rotations"])
        _, means2d, _, conics = self.project(*inputs)
        gaussians, pixels = intersections(geometry, settings)
        size = (self.camera.width, self.camera.height)

        def accumulate(scores: Tensor) -> Tensor:
            with _nerfacc_stand_in():
                picture, _ = self.functions.accumulate(
                    *(means2d, conics, geometry["opacities"][None, :, 0], scores[None]),
                    *(gaussians, pixels, torch.zeros_like(pixels), *size),
                )
            return picture[0]

        return accumulate


@torch.no_grad()
def intersections(geometry: Geometry, settings) -> tuple[Tensor, Tensor]:
    """(Gaussian, pixel) of every contribution to the picture, pixel by pixel, front to back."""
    view = make_view(settings)
    cov3D = reference.covariances(geometry["scales"], geometry["rotations"])
    projected = reference.project(geometry["means3D"], cov3D, view)
    lists = reference.tile_lists(projected, view)
    found = []
    for tile, ids in enumerate(lists.gaussians.split(lists.counts)):
        left, top = tile % -(-view.width // 16) * 16, tile // -(-view.width // 16) * 16
        xs = torch.arange(left, min(left + 16, view.width), device=ids.device)
        ys = torch.arange(top, min(top + 16, view.height), device=ids.device)
        x, y = (grid.flatten() for grid in torch.meshgrid(xs, ys, indexing="xy"))
        dx, dy = projected.centers[ids, 0] - x[:, None], projected.centers[ids, 1] - y[:, None]  # [pixels, L]
        xx, xy, yy = projected.conics[ids].unbind(1)
        alpha = geometry["opacities"][ids, 0] * torch.exp(-0.5 * (xx * dx * dx + yy * dy * dy) - xy * dx * dy)
        alpha = alpha.clamp_max(reference.ALPHA_CAP)
        counted = alpha >= reference.ALPHA_FLOOR
        kept = counted & (torch.cumprod(1 - alpha * counted, 1) >= reference.TRANSMITTANCE_STOP)
        pixel, rank = kept.nonzero(as_tuple=True)
        found.append(torch.stack((ids[rank], (y * view.width + x)[pixel])))
    gaussians, pixels = torch.cat(found, dim=1)
    return gaussians, pixels


@contextmanager
def _nerfacc_stand_in() -> Iterator[None]:
    """Lets `from nerfacc import ...` find the two functions below while it lasts."""
    module = ModuleType("nerfacc")
    module.render_weight_from_alpha, module.accumulate_along_rays = _weights, _accumulate
    before = sys.modules.get("nerfacc")
    sys.modules["nerfacc"] = module
    try:
        yield
    finally:
        del sys.modules["nerfacc"]
        if before is not None:
            sys.modules["nerfacc"] = before


def _weights(alphas: Tensor, ray_indices: Tensor, n_rays: int) -> tuple[Tensor, Tensor]:
    logs = torch.log1p(-alphas.double())  # double: one running sum over all rays
    before = logs.cumsum(0) - logs
    starts = torch.ones_like(ray_indices, dtype=torch.bool)
    starts[1:] = ray_indices[1:] != ray_indices[:-1]
    first = starts.nonzero().squeeze(1)[starts.cumsum(0) - 1]
    transmittance = torch.exp(before - before[first]).to(alphas.dtype)
    return alphas * transmittance, transmittance


def _accumulate(weights: Tensor, values: Tensor | None, ray_indices: Tensor, n_rays: int) -> Tensor:
    products = weights[:, None] if values is None else weights[:, None] * values
    return products.new_zeros(n_rays, products.shape[1]).index_add(0, ray_indices, products)
