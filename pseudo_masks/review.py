"""Finding missing and bad masks: `pseudo_mask.py --check`, and contact sheets with all views of an object."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from pseudo_masks.mask_files import is_ours, is_rejected, read_sidecar
from pseudo_masks.worklist import Job, Target
from scene.dataset import slug
from scene.readers.image_files import ImageCache, has_aspect_ratio, image_size, read_image, read_mask
from utils.errors import UserError
from utils.images import PAPER, add_caption, contact_sheet, overlay, scale_to_width, write_image

WIDTH = 480  # pixels of a picture; overlays of that width are not enlarged
COLUMNS, ROWS = 5, 8
CACHE_BYTES = 256 << 20  # of photos made small, which all objects share


def find_problems(jobs: list[Job]) -> list[tuple[Target, str]]:
    """Return the targets whose mask is missing, damaged, empty, or of another shape than the photo, with the reason."""
    found = []
    for job in jobs:
        try:
            size = image_size(job.photo.path)
            found += [(target, _problem(target, size)) for target in job.targets]
        except UserError as error:
            found += [(target, f"the photo: {error}") for target in job.targets]
    return [(target, reason) for target, reason in found if reason]


def _problem(target: Target, size: tuple[int, int]) -> str:
    """Return the reason why training cannot use a mask; empty if it can."""
    if not target.mask.is_file():
        sidecar = read_sidecar(target)
        if sidecar is None:
            return "no mask yet"
        if is_rejected(target):
            return f"the mask was deleted; to have it made again, delete {target.sidecar.name}, too"
        count = len(sidecar.get("candidates") or ())
        if "imported_from" in sidecar:
            return f"the imported mask is empty ({sidecar['imported_from']})"
        return f"all {count} candidates are empty or larger than --max_area" if count else "nothing found"
    try:
        mask = read_mask(target.mask)
    except UserError as error:
        return f"damaged mask: {error}"
    if not has_aspect_ratio(mask, size):
        return f"the mask is {mask.shape[1]}x{mask.shape[0]}, another shape than the photo ({size[0]}x{size[1]})"
    return "" if mask.any() else "the mask is empty"


def summarize(jobs: list[Job], problems: list[tuple[Target, str]]) -> str:
    """Return a line for each problem, then one for each object with the number of views that have its mask."""
    views = Counter(target.category for job in jobs for target in job.targets)
    missing = Counter(target.category for target, _ in problems)
    width = max(len(category) for category in views)
    lines = [f"{target.name}: {reason}" for target, reason in problems]
    lines += [""] * bool(problems)
    for category, count in views.items():
        have = count - missing[category]
        note = "" if have else "  (none: training cannot use it)"
        lines.append(f"{category:{width}}  {have} of {count} views{note}")
    total = sum(views.values())
    return "\n".join([*lines, f"{total - len(problems)} of {total} pairs of a training view and an object have a mask"])


def write_sheets(folder: Path, jobs: list[Job]) -> None:
    """Write <folder>/<object>.jpg, and further pages <object>-2.jpg ... for an object with many views.

    Views without a mask are dark; unreadable photos are left out.
    """
    views: dict[str, list[tuple[Job, Target]]] = {}
    for job in jobs:
        for target in job.targets:
            views.setdefault(target.category, []).append((job, target))
    cache = ImageCache(CACHE_BYTES)
    names: set[str] = set()
    for category, members in views.items():
        name = slug(category)
        while name in names:  # "red cup" and "red-cup"
            name += "_"
        names.add(name)
        cells = [cell for job, target in members if (cell := _cell(job, target, cache)) is not None]
        heading = f"{category}: " + " / ".join(members[0][1].sentences)
        rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
        for page, start in enumerate(range(0, len(rows), ROWS), start=1):
            path = folder / (f"{name}.jpg" if page == 1 else f"{name}-{page}.jpg")
            sheet = contact_sheet(rows[start : start + ROWS], WIDTH)
            title = add_caption(np.full((1, sheet.shape[1], 3), PAPER, np.uint8), heading)
            write_image(path, np.concatenate([title, sheet]))


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
    sidecar = read_sidecar(target)
    if sidecar is None or not is_ours(target):
        return "not by this script, " if sidecar is None else "changed since, "
    if "imported_from" in sidecar:
        return "imported, "
    eligible = sum(candidate.get("score") is not None for candidate in sidecar.get("candidates", ()))
    return f"score {sidecar['score']:.2f} of {eligible}, " if isinstance(sidecar.get("score"), float) else ""
