"""What every pair of a view and an object lacks before training can use it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pseudo_masks.plan import Job, Pair
from pseudo_masks.records import is_rejected, read_record
from scene.readers.image_files import has_shape_of, image_size, read_mask
from utils.errors import UserError


@dataclass(frozen=True)
class Lack:
    """A pair that is not complete, and why."""

    pair: Pair
    reason: str


def lacks(jobs: list[Job]) -> list[Lack]:
    """The pairs of `jobs` whose mask is missing, damaged, empty, or of another shape than the photo."""
    found = []
    for job in jobs:
        try:
            size, damage = image_size(job.photo.path), ""
        except UserError as error:
            size, damage = None, f"the photo: {error}"
        reasons = [(pair, damage or _reason(pair, size)) for pair in job.pairs]
        found += [Lack(pair, reason) for pair, reason in reasons if reason]
    return found


def _reason(pair: Pair, size: tuple[int, int]) -> str:
    """What a pair lacks; empty if nothing."""
    if not pair.mask.is_file():
        record = read_record(pair)
        if record is None:
            return "no mask yet"
        if is_rejected(pair):
            return f"the mask was deleted; to have it made again, delete {pair.record.name}, too"
        count = len(record.get("candidates") or ())
        if "imported_from" in record:
            return f"the imported mask is empty ({record['imported_from']})"
        return f"all {count} candidates are empty or larger than --max_area" if count else "nothing found"
    try:
        mask = read_mask(pair.mask)
    except UserError as error:
        return f"damaged mask: {error}"
    if not has_shape_of(mask, size):
        return f"the mask is {mask.shape[1]}x{mask.shape[0]}, another shape than the photo ({size[0]}x{size[1]})"
    return "" if mask.any() else "the mask is empty"


def summary(jobs: list[Job], found: list[Lack]) -> str:
    """A line for each incomplete pair, then one for each object with the number of views that have its mask."""
    views = Counter(pair.category for job in jobs for pair in job.pairs)
    missing = Counter(lack.pair.category for lack in found)
    width = max(len(category) for category in views)
    lines = [f"{lack.pair.name}: {lack.reason}" for lack in found]
    lines += [""] * bool(found)
    for category, count in views.items():
        have = count - missing[category]
        lines.append(
            f"{category:{width}}  {have} of {count} views" + ("" if have else "  (none: training cannot use it)")
        )
    total = sum(views.values())
    return "\n".join([*lines, f"{total - len(found)} of {total} pairs of a training view and an object have a mask"])
