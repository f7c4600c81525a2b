"""Cameras of transforms.json, as NeRF-synthetic (Blender), instant-ngp and nerfstudio write them.

    transforms_train.json, transforms_test.json     one camera_angle_x, file_path without suffix, size from the photos,
                                                    no points; transforms_val.json is not used
    transforms.json                                 w, h, fl_x, fl_y, cx, cy, k1 k2 k3 k4 p1 p2, camera_model or
                                                    is_fisheye, for all frames or per frame; ply_file_path;
                                                    test_filenames

`transform_matrix` is camera to world with the camera axes of OpenGL: x right, y up, z back. Intrinsics are in pixels
from the corner of the picture, as in COLMAP. The world is not changed.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from scene.formats.ply import element_rows, read_ply
from scene.readers.colmap_model import (
    GREY,
    MAX_MAGNITUDE,
    Capture,
    ColmapCamera,
    ColmapImage,
    Points,
    check_camera,
    check_image,
    check_points,
    quaternion,
)
from scene.readers.image_files import SUFFIXES, ImageFolder, image_size
from utils.errors import UserError
from utils.files import read_json

TRAIN, TEST, SINGLE = "transforms_train.json", "transforms_test.json", "transforms.json"
POINT_FILES = ("points3d.ply", "points3D.ply", "sparse_pc.ply")  # without a ply_file_path
PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE")
POLYNOMIALS = ("OPENCV", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV")
KNOWN_MODELS = (*PINHOLES, *POLYNOMIALS, "OPENCV_FISHEYE")
INTRINSICS = (
    *("w", "h", "fl_x", "fl_y", "cx", "cy", "camera_angle_x", "camera_angle_y"),
    *("k1", "k2", "k3", "k4", "p1", "p2"),
)
OPENGL_TO_COLMAP = np.diag([1.0, -1.0, -1.0])  # camera axes


def find(source: Path) -> list[Path]:
    """Find the transforms files of a scene: those of training and, if present, test views; or the one for both."""
    if (source / TRAIN).is_file():
        return [path for path in (source / TRAIN, source / TEST) if path.is_file()]
    return [source / SINGLE] if (source / SINGLE).is_file() else []


def read(source: Path, files: list[Path], images: str) -> Capture:
    """Read the files that `find` found.

    Args:
        images: image folder, relative to `source`. It replaces images/ where every file_path begins with that, so
            that smaller copies in images_4/ can be used; else it is ignored. Without w and h, focal lengths and
            principal points are in pixels of the photo that file_path names.

    Raises:
        UserError: if a file is damaged, a path leaves the scene's folder, or a lens model is not supported.
    """
    frames: list[tuple[int, str, str, dict[str, Any]]] = []  # number of the file, place for messages, name, values
    for number, path in enumerate(files):
        content = _content(path)
        for index, frame in enumerate(content["frames"]):
            where = f"{path}: frames[{index}]"
            frames.append((number, where, _name(where, frame), {**content, **frame}))
    folder, prefix = source, PurePosixPath()
    if all(PurePosixPath(name).parts[0] == "images" for _, _, name, _ in frames):
        folder, prefix = source / images, PurePosixPath("images")
        if not folder.is_dir():
            raise UserError(f"the image folder {folder} does not exist; name it with -i.")
    named, chosen = ImageFolder(source), ImageFolder(folder)
    cameras: dict[tuple, ColmapCamera] = {}
    posed: dict[str, ColmapImage] = {}
    test: set[str] = set()
    for number, where, full_name, values in frames:
        name = str(PurePosixPath(full_name).relative_to(prefix))
        if name in posed:
            raise UserError(f"{where}: {full_name!r} appears twice; name each photo once.")
        model, numbers = _intrinsics(where, values)
        if None in numbers[:2]:  # no w or h
            in_pixels = any(number is not None for number in numbers[2:6])
            photo = named.find(full_name) or (None if in_pixels else chosen.find(name))
            if photo is None:
                raise UserError(
                    f"{where}: neither w and h nor the file {source / full_name} tell the size of the photo. Add w and "
                    "h to the file, or put the photo there."
                )
            numbers = (*image_size(photo), *numbers[2:])
        key = (model, numbers)
        if key not in cameras:
            cameras[key] = _camera(where, key, len(cameras) + 1)
        rotation, translation = _pose(where, values)
        posed[name] = check_image(
            where, len(posed) + 1, quaternion(rotation), translation, cameras[key].id, name.encode(errors="replace")
        )
        if number == 1:  # transforms_test.json
            test.add(name)
    first = frames[0][3]
    points = _find_points(source, first)
    return Capture(
        *(files[0].name, files[0], folder),
        cameras={camera.id: camera for camera in cameras.values()},
        images=list(posed.values()),
        undistort="ns-process-data",
        read_points=partial(read_points, points) if points else None,
        test_names=frozenset(test) if len(files) > 1 else _listed_test_names(first, prefix),
    )


def read_points(path: Path) -> Points:
    """Read a .ply of points, grey without colours, as `colmap.read_points`. Raises UserError if it is damaged."""
    rows = element_rows(read_ply(path, "the points of transforms.json (ply_file_path)"), "vertex")
    names = rows.dtype.names or ()
    if not {"x", "y", "z"} <= set(names):
        raise UserError(f"{path} holds no points: its vertices have no x, y and z. Name another ply_file_path.")
    xyz = np.stack([rows[axis].astype(np.float64) for axis in "xyz"], axis=1)
    check_points(str(path), xyz)
    rgb = np.full(xyz.shape, GREY, np.uint8)
    if {"red", "green", "blue"} <= set(names) and rows["red"].dtype == np.uint8:
        rgb = np.stack([rows[name] for name in ("red", "green", "blue")], axis=1)
    return xyz, rgb


def _content(path: Path) -> dict[str, Any]:
    content = read_json(path, "the cameras file")
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"{path} has no list of frames under the key 'frames'. Export the scene's cameras again.")
    return content


def _name(where: str, frame: dict[str, Any]) -> str:
    """Return file_path as a path below the scene folder, with .png where it has no suffix, as Blender writes it."""
    value = frame.get("file_path")
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} has no text under the key 'file_path'. Export the scene's cameras again.")
    path = PurePosixPath(value.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{where}: file_path is {value[:80]!r}, expected a path below the scene folder without '..'.")
    name = str(path)
    return name if name.lower().endswith(SUFFIXES) else f"{name}.png"


def _number(where: str, values: dict[str, Any], key: str) -> float | None:
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MAX_MAGNITUDE:
        raise UserError(f"{where}: {key} is {str(value)[:60]!r}, expected a finite number. Correct the file.")
    return float(value)


def _intrinsics(where: str, values: dict[str, Any]) -> tuple[str, tuple[float | None, ...]]:
    """Read the camera model and the numbers of INTRINSICS; frames that agree in them share a camera."""
    name = values.get("camera_model") or ("OPENCV_FISHEYE" if values.get("is_fisheye") else "OPENCV")
    model = str(name).upper()
    if model not in KNOWN_MODELS:
        raise UserError(
            f"{where} has the camera model {model[:60]!r}; known are {', '.join(KNOWN_MODELS)}. "
            "Undistort the photos first."
        )
    return model, tuple(_number(where, values, key) for key in INTRINSICS)


def _camera(where: str, intrinsics: tuple, camera_id: int) -> ColmapCamera:
    """Make the camera from `_intrinsics` with a size."""
    model, numbers = intrinsics
    width, height, fx, fy, cx, cy, angle_x, angle_y, *terms = numbers
    fx = fx or _focal(where, width, angle_x)
    fy = fy or _focal(where, height, angle_y) or fx  # square pixels unless stated
    fx = fx or fy
    if fx is None or fy is None:
        raise UserError(f"{where} has neither fl_x nor camera_angle_x, and so no focal length. Correct the file.")
    cx, cy = (width / 2 if cx is None else cx), (height / 2 if cy is None else cy)
    model, lens = _lens(where, model, [term or 0.0 for term in terms])
    return check_camera(where, camera_id, model, round(width), round(height), np.array([fx, fy, cx, cy, *lens]))


def _focal(where: str, side: float, angle: float | None) -> float | None:
    if angle is None:
        return None
    if not 0 < angle < math.pi:
        raise UserError(f"{where}: a camera angle is {angle:g}, expected radians between 0 and pi. Correct the file.")
    return side / (2 * math.tan(angle / 2))


def _lens(where: str, model: str, terms: list[float]) -> tuple[str, list[float]]:
    """Convert k1 k2 k3 k4 p1 p2 to COLMAP's model and its parameters after the principal point."""
    k1, k2, k3, k4, p1, p2 = terms
    if model == "OPENCV_FISHEYE":
        return model, [k1, k2, k3, k4]
    if model in PINHOLES or not any(terms):
        return "PINHOLE", []
    if k4:
        raise UserError(
            f"{where} has the distortion k4 = {k4:g} without a fisheye lens, which is not undistorted on load. "
            "Undistort the photos first (ns-process-data does)."
        )
    return ("FULL_OPENCV", [k1, k2, p1, p2, k3, 0.0, 0.0, 0.0]) if k3 else ("OPENCV", [k1, k2, p1, p2])


def _pose(where: str, frame: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Read the world-to-camera rotation [3, 3] and translation [3] in COLMAP's camera axes."""
    try:
        matrix = np.array(frame.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape not in ((4, 4), (3, 4)) or not (np.abs(matrix) <= MAX_MAGNITUDE).all():
        raise UserError(f"{where} has no transform_matrix of 4 x 4 finite numbers. Export the scene's cameras again.")
    rotation = matrix[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        raise UserError(
            f"{where}: transform_matrix is not a camera pose: its axes are scaled, skewed or mirrored. Expected camera "
            "to world, rotation and position only."
        )
    left, _, right = np.linalg.svd(rotation)  # the nearest rotation, because files round
    world_to_camera = (left @ right @ OPENGL_TO_COLMAP).T
    return world_to_camera, -world_to_camera @ matrix[:3, 3]


def _listed_test_names(content: dict[str, Any], prefix: PurePosixPath) -> frozenset[str] | None:
    """Names in nerfstudio's test_filenames; None if there is no such list."""
    listed = content.get("test_filenames")
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
        return None
    names = (PurePosixPath(name) for name in listed)
    return frozenset(str(name.relative_to(prefix)) for name in names if name.is_relative_to(prefix))


def _find_points(source: Path, content: dict[str, Any]) -> Path | None:
    """Find the .ply of points: ply_file_path, else a file with a usual name, else None."""
    named = content.get("ply_file_path")
    if named is None:
        return next((source / name for name in POINT_FILES if (source / name).is_file()), None)
    path = PurePosixPath(str(named).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not (source / path).is_file():
        raise UserError(
            f"{source / SINGLE}: ply_file_path is {str(named)[:80]!r}, expected a file below {source}. "
            "Copy it there, or remove the line to start from random points."
        )
    return source / path
