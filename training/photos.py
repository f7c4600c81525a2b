"""Training photos and their masks on the device, the loss against them, and scores of the test views."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from diff_gaussian_rasterization import step_kernels
from gaussian_renderer import render
from scene.dataset import View
from scene.gaussian_model import GaussianModel
from scene.layouts.ignore_masks import IgnoreMasks
from training.image_cache import ImageCache
from utils.colour_metrics import ColourScores, colour_scores, ssim


class Photos:
    """Photos of views as tensors; on a GPU their bytes stay there.

    Args:
        device: where the tensors go.
        ignored: masks of pixels that do not count, or None.
    """

    def __init__(self, device: torch.device, ignored: IgnoreMasks | None):
        self._cache, self._ignored = ImageCache(device), ignored

    def bytes(self, view: View) -> Tensor:
        """Return the photo as uint8, [3, H, W]."""
        return self._cache.get(view.id, lambda: np.ascontiguousarray(view.image().transpose(2, 0, 1)))

    def photo(self, view: View) -> Tensor:
        """Return the photo as float32 in 0..1, [3, H, W]."""
        return self.bytes(view).float() / 255

    def ignored(self, view: View) -> Tensor | None:
        """Return the pixels that do not count, bool [H, W], or None if all count."""
        if self._ignored is None or not self._ignored.has(view):
            return None
        return self._cache.get((view.id, "ignored"), lambda: self._ignored.load(view))


def photo_loss(
    image: Tensor, photo: Tensor, ignored: Tensor | None, lambda_dssim: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute (1 - lambda) L1 + lambda (1 - SSIM), Eq. 7 of Kerbl et al. 2023; differentiable in `image`.

    Args:
        image: rendering, [3, H, W].
        photo: uint8, [3, H, W].
        ignored: bool [H, W], pixels that do not count and are set to black in both; or None.
        lambda_dssim: lambda, 0..1.

    Returns:
        the loss, and detached L1 and SSIM.
    """
    if step_kernels.available(image.device):
        return step_kernels.photo_loss(image, photo, ignored, lambda_dssim)
    target = photo.to(image.dtype) / 255
    if ignored is not None:
        image, target = image.masked_fill(ignored, 0), target.masked_fill(ignored, 0)
    l1 = (image - target).abs().mean()
    similarity = ssim(image, target)
    return (1 - lambda_dssim) * l1 + lambda_dssim * (1 - similarity), l1.detach(), similarity.detach()


@torch.no_grad()
def score_views(
    views: Iterable[View], gaussians: GaussianModel, background: Tensor, photos: Photos
) -> dict[str, ColourScores | None]:
    """Return PSNR and SSIM by view id; None where every pixel is ignored."""
    scores = {}
    for view in views:
        image = render(view.camera, gaussians, background).image
        scores[view.id] = colour_scores(image, photos.photo(view), photos.ignored(view))
    return scores


def mean_scores(scores: dict[str, ColourScores | None]) -> dict[str, float]:
    """Return the mean PSNR in dB and SSIM over the views with scores; empty if there are none."""
    scored = [score for score in scores.values() if score is not None]
    if not scored:
        return {}
    names = ColourScores._fields
    return {name: sum(getattr(score, name) for score in scored) / len(scored) for name in names}
