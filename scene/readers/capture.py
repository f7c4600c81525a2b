"""Posed photos of a scene as they lie on disk, from whichever of the known layouts is there.

    <scene>/sparse/0/{cameras,images,points3D}.{bin,txt}      COLMAP
    <scene>/transforms.json                                   instant-ngp, nerfstudio
    <scene>/transforms_{train,test}.json                      NeRF-synthetic (Blender)

COLMAP comes first where both are there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote

import numpy as np

from scene.readers import colmap, transforms_json
from scene.readers.colmap_model import ColmapCamera, ColmapImage
from utils.errors import UserError

Points = tuple[np.ndarray, np.ndarray]  # xyz [M, 3] float, rgb [M, 3] uint8


@dataclass(frozen=True, eq=False)
class Capture:
    """Cameras, poses and names of photos, in the terms of COLMAP.

    Attributes:
        kind: what it was read from, for messages.
        place: the COLMAP model's folder, or the transforms file.
        folder: what image names are relative to.
        cameras, images: as in a COLMAP model.
        undistort: what the user may run where a lens model is refused.
        read_points: reads the points that the colour stage starts from; None if the layout has none.
        test_names: images that the layout names as test images; None if it does not say.
    """

    kind: str
    place: Path
    folder: Path
    cameras: dict[int, ColmapCamera]
    images: list[ColmapImage]
    undistort: str
    read_points: Callable[[], Points] | None
    test_names: frozenset[str] | None = None


def open_capture(source: Path, images: str) -> Capture:
    """The posed photos of a scene folder.

    Args:
        source: the scene's folder.
        images: the image folder, relative to `source`.

    Raises:
        UserError: if there is no known layout, or a file of it is damaged.
    """
    files = transforms_json.find(source)
    if files and not colmap.has_model(source):
        read = transforms_json.read(source, files, images)
        points = partial(transforms_json.read_points, read.points) if read.points else None
        return Capture(
            files[0].name, files[0], read.folder, read.cameras, read.images, "ns-process-data", points, read.test_names
        )
    place = colmap.find_model(source)
    model = colmap.read_model(place, points=False)
    folder = source / images
    if not folder.is_dir():
        found = ", ".join(sorted(p.name for p in source.iterdir() if p.is_dir())[:5]) or "no folder"
        raise UserError(f"the image folder {folder} does not exist; name it with -i (found in {source}: {found}).")
    command = (
        f"colmap image_undistorter --image_path {quote(str(folder))} --input_path {quote(str(place))} "
        f"--output_path {quote(f'{source}_undistorted')} --output_type COLMAP"
    )
    read_points = partial(colmap.read_points, place)
    return Capture("the COLMAP model", place, folder, model.cameras, model.images, command, read_points)
