"""The Ref-LERF layout, with the variants that are in circulation.

    <scene>/images/frame_00001.jpg ...                  -i names another folder
    <scene>/sparse/0/{cameras,images,points3D}.{bin,txt}    or the transforms.json of scene/capture.py
    <scene>/json/train_json/frame_00001.json            or json/frame_00001.json for every frame
    <scene>/json/test_json/frame_00006.json
    <scene>/gt_mask/frame_00006/<category>.png          --mask_dir names another folder for the training masks
    <scene>/mask/...                                    test masks in some downloads

Training masks come from `mask_dir` alone. Test masks come from gt_mask, else mask, else `mask_dir`: the ground truth
must not change with the pseudo masks that a run trains on. A file confidence.json among the training masks says how far
each of them is to be believed (scene/mask_confidence.py).

Without json/ a scene still loads, for the colour stage.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from scene.capture import Capture
from scene.colmap_model import has_control_character
from scene.dataset import Findings, Referral, Scene, View, first_five, log, open_views, sentence_id
from scene.image_files import image_size
from scene.mask_confidence import read_confidences
from utils.errors import UserError
from utils.files import read_json

TEST_FRAMES = {
    "ramen": (6, 24, 60, 65, 81, 119, 128),
    "figurines": (83, 97, 146, 179),
    "teatime": (2, 25, 43, 107, 129, 140),
    "waldo_kitchen": (19, 35, 67, 105, 162),
}
SCENE_ALIASES = {"waldo": "waldo_kitchen", "kitchen": "waldo_kitchen"}
TEST_EVERY = 8  # of the views sorted by name, with --eval
_NO_MASK = "objects left out, as their mask is not in"
_FRAME = re.compile(r"frame_0*(\d{1,9})")


def load(
    source: Path,
    images: str = "images",
    resolution: int = -1,
    mask_dir: str = "gt_mask",
    eval: bool = False,
    white_background: bool = False,
) -> Scene:
    """Load a scene of the Ref-LERF layout.

    The split is that of json/test_json where it exists; else that of the transforms files; else the published
    frames of the four scenes, by folder name; else every 8th view, of a scene with sentences and 8 views or with
    `eval`; else there is no test view. A frame that is named in both JSON folders is a test view, and its training
    sentences are left out.

    Args:
        source: the scene's folder.
        images: the image folder, relative to `source`.
        resolution: the flag `-r`, see `scene.cameras.target_size`.
        mask_dir: the folder of the training masks, relative to `source`.
        eval: hold out every 8th view of a scene without sentences or with few views, too.
        white_background: white instead of black behind transparent pixels of photos.

    Returns:
        The scene; faults that leave something to work with are counted in the log (logger "refersplat").

    Raises:
        UserError: if a file is damaged, a name climbs out of its folder, or nothing is left to work with.
    """
    source = Path(source)
    findings = Findings()
    views, capture = open_views(source, images, resolution, findings, 255 if white_background else 0)
    train_files, test_files = _json_files(source)
    every_8th = eval or (bool(train_files) and len(views) >= TEST_EVERY)
    test_ids, split_rule = _split(source, views, test_files, capture, every_8th)
    by_frame = _views_by_frame(views)
    train_masks = [source / mask_dir]
    test_masks = [source / "gt_mask", source / "mask", source / mask_dir]
    confidences = read_confidences(source / mask_dir)

    referrals: dict[str, tuple[Referral, ...]] = {}
    for path, frame, for_test in [
        *((path, frame, True) for frame, path in test_files.items()),
        *((path, frame, False) for frame, path in train_files.items()),
    ]:
        view = by_frame.get(frame)
        if view is None:
            findings.add("JSON files that belong to no view", str(path.relative_to(source)))
        elif view.id in referrals:
            findings.add("JSON files left out, as their frame has one already", str(path.relative_to(source)))
        else:
            is_test = for_test or view.id in test_ids
            folders = test_masks if is_test else train_masks
            believed = {} if is_test else confidences
            referrals[view.id] = tuple(_referrals(path, frame, view, folders, believed, findings))
    if train_files or test_files:
        for view in views:
            if view.id not in referrals:
                findings.add("views without a JSON file, used by the colour stage only", view.id)
    findings.log()

    views = [replace(view, referrals=referrals.get(view.id, ())) for view in views]
    train = [view for view in views if view.id not in test_ids]
    test = [view for view in views if view.id in test_ids]
    _require_something(source, mask_dir, train, referrals, findings)
    log.info(
        "%s: %d training and %d test views (split by %s), %d training and %d test pairs of view and sentence",
        source.resolve().name,
        len(train),
        len(test),
        split_rule,
        sum(len(view.referrals) for view in train),
        sum(len(view.referrals) for view in test),
    )
    return Scene(source.resolve().name, source, train, test, split_rule, capture.read_points)


def _json_files(source: Path) -> tuple[dict[str, Path], dict[str, Path]]:
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


def _views_by_frame(views: list[View]) -> dict[str, View]:
    """Views by image name without suffix, and by the last part of it where that is unique."""
    by_frame: dict[str, View | None] = {}
    for view in views:
        base = PurePosixPath(view.camera.name).stem
        by_frame[base] = None if base in by_frame else view
    unique = {base: view for base, view in by_frame.items() if view is not None}
    return unique | {PurePosixPath(view.camera.name).with_suffix("").as_posix(): view for view in views}


def _split(
    source: Path, views: list[View], test_files: dict[str, Path], capture: Capture, every_8th: bool
) -> tuple[set[str], str]:
    """Ids of the test views and the rule that chose them."""
    if test_files:
        by_frame = _views_by_frame(views)
        return {by_frame[frame].id for frame in test_files if frame in by_frame}, "json/test_json"
    if capture.test_names is not None:
        return {view.id for view in views if view.camera.name in capture.test_names}, "the transforms files"
    name = source.resolve().name.lower()
    frames = TEST_FRAMES.get(SCENE_ALIASES.get(name, name), ())
    chosen = {view.id for view in views if _frame_number(view) in frames}
    if chosen:
        return chosen, f"the published test frames of {SCENE_ALIASES.get(name, name)}"
    if every_8th:
        return {view.id for view in views[::TEST_EVERY]}, f"every {TEST_EVERY}th view"
    return set(), "no rule: every view trains (--eval holds out every 8th)"


def _frame_number(view: View) -> int | None:
    match = _FRAME.fullmatch(PurePosixPath(view.camera.name).stem)
    return int(match[1]) if match else None


def _referrals(
    path: Path, frame: str, view: View, folders: list[Path], confidences: dict[str, float], findings: Findings
) -> Iterator[Referral]:
    """The sentences of one JSON file, without repetitions, empty ones, and those whose mask is in no folder."""
    seen = set()
    for where, entry in _entries(path):
        category, segmentation = _names_of(where, entry)
        sentences = _sentences(where, entry)
        mask = next((folder / segmentation for folder in folders if os.path.isfile(folder / segmentation)), None)
        if mask is None:
            findings.add(f"{_NO_MASK} {_names(folders)}", segmentation)
            continue
        if image_size(mask) != view.source_size:
            findings.add("masks of another size than their image, resized", segmentation)
        for sentence in sentences:
            identity = sentence_id(category, sentence)
            if not sentence:
                findings.add("empty sentences, left out", f"{frame} ({category})")
            elif identity in seen:
                findings.add("sentences repeated in their frame, counted once", f"{frame} ({category})")
            else:
                seen.add(identity)
                yield Referral(identity, category, sentence, mask, confidences.get(segmentation, 1.0))


def named_masks(source: Path, views: list[View]) -> dict[str, dict[str, list[str]]]:
    """Mask files that the JSON files name for training views, whether they exist or not.

    Returns:
        View id -> category -> paths relative to the folder of the masks; only views that have a JSON file.

    Raises:
        UserError: if a JSON file is damaged, or a name climbs out of its folder.
    """
    by_frame, named = _views_by_frame(views), {}
    for frame, path in _json_files(Path(source))[0].items():
        view = by_frame.get(frame)
        if view is None or view.id in named:
            continue
        named[view.id] = {}
        for where, entry in _entries(path):
            category, segmentation = _names_of(where, entry)
            files = named[view.id].setdefault(category, [])
            if segmentation not in files:
                files.append(segmentation)
    return named


def _names_of(where: str, entry: dict[str, Any]) -> tuple[str, str]:
    """Category and mask file of an object."""
    category = _inside(where, "category", _text(where, entry, "category").strip())
    return category, _inside(where, "segmentation", _text(where, entry, "segmentation"))


def _entries(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a JSON file, each with the place it stands at."""
    content = read_json(path, "annotation file")
    if not isinstance(content, dict) or not isinstance(content.get("object"), list):
        raise UserError(
            f"{path} has no list under the key 'object'. Expected the Ref-LERF form "
            '{"object": [{"category": "...", "segmentation": "frame/category.png", "sentence": ["..."]}]}.'
        )
    for index, entry in enumerate(content["object"]):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: object[{index}] is {_shown(entry)}, expected an object with keys.")
    return [(f"{path}: object[{index}]", entry) for index, entry in enumerate(content["object"])]


def _text(where: str, entry: dict[str, Any], key: str) -> str:
    """A string of `entry` that is not blank and can be stored as UTF-8."""
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip() or not _encodable(value):
        found = _shown(value) if key in entry else f"only the keys {', '.join(map(repr, entry))[:200]}"
        raise UserError(f"{where} has no text under the key {key!r}: found {found}. Mend or remove the file.")
    return value


def _sentences(where: str, entry: dict[str, Any]) -> list[str]:
    values = entry.get("sentence")
    if not isinstance(values, list) or not all(isinstance(v, str) and _encodable(v) for v in values):
        found = _shown(values) if "sentence" in entry else f"only the keys {', '.join(map(repr, entry))[:200]}"
        raise UserError(
            f"{where} has no list of texts under the key 'sentence': found {found}. Mend or remove the file."
        )
    return [value.strip() for value in values]


def _inside(where: str, key: str, value: str) -> str:
    """`value` if it stays below the folder it is joined to and is a path on every platform."""
    path = PurePosixPath(value)
    drive = len(value) > 1 and value[1] == ":"
    if path.is_absolute() or drive or ".." in path.parts or "\\" in value or has_control_character(value):
        raise UserError(
            f"{where}: {key} is {_shown(value)}, which leads out of its folder or is no plain name. Expected a "
            "relative path with '/' and without '..'; mend the file, and do not trust where it came from."
        )
    return value


def _require_something(
    source: Path, mask_dir: str, train: list[View], referrals: dict[str, tuple], findings: Findings
) -> None:
    if not train:
        raise UserError(f"{source}: every view is a test view, nothing is left to train on. Check json/test_json.")
    lost = [item for kind, items in findings.items.items() if kind.startswith(_NO_MASK) for item in items]
    if lost and not any(referrals.values()):
        raise UserError(
            f"{source}: no object of the JSON files has a mask in {mask_dir}, gt_mask or mask: "
            f"{first_five(lost)}. Put the masks there, or name their folder with --mask_dir."
        )


def _encodable(text: str) -> bool:
    """Whether `text` has no lone surrogates, which JSON escapes can make and no file can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _names(folders: list[Path]) -> str:
    return ", ".join(dict.fromkeys(folder.name for folder in folders))


def _shown(value: Any) -> str:
    """A JSON value, cut for a message."""
    text = ascii(value)
    return text[:80] + ("..." if len(text) > 80 else "")
