"""Posed photos of a scene, from any of the supported camera files.

<scene>/sparse/0/{cameras,images,points3D}.{bin,txt}      COLMAP, preferred where both are present
<scene>/transforms.json                                   instant-ngp, nerfstudio
<scene>/transforms_{train,test}.json                      NeRF-synthetic (Blender)
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from functools import partial
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import NamedTuple

from scene.cameras import Camera, target_size
from scene.issues import IssueLog, first_five
from scene.readers import colmap, transforms_json
from scene.readers.colmap_model import Capture, ColmapCamera
from scene.readers.image_files import ImageFolder, image_size
from scene.readers.undistort import Remap, Undistorted, undistorted
from utils.errors import UserError

_UNSAFE = re.compile(r'[<>:"|?*\x00-\x1f]|[. ]+(?=/|$)')  # in file names on some platform


class PosedPhoto(NamedTuple):
    """A photo file with its undistorted camera."""

    id: str  # image name without suffix, unique in the scene and safe as a path below a folder
    camera: Camera  # at the size that `-r` asks for
    path: Path  # the photo file
    size: tuple[int, int]  # (width, height) of the photo file
    remap: Remap | None  # undistortion of the photo; None if it needs none


def open_capture(source: Path, images: str) -> Capture:
    """Read the cameras of a scene whose photos are in the folder `images`. Raises UserError if they are damaged."""
    files = transforms_json.find(source)
    if files and not colmap.has_model(source):
        return transforms_json.read(source, files, images)
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
    points = partial(colmap.read_points, place)
    return Capture("the COLMAP model", place, folder, model.cameras, model.images, command, points)


def open_photos(source: Path, images: str, resolution: int, issues: IssueLog) -> tuple[list[PosedPhoto], Capture]:
    """Open the posed photos of a scene, sorted by name, without decoding them.

    Args:
        source, images: scene folder, and the image folder relative to it.
        resolution: the flag `-r`, see `target_size`.
        issues: receives images without a file and photos of another size than their camera.

    Raises:
        UserError: if cameras or images are missing or damaged, no image has a file, a photo's aspect ratio disagrees
            with its camera, or its lens model is not supported.
    """
    capture = open_capture(source, images)
    paths = photo_files(capture, issues)
    ids = view_ids([image.name for image in capture.images])
    pinholes: dict[tuple, Undistorted] = {}  # images share cameras, and finding a pinhole camera takes a while
    posed, photos = {image.name: image for image in capture.images}, []
    for name, path in paths.items():
        image = posed[name]
        original = capture.cameras[image.camera_id]
        size = (original.width, original.height)  # used if the photo is damaged
        with issues.collect_errors():
            size = _checked_size(path, original, issues)
        key = (image.camera_id, size)
        if key not in pinholes:
            pinholes[key] = undistorted(original, size, capture.undistort)
        fx, fy, cx, cy, remap = pinholes[key]
        camera = Camera(name, image.rotation, image.tvec, fx, fy, cx, cy, *size)
        camera = camera.resized(*target_size(*size, resolution))
        photos.append(PosedPhoto(ids[name], camera, path, size, remap))
    return photos, capture


def photo_files(capture: Capture, issues: IssueLog) -> dict[str, Path]:
    """Find the photo files of a capture, by image name, sorted. Raises UserError if no image has a file."""
    folder = ImageFolder(capture.folder)
    found = {name: folder.find(name) for name in sorted(image.name for image in capture.images)}
    missing = [name for name, path in found.items() if path is None]
    if len(missing) == len(found):
        raise UserError(
            f"none of the {len(missing)} images of {capture.kind} ({capture.place}) has a file in "
            f"{capture.folder}: {first_five(missing)}. Copy the images there or name their folder with -i."
        )
    for name in missing:
        issues.add(f"images of {capture.kind} without a file in {capture.folder}", name)
    return {name: path for name, path in found.items() if path is not None}


def _checked_size(path: Path, camera: ColmapCamera, issues: IssueLog) -> tuple[int, int]:
    """(width, height) of the file, which must have the camera's aspect ratio."""
    width, height = image_size(path)
    if (width, height) != (camera.width, camera.height):
        off = abs(height - camera.height * width / camera.width)
        if min(off, off * camera.width / camera.height) > 1:
            raise UserError(
                f"{path} is {width}x{height}, but its COLMAP camera {camera.id} is "
                f"{camera.width}x{camera.height}: another shape, so it is not the picture COLMAP saw. "
                "Use the images that COLMAP ran on (-i names their folder), resized without cropping."
            )
        issues.add("images of another size than their COLMAP camera, intrinsics scaled with them", path.name)
    return width, height


def view_ids(names: list[str]) -> dict[str, str]:
    """Return an id for every image name: the name without suffix, made safe; with suffix where two would clash."""
    short = {name: _UNSAFE.sub("_", str(PurePosixPath(name).with_suffix(""))) for name in names}
    uses = Counter(view_id.casefold() for view_id in short.values())
    ids: dict[str, str] = {}
    taken = {view_id for view_id, count in uses.items() if count == 1}
    for name, view_id in short.items():
        if uses[view_id.casefold()] > 1:
            view_id = _UNSAFE.sub("_", name)
            if view_id.casefold() in taken:
                view_id = f"{view_id}-{hashlib.sha1(name.encode()).hexdigest()[:8]}"
            taken.add(view_id.casefold())
        ids[name] = view_id
    return ids
