"""Masks that training cannot use yet, and why: `pseudo_mask.py --check`."""

from __future__ import annotations

from collections import Counter

from pseudo_masks.mask_files import is_rejected, read_sidecar
from pseudo_masks.worklist import Job, Target
from scene.readers.image_files import has_aspect_ratio, image_size, read_mask
from utils.errors import UserError


def find_problems(jobs: list[Job]) -> list[tuple[Target, str]]:
    """Return the targets whose mask is missing, damaged, empty, or of another shape than the photo, with the reason."""
    found = []
    for job in jobs:
        try:
            size, damage = image_size(job.photo.path), ""
        except UserError as error:
            size, damage = None, f"the photo: {error}"
        reasons = [(target, damage or _problem(target, size)) for target in job.targets]
        found += [(target, reason) for target, reason in reasons if reason]
    return found


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
