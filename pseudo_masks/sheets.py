"""Contact sheets: all views of an object with its mask in colour, to find bad masks at a glance."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pseudo_masks.mask_files import is_ours, is_rejected, read_sidecar
from pseudo_masks.worklist import Job, Target
from scene.dataset import slug
from scene.readers.image_files import ImageCache, read_image, read_mask
from utils.errors import UserError
from utils.images import PAPER, add_caption, contact_sheet, overlay, scale_to_width, write_image

WIDTH = 480  # pixels of a picture; overlays of that width are not enlarged
COLUMNS, ROWS = 5, 8
CACHE_BYTES = 256 << 20  # of photos made small, which all objects share


def write_sheets(folder: Path, jobs: list[Job]) -> list[Path]:
    """Write <folder>/<object>.jpg, and further pages <object>-2.jpg ... for an object with many views.

    Views without a mask are dark; unreadable photos are left out.

    Raises:
        UserError: if a sheet cannot be written.
    """
    views: dict[str, list[tuple[Job, Target]]] = {}
    for job in jobs:
        for target in job.targets:
            views.setdefault(target.category, []).append((job, target))
    cache = ImageCache(CACHE_BYTES)
    written, names = [], set()
    for category, members in views.items():
        name = slug(category)
        while name in names:  # "red cup" and "red-cup"
            name += "_"
        names.add(name)
        cells = [cell for job, target in members if (cell := _cell(job, target, cache)) is not None]
        heading = f"{category}: " + " / ".join(members[0][1].sentences)
        for page, start in enumerate(range(0, len(cells), COLUMNS * ROWS), start=1):
            path = folder / (f"{name}.jpg" if page == 1 else f"{name}-{page}.jpg")
            write_image(path, _page(heading, cells[start : start + COLUMNS * ROWS]))
            written.append(path)
    return written


def _page(heading: str, cells: list[np.ndarray]) -> np.ndarray:
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    sheet = contact_sheet(rows, WIDTH)
    return np.concatenate([add_caption(np.full((1, sheet.shape[1], 3), PAPER, np.uint8), heading), sheet])


def _cell(job: Job, target: Target, cache: ImageCache) -> np.ndarray | None:
    """Draw one view of an object; None if a file cannot be read."""
    try:
        photo = cache.get(job.photo.path, lambda: scale_to_width(read_image(job.photo.path), WIDTH))
        mask = read_mask(target.mask) if target.mask.is_file() else None
    except UserError:
        return None
    if mask is None:
        reason = "mask deleted" if is_rejected(target) else "no mask"
        return add_caption((photo * 0.35).astype(np.uint8), f"{target.frame}: {reason}")
    share = 100 * mask.mean()
    mask = cv2.resize(mask.astype(np.uint8), (photo.shape[1], photo.shape[0]), interpolation=cv2.INTER_NEAREST) > 0
    return add_caption(overlay(photo, mask), f"{target.frame}: {_origin(target)}{share:.1f} % of the photo")


def _origin(target: Target) -> str:
    """Return where the mask comes from, for a caption."""
    sidecar = read_sidecar(target)
    if sidecar is None or not is_ours(target):
        return "not by this script, " if sidecar is None else "changed since, "
    if "imported_from" in sidecar:
        return "imported, "
    eligible = sum(candidate.get("score") is not None for candidate in sidecar.get("candidates", ()))
    return f"score {sidecar['score']:.2f} of {eligible}, " if isinstance(sidecar.get("score"), float) else ""
