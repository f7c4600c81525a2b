"""Losses of the referring stage: the Gaussian-text contrastive loss and its share of top Gaussians."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def top_count(tau: float, count: int) -> int:
    """How many of `count` Gaussians the share `tau` (0..1) of the highest scores is; at least one."""
    return max(1, int(tau * count))


def contrastive_released(
    top: Tensor, sentences: Tensor, positive: Tensor, negative: Tensor, temperature: float = 0.1
) -> Tensor:
    """Contrastive loss of the released code: log(1 + sum over positives p and negatives n of exp(n - p)).

    Args:
        top: f_g [..., D].
        sentences: e_s [S, D], the sentences of the view; those that are neither positive nor negative do not count.
        positive: [..., S] bool, sentences of the same object, at least one.
        negative: [..., S] bool, sentences of other objects.
        temperature: divides the cosine similarities.

    Returns:
        A loss for each f_g, [...].
    """
    logits = F.cosine_similarity(top[..., None, :], sentences, dim=-1) / temperature  # [..., S]
    # The double sum is a product of sums. Masking instead of indexing does not wait for a GPU to count; what is
    # masked weighs exp(-inf) = 0, and without any negative the loss is 0.
    negatives = logits.masked_fill(~negative, -torch.inf).logsumexp(dim=-1)
    positives = (-logits).masked_fill(~positive, -torch.inf).logsumexp(dim=-1)
    return F.softplus(negatives + positives)


def contrastive_paper(top: Tensor, sentences: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Contrastive loss of the paper (Eq. 8): mean over positives of -log softmax of raw dot products.

    Args:
        top: f_g [..., D].
        sentences: e_s [S, D]: the object's sentences and those of all other objects of the scene; those that are
            neither positive nor negative do not count.
        positive: [..., S] bool, sentences of the same object, at least one.
        negative: [..., S] bool, sentences of other objects.

    Returns:
        A loss for each f_g, [...].
    """
    logits = top @ sentences.T
    # each positive competes with the negatives, not with the other positives; masks as in `contrastive_released`
    negatives = logits.masked_fill(~negative, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return F.softplus(negatives - logits).masked_fill(~positive, 0).sum(dim=-1) / positive.sum(dim=-1)
