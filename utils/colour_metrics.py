"""How near a rendered picture comes to a photo: PSNR and SSIM."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from utils.metrics import psnr
from utils.ssim import ssim


class ColourScores(NamedTuple):
    """PSNR in dB and SSIM of one picture."""

    psnr: float
    ssim: float


def colour_scores(image: Tensor, photo: Tensor, ignored: Tensor | None = None) -> ColourScores | None:
    """Score a picture [3, H, W], clamped to 0..1, against a photo in 0..1.

    Args:
        ignored: [H, W] bool, pixels that do not count; black in both pictures for the windows of SSIM that reach there.

    Returns:
        the scores; None if every pixel is ignored.
    """
    image = image.clamp(0, 1)
    if ignored is None:
        return ColourScores(psnr(image, photo), ssim(image, photo).item())
    share = 1 - ignored.float().mean().item()
    if share == 0:
        return None
    loss = 1 - ssim(image.masked_fill(ignored, 0), photo.masked_fill(ignored, 0)).item()
    return ColourScores(psnr(image[:, ~ignored], photo[:, ~ignored]), 1 - loss / share)
