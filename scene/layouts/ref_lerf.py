"""The Ref-LERF layout, with the variants that are in circulation.

    <scene>/images/frame_00001.jpg ...                  -i names another folder
    <scene>/sparse/0/{cameras,images,points3D}.{bin,txt}    or the transforms.json of scene/readers/capture.py
    <scene>/json/train_json/frame_00001.json            or json/frame_00001.json for every frame
    <scene>/json/test_json/frame_00006.json
    <scene>/gt_mask/frame_00006/<category>.png          --mask_dir names another folder for the training masks
    <scene>/mask/...                                    test masks in some downloads

Training masks come from `mask_dir` alone. Test masks come from gt_mask, else mask, and only where neither folder is
there from `mask_dir`: the ground truth must not change with the pseudo masks that a run trains on. A file
confidence.json among the training masks says how far each of them is to be believed (scene/layouts/mask_confidence.py).

Without json/ a scene still loads, for the colour stage.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scene.dataset import Findings, Referral, Scene, View, first_five, sentence_id
from scene.layouts.annotations import (
    Annotations,
    Folder,
    by_frame,
    canonical_name,
    encodable,
    ids_of,
    inside,
    load_scene,
    note_other_size,
    published,
    shown,
    text_of,
    views_by_frame,
)
from scene.layouts.mask_confidence import read_confidences
from scene.readers.capture import Capture
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
TEST_EVERY = 8  # of the views sorted by name, with --eval
_NO_MASK = "objects left out, as their mask is not in"


def has_test_views(source: Path) -> bool:
    """Whether JSON files may be those of test views: in json/test_json, or in json/ for every frame."""
    train, test = json_files(source)
    return bool(test) or bool(train) and not (source / "json/train_json").is_dir()


@dataclass(frozen=True)
class Annotation:
    """One object of a JSON file.

    Attributes:
        category: its name.
        segmentation: its mask file, relative to the mask folder.
        sentences: as they stand there, stripped: some may be empty or repeated.
    """

    category: str
    segmentation: str
    sentences: tuple[str, ...]


def is_here(source: Path) -> bool:
    """Whether a scene folder has the annotations of this layout."""
    return (source / "json").is_dir()


def load(
    source: Path,
    images: str = "images",
    resolution: int = -1,
    mask_dir: str = "gt_mask",
    eval: bool = False,
    white_background: bool = False,
) -> Scene:
    """Load a Ref-LERF scene, or one without sentences for the colour stage; see `scene.layouts.loader.load`."""
    return load_scene(NAME, annotate, Folder(Path(source), mask_dir, eval), images, resolution, white_background)


def annotate(folder: Folder, views: list[View], capture: Capture, findings: Findings) -> Annotations:
    """The split and the sentences.

    The split is that of json/test_json where it exists; else that of the transforms files; else the published
    frames of the four scenes, by folder name; else every 8th view, of a scene with sentences and 8 views or with
    `eval`; else there is no test view. A frame that is named in both JSON folders is a test view, and its training
    sentences are left out.

    Raises:
        UserError: if a file is damaged or a name climbs out of its folder.
    """
    source = folder.path
    train_files, test_files = json_files(source)
    every_8th = folder.eval or (bool(train_files) and len(views) >= TEST_EVERY)
    names = [view.camera.name for view in views]
    test_names, split_rule = split(source, names, test_files, capture, every_8th, findings)
    test_ids, views_of = ids_of(views, test_names), views_by_frame(views)
    train_masks = [source / folder.mask_dir]
    test_masks = [place for name in ("gt_mask", "mask") if (place := source / name).is_dir()] or train_masks
    confidences = read_confidences(source / folder.mask_dir)

    referrals: dict[str, tuple[Referral, ...]] = {}
    unmasked: dict[str, set[str]] = {}
    for path, frame, for_test in [
        *((path, frame, True) for frame, path in test_files.items()),
        *((path, frame, False) for frame, path in train_files.items()),
    ]:
        view = views_of.get(frame)
        if view is None:
            findings.add("JSON files that belong to no view", str(path.relative_to(source)))
        elif view.id in referrals:
            findings.add("JSON files left out, as their frame has one already", str(path.relative_to(source)))
        else:
            is_test = for_test or view.id in test_ids
            referrals[view.id] = ()
            with findings.attempt():
                masks, believed = (test_masks, {}) if is_test else (train_masks, confidences)
                lost = unmasked.setdefault(view.id, set())
                referrals[view.id] = tuple(_referrals(path, frame, view, masks, believed, findings, lost))
    if train_files or test_files:
        for view in views:
            if view.id not in referrals:
                if view.id in test_ids:
                    findings.add("test views without a JSON file, held out but without a sentence to evaluate", view.id)
                else:
                    findings.add("views without a JSON file, used by the colour stage only", view.id, harmless=True)
    refusal = _refusal(source, folder.mask_dir, referrals, findings)
    return Annotations(referrals, test_ids, split_rule, refusal, unmasked)


def json_files(source: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """(training, test) JSON files by frame: the path below their folder without suffix."""
    folder = source / "json"
    train, test = folder / "train_json", folder / "test_json"
    if train.is_dir():
        return _json_below(train, recursive=True), _json_below(test, recursive=True)
    return _json_below(folder, recursive=False), _json_below(test, recursive=True)


def _json_below(folder: Path, recursive: bool) -> dict[str, Path]:
    found = sorted(folder.glob("**/*.json" if recursive else "*.json"))
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in found
        if not path.name.startswith(".")  # such as the "._" files of macOS archives
    }


def split(
    source: Path,
    names: list[str],
    test_files: dict[str, Path],
    capture: Capture,
    every_8th: bool,
    findings: Findings,
) -> tuple[set[str], str]:
    """Names of the test images, of all names in order, and the rule that chose them."""
    if test_files:
        named = by_frame(names)
        return {named[frame] for frame in test_files if frame in named}, "json/test_json"
    if capture.test_names is not None:
        return {name for name in names if name in capture.test_names}, "the transforms files"
    scene = canonical_name(source)
    chosen = published(names, TEST_FRAMES.get(scene, ()), findings)
    if chosen:
        return chosen, f"the published test frames of {scene}"
    if every_8th:
        return set(names[::TEST_EVERY]), f"every {TEST_EVERY}th view"
    return set(), "no rule: every view trains (--eval holds out every 8th)"


def _referrals(
    path: Path,
    frame: str,
    view: View,
    folders: list[Path],
    confidences: dict[str, float],
    findings: Findings,
    unmasked: set[str],
) -> Iterator[Referral]:
    """The sentences of one JSON file, without repetitions, empty ones, and those whose mask is in no folder.

    The objects of these are added to `unmasked`.
    """
    seen = set()
    for entry in objects_of(path):
        category, segmentation = entry.category, entry.segmentation
        mask = next((folder / segmentation for folder in folders if os.path.isfile(folder / segmentation)), None)
        if mask is None:
            findings.add(f"{_NO_MASK} {_names(folders)}", segmentation)
            unmasked.add(category)
            continue
        with findings.attempt():
            note_other_size(mask, view, findings)
        for sentence in entry.sentences:
            identity = sentence_id(category, sentence)
            if not sentence:
                findings.add("empty sentences, left out", f"{frame} ({category})")
            elif identity in seen:
                findings.add("sentences repeated in their frame, counted once", f"{frame} ({category})")
            else:
                seen.add(identity)
                confidence = confidences.get(segmentation, 1.0)
                yield Referral(identity, category, sentence, mask, confidence=confidence)


def objects_of(path: Path) -> Iterator[Annotation]:
    """The objects of the JSON file of a view.

    Raises:
        UserError: if the file is damaged, or a name climbs out of its folder.
    """
    for index, entry in enumerate(_entries(path)):
        where = f"{path}: object[{index}]"
        category = inside(where, "category", text_of(where, entry, "category").strip())
        segmentation = inside(where, "segmentation", text_of(where, entry, "segmentation"))
        yield Annotation(category, segmentation, tuple(_sentences(where, entry)))


def mask_names(source: Path, views: list[View]) -> dict[str, dict[str, list[str]]]:
    """Mask files that the JSON files name for training views, whether they exist or not.

    Returns:
        View id -> category -> paths relative to the folder of the masks; only views that have a JSON file.

    Raises:
        UserError: if a JSON file is damaged, or a name climbs out of its folder.
    """
    views_of, named = views_by_frame(views), {}
    for frame, path in json_files(Path(source))[0].items():
        view = views_of.get(frame)
        if view is None or view.id in named:
            continue
        named[view.id] = {}
        for entry in objects_of(path):
            files = named[view.id].setdefault(entry.category, [])
            if entry.segmentation not in files:
                files.append(entry.segmentation)
    return named


def read_sentences(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """The objects of a whole scene: (category, its distinct sentences), from {"object": [{"category", "sentence"}]}.

    Raises:
        UserError: if the file is damaged, a category is no file name or named twice, or has no sentence.
    """
    objects: dict[str, tuple[str, ...]] = {}
    for index, entry in enumerate(_entries(path)):
        where = f"{path}: object[{index}]"
        category = inside(where, "category", text_of(where, entry, "category").strip())
        sentences = tuple(dict.fromkeys(sentence for sentence in _sentences(where, entry) if sentence))
        if category.casefold() in map(str.casefold, objects):
            raise UserError(f"{where}: the category {category!r} is there already; put its sentences together.")
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
            raise UserError(f"{path}: object[{index}] is {shown(entry)}, expected an object with keys.")
    return content["object"]


def _sentences(where: str, entry: dict[str, Any]) -> list[str]:
    values = entry.get("sentence")
    if not isinstance(values, list) or not all(isinstance(v, str) and encodable(v) for v in values):
        found = shown(values) if "sentence" in entry else f"only the keys {', '.join(map(repr, entry))[:200]}"
        raise UserError(
            f"{where} has no list of texts under the key 'sentence': found {found}. Mend or remove the file."
        )
    return [value.strip() for value in values]


def _names(folders: list[Path]) -> str:
    return ", ".join(dict.fromkeys(folder.name for folder in folders))


def _refusal(source: Path, mask_dir: str, referrals: dict[str, tuple], findings: Findings) -> str | None:
    lost = [item for kind, items in findings.items.items() if kind.startswith(_NO_MASK) for item in items]
    if not lost or any(referrals.values()):
        return None
    return (
        f"{source}: no object of the JSON files has a mask in {mask_dir}, gt_mask or mask: "
        f"{first_five(lost)}. Put the masks there, or name their folder with --mask_dir."
    )
