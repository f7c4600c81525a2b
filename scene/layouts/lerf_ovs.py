"""The LERF-OVS layout: names of objects instead of sentences, polygons as ground truth.

    <root>/<scene>/images/frame_00001.jpg ...
    <root>/<scene>/sparse/0/{cameras,images,points3D}.{bin,txt}
    <root>/label/<scene>/frame_00041.json               {"info": {"width", "height", ...}, "objects": [{"category",
                                                        "segmentation": [[x, y], ...]}]}: ground truth
    <root>/<scene>/gt_mask/frame_00001/<category>.png   pseudo masks of training views; --mask_dir names another folder

The dataset itself has no masks of training views: they come from a 2D segmenter, one file an object, whose name is the
sentence that is trained. The pictures in label/<scene>/gt/ repeat the polygons and are not read.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from scene.dataset import Findings, Referral, Scene, View, sentence_id
from scene.layouts.annotations import (
    SCENE_ALIASES,
    Annotations,
    Folder,
    canonical_name,
    frames_of,
    ids_of,
    inside,
    load_scene,
    named_masks,
    note_other_size,
    published,
    shown,
    text_of,
    views_by_frame,
)
from scene.layouts.polygons import Polygons
from scene.readers.capture import Capture
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
MOST_PIXELS = 1 << 16  # of a label's width and height, and of coordinates


def is_here(source: Path) -> bool:
    """Whether labels of the scene lie beside its folder."""
    return label_folder(source) is not None


def label_folder(source: Path) -> Path | None:
    """`<root>/label/<scene>`, if it holds label files; the scene may have another of its names there."""
    source = source.resolve()
    name = canonical_name(source)
    names = [source.name, name, *(alias for alias, of in SCENE_ALIASES.items() if of == name)]
    folders = [source.parent / "label" / name for name in names]
    return next((folder for folder in folders if any(folder.glob("*.json"))), None)


def load(source: Path, mask_dir: str = "gt_mask") -> Scene:
    """Load a scene of the LERF-OVS layout at the size of its photos; see `scene.layouts.loader.load`."""
    return load_scene(NAME, annotate, Folder(Path(source), mask_dir, False), "images", -1, False)


def annotate(folder: Folder, views: list[View], _capture: Capture, findings: Findings) -> Annotations:
    """The split and the names of objects: test views are the labelled ones and the published ones.

    Raises:
        UserError: if there is no label, or a file is damaged.
    """
    labels = label_folder(folder.path)
    if labels is None:
        expected = folder.path.resolve().parent / "label" / folder.path.resolve().name
        raise UserError(
            f"{folder.path} is no scene of LERF-OVS: {expected} holds no label files (frame_00041.json). Copy the "
            "folder label of the dataset beside the scenes, or choose another layout with --dataset."
        )
    views_of, referrals, unmasked = views_by_frame(views), {}, {}
    for path in sorted(labels.glob("*.json")):
        if path.name.startswith("."):
            continue
        view = views_of.get(path.stem)
        if view is None:
            findings.add("label files that belong to no view", f"{labels.name}/{path.name}")
            continue
        referrals[view.id] = ()
        with findings.attempt():
            lost = unmasked.setdefault(view.id, set())
            referrals[view.id] = tuple(_referrals(path, view, findings, lost))
    frames = TEST_FRAMES.get(canonical_name(folder.path), ())
    held_out = ids_of(views, published([view.camera.name for view in views], frames, findings))
    for view_id in sorted(held_out - referrals.keys()):
        findings.add("published test frames without a label file, held out all the same", view_id)
    test_ids = held_out | referrals.keys()
    for view in views:
        if view.id not in test_ids:
            masks = tuple(named_masks(folder.path / folder.mask_dir, frames_of(view), findings))
            for referral in masks:
                with findings.attempt():
                    note_other_size(referral.mask_path, view, findings)
            referrals[view.id] = masks
            if not masks:
                kind = f"training views without pseudo masks in {folder.mask_dir}, used by the colour stage only"
                findings.add(kind, view.id, harmless=True)
    return Annotations(referrals, test_ids, f"the labels in label/{labels.name}", unmasked=unmasked)


def _referrals(path: Path, view: View, findings: Findings, unmasked: set[str]) -> list[Referral]:
    """The categories of one label file; polygons of one category are one object. Those without are in `unmasked`."""
    content = read_json(path, "label file")
    if not isinstance(content, dict) or not isinstance(content.get("objects"), list):
        raise UserError(
            f"{path} has no list under the key 'objects'. Expected the LERF-OVS form "
            '{"info": {"width", "height"}, "objects": [{"category": "...", "segmentation": [[x, y], ...]}]}.'
        )
    size = _size(path, content.get("info"), view)
    if size != view.source_size:
        findings.add("labels of another size than their photo, scaled", path.name, harmless=True)
    outlines: dict[str, list] = {}
    for index, entry in enumerate(content["objects"]):
        where = f"{path}: objects[{index}]"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is {shown(entry)}, expected an object with keys.")
        category = inside(where, "category", text_of(where, entry, "category").strip())
        outline = _outline(where, entry.get("segmentation"))
        if len(outline) < 3:
            findings.add("polygons of fewer than three corners, left out", f"{path.name} ({category})")
            unmasked.add(category)
        else:
            outlines.setdefault(category, []).append(outline)
    return [
        Referral(sentence_id(name, name), name, name, path, Polygons(size, tuple(of))) for name, of in outlines.items()
    ]


def _size(path: Path, info: Any, view: View) -> tuple[int, int]:
    """(width, height) of the labelled picture; that of the photo where the label does not say."""
    if not isinstance(info, dict) or info.get("width") is None or info.get("height") is None:
        return view.source_size
    size = info["width"], info["height"]
    if not all(type(n) is int and 0 < n <= MOST_PIXELS for n in size):
        raise UserError(f"{path}: info has width and height {shown(list(size))}, expected pixels of the picture.")
    return size


def _outline(where: str, points: Any) -> tuple[tuple[float, float], ...]:
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 and all(map(_is_pixel, point)) for point in points
    ):
        raise UserError(
            f"{where} has no polygon [[x, y], ...] in pixels under the key 'segmentation': {shown(points)}."
        )
    return tuple((float(x), float(y)) for x, y in points)


def _is_pixel(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= MOST_PIXELS
