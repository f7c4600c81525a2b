"""Cameras on a part of a dome in front of the table."""

from __future__ import annotations

import numpy as np

from scene.cameras import Camera
from synthetic.geometry import dot

AZIMUTH = 38.0  # degrees to either side; limited so that left, right, front and back mean the same in every view
ELEVATIONS = (27.0, 37.0, 47.0, 57.0)  # degrees above the table, one tier of views each
FIELD_OF_VIEW = 47.0  # degrees, horizontal, at 4:3; the vertical one is kept at other aspect ratios


def look_at(centre: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rotation [3, 3], translation [3]) of a camera at `centre` that looks at `target`, with z upright."""
    forward = (target - centre) / np.linalg.norm(target - centre)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return rotation, -rotation @ centre


def cameras(count: int, width: int, height: int, closeness: float, seed: int) -> list[Camera]:
    """`count` cameras, tier after tier in alternating direction, as a hand would carry a camera around.

    `closeness` 1 shows the whole table; smaller crowds are seen from nearer by.
    """
    rng = np.random.default_rng([seed, 11])
    tiers = np.array_split(np.arange(count), min(len(ELEVATIONS), count))
    focal = height * (4 / 3) / (2 * np.tan(np.radians(FIELD_OF_VIEW / 2)))
    result = []
    for tier, members in enumerate(tiers):
        share = (np.arange(len(members)) + 0.5) / len(members)
        if tier % 2:
            share = share[::-1]
        for index, place in zip(members, share, strict=True):
            sway = rng.uniform(-1, 1, 6)
            azimuth = np.radians(np.clip((2 * place - 1) * AZIMUTH + 1.5 * sway[0], -AZIMUTH, AZIMUTH))
            elevation = np.radians(ELEVATIONS[tier] + 3 * sway[1])
            distance = closeness * (1.13 + 0.05 * sway[2])
            target = np.array([0.015, 0.015, 0.01]) * sway[3:] + [0.0, -0.02, 0.03]
            level = np.cos(elevation)
            heading = np.array([np.sin(azimuth) * level, -np.cos(azimuth) * level, np.sin(elevation)])
            rotation, translation = look_at(target + distance * heading, target)
            name = f"frame_{index + 1:05d}.png"
            result.append(Camera(name, rotation, translation, focal, focal, width / 2, height / 2, width, height))
    return result


def test_views(count: int, seed: int) -> list[int]:
    """Indices of the test views: about every fifth, spread over all tiers, at least one."""
    first = int(np.random.default_rng([seed, 12]).integers(min(5, count)))
    return list(range(first, count, 5))


def project(camera: Camera, point: np.ndarray) -> np.ndarray:
    """Pixel coordinates and depth [N, 3] of world points [N, 3] (COLMAP pixel convention)."""
    p = point @ camera.rotation.T + camera.translation
    x = camera.fx * p[:, 0] / p[:, 2] + camera.cx
    y = camera.fy * p[:, 1] / p[:, 2] + camera.cy
    return np.stack([x, y, p[:, 2]], axis=1)


def rays(camera: Camera, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(origin [N, 3], unit direction [N, 3]) of the rays through pixel coordinates x, y [N]."""
    local = np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones(len(x))], axis=1)
    direction = local @ camera.rotation
    direction /= np.sqrt(dot(direction, direction))[:, None]
    return np.broadcast_to(camera.center, direction.shape), direction
