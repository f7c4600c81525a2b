"""The RGB stage: 3D Gaussian splatting with L1 + D-SSIM (Kerbl et al. 2023)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arguments import RGBParams
from gaussian_renderer import render
from scene.dataset import Scene
from scene.formats.ply import save_ply
from scene.gaussian_model import GaussianModel, create_from_points
from scene.layouts.ignore_masks import find_ignore_masks
from scene.model_folder import point_cloud_path
from training.densification import DensityControl, max_gaussians
from training.gaussian_optimizer import GaussianOptimizer
from training.mcmc import MarkovChain
from training.photos import Exposures, Photos, mean_scores, photo_loss, score_views
from training.session import draw_without_replacement, require_same_views, view_fingerprint

log = logging.getLogger("refersplat")

START = {"adc": {"opacity": 0.1, "size": 1.0}, "mcmc": {"opacity": 0.5, "size": 0.1}}  # as published


class RGBStage:
    """Optimises all parameters of the Gaussians on the training photos.

    Args:
        folder: model folder.
        scene: views and extent.
        gaussians: the model to train, changed in place.
        params: flags of this stage.
        background: colour behind the Gaussians, [3], on the CPU.
        seed: of the view order and densification.

    Raises:
        UserError: if the masks of --ignore_mask_dir are missing, or the photo of a test view cannot be read.
    """

    name = "rgb"

    def __init__(
        self, folder: Path, scene: Scene, gaussians: GaussianModel, params: RGBParams, background: Tensor, seed: int
    ):
        self._folder, self._scene, self._params, self._background = folder, scene, params, background
        self.gaussians, self.view = gaussians, ""
        self._photos = Photos(gaussians.device, find_ignore_masks(params.ignore_mask_dir, scene))
        for view in scene.test:  # report a damaged test photo before training
            self._photos.bytes(view)
        self._generator = torch.Generator().manual_seed(seed)
        self._one = torch.ones((), device=gaussians.device)  # d loss / d loss, which autograd would create in each step
        self._penalty_weights = (params.opacity_reg, params.scale_reg) if params.densification == "mcmc" else (0.0, 0.0)
        self._order: list[int] = []
        self._create_optimizers()

    def _create_optimizers(self) -> None:
        """Set up optimisers and densification for the current parameters."""
        self._optimizer = GaussianOptimizer(self.gaussians, self._params)
        kind = MarkovChain if self._params.densification == "mcmc" else DensityControl
        self._density = kind(self._optimizer, self._params, self._generator)
        self._exposures = None
        if self._params.exposure:
            self._exposures = Exposures(self._scene.train, self._params, self.gaussians.device)

    def step(self, iteration: int) -> dict[str, Tensor | float]:
        """Run one training step on one view and return its losses.

        Only densification, and the rasteriser for the size of its lists, wait for the GPU.
        """
        params, model = self._params, self.gaussians
        if iteration % params.sh_interval == 0:
            model.active_sh_degree = min(model.active_sh_degree + 1, model.max_sh_degree)
        view = self._scene.train[draw_without_replacement(self._order, len(self._scene.train), self._generator)]
        self.view = view.id
        background = torch.rand(3, generator=self._generator) if params.random_background else self._background

        rendering = render(view.camera, model, background, *self._penalty_weights)
        image = rendering.image  # [3, H, W]
        if self._exposures is not None:
            image = self._exposures.apply(view, image)

        loss, l1, ssim = photo_loss(image, self._photos.bytes(view), self._photos.ignored(view), params.lambda_dssim)
        if rendering.penalty is not None:
            loss = loss + rendering.penalty
        loss.backward(self._one)

        self._density.before_update(iteration, rendering)  # adaptive density control
        position_lr = self._optimizer.update(iteration)
        if self._exposures is not None:
            self._exposures.update(iteration)
        self._density.after_update(iteration, position_lr)  # MCMC
        return {"loss": loss, "l1": l1, "ssim": ssim, "gaussians": float(len(model))}

    def evaluate(self) -> dict[str, float]:
        """Return PSNR in dB and SSIM, means over the test views."""
        scores = score_views(self._scene.test, self.gaussians, self._background, self._photos)
        return {f"test_{name}": value for name, value in mean_scores(scores).items()}

    def save(self, iteration: int) -> None:
        self.gaussians.check("the RGB stage's model")
        path = point_cloud_path(self._folder, iteration)
        save_ply(path, self.gaussians)
        if self._exposures is not None:
            self._exposures.save(path.with_name("exposure.json"))

    def state(self) -> dict[str, Any]:
        self.gaussians.check("the RGB stage's model")
        return {
            "parameters": {name: tensor.detach() for name, tensor in self.gaussians.parameters().items()},
            "active_sh_degree": self.gaussians.active_sh_degree,
            "optimizer": self._optimizer.state(),
            "density": self._density.state(),
            "exposures": self._exposures and self._exposures.state(),
            "generator": self._generator.get_state(),
            "order": list(self._order),
            "views": view_fingerprint(self._scene.train),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        require_same_views(state["views"], self._scene.train)
        device = self.gaussians.device
        for name, tensor in state["parameters"].items():
            setattr(self.gaussians, name, tensor.to(device))
        self.gaussians.active_sh_degree = state["active_sh_degree"]
        self._create_optimizers()
        self._optimizer.load_state(state["optimizer"])
        self._density.load_state(state["density"])
        if self._exposures is not None:
            self._exposures.load_state(state["exposures"])
        self._generator.set_state(state["generator"])
        self._order = list(state["order"])


def initial_gaussians(
    scene: Scene, params: RGBParams, sh_degree: int, seed: int, device: torch.device
) -> GaussianModel:
    """Create Gaussians at the points of the scene or at random points in the cameras' focus, at most --cap_max.

    Raises:
        UserError: if the scene has too few points, or they cannot be read.
    """
    if params.init == "random" or not scene.has_points:
        log.info("%s: the RGB stage starts from %d random points (--init_points)", scene.name, params.init_points)
        xyz, rgb = scene.random_points(params.init_points, seed)
    else:
        xyz, rgb = scene.xyz, scene.rgb
    cap = max_gaussians(params)
    if len(xyz) > cap:
        log.info("the RGB stage starts from a random %d of the %d points (--cap_max)", cap, len(xyz))
        rows = np.sort(np.random.default_rng(seed).choice(len(xyz), cap, replace=False))
        xyz, rgb = xyz[rows], rgb[rows]
    gaussians = create_from_points(xyz, rgb, sh_degree, scene.extent, device, **START[params.densification])
    gaussians.antialiasing = params.antialiasing
    return gaussians
