"""The 3D-OVS layout: names of classes instead of sentences, masks as ground truth.

    <scene>/images/00.jpg ...
    <scene>/sparse/0/{cameras,images,points3D}.{bin,txt}
    <scene>/segmentations/classes.txt                   one class a line
    <scene>/segmentations/<test image>/<class>.png      ground truth; the folder has the image's name without suffix
    <scene>/gt_mask/<training image>/<class>.png        pseudo masks of training views; --mask_dir names another folder

The dataset itself has no masks of training views: they come from a 2D segmenter, one file a class, whose name is the
sentence that is trained.
"""

from __future__ import annotations

from pathlib import Path

from scene.dataset import Findings, Referral, Scene, View, sentence_id
from scene.layouts.annotations import (
    Annotations,
    Folder,
    encodable,
    frames_of,
    inside,
    load_scene,
    named_masks,
    note_other_size,
    views_by_frame,
)
from scene.readers.capture import Capture
from utils.errors import UserError

NAME = "3d-ovs"
TRAINING_MASKS = "pseudo masks of training views in {mask_dir}/<image>/<class>.png, the file name is the sentence"
FOLDER, CLASSES = "segmentations", "classes.txt"


def is_here(source: Path) -> bool:
    """Whether a scene folder has the annotations of this layout."""
    return (source / FOLDER).is_dir()


def load(source: Path, mask_dir: str = "gt_mask") -> Scene:
    """Load a scene of the 3D-OVS layout at the size of its photos; see `scene.layouts.loader.load`."""
    return load_scene(NAME, annotate, Folder(Path(source), mask_dir, False), "images", -1, False)


def annotate(folder: Folder, views: list[View], _capture: Capture, findings: Findings) -> Annotations:
    """The split and the classes: test views are those with a folder in segmentations/.

    Raises:
        UserError: if there is no list of classes, or a file is damaged.
    """
    place = folder.path / FOLDER
    classes = read_classes(place / CLASSES)
    by_frame, referrals = views_by_frame(views), {}
    for path in sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")):
        view = by_frame.get(path.name)
        if view is None:
            findings.add(f"folders of {FOLDER}/ that belong to no view", path.name)
        else:
            referrals[view.id] = tuple(_referrals(path, classes, view, findings))
    if not referrals:
        findings.add("test views missing", f"no folder of {place} is named as a photo")
    test_ids = set(referrals)
    for view in views:
        if view.id not in test_ids:
            referrals[view.id] = tuple(_training(folder, classes, view, findings))
            if not referrals[view.id]:
                kind = f"training views without pseudo masks in {folder.mask_dir}, used by the colour stage only"
                findings.add(kind, view.id, harmless=True)
    return Annotations(referrals, test_ids, f"the folders of {FOLDER}/")


def read_classes(path: Path) -> list[str]:
    """The classes of a scene, each once.

    Raises:
        UserError: if the file is missing, is no UTF-8 text or names no class.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"the list of classes {path} cannot be read ({error}). Expected UTF-8 text, one class a line, each the "
            f"name of the masks {FOLDER}/<image>/<class>.png; or choose another layout with --dataset."
        ) from None
    classes = [inside(str(path), "class", line) for line in dict.fromkeys(lines) if line]
    if not classes or not all(map(encodable, classes)):
        raise UserError(f"{path} names no class; expected one a line.")
    return classes


def _referrals(folder: Path, classes: list[str], view: View, findings: Findings) -> list[Referral]:
    """The classes that have a mask in one test view."""
    found = []
    for name in classes:
        path = folder / f"{name}.png"
        if not path.is_file():
            findings.add("classes without a mask in a test view, left out there", f"{folder.name}/{name}.png")
            continue
        with findings.attempt():
            note_other_size(path, view, findings)
            found.append(Referral(sentence_id(name, name), name, name, path))
    for path in sorted(folder.glob("*.png")):
        if path.stem not in classes and not path.name.startswith("."):
            findings.add(f"masks of classes that {CLASSES} does not name, left out", f"{folder.name}/{path.name}")
    return found


def _training(folder: Folder, classes: list[str], view: View, findings: Findings) -> list[Referral]:
    found = []
    for referral in named_masks(folder.path / folder.mask_dir, frames_of(view), findings):
        if referral.category not in classes:
            item = f"{referral.mask_path.parent.name}/{referral.mask_path.name}"
            findings.add(f"training masks of classes that {CLASSES} does not name, left out", item)
            continue
        with findings.attempt():
            note_other_size(referral.mask_path, view, findings)
            found.append(referral)
    return found
