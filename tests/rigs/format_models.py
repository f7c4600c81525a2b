"""Gaussian models for tests of file formats."""

from __future__ import annotations

from pathlib import Path

import torch

from scene.formats.files import save_gaussians
from scene.gaussian_model import GaussianModel

ENDINGS = [".ply", ".compressed.ply", ".splat", ".spz"]


def make_model(count: int, degree: int = 3, seed: int = 0) -> GaussianModel:
    """Random Gaussians that every format can hold without cutting a value."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(least: float, most: float, *shape: int) -> torch.Tensor:
        return least + (most - least) * torch.rand(count, *shape, generator=generator)

    return GaussianModel(
        xyz=uniform(-3, 3, 3),
        features_dc=uniform(-1.7, 1.7, 1, 3),
        features_rest=uniform(-0.9, 0.9, (degree + 1) ** 2 - 1, 3),
        scaling=uniform(-7, -2, 3),
        rotation=torch.randn(count, 4, generator=generator),
        opacity=uniform(-9, 9, 1),
        active_sh_degree=degree,
    )


def write_all(folder: Path) -> Path:
    """The same model in every format, by the name model and the ending."""
    for ending in ENDINGS:
        save_gaussians(folder / f"model{ending}", make_model(300))
    return folder
