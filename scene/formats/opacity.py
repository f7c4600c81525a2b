"""Opacities that files keep in a byte."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

LARGEST_LOGIT = math.log(254.75 / 0.25)  # of the byte 255: the middle of the opacities that round to it


def opacity_bytes(logits: Tensor) -> np.ndarray:
    """The nearest bytes, [N] uint8, of opacity logits [N, 1]."""
    return torch.sigmoid(logits.detach().double()).mul(255).round().to(torch.uint8).flatten().cpu().numpy()


def opacity_logits(values: np.ndarray) -> Tensor:
    """Opacity logits, [N, 1] float32, of opacities in bytes, [N] uint8. 0 and 255 get finite logits."""
    return finite_logits(torch.logit(torch.from_numpy(values.astype(np.float64)) / 255)).float()[:, None]


def finite_logits(logits: Tensor) -> Tensor:
    """Logits of bytes, of which those of 0 and 255 are moved by a quarter of a byte's step to where they are finite."""
    return logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
