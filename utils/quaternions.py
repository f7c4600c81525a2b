"""Rotations as quaternions w x y z."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(quaternions: Tensor, vectors: Tensor) -> Tensor:
    """Rotate vectors [P, 3] by unit quaternions w x y z [P, 4]."""
    real, imaginary = quaternions[:, :1], quaternions[:, 1:]
    twice = 2 * torch.linalg.cross(imaginary, vectors)
    return vectors + real * twice + torch.linalg.cross(imaginary, twice)
