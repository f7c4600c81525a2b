"""COLMAP's .txt files: cameras.txt, images.txt (two lines an image) and points3D.txt."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scene.readers.colmap_model import (
    ColmapCamera,
    ColmapImage,
    check_camera,
    check_image,
    check_model_name,
    check_points,
    damaged,
)
from utils.errors import UserError

_MAX_LINE = 4_000_000  # bytes, enough for 100,000 2D points; bounds the memory for splitting a line


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield stripped lines with their numbers, from 1."""
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(_MAX_LINE + 1):
                number += 1
                if len(line) > _MAX_LINE:
                    damaged(f"{path}, line {number}", f"more than {_MAX_LINE} bytes", "lines of COLMAP's lengths")
                yield number, line.strip()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


def read_cameras(path: Path) -> dict[int, ColmapCamera]:
    """Read cameras.txt: `CAMERA_ID MODEL WIDTH HEIGHT PARAMS...`."""
    cameras: dict[int, ColmapCamera] = {}
    for number, line in _lines(path):
        if not line or line.startswith(b"#"):
            continue
        where = f"{path}, line {number}"
        fields = line.split()
        try:
            camera_id, width, height = int(fields[0]), int(fields[2]), int(fields[3])
            params = np.array([float(field) for field in fields[4:]])
        except (ValueError, IndexError):
            damaged(where, _quote(line), "CAMERA_ID MODEL WIDTH HEIGHT PARAMS...")
        model = check_model_name(where, camera_id, fields[1].decode("utf-8", "replace"))
        if camera_id in cameras:
            damaged(where, f"camera {camera_id} twice", "each camera id once")
        cameras[camera_id] = check_camera(where, camera_id, model, width, height, params)
    return cameras


def read_images(path: Path) -> list[ColmapImage]:
    """Read images.txt: `IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME`, then 2D points or an empty line."""
    images = []
    lines = _lines(path)
    for number, line in lines:
        if not line or line.startswith(b"#"):
            continue
        where = f"{path}, line {number}"
        fields = line.split(None, 9)
        try:
            image_id, camera_id, name = int(fields[0]), int(fields[8]), fields[9]
            pose = np.array([float(field) for field in fields[1:8]])
        except (ValueError, IndexError):
            damaged(where, _quote(line), "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME")
        images.append(check_image(where, image_id, pose[:4], pose[4:], camera_id, name))
        number, points = next(lines, (number + 1, b""))  # the last line may lack the empty line after it
        if len(points.split()) % 3:
            damaged(
                f"{path}, line {number}",
                _quote(points),
                f"the 2D points of image {image_id} as X Y POINT3D_ID triples, or an empty line",
            )
    return images


def read_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read points3D.txt without the tracks: (xyz [M, 3] float64, rgb [M, 3] uint8)."""
    ids, numbers = array("q"), array("d")  # compact while the number of points is unknown
    for number, line in _lines(path):
        if not line or line.startswith(b"#"):
            continue
        fields = line.split(None, 8)
        try:
            point_id, *values, _error = int(fields[0]), *map(float, fields[1:8])
            ids.append(point_id)
        except (ValueError, IndexError, OverflowError):
            values = []
        if len(values) != 6 or not all(0 <= value <= 255 for value in values[3:]):
            damaged(f"{path}, line {number}", _quote(line), "POINT3D_ID X Y Z R G B ERROR TRACK...")
        numbers.extend(values)
    table = np.frombuffer(numbers, np.float64).reshape(-1, 6) if numbers else np.zeros((0, 6))
    xyz, rgb = table[:, :3].copy(), table[:, 3:].astype(np.uint8)
    check_points(str(path), xyz)
    if len(set(ids)) != len(ids):
        damaged(str(path), f"{len(ids) - len(set(ids))} points with an id used before", "each id once")
    return xyz, rgb


def _quote(line: bytes) -> str:
    """Quote the start of a line in a message."""
    text = line[:80].decode("utf-8", "replace")
    return repr(text + "..." if len(line) > 80 else text)
