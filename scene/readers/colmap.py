"""Find, read and write COLMAP models.

    <source>/sparse/0/{cameras,images,points3D}.{bin,txt}      (or directly under <source>/sparse)

A damaged or hostile file ends in a UserError that names the path and the byte or line; every count in a file is checked
against the file's length before memory is allocated for it.
"""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote

import numpy as np

from scene.readers import colmap_binary, colmap_text
from scene.readers.colmap_model import ColmapCamera, ColmapImage, ColmapModel, check_model
from utils.errors import UserError

__all__ = [
    "ColmapCamera",
    "ColmapImage",
    "ColmapModel",
    "find_model",
    "has_model",
    "read_model",
    "read_points",
    "write_model",
]

_READERS = {".bin": colmap_binary, ".txt": colmap_text}  # in order of preference


def find_model(source: Path) -> Path:
    """Find the folder of the COLMAP model of a scene.

    Raises:
        UserError: if neither `source`/sparse/0 nor `source`/sparse holds cameras and images as .bin or .txt.
    """
    source = Path(source)
    if found := _model_folder(source):
        return found
    if not os.path.isdir(source):
        found = "is a file" if os.path.exists(source) else "does not exist"
        raise UserError(f"the scene folder {source} {found}. Give the folder of a scene with -s.")
    raise UserError(
        f"no COLMAP model in {source}: looked for cameras and images as .bin or .txt in "
        f"{source / 'sparse' / '0'} and {source / 'sparse'}. There is neither transforms.json nor "
        "transforms_train.json. Give the scene's folder with -s, or run COLMAP on its images "
        f"(`colmap automatic_reconstructor --workspace_path {quote(str(source))} "
        f"--image_path {quote(str(source / 'images'))}`)."
    )


def has_model(source: Path) -> bool:
    """Whether `find_model` finds a COLMAP model."""
    return _model_folder(Path(source)) is not None


def _model_folder(source: Path) -> Path | None:
    folders = (source / "sparse" / "0", source / "sparse")
    return next((folder for folder in folders if any(_complete(folder, suffix) for suffix in _READERS)), None)


def read_model(folder: Path, points: bool = True) -> ColmapModel:
    """Read the model in `folder`, .bin if it is there, else .txt.

    Args:
        folder: folder of the files themselves, see `find_model`.
        points: also read the sparse points; without, a missing or damaged points3D file does not matter.

    Raises:
        UserError: if a file is missing or damaged; the message names path and byte offset or line.
    """
    folder = Path(folder)
    suffix = next((suffix for suffix in _READERS if _complete(folder, suffix)), None)
    if suffix is None:
        raise UserError(f"{folder} holds no COLMAP model: expected cameras and images as .bin or .txt.")
    reader = _READERS[suffix]
    cameras = reader.read_cameras(folder / f"cameras{suffix}")
    images_path = folder / f"images{suffix}"
    images = reader.read_images(images_path)
    check_model(cameras, images, images_path)
    if not points:
        return ColmapModel(cameras, images)
    xyz, rgb = read_points(folder)
    return ColmapModel(cameras, images, xyz, rgb)


def read_points(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the sparse points as (xyz [M, 3] float64, rgb [M, 3] uint8).

    Raises:
        UserError: if points3D.bin and points3D.txt are both missing, or the file is damaged.
    """
    for suffix, reader in _READERS.items():
        path = Path(folder) / f"points3D{suffix}"
        if os.path.isfile(path):
            return reader.read_points(path)
    raise UserError(
        f"{folder} holds neither points3D.bin nor points3D.txt, which the RGB stage starts from. "
        "Copy the file from the COLMAP model, or start from a trained model with --start_checkpoint."
    )


def write_model(folder: Path, model: ColmapModel) -> None:
    """Write a model as .bin, without 2D points and tracks; point ids count from 1.

    Raises:
        UserError: if the folder cannot be written.
    """
    colmap_binary.write(Path(folder), model)


def _complete(folder: Path, suffix: str) -> bool:
    return all(os.path.isfile(folder / f"{name}{suffix}") for name in ("cameras", "images"))
