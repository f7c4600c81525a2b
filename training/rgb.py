"""The RGB stage: 3D Gaussian splatting with L1 + D-SSIM (Kerbl et al. 2023)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arguments import RGBParams
from gaussian_renderer import render
from scene.dataset import Scene
from scene.formats.ply import save_ply
from scene.gaussian_model import GaussianModel
from scene.layouts.ignore_masks import find_ignore_masks
from scene.model_folder import point_cloud_path
from training.densification import DensityControl
from training.exposure import Exposures
from training.mcmc import MarkovChain
from training.photo_loss import photo_loss
from training.photos import Photos, means, score_views
from training.session import draw_without_replacement, require_same_views, view_fingerprint
from training.trained_gaussians import TrainedGaussians


class RGBStage:
    """Optimises every parameter of the Gaussians against the training photos.

    Args:
        folder: model folder.
        scene: views and extent.
        gaussians: the model to train, changed in place.
        params: flags of this stage.
        background: colour behind the Gaussians, [3], on the CPU.
        seed: of the view order and of densification.

    Attributes:
        gaussians: the model.
        view: id of the view of the last step.

    Raises:
        UserError: if the masks of --ignore_mask_dir are not there, or the photo of a test view cannot be read.
    """

    name = "rgb"

    def __init__(
        self, folder: Path, scene: Scene, gaussians: GaussianModel, params: RGBParams, background: Tensor, seed: int
    ):
        self._folder, self._scene, self._params, self._background = folder, scene, params, background
        self.gaussians, self.view = gaussians, ""
        self._photos = Photos(gaussians.device, find_ignore_masks(params.ignore_mask_dir, scene))
        for view in scene.test:  # they are needed at the end at the latest; a damaged one is told now
            self._photos.bytes(view)
        self._generator = torch.Generator().manual_seed(seed)
        self._one = torch.ones((), device=gaussians.device)  # the loss by itself, which autograd would make anew
        is_mcmc = params.densification == "mcmc"
        self._penalties = (params.opacity_reg, params.scale_reg) if is_mcmc else (0.0, 0.0)
        self._order: list[int] = []
        self._setup()

    def _setup(self) -> None:
        """Optimisers and densification for the parameters as they are."""
        self._trained = TrainedGaussians(self.gaussians, self._params)
        kind = MarkovChain if self._params.densification == "mcmc" else DensityControl
        self._density = kind(self._trained, self._params, self._generator)
        self._exposures = None
        if self._params.exposure:
            self._exposures = Exposures(self._scene.train, self._params, self.gaussians.device)

    def step(self, iteration: int) -> dict[str, Tensor | float]:
        """Take one step. Nothing in it waits for a GPU, but for densification and what the rasteriser must know."""
        params, model = self._params, self.gaussians
        if iteration % params.sh_interval == 0:
            model.active_sh_degree = min(model.active_sh_degree + 1, model.max_sh_degree)
        view = self._scene.train[draw_without_replacement(self._order, len(self._scene.train), self._generator)]
        self.view = view.id
        background = torch.rand(3, generator=self._generator) if params.random_background else self._background
        rendering = render(view.camera, model, background, *self._penalties)
        image = rendering.image
        if self._exposures is not None:
            image = self._exposures.apply(view, image)
        photo, ignored = self._photos.bytes(view), self._photos.ignored(view)
        loss, l1, similarity = photo_loss(image, photo, ignored, params.lambda_dssim)
        if rendering.penalty is not None:
            loss = loss + rendering.penalty
        loss.backward(self._one)
        self._density.before_update(iteration, rendering)
        position_rate = self._trained.update(iteration)
        if self._exposures is not None:
            self._exposures.update(iteration)
        self._density.after_update(iteration, position_rate)
        return {"loss": loss, "l1": l1, "ssim": similarity, "gaussians": float(len(model))}

    def evaluate(self) -> dict[str, float]:
        """PSNR in dB and SSIM, means over the test views."""
        scores = score_views(self._scene.test, self.gaussians, self._background, self._photos)
        return {f"test_{name}": value for name, value in means(scores).items()}

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
            "optimizer": self._trained.state(),
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
        self._setup()
        self._trained.load_state(state["optimizer"])
        self._density.load_state(state["density"])
        if self._exposures is not None:
            self._exposures.load_state(state["exposures"])
        self._generator.set_state(state["generator"])
        self._order = list(state["order"])
