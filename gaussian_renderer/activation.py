"""Parameters of the Gaussians as the rasteriser takes them, and MCMC's penalty on them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from diff_gaussian_rasterization import step_kernels
from scene.gaussian_model import GaussianModel


class Activated(NamedTuple):
    """What `activate` returns.

    Attributes:
        opacities: [N, 1], 0..1.
        scales: [N, 3], standard deviations.
        rotations: [N, 4], unit quaternions.
        shs: [N, M, 3], harmonics of the degrees in use.
        penalty: scalar; None if nothing is penalised.
    """

    opacities: Tensor
    scales: Tensor
    rotations: Tensor
    shs: Tensor
    penalty: Tensor | None


def activate(gaussians: GaussianModel, opacity_weight: float = 0.0, scale_weight: float = 0.0) -> Activated:
    """The Gaussians after their activations; differentiable in every raw parameter.

    Args:
        gaussians: the model.
        opacity_weight, scale_weight: the penalty is the mean opacity times the one plus the mean standard deviation
            times the other (Kheradmand et al. 2024).
    """
    if step_kernels.available(gaussians.device):
        degree = gaussians.active_sh_degree
        return Activated(*step_kernels.activate(raw_gaussians(gaussians), degree, opacity_weight, scale_weight))
    opacities, scales = gaussians.get_opacity, gaussians.get_scaling
    penalty = None
    if opacity_weight or scale_weight:
        penalty = opacity_weight * opacities.mean() + scale_weight * scales.mean()
    return Activated(opacities, scales, gaussians.get_rotation, gaussians.active_features, penalty)


def raw_gaussians(gaussians: GaussianModel) -> step_kernels.RawParameters:
    """The parameters for the kernels of a training step; those of a file may lie otherwise in memory."""
    names = step_kernels.RawParameters._fields
    return step_kernels.RawParameters(*(getattr(gaussians, name).contiguous() for name in names))
