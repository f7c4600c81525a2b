"""The 3D Gaussians of a scene: raw parameters, activations, and initialisation from points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simple_knn._C import distCUDA2
from utils.errors import UserError

SH_C0 = 0.28209479177387814  # value of the spherical harmonic of degree 0
MIN_POINTS = 4  # for initialisation: each needs 3 neighbours
PARAMETER_NAMES = ("xyz", "features_dc", "features_rest", "scaling", "rotation", "opacity")


@dataclass
class GaussianModel:
    """Raw (pre-activation) parameters of N Gaussians, named as in 3DGS."""

    xyz: Tensor  # [N, 3] centres, world units
    features_dc: Tensor  # [N, 1, 3] SH coefficients of degree 0
    features_rest: Tensor  # [N, (max_sh_degree + 1)^2 - 1, 3] SH coefficients of degrees 1 and up
    scaling: Tensor  # [N, 3] logarithms of the standard deviations along the axes
    rotation: Tensor  # [N, 4] quaternions w x y z, not normalised
    opacity: Tensor  # [N, 1] logits
    active_sh_degree: int  # SH degree in use
    spatial_lr_scale: float = 1.0  # scene extent, world units; scales the learning rate of positions
    antialiasing: bool = False  # render with the opacities of `gaussian_renderer.antialiasing`

    def __len__(self) -> int:
        return self.xyz.shape[0]

    @property
    def device(self) -> torch.device:
        return self.xyz.device

    @property
    def max_sh_degree(self) -> int:
        return round((self.features_rest.shape[1] + 1) ** 0.5) - 1

    @property
    def get_xyz(self) -> Tensor:
        return self.xyz

    @property
    def active_features(self) -> Tensor:
        """SH coefficients of the degrees in use, [N, (active_sh_degree + 1)^2, 3]; the others get no gradient."""
        if self.active_sh_degree == 0:
            return self.features_dc
        return torch.cat((self.features_dc, self.features_rest[:, : (self.active_sh_degree + 1) ** 2 - 1]), dim=1)

    @property
    def get_scaling(self) -> Tensor:
        return torch.exp(self.scaling)

    @property
    def get_rotation(self) -> Tensor:
        return F.normalize(self.rotation)

    @property
    def get_opacity(self) -> Tensor:
        return torch.sigmoid(self.opacity)

    def parameters(self) -> dict[str, Tensor]:
        """The six parameter tensors by name."""
        return {name: getattr(self, name) for name in PARAMETER_NAMES}

    def to(self, device: torch.device | str) -> GaussianModel:
        """Copy the model, detached, to a device."""
        return self._map(lambda tensor: tensor.to(device))

    def subset(self, chosen: Tensor) -> GaussianModel:
        """Copy the Gaussians where `chosen`, bool [N], is true, detached and in their order."""
        return self._map(lambda tensor: tensor[chosen])

    def _map(self, change: Callable[[Tensor], Tensor]) -> GaussianModel:
        tensors: dict[str, Any] = {name: change(tensor.detach()) for name, tensor in self.parameters().items()}
        return replace(self, **tensors)

    def check(self, source: str) -> None:
        """Raise UserError, naming `source`, unless shapes agree and every number is finite."""
        count = len(self)
        rest = (self.max_sh_degree + 1) ** 2 - 1
        shapes = [(count, *shape) for shape in ((3,), (1, 3), (rest, 3), (3,), (4,), (1,))]
        if count == 0:
            raise UserError(f"{source} holds no Gaussian. Train the RGB stage again or choose another model.")
        for (name, tensor), shape in zip(self.parameters().items(), shapes, strict=True):
            if tensor.shape != shape:
                raise UserError(
                    f"{source}: {name} has shape {tuple(tensor.shape)}, expected {shape}. "
                    "The file is not a 3DGS model of SH degree 0 to 3, or it is damaged."
                )
            bad = ~torch.isfinite(tensor).flatten(1).all(dim=1)
            if bad.any():
                first = int(torch.nonzero(bad)[0])
                raise UserError(
                    f"{source}: {name} is NaN or infinite in {int(bad.sum())} of {count} Gaussians (first: {first}). "
                    "The model is damaged or its training diverged; train it again or remove these Gaussians."
                )


def create_from_points(
    xyz: np.ndarray,
    rgb: np.ndarray,
    sh_degree: int,
    spatial_lr_scale: float,
    device: torch.device | str = "cpu",
    opacity: float = 0.1,
    size: float = 1.0,
) -> GaussianModel:
    """Initialise round Gaussians at points as 3DGS does: the radius is the mean distance of the 3 nearest neighbours.

    Args:
        xyz, rgb: points, [M, 3] in world units, and their colours, [M, 3] uint8.
        sh_degree: highest SH degree, 0..3.
        spatial_lr_scale: scene extent in world units.
        opacity, size: initial opacity, 0..1, and factor on the radius.

    Raises:
        UserError: if there are fewer than MIN_POINTS points.
    """
    if len(xyz) < MIN_POINTS:
        raise UserError(
            f"the COLMAP model has {len(xyz)} points, but the RGB stage starts from at least {MIN_POINTS}. Run "
            "COLMAP's mapper on this scene, start from random points with --init random, or from a trained model with "
            "--start_checkpoint."
        )
    points = torch.from_numpy(np.ascontiguousarray(xyz, dtype=np.float32)).to(device)
    colors = torch.from_numpy(rgb.astype(np.float32) / 255).to(device)
    squared = distCUDA2(points).clamp_min(1e-7)  # [M]
    count = len(points)
    return GaussianModel(
        xyz=points,
        features_dc=((colors - 0.5) / SH_C0)[:, None],
        features_rest=torch.zeros(count, (sh_degree + 1) ** 2 - 1, 3, device=device),
        scaling=(squared.sqrt() * size).log()[:, None].repeat(1, 3),
        rotation=torch.tensor([[1.0, 0, 0, 0]], device=device).repeat(count, 1),
        opacity=torch.logit(torch.full((count, 1), opacity, device=device)),
        active_sh_degree=0,
        spatial_lr_scale=spatial_lr_scale,
    )
