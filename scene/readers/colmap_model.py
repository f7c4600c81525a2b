"""Cameras, images and models in COLMAP's terms, and the checks that every reader applies to them.

World and camera axes are those of `scene/cameras.py`. `where` in the checks is the place that a message names: a path
with a byte offset (.bin), a line number (.txt) or a key (.json).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple, NoReturn

import numpy as np

from utils.errors import UserError

MAX_SIDE = 1_000_000  # pixels; a larger width or height is a damaged file
MAX_MAGNITUDE = 1e15  # larger numbers overflow float32 as soon as they are squared
GREY = 128  # points without colours

Points = tuple[np.ndarray, np.ndarray]  # xyz [M, 3] float, rgb [M, 3] uint8


class CameraModel(NamedTuple):
    """COLMAP's id of a camera model, its number of parameters, and how many of the first ones are focal lengths."""

    id: int
    parameters: int
    focals: int


CAMERA_MODELS = {
    "SIMPLE_PINHOLE": CameraModel(0, 3, 1),
    "PINHOLE": CameraModel(1, 4, 2),
    "SIMPLE_RADIAL": CameraModel(2, 4, 1),
    "RADIAL": CameraModel(3, 5, 1),
    "OPENCV": CameraModel(4, 8, 2),
    "OPENCV_FISHEYE": CameraModel(5, 8, 2),
    "FULL_OPENCV": CameraModel(6, 12, 2),
    "FOV": CameraModel(7, 5, 2),
    "SIMPLE_RADIAL_FISHEYE": CameraModel(8, 4, 1),
    "RADIAL_FISHEYE": CameraModel(9, 5, 1),
    "THIN_PRISM_FISHEYE": CameraModel(10, 12, 2),
    "RAD_TAN_THIN_PRISM_FISHEYE": CameraModel(11, 16, 2),
}
CAMERA_MODEL_NAMES = {model.id: name for name, model in CAMERA_MODELS.items()}


@dataclass(frozen=True, eq=False)
class ColmapCamera:
    """Intrinsics in COLMAP's parameter order; pixels, with the centre of the top-left pixel at (0.5, 0.5)."""

    id: int
    model: str
    width: int
    height: int
    params: np.ndarray  # [P] float64

    @property
    def focal_and_center(self) -> tuple[float, float, float, float]:
        """(fx, fy, cx, cy), which come first in every camera model of COLMAP."""
        focals = CAMERA_MODELS[self.model].focals
        fx, fy = self.params[0], self.params[focals - 1]
        cx, cy = self.params[focals : focals + 2]
        return float(fx), float(fy), float(cx), float(cy)


@dataclass(frozen=True, eq=False)
class ColmapImage:
    """One registered image and its pose, world to camera."""

    id: int
    name: str  # relative to the image folder, with "/"
    qvec: np.ndarray  # [4] float64, w x y z
    tvec: np.ndarray  # [3] float64
    camera_id: int

    @property
    def rotation(self) -> np.ndarray:
        """World to camera, [3, 3]."""
        w, x, y, z = self.qvec / np.linalg.norm(self.qvec)
        return np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )


@dataclass(frozen=True, eq=False)
class ColmapModel:
    """Cameras, posed images and the sparse points, if they were read."""

    cameras: dict[int, ColmapCamera]
    images: list[ColmapImage]
    xyz: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))  # [M, 3] float64
    rgb: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.uint8))  # [M, 3] uint8


@dataclass(frozen=True, eq=False)
class Capture:
    """Cameras, poses and photo names in COLMAP's terms."""

    kind: str  # source of the cameras, for messages
    place: Path  # folder of the COLMAP model, or the transforms file
    folder: Path  # that image names are relative to
    cameras: dict[int, ColmapCamera]
    images: list[ColmapImage]
    undistort: str  # command to run where a lens model is not supported
    read_points: Callable[[], Points] | None  # for the start of the RGB stage; None if there are none
    test_names: frozenset[str] | None = None  # None if the capture does not name its test images


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """Convert a rotation matrix to a unit quaternion [4] (w, x, y, z; w >= 0), starting from its largest component."""
    r = rotation
    trace = np.trace(r)
    squares = np.array([1 + trace, *(1 + 2 * np.diag(r) - trace)]) / 4
    largest = int(squares.argmax())
    products = np.array(
        [
            [4 * squares[0], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], 4 * squares[1], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
            [r[0, 2] - r[2, 0], r[0, 1] + r[1, 0], 4 * squares[2], r[1, 2] + r[2, 1]],
            [r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], 4 * squares[3]],
        ]
    )[largest]
    value = products / np.linalg.norm(products)
    return value if value[0] >= 0 else -value


def damaged(where: str, found: str, expected: str) -> NoReturn:
    """Raise the UserError for a damaged or unsupported file of cameras or points."""
    raise UserError(
        f"{where}: found {found}, expected {expected}. "
        "Copy the file again from where it was made, or export it again (COLMAP: `colmap model_converter`)."
    )


def check_camera(where: str, camera_id: int, model: str, width: int, height: int, params: np.ndarray) -> ColmapCamera:
    """Make a camera, and require a positive size, finite parameters and positive focal lengths."""
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        damaged(where, f"camera {camera_id} of {width} x {height} pixels", f"sides of 1 to {MAX_SIDE}")
    expected = CAMERA_MODELS[model].parameters
    if len(params) != expected:
        damaged(where, f"{len(params)} parameters of {model} camera {camera_id}", f"{expected}")
    _check_finite(where, f"parameters {params.tolist()} of camera {camera_id}", params)
    if not all(params[: CAMERA_MODELS[model].focals] > 0):
        damaged(where, f"parameters {params.tolist()} of {model} camera {camera_id}", "focal lengths above 0")
    return ColmapCamera(camera_id, model, width, height, params)


def check_model_name(where: str, camera_id: int, model: str) -> str:
    """Return `model` if COLMAP has it; raise UserError with the known models if not."""
    if model not in CAMERA_MODELS:
        raise UserError(
            f"{where}: camera {camera_id} has the unknown camera model {model[:60]!r}; known are "
            f"{', '.join(CAMERA_MODELS)}. Undistort the images with `colmap image_undistorter` "
            "(its output has PINHOLE cameras) and use that folder."
        )
    return model


def check_image(
    where: str, image_id: int, qvec: np.ndarray, tvec: np.ndarray, camera_id: int, name: bytes
) -> ColmapImage:
    """Make an image, and require a finite pose and a name inside the image folder; the quaternion is normalised."""
    _check_finite(where, f"pose {qvec.tolist()} {tvec.tolist()} of image {image_id}", qvec, tvec)
    norm = float(np.linalg.norm(qvec))
    if norm < 1e-6:
        damaged(where, f"the quaternion {qvec.tolist()} of image {image_id}", "one of length 1")
    return ColmapImage(image_id, _check_name(where, image_id, name), qvec / norm, tvec, camera_id)


def _check_name(where: str, image_id: int, raw: bytes) -> str:
    try:
        name = raw.decode("utf-8").replace("\\", "/")  # models made on Windows
    except UnicodeDecodeError:
        damaged(where, f"the name {raw[:60]!r} of image {image_id}", "a name in UTF-8")
    path = PurePosixPath(name)
    if not path.name or leaves_folder(name):
        expected = "a path relative to the image folder, without '..' and control characters"
        damaged(where, f"the name {name[:200]!r} of image {image_id}", expected)
    return str(path)


def leaves_folder(name: str) -> bool:
    """Whether a name can lead out of its folder on some platform, or holds control characters such as NUL."""
    path = PurePosixPath(name)
    has_drive = name[1:2] == ":"
    has_control_character = any(character < " " or character == "\x7f" for character in name)
    return path.is_absolute() or has_drive or ".." in path.parts or has_control_character


def check_points(where: str, xyz: np.ndarray) -> None:
    """Raise UserError unless every coordinate is finite and below MAX_MAGNITUDE."""
    good = (np.abs(xyz) <= MAX_MAGNITUDE).all(axis=1)
    if not good.all():
        first = int(np.argmin(good))
        damaged(where, f"point number {first + 1} of the file at {xyz[first].tolist()}", "finite coordinates")


def check_model(cameras: dict[int, ColmapCamera], images: list[ColmapImage], images_path: object) -> None:
    """Raise UserError unless image ids and names are distinct and their cameras exist."""
    if not images:
        damaged(str(images_path), "no image at all", "at least one registered image")
    seen: set[int | str] = set()
    for image in images:
        if not seen.isdisjoint((image.id, image.name)):
            damaged(str(images_path), f"image {image.id} ({image.name!r}) twice", "each id and name once")
        seen |= {image.id, image.name}
        if image.camera_id not in cameras:
            expected = f"one of the {len(cameras)} camera ids of the cameras file beside it"
            damaged(str(images_path), f"image {image.name!r} with camera {image.camera_id}", expected)


def _check_finite(where: str, what: str, *arrays: np.ndarray) -> None:
    for array in arrays:
        if not (np.abs(array) <= MAX_MAGNITUDE).all():  # false for NaN, too
            damaged(where, what, "finite numbers")
