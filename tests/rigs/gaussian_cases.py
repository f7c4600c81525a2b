"""Small Gaussian models in training, for tests of densification."""

from __future__ import annotations

import torch
from torch import Tensor

from scene.gaussian_model import PARAMETER_NAMES, GaussianModel
from training.gaussian_optimizer import MOMENTS, GaussianOptimizer


def gaussians(sizes: list[float], opacities: list[float] | None = None, sh_degree: int = 1) -> GaussianModel:
    """Make round Gaussians at random positions with random colours; the scene extent is 1."""
    generator = torch.Generator().manual_seed(1)
    count = len(sizes)
    rotation = torch.zeros(count, 4)
    rotation[:, 0] = 1
    return GaussianModel(
        xyz=torch.randn(count, 3, generator=generator),
        features_dc=torch.randn(count, 1, 3, generator=generator),
        features_rest=torch.randn(count, (sh_degree + 1) ** 2 - 1, 3, generator=generator),
        scaling=torch.tensor(sizes).log()[:, None].repeat(1, 3),
        rotation=rotation,
        opacity=torch.logit(torch.tensor(opacities or [0.5] * count))[:, None],
        active_sh_degree=sh_degree,
    )


def fill_moments(optimizer: GaussianOptimizer) -> None:
    """Give Adam non-zero moments without changing the parameters."""
    for name, tensor in optimizer.model.parameters().items():
        generator = torch.Generator().manual_seed(len(name))
        tensor.grad = torch.rand(tensor.shape, generator=generator) + 0.5
    for group in optimizer.adam.param_groups:
        group["lr"] = 0.0
    optimizer.adam.step()
    optimizer.adam.zero_grad(set_to_none=True)


def moments(optimizer: GaussianOptimizer) -> dict[str, tuple[Tensor, Tensor]]:
    """Copy Adam's moments, by parameter."""
    state = optimizer.adam.state
    parameters = optimizer.model.parameters()
    return {name: tuple(state[parameters[name]][m].clone() for m in MOMENTS) for name in PARAMETER_NAMES}
