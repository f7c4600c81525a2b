"""The 2D filter of Mip-Splatting (Yu et al. 2024, Eq. 10).

The rasteriser adds 0.3 square pixels to the covariance of each projected Gaussian, which enlarges small ones. Lowering
their opacity keeps the integral over the image.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from diff_gaussian_rasterization import constants
from scene.cameras import Camera


def opacity_compensation(camera: Camera, xyz: Tensor, scales: Tensor, rotations: Tensor) -> Tensor:
    """Compute opacity factors sqrt(det(cov) / det(cov + 0.3 I)) from the 2D covariances; differentiable.

    Args:
        camera: the view.
        xyz: centres, [N, 3].
        scales: standard deviations, [N, 3].
        rotations: unit quaternions w x y z, [N, 4].

    Returns:
        [N, 1], 0 (much smaller than a pixel) to 1; undefined for Gaussians in front of the near plane.
    """
    lens = _lens(camera, xyz.device, xyz.dtype)
    points = torch.addmm(lens.translation, xyz, lens.rotation.T)
    depth = points[:, 2:].clamp_min(constants.NEAR_PLANE)
    slopes = torch.clamp(points[:, :2] / depth, lens.min_slopes, lens.max_slopes)  # [N, 2]
    axes = (lens.rotation @ _matrices(rotations)) * scales[:, None]  # [N, 3, 3], columns are half axes in the camera
    # rows of a square root of the 2D covariance: the Jacobian of the projection times the half axes
    rows = (axes[:, :2] - slopes[:, :, None] * axes[:, 2:]) * (lens.focal / depth)[:, :, None]  # [N, 2, 3]
    # det [[a, b], [b, c]] = |row_0 x row_1|^2 without cancellation; the norm has a finite gradient at 0, too
    root = torch.linalg.vector_norm(torch.linalg.cross(rows[:, 0], rows[:, 1]), dim=1)
    trace = rows.square().sum(dim=(1, 2))  # a + c
    low_pass = constants.LOW_PASS
    return (root / (root.square() + low_pass * trace + low_pass**2).sqrt())[:, None]


class _Lens(NamedTuple):
    """A camera as tensors on the device."""

    rotation: Tensor  # [3, 3], world to camera
    translation: Tensor  # [3]
    focal: Tensor  # [2], pixels
    min_slopes: Tensor  # [2], bounds of x/z and y/z in the Jacobian
    max_slopes: Tensor  # [2]


@functools.lru_cache(maxsize=4096)
def _lens(camera: Camera, device: torch.device, dtype: torch.dtype) -> _Lens:
    """Return a camera as tensors; cached, as every upload waits for the GPU."""
    tan_x, tan_y = (constants.FRUSTUM_MARGIN * tan for tan in camera.tan_half_fov)
    center_x = (camera.width / 2 - camera.cx) / camera.fx  # x/z in the image centre
    center_y = (camera.height / 2 - camera.cy) / camera.fy
    pairs = ((camera.fx, camera.fy), (center_x - tan_x, center_y - tan_y), (center_x + tan_x, center_y + tan_y))
    poses = (torch.from_numpy(array).to(device, dtype) for array in (camera.rotation, camera.translation))
    return _Lens(*poses, *(torch.tensor(pair, device=device, dtype=dtype) for pair in pairs))


def _matrices(quaternions: Tensor) -> Tensor:
    """Return the rotation matrices [N, 3, 3] of unit quaternions w x y z [N, 4]."""
    # Their elements are linear in the products of two components: one matrix product replaces some 50 operations.
    products = (quaternions[:, :, None] * quaternions[:, None]).view(-1, 16)
    identity, factors = _rotation_basis(quaternions.device, quaternions.dtype)
    return torch.addmm(identity, products, factors).view(-1, 3, 3)


@functools.lru_cache(maxsize=8)
def _rotation_basis(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the identity [9] and the map [16, 9] from products of components w x y z to rotation matrices minus it."""
    w, x, y, z = range(4)
    elements = (
        *(((y, y, -2), (z, z, -2)), ((x, y, 2), (w, z, -2)), ((x, z, 2), (w, y, 2))),
        *(((x, y, 2), (w, z, 2)), ((x, x, -2), (z, z, -2)), ((y, z, 2), (w, x, -2))),
        *(((x, z, 2), (w, y, -2)), ((y, z, 2), (w, x, 2)), ((x, x, -2), (y, y, -2))),
    )
    factors = torch.zeros(4, 4, 9, dtype=dtype)
    for element, terms in enumerate(elements):
        for row, column, factor in terms:
            factors[row, column, element] = factor
    return torch.eye(3, dtype=dtype).flatten().to(device), factors.view(16, 9).to(device)
