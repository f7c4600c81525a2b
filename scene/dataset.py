"""What every dataset layout loads into: views with cameras and sentences, and the scene that holds them.

Views are known by relative image name, sentences by id. Pictures and masks are read when asked for.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from scene.cameras import Camera, target_size
from scene.layouts.polygons import Box, Polygons, box_of
from scene.random_points import random_points, scene_bounds
from scene.readers.capture import Capture, Points, open_capture
from scene.readers.colmap_model import ColmapCamera
from scene.readers.image_files import ImageCache, ImageFolder, image_size, mask_at_size, read_image, read_mask
from scene.readers.undistort import Remap, Undistorted, undistorted
from utils.errors import UserError

log = logging.getLogger("refersplat")

CACHE_BYTES = 1 << 30  # decoded pictures and masks kept by a scene
_UNSAFE = re.compile(r'[<>:"|?*\x00-\x1f]|[. ]+(?=/|$)')  # in file names of some platform


@dataclass(frozen=True)
class Referral:
    """One sentence in one view.

    Attributes:
        sentence_id: of (category, sentence).
        category: name of the object.
        sentence: what refers to it; in open-vocabulary datasets the name itself.
        mask_path: picture of its mask, or the label file that holds `polygons`.
        polygons: outlines of the object, where these are the ground truth; None where `mask_path` is a picture.
        confidence: 0..1, how far the mask is to be believed (`scene.layouts.mask_confidence`).
    """

    sentence_id: str
    category: str
    sentence: str
    mask_path: Path
    polygons: Polygons | None = None
    confidence: float = 1.0

    @property
    def mask_key(self) -> Hashable:
        """What tells the masks of one view apart; sentences of one object share theirs."""
        return self.polygons or self.mask_path


def sentence_id(category: str, sentence: str) -> str:
    """The id of a sentence: a file name that tells the category and differs for each (category, sentence)."""
    digest = hashlib.sha1(f"{category}\0{sentence}".encode()).hexdigest()
    return f"{slug(category)}-{digest[:8]}"


def slug(text: str) -> str:
    """The text as a short part of a file name: small letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:48] or "object"


@dataclass(frozen=True, eq=False)
class View:
    """One image of a scene with its camera and its sentences.

    Attributes:
        id: relative image name without suffix, unique in the scene and safe as a path below a folder.
        camera: the undistorted camera at the size asked for with `-r`.
        referrals: the sentences of this view, none if it serves the colour stage only.
        image_path: the picture file.
        source_size: (width, height) of the picture file.
        remap: the undistortion of the picture, None if it needs none.
        cache: holds decoded pictures and masks of the whole scene.
        background: grey level 0..255 behind transparent pixels of the picture.
        unmasked: objects that the annotation names, but that have no mask: present or not, nobody can say.
    """

    id: str
    camera: Camera
    referrals: tuple[Referral, ...]
    image_path: Path
    source_size: tuple[int, int]
    remap: Remap | None
    cache: ImageCache
    background: int = 0
    unmasked: frozenset[str] = frozenset()

    def image(self) -> np.ndarray:
        """The picture as the camera sees it, uint8 RGB, [H, W, 3].

        Raises:
            UserError: if the file cannot be decoded, or is no longer as large as when the scene was loaded.
        """
        return self.cache.get(("image", self.image_path), self._load_image)

    def mask(self, referral: Referral) -> np.ndarray:
        """The mask of one of the view's sentences as the camera sees it, bool, [H, W].

        Raises:
            UserError: if the file cannot be decoded.
        """
        if referral.polygons is None:
            return self.mask_at(referral.mask_path)
        polygons = referral.polygons
        return self.cache.get(("mask", polygons, self.id), lambda: self._seen(polygons.mask()))

    def boxes(self, referral: Referral) -> list[Box]:
        """Boxes around the object as the camera sees it, for localisation: one a polygon, else one of the whole mask.

        Raises:
            UserError: if the file cannot be decoded.
        """
        if referral.polygons is None:
            masks = [self.mask(referral)]
        else:
            masks = [self._seen(mask) for mask in referral.polygons.each()]
        return [box_of(mask) for mask in masks if mask.any()]

    def mask_at(self, path: Path) -> np.ndarray:
        """Any mask of the photo as the camera sees it, bool, [H, W].

        Raises:
            UserError: if the file cannot be decoded.
        """
        return self.cache.get(("mask", path, self.id), lambda: self._load_mask(path))

    def as_photo(self, values: np.ndarray) -> np.ndarray:
        """What the camera sees, [H, W] float32, resampled as the file of the photo shows it, distorted and full size.

        The undistorted picture shows less at its borders; what it lacks is 0.
        """
        values = values.astype(np.float32)
        if (values.shape[1], values.shape[0]) != self.source_size:
            values = cv2.resize(values, self.source_size, interpolation=cv2.INTER_LINEAR)
        return values if self.remap is None else self.remap.back(values)

    def _load_image(self) -> np.ndarray:
        picture = read_image(self.image_path, self.background)
        found = (picture.shape[1], picture.shape[0])
        if found != self.source_size:
            raise UserError(
                f"{self.image_path} is {found[0]}x{found[1]}, but was {self.source_size[0]}x{self.source_size[1]} "
                "when the scene was loaded. Leave the images alone during a run and start again."
            )
        if self.remap is not None:
            picture = self.remap(picture)
        size = (self.camera.width, self.camera.height)
        if size == self.source_size:
            return picture
        shrinks = size[0] < self.source_size[0]
        return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

    def _load_mask(self, path: Path) -> np.ndarray:
        return self._seen(read_mask(path).astype(np.uint8))

    def _seen(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the photo, uint8 of any size, as the camera sees it, bool [H, W]."""
        if self.remap is not None:
            mask = self.remap(mask_at_size(mask, self.source_size), nearest=True)
        return mask_at_size(mask, (self.camera.width, self.camera.height)).astype(bool)


@dataclass(eq=False)
class Scene:
    """Views of one scene, split, and its points, which are read when first asked for.

    Attributes:
        name: name of the scene's folder.
        path: the scene's folder.
        train, test: views sorted by name; training views without sentences serve the colour stage only.
        split_rule: what decided on the test views, in words.
        read_points: reads the points of the scene; None if it has none.
        dataset: the layout it was read from, a value of --dataset.
    """

    name: str
    path: Path
    train: list[View]
    test: list[View]
    split_rule: str
    read_points: Callable[[], Points] | None
    dataset: str = "ref-lerf"

    @cached_property
    def _points(self) -> Points:
        if self.read_points is None:
            raise UserError(f"{self.path} has no points; start from random ones with --init random.")
        xyz, rgb = self.read_points()
        return xyz.astype(np.float32), rgb

    @property
    def has_points(self) -> bool:
        """Whether the layout of the scene has points; their file may still be missing or damaged."""
        return self.read_points is not None

    def random_points(self, count: int, seed: int) -> Points:
        """Grey points spread over what the training cameras look at: (xyz [count, 3] float32, rgb [count, 3] uint8).

        Args:
            count: number of points.
            seed: the same seed gives the same points.
        """
        return random_points(count, *scene_bounds([view.camera for view in self.train]), seed)

    @property
    def xyz(self) -> np.ndarray:
        """Points of the scene, [M, 3] float32. Raises UserError if it has none, or the file is missing or damaged."""
        return self._points[0]

    @property
    def rgb(self) -> np.ndarray:
        """Colours of the points, [M, 3] uint8. Raises UserError as `xyz` does."""
        return self._points[1]

    @property
    def extent(self) -> float:
        """Radius of the training cameras, the unit of 3DGS learning rates: 1.1 x the largest distance from their
        mean, 1 where they all coincide."""
        centers = np.stack([view.camera.center for view in self.train])  # [V, 3]
        radius = float(np.linalg.norm(centers - centers.mean(axis=0), axis=1).max())
        return 1.1 * radius or 1.0

    @staticmethod
    def sentences(views: Iterable[View]) -> list[str]:
        """The distinct sentences of `views`, in order of appearance."""
        return list(dict.fromkeys(referral.sentence for view in views for referral in view.referrals))


@dataclass
class Findings:
    """Faults of a dataset that do not stop the work: counted, and logged once with the first five of each kind.

    Attributes:
        strict: a damaged file stops the work; else it is one more fault, for `scene.check`.
        items: what was found, by kind.
        harmless: kinds that are no faults.
        fatal: kinds that `train.py` refuses.
    """

    strict: bool = True
    items: dict[str, list[str]] = field(default_factory=dict)
    harmless: set[str] = field(default_factory=set)
    fatal: set[str] = field(default_factory=set)

    def add(self, kind: str, item: str, harmless: bool = False, fatal: bool = False) -> None:
        """Note `item` under `kind`, a plural that says what was found and what becomes of it."""
        self.items.setdefault(kind, []).append(item)
        if harmless:
            self.harmless.add(kind)
        if fatal:
            self.fatal.add(kind)

    @contextmanager
    def attempt(self, kind: str = "damaged files", fatal: bool = True) -> Iterator[None]:
        """Around the reading of one file: its UserError passes if `strict`, else it is noted under `kind`, once."""
        try:
            yield
        except UserError as error:
            if self.strict:
                raise
            if not any(str(error) in items for items in self.items.values()):
                self.add(kind, str(error), fatal=fatal)

    def log(self) -> None:
        for kind, items in self.items.items():
            log.warning("%s: %d (%s)", kind, len(items), first_five(items))


def first_five(items: list[str]) -> str:
    """The first five items, and how many follow."""
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


def open_views(
    source: Path, images: str, resolution: int, findings: Findings, background: int = 0
) -> tuple[list[View], Capture]:
    """The views of a scene, without sentences, sorted by name, and the capture that they come from.

    Args:
        source: the scene's folder.
        images: the image folder, relative to `source`.
        resolution: the flag `-r`, see `target_size`.
        findings: receives images without a file and pictures of another size than their camera.
        background: grey level 0..255 behind transparent pixels of photos.

    Raises:
        UserError: if cameras or images are missing or damaged, no image has a file, a picture's shape disagrees with
            its camera, or its lens model is not supported.
    """
    capture = open_capture(source, images)
    paths, cache = photo_files(capture, findings), ImageCache(CACHE_BYTES)
    ids = view_ids([image.name for image in capture.images])
    lenses: dict[tuple, Undistorted] = {}  # images share cameras, and finding a pinhole camera takes a while
    views = []
    for image in sorted(capture.images, key=lambda image: image.name):
        path = paths.get(image.name)
        if path is None:
            continue
        posed_camera = capture.cameras[image.camera_id]
        size = (posed_camera.width, posed_camera.height)  # of a damaged photo that is only noted
        with findings.attempt():
            size = _checked_size(path, posed_camera, findings)
        key = (image.camera_id, size)
        lens = lenses[key] = lenses.get(key) or undistorted(posed_camera, size, capture.undistort)
        camera = Camera(
            image.name, image.rotation, image.tvec, lens.fx, lens.fy, lens.cx, lens.cy, lens.width, lens.height
        ).resized(*target_size(lens.width, lens.height, resolution))
        views.append(View(ids[image.name], camera, (), path, size, lens.remap, cache, background))
    return views, capture


def photo_files(capture: Capture, findings: Findings) -> dict[str, Path]:
    """The photo files of a capture by image name, sorted by it.

    Args:
        capture: the posed photos.
        findings: receives images without a file.

    Raises:
        UserError: if no image has a file.
    """
    folder = ImageFolder(capture.folder)
    found = {name: folder.find(name) for name in sorted(image.name for image in capture.images)}
    missing = [name for name, path in found.items() if path is None]
    if len(missing) == len(found):
        raise UserError(
            f"none of the {len(missing)} images of {capture.kind} ({capture.place}) has a file in "
            f"{capture.folder}: {first_five(missing)}. Copy the images there or name their folder with -i."
        )
    for name in missing:
        findings.add(f"images of {capture.kind} without a file in {capture.folder}", name)
    return {name: path for name, path in found.items() if path is not None}


def _checked_size(path: Path, camera: ColmapCamera, findings: Findings) -> tuple[int, int]:
    """(width, height) of the file, if it shows the camera's picture at whatever scale."""
    width, height = image_size(path)
    if (width, height) != (camera.width, camera.height):
        off = abs(height - camera.height * width / camera.width)
        if min(off, off * camera.width / camera.height) > 1:
            raise UserError(
                f"{path} is {width}x{height}, but its COLMAP camera {camera.id} is "
                f"{camera.width}x{camera.height}: another shape, so it is not the picture COLMAP saw. "
                "Use the images that COLMAP ran on (-i names their folder), resized without cropping."
            )
        findings.add("images of another size than their COLMAP camera, intrinsics scaled with them", path.name)
    return width, height


def view_ids(names: list[str]) -> dict[str, str]:
    """An id for every image name: the name without suffix, made safe; with suffix where two would clash."""
    short = {name: _safe(str(PurePosixPath(name).with_suffix(""))) for name in names}
    uses = Counter(view_id.casefold() for view_id in short.values())
    ids: dict[str, str] = {}
    taken = {view_id for view_id, count in uses.items() if count == 1}
    for name in names:
        view_id = short[name]
        if uses[view_id.casefold()] > 1:
            view_id = _safe(name)
            if view_id.casefold() in taken:
                view_id = f"{view_id}-{hashlib.sha1(name.encode()).hexdigest()[:8]}"
            taken.add(view_id.casefold())
        ids[name] = view_id
    return ids


def _safe(name: str) -> str:
    return _UNSAFE.sub("_", name)
