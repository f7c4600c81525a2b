"""The photos of a scene with their objects, before there are masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scene.dataset import Findings, log, photo_files
from scene.layouts.annotations import by_frame, frame_of
from scene.layouts.ref_lerf import TEST_EVERY, Annotation, json_files, objects_of, split
from scene.readers.capture import open_capture


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
        return frame_of(self.name)


def load_photos(source: Path, images: str = "images", eval: bool = False, annotated: bool = False) -> list[Photo]:
    """The photos of a scene with their objects, whether there are masks or not, split as `scene.layouts.ref_lerf` does.

    Args:
        source, images, eval: as for `scene.layouts.ref_lerf.load`.
        annotated: split as if the scene had annotations: they are about to be made.

    Raises:
        UserError: if cameras are missing or damaged, no image has a file, or a JSON file is damaged.
    """
    source, findings = Path(source), Findings()
    capture = open_capture(source, images)
    paths = photo_files(capture, findings)
    train_files, test_files = json_files(source)
    names = list(paths)
    every_8th = eval or ((annotated or bool(train_files)) and len(names) >= TEST_EVERY)
    test_names, split_rule = split(source, names, test_files, capture, every_8th, findings)
    named, files = by_frame(names), {}
    for frame, path in [*test_files.items(), *train_files.items()]:
        name = named.get(frame)
        if name is None:
            findings.add("JSON files that belong to no view", str(path.relative_to(source)))
        else:
            files.setdefault(name, path)
    findings.log()
    photos = [
        Photo(name, path, name in test_names, tuple(objects_of(files[name])) if name in files else None)
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
