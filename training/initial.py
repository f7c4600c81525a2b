"""The Gaussians that the RGB stage starts from."""

from __future__ import annotations

import logging

import numpy as np
import torch

from arguments import RGBParams
from scene.dataset import Scene
from scene.gaussian_model import GaussianModel, create_from_points
from training.rgb_schedule import most_gaussians

log = logging.getLogger("refersplat")

START = {"adc": {"opacity": 0.1, "size": 1.0}, "mcmc": {"opacity": 0.5, "size": 0.1}}  # as published


def initial_gaussians(
    scene: Scene, params: RGBParams, sh_degree: int, seed: int, device: torch.device
) -> GaussianModel:
    """Gaussians at the points of the scene, or at random points around what the cameras look at, --cap_max at most.

    Raises:
        UserError: if the points of the scene are too few, or cannot be read.
    """
    if params.init == "random" or not scene.has_points:
        log.info("%s: the RGB stage starts from %d random points (--init_points)", scene.name, params.init_points)
        xyz, rgb = scene.random_points(params.init_points, seed)
    else:
        xyz, rgb = scene.xyz, scene.rgb
    most = most_gaussians(params)
    if len(xyz) > most:
        log.info(
            "%d of the %d points become Gaussians, drawn at random: more are not allowed (--cap_max)", most, len(xyz)
        )
        rows = np.sort(np.random.default_rng(seed).choice(len(xyz), most, replace=False))
        xyz, rgb = xyz[rows], rgb[rows]
    gaussians = create_from_points(xyz, rgb, sh_degree, scene.extent, device, **START[params.densification])
    gaussians.antialiasing = params.antialiasing
    return gaussians
