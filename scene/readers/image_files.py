"""Picture and mask files: size without decoding, decoding with clear errors, lookup by name, a bounded cache."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from threading import Lock

import cv2
import numpy as np
from PIL import Image

from utils.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_OPAQUE = (".jpg", ".jpeg", ".bmp")  # formats without alpha


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of a picture file before EXIF orientation, as in COLMAP. Raises UserError if damaged."""
    header = _open_header(path)
    if header is not None and header.format in (
        "PNG",
        "JPEG",
    ):  # others are decoded, which finds damage before training
        return header.size
    height, width = _decode(path, cv2.IMREAD_UNCHANGED).shape[:2]
    return width, height


def _open_header(path: Path) -> Image.Image | None:
    """The header of a picture as Pillow reads it, without pixels; None where Pillow cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of large pictures, of which nothing is decompressed, and damaged EXIF data
            with Image.open(path) as header:
                return header
    except Exception as error:  # Pillow's plugins raise many kinds; OpenCV has the last word on such a file
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
        return None


def read_image(path: Path, background: int | None = None) -> np.ndarray:
    """Read a picture as uint8 RGB, [H, W, 3]; grey is repeated, 16 bits become 8.

    Args:
        background: grey level 0..255 behind transparent pixels; None drops alpha.

    Raises:
        UserError: if the file is damaged.
    """
    if background is not None and path.suffix.lower() not in _OPAQUE:
        picture = _decode(path, cv2.IMREAD_UNCHANGED)
        if picture.ndim == 3 and picture.shape[2] == 4:
            return _blend(picture, background)
    picture = _decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def is_transparent(path: Path) -> bool:
    """Whether `read_image` shows the background in any pixel. Raises UserError if the picture is damaged."""
    if path.suffix.lower() in _OPAQUE:
        return False
    header = _open_header(path)
    if header is not None and header.format == "PNG" and "A" not in header.mode and "transparency" not in header.info:
        return False  # nothing to decode
    picture = _decode(path, cv2.IMREAD_UNCHANGED)
    if picture.ndim != 3 or picture.shape[2] != 4:
        return False
    opaque = np.iinfo(picture.dtype).max if picture.dtype.kind == "u" else 1
    return bool((picture[..., 3] < opaque).any())


def _blend(bgra: np.ndarray, background: int) -> np.ndarray:
    """Blend a picture with straight alpha, [H, W, 4] of 8 or 16 bits, over a grey level: uint8 RGB, [H, W, 3]."""
    largest = np.iinfo(bgra.dtype).max if bgra.dtype.kind == "u" else 1.0
    values = bgra.astype(np.float32) / largest
    alpha = values[..., 3:]
    blended = values[..., 2::-1] * alpha + background / 255 * (1 - alpha)
    return np.round(blended.clip(0, 1) * 255).astype(np.uint8)


def read_mask(path: Path) -> np.ndarray:
    """Read a mask as bool [H, W], true where `read_mask_values` is above 0. Raises UserError if it is damaged."""
    return read_mask_values(path) > 0


def read_mask_values(path: Path) -> np.ndarray:
    """Read a mask [H, W]: the largest of a pixel's colours, 0 where transparent. Raises UserError if it is damaged."""
    values = _decode(path, cv2.IMREAD_UNCHANGED)
    if values.ndim == 2:
        return values
    largest = values[..., :3].max(axis=2)
    return np.where(values[..., 3] > 0, largest, 0).astype(values.dtype) if values.shape[2] == 4 else largest


def mask_at_size(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a mask uint8 [h, w] to `size` (width, height), nearest neighbour; no copy if it has that size."""
    if (mask.shape[1], mask.shape[0]) == size:
        return mask
    return cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)


def has_aspect_ratio(mask: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether a mask [h, w] has the aspect ratio of a photo of `size` (width, height), up to one row."""
    return abs(mask.shape[0] - size[1] * mask.shape[1] / size[0]) <= 1


def _decode(path: Path, flags: int) -> np.ndarray:
    """Decode from bytes, as `cv2.imread` does not take every path on every platform."""
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
    """Finds files of an image folder by COLMAP's names; the suffix may differ (a.JPG or a.png for a.jpg)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listings: dict[Path, dict[str, list[Path]]] = {}

    def find(self, name: str) -> Path | None:
        """Find the file of image `name` ("left/frame_00001.jpg"); None if there is none."""
        path = self.folder / PurePosixPath(name)
        if os.path.isfile(path):  # unlike Path.is_file, false for names that no file can have
            return path
        candidates = self._listing(path.parent).get(path.stem, [])
        return min(candidates, key=lambda file: (file.suffix.lower() != path.suffix.lower(), file), default=None)

    def _listing(self, folder: Path) -> dict[str, list[Path]]:
        """List the picture files of a folder by stem."""
        if folder not in self._listings:
            self._listings[folder] = {}
            for file in folder.iterdir() if os.path.isdir(folder) else ():
                if file.suffix.lower() in SUFFIXES and file.is_file():
                    self._listings[folder].setdefault(file.stem, []).append(file)
        return self._listings[folder]


class ImageCache:
    """Least-recently-used cache of arrays, bounded in bytes. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._arrays: OrderedDict[object, np.ndarray] = OrderedDict()
        self._lock = Lock()

    def get(self, key: object, load: Callable[[], np.ndarray]) -> np.ndarray:
        """Return a copy of the cached array of `key`; `load` makes it on a miss."""
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
