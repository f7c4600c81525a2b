"""What every dataset layout adds to posed photos: which views are for the test, and the sentences of each view.

A layout is a module with

    NAME             its value of --dataset
    TRAINING_MASKS   where the masks that training needs are expected, in words; {mask_dir} is filled in
    is_here(source)  whether a scene folder has its files
    annotate(...)    `Annotate`: reads them
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from scene.dataset import Findings, Referral, Scene, View, log, open_views, sentence_id
from scene.readers.capture import Capture
from scene.readers.colmap_model import has_control_character
from scene.readers.image_files import image_size
from utils.errors import UserError

SCENE_ALIASES = {"waldo": "waldo_kitchen", "kitchen": "waldo_kitchen"}
_FRAME = re.compile(r"frame_0*(\d{1,9})")


class Folder(NamedTuple):
    """A scene folder and the flags that decide how it is read.

    Attributes:
        path: the scene's folder.
        mask_dir: the folder of the training masks in it.
        eval: hold out every 8th view where nothing else decides.
    """

    path: Path
    mask_dir: str
    eval: bool


@dataclass(frozen=True)
class Annotations:
    """What `annotate` of a layout returns.

    Attributes:
        referrals: the sentences of views, by view id.
        test_ids: ids of the test views.
        split_rule: what decided on them, in words.
        refusal: why nothing can be done with the scene; None if something can.
        unmasked: objects that are named, but have no mask, by view id.
    """

    referrals: dict[str, tuple[Referral, ...]]
    test_ids: set[str]
    split_rule: str
    refusal: str | None = None
    unmasked: dict[str, set[str]] = field(default_factory=dict)


Annotate = Callable[[Folder, list[View], Capture, Findings], Annotations]


def load_scene(
    name: str,
    annotate: Annotate,
    folder: Folder,
    images: str,
    resolution: int,
    white_background: bool,
) -> Scene:
    """Load a scene whose layout is known.

    Args:
        name: of the layout.
        annotate: of the layout.
        folder: the scene folder.
        images, resolution, white_background: see `scene.layouts.loader.load`.

    Raises:
        UserError: see `scene.layouts.loader.load`.
    """
    findings = Findings()
    views, capture = open_views(folder.path, images, resolution, findings, 255 if white_background else 0)
    found = annotate(folder, views, capture, findings)
    findings.log()
    train, test = split(views, found)
    if not train:
        raise UserError(f"{folder.path}: every view is a test view, nothing is left to train on. Check json/test_json.")
    if found.refusal:
        raise UserError(found.refusal)
    scene_name = folder.path.resolve().name
    log.info(
        "%s (%s): %d training and %d test views (split by %s), %d training and %d test pairs of view and sentence",
        scene_name,
        name,
        len(train),
        len(test),
        found.split_rule,
        sum(len(view.referrals) for view in train),
        sum(len(view.referrals) for view in test),
    )
    return Scene(scene_name, folder.path, train, test, found.split_rule, capture.read_points, name)


def split(views: list[View], found: Annotations) -> tuple[list[View], list[View]]:
    """(training, test) views with their sentences."""
    views = [
        replace(view, referrals=found.referrals.get(view.id, ()), unmasked=frozenset(found.unmasked.get(view.id, ())))
        for view in views
    ]
    train = [view for view in views if view.id not in found.test_ids]
    return train, [view for view in views if view.id in found.test_ids]


def canonical_name(source: Path) -> str:
    """The published name of a scene, from that of its folder."""
    name = source.resolve().name.lower()
    return SCENE_ALIASES.get(name, name)


def by_frame(names: list[str]) -> dict[str, str]:
    """Image names by themselves without suffix, and by the last part of that where it is unique."""
    found: dict[str, str | None] = {}
    for name in names:
        base = PurePosixPath(name).stem
        found[base] = None if base in found else name
    unique = {base: name for base, name in found.items() if name is not None}
    return unique | {frame_of(name): name for name in names}


def views_by_frame(views: list[View]) -> dict[str, View]:
    """Views by what `by_frame` calls their images."""
    named = {view.camera.name: view for view in views}
    return {frame: named[name] for frame, name in by_frame(list(named)).items()}


def frame_of(name: str) -> str:
    """An image name without suffix: what JSON files and mask folders are called."""
    return PurePosixPath(name).with_suffix("").as_posix()


def published(names: list[str], frames: tuple[int, ...], findings: Findings) -> set[str]:
    """Names with the published frame numbers, N of frame_0000N.jpg; those without a photo are noted if there is any."""
    numbers = {name: int(match[1]) for name in names if (match := _FRAME.fullmatch(PurePosixPath(name).stem))}
    chosen = {name for name, number in numbers.items() if number in frames}
    for number in frames if chosen else ():
        if number not in numbers.values():
            findings.add("published test frames without a photo", f"frame_{number:05d}")
    return chosen


def ids_of(views: list[View], names: set[str]) -> set[str]:
    """Ids of the views with these image names."""
    return {view.id for view in views if view.camera.name in names}


def named_masks(folder: Path, frames: list[str], findings: Findings) -> Iterator[Referral]:
    """Objects whose sentence is the name of their mask file: `<folder>/<frame>/<name>.png`.

    Args:
        folder: of the masks.
        frames: names that the view's folder may have; the first that exists counts.
        findings: receives names that no file on another platform can have.
    """
    place = next((folder / frame for frame in frames if (folder / frame).is_dir()), None)
    for path in sorted(place.glob("*.png")) if place else []:
        if path.name.startswith("."):  # such as the "._" files of macOS archives
            continue
        name = path.stem.strip()
        if not name or not encodable(name):
            findings.add("training masks without a name, left out", path.as_posix())
        else:
            yield Referral(sentence_id(name, name), name, name, path)


def frames_of(view: View) -> list[str]:
    """Names that a folder of the view may have: the image name without suffix, and the last part of it."""
    frame = frame_of(view.camera.name)
    return list(dict.fromkeys((frame, PurePosixPath(frame).name)))


def note_other_size(mask: Path, view: View, findings: Findings) -> None:
    """Note a mask of another size than its photo. Raises UserError if it is no picture."""
    if image_size(mask) != view.source_size:
        item = f"{mask.parent.name}/{mask.name}"
        findings.add("masks of another size than their image, resized", item, harmless=True)


def inside(where: str, key: str, value: str) -> str:
    """`value` if it stays below the folder it is joined to and is a path on every platform.

    Raises:
        UserError: if it does not.
    """
    path = PurePosixPath(value)
    drive = len(value) > 1 and value[1] == ":"
    if path.is_absolute() or drive or ".." in path.parts or "\\" in value or has_control_character(value):
        raise UserError(
            f"{where}: {key} is {shown(value)}, which leads out of its folder or is no plain name. Expected a "
            "relative path with '/' and without '..'; mend the file, and do not trust where it came from."
        )
    return value


def text_of(where: str, entry: dict[str, Any], key: str) -> str:
    """A string of `entry` that is not blank and can be stored as UTF-8. Raises UserError if it is something else."""
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip() or not encodable(value):
        found = shown(value) if key in entry else f"only the keys {', '.join(map(repr, entry))[:200]}"
        raise UserError(f"{where} has no text under the key {key!r}: found {found}. Mend or remove the file.")
    return value


def encodable(text: str) -> bool:
    """Whether `text` has no lone surrogates, which JSON escapes can make and no file can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def shown(value: Any) -> str:
    """A JSON value, cut for a message."""
    text = ascii(value)
    return text[:80] + ("..." if len(text) > 80 else "")
