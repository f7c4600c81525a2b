"""How near a rendered picture comes to a photo: PSNR and SSIM."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from utils.metrics import psnr
from utils.ssim import ssim


class ColourScores(NamedTuple):
    """PSNR in dB and SSIM of one picture."""

    psnr: float
    ssim: float


def colour_scores(image: Tensor, photo: Tensor, ignored: Tensor | None = None) -> ColourScores:
    """Score a picture [3, H, W], clamped to 0..1, against a photo in 0..1.

    Args:
        ignored: [H, W] bool, pixels that do not count. SSIM sees the photo there, in windows that reach over the edge.
    """
    image = image.clamp(0, 1)
    if ignored is None:
        return ColourScores(psnr(image, photo), ssim(image, photo).item())
    image = torch.where(ignored, photo, image)
    counting = (~ignored).sum().clamp_min(1)
    share = (counting / ignored.numel()).item()
    structure = 1 - (1 - ssim(image, photo).item()) / share
    return ColourScores(psnr(image[:, ~ignored], photo[:, ~ignored]), structure)
