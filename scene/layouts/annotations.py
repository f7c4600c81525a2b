"""What the dataset layouts share: building the scene, names of frames, pseudo masks, checks of annotation files.

A layout is a module with

    NAME                      its value of --dataset
    TRAINING_MASKS            where training masks are expected, in words; {mask_dir} is filled in
    has_annotations(source)   whether a scene folder has its files
    load(source, ...)         loads the scene, see `scene.layouts.loader.load`
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from scene.dataset import Referral, Scene, View, sentence_id
from scene.issues import IssueLog, log
from scene.readers.capture import PosedPhoto, open_photos
from scene.readers.colmap_model import leaves_folder
from scene.readers.image_files import ImageCache, image_size
from utils.errors import UserError

CACHE_BYTES = 1 << 30  # decoded photos and masks kept by a scene
SCENE_ALIASES = {"waldo": "waldo_kitchen", "kitchen": "waldo_kitchen"}
_FRAME = re.compile(r"frame_0*(\d{1,9})")


class SceneBuilder:
    """Opens the photos of a scene folder, collects their sentences and builds the scene; raises as `open_photos`."""

    def __init__(
        self, layout: str, source: Path, images: str, resolution: int, white_background: bool, issues: IssueLog | None
    ):
        self.layout, self.source, self.issues = layout, Path(source), issues or IssueLog()
        self.photos, self.capture = open_photos(self.source, images, resolution, self.issues)
        self.names = [photo.camera.name for photo in self.photos]
        self.referrals: dict[str, tuple[Referral, ...]] = {}  # by view id
        self.unmasked: dict[str, set[str]] = {}  # annotated objects without a mask, by view id
        self._background = 255 if white_background else 0
        by_name = dict(zip(self.names, self.photos, strict=True))
        self.photos_by_frame = {frame: by_name[name] for frame, name in images_by_frame(self.names).items()}

    def add_pseudo_masks(self, mask_dir: str, classes: Collection[str] | None = None) -> None:
        """Add the pseudo masks of all views without sentences so far; the file name of a mask is its sentence.

        Args:
            mask_dir: folder of the masks in the scene folder: `<mask_dir>/<frame>/<sentence>.png`.
            classes: names that are accepted; None accepts all.
        """
        for photo in self.photos:
            if photo.id in self.referrals:
                continue
            folders = (self.source / mask_dir / name for name in frame_names(photo.camera.name))
            folder = next((folder for folder in folders if folder.is_dir()), None)
            found = []
            for path in sorted(folder.glob("*.png")) if folder else []:
                name = path.stem.strip()
                if path.name.startswith("."):  # such as the "._" files of macOS archives
                    continue
                if not name or not is_encodable(name):
                    self.issues.add("training masks without a name, left out", path.as_posix())
                    continue
                if classes is not None and name not in classes:
                    kind = "training masks of classes that classes.txt does not name, left out"
                    self.issues.add(kind, f"{path.parent.name}/{path.name}")
                    continue
                with self.issues.collect_errors():
                    check_mask_size(path, photo, self.issues)
                    found.append(Referral(sentence_id(name, name), name, name, path))
            self.referrals[photo.id] = tuple(found)
            if not found:
                kind = f"training views without pseudo masks in {mask_dir}, used by the RGB stage only"
                self.issues.add(kind, photo.id, harmless=True)

    def build(self, test_ids: Collection[str], split_rule: str) -> Scene:
        """Build the views and the scene, and log what was found. Raises UserError if no training view is left."""
        cache = ImageCache(CACHE_BYTES)
        views = [
            View(
                *(photo.id, photo.camera, self.referrals.get(photo.id, ()), photo.path, photo.size, photo.remap),
                cache=cache,
                background=self._background,
                unmasked=frozenset(self.unmasked.get(photo.id, ())),
            )
            for photo in self.photos
        ]
        train, test = ([view for view in views if (view.id in test_ids) == is_test] for is_test in (False, True))
        scene_name = self.source.resolve().name
        if self.issues.strict:
            self.issues.write_log()
        if not train:
            reason = "every view is a test view, nothing is left to train on. Check json/test_json."
            self.issues.refuse(f"{self.source}: {reason}")
        if self.issues.strict:
            log.info(
                "%s (%s): %d training and %d test views (split by %s), %d training and %d test pairs of view and "
                "sentence",
                *(scene_name, self.layout, len(train), len(test), split_rule),
                *(sum(len(view.referrals) for view in views) for views in (train, test)),
            )
        return Scene(scene_name, self.source, train, test, split_rule, self.capture, self.layout)


def canonical_name(source: Path) -> str:
    """Return the published name of a scene from that of its folder."""
    name = source.resolve().name.lower()
    return SCENE_ALIASES.get(name, name)


def frame_name(image_name: str) -> str:
    """Return an image name without suffix: the name of its JSON file and mask folder."""
    return PurePosixPath(image_name).with_suffix("").as_posix()


def frame_names(image_name: str) -> list[str]:
    """Names that a folder of masks of the image may have: the image name without suffix, and the last part of it."""
    frame = frame_name(image_name)
    return list(dict.fromkeys((frame, PurePosixPath(frame).name)))


def images_by_frame(names: Iterable[str]) -> dict[str, str]:
    """Index image names by frame name, and by the last part of it where that is unique."""
    names = list(names)
    uses = Counter(PurePosixPath(name).stem for name in names)
    unique = {stem: name for name in names if uses[stem := PurePosixPath(name).stem] == 1}
    return unique | {frame_name(name): name for name in names}


def published_test_images(names: Iterable[str], frames: tuple[int, ...], issues: IssueLog) -> set[str]:
    """Select the images frame_0000N with a published N; report published frames without a photo if any has one."""
    numbers = {name: int(match[1]) for name in names if (match := _FRAME.fullmatch(PurePosixPath(name).stem))}
    chosen = {name for name, number in numbers.items() if number in frames}
    for number in frames if chosen else ():
        if number not in numbers.values():
            issues.add("published test frames without a photo", f"frame_{number:05d}")
    return chosen


def check_mask_size(mask: Path, photo: PosedPhoto, issues: IssueLog) -> None:
    """Report a mask of another size than its photo. Raises UserError if it is not a picture."""
    if image_size(mask) != photo.size:
        item = f"{mask.parent.name}/{mask.name}"
        issues.add("masks of another size than their image, resized", item, harmless=True)


def safe_name(where: str, key: str, value: str) -> str:
    """Return `value`, a path below some folder. Raises UserError if it leads out of that on some platform."""
    if "\\" in value or leaves_folder(value):
        raise UserError(
            f"{where}: {key} is {shorten(value)}, which leads out of its folder or is not a plain name. Expected a "
            "relative path with '/' and without '..'; correct the file, and do not trust where it came from."
        )
    return value


def read_category(where: str, entry: dict[str, Any]) -> str:
    """Return the category of an annotation entry, stripped. Raises UserError if it is missing or no safe name."""
    return safe_name(where, "category", required_text(where, entry, "category").strip())


def required_text(where: str, entry: dict[str, Any], key: str) -> str:
    """Return a string of `entry` that is not blank and can be stored as UTF-8. Raises UserError for anything else."""
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip() or not is_encodable(value):
        found = describe_value(entry, key)
        raise UserError(f"{where} has no text under the key {key!r}: found {found}. Correct or remove the file.")
    return value


def describe_value(entry: dict[str, Any], key: str) -> str:
    """Say in a message what an annotation entry has under `key`, or which keys it has instead."""
    return shorten(entry[key]) if key in entry else f"only the keys {', '.join(map(repr, entry))[:200]}"


def is_encodable(text: str) -> bool:
    """Whether `text` has no lone surrogates, which JSON escapes can make and no file can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def shorten(value: Any) -> str:
    """Shorten a JSON value for a message."""
    text = ascii(value)
    return text[:80] + ("..." if len(text) > 80 else "")
