"""Undistortion on load, so that everything downstream can assume pinhole cameras.

COLMAP puts the centre of the first pixel at 0.5, OpenCV at 0, so principal points lose half a pixel on the way to cv2.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from scene.readers.colmap_model import CAMERA_MODELS, ColmapCamera
from utils.errors import UserError

PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE")
POLYNOMIALS = ("SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")  # cv2's k1 k2 p1 p2 k3 k4 k5 k6
FISHEYES = ("OPENCV_FISHEYE",)
_GRID = 33  # positions per side at which a new focal length is checked
_LARGEST_ZOOM, _SMALLEST_ZOOM = 16.0, 1 / 16  # new focal length over old


class Lens(NamedTuple):
    """A distorted camera in OpenCV's terms and pixel convention."""

    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...]
    fisheye: bool

    def project(self, points: np.ndarray) -> np.ndarray:
        """Project camera points (x, y, 1), `points` [N, 2], to pixels [N, 2]."""
        rays = np.pad(points, ((0, 0), (0, 1)), constant_values=1)[None]  # [1, N, 3]
        project = cv2.fisheye.projectPoints if self.fisheye else cv2.projectPoints
        pixels, _ = project(rays, np.zeros(3), np.zeros(3), _matrix(*self[:4]), np.array(self.distortion))
        return pixels.reshape(-1, 2)


class Remap(NamedTuple):
    """Resamples a distorted picture to a pinhole camera of the same size and principal point."""

    lens: Lens
    fx: float  # of the pinhole camera
    fy: float
    width: int
    height: int

    def __call__(self, picture: np.ndarray, nearest: bool = False) -> np.ndarray:
        """Undistort `picture` [height, width, ...]; `nearest` for masks, else linear interpolation."""
        map_x, map_y = _maps(self)
        interpolation = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
        return cv2.remap(picture, map_x, map_y, interpolation, borderMode=cv2.BORDER_REPLICATE)

    def distort(self, picture: np.ndarray) -> np.ndarray:
        """Distort a picture of the pinhole camera, [height, width] float32, by linear interpolation.

        Pixels outside the view of the pinhole camera are 0.
        """
        x, y = np.meshgrid(np.arange(self.width, dtype=np.float64), np.arange(self.height, dtype=np.float64))
        lens, pinhole = self.lens, _matrix(self.fx, self.fy, self.lens.cx, self.lens.cy)
        pixels = np.stack([x.ravel(), y.ravel()], axis=1)[:, None]
        module = cv2.fisheye if lens.fisheye else cv2
        seen = module.undistortPoints(pixels, _matrix(*lens[:4]), np.array(lens.distortion), P=pinhole)
        maps = seen.reshape(self.height, self.width, 2).astype(np.float32)
        return cv2.remap(picture, maps, None, cv2.INTER_LINEAR)  # type: ignore[call-overload]


class Undistorted(NamedTuple):
    """Intrinsics of a pinhole camera in COLMAP's pixel convention, and the remap that makes its pictures."""

    fx: float
    fy: float
    cx: float
    cy: float
    remap: Remap | None  # None if the pictures have no distortion


def undistorted(
    camera: ColmapCamera, size: tuple[int, int] | None = None, command: str = "colmap image_undistorter"
) -> Undistorted:
    """Return the pinhole camera that replaces `camera`.

    The new focal length is the smallest that leaves no pixel of the new picture outside the old one (cv2's alpha = 0,
    balance = 0); the ratio fx / fy, the principal point and the picture size stay.

    Args:
        size: (width, height) of the picture file if it is not the camera's; intrinsics scale with it.
        command: undistortion command for the message when the model is not supported.

    Raises:
        UserError: for camera models that OpenCV does not have, and for distortion that cannot be undone.
    """
    width, height = size or (camera.width, camera.height)
    sx, sy = width / camera.width, height / camera.height
    fx, fy, cx, cy = camera.focal_and_center
    fx, fy, cx, cy = fx * sx, fy * sy, cx * sx, cy * sy
    if camera.model not in PINHOLES + POLYNOMIALS + FISHEYES:
        raise UserError(
            f"camera {camera.id} has the lens model {camera.model}, which is not undistorted on load (those that "
            f"are: {', '.join(POLYNOMIALS + FISHEYES)}). Undistort the images once with\n  {command}\n"
            "and use its output folder; masks must be made for, or undistorted with, those images."
        )
    fisheye = camera.model in FISHEYES
    distortion = camera.params[CAMERA_MODELS[camera.model].focals + 2 :]
    if camera.model in PINHOLES or (not fisheye and not distortion.any()):
        return Undistorted(fx, fy, cx, cy, None)
    if camera.model in POLYNOMIALS:
        distortion = np.pad(distortion, (0, 8 - len(distortion)))
    lens = Lens(fx, fy, cx - 0.5, cy - 0.5, tuple(distortion.tolist()), fisheye)
    zoom = _smallest_zoom(lens, width, height)
    if zoom is None:
        raise UserError(
            f"camera {camera.id} ({camera.model}, parameters {camera.params.tolist()}) has a distortion that folds "
            "the picture over itself, or a principal point outside of it. Check the COLMAP model, or undistort "
            f"the images once with\n  {command}\nand use its output folder."
        )
    remap = Remap(lens, fx * zoom, fy * zoom, width, height)
    return Undistorted(remap.fx, remap.fy, cx, cy, remap)


def _smallest_zoom(lens: Lens, width: int, height: int) -> float | None:
    """The smallest factor on the focal lengths that leaves no pixel blank; None if none does."""
    zoom = 1.0
    while not _covered(lens, zoom, width, height):
        zoom *= 2
        if zoom > _LARGEST_ZOOM:
            return None
    good, bad = zoom, _SMALLEST_ZOOM
    while good / bad > 1 + 1e-6:
        middle = (good * bad) ** 0.5
        if _covered(lens, middle, width, height):
            good = middle
        else:
            bad = middle
    return good


def _covered(lens: Lens, zoom: float, width: int, height: int) -> bool:
    """Whether every pixel of the pinhole picture comes from inside the distorted one, without folds."""
    columns, rows = np.linspace(0, width - 1, _GRID), np.linspace(0, height - 1, _GRID)
    x, y = np.meshgrid((columns - lens.cx) / (lens.fx * zoom), (rows - lens.cy) / (lens.fy * zoom))
    pixels = lens.project(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(_GRID, _GRID, 2)
    inside = (pixels >= 0).all() and (pixels <= (width - 1, height - 1)).all()  # false for NaN, too
    steps_x, steps_y = np.diff(pixels[..., 0], axis=1), np.diff(pixels[..., 1], axis=0)
    return bool(inside and (steps_x > 0).all() and (steps_y > 0).all())


@lru_cache(maxsize=4)
def _maps(remap: Remap) -> tuple[np.ndarray, np.ndarray]:
    """cv2's maps, [H, W] float32 each; the cache is small, because COLMAP may make one camera per image."""
    lens = remap.lens
    build = cv2.fisheye.initUndistortRectifyMap if lens.fisheye else cv2.initUndistortRectifyMap
    pinhole = _matrix(remap.fx, remap.fy, lens.cx, lens.cy)
    size = (remap.width, remap.height)
    return build(_matrix(*lens[:4]), np.array(lens.distortion), np.eye(3), pinhole, size, cv2.CV_32FC1)


def _matrix(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """Intrinsics as a [3, 3] matrix."""
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=np.float64)
