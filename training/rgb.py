"""The RGB stage: 3D Gaussian splatting with L1 + D-SSIM (Kerbl et al. 2023)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arguments import RGBParams
from gaussian_renderer import render
from scene.dataset import Scene, View
from scene.gaussian_model import PARAMETER_NAMES, GaussianModel
from scene.gaussian_ply import save_ply
from scene.model_folder import point_cloud_path
from training.densification import DensityControl
from training.session import drawn_without_replacement, require_same_views, view_fingerprint
from training.uploads import Uploads
from utils.losses import ssim
from utils.metrics import psnr


class RGBStage:
    """Optimises every parameter of the Gaussians against the training photos.

    Args:
        folder: model folder.
        scene: views and extent.
        gaussians: the model to train, changed in place.
        params: flags of this stage.
        background: colour behind the Gaussians, [3], on the CPU.
        seed: of the view order and of splits.
    """

    name = "rgb"

    def __init__(
        self, folder: Path, scene: Scene, gaussians: GaussianModel, params: RGBParams, background: Tensor, seed: int
    ):
        self._folder, self._scene, self._params, self._background = folder, scene, params, background
        self.gaussians = gaussians
        self._generator = torch.Generator().manual_seed(seed)
        self._order: list[int] = []
        self._uploads = Uploads(gaussians.device)
        self._setup()

    def _setup(self) -> None:
        """Optimiser and density control for the parameters as they are."""
        params, model = self._params, self.gaussians
        rates = {
            "xyz": params.position_lr_init * model.spatial_lr_scale,
            "features_dc": params.rgb_feature_lr,
            "features_rest": params.rgb_feature_lr / 20,
            "scaling": params.scaling_lr,
            "rotation": params.rotation_lr,
            "opacity": params.opacity_lr,
        }
        for name in PARAMETER_NAMES:
            setattr(model, name, getattr(model, name).detach().clone().requires_grad_(True))
        groups = [{"params": [getattr(model, name)], "lr": rates[name], "name": name} for name in PARAMETER_NAMES]
        self._optimizer = torch.optim.Adam(groups, eps=1e-15)
        self._density = DensityControl(model, self._optimizer, params)

    def step(self, iteration: int) -> dict[str, Tensor | float]:
        params, model = self._params, self.gaussians
        self._set_position_rate(iteration)
        if iteration % params.sh_interval == 0:
            model.active_sh_degree = min(model.active_sh_degree + 1, model.max_sh_degree)
        view = self._scene.train[drawn_without_replacement(self._order, len(self._scene.train), self._generator)]
        target = self._photo(view)
        rendering = render(view.camera, model, self._background)
        l1 = (rendering.image - target).abs().mean()
        similarity = ssim(rendering.image, target)
        loss = (1 - params.lambda_dssim) * l1 + params.lambda_dssim * (1 - similarity)
        loss.backward()
        if iteration <= params.densify_until_iter:
            self._density.observe(rendering.means2D.grad, rendering.radii)
            if iteration >= params.densify_from_iter and iteration % params.densification_interval == 0:
                self._density.densify_and_prune(iteration, self._scene.extent, self._generator)
            # not with the last densification: nothing would prune what a reset then leaves behind
            if iteration < params.densify_until_iter and iteration % params.opacity_reset_interval == 0:
                self._density.reset_opacity()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return {"loss": loss, "l1": l1, "ssim": similarity, "gaussians": float(len(model))}

    def _set_position_rate(self, iteration: int) -> None:
        """Log-linear decay from position_lr_init to position_lr_final over the stage."""
        params = self._params
        share = min(iteration / max(params.rgb_iterations, 1), 1.0)
        rate = params.position_lr_init ** (1 - share) * params.position_lr_final**share
        self._optimizer.param_groups[0]["lr"] = rate * self.gaussians.spatial_lr_scale

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """PSNR over the test views, in dB."""
        values = []
        for view in self._scene.test:
            image = render(view.camera, self.gaussians, self._background).image.clamp(0, 1)
            values.append(psnr(image, self._photo(view)))
        return {"test_psnr": sum(values) / len(values)} if values else {}

    def _photo(self, view: View) -> Tensor:
        """The view's photo as [3, H, W] float32 in 0..1."""
        return self._uploads.get(view.id, view.image).permute(2, 0, 1).float() / 255

    def save(self, iteration: int) -> None:
        save_ply(point_cloud_path(self._folder, iteration), self.gaussians)

    def state(self) -> dict[str, Any]:
        return {
            "parameters": {name: tensor.detach() for name, tensor in self.gaussians.parameters().items()},
            "active_sh_degree": self.gaussians.active_sh_degree,
            "optimizer": self._optimizer.state_dict(),
            "density": self._density.state(),
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
        self._optimizer.load_state_dict(state["optimizer"])
        self._density.load_state(state["density"])
        self._generator.set_state(state["generator"])
        self._order = list(state["order"])
