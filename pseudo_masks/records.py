"""The two files of a pair: the mask, and a JSON beside it that tells how it came about.

    gt_mask/frame_00001/red cup.png      0 and 255; not there if nothing was found
    gt_mask/frame_00001/red cup.json     {"category", "sentences", "size": [width, height], "winner", "score",
                                          "mask_sha256", ...}

"winner" is the index of the chosen candidate in "candidates", null where nothing was found; "score" is its p_k. The
rest depends on where the mask comes from: see `pseudo_masks.grounded_sam` and `pseudo_masks.imported`.

A pair is finished if one of the two files is there. A mask is replaced only if its JSON has its hash: what somebody
drew or mended by hand stays. A JSON with a winner, but without its mask, tells that somebody threw the mask away, and
none is made.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pseudo_masks.plan import Pair
from utils.errors import UserError
from utils.files import read_json, write_bytes, write_json
from utils.images import encode


@dataclass(frozen=True)
class Outcome:
    """What was made for a pair.

    Attributes:
        mask: bool [H, W] of the photo's size; None if nothing was found.
        facts: what the JSON tells about it, with "winner" and "score".
    """

    mask: np.ndarray | None
    facts: dict[str, Any] = field(default_factory=dict)


def is_finished(pair: Pair, redo: str = "none") -> bool:
    """Whether a pair needs no work.

    Args:
        pair: the pair.
        redo: "empty" makes those again in which nothing was found, "all" also masks that this program wrote and
            nobody changed since.
    """
    if pair.mask.is_file():
        return redo != "all" or not is_ours(pair)
    return is_rejected(pair) or (redo == "none" and read_record(pair) is not None)


def is_rejected(pair: Pair) -> bool:
    """Whether somebody deleted the mask of a pair and left its JSON."""
    record = read_record(pair) or {}
    return record.get("winner") is not None and not pair.mask.is_file()


def read_record(pair: Pair) -> dict[str, Any] | None:
    """The JSON of a pair; None if there is none or it is damaged."""
    try:
        record = read_json(pair.record, "mask record") if pair.record.is_file() else None
    except UserError:
        return None
    return record if isinstance(record, dict) else None


def write(pair: Pair, outcome: Outcome, size: tuple[int, int]) -> None:
    """Write the files of a pair: the JSON after its mask, since without a mask it would tell that somebody deleted it.

    Args:
        pair: whose files.
        outcome: the mask and its story.
        size: (width, height) of the photo.

    Raises:
        UserError: if a file cannot be written.
    """
    record = {"category": pair.category, "sentences": list(pair.sentences), "size": list(size), **outcome.facts}
    if outcome.mask is None:
        write_json(pair.record, {**record, "mask_sha256": None})
        pair.mask.unlink(missing_ok=True)
        return
    data = encode(outcome.mask.astype(np.uint8) * 255, ".png")
    write_bytes(pair.mask, data)
    write_json(pair.record, {**record, "mask_sha256": hashlib.sha256(data).hexdigest()})


def is_ours(pair: Pair) -> bool:
    """Whether the mask of a pair, which exists, is as this program wrote it."""
    record = read_record(pair) or {}
    return record.get("mask_sha256") == hashlib.sha256(pair.mask.read_bytes()).hexdigest()
