"""The Gaussian-text contrastive loss, in the forms of the paper and of the released code."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -1e30  # logit of weight 0; -inf would make a softmax over nothing else NaN
SHORTEST = 1e-8  # smallest divisor of a cosine, as in F.cosine_similarity


def top_count(tau: float, count: int) -> int:
    """Return the number of top Gaussians for a share `tau` (0..1) of `count`, at least one."""
    return max(1, int(tau * count))


def contrastive_released(
    top: Tensor, sentences: Tensor, positive: Tensor, negative: Tensor, temperature: float = 0.1
) -> Tensor:
    """Contrastive loss of the released code: log(1 + sum over positives p and negatives n of exp(n - p)).

    Args:
        top: f_g [..., D].
        sentences: e_s [S, D], the sentences of the view; those that are neither positive nor negative are ignored.
        positive: [..., S] bool, sentences of the same object, at least one.
        negative: [..., S] bool, sentences of other objects.
        temperature: divides the cosine similarities.

    Returns:
        A loss for each f_g, [...].
    """
    rows = top.reshape(-1, top.shape[-1])
    masks = positive.expand(*top.shape[:-1], -1), negative.expand(*top.shape[:-1], -1)
    losses = _ContrastOfCosines.apply(rows, sentences, *(mask.reshape(len(rows), -1) for mask in masks), temperature)
    return losses.view(top.shape[:-1])


class _ContrastOfCosines(torch.autograd.Function):
    """`contrastive_released` of rows [K, D] with masks [K, S], in a third of autograd's operations.

    The double sum is a product of sums. Masking instead of indexing needs no synchronisation with a GPU; masked terms
    weigh exp(NEVER) = 0, and the loss is 0 without negatives.
    """

    @staticmethod
    def forward(
        ctx: Any, tops: Tensor, sentences: Tensor, positive: Tensor, negative: Tensor, temperature: float
    ) -> Tensor:
        rows = torch.cat((tops, sentences))
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(SHORTEST)
        units = rows / lengths
        tops, sentences = units[: len(tops)], units[len(tops) :]
        logits = units.new_empty(positive.shape).addmm_(tops, sentences.T, beta=0, alpha=1 / temperature)
        negatives, positives = logits.masked_fill(~negative, NEVER), (-logits).masked_fill_(~positive, NEVER)
        total = negatives.logsumexp(dim=1) + positives.logsumexp(dim=1)
        ctx.save_for_backward(units, lengths, negatives, positives, total)
        ctx.temperature = temperature
        return F.softplus(total)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        units, lengths, negatives, positives, total = ctx.saved_tensors
        count, scale = len(total), 1 / ctx.temperature
        grad_total = torch.ops.aten.softplus_backward(grad_output, total, 1, 20)
        grad_logits = (negatives.softmax(dim=1) - positives.softmax(dim=1)).mul_(grad_total[:, None])
        grad_units = torch.empty_like(units)
        grad_units[:count].addmm_(grad_logits, units[count:], beta=0, alpha=scale)
        grad_units[count:].addmm_(grad_logits.T, units[:count], beta=0, alpha=scale)
        along = (grad_units * units).sum(dim=1, keepdim=True)
        grad_rows = grad_units.addcmul_(units, along, value=-1).div_(lengths)
        return grad_rows[:count], grad_rows[count:], None, None, None


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
    # each positive competes with the negatives, not with the other positives; masks as in `_ContrastOfCosines`
    negatives = logits.masked_fill(~negative, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return F.softplus(negatives - logits).masked_fill(~positive, 0).sum(dim=-1) / positive.sum(dim=-1)
