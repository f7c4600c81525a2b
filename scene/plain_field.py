"""Scores of Gaussians in plain PyTorch: for CPUs, and the twin that the GPU kernels of scene.fused are tested with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scene.field_inputs import EMBEDDING_DIM, NORM_FLOOR, Form, Forms, Gaussians

GRAPH_TENSORS = 8  # of size N x L that autograd keeps for a sentence


class PlainEncoded(NamedTuple):
    """Gaussians as all sentences see them."""

    hidden: Tensor  # h [N, HIDDEN]
    directions: Tensor  # k / |U k + c| [N, HIDDEN]
    scales: Tensor  # 1 / |U k + c| [N]
    squares: Tensor  # |x - mean of x|^2 [N]


class PlainField:
    """Sentence by sentence, differentiable in everything but positions.

    Args:
        graph_bytes: where autograd would keep more than this for the sentences of a call, it keeps nothing and computes
            again in the backward pass. None keeps all.
    """

    max_words: int | None = None
    capturable = False

    def __init__(self, graph_bytes: int | None = None):
        self._graph_bytes = graph_bytes

    def padded(self, words: int) -> int:
        return words

    def encode(self, gaussians: Gaussians) -> PlainEncoded:
        """h, directions, scales and squares of all Gaussians."""
        hidden = _layers(gaussians.features, *gaussians.networks[:4])
        places = _layers(gaussians.xyz, *gaussians.networks[4:])
        scales = _quadratic(places, gaussians.norm).clamp_min(NORM_FLOOR).rsqrt()
        return PlainEncoded(hidden, places * scales[:, None], scales, _quadratic(hidden, gaussians.square))

    def pool(self, _gaussians: Gaussians, encoded: PlainEncoded, queries: Tensor) -> Tensor:
        """Means of directions and scales [S, L, HIDDEN + 1], weighted by softmax over all Gaussians of h . query.

        Args:
            queries: [S, L, HIDDEN].
        """
        run = self._runner(_pool_one, encoded, queries.shape)
        return torch.stack([run(encoded.hidden, encoded.directions, encoded.scales, query) for query in queries])

    def score(
        self, _gaussians: Gaussians, encoded: PlainEncoded, forms: Forms, eps: float, top: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Scores [S, N], and sums over the highest of them for the mean embedding.

        Args:
            eps: of LayerNorm.
            top: [S], how many are the highest; all that tie with the lowest of these take part. None for no sums.

        Returns:
            scores, the sums [S, HIDDEN + L + 1] of (h, attention, 1) times the inverse deviation of LayerNorm, and of
            how many Gaussians, [S]; the last two are None without `top`.
        """
        counts = [None] * len(forms.offset) if top is None else top.tolist()
        run = self._runner(_score_one, encoded, forms.constants.shape)
        results = [run(eps, n, *encoded, *form) for n, *form in zip(counts, *forms, strict=True)]
        scores, sums, numbers = zip(*results, strict=True)
        if top is None:
            return torch.stack(scores), None, None
        return torch.stack(scores), torch.stack(sums), torch.stack(numbers)

    def _runner(self, function: Callable[..., Any], encoded: PlainEncoded, shape: torch.Size) -> Callable[..., Any]:
        sentences, words = shape[:2]
        kept = GRAPH_TENSORS * sentences * words * encoded.scales.nbytes
        if self._graph_bytes is None or kept <= self._graph_bytes:
            return function
        return lambda *inputs: checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def _layers(inputs: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    return F.relu(F.linear(F.relu(F.linear(inputs, weight1, bias1)), weight2, bias2))


def _quadratic(hidden: Tensor, form: Form) -> Tensor:
    return ((hidden @ form[0] + form[1]) * hidden).sum(dim=1) + form[2]


def _pool_one(hidden: Tensor, directions: Tensor, scales: Tensor, query: Tensor) -> Tensor:
    share = torch.softmax(query @ hidden.T, dim=1)  # [L, N]
    return torch.cat((share @ directions, (share @ scales)[:, None]), dim=1)


def _score_one(eps: float, count: int | None, *tensors: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    hidden, directions, scales, squares = tensors[:4]
    form = Forms(*tensors[4:])  # of one sentence
    logits = hidden @ form.on_hidden.T + directions @ form.on_directions.T
    logits = logits + torch.outer(scales, form.on_scales) + form.constants  # [N, L]
    attention = torch.softmax(logits, dim=1)
    mixed = hidden @ form.mixed.T + form.mixed_constants + attention @ form.gram
    squares = squares + (attention * mixed).sum(dim=1)
    inverse = (squares.clamp_min(0) / EMBEDDING_DIM + eps).rsqrt()
    along = hidden @ form.along_hidden + attention @ form.along_words + form.along_constant
    scores = along * inverse + form.offset
    if count is None:
        return scores, None, None
    lowest = torch.topk(scores.detach(), count, sorted=False).values.min()
    rows = (scores >= lowest).nonzero()[:, 0]
    inverse = inverse[rows]
    sums = torch.cat((inverse @ hidden[rows], inverse @ attention[rows], inverse.sum()[None]))
    return scores, sums, torch.tensor(len(rows), device=scores.device)
