"""A scene of a few small pictures in the Ref-LERF layout, for tests of loaders; every part can be left out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from scene.readers.colmap import ColmapCamera, ColmapImage, ColmapModel, write_model

WIDTH, HEIGHT = 32, 24


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A smooth RGB picture that differs by seed, uint8 [H, W, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def write_picture(path: Path, rgb: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))


def write_mask(path: Path, left: int = 4, width: int = WIDTH, height: int = HEIGHT) -> None:
    """A mask whose columns from `left` to `left` + 8 (of 32) are foreground, value 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((height, width), np.uint8)
    mask[:, left * width // WIDTH : (left + 8) * width // WIDTH] = 255
    assert cv2.imwrite(str(path), mask)


def entry(frame: str, category: str = "red cup", sentences: Iterable[str] = ("the cup",)) -> dict[str, Any]:
    """One object of a JSON file."""
    return {"category": category, "segmentation": f"{frame}/{category}.png", "sentence": list(sentences)}


def write_json(path: Path, *entries: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"object": list(entries)}), encoding="utf-8")


def write_scene(folder: Path, names: list[str], camera: ColmapCamera | None = None, pictures: bool = True) -> Path:
    """COLMAP model and pictures for `names`; cameras sit on the x axis at 0, 1, 2 ..."""
    camera = camera or ColmapCamera(1, "PINHOLE", WIDTH, HEIGHT, np.array([30.0, 31.0, 16.5, 11.5]))
    poses = [(np.array([1.0, 0, 0, 0]), np.array([-float(i), 0, 0])) for i in range(len(names))]
    images = [ColmapImage(i + 1, name, *poses[i], camera.id) for i, name in enumerate(names)]
    xyz = np.random.default_rng(0).normal(size=(20, 3))
    write_model(folder / "sparse/0", ColmapModel({camera.id: camera}, images, xyz, np.full((20, 3), 200, np.uint8)))
    if pictures:
        for i, name in enumerate(names):
            write_picture(folder / "images" / name, picture(i))
    return folder


def frame(number: int) -> str:
    return f"frame_{number:05d}"


def write_referring_scene(folder: Path, train: Iterable[int], test: Iterable[int] = ()) -> Path:
    """A scene with json/train_json, json/test_json and gt_mask; one cup with two sentences a training frame."""
    train, test = list(train), list(test)
    write_scene(folder, [f"{frame(number)}.png" for number in sorted(train + test)])
    for number in train:
        write_json(folder / f"json/train_json/{frame(number)}.json", entry(frame(number), sentences=["the cup", "red"]))
    for number in test:
        write_json(folder / f"json/test_json/{frame(number)}.json", entry(frame(number), sentences=["a new one"]))
    for number in train + test:
        write_mask(folder / f"gt_mask/{frame(number)}/red cup.png")
    return folder
