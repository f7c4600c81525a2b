"""Confidences of training masks: `confidence.json` in the folder of the masks.

    {"masks": {"frame_00001/white mug.png": {"confidence": 0.93, ...}, ...}}

Names are those of `segmentation` in the scene's JSON files, relative to the folder. `python -m pseudo_masks.consensus`
writes the file; `train.py` weighs the loss of each (view, object) by it, unless `--no-mask_confidence` is given. Masks
without an entry have confidence 1, and so do masks that were changed since: those with another hash than the optional
"mask_sha256". Other programs may write the file, too, with "confidence" alone.
"""

from __future__ import annotations

import hashlib
import posixpath
from pathlib import Path
from typing import Any

from scene.issues import log
from utils.errors import UserError
from utils.files import read_json, write_json

FILE = "confidence.json"


def write_confidences(folder: Path, masks: dict[str, dict[str, Any]]) -> None:
    """Write the entry of each mask, with its "confidence" in 0..1, by name relative to the folder."""
    write_json(folder / FILE, {"masks": masks})


def read_confidences(folder: Path) -> dict[str, float]:
    """Read confidences in 0..1 by mask name, without masks that were changed since. Raises UserError if damaged."""
    path = folder / FILE
    if not path.is_file():
        return {}
    content = read_json(path, "confidences of masks")
    masks = content.get("masks") if isinstance(content, dict) else None
    if not isinstance(masks, dict):
        raise UserError(f"{path} has no masks by name under the key 'masks'. Restore the file or remove it.")
    confidences, changed = {}, []
    for name, entry in masks.items():
        value = entry.get("confidence") if isinstance(entry, dict) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UserError(
                f"{path}: the confidence of {name!r} is {value!r}, expected a number from 0 to 1. Restore the file or "
                "remove it."
            )
        if "mask_sha256" in entry and mask_hash(folder / name) not in (entry["mask_sha256"], None):
            changed.append(name)
        else:
            confidences[name] = float(value)
    if changed:
        log.warning("masks changed after %s was written have confidence 1: %d (%s)", path, len(changed), changed[0])
    return confidences


def mask_hash(path: Path) -> str | None:
    """Hash a mask file for "mask_sha256"; None if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError):
        return None


def foreign_files(folder: Path) -> list[str]:
    """List the files of a folder that confidence.json does not name with their present hash."""
    try:
        masks = read_json(folder / FILE, "confidences of masks")["masks"]
        known = {posixpath.normpath(name): entry["mask_sha256"] for name, entry in masks.items()}
    except (UserError, LookupError, TypeError, AttributeError):
        known = {}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    named = {path.relative_to(folder).as_posix(): path for path in files if path != folder / FILE}
    return [name for name, path in named.items() if name not in known or known[name] != mask_hash(path)]
