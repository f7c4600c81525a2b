"""Random points to start the colour stage from, where a scene has none of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scene.cameras import Camera

GREY = 128


def random_points(count: int, center: np.ndarray, extent: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey points evenly spread over a cube.

    Args:
        count: number of points, N.
        center: of the cube, [3], world units.
        extent: half the cube's side, world units.
        seed: the same seed gives the same points.

    Returns:
        (xyz [N, 3] float32, rgb [N, 3] uint8).
    """
    shares = np.random.default_rng(seed).uniform(-1, 1, (count, 3))
    return (center + extent * shares).astype(np.float32), np.full((count, 3), GREY, np.uint8)


def scene_bounds(cameras: Sequence[Camera]) -> tuple[np.ndarray, float]:
    """(center [3], half side) of a cube around what the cameras look at, world units.

    The centre is the point nearest to all optical axes, the half side what the narrower side of a picture shows at the
    mean distance of that point. In a Blender scene (cameras 4.03 units away, 39.6 degrees wide) that is 1.45, where
    3DGS writes 1.3. If the axes do not meet in front of the cameras, as when they look outwards or all one way, it is
    the cube of three times the cameras' radius around their mean, which gsplat takes.
    """
    centers = np.stack([camera.center for camera in cameras])  # [V, 3]
    axes = np.stack([camera.rotation[2] for camera in cameras])  # [V, 3], unit
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]  # [V, 3, 3], projections along the axes
    normal = across.mean(axis=0)
    if np.linalg.eigvalsh(normal)[0] > 0.01:  # else nearly parallel axes
        focus = np.linalg.solve(normal, np.einsum("vij,vj->i", across, centers) / len(centers))
        depths = ((focus - centers) * axes).sum(axis=1)
        if (depths > 0).mean() > 0.9:
            half_fov = min(min(camera.tan_half_fov) for camera in cameras)
            return focus, float(np.abs(depths).mean() * half_fov)
    middle = centers.mean(axis=0)
    radius = float(np.linalg.norm(centers - middle, axis=1).max())
    return middle, 3 * radius or 1.0
