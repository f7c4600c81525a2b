"""Opacities that do not grow with the low-pass filter of the rasteriser: the 2D filter of Mip-Splatting.

The rasteriser adds 0.3 square pixels to the covariance of every projected Gaussian, which enlarges small ones. Less
opacity in turn keeps the integral over the picture (Yu et al. 2024, Eq. 10).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from scene.cameras import Camera
from utils.submodules import import_ours

constants = import_ours("diff_gaussian_rasterization.constants")


def compensation(camera: Camera, xyz: Tensor, scales: Tensor, rotations: Tensor) -> Tensor:
    """Factors of the opacities, sqrt(det(cov) / det(cov + 0.3 I)) with the 2D covariances; differentiable.

    Args:
        camera: the view.
        xyz: centres, [N, 3].
        scales: standard deviations, [N, 3].
        rotations: unit quaternions w x y z, [N, 4].

    Returns:
        [N, 1], 0 (much smaller than a pixel) to 1; of no meaning for Gaussians before the near plane.
    """
    to_camera, translation = _pose(camera, xyz.device, xyz.dtype)
    points = xyz @ to_camera.T + translation
    depth = points[:, 2].clamp_min(constants.NEAR_PLANE)
    tan_x, tan_y = (constants.FRUSTUM_MARGIN * tan for tan in camera.tan_half_fov)
    center_x = (camera.width / 2 - camera.cx) / camera.fx  # x/z in the middle of the picture
    center_y = (camera.height / 2 - camera.cy) / camera.fy
    slope_x = (points[:, 0] / depth).clamp(center_x - tan_x, center_x + tan_x)
    slope_y = (points[:, 1] / depth).clamp(center_y - tan_y, center_y + tan_y)
    axes = (to_camera @ _matrices(rotations)) * scales[:, None]  # [N, 3, 3], columns are half axes in the camera
    x, y, z = axes.unbind(dim=1)  # [N, 3] each
    # rows of the square root of the 2D covariance: the Jacobian of the projection times the half axes
    row_x = (x - slope_x[:, None] * z) * (camera.fx / depth)[:, None]
    row_y = (y - slope_y[:, None] * z) * (camera.fy / depth)[:, None]
    # det of [[a, b], [b, c]] = |row_x x row_y|^2 without cancellation; the norm has a finite gradient also at 0
    root = torch.linalg.vector_norm(torch.linalg.cross(row_x, row_y), dim=1)
    spread = row_x.square().sum(dim=1) + row_y.square().sum(dim=1)  # a + c
    low_pass = constants.LOW_PASS
    return (root / (root.square() + low_pass * spread + low_pass**2).sqrt())[:, None]


@functools.lru_cache(maxsize=4096)
def _pose(camera: Camera, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rotation [3, 3] and translation [3] on the device; kept, since every upload waits for the GPU."""
    return torch.from_numpy(camera.rotation).to(device, dtype), torch.from_numpy(camera.translation).to(device, dtype)


def _matrices(quaternions: Tensor) -> Tensor:
    """Rotation matrices [N, 3, 3] of unit quaternions w x y z [N, 4]."""
    w, x, y, z = quaternions.unbind(dim=1)
    rows = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(rows, dim=1).view(-1, 3, 3)
