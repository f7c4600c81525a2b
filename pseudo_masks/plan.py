"""What there is to make: pairs of a training view and an object, and the annotations of a scene that had none.

Test views are left alone: their masks are ground truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pseudo_masks.photos import Photo, load_photos
from scene.layouts.ref_lerf import Annotation, read_sentences
from utils.errors import UserError
from utils.files import read_json, write_json


@dataclass(frozen=True)
class Pair:
    """An object in a view, and where its files are.

    Attributes:
        frame: image name without suffix.
        category: name of the object.
        segmentation: the mask's path relative to the mask folder.
        sentences: all distinct sentences of the object in this view.
        mask: the mask file, which need not exist.
    """

    frame: str
    category: str
    segmentation: str
    sentences: tuple[str, ...]
    mask: Path

    @property
    def record(self) -> Path:
        """The JSON beside the mask, see `pseudo_masks.records`."""
        return self.mask.parent / f"{self.mask.stem}.json"

    @property
    def name(self) -> str:
        return f"{self.frame} ({self.category})"


@dataclass(frozen=True)
class Job:
    """A training view and its objects."""

    photo: Photo
    pairs: tuple[Pair, ...]


def jobs(
    source: Path, images: str, mask_dir: str, eval: bool, sentences: Path | None = None
) -> tuple[list[Job], list[Photo]]:
    """The training views of a scene that have objects, and all its photos.

    Args:
        source, images, mask_dir, eval: as for `scene.layouts.ref_lerf.load`.
        sentences: a JSON file with the objects of the whole scene, which are then looked for in every training view;
            None takes those of the scene's own JSON files.

    Raises:
        UserError: if the scene or the file is damaged, or no training view has an object.
    """
    objects = None if sentences is None else read_sentences(sentences)
    if objects is not None and not (source / "json/train_json").is_dir() and any((source / "json").glob("*.json")):
        raise UserError(
            f"{source / 'json'} holds a JSON file for each frame already, so --sentences has no place to write to. "
            "Leave --sentences away, or move those files."
        )
    every_photo = load_photos(source, images, eval, annotated=objects is not None)
    photos = [photo for photo in every_photo if not photo.is_test]
    root = source / mask_dir
    if objects is None:
        made = [Job(photo, _pairs(photo, photo.annotations or (), root)) for photo in photos]
    else:
        made = [Job(photo, _pairs(photo, _everywhere(photo, objects), root)) for photo in photos]
    made = [job for job in made if job.pairs]
    if not made:
        raise UserError(
            f"{source} has no training view with an object and a sentence (json/train_json/<frame>.json). For a scene "
            "without annotations give the objects and their sentences with --sentences FILE (docs/DATA.md)."
        )
    return made, every_photo


def _everywhere(photo: Photo, objects: list[tuple[str, tuple[str, ...]]]) -> list[Annotation]:
    return [Annotation(category, f"{photo.frame}/{category}.png", said) for category, said in objects]


def _pairs(photo: Photo, annotations: list[Annotation] | tuple[Annotation, ...], root: Path) -> tuple[Pair, ...]:
    """One pair a mask file: entries that share one put their sentences together."""
    found: dict[str, Pair] = {}
    for entry in annotations:
        before = found[entry.segmentation].sentences if entry.segmentation in found else ()
        said = tuple(dict.fromkeys([*before, *filter(None, entry.sentences)]))
        if said:
            mask = root / entry.segmentation
            found[entry.segmentation] = Pair(photo.frame, entry.category, entry.segmentation, said, mask)
    return tuple(found.values())


def write_annotations(source: Path, job: Job) -> None:
    """Write json/train_json/<frame>.json with the objects of a view that have a mask.

    Objects that are not in the job stay in the file; without any object there is no file.

    Raises:
        UserError: if a file that is there is damaged, or the new one cannot be written.
    """
    path = source / "json/train_json" / f"{job.photo.frame}.json"
    before = read_json(path, "annotation file")["object"] if path.is_file() else []
    ours = {pair.category for pair in job.pairs}
    entries = [entry for entry in before if entry["category"].strip() not in ours] + [
        {"category": pair.category, "segmentation": pair.segmentation, "sentence": list(pair.sentences)}
        for pair in job.pairs
        if pair.mask.is_file()
    ]
    if entries == before:
        return
    if entries:
        write_json(path, {"object": entries})
    else:
        path.unlink()
