"""Masks made elsewhere: files matched by name, checked for their shape, and binarized.

For a view frame_00001.jpg and the object "red cup", any of these names works, with any suffix of a picture; letters and
digits count, the separators between them do not:

    frame_00001/red cup.png      red_cup/frame_00001.png      frame_00001_red-cup.png      Red cup - frame_00001.png
    frame_00001.jpg/red cup.png  frame_00001.png (if the scene has one object only)

The sidecar of an imported mask has "imported_from"; "winner" is 0, or null where the mask is empty, and "score" null.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import numpy as np

from pseudo_masks.mask_files import MadeMask
from pseudo_masks.worklist import AnnotatedPhoto, Job, Target
from scene.issues import first_five
from scene.readers.image_files import SUFFIXES, has_aspect_ratio, mask_at_size, read_mask_values
from utils.errors import UserError

RULES = "<frame>/<object>.png, <object>/<frame>.png, <frame>_<object>.png or <object>_<frame>.png"


class ImportedMasks:
    """Matches the masks of a folder with the targets of a scene.

    Args:
        folder: holds the masks.
        jobs: all training views with their targets.
        photos: all photos of the scene.

    Attributes:
        test_masks: files named after a test view.
        unused: files named after no view and object.

    Raises:
        UserError: if the folder holds no picture, none of them belongs to a target, or two belong to one target.
    """

    def __init__(self, folder: Path, jobs: list[Job], photos: list[AnnotatedPhoto]):
        files: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                files.setdefault(_key(path.relative_to(folder).with_suffix("").as_posix()), []).append(path)
        if not files:
            what = "holds no picture" if folder.is_dir() else "is not a folder"
            raise UserError(f"--import {folder} {what}; expected masks named {RULES}.")
        bases = [PurePosixPath(job.photo.name).name for job in jobs]
        only_object = len({target.category for job in jobs for target in job.targets}) == 1
        self._paths: dict[Path, Path] = {}
        for job, base in zip(jobs, bases, strict=True):
            names = [job.photo.name] + [base] * (bases.count(base) == 1)
            names += [PurePosixPath(name).with_suffix("").as_posix() for name in names]
            for target in job.targets:
                category = target.category
                keys = {_key(f"{a}_{b}") for name in names for a, b in ((name, category), (category, name))}
                keys |= {_key(name) for name in names} if only_object else set()
                found = [path for key in sorted(keys) for path in files.get(key, ())]
                if len(found) > 1:
                    raise UserError(
                        f"--import {folder}: {len(found)} files could be the mask of {target.name}: "
                        f"{first_five([str(path.relative_to(folder)) for path in found])}. Leave one of them."
                    )
                if found:
                    self._paths[target.mask] = found[0]
        used = set(self._paths.values())
        frames = {_key(name): photo.is_test for photo in photos for name in (photo.name, photo.frame)}
        left = {path: _is_test(key, frames) for key, paths in files.items() for path in paths if path not in used}
        self.test_masks = [path for path, is_test in left.items() if is_test]
        self.unused = [path for path, is_test in left.items() if not is_test]
        if not used:
            target = jobs[0].targets[0]
            raise UserError(
                f"--import {folder}: none of {first_five([path.name for path in left])} is named after a view "
                f"and an object of the scene. Expected {RULES}, here such as {target.frame}/{target.category}.png."
            )

    def has(self, target: Target) -> bool:
        """Return whether a file belongs to the target."""
        return target.mask in self._paths

    def make_masks(self, photo: np.ndarray, targets: list[Target]) -> list[MadeMask]:
        """Read the masks of one view, and bring them to the size of the photo, uint8 [H, W, 3].

        Raises:
            UserError: if a mask cannot be read or has another shape than the photo.
        """
        height, width = photo.shape[:2]
        made = []
        for target in targets:
            path = self._paths[target.mask]
            mask = binarize(read_mask_values(path))
            if not has_aspect_ratio(mask, (width, height)):
                raise UserError(
                    f"{path} is {mask.shape[1]}x{mask.shape[0]}, but the photo is {width}x{height}: another shape. "
                    "Expected a mask of the whole photo, at any scale."
                )
            mask = mask_at_size(mask.astype(np.uint8), (width, height)) > 0
            shows_object = bool(mask.any())
            facts = {"imported_from": str(path), "winner": 0 if shows_object else None, "score": None}
            made.append(MadeMask(mask if shows_object else None, facts))
        return made


def binarize(values: np.ndarray) -> np.ndarray:
    """Return the foreground, bool [H, W], of mask values, uint8, uint16 or float in 0..1.

    Of two values the larger is foreground, be it 1 or 255; a single value is foreground unless it is 0. Files with more
    values have soft borders or are JPEG: foreground is above half of the range of the type.
    """
    distinct = np.unique(values)
    if len(distinct) <= 2:
        return values > (distinct[0] if len(distinct) == 2 else 0)
    return values > (np.iinfo(values.dtype).max // 2 if values.dtype.kind == "u" else 0.5)


def _is_test(key: str, frames: dict[str, bool]) -> bool:
    """Return whether the key of a file begins or ends with that of a test view; the longest matching frame decides."""
    found = [frame for frame in frames if f"{key}_".startswith(f"{frame}_") or f"_{key}".endswith(f"_{frame}")]
    return frames[max(found, key=len)] if found else False


def _key(text: str) -> str:
    """Return the letters and digits of a path in lower case, with one underscore for each separator."""
    return re.sub(r"[\W_]+", "_", text.casefold()).strip("_")
