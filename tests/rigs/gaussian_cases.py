"""Small sets of Gaussians in training, for tests of densification."""

from __future__ import annotations

import torch
from torch import Tensor

from scene.gaussian_model import PARAMETER_NAMES, GaussianModel
from training.trained_gaussians import MOMENTS, TrainedGaussians


def gaussians(sizes: list[float], opacities: list[float] | None = None, sh_degree: int = 1) -> GaussianModel:
    """Round Gaussians at random places with random colours; the scene extent is 1."""
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


def stepped(trained: TrainedGaussians) -> None:
    """Give Adam moments, all of them different from 0, and leave the parameters as they are."""
    for name, tensor in trained.model.parameters().items():
        generator = torch.Generator().manual_seed(len(name))
        tensor.grad = torch.rand(tensor.shape, generator=generator) + 0.5
    for group in trained.optimizer.param_groups:
        group["lr"] = 0.0
    trained.optimizer.step()
    trained.optimizer.zero_grad(set_to_none=True)


def moments(trained: TrainedGaussians) -> dict[str, tuple[Tensor, Tensor]]:
    """Copies of Adam's moments by parameter."""
    state = trained.optimizer.state
    parameters = trained.model.parameters()
    return {name: tuple(state[parameters[name]][m].clone() for m in MOMENTS) for name in PARAMETER_NAMES}
