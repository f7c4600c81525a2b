"""The LERF-OVS layout: object names instead of sentences, polygons as ground truth.

    <root>/<scene>/images/frame_00001.jpg ...
    <root>/<scene>/sparse/0/{cameras,images,points3D}.{bin,txt}
    <root>/label/<scene>/frame_00041.json               {"info": {"width", "height", ...}, "objects": [{"category",
                                                        "segmentation": [[x, y], ...]}]}: ground truth
    <root>/<scene>/gt_mask/frame_00001/<category>.png   pseudo masks of training views; --mask_dir names another folder

The dataset itself has no masks of training views: a 2D segmenter makes them, one file per object, and the file name is
the sentence to train on. The pictures in label/<scene>/gt/ repeat the polygons and are not read.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from scene.dataset import Polygons, Referral, Scene, sentence_id
from scene.issues import IssueLog
from scene.layouts.annotations import (
    SCENE_ALIASES,
    SceneBuilder,
    canonical_name,
    published_test_images,
    read_category,
    shorten,
)
from scene.readers.capture import PosedPhoto
from utils.errors import UserError
from utils.files import read_json

NAME = "lerf-ovs"
TRAINING_MASKS = "pseudo masks of training views in {mask_dir}/<frame>/<category>.png, the file name is the sentence"
TEST_FRAMES = {
    "ramen": (6, 24, 60, 65, 81, 119, 128),
    "figurines": (41, 105, 152, 195),
    "teatime": (2, 25, 43, 107, 129, 140),
    "waldo_kitchen": (53, 66, 89, 140, 154),
}
MAX_PIXELS = 1 << 16  # bound of a label's width, height and coordinates


def has_annotations(source: Path) -> bool:
    """Whether labels of the scene lie beside its folder."""
    return _label_folder(source) is not None


def _label_folder(source: Path) -> Path | None:
    """Find `<root>/label/<scene>` with label files; the scene may have another of its names there."""
    source = source.resolve()
    name = canonical_name(source)
    names = [source.name, name, *(alias for alias, canonical in SCENE_ALIASES.items() if canonical == name)]
    folders = [source.parent / "label" / name for name in names]
    return next((folder for folder in folders if any(folder.glob("*.json"))), None)


def load(
    source: Path,
    images: str = "images",
    resolution: int = -1,
    mask_dir: str = "gt_mask",
    eval: bool = False,  # has no effect: the labels decide on the split
    white_background: bool = False,
    issues: IssueLog | None = None,
) -> Scene:
    """Load a LERF-OVS scene, see `scene.layouts.loader.load`; test views are the labelled and published ones."""
    builder = SceneBuilder(NAME, source, images, resolution, white_background, issues)
    source, issues, referrals = builder.source, builder.issues, builder.referrals
    labels = _label_folder(source)
    if labels is None:
        expected = source.resolve().parent / "label" / source.resolve().name
        raise UserError(
            f"{source} is no scene of LERF-OVS: {expected} holds no label files (frame_00041.json). Copy the "
            "folder label of the dataset beside the scenes, or choose another layout with --dataset."
        )
    for path in sorted(labels.glob("*.json")):
        if path.name.startswith("."):
            continue
        photo = builder.photos_by_frame.get(path.stem)
        if photo is None:
            issues.add("label files that belong to no view", f"{labels.name}/{path.name}")
            continue
        referrals[photo.id], builder.unmasked[photo.id] = (), set()
        with issues.collect_errors():
            referrals[photo.id] = tuple(_read_label(path, photo, builder.unmasked[photo.id], issues))
    published = published_test_images(builder.names, TEST_FRAMES.get(canonical_name(source), ()), issues)
    for photo in builder.photos:
        if photo.camera.name in published and photo.id not in referrals:
            issues.add("published test frames without a label file, held out all the same", photo.id)
            referrals[photo.id] = ()
    test_ids = set(referrals)
    builder.add_pseudo_masks(mask_dir)
    return builder.build(test_ids, f"the labels in label/{labels.name}")


def _read_label(path: Path, photo: PosedPhoto, unmasked: set[str], issues: IssueLog) -> list[Referral]:
    """Read the objects of one label file; polygons of one category are one object.

    Categories with a polygon of fewer than three corners are added to `unmasked`.
    """
    content = read_json(path, "label file")
    if not isinstance(content, dict) or not isinstance(content.get("objects"), list):
        raise UserError(
            f"{path} has no list under the key 'objects'. Expected the LERF-OVS form "
            '{"info": {"width", "height"}, "objects": [{"category": "...", "segmentation": [[x, y], ...]}]}.'
        )
    size = _size(path, content.get("info"), photo)
    if size != photo.size:
        issues.add("labels of another size than their photo, scaled", path.name, harmless=True)
    outlines: dict[str, list] = {}
    for index, entry in enumerate(content["objects"]):
        where = f"{path}: objects[{index}]"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is {shorten(entry)}, expected an object with keys.")
        category = read_category(where, entry)
        outline = _outline(where, entry.get("segmentation"))
        if len(outline) < 3:
            issues.add("polygons of fewer than three corners, left out", f"{path.name} ({category})")
            unmasked.add(category)
        else:
            outlines.setdefault(category, []).append(outline)
    return [
        Referral(sentence_id(name, name), name, name, path, Polygons(size, tuple(polygons)))
        for name, polygons in outlines.items()
    ]


def _size(path: Path, info: Any, photo: PosedPhoto) -> tuple[int, int]:
    """(width, height) of the labelled picture; the photo's where the label does not say."""
    if not isinstance(info, dict) or info.get("width") is None or info.get("height") is None:
        return photo.size
    size = info["width"], info["height"]
    if not all(type(n) is int and 0 < n <= MAX_PIXELS for n in size):
        raise UserError(f"{path}: info has width and height {shorten(list(size))}, expected pixels of the picture.")
    return size


def _outline(where: str, points: Any) -> tuple[tuple[float, float], ...]:
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 and all(map(_is_pixel, point)) for point in points
    ):
        raise UserError(
            f"{where} has no polygon [[x, y], ...] in pixels under the key 'segmentation': {shorten(points)}."
        )
    return tuple((float(x), float(y)) for x, y in points)


def _is_pixel(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= MAX_PIXELS
