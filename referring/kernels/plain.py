"""Scores of Gaussians in plain PyTorch: the CPU backend, and the twin that tests compare the CUDA kernels with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from referring.kernels.algebra import EMBEDDING_DIM, NORM_FLOOR, Forms, Gaussians

GRAPH_TENSORS = 8  # of size N x L that autograd keeps for a sentence


class PlainEncoded(NamedTuple):
    """Gaussians as all sentences see them."""

    hidden: Tensor  # h [N, HIDDEN]
    places: Tensor  # k [N, HIDDEN]
    scales: Tensor  # 1 / |U k + c| [N]
    squares: Tensor  # |x - mean of x|^2 [N]


class PlainField:
    """Sentence by sentence, differentiable in everything but positions.

    Args:
        graph_bytes: where autograd would keep more than this for the sentences of a call, it keeps nothing and computes
            again in the backward pass. None keeps all.
    """

    capturable = False

    def __init__(self, graph_bytes: int | None = None):
        self._graph_bytes = graph_bytes

    def for_words(self, _words: int) -> PlainField:
        return self

    def padded(self, words: int) -> int:
        return words

    def encode(self, gaussians: Gaussians) -> PlainEncoded:
        """h, k, scales and squares of all Gaussians."""
        hidden = _layers(gaussians.features, *gaussians.networks[:4])
        places = _layers(gaussians.xyz, *gaussians.networks[4:])
        scales = _Quadratic.apply(places, *gaussians.norm).clamp_min(NORM_FLOOR).rsqrt()
        return PlainEncoded(hidden, places, scales, _Quadratic.apply(hidden, *gaussians.square))

    def pool(self, _gaussians: Gaussians, encoded: PlainEncoded, queries: Tensor) -> Tensor:
        """Means of directions and scales [S, L, HIDDEN + 1], weighted by softmax over all Gaussians of h . query.

        Args:
            queries: [S, L, HIDDEN].
        """
        run = self._runner(_pool_one, encoded, queries.shape)
        return torch.stack([run(encoded.hidden, encoded.places, encoded.scales, query) for query in queries])

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


class _Quadratic(torch.autograd.Function):
    """z . A z + a . z + c [N] of z [N, HIDDEN]. As A is symmetric, the gradient of z needs no product of its own."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, matrix: Tensor, vector: Tensor, constant: Tensor) -> Tensor:
        along = F.linear(hidden, matrix, vector)
        ctx.save_for_backward(hidden, along, vector)
        return (along * hidden).sum(dim=1) + constant

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        hidden, along, vector = ctx.saved_tensors
        weighted = hidden * gradient[:, None]
        of_hidden = (2 * along).sub_(vector).mul_(gradient[:, None])
        return of_hidden, weighted.T @ hidden, weighted.sum(dim=0), gradient.sum()


def _pool_one(hidden: Tensor, places: Tensor, scales: Tensor, query: Tensor) -> Tensor:
    scaled = torch.softmax(query @ hidden.T, dim=1) * scales  # [L, N]
    return torch.cat((scaled @ places, scaled.sum(dim=1, keepdim=True)), dim=1)


def _score_one(eps: float, count: int | None, *tensors: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    hidden, places, scales, squares = tensors[:4]
    form = Forms(*tensors[4:])  # of one sentence
    # one product for all that is linear in h: its gradient comes back as one tensor of size N x HIDDEN, not as three
    weight = torch.cat((form.on_hidden, form.mixed, form.along_hidden[None]))
    bias = torch.cat((form.constants, form.mixed_constants, form.along_constant[None]))
    words = len(form.constants)
    on_hidden, mixed, along = F.linear(hidden, weight, bias).split((words, words, 1), dim=1)
    on_places = F.linear(places, form.on_directions, form.on_scales) * scales[:, None]  # [N, L]
    attention = torch.softmax(on_hidden + on_places, dim=1)
    mixed = mixed + attention @ form.gram
    squares = squares + (attention * mixed).sum(dim=1)
    inverse = (squares.clamp_min(0) / EMBEDDING_DIM + eps).rsqrt()
    scores = (along.squeeze(1) + attention @ form.along_words) * inverse + form.offset
    if count is None:
        return scores, None, None
    lowest = torch.topk(scores.detach(), count, sorted=False).values.min()
    rows = (scores >= lowest).nonzero()[:, 0]
    inverse = inverse[rows]
    sums = torch.cat((inverse @ hidden[rows], inverse @ attention[rows], inverse.sum()[None]))
    return scores, sums, torch.tensor(len(rows), device=scores.device)
