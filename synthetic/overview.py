"""A sheet to look at: some views, one with numbered objects, and the sentences."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

from scene.cameras import Camera
from synthetic.export import category_names
from synthetic.raycast import Picture
from synthetic.sentences import Referring
from synthetic.world import World

WIDTH = 1200  # pixels of the sheet
FONT = cv2.FONT_HERSHEY_SIMPLEX


def tint(index: int, count: int) -> np.ndarray:
    """RGB [3] of item `index`."""
    return np.round(255 * np.array(colorsys.hsv_to_rgb(index / count, 0.75, 0.95)))


def _fitted(rgb: np.ndarray, width: int) -> np.ndarray:
    """The picture scaled to `width`."""
    height = round(rgb.shape[0] * width / rgb.shape[1])
    method = cv2.INTER_CUBIC if width > rgb.shape[1] else cv2.INTER_AREA
    return cv2.resize(rgb, (width, height), interpolation=method)


def _label(sheet: np.ndarray, text: str, x: int, y: int, scale: float, colour) -> None:
    cv2.putText(sheet, text, (x, y), FONT, scale, tuple(float(c) for c in colour), 1, cv2.LINE_AA)


def _numbered(world: World, picture: Picture, width: int) -> np.ndarray:
    """The picture with its masks outlined and numbered."""
    large = _fitted(picture.rgb, width)
    for index in range(len(world.items)):
        colour = tint(index, len(world.items))
        mask = (picture.ids == index).astype(np.uint8)
        mask = cv2.resize(mask, large.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        outline = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
        cv2.drawContours(large, outline, -1, tuple(float(c) for c in colour), 2, cv2.LINE_AA)
        rows, columns = np.nonzero(mask)
        if len(rows):
            centre = (int(columns.mean()), int(rows.mean()))
            cv2.circle(large, centre, 12, (255, 255, 255), -1, cv2.LINE_AA)
            text = str(index + 1)
            _label(large, text, centre[0] - 4 * len(text), centre[1] + 5, 0.45, (30, 30, 30))
    return large


def sheet(world: World, cameras: list[Camera], pictures: list[Picture], sentences: list[list[Referring]]) -> np.ndarray:
    """The sheet as RGB [H, WIDTH, 3]."""
    half = WIDTH // 2
    middle = min(range(len(cameras)), key=lambda i: abs(cameras[i].center[0]) + abs(cameras[i].center[2] - 0.7))
    top = np.concatenate(
        [_fitted(pictures[middle].rgb, half), _numbered(world, pictures[middle], WIDTH - half)], axis=1
    )
    chosen = np.linspace(0, len(pictures) - 1, 5).round().astype(int)
    strip = np.concatenate([_fitted(pictures[i].rgb, WIDTH // 5) for i in chosen], axis=1)
    names = category_names(world)
    text = np.full((sum(24 + 20 * len(group) + 8 for group in sentences) + 16, WIDTH, 3), 250, np.uint8)
    y = 24
    for index, (name, group) in enumerate(zip(names, sentences, strict=True)):
        cv2.circle(text, (22, y - 5), 8, tuple(float(c) for c in tint(index, len(names))), -1, cv2.LINE_AA)
        _label(text, f"{index + 1}  {name}", 40, y, 0.52, (20, 20, 20))
        for said in group:
            y += 20
            test = said.split == "test"
            colour = (170, 40, 30) if test else (90, 90, 90)
            _label(text, ("test:  " if test else "") + said.text, 64, y, 0.45, colour)
        y += 32
    return np.concatenate([top, strip, text])
