"""Picture and mask files: sizes without decoding, decoding with clear errors, lookup by name, a bounded cache."""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import BinaryIO

import cv2
import numpy as np

from utils.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_OPAQUE = (".jpg", ".jpeg", ".bmp")  # formats without alpha
_JPEG_NO_SIZE = (0xC4, 0xC8, 0xCC)  # markers among C0..CF that are not a start of frame


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of a picture file, from its header where that is PNG or JPEG.

    The orientation tag of cameras is ignored, as COLMAP does.

    Raises:
        UserError: if the file is no picture that OpenCV can read.
    """
    try:
        with open(path, "rb") as file:
            size = _header_size(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    if size is not None:
        return size
    height, width = _decoded(path, cv2.IMREAD_UNCHANGED).shape[:2]
    return width, height


def _header_size(file: BinaryIO) -> tuple[int, int] | None:
    head = file.read(24)
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR" and len(head) == 24:
        width, height = struct.unpack(">II", head[16:])
    elif head[:2] == b"\xff\xd8":
        file.seek(2)
        width, height = _jpeg_size(file)
    else:
        return None
    return (width, height) if width and height else None


def _jpeg_size(file: BinaryIO) -> tuple[int, int]:
    """Walk over the segments to the start of frame; (0, 0) if there is none."""
    while True:
        prefix, marker = (file.read(2) + b"\0\0")[:2]
        if prefix != 0xFF:
            return 0, 0
        if marker == 0xFF:  # a fill byte
            file.seek(-1, 1)
            continue
        length = int.from_bytes(file.read(2), "big")
        if 0xC0 <= marker <= 0xCF and marker not in _JPEG_NO_SIZE:
            frame = file.read(5)  # bits a sample, height, width
            return int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big")
        if length < 2:
            return 0, 0
        file.seek(length - 2, 1)


def read_image(path: Path, background: int | None = None) -> np.ndarray:
    """A picture as uint8 RGB, [H, W, 3]; grey is repeated, 16 bits become 8.

    Args:
        path: the file.
        background: grey level 0..255 behind transparent pixels; None drops alpha.

    Raises:
        UserError: if the file cannot be read or decoded.
    """
    if background is not None and path.suffix.lower() not in _OPAQUE:
        picture = _decoded(path, cv2.IMREAD_UNCHANGED)
        if picture.ndim == 3 and picture.shape[2] == 4:
            return _over(picture, background)
    picture = _decoded(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def is_transparent(path: Path) -> bool:
    """Whether `read_image` lays the picture over a background that can be seen somewhere.

    Raises:
        UserError: if the file cannot be read or decoded.
    """
    if path.suffix.lower() in _OPAQUE:
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16).split(b"IDAT")[0]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[25:26] in (b"\0", b"\2") and b"tRNS" not in head:
        return False  # grey or RGB without alpha: nothing to decode
    picture = _decoded(path, cv2.IMREAD_UNCHANGED)
    if picture.ndim != 3 or picture.shape[2] != 4:
        return False
    opaque = np.iinfo(picture.dtype).max if picture.dtype.kind == "u" else 1
    return bool((picture[..., 3] < opaque).any())


def _over(bgra: np.ndarray, background: int) -> np.ndarray:
    """A picture with straight alpha, [H, W, 4] of 8 or 16 bits, over a grey level: uint8 RGB, [H, W, 3]."""
    largest = np.iinfo(bgra.dtype).max if bgra.dtype.kind == "u" else 1.0
    values = bgra.astype(np.float32) / largest
    alpha = values[..., 3:]
    blended = values[..., 2::-1] * alpha + background / 255 * (1 - alpha)
    return np.round(blended.clip(0, 1) * 255).astype(np.uint8)


def read_mask(path: Path) -> np.ndarray:
    """A mask as bool, [H, W]: any colour value above 0 is foreground, except where it is transparent.

    Raises:
        UserError: if the file cannot be read or decoded.
    """
    return read_mask_values(path) > 0


def read_mask_values(path: Path) -> np.ndarray:
    """The values of a mask before they become black and white, [H, W]: the largest of a pixel's colours, 0 where it is
    transparent.

    Raises:
        UserError: if the file cannot be read or decoded.
    """
    values = _decoded(path, cv2.IMREAD_UNCHANGED)
    if values.ndim == 2:
        return values
    largest = values[..., :3].max(axis=2)
    return np.where(values[..., 3] > 0, largest, 0).astype(values.dtype) if values.shape[2] == 4 else largest


def mask_at_size(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask uint8 [h, w] at `size` (width, height), nearest neighbour; itself if it has that size."""
    if (mask.shape[1], mask.shape[0]) == size:
        return mask
    return cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)


def has_shape_of(mask: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether a mask [h, w] can be of a whole photo of `size` (width, height), at any scale, up to one row."""
    return abs(mask.shape[0] - size[1] * mask.shape[1] / size[0]) <= 1


def _decoded(path: Path, flags: int) -> np.ndarray:
    """Decode by way of bytes: `cv2.imread` does not take every path on every platform."""
    try:
        content = np.fromfile(path, np.uint8)
        picture = cv2.imdecode(content, flags) if content.size else None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    except cv2.error as error:  # such as more than 2^30 pixels
        raise UserError(f"{path} cannot be decoded: {error}. Replace the file.") from None
    if picture is None:
        raise UserError(
            f"{path} is no picture that OpenCV can decode ({content.size} bytes; expected one of "
            f"{', '.join(SUFFIXES)}). Copy or download the file again, or remove it."
        )
    return picture


class ImageFolder:
    """Files of an image folder by COLMAP's names, which may differ in the suffix (a.JPG, a.png for a.jpg)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listings: dict[Path, dict[str, list[Path]]] = {}

    def find(self, name: str) -> Path | None:
        """The file of image `name` ("left/frame_00001.jpg"), None if there is none."""
        path = self.folder / PurePosixPath(name)
        if os.path.isfile(path):  # false, not an exception, for names no file can have
            return path
        candidates = self._listing(path.parent).get(path.stem, [])
        same_suffix = [file for file in candidates if file.suffix.lower() == path.suffix.lower()]
        return next(iter(same_suffix or candidates), None)

    def _listing(self, folder: Path) -> dict[str, list[Path]]:
        """Picture files of one folder by stem, sorted."""
        if folder not in self._listings:
            by_stem: dict[str, list[Path]] = {}
            for file in sorted(folder.iterdir()) if os.path.isdir(folder) else ():
                if file.suffix.lower() in SUFFIXES and file.is_file():
                    by_stem.setdefault(file.stem, []).append(file)
            self._listings[folder] = by_stem
        return self._listings[folder]


class ImageCache:
    """Arrays by key up to a number of bytes; the one used longest ago goes first. Safe to use from threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._arrays: OrderedDict[object, np.ndarray] = OrderedDict()
        self._lock = Lock()

    def get(self, key: object, load: Callable[[], np.ndarray]) -> np.ndarray:
        """A copy of the array of `key`, made by `load` if it is not held."""
        with self._lock:
            array = self._arrays.get(key)
            if array is not None:
                self._arrays.move_to_end(key)
                return array.copy()
        array = load()
        with self._lock:
            if key not in self._arrays and array.nbytes <= self.max_bytes:
                self._arrays[key] = array.copy()
                self.nbytes += array.nbytes
                while self.nbytes > self.max_bytes:
                    self.nbytes -= self._arrays.popitem(last=False)[1].nbytes
        return array
