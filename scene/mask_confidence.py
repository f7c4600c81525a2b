"""How far the masks of a folder are to be believed: `confidence.json` in the folder of the masks.

    {"masks": {"frame_00001/white mug.png": {"confidence": 0.93, ...}, ...}}

Names are those of `segmentation` in the scene's JSON files, relative to the folder. `python -m scene.consensus` writes
it; `train.py` weighs the loss of each (view, object) by it (`--no-mask_confidence` does not). What is not named there
has confidence 1. Any other program may write it, with the one number or with more beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json, write_json

FILE = "confidence.json"


def write_confidences(folder: Path, masks: dict[str, dict[str, Any]]) -> None:
    """Write what is known of each mask, "confidence" 0..1 among it, by name relative to the folder."""
    write_json(folder / FILE, {"masks": masks})


def read_confidences(folder: Path) -> dict[str, float]:
    """Confidence 0..1 of masks by name relative to the folder; nothing if there is no such file.

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    content = read_json(path, "confidences of masks")
    masks = content.get("masks") if isinstance(content, dict) else None
    if not isinstance(masks, dict):
        raise UserError(f"{path} has no masks by name under the key 'masks'. Restore the file or remove it.")
    confidences = {}
    for name, entry in masks.items():
        value = entry.get("confidence") if isinstance(entry, dict) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UserError(
                f"{path}: the confidence of {name!r} is {value!r}, expected a number from 0 to 1. Restore the file or "
                "remove it."
            )
        confidences[name] = float(value)
    return confidences
