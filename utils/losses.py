"""Losses of both stages: L1 + D-SSIM for colour, BCE and the Gaussian-text contrastive loss for referring."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


def _blur(images: Tensor) -> Tensor:
    """Gaussian window of SSIM over the last two axes of [C, H, W], zero padded, as two 1D passes."""
    offsets = torch.arange(SSIM_WINDOW, device=images.device, dtype=images.dtype) - SSIM_WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    window = window / window.sum()
    stacked = images[:, None]  # [C, 1, H, W]
    stacked = F.conv2d(stacked, window.view(1, 1, 1, -1), padding=(0, SSIM_WINDOW // 2))
    stacked = F.conv2d(stacked, window.view(1, 1, -1, 1), padding=(SSIM_WINDOW // 2, 0))
    return stacked[:, 0]


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity of two [3, H, W] pictures in 0..1 (Wang et al. 2004, 11x11 Gaussian window)."""
    channels = image.shape[0]
    statistics = _blur(torch.cat([image, target, image * image, target * target, image * target]))
    mean_x, mean_y, square_x, square_y, product = statistics.split(channels)
    covariance = product - mean_x * mean_y
    variances = square_x - mean_x**2 + square_y - mean_y**2
    numerator = (2 * mean_x * mean_y + SSIM_C1) * (2 * covariance + SSIM_C2)
    return (numerator / ((mean_x**2 + mean_y**2 + SSIM_C1) * (variances + SSIM_C2))).mean()


def mean_top_embedding(embeddings: Tensor, scores: Tensor, tau: float) -> Tensor:
    """f_g [D]: mean embedding of the share `tau` of Gaussians with the highest scores.

    Args:
        embeddings: g [N, D].
        scores: m [N].
        tau: share in 0..1; at least one Gaussian is taken.
    """
    count = max(1, int(tau * scores.shape[0]))
    return embeddings[torch.topk(scores, count).indices].mean(dim=0)


def contrastive_released(top: Tensor, sentences: Tensor, positive: Tensor, temperature: float = 0.1) -> Tensor:
    """Contrastive loss of the released code: log(1 + sum over positives p and negatives n of exp(n - p)).

    Args:
        top: f_g [D].
        sentences: e_s [S, D], the sentences of the view.
        positive: [S] bool, sentences of the same object.
        temperature: divides the cosine similarities.
    """
    logits = F.cosine_similarity(top[None], sentences, dim=1) / temperature  # [S]
    differences = logits[~positive][None, :] - logits[positive][:, None]  # [P, S - P]
    return F.softplus(torch.logsumexp(differences.flatten(), dim=0)) if differences.numel() else logits.sum() * 0


def contrastive_paper(top: Tensor, sentences: Tensor, positive: Tensor) -> Tensor:
    """Contrastive loss of the paper (Eq. 8): mean over positives of -log softmax of raw dot products.

    Args:
        top: f_g [D].
        sentences: e_s [S, D]: the object's sentences and those of all other objects of the scene.
        positive: [S] bool, sentences of the same object.
    """
    logits = sentences @ top
    negatives = logits[~positive]
    # each positive competes with the negatives, not with the other positives
    if not negatives.numel():
        return logits.sum() * 0
    return F.softplus(torch.logsumexp(negatives, dim=0) - logits[positive]).mean()
