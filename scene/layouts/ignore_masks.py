"""Masks of pixels that do not count in the loss of the RGB stage, such as a car's bonnet or passers-by."""

from __future__ import annotations

from pathlib import Path

from scene.dataset import Scene
from scene.issues import first_five, log
from scene.layouts.annotations import frame_name
from utils.errors import UserError


def find_ignore_masks(folder: Path | None, scene: Scene) -> dict[str, Path]:
    """Find the ignore masks by view id: `<folder>/<image name without suffix>.png`, or a single file for all views.

    Args:
        folder: --ignore_mask_dir, absolute or relative to the scene folder; None has no masks.
        scene: its views may have a mask, which `View.mask_at` reads.

    Raises:
        UserError: if the folder does not exist, or none of its masks belongs to a view.
    """
    if folder is None:
        return {}
    folder, views = scene.path / folder, [*scene.train, *scene.test]
    if not folder.is_dir():
        raise UserError(f"--ignore_mask_dir {folder} is not a folder; expected masks <photo>.png in it.")
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.png"))}
    if not files:
        raise UserError(f"--ignore_mask_dir {folder} holds no .png; expected one per view, or one for all views.")
    found = {view.id: files[name] for view in views if (name := frame_name(view.camera.name)) in files}
    if len(files) == 1 and not found:
        found = dict.fromkeys((view.id for view in views), next(iter(files.values())))
    if not found:
        raise UserError(
            f"--ignore_mask_dir {folder}: none of {first_five(sorted(files))} (.png) is named as a photo such as "
            f"{frame_name(views[0].camera.name)}. Name each mask as its photo, or leave a single one for all views."
        )
    missing = [view.id for view in views if view.id not in found]
    if missing:
        log.warning("views without a mask in %s, all pixels count: %d (%s)", folder, len(missing), first_five(missing))
    return found
