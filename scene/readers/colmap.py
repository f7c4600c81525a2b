"""Find, read and write COLMAP models.

    <source>/sparse/0/{cameras,images,points3D}.{bin,txt}      (or directly under <source>/sparse)

A damaged or hostile file ends in a UserError that names the path and the byte or line; every count in a file is checked
against the file's length before memory is allocated for it.
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import numpy as np

from scene.readers.colmap_model import (
    CAMERA_MODEL_NAMES,
    CAMERA_MODELS,
    ColmapCamera,
    ColmapImage,
    ColmapModel,
    Points,
    check_camera,
    check_image,
    check_model,
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
_BLOCK = 65536  # points; bounds the index arrays of the gather in `_binary_points`
_MAX_LINE = 4_000_000  # bytes, enough for 100,000 2D points; bounds the memory for splitting a line


def find_model(source: Path) -> Path:
    """Find the folder of the COLMAP model of a scene, sparse/0 or sparse. Raises UserError if there is none."""
    if found := _model_folder(source):
        return found
    require_folder(source)
    raise UserError(
        f"no COLMAP model in {source}: looked for cameras and images as .bin or .txt in "
        f"{source / 'sparse' / '0'} and {source / 'sparse'}. There is neither transforms.json nor "
        "transforms_train.json. Give the scene's folder with -s, or run COLMAP on its images "
        f"(`colmap automatic_reconstructor --workspace_path {quote(str(source))} "
        f"--image_path {quote(str(source / 'images'))}`)."
    )


def require_folder(source: Path) -> None:
    """Raise UserError unless the scene folder exists."""
    if not os.path.isdir(source):
        found = "is a file" if os.path.exists(source) else "does not exist"
        raise UserError(f"the scene folder {source} {found}. Give the folder of a scene with -s.")


def has_model(source: Path) -> bool:
    """Whether `find_model` finds a COLMAP model."""
    return _model_folder(source) is not None


def _model_folder(source: Path) -> Path | None:
    folders = (source / "sparse" / "0", source / "sparse")
    return next((folder for folder in folders if any(_is_complete(folder, suffix) for suffix in _READERS)), None)


def read_model(folder: Path, points: bool = True) -> ColmapModel:
    """Read the model in `folder`, .bin if it is there, else .txt.

    Args:
        folder: folder of the files themselves, see `find_model`.
        points: also read the sparse points; without, a missing or damaged points3D file does not matter.

    Raises:
        UserError: if a file is missing or damaged; the message names path and byte offset or line.
    """
    suffix = next((suffix for suffix in _READERS if _is_complete(folder, suffix)), None)
    if suffix is None:
        raise UserError(f"{folder} holds no COLMAP model: expected cameras and images as .bin or .txt.")
    camera_records, image_records, _ = _READERS[suffix]
    cameras: dict[int, ColmapCamera] = {}
    for where, camera in camera_records(folder / f"cameras{suffix}"):
        if camera.id in cameras:
            damaged(where, f"camera {camera.id} twice", "each camera id once")
        cameras[camera.id] = camera
    images_path = folder / f"images{suffix}"
    images = list(image_records(images_path))
    check_model(cameras, images, images_path)
    return ColmapModel(cameras, images, *(read_points(folder) if points else ()))


def read_points(folder: Path) -> Points:
    """Read the points: (xyz [M, 3] float64, rgb [M, 3] uint8). Raises UserError if they are missing or damaged."""
    suffix = next((suffix for suffix in _READERS if os.path.isfile(folder / f"points3D{suffix}")), None)
    if suffix is None:
        raise UserError(
            f"{folder} holds neither points3D.bin nor points3D.txt, which the RGB stage starts from. "
            "Copy the file from the COLMAP model, or start from a trained model with --start_checkpoint."
        )
    path = folder / f"points3D{suffix}"
    ids, xyz, rgb = _READERS[suffix][2](path)
    check_points(str(path), xyz)
    if repeated := len(ids) - len(np.unique(ids)):
        damaged(str(path), f"{repeated} points with an id used before", "each id once")
    return xyz, rgb


def write_model(folder: Path, model: ColmapModel) -> None:
    """Write a model as .bin, without 2D points and tracks; point ids count from 1."""
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


def _is_complete(folder: Path, suffix: str) -> bool:
    return all(os.path.isfile(folder / f"{name}{suffix}") for name in ("cameras", "images"))


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


def _binary_cameras(path: Path) -> Iterator[tuple[str, ColmapCamera]]:
    """Yield (place for messages, camera)."""
    file = _Reader(path)
    count = file.count(_CAMERA.size + 8 * 3, "cameras")
    for _ in range(count):
        where = file.where
        camera_id, model_id, width, height = file.unpack(_CAMERA, "a camera")
        model = check_model_name(where, camera_id, CAMERA_MODEL_NAMES.get(model_id, f"number {model_id}"))
        record = struct.Struct(f"<{CAMERA_MODELS[model].parameters}d")
        params = np.array(file.unpack(record, f"the parameters of {model} camera {camera_id}"))
        yield where, check_camera(where, camera_id, model, width, height, params)
    file.finish(count, "cameras")


def _binary_images(path: Path) -> Iterator[ColmapImage]:
    """Yield the images without their 2D points."""
    file = _Reader(path)
    count = file.count(_IMAGE.size + 2 + _COUNT.size, "images")
    for _ in range(count):
        where = file.where
        image_id, *pose, camera_id = file.unpack(_IMAGE, "an image")
        name = file.name(f"the name of image {image_id}")
        yield check_image(where, image_id, np.array(pose[:4]), np.array(pose[4:]), camera_id, name)
        points = file.count(_POINT2D_BYTES, f"2D points of image {image_id}")
        file.position += _POINT2D_BYTES * points
    file.finish(count, "images")


def _binary_points(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read (ids [M], xyz [M, 3], rgb [M, 3]) without the tracks."""
    file = _Reader(path)
    count = file.count(_POINT.size, "points")
    starts = _point_starts(file, count)  # [M]
    points = np.empty(count, _POINT_HEAD)
    raw = np.frombuffer(file.data, np.uint8)
    for first in range(0, count, _BLOCK):
        block = slice(first, first + _BLOCK)
        heads = raw[starts[block, None] + np.arange(_POINT_HEAD.itemsize)]  # [B, 35]
        points[block] = heads.view(_POINT_HEAD)[:, 0]
    return points["id"], points["xyz"].copy(), points["rgb"].copy()


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


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (place for messages, stripped line)."""
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(_MAX_LINE + 1):
                number += 1
                where = f"{path}, line {number}"
                if len(line) > _MAX_LINE:
                    damaged(where, f"more than {_MAX_LINE} bytes", "lines of COLMAP's lengths")
                yield where, line.strip()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


def _records(lines: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Skip empty lines and comments."""
    return ((where, line) for where, line in lines if line and not line.startswith(b"#"))


def _text_cameras(path: Path) -> Iterator[tuple[str, ColmapCamera]]:
    """Read `CAMERA_ID MODEL WIDTH HEIGHT PARAMS...`: yield (place for messages, camera)."""
    for where, line in _records(_lines(path)):
        fields = line.split()
        try:
            camera_id, width, height = int(fields[0]), int(fields[2]), int(fields[3])
            params = np.array([float(field) for field in fields[4:]])
        except (ValueError, IndexError):
            damaged(where, _quote(line), "CAMERA_ID MODEL WIDTH HEIGHT PARAMS...")
        model = check_model_name(where, camera_id, fields[1].decode("utf-8", "replace"))
        yield where, check_camera(where, camera_id, model, width, height, params)


def _text_images(path: Path) -> Iterator[ColmapImage]:
    """Read `IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME`, then 2D points or an empty line, for each image."""
    lines = _lines(path)
    for where, line in _records(lines):
        fields = line.split(None, 9)
        try:
            image_id, camera_id, name = int(fields[0]), int(fields[8]), fields[9]
            pose = np.array([float(field) for field in fields[1:8]])
        except (ValueError, IndexError):
            damaged(where, _quote(line), "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME")
        yield check_image(where, image_id, pose[:4], pose[4:], camera_id, name)
        where, points = next(lines, (where, b""))  # the last line may lack the empty line after it
        if len(points.split()) % 3:
            expected = f"the 2D points of image {image_id} as X Y POINT3D_ID triples, or an empty line"
            damaged(where, _quote(points), expected)


def _text_points(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read (ids [M], xyz [M, 3], rgb [M, 3]) without the tracks."""
    ids, numbers = array("q"), array("d")  # compact while the number of points is unknown
    for where, line in _records(_lines(path)):
        fields = line.split(None, 8)
        try:
            point_id, *values, _error = int(fields[0]), *map(float, fields[1:8])
            ids.append(point_id)
        except (ValueError, IndexError, OverflowError):
            values = []
        if len(values) != 6 or not all(0 <= value <= 255 for value in values[3:]):
            damaged(where, _quote(line), "POINT3D_ID X Y Z R G B ERROR TRACK...")
        numbers.extend(values)
    table = np.array(numbers).reshape(-1, 6)
    return np.array(ids), table[:, :3].copy(), table[:, 3:].astype(np.uint8)


def _quote(line: bytes) -> str:
    """Quote the start of a line in a message."""
    text = line[:80].decode("utf-8", "replace")
    return repr(text + "..." if len(line) > 80 else text)


_READERS = {  # in order of preference
    ".bin": (_binary_cameras, _binary_images, _binary_points),
    ".txt": (_text_cameras, _text_images, _text_points),
}
