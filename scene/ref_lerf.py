"""The Ref-LERF layout, with the variants that are in circulation.

    <scene>/images/frame_00001.jpg ...                  -i names another folder
    <scene>/sparse/0/{cameras,images,points3D}.{bin,txt}    or the transforms.json of scene/capture.py
    <scene>/json/train_json/frame_00001.json            or json/frame_00001.json for every frame
    <scene>/json/test_json/frame_00006.json
    <scene>/gt_mask/frame_00006/<category>.png          --mask_dir names another folder for the training masks
    <scene>/mask/...                                    test masks in some downloads

Training masks come from `mask_dir` alone. Test masks come from gt_mask, else mask, else `mask_dir`: the ground truth
must not change with the pseudo masks that a run trains on.

Without json/ a scene still loads, for the colour stage.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from scene.capture import Capture, open_capture
from scene.colmap_model import has_control_character
from scene.dataset import (
    Findings,
    Referral,
    Scene,
    View,
    first_five,
    log,
    open_views,
    photo_files,
    sentence_id,
)
from scene.image_files import image_size
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


@dataclass(frozen=True)
class Photo:
    """An image of a scene with its objects, which need not have masks yet.

    Attributes:
        name: relative image name.
        path: the picture file, which nobody has looked into.
        is_test: whether the view is held out.
        annotations: the objects of its JSON file; None if it has no such file.
    """

    name: str
    path: Path
    is_test: bool
    annotations: tuple[Annotation, ...] | None

    @property
    def frame(self) -> str:
        """The name without suffix: what JSON files and mask folders are called."""
        return PurePosixPath(self.name).with_suffix("").as_posix()


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
    names = [view.camera.name for view in views]
    test_names, split_rule = _split(source, names, test_files, capture, every_8th)
    by_frame = _by_frame(names)
    by_name = {view.camera.name: view for view in views}
    test_ids = {by_name[name].id for name in test_names}
    train_masks = [source / mask_dir]
    test_masks = [source / "gt_mask", source / "mask", source / mask_dir]

    referrals: dict[str, tuple[Referral, ...]] = {}
    for path, frame, for_test in [
        *((path, frame, True) for frame, path in test_files.items()),
        *((path, frame, False) for frame, path in train_files.items()),
    ]:
        view = by_name.get(by_frame.get(frame, ""))
        if view is None:
            findings.add("JSON files that belong to no view", str(path.relative_to(source)))
        elif view.id in referrals:
            findings.add("JSON files left out, as their frame has one already", str(path.relative_to(source)))
        else:
            is_test = for_test or view.id in test_ids
            folders = test_masks if is_test else train_masks
            referrals[view.id] = tuple(_referrals(path, frame, view, folders, findings))
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


def load_photos(source: Path, images: str = "images", eval: bool = False, annotated: bool = False) -> list[Photo]:
    """The photos of a scene with their objects, whether there are masks or not, split as `load` does.

    Args:
        source, images, eval: as for `load`.
        annotated: split as if the scene had annotations: they are about to be made.

    Raises:
        UserError: if cameras are missing or damaged, no image has a file, or a JSON file is damaged.
    """
    source, findings = Path(source), Findings()
    capture = open_capture(source, images)
    paths = photo_files(capture, findings)
    train_files, test_files = _json_files(source)
    names = list(paths)
    every_8th = eval or ((annotated or bool(train_files)) and len(names) >= TEST_EVERY)
    test_names, split_rule = _split(source, names, test_files, capture, every_8th)
    by_frame, files = _by_frame(names), {}
    for frame, path in [*test_files.items(), *train_files.items()]:
        name = by_frame.get(frame)
        if name is None:
            findings.add("JSON files that belong to no view", str(path.relative_to(source)))
        else:
            files.setdefault(name, path)
    findings.log()
    photos = [
        Photo(name, path, name in test_names, tuple(_annotations(files[name])) if name in files else None)
        for name, path in paths.items()
    ]
    log.info(
        "%s: %d training and %d test views (split by %s)",
        source.resolve().name,
        sum(not photo.is_test for photo in photos),
        len(test_names),
        split_rule,
    )
    return photos


def read_sentences(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """The objects of a whole scene: (category, its distinct sentences), from {"object": [{"category", "sentence"}]}.

    Raises:
        UserError: if the file is damaged, a category is no file name or named twice, or has no sentence.
    """
    objects: dict[str, tuple[str, ...]] = {}
    for index, entry in enumerate(_entries(path)):
        where = f"{path}: object[{index}]"
        category = _inside(where, "category", _text(where, entry, "category").strip())
        sentences = tuple(dict.fromkeys(sentence for sentence in _sentences(where, entry) if sentence))
        if category.casefold() in map(str.casefold, objects):
            raise UserError(f"{where}: the category {category!r} is there already; put its sentences together.")
        if not sentences:
            raise UserError(f"{where}: the object {category!r} has no sentence. Add one, or remove the object.")
        objects[category] = sentences
    if not objects:
        raise UserError(f'{path} names no object. Expected {{"object": [{{"category": "...", "sentence": ["..."]}}]}}.')
    return list(objects.items())


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


def _by_frame(names: list[str]) -> dict[str, str]:
    """Image names by themselves without suffix, and by the last part of that where it is unique."""
    by_frame: dict[str, str | None] = {}
    for name in names:
        base = PurePosixPath(name).stem
        by_frame[base] = None if base in by_frame else name
    unique = {base: name for base, name in by_frame.items() if name is not None}
    return unique | {PurePosixPath(name).with_suffix("").as_posix(): name for name in names}


def _split(
    source: Path, names: list[str], test_files: dict[str, Path], capture: Capture, every_8th: bool
) -> tuple[set[str], str]:
    """Names of the test images, of all names in order, and the rule that chose them."""
    if test_files:
        by_frame = _by_frame(names)
        return {by_frame[frame] for frame in test_files if frame in by_frame}, "json/test_json"
    if capture.test_names is not None:
        return {name for name in names if name in capture.test_names}, "the transforms files"
    scene = source.resolve().name.lower()
    frames = TEST_FRAMES.get(SCENE_ALIASES.get(scene, scene), ())
    chosen = {name for name in names if _frame_number(name) in frames}
    if chosen:
        return chosen, f"the published test frames of {SCENE_ALIASES.get(scene, scene)}"
    if every_8th:
        return set(names[::TEST_EVERY]), f"every {TEST_EVERY}th view"
    return set(), "no rule: every view trains (--eval holds out every 8th)"


def _frame_number(name: str) -> int | None:
    match = _FRAME.fullmatch(PurePosixPath(name).stem)
    return int(match[1]) if match else None


def _referrals(path: Path, frame: str, view: View, folders: list[Path], findings: Findings) -> Iterator[Referral]:
    """The sentences of one JSON file, without repetitions, empty ones, and those whose mask is in no folder."""
    seen = set()
    for annotation in _annotations(path):
        category, segmentation = annotation.category, annotation.segmentation
        mask = find_mask(segmentation, folders)
        if mask is None:
            findings.add(f"{_NO_MASK} {_names(folders)}", segmentation)
            continue
        if image_size(mask) != view.source_size:
            findings.add("masks of another size than their image, resized", segmentation)
        for sentence in annotation.sentences:
            identity = sentence_id(category, sentence)
            if not sentence:
                findings.add("empty sentences, left out", f"{frame} ({category})")
            elif identity in seen:
                findings.add("sentences repeated in their frame, counted once", f"{frame} ({category})")
            else:
                seen.add(identity)
                yield Referral(identity, category, sentence, mask)


def find_mask(segmentation: str, folders: list[Path]) -> Path | None:
    """The mask file of an object in the first folder that has it."""
    return next((folder / segmentation for folder in folders if os.path.isfile(folder / segmentation)), None)


def _annotations(path: Path) -> Iterator[Annotation]:
    """The objects of one JSON file.

    Raises:
        UserError: if the file is damaged, or a name climbs out of its folder.
    """
    for index, entry in enumerate(_entries(path)):
        where = f"{path}: object[{index}]"
        category = _inside(where, "category", _text(where, entry, "category").strip())
        segmentation = _inside(where, "segmentation", _text(where, entry, "segmentation"))
        yield Annotation(category, segmentation, tuple(_sentences(where, entry)))


def _entries(path: Path) -> list[dict[str, Any]]:
    content = read_json(path, "annotation file")
    if not isinstance(content, dict) or not isinstance(content.get("object"), list):
        raise UserError(
            f"{path} has no list under the key 'object'. Expected the Ref-LERF form "
            '{"object": [{"category": "...", "segmentation": "frame/category.png", "sentence": ["..."]}]}.'
        )
    for index, entry in enumerate(content["object"]):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: object[{index}] is {_shown(entry)}, expected an object with keys.")
    return content["object"]


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
