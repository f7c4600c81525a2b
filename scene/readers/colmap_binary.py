"""COLMAP's little-endian .bin files."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np

from scene.readers.colmap_model import (
    CAMERA_MODEL_NAMES,
    CAMERA_MODELS,
    ColmapCamera,
    ColmapImage,
    ColmapModel,
    check_camera,
    check_image,
    check_model_name,
    check_points,
    damaged,
)
from utils.errors import UserError
from utils.files import atomic_path

_COUNT = struct.Struct("<Q")
_CAMERA = struct.Struct("<IiQQ")  # id, model, width, height; then the parameters
_IMAGE = struct.Struct("<I4d3dI")  # id, qvec, tvec, camera id; then the name, its NUL and the 2D points
_POINT2D_BYTES = 24  # x, y, point id
_POINT = struct.Struct("<Q3d3BdQ")  # id, xyz, rgb, error, length of the track; then the track
_POINT_HEAD = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3)])
_TRACK_BYTES = 8  # per observation: image id, index of the 2D point
_MAX_NAME = 4096  # bytes
_BLOCK = 65536  # points; bounds the index arrays of the gather below


class _Reader:
    """Reads a memory-mapped file record by record, and checks every record against the length of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        try:
            with open(path, "rb") as file:
                self.size = file.seek(0, 2)
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None

    @property
    def where(self) -> str:
        return f"{self.path}, byte {self.position}"

    def require(self, size: int, what: str) -> None:
        """Raise UserError unless `size` more bytes follow."""
        left = self.size - self.position
        if size > left:
            expected = f"no more than the {left} bytes that are left (the file is cut short or damaged)"
            damaged(self.where, f"{what}, which takes at least {size} bytes", expected)

    def unpack(self, record: struct.Struct, what: str) -> tuple:
        self.require(record.size, what)
        values = record.unpack_from(self.data, self.position)
        self.position += record.size
        return values

    def count(self, smallest: int, what: str) -> int:
        """Read the number of records of at least `smallest` bytes each, and check that they fit into the file."""
        (count,) = self.unpack(_COUNT, f"the number of {what}")
        self.require(count * smallest, f"a count of {count} {what}")
        return count

    def name(self, what: str) -> bytes:
        end = self.data.find(b"\0", self.position, self.position + _MAX_NAME)
        if end < 0:
            damaged(self.where, f"{what} without its closing NUL", f"a name of up to {_MAX_NAME - 1} bytes")
        name = self.data[self.position : end]
        self.position = end + 1
        return name

    def finish(self, count: int, what: str) -> None:
        """Raise UserError unless the end of the file is reached."""
        if self.position != self.size:
            left = self.size - self.position
            damaged(self.where, f"{left} bytes after the last of {count} {what}", "the end of the file")


def read_cameras(path: Path) -> dict[int, ColmapCamera]:
    """Read cameras.bin."""
    file = _Reader(path)
    cameras: dict[int, ColmapCamera] = {}
    count = file.count(_CAMERA.size + 8 * 3, "cameras")
    for _ in range(count):
        where = file.where
        camera_id, model_id, width, height = file.unpack(_CAMERA, "a camera")
        model = check_model_name(where, camera_id, CAMERA_MODEL_NAMES.get(model_id, f"number {model_id}"))
        record = struct.Struct(f"<{CAMERA_MODELS[model].parameters}d")
        params = np.array(file.unpack(record, f"the parameters of {model} camera {camera_id}"))
        if camera_id in cameras:
            damaged(where, f"camera {camera_id} twice", "each camera id once")
        cameras[camera_id] = check_camera(where, camera_id, model, width, height, params)
    file.finish(count, "cameras")
    return cameras


def read_images(path: Path) -> list[ColmapImage]:
    """Read images.bin without the 2D points."""
    file = _Reader(path)
    images = []
    count = file.count(_IMAGE.size + 2 + _COUNT.size, "images")
    for _ in range(count):
        where = file.where
        image_id, *pose, camera_id = file.unpack(_IMAGE, "an image")
        name = file.name(f"the name of image {image_id}")
        images.append(check_image(where, image_id, np.array(pose[:4]), np.array(pose[4:]), camera_id, name))
        points = file.count(_POINT2D_BYTES, f"2D points of image {image_id}")
        file.position += _POINT2D_BYTES * points
    file.finish(count, "images")
    return images


def read_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read points3D.bin without the tracks: (xyz [M, 3] float64, rgb [M, 3] uint8)."""
    file = _Reader(path)
    count = file.count(_POINT.size, "points")
    starts = _point_starts(file, count)  # [M]
    xyz, rgb, ids = np.empty((count, 3)), np.empty((count, 3), np.uint8), np.empty(count, np.uint64)
    raw = np.frombuffer(file.data, np.uint8)
    for first in range(0, count, _BLOCK):
        block = slice(first, first + _BLOCK)
        heads = raw[starts[block, None] + np.arange(_POINT_HEAD.itemsize)]  # [B, 35]
        heads = heads.view(_POINT_HEAD)[:, 0]
        xyz[block], rgb[block], ids[block] = heads["xyz"], heads["rgb"], heads["id"]
    check_points(str(path), xyz)
    if len(np.unique(ids)) != count:
        damaged(str(path), f"{count - len(np.unique(ids))} points with an id used before", "each id once")
    return xyz, rgb


def _point_starts(file: _Reader, count: int) -> np.ndarray:
    """Find the byte offset of every point record, [M] int64; records differ in length by their tracks."""
    starts = np.empty(count, np.int64)
    unpack, data, last_start = _COUNT.unpack_from, file.data, file.size - _POINT.size
    track_at = _POINT.size - _COUNT.size
    index, position = 0, file.position
    while index < count and position <= last_start:
        starts[index] = position
        (track,) = unpack(data, position + track_at)
        position += _POINT.size + _TRACK_BYTES * track
        index += 1
    if index < count or position > file.size:
        damaged(file.where, f"{count} points with their tracks", "a longer file (it is cut short or damaged)")
    file.position = position
    file.finish(count, "points")
    return starts


def write(folder: Path, model: ColmapModel) -> None:
    """Write cameras.bin, images.bin and points3D.bin, without 2D points and tracks."""
    with atomic_path(folder / "cameras.bin") as path, open(path, "wb") as file:
        file.write(_COUNT.pack(len(model.cameras)))
        for camera in model.cameras.values():
            number = CAMERA_MODELS[camera.model].id
            file.write(_CAMERA.pack(camera.id, number, camera.width, camera.height))
            file.write(np.asarray(camera.params, "<f8").tobytes())
    with atomic_path(folder / "images.bin") as path, open(path, "wb") as file:
        file.write(_COUNT.pack(len(model.images)))
        for image in model.images:
            file.write(_IMAGE.pack(image.id, *image.qvec, *image.tvec, image.camera_id))
            file.write(image.name.encode("utf-8") + b"\0" + _COUNT.pack(0))
    with atomic_path(folder / "points3D.bin") as path, open(path, "wb") as file:
        file.write(_COUNT.pack(len(model.xyz)))
        for index, (point, color) in enumerate(zip(model.xyz.tolist(), model.rgb.tolist(), strict=True)):
            file.write(_POINT.pack(index + 1, *point, *color, 0.0, 0))
