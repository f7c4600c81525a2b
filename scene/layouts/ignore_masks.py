"""Masks of pixels that do not count in the loss of the RGB stage, such as a car's bonnet or people who walked by."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scene.dataset import Scene, View, first_five, log
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

    def has(self, view: View) -> bool:
        """Whether the view has a mask."""
        return view.id in self._paths

    def load(self, view: View) -> np.ndarray:
        """Which pixels of the view are ignored, bool [H, W]. Raises UserError as `View.mask_at`."""
        return view.mask_at(self._paths[view.id])


def find_ignore_masks(folder: Path | None, scene: Scene) -> IgnoreMasks | None:
    """The masks of --ignore_mask_dir, a folder in the scene's or an absolute one; None if there is none."""
    return None if folder is None else IgnoreMasks(scene.path / folder, [*scene.train, *scene.test])


def _name(view: View) -> str:
    return Path(view.camera.name).with_suffix("").as_posix()
