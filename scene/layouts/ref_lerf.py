"""The Ref-LERF layout, in all the variants in circulation.

    <scene>/images/frame_00001.jpg ...                  -i names another folder
    <scene>/sparse/0/{cameras,images,points3D}.{bin,txt}    or the transforms.json of scene/readers/capture.py
    <scene>/json/train_json/frame_00001.json            or json/frame_00001.json for every frame
    <scene>/json/test_json/frame_00006.json
    <scene>/gt_mask/frame_00006/<category>.png          --mask_dir names another folder for the training masks
    <scene>/mask/...                                    test masks in some downloads

Training masks come from `mask_dir` alone. Test masks come from gt_mask or mask, and from `mask_dir` only where neither
folder exists: the ground truth must not change with the pseudo masks that a run trains on. A file confidence.json among
the training masks weighs each of them in the loss (scene/layouts/mask_confidence.py).

Without json/ a scene still loads, for the RGB stage.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scene.dataset import Referral, Scene, View, sentence_id
from scene.issues import IssueLog, first_five
from scene.layouts.annotations import (
    SceneBuilder,
    canonical_name,
    check_mask_size,
    describe_value,
    images_by_frame,
    is_encodable,
    published_test_images,
    read_category,
    required_text,
    safe_name,
    shorten,
)
from scene.layouts.mask_confidence import read_confidences
from scene.readers.capture import PosedPhoto
from scene.readers.colmap_model import Capture
from utils.errors import UserError
from utils.files import read_json

NAME = "ref-lerf"
TRAINING_MASKS = "objects and sentences in json/train_json/<frame>.json, masks in {mask_dir}/<frame>/<category>.png"
TEST_FRAMES = {
    "ramen": (6, 24, 60, 65, 81, 119, 128),
    "figurines": (83, 97, 146, 179),
    "teatime": (2, 25, 43, 107, 129, 140),
    "waldo_kitchen": (19, 35, 67, 105, 162),
}
TEST_EVERY = 8  # with --eval, every 8th view in the order of names
_NO_MASK = "objects left out, as their mask is not in"


def has_test_views(source: Path) -> bool:
    """Whether there can be JSON files of test views: in json/test_json, or in json/ for every frame."""
    train, test = json_files(source)
    return bool(test) or bool(train) and not (source / "json/train_json").is_dir()


@dataclass(frozen=True)
class Annotation:
    """One object of a JSON file."""

    category: str
    segmentation: str  # mask file, relative to the mask folder
    sentences: tuple[str, ...]  # stripped; some may be empty or repeated


def has_annotations(source: Path) -> bool:
    """Whether a scene folder has the annotations of this layout."""
    return (source / "json").is_dir()


def load(
    source: Path,
    images: str = "images",
    resolution: int = -1,
    mask_dir: str = "gt_mask",
    eval: bool = False,
    white_background: bool = False,
    issues: IssueLog | None = None,
) -> Scene:
    """Load a Ref-LERF scene, or one without sentences for the RGB stage; see `scene.layouts.loader.load`.

    `split` chooses the test views; every 8th view is held out of a scene with sentences and 8 views, or with `eval`.
    A frame with a JSON file in both folders is a test view, and its training sentences are left out.
    """
    builder = SceneBuilder(NAME, source, images, resolution, white_background, issues)
    source, issues, referrals = builder.source, builder.issues, builder.referrals
    train_files, test_files = json_files(source)
    every_8th = eval or (bool(train_files) and len(builder.photos) >= TEST_EVERY)
    test_names, split_rule = split(source, builder.names, test_files, builder.capture, every_8th, issues)
    test_ids = {photo.id for photo in builder.photos if photo.camera.name in test_names}
    train_masks = [source / mask_dir]
    test_masks = [folder for folder in (source / "gt_mask", source / "mask") if folder.is_dir()] or train_masks
    confidences = read_confidences(source / mask_dir)
    for frame, path in [*test_files.items(), *train_files.items()]:
        photo = builder.photos_by_frame.get(frame)
        if photo is None:
            issues.add("JSON files that belong to no view", str(path.relative_to(source)))
        elif photo.id in referrals:
            issues.add("JSON files left out, as their frame has one already", str(path.relative_to(source)))
        else:
            masks, weights = (test_masks, {}) if photo.id in test_ids else (train_masks, confidences)
            referrals[photo.id], builder.unmasked[photo.id] = (), set()
            with issues.collect_errors():
                referrals[photo.id] = tuple(_read_referrals(builder, photo, path, frame, masks, weights))
    for photo in builder.photos if train_files or test_files else ():
        if photo.id in referrals:
            continue
        if photo.id in test_ids:
            issues.add("test views without a JSON file, held out but without a sentence to evaluate", photo.id)
        else:
            issues.add("views without a JSON file, used by the RGB stage only", photo.id, harmless=True)
    scene = builder.build(test_ids, split_rule)
    missing = [item for kind, items in issues.items.items() if kind.startswith(_NO_MASK) for item in items]
    if missing and not any(referrals.values()):
        issues.refuse(
            f"{source}: no object of the JSON files has a mask in {mask_dir}, gt_mask or mask: "
            f"{first_five(missing)}. Put the masks there, or name their folder with --mask_dir."
        )
    return scene


def json_files(source: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Find the (training, test) JSON files by frame: their path below the folder, without suffix."""
    folder = source / "json"
    train, test = folder / "train_json", folder / "test_json"
    if train.is_dir():
        return _json_below(train, recursive=True), _json_below(test, recursive=True)
    return _json_below(folder, recursive=False), _json_below(test, recursive=True)


def _json_below(folder: Path, recursive: bool) -> dict[str, Path]:
    found = sorted(folder.glob("**/*.json" if recursive else "*.json"))
    found = [path for path in found if not path.name.startswith(".")]  # such as the "._" files of macOS archives
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def split(
    source: Path, names: list[str], test_files: dict[str, Path], capture: Capture, every_8th: bool, issues: IssueLog
) -> tuple[set[str], str]:
    """Choose (names of the test images, the rule in words) by the first rule that applies.

    The rules: json/test_json; the transforms files; the published frames of the four scenes, by folder name; every
    8th image in order if `every_8th`; no test image.
    """
    if test_files:
        by_frame = images_by_frame(names)
        return {by_frame[frame] for frame in test_files if frame in by_frame}, "json/test_json"
    if capture.test_names is not None:
        return {name for name in names if name in capture.test_names}, "the transforms files"
    scene = canonical_name(source)
    published = published_test_images(names, TEST_FRAMES.get(scene, ()), issues)
    if published:
        return published, f"the published test frames of {scene}"
    if every_8th:
        return set(names[::TEST_EVERY]), f"every {TEST_EVERY}th view"
    return set(), "no rule: every view trains (--eval holds out every 8th)"


def _read_referrals(
    builder: SceneBuilder, photo: PosedPhoto, path: Path, frame: str, folders: list[Path], confidences: dict[str, float]
) -> Iterator[Referral]:
    """Read the sentences of one JSON file, without empty and repeated ones.

    Objects whose mask is in none of `folders` are left out and added to `builder.unmasked`.
    """
    seen, issues = set(), builder.issues
    for entry in read_objects(path):
        category, segmentation = entry.category, entry.segmentation
        mask = next((folder / segmentation for folder in folders if os.path.isfile(folder / segmentation)), None)
        if mask is None:
            places = ", ".join(dict.fromkeys(folder.name for folder in folders))
            issues.add(f"{_NO_MASK} {places}", segmentation)
            builder.unmasked[photo.id].add(category)
            continue
        with issues.collect_errors():
            check_mask_size(mask, photo, issues)
        for sentence in entry.sentences:
            identity = sentence_id(category, sentence)
            if not sentence:
                issues.add("empty sentences, left out", f"{frame} ({category})")
            elif identity in seen:
                issues.add("sentences repeated in their frame, counted once", f"{frame} ({category})")
            else:
                seen.add(identity)
                confidence = confidences.get(segmentation, 1.0)
                yield Referral(identity, category, sentence, mask, confidence=confidence)


def read_objects(path: Path) -> Iterator[Annotation]:
    """Read the objects of one JSON file. Raises UserError if the file is damaged, or a name leads out of its folder."""
    for index, entry in enumerate(_entries(path)):
        where = f"{path}: object[{index}]"
        category = read_category(where, entry)
        segmentation = safe_name(where, "segmentation", required_text(where, entry, "segmentation"))
        yield Annotation(category, segmentation, tuple(_sentences(where, entry)))


def mask_names(source: Path, views: list[View]) -> dict[str, dict[str, list[str]]]:
    """List the mask files that the JSON files name for training views, whether they exist or not.

    Returns:
        View id -> category -> paths relative to the folder of the masks; only views that have a JSON file.
    """
    ids = {view.camera.name: view.id for view in views}
    by_frame = {frame: ids[name] for frame, name in images_by_frame(ids).items()}
    named: dict[str, dict[str, list[str]]] = {}
    for frame, path in json_files(source)[0].items():
        if frame not in by_frame or by_frame[frame] in named:
            continue
        categories = named[by_frame[frame]] = {}
        for entry in read_objects(path):
            files = categories.setdefault(entry.category, [])
            if entry.segmentation not in files:
                files.append(entry.segmentation)
    return named


def read_sentences(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Read the objects of a whole scene from {"object": [{"category", "sentence"}]}: (category, distinct sentences).

    Raises:
        UserError: if the file is damaged, a category is not a file name or named twice, or has no sentence.
    """
    objects: dict[str, tuple[str, ...]] = {}
    for index, entry in enumerate(_entries(path)):
        where = f"{path}: object[{index}]"
        category = read_category(where, entry)
        sentences = tuple(dict.fromkeys(sentence for sentence in _sentences(where, entry) if sentence))
        if category.casefold() in map(str.casefold, objects):
            raise UserError(f"{where}: the category {category!r} appears twice; put its sentences together.")
        if not sentences:
            raise UserError(f"{where}: the object {category!r} has no sentence. Add one, or remove the object.")
        objects[category] = sentences
    if not objects:
        raise UserError(f'{path} names no object. Expected {{"object": [{{"category": "...", "sentence": ["..."]}}]}}.')
    return list(objects.items())


def _entries(path: Path) -> list[dict[str, Any]]:
    content = read_json(path, "annotation file")
    if not isinstance(content, dict) or not isinstance(content.get("object"), list):
        raise UserError(
            f"{path} has no list under the key 'object'. Expected the Ref-LERF form "
            '{"object": [{"category": "...", "segmentation": "frame/category.png", "sentence": ["..."]}]}.'
        )
    for index, entry in enumerate(content["object"]):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: object[{index}] is {shorten(entry)}, expected an object with keys.")
    return content["object"]


def _sentences(where: str, entry: dict[str, Any]) -> list[str]:
    values = entry.get("sentence")
    if not isinstance(values, list) or not all(isinstance(v, str) and is_encodable(v) for v in values):
        found = describe_value(entry, "sentence")
        raise UserError(
            f"{where} has no list of texts under the key 'sentence': found {found}. Correct or remove the file."
        )
    return [value.strip() for value in values]
