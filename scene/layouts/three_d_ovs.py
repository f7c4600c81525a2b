"""The 3D-OVS layout: class names instead of sentences, masks as ground truth.

    <scene>/images/00.jpg ...
    <scene>/sparse/0/{cameras,images,points3D}.{bin,txt}
    <scene>/segmentations/classes.txt                   one class per line
    <scene>/segmentations/<test image>/<class>.png      ground truth; the folder has the image's name without suffix
    <scene>/gt_mask/<training image>/<class>.png        pseudo masks of training views; --mask_dir names another folder

The dataset itself has no masks of training views: a 2D segmenter makes them, one file per class, and the file name is
the sentence to train on.
"""

from __future__ import annotations

from pathlib import Path

from scene.dataset import Referral, Scene, sentence_id
from scene.issues import IssueLog
from scene.layouts.annotations import SceneBuilder, check_mask_size, is_encodable, safe_name
from scene.readers.capture import PosedPhoto
from utils.errors import UserError

NAME = "3d-ovs"
TRAINING_MASKS = "pseudo masks of training views in {mask_dir}/<image>/<class>.png, the file name is the sentence"
FOLDER, CLASSES = "segmentations", "classes.txt"


def has_annotations(source: Path) -> bool:
    """Whether a scene folder has the annotations of this layout."""
    return (source / FOLDER).is_dir()


def load(
    source: Path,
    images: str = "images",
    resolution: int = -1,
    mask_dir: str = "gt_mask",
    eval: bool = False,  # has no effect: segmentations/ decides on the split
    white_background: bool = False,
    issues: IssueLog | None = None,
) -> Scene:
    """Load a 3D-OVS scene, see `scene.layouts.loader.load`; test views have a folder in segmentations/."""
    builder = SceneBuilder(NAME, source, images, resolution, white_background, issues)
    place, issues = builder.source / FOLDER, builder.issues
    classes = _read_classes(place / CLASSES)
    for folder in sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")):
        photo = builder.photos_by_frame.get(folder.name)
        if photo is None:
            issues.add(f"folders of {FOLDER}/ that belong to no view", folder.name)
        else:
            builder.referrals[photo.id] = tuple(_read_masks(folder, classes, photo, issues))
    test_ids = set(builder.referrals)
    if not test_ids:
        issues.add("test views missing", f"no folder of {place} is named as a photo")
    builder.add_pseudo_masks(mask_dir, classes)
    return builder.build(test_ids, f"the folders of {FOLDER}/")


def _read_classes(path: Path) -> list[str]:
    """The classes of a scene, each once. Raises UserError if the file is missing, not UTF-8 text or names no class."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"the list of classes {path} cannot be read ({error}). Expected UTF-8 text, one class per line, each the "
            f"name of the masks {FOLDER}/<image>/<class>.png; or choose another layout with --dataset."
        ) from None
    classes = [safe_name(str(path), "class", line) for line in dict.fromkeys(lines) if line]
    if not classes or not all(map(is_encodable, classes)):
        raise UserError(f"{path} names no class; expected one per line.")
    return classes


def _read_masks(folder: Path, classes: list[str], photo: PosedPhoto, issues: IssueLog) -> list[Referral]:
    """The classes that have a mask in one test view."""
    found = []
    for name in classes:
        path = folder / f"{name}.png"
        if not path.is_file():
            issues.add("classes without a mask in a test view, left out there", f"{folder.name}/{name}.png")
            continue
        with issues.collect_errors():
            check_mask_size(path, photo, issues)
            found.append(Referral(sentence_id(name, name), name, name, path))
    for path in sorted(folder.glob("*.png")):
        if path.stem not in classes and not path.name.startswith("."):
            issues.add(f"masks of classes that {CLASSES} does not name, left out", f"{folder.name}/{path.name}")
    return found
