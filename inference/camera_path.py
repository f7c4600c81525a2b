"""Cameras of a video: an orbit around a point, a smooth path through given cameras, or the cameras of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.spatial.transform import Rotation, Slerp

from scene.cameras import Camera, target_size
from utils.errors import UserError
from utils.files import read_json

FULL_CIRCLE = np.radians(240)  # arc of azimuths from which an orbit goes all the way round
LARGEST_SIDE = 16_384  # pixels


def up_direction(cameras: Sequence[Camera]) -> np.ndarray:
    """Estimate the upward unit vector of the world, [3].

    It is the direction most nearly perpendicular to the horizontal axes of all pictures, which is right for cameras
    that pitch and turn but do not roll. If these axes are nearly parallel, it is the mean of the pictures' upward axes,
    which also decides the sign.
    """
    mean = -np.mean([camera.rotation[1] for camera in cameras], axis=0)
    across = np.stack([camera.rotation[0] for camera in cameras])  # [V, 3]
    spread, axes = np.linalg.eigh(across.T @ across / len(across))
    up = axes[:, 0] if spread[1] > 0.02 else mean
    if up @ mean < 0:
        up = -up
    length = np.linalg.norm(up)
    return up / length if length > 1e-6 else -cameras[0].rotation[1]


def orbit(cameras: Sequence[Camera], centre: np.ndarray, frames: int) -> list[Camera]:
    """Return cameras around a centre at the distance and elevation from which it was photographed.

    Distance and elevation are medians over the cameras with the centre in their picture (over all if none has it). If
    they cover the circle (`FULL_CIRCLE`), the orbit goes round once; else it swings through the middle four fifths of
    the arc that they cover, since the other sides are unknown. Either way the last frame leads back to the first.

    Args:
        cameras: one or more training cameras; intrinsics and size are those of the first.
        centre: [3], world units.
    """
    seeing = [camera for camera in cameras if _sees(camera, centre)] or list(cameras)
    up = up_direction(cameras)
    offsets = np.stack([camera.center for camera in seeing]) - centre  # [V, 3]
    heights = offsets @ up
    flat = offsets - heights[:, None] * up
    distances = np.linalg.norm(offsets, axis=1)
    distance = float(np.median(distances)) or 1.0
    elevation = float(np.median(np.arctan2(heights, np.linalg.norm(flat, axis=1))))
    elevation = float(np.clip(elevation, -1.4, 1.4))  # straight above has no azimuth
    east = flat[np.argmax(np.linalg.norm(flat, axis=1))]
    east = east - (east @ up) * up
    if np.linalg.norm(east) < 1e-9:  # all straight above
        east = np.cross(up, np.eye(3)[np.argmin(np.abs(up))])
    east = east / np.linalg.norm(east)
    north = np.cross(up, east)
    start, arc = _arc(np.arctan2(flat @ north, flat @ east))
    turn = np.arange(frames) / frames  # of one period
    swing = arc * (0.5 - 0.4 * np.cos(2 * np.pi * turn))
    azimuths = start + (2 * np.pi * turn if arc >= FULL_CIRCLE else swing)
    result = []
    for number, azimuth in enumerate(azimuths):
        level = np.cos(azimuth) * east + np.sin(azimuth) * north
        position = centre + distance * (np.cos(elevation) * level + np.sin(elevation) * up)
        result.append(_posed(cameras[0], number, _look_along(centre - position, up), position))
    return result


def path_through(cameras: Sequence[Camera], frames: int) -> list[Camera]:
    """Return cameras on a smooth path through the given ones, from the first to the last.

    Positions and intrinsics follow monotone cubic splines, which do not overshoot; rotations turn at a constant rate
    between two cameras (slerp). Time is proportional to distance, for an even speed; a change of the view direction
    counts as the mean distance between cameras a radian. All frames have the size of the first camera.
    """
    first = cameras[0]
    cameras = [camera.resized(first.width, first.height) for camera in cameras]
    centers = np.stack([camera.center for camera in cameras])  # [V, 3]
    turns = Rotation.from_matrix(np.stack([camera.rotation for camera in cameras]))
    steps = np.linalg.norm(np.diff(centers, axis=0), axis=1)
    angles = (turns[1:] * turns[:-1].inv()).magnitude() if len(cameras) > 1 else np.zeros(0)
    lengths = np.hypot(steps, angles * (steps.mean() if len(steps) and steps.any() else 1.0))
    kept = np.concatenate([[True], lengths > 1e-9 * (lengths.max() if len(lengths) else 0.0)])  # no pause, no 0 / 0
    times = np.concatenate([[0.0], np.cumsum(lengths)])[kept]
    if len(times) == 1:
        return [replace(first, name=f"{number:05d}") for number in range(frames)]
    frame_times = np.linspace(0, times[-1], frames)
    intrinsics = np.array([[camera.fx, camera.fy, camera.cx, camera.cy] for camera in cameras])
    numbers = PchipInterpolator(times, np.concatenate([centers, intrinsics], axis=1)[kept])(frame_times)  # [F, 7]
    rotations = Slerp(times, turns[kept])(frame_times).as_matrix()
    result = []
    for number, (row, rotation) in enumerate(zip(numbers, rotations, strict=True)):
        fx, fy, cx, cy = map(float, row[3:])
        result.append(replace(_posed(first, number, rotation, row[:3]), fx=fx, fy=fy, cx=cx, cy=cy))
    return result


def read_cameras(path: Path, resolution: int) -> list[Camera]:
    """Read the cameras of a file like cameras.json of a model folder; cx and cy default to the middle.

    All get the size of the first camera, scaled by `resolution` (the flag `-r`).

    Raises:
        UserError: if it is missing or damaged, or a number in it is invalid.
    """
    entries = read_json(path, "the camera file (--video; else say orbit or path)")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} holds no list of cameras; expected one like cameras.json of a model folder.")
    cameras = [_camera(path, number, entry) for number, entry in enumerate(entries)]
    size = target_size(cameras[0].width, cameras[0].height, resolution)
    return [camera.resized(*size) for camera in cameras]


def _camera(path: Path, number: int, entry: Any) -> Camera:
    try:
        width, height = int(entry["width"]), int(entry["height"])
        fx, fy = float(entry["fx"]), float(entry["fy"])
        cx, cy = float(entry.get("cx", width / 2)), float(entry.get("cy", height / 2))
        rotation = np.array(entry["rotation"], np.float64).reshape(3, 3).T  # camera to world in the file
        position = np.array(entry["position"], np.float64).reshape(3)
    except (TypeError, KeyError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(
            f"{path}: camera {number} cannot be read ({error!r}); expected width, height, fx, fy, position [3] and "
            "rotation [3][3] (camera to world), as in cameras.json of a model folder."
        ) from None
    is_rotation = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0
    are_numbers = np.isfinite([fx, fy, cx, cy, *position]).all() and min(fx, fy) > 0
    sizes_fit = min(width, height) > 0 and max(width, height) <= LARGEST_SIDE
    if not (is_rotation and are_numbers and sizes_fit):
        raise UserError(
            f"{path}: camera {number} is invalid: expected a rotation matrix, finite numbers, fx and fy above 0, and "
            f"a size of 1 to {LARGEST_SIDE} pixels a side; found {width}x{height}, fx {fx:g}, fy {fy:g}, rotation "
            f"{rotation.T.round(4).tolist()}."
        )
    return Camera(f"{number:05d}", rotation, -rotation @ position, fx, fy, cx, cy, width, height)


def _posed(camera: Camera, number: int, rotation: np.ndarray, position: np.ndarray) -> Camera:
    return replace(camera, name=f"{number:05d}", rotation=rotation, translation=-rotation @ position)


def _look_along(forward: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Return the world-to-camera rotation [3, 3] of a level camera that looks along `forward`."""
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


def _sees(camera: Camera, point: np.ndarray) -> bool:
    x, y, z = camera.rotation @ point + camera.translation
    if z <= 0:
        return False
    u, v = camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy
    return 0 <= u <= camera.width and 0 <= v <= camera.height


def _arc(azimuths: np.ndarray) -> tuple[float, float]:
    """Return start and length, in radians, of the shortest arc that holds all azimuths [V]."""
    ordered = np.sort(np.mod(azimuths, 2 * np.pi))
    gaps = np.diff(ordered, append=ordered[0] + 2 * np.pi)
    widest = int(gaps.argmax())
    return float(ordered[(widest + 1) % len(ordered)]), float(2 * np.pi - gaps[widest])
