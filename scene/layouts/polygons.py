"""Outlines of objects as ground truth: LERF-OVS labels objects with polygons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

Box = tuple[int, int, int, int]  # left, top, right, bottom: the outermost pixels that belong to it


@dataclass(frozen=True)
class Polygons:
    """The outlines of one category in one photo.

    Attributes:
        size: (width, height) of the picture that was labelled, pixels.
        outlines: corners (x, y) of each polygon, in pixels of that picture.
    """

    size: tuple[int, int]
    outlines: tuple[tuple[tuple[float, float], ...], ...]

    def mask(self) -> np.ndarray:
        """The union of the polygons, uint8 0 or 1, [height, width]."""
        return np.maximum.reduce(list(self.each()))

    def each(self) -> Iterator[np.ndarray]:
        """The mask of each polygon, uint8 0 or 1, [height, width].

        Corners are cut to whole pixels, and the outline belongs to the object, as in the published masks of LERF-OVS.
        """
        for outline in self.outlines:
            mask = np.zeros((self.size[1], self.size[0]), np.uint8)
            yield cv2.fillPoly(mask, [np.array(outline).astype(np.int32)], 1)


def box_of(mask: np.ndarray) -> Box:
    """The smallest box around the foreground of a bool mask [H, W] that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])
