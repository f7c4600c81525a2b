"""Pinhole cameras with a principal point, and the one statement of this project's conventions.

World and camera: right-handed, camera axes x right, y down, z forward (COLMAP, OpenCV). A world point x (a column)
has camera coordinates `rotation @ x + translation`.

Pixels: intrinsics follow COLMAP, where the centre of the top-left pixel is (0.5, 0.5). The rasteriser numbers pixel
centres 0, 1, 2 ..., so it sees x = fx X/Z + cx - 0.5, which is ((ndc + 1) W - 1) / 2 of 3DGS.

Matrices of the rasteriser are transposed, as in 3DGS: a row vector [x 1] times `viewmatrix` is a camera point,
times `projmatrix` a clip-space point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError

Z_NEAR, Z_FAR = 0.01, 100.0  # depth range of the clip-space z, which the rasteriser does not use for culling


@dataclass(frozen=True, eq=False)
class Camera:
    """One posed, undistorted pinhole camera."""

    name: str  # relative to the image folder, with / and its suffix, such as left/frame_00001.jpg
    rotation: np.ndarray  # world to camera, [3, 3] float64
    translation: np.ndarray  # world to camera, [3] float64, in units of the COLMAP model
    fx: float  # intrinsics in pixels of width x height (COLMAP pixel convention, see module)
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    @property
    def center(self) -> np.ndarray:
        """Camera centre in the world, [3]."""
        return -self.rotation.T @ self.translation

    @property
    def tan_half_fov(self) -> tuple[float, float]:
        """(tanfovx, tanfovy): half the picture's width and height over the focal lengths."""
        return self.width / (2 * self.fx), self.height / (2 * self.fy)

    def world_to_camera(self) -> np.ndarray:
        """[4, 4] matrix for column vectors."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.rotation
        matrix[:3, 3] = self.translation
        return matrix

    def projection(self) -> np.ndarray:
        """[4, 4] camera to clip space for column vectors, with the principal point in the third column."""
        matrix = np.zeros((4, 4))
        matrix[0, 0] = 2 * self.fx / self.width
        matrix[1, 1] = 2 * self.fy / self.height
        matrix[0, 2] = 2 * self.cx / self.width - 1
        matrix[1, 2] = 2 * self.cy / self.height - 1
        matrix[2, 2] = Z_FAR / (Z_FAR - Z_NEAR)
        matrix[2, 3] = -Z_FAR * Z_NEAR / (Z_FAR - Z_NEAR)
        matrix[3, 2] = 1.0
        return matrix

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """(viewmatrix [4, 4], projmatrix [4, 4], campos [3]) as the rasteriser takes them, float32, on the CPU."""
        numbers = np.empty(35)  # one copy to a tensor instead of three
        view = self.world_to_camera()
        numbers[:16], numbers[16:32] = view.T.ravel(), (self.projection() @ view).T.ravel()
        numbers[32:] = self.center
        viewmatrix, projmatrix, campos = torch.from_numpy(numbers).float().split((16, 16, 3))
        return viewmatrix.view(4, 4), projmatrix.view(4, 4), campos

    def resized(self, width: int, height: int) -> Camera:
        """The same camera with another picture size; intrinsics scale with each axis."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self, fx=self.fx * sx, cx=self.cx * sx, fy=self.fy * sy, cy=self.cy * sy, width=width, height=height
        )


def target_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Picture size for the flag `-r`, as in 3DGS.

    1, 2, 4 or 8 divide the size; -1 keeps it up to a width of 1600 and scales wider pictures down to that;
    any other positive number is the target width in pixels.

    Raises:
        UserError: for 0 and other negative numbers.
    """
    if resolution < 1 and resolution != -1:
        raise UserError(f"-r {resolution} is no resolution; give 1, 2, 4 or 8, a width in pixels, or -1.")
    if resolution in (1, 2, 4, 8):
        return max(1, round(width / resolution)), max(1, round(height / resolution))
    target = min(width, 1600) if resolution == -1 else resolution
    return target, max(1, round(height * target / width))


def scene_bounds(cameras: Sequence[Camera]) -> tuple[np.ndarray, float]:
    """(center [3], half side) of a cube around what the cameras look at, world units.

    The centre is the point nearest to all optical axes; the half side is what the narrower side of a picture shows at
    the mean distance of that point. For a Blender scene (cameras 4.03 units away, 39.6 degrees wide) that is 1.45,
    where 3DGS uses 1.3. If the axes do not meet in front of the cameras (they look outwards or all the same way), it
    is the cube of three times the cameras' radius around their mean, as in gsplat.
    """
    centers = np.stack([camera.center for camera in cameras])  # [V, 3]
    axes = np.stack([camera.rotation[2] for camera in cameras])  # [V, 3], unit
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]  # [V, 3, 3], projections along the axes
    normal = across.mean(axis=0)
    if np.linalg.eigvalsh(normal)[0] > 0.01:  # else nearly parallel axes
        focus = np.linalg.solve(normal, np.einsum("vij,vj->i", across, centers) / len(centers))
        depths = ((focus - centers) * axes).sum(axis=1)
        if (depths > 0).mean() > 0.9:
            half_fov = min(min(camera.tan_half_fov) for camera in cameras)
            return focus, float(np.abs(depths).mean() * half_fov)
    middle = centers.mean(axis=0)
    radius = float(np.linalg.norm(centers - middle, axis=1).max())
    return middle, 3 * radius or 1.0
