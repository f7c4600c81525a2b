"""Contact sheets: for each object all its views with the mask in colour, to find bad masks at a glance."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pseudo_masks.plan import Job, Pair
from pseudo_masks.records import is_ours, is_rejected, read_record
from scene.dataset import slug
from scene.readers.image_files import ImageCache, read_image, read_mask
from utils.errors import UserError
from utils.images import PAPER, captioned, contact_sheet, overlay, write_image

WIDTH = 480  # pixels of a picture; overlays of that width are not enlarged
COLUMNS, ROWS = 5, 8
CACHE_BYTES = 256 << 20  # of photos made small, which all objects share


def write_sheets(folder: Path, jobs: list[Job]) -> list[Path]:
    """Write <folder>/<object>.jpg, in pages <object>-2.jpg ... where it has many views.

    Views without a mask are dark; photos that cannot be read are left out.

    Raises:
        UserError: if a sheet cannot be written.
    """
    views: dict[str, list[tuple[Job, Pair]]] = {}
    for job in jobs:
        for pair in job.pairs:
            views.setdefault(pair.category, []).append((job, pair))
    cache = ImageCache(CACHE_BYTES)
    written, names = [], set()
    for category, pairs in views.items():
        name = slug(category)
        while name in names:  # "red cup" and "red-cup"
            name += "_"
        names.add(name)
        cells = [cell for job, pair in pairs if (cell := _cell(job, pair, cache)) is not None]
        per_page = COLUMNS * ROWS
        for page in range(-(-len(cells) // per_page)):
            path = folder / (f"{name}.jpg" if page == 0 else f"{name}-{page + 1}.jpg")
            heading = f"{category}: " + " / ".join(pairs[0][1].sentences)
            write_image(path, _page(heading, cells[page * per_page : (page + 1) * per_page]))
            written.append(path)
    return written


def _page(heading: str, cells: list[np.ndarray]) -> np.ndarray:
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    sheet = contact_sheet(rows, WIDTH)
    return np.concatenate([captioned(np.full((1, sheet.shape[1], 3), PAPER, np.uint8), heading), sheet])


def _cell(job: Job, pair: Pair, cache: ImageCache) -> np.ndarray | None:
    """One view of an object; None if there is nothing to show."""
    try:
        photo = cache.get(job.photo.path, lambda: _small(read_image(job.photo.path)))
        mask = read_mask(pair.mask) if pair.mask.is_file() else None
    except UserError:
        return None
    if mask is None:
        told = "mask deleted" if is_rejected(pair) else "no mask"
        return captioned((photo * 0.35).astype(np.uint8), f"{pair.frame}: {told}")
    share = 100 * mask.mean()
    mask = cv2.resize(mask.astype(np.uint8), (photo.shape[1], photo.shape[0]), interpolation=cv2.INTER_NEAREST) > 0
    return captioned(overlay(photo, mask), f"{pair.frame}: {_told(pair)}{share:.1f} % of the photo")


def _told(pair: Pair) -> str:
    """What the record says about the choice, for a caption."""
    record = read_record(pair)
    if record is None or not is_ours(pair):
        return "not by this script, " if record is None else "changed since, "
    if "imported_from" in record:
        return "imported, "
    eligible = sum(candidate.get("score") is not None for candidate in record.get("candidates", ()))
    return f"score {record['score']:.2f} of {eligible}, " if isinstance(record.get("score"), float) else ""


def _small(photo: np.ndarray) -> np.ndarray:
    height, width = photo.shape[:2]
    if width == WIDTH:
        return photo
    method = cv2.INTER_AREA if width > WIDTH else cv2.INTER_CUBIC
    return cv2.resize(photo, (WIDTH, max(1, round(height * WIDTH / width))), interpolation=method)
