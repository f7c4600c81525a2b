"""The two files of a target: the mask, and a JSON sidecar that tells where it comes from.

    gt_mask/frame_00001/red cup.png      0 and 255; missing if nothing was found
    gt_mask/frame_00001/red cup.json     {"category", "sentences", "size": [width, height], "winner", "score",
                                          "mask_sha256", ...}

"winner" is the index of the chosen candidate in "candidates", null where nothing was found; "score" is its p_k. The
other entries depend on the source of the mask: see `pseudo_masks.grounded_sam` and `pseudo_masks.imported`.

A target is finished if either file exists. A mask is replaced only if the hash in its sidecar still fits: masks that a
person drew or corrected stay. A sidecar with a winner, but without its mask, means that a person deleted the mask, and
it is not made again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from pseudo_masks.worklist import Target
from utils.errors import UserError
from utils.files import read_json, write_bytes, write_json
from utils.images import encode


@dataclass(frozen=True)
class MadeMask:
    """The result for a target."""

    mask: np.ndarray | None  # bool [H, W] of the photo's size; None if nothing was found
    facts: dict[str, Any]  # entries of the sidecar, with "winner" and "score"


def is_finished(target: Target, redo: str = "none") -> bool:
    """Return whether a target needs no work.

    With redo "empty", targets in which nothing was found do, with "all" also those whose mask is unchanged since this
    program wrote it.
    """
    if target.mask.is_file():
        return redo != "all" or not is_ours(target)
    return is_rejected(target) or (redo == "none" and read_sidecar(target) is not None)


def is_rejected(target: Target) -> bool:
    """Return whether a person deleted the mask and left its sidecar."""
    sidecar = read_sidecar(target) or {}
    return sidecar.get("winner") is not None and not target.mask.is_file()


def is_ours(target: Target) -> bool:
    """Return whether the mask, which exists, is unchanged since this program wrote it."""
    sidecar = read_sidecar(target) or {}
    return sidecar.get("mask_sha256") == hashlib.sha256(target.mask.read_bytes()).hexdigest()


def read_sidecar(target: Target) -> dict[str, Any] | None:
    """Return the JSON of a target; None if it is missing or damaged."""
    try:
        sidecar = read_json(target.sidecar, "mask record") if target.sidecar.is_file() else None
    except UserError:
        return None
    return sidecar if isinstance(sidecar, dict) else None


def write_mask(target: Target, made: MadeMask, size: tuple[int, int]) -> None:
    """Write the files of a target, whose photo has `size` (width, height).

    The sidecar comes last, since without its mask it would mean that a person deleted it.
    """
    sidecar = {"category": target.category, "sentences": list(target.sentences), "size": list(size), **made.facts}
    if made.mask is None:
        write_json(target.sidecar, {**sidecar, "mask_sha256": None})
        target.mask.unlink(missing_ok=True)
        return
    data = encode(made.mask.astype(np.uint8) * 255, ".png")
    write_bytes(target.mask, data)
    write_json(target.sidecar, {**sidecar, "mask_sha256": hashlib.sha256(data).hexdigest()})
