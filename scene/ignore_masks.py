"""Masks of pixels that do not count in the loss of the RGB stage, such as a car's bonnet or people who walked by."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scene.dataset import View, first_five, log
from utils.errors import UserError


class IgnoreMasks:
    """Finds the mask of each view: `<folder>/<image name without suffix>.png`, or one file for all views.

    Args:
        folder: holds the masks; a single PNG whose name is that of no view is for all.
        views: the views that may have one.

    Raises:
        UserError: if the folder does not exist, or none of its masks belongs to a view.
    """

    def __init__(self, folder: Path, views: list[View]):
        if not folder.is_dir():
            raise UserError(f"--ignore_mask_dir {folder} is not a folder; expected masks <photo>.png in it.")
        files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.png"))}
        if not files:
            raise UserError(f"--ignore_mask_dir {folder} holds no .png; expected one a view, or one for all views.")
        named = {view.id: files[name] for view in views if (name := _name(view)) in files}
        if len(files) == 1 and not named:
            named = dict.fromkeys((view.id for view in views), next(iter(files.values())))
        if not named:
            raise UserError(
                f"--ignore_mask_dir {folder}: none of {first_five(sorted(files))} (.png) is named as a photo such as "
                f"{_name(views[0])}. Name each mask as its photo, or leave a single one for all views."
            )
        missing = [view.id for view in views if view.id not in named]
        if missing:
            log.warning(
                "views without a mask in %s, all pixels count: %d (%s)", folder, len(missing), first_five(missing)
            )
        self._paths = named

    def load(self, view: View) -> np.ndarray | None:
        """Which pixels of the view are ignored, bool [H, W]; None if all count. Raises UserError as `View.mask_at`."""
        path = self._paths.get(view.id)
        return None if path is None else view.mask_at(path)


def _name(view: View) -> str:
    return Path(view.camera.name).with_suffix("").as_posix()
