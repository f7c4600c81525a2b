"""Views with cameras and sentences, and the scene that holds them: what every dataset layout loads into.

Views are known by relative image name, sentences by id. Photos and masks are read on first use.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from scene.cameras import Camera, scene_bounds
from scene.readers.colmap_model import GREY, Capture, Points
from scene.readers.image_files import ImageCache, mask_at_size, read_image, read_mask
from scene.readers.undistort import Remap
from utils.errors import UserError

Box = tuple[int, int, int, int]  # left, top, right, bottom: the outermost pixels inside


@dataclass(frozen=True)
class Polygons:
    """Outlines of one category in one photo, as LERF-OVS labels objects."""

    size: tuple[int, int]  # (width, height) of the labelled picture, pixels
    outlines: tuple[tuple[tuple[float, float], ...], ...]  # corners (x, y) of each polygon, in pixels of that picture

    def mask(self) -> np.ndarray:
        """Draw the union of the polygons, uint8 0 or 1, [height, width]."""
        return np.maximum.reduce(list(self.each()))

    def each(self) -> Iterator[np.ndarray]:
        """Draw each polygon, uint8 0 or 1, [height, width].

        Corners are truncated to whole pixels, and the outline belongs to the object, as in LERF-OVS's own masks.
        """
        for outline in self.outlines:
            mask = np.zeros((self.size[1], self.size[0]), np.uint8)
            yield cv2.fillPoly(mask, [np.array(outline).astype(np.int32)], 1)


def box_around(mask: np.ndarray) -> Box:
    """The smallest box around the foreground of a bool mask [H, W], which must not be empty."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return left, top, left + width - 1, top + height - 1


@dataclass(frozen=True)
class Referral:
    """One sentence in one view."""

    sentence_id: str  # of (category, sentence)
    category: str  # name of the object
    sentence: str  # the referring expression; in open-vocabulary datasets the name of the object
    mask_path: Path  # mask file, or the label file that holds `polygons`
    polygons: Polygons | None = None  # the ground truth, unless `mask_path` is a picture
    confidence: float = 1.0  # weight of the mask in the loss, 0..1 (`scene.layouts.mask_confidence`)

    @property
    def mask_key(self) -> Hashable:
        """Identifies the mask within its view; sentences of one object share theirs."""
        return self.polygons or self.mask_path


def sentence_id(category: str, sentence: str) -> str:
    """Return the id of a sentence: a file name, distinct for each (category, sentence), that shows the category."""
    digest = hashlib.sha1(f"{category}\0{sentence}".encode()).hexdigest()
    return f"{slug(category)}-{digest[:8]}"


def slug(text: str) -> str:
    """Shorten text to part of a file name: lower-case letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:48] or "object"


@dataclass(frozen=True, eq=False)
class View:
    """One photo of a scene with its camera and its sentences."""

    id: str
    camera: Camera
    referrals: tuple[Referral, ...]  # sentences of this view; none if only the RGB stage uses it
    image_path: Path  # photo file
    source_size: tuple[int, int]  # (width, height) of the photo file
    remap: Remap | None  # see `scene.readers.capture.PosedPhoto`, as id and camera
    cache: ImageCache  # decoded photos and masks of the whole scene
    background: int = 0  # grey level 0..255 behind transparent pixels of the photo
    unmasked: frozenset[str] = frozenset()  # annotated objects without a mask, which may or may not be visible

    def image(self) -> np.ndarray:
        """The photo as the camera sees it, uint8 RGB [H, W, 3]. Raises UserError if the file is damaged or changed."""
        return self.cache.get(("image", self.image_path), self._load_image)

    def mask(self, referral: Referral) -> np.ndarray:
        """The mask of a sentence of the view as the camera sees it, bool [H, W]. Raises UserError if it is damaged."""
        if referral.polygons is None:
            return self.mask_at(referral.mask_path)
        polygons = referral.polygons
        return self.cache.get(("mask", polygons, self.id), lambda: self._undistort_mask(polygons.mask()))

    def boxes(self, referral: Referral) -> list[Box]:
        """Boxes for localisation: one per polygon, or one around the whole mask. Raises UserError as `mask` does."""
        polygons = referral.polygons
        masks = map(self._undistort_mask, polygons.each()) if polygons else [self.mask(referral)]
        return [box_around(mask) for mask in masks if mask.any()]

    def mask_at(self, path: Path) -> np.ndarray:
        """Any mask file of the photo as the camera sees it, bool [H, W]. Raises UserError if it is damaged."""
        return self.cache.get(("mask", path, self.id), lambda: self._undistort_mask(read_mask(path).astype(np.uint8)))

    def as_photo(self, values: np.ndarray) -> np.ndarray:
        """Resample values [H, W] of the camera's picture to the photo file, distorted and full size, float32.

        The undistorted picture shows less at its borders; pixels outside of it are 0.
        """
        values = values.astype(np.float32)
        if (values.shape[1], values.shape[0]) != self.source_size:
            values = cv2.resize(values, self.source_size, interpolation=cv2.INTER_LINEAR)
        return values if self.remap is None else self.remap.distort(values)

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

    def _undistort_mask(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the photo, uint8 of any size, as the camera sees it, bool [H, W]."""
        if self.remap is not None:
            mask = self.remap(mask_at_size(mask, self.source_size), nearest=True)
        return mask_at_size(mask, (self.camera.width, self.camera.height)).astype(bool)


@dataclass(eq=False)
class Scene:
    """Training and test views of one scene, and its points, which are read on first use."""

    name: str  # of the folder
    path: Path
    train: list[View]  # sorted by name; only the RGB stage uses views without sentences
    test: list[View]  # sorted by name
    split_rule: str  # that chose the test views, in words
    capture: Capture | None  # camera files; None for a scene made in memory
    dataset: str = "ref-lerf"  # layout that it was read from, a value of --dataset

    @cached_property
    def _points(self) -> Points:
        if self.capture is None or self.capture.read_points is None:
            raise UserError(f"{self.path} has no points; start from random ones with --init random.")
        xyz, rgb = self.capture.read_points()
        return xyz.astype(np.float32), rgb

    @property
    def has_points(self) -> bool:
        """Whether the camera files come with points; the file may still be missing or damaged."""
        return self.capture is not None and self.capture.read_points is not None

    def random_points(self, count: int, seed: int) -> Points:
        """Draw (xyz [count, 3] float32, grey rgb [count, 3] uint8) in the cube that the training cameras look at."""
        center, half_side = scene_bounds([view.camera for view in self.train])
        offsets = np.random.default_rng(seed).uniform(-1, 1, (count, 3))
        return (center + half_side * offsets).astype(np.float32), np.full((count, 3), GREY, np.uint8)

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
        """Scene extent of 3DGS: 1.1 times the largest distance of a training camera from their mean, 1 if all coincide.

        World units; learning rates of positions are multiples of it.
        """
        centers = np.stack([view.camera.center for view in self.train])  # [V, 3]
        radius = float(np.linalg.norm(centers - centers.mean(axis=0), axis=1).max())
        return 1.1 * radius or 1.0

    @staticmethod
    def sentences(views: Iterable[View]) -> list[str]:
        """The distinct sentences of `views`, in order of appearance."""
        return list(dict.fromkeys(referral.sentence for view in views for referral in view.referrals))
