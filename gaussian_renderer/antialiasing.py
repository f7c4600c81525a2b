"""Opacities that do not grow with the low-pass filter of the rasteriser: the 2D filter of Mip-Splatting.

The rasteriser adds 0.3 square pixels to the covariance of every projected Gaussian, which enlarges small ones. Less
opacity in turn keeps the integral over the picture (Yu et al. 2024, Eq. 10).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from diff_gaussian_rasterization import constants
from scene.cameras import Camera


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
    lens = _lens(camera, xyz.device, xyz.dtype)
    points = torch.addmm(lens.translation, xyz, lens.rotation.T)
    depth = points[:, 2:].clamp_min(constants.NEAR_PLANE)
    slopes = torch.clamp(points[:, :2] / depth, lens.least_slopes, lens.most_slopes)  # [N, 2]
    axes = (lens.rotation @ _matrices(rotations)) * scales[:, None]  # [N, 3, 3], columns are half axes in the camera
    # rows of the square root of the 2D covariance: the Jacobian of the projection times the half axes
    rows = (axes[:, :2] - slopes[:, :, None] * axes[:, 2:]) * (lens.focal / depth)[:, :, None]  # [N, 2, 3]
    # det of [[a, b], [b, c]] = |row_0 x row_1|^2 without cancellation; the norm has a finite gradient also at 0
    root = torch.linalg.vector_norm(torch.linalg.cross(rows[:, 0], rows[:, 1]), dim=1)
    spread = rows.square().sum(dim=(1, 2))  # a + c
    low_pass = constants.LOW_PASS
    return (root / (root.square() + low_pass * spread + low_pass**2).sqrt())[:, None]


class _Lens(NamedTuple):
    """A camera as tensors on the device."""

    rotation: Tensor  # [3, 3], world to camera
    translation: Tensor  # [3]
    focal: Tensor  # [2], pixels
    least_slopes: Tensor  # [2], bounds of x/z and y/z in the Jacobian
    most_slopes: Tensor  # [2]


@functools.lru_cache(maxsize=4096)
def _lens(camera: Camera, device: torch.device, dtype: torch.dtype) -> _Lens:
    """Kept, since every upload waits for the GPU."""
    tan_x, tan_y = (constants.FRUSTUM_MARGIN * tan for tan in camera.tan_half_fov)
    center_x = (camera.width / 2 - camera.cx) / camera.fx  # x/z in the middle of the picture
    center_y = (camera.height / 2 - camera.cy) / camera.fy
    pairs = ((camera.fx, camera.fy), (center_x - tan_x, center_y - tan_y), (center_x + tan_x, center_y + tan_y))
    poses = (torch.from_numpy(array).to(device, dtype) for array in (camera.rotation, camera.translation))
    return _Lens(*poses, *(torch.tensor(pair, device=device, dtype=dtype) for pair in pairs))


def _matrices(quaternions: Tensor) -> Tensor:
    """Rotation matrices [N, 3, 3] of unit quaternions w x y z [N, 4]."""
    # Their elements are linear in the products of two components: one matrix product instead of some 50 operations.
    products = (quaternions[:, :, None] * quaternions[:, None]).view(-1, 16)
    identity, factors = _of_products(quaternions.device, quaternions.dtype)
    return torch.addmm(identity, products, factors).view(-1, 3, 3)


@functools.lru_cache(maxsize=8)
def _of_products(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The identity [9], and what the products [4, 4] of components w x y z add to a rotation matrix [16, 9]."""
    w, x, y, z = range(4)
    added = (
        *(((y, y, -2), (z, z, -2)), ((x, y, 2), (w, z, -2)), ((x, z, 2), (w, y, 2))),
        *(((x, y, 2), (w, z, 2)), ((x, x, -2), (z, z, -2)), ((y, z, 2), (w, x, -2))),
        *(((x, z, 2), (w, y, -2)), ((y, z, 2), (w, x, 2)), ((x, x, -2), (y, y, -2))),
    )
    factors = torch.zeros(4, 4, 9, dtype=dtype)
    for element, terms in enumerate(added):
        for row, column, factor in terms:
            factors[row, column, element] = factor
    return torch.eye(3, dtype=dtype).flatten().to(device), factors.view(16, 9).to(device)
