"""Photos and their masks on the device, and how near renderings of the test views come to them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from gaussian_renderer import render
from scene.dataset import View
from scene.gaussian_model import GaussianModel
from scene.layouts.ignore_masks import IgnoreMasks
from training.uploads import Uploads
from utils.colour_metrics import ColourScores, colour_scores


class Photos:
    """Photos of views as tensors; on a GPU their bytes stay there.

    Args:
        device: where they go.
        ignored: masks of pixels that do not count, or None.
    """

    def __init__(self, device: torch.device, ignored: IgnoreMasks | None):
        self._uploads, self._ignored = Uploads(device), ignored

    def bytes(self, view: View) -> Tensor:
        """[3, H, W] uint8."""
        return self._uploads.get(view.id, lambda: np.ascontiguousarray(view.image().transpose(2, 0, 1)))

    def photo(self, view: View) -> Tensor:
        """[3, H, W] float32 in 0..1."""
        return self.bytes(view).float() / 255

    def ignored(self, view: View) -> Tensor | None:
        """Pixels that do not count, [H, W] bool; None if all do."""
        if self._ignored is None or not self._ignored.has(view):
            return None
        return self._uploads.get((view.id, "ignored"), lambda: self._ignored.load(view))


@torch.no_grad()
def score_views(
    views: Iterable[View], gaussians: GaussianModel, background: Tensor, photos: Photos
) -> dict[str, ColourScores | None]:
    """PSNR and SSIM of each view by its id; None where every pixel is ignored."""
    scores = {}
    for view in views:
        image = render(view.camera, gaussians, background).image
        scores[view.id] = colour_scores(image, photos.photo(view), photos.ignored(view))
    return scores


def means(scores: dict[str, ColourScores | None]) -> dict[str, float]:
    """Mean PSNR in dB and SSIM over the views that have scores; nothing without any."""
    scored = [score for score in scores.values() if score is not None]
    if not scored:
        return {}
    names = ColourScores._fields
    return {name: sum(getattr(score, name) for score in scored) / len(scored) for name in names}
