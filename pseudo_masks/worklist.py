"""Work to do: the masks of a scene's training views, and the annotations of a scene that had none.

Test views are left alone: their masks are ground truth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from scene.issues import IssueLog, log
from scene.layouts.annotations import frame_name, images_by_frame
from scene.layouts.ref_lerf import TEST_EVERY, Annotation, json_files, read_objects, read_sentences, split
from scene.readers.capture import open_capture, photo_files
from utils.errors import UserError
from utils.files import read_json, write_json


@dataclass(frozen=True)
class AnnotatedPhoto:
    """An image of a scene with its objects, which need not have masks yet."""

    name: str  # relative image name
    path: Path
    is_test: bool
    annotations: tuple[Annotation, ...]  # the objects of its JSON file; empty without such a file

    @property
    def frame(self) -> str:
        """The name without suffix: what JSON files and mask folders are called."""
        return frame_name(self.name)


@dataclass(frozen=True)
class Target:
    """The mask of an object in a view."""

    frame: str  # image name without suffix
    category: str  # name of the object
    segmentation: str  # path of the mask relative to the mask folder
    sentences: tuple[str, ...]  # all distinct sentences of the object in this view
    mask: Path  # the mask file, which need not exist

    @property
    def sidecar(self) -> Path:
        """The JSON beside the mask, see `pseudo_masks.mask_files`."""
        return self.mask.parent / f"{self.mask.stem}.json"

    @property
    def name(self) -> str:
        return f"{self.frame} ({self.category})"


@dataclass(frozen=True)
class Job:
    """A training view and the masks to make in it."""

    photo: AnnotatedPhoto
    targets: tuple[Target, ...]


def list_jobs(
    source: Path, images: str, mask_dir: str, eval: bool, sentences: Path | None = None
) -> tuple[list[Job], list[AnnotatedPhoto]]:
    """List the training views that have objects, and all photos of the scene.

    Photos are split into training and test views as by `scene.layouts.ref_lerf.load`.

    Args:
        source, images, mask_dir, eval: as for `ref_lerf.load`.
        sentences: a JSON file with the objects of the whole scene, to look for in every training view; None takes those
            of the scene's own JSON files.

    Raises:
        UserError: if the scene or the file is damaged, or no training view has an object.
    """
    objects = None if sentences is None else read_sentences(sentences)
    if objects is not None and not (source / "json/train_json").is_dir() and any((source / "json").glob("*.json")):
        raise UserError(
            f"{source / 'json'} holds a JSON file for each frame already, so --sentences has no place to write to. "
            "Leave --sentences away, or move those files."
        )
    photos = _load_photos(source, images, eval, annotated=objects is not None)
    jobs = []
    for photo in [photo for photo in photos if not photo.is_test]:
        annotations: Iterable[Annotation] = photo.annotations
        if objects is not None:
            annotations = [Annotation(name, f"{photo.frame}/{name}.png", words) for name, words in objects]
        if targets := _targets(photo, annotations, source / mask_dir):
            jobs.append(Job(photo, targets))
    if not jobs:
        raise UserError(
            f"{source} has no training view with an object and a sentence (json/train_json/<frame>.json). For a scene "
            "without annotations give the objects and their sentences with --sentences FILE (docs/DATA.md)."
        )
    return jobs, photos


def _load_photos(source: Path, images: str, eval: bool, annotated: bool) -> list[AnnotatedPhoto]:
    """List the photos; with `annotated`, split as if they had annotations, because these are about to be written."""
    issues = IssueLog()
    capture = open_capture(source, images)
    paths = photo_files(capture, issues)
    train_files, test_files = json_files(source)
    names = list(paths)
    every_8th = eval or ((annotated or bool(train_files)) and len(names) >= TEST_EVERY)
    test_names, split_rule = split(source, names, test_files, capture, every_8th, issues)
    named = images_by_frame(names)
    files: dict[str, Path] = {}
    for frame, path in [*test_files.items(), *train_files.items()]:
        name = named.get(frame)
        if name is None:
            issues.add("JSON files that belong to no view", str(path.relative_to(source)))
        else:
            files.setdefault(name, path)
    issues.write_log()
    photos = [
        AnnotatedPhoto(name, path, name in test_names, tuple(read_objects(files[name])) if name in files else ())
        for name, path in paths.items()
    ]
    counts = sum(not photo.is_test for photo in photos), len(test_names)
    log.info("%s: %d training and %d test views (split by %s)", source.resolve().name, *counts, split_rule)
    return photos


def _targets(photo: AnnotatedPhoto, annotations: Iterable[Annotation], folder: Path) -> tuple[Target, ...]:
    """Return one target for each mask file: entries that share a file join their sentences."""
    targets: dict[str, Target] = {}
    for entry in annotations:
        before = targets[entry.segmentation].sentences if entry.segmentation in targets else ()
        sentences = tuple(dict.fromkeys([*before, *filter(None, entry.sentences)]))
        if sentences:
            mask = folder / entry.segmentation
            targets[entry.segmentation] = Target(photo.frame, entry.category, entry.segmentation, sentences, mask)
    return tuple(targets.values())


def write_annotations(source: Path, job: Job) -> None:
    """Write json/train_json/<frame>.json with the objects of a view that have a mask.

    Other objects in the file stay; a file without any object is removed.
    """
    path = source / "json/train_json" / f"{job.photo.frame}.json"
    before = read_json(path, "annotation file")["object"] if path.is_file() else []
    categories = {target.category for target in job.targets}
    entries = [entry for entry in before if entry["category"].strip() not in categories] + [
        {"category": target.category, "segmentation": target.segmentation, "sentence": list(target.sentences)}
        for target in job.targets
        if target.mask.is_file()
    ]
    if entries == before:
        return
    if entries:
        write_json(path, {"object": entries})
    else:
        path.unlink()
