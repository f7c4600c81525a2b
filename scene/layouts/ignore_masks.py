"""Masks of pixels that do not count in the loss of the RGB stage, such as a car's bonnet or passers-by."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scene.dataset import Scene, View
from scene.issues import first_five, log
from scene.layouts.annotations import frame_name
from utils.errors import UserError


class IgnoreMasks:
    """The ignore mask of each view: `<folder>/<image name without suffix>.png`, or one file for all views.

    Args:
        folder: folder of the masks; a single PNG that is not named after a view applies to all.
        views: views that may have a mask.

    Raises:
        UserError: if the folder does not exist, or none of its masks belongs to a view.
    """

    def __init__(self, folder: Path, views: list[View]):
        if not folder.is_dir():
            raise UserError(f"--ignore_mask_dir {folder} is not a folder; expected masks <photo>.png in it.")
        files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.png"))}
        if not files:
            raise UserError(f"--ignore_mask_dir {folder} holds no .png; expected one per view, or one for all views.")
        self._paths = {view.id: files[name] for view in views if (name := frame_name(view.camera.name)) in files}
        if len(files) == 1 and not self._paths:
            self._paths = dict.fromkeys((view.id for view in views), next(iter(files.values())))
        if not self._paths:
            raise UserError(
                f"--ignore_mask_dir {folder}: none of {first_five(sorted(files))} (.png) is named as a photo such as "
                f"{frame_name(views[0].camera.name)}. Name each mask as its photo, or leave a single one for all views."
            )
        missing = [view.id for view in views if view.id not in self._paths]
        if missing:
            log.warning(
                "views without a mask in %s, all pixels count: %d (%s)", folder, len(missing), first_five(missing)
            )

    def has(self, view: View) -> bool:
        """Whether the view has a mask."""
        return view.id in self._paths

    def load(self, view: View) -> np.ndarray:
        """Read which pixels of the view are ignored, bool [H, W]. Raises UserError as `View.mask_at`."""
        return view.mask_at(self._paths[view.id])


def find_ignore_masks(folder: Path | None, scene: Scene) -> IgnoreMasks | None:
    """The masks of --ignore_mask_dir, absolute or relative to the scene folder; None without that flag."""
    return None if folder is None else IgnoreMasks(scene.path / folder, [*scene.train, *scene.test])
