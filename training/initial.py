"""The Gaussians that the RGB stage starts from."""

from __future__ import annotations

import numpy as np
import torch

from arguments import RGBParams
from scene.dataset import Scene
from scene.gaussian_model import GaussianModel, create_from_points

RANDOM_REACH = 3.0  # half side of the cube of random points, in scene extents around the middle of the cameras
START = {"adc": {"opacity": 0.1, "size": 1.0}, "mcmc": {"opacity": 0.5, "size": 0.1}}  # as published


def initial_gaussians(
    scene: Scene, params: RGBParams, sh_degree: int, seed: int, device: torch.device
) -> GaussianModel:
    """Gaussians at the COLMAP points, or at random points in a cube around the cameras, with random colours.

    Raises:
        UserError: if the COLMAP points are too few, or cannot be read.
    """
    xyz, rgb = random_points(scene, params.init_points, seed) if params.init == "random" else (scene.xyz, scene.rgb)
    gaussians = create_from_points(xyz, rgb, sh_degree, scene.extent, device, **START[params.densification])
    gaussians.antialiasing = params.antialiasing
    return gaussians


def random_points(scene: Scene, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(xyz [M, 3] float32, rgb [M, 3] uint8), evenly distributed."""
    generator = np.random.default_rng(seed)
    middle = np.mean([view.camera.center for view in scene.train], axis=0)
    places = generator.uniform(-1, 1, (count, 3)) * RANDOM_REACH * scene.extent + middle
    return places.astype(np.float32), generator.integers(0, 256, (count, 3), dtype=np.uint8)
