"""Scores in plain PyTorch: the CPU backend, and the reference for tests of the CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from referring.kernels.algebra import EMBEDDING_DIM, NORM_FLOOR, GaussianInputs, SentenceCoefficients

GRAPH_TENSORS = 8  # tensors of size N x L that autograd keeps for a sentence


class PlainEncoded(NamedTuple):
    """What all sentences share of the Gaussians."""

    hidden: Tensor  # h [N, HIDDEN]
    places: Tensor  # k [N, HIDDEN]
    scales: Tensor  # 1 / |U k + c| [N]
    squares: Tensor  # |x - mean of x|^2 [N]


class PlainField:
    """Computes scores sentence by sentence, differentiable in everything but positions.

    Args:
        graph_bytes: above this size of the autograd graph of a call, the backward pass recomputes each sentence
            (checkpointing). None keeps the graph.
    """

    capturable = False  # whether no function synchronises with a GPU, so that CUDA graphs can capture them

    def __init__(self, graph_bytes: int | None = None):
        self._graph_bytes = graph_bytes

    def for_words(self, _words: int) -> PlainField:
        """Return itself, or a fallback for sentences with more words than it can take."""
        return self

    def padded(self, words: int) -> int:
        """Return the padded word count for sentences of at most `words` words."""
        return words

    def encode(self, gaussians: GaussianInputs) -> PlainEncoded:
        """Return h, k, scales and squares of all Gaussians."""
        hidden = _layers(gaussians.features, *gaussians.networks[:4])
        places = _layers(gaussians.xyz, *gaussians.networks[4:])
        scales = _Quadratic.apply(places, *gaussians.norm).clamp_min(NORM_FLOOR).rsqrt()
        return PlainEncoded(hidden, places, scales, _Quadratic.apply(hidden, *gaussians.square))

    def pool(self, _gaussians: GaussianInputs, encoded: PlainEncoded, queries: Tensor) -> Tensor:
        """Return word positions (Eq. 6): means of directions and scales, [S, L, HIDDEN + 1].

        The weights are a softmax over all Gaussians of h . query.

        Args:
            queries: [S, L, HIDDEN].
        """
        run = self._runner(_pool_one, encoded, queries.shape)
        return torch.stack([run(encoded.hidden, encoded.places, encoded.scales, query) for query in queries])

    def score(
        self, encoded: PlainEncoded, coefficients: SentenceCoefficients, eps: float, top_k: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return scores [S, N], and sums over the top-k Gaussians for their mean embedding.

        Args:
            eps: of LayerNorm.
            top_k: [S]; all Gaussians that tie with the lowest of the top k take part. None for no sums.

        Returns:
            scores, the sums [S, HIDDEN + L + 1] of (h, attention, 1) times the inverse deviation of LayerNorm, and
            the number of Gaussians in them, [S]; the last two are None without `top_k`.
        """
        counts = [None] * len(coefficients.offset) if top_k is None else top_k.tolist()
        run = self._runner(_score_one, encoded, coefficients.constants.shape)
        results = [run(eps, k, *encoded, *one) for k, *one in zip(counts, *coefficients, strict=True)]
        scores, sums, numbers = zip(*results, strict=True)
        if top_k is None:
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
    """z . A z + a . z + c [N] of z [N, HIDDEN]. As A is symmetric, the gradient of z reuses A z."""

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
        d_hidden = (2 * along).sub_(vector).mul_(gradient[:, None])
        return d_hidden, weighted.T @ hidden, weighted.sum(dim=0), gradient.sum()


def _pool_one(hidden: Tensor, places: Tensor, scales: Tensor, query: Tensor) -> Tensor:
    scaled = torch.softmax(query @ hidden.T, dim=1) * scales  # [L, N]
    return torch.cat((scaled @ places, scaled.sum(dim=1, keepdim=True)), dim=1)


def _score_one(eps: float, count: int | None, *tensors: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    hidden, places, scales, squares = tensors[:4]
    one = SentenceCoefficients(*tensors[4:])  # of one sentence
    # one product for all that is linear in h, so that autograd makes one gradient of size N x HIDDEN, not three
    weight = torch.cat((one.on_hidden, one.mixed, one.along_hidden[None]))
    bias = torch.cat((one.constants, one.mixed_constants, one.along_constant[None]))
    words = len(one.constants)
    on_hidden, mixed, along = F.linear(hidden, weight, bias).split((words, words, 1), dim=1)
    on_places = F.linear(places, one.on_directions, one.on_scales) * scales[:, None]  # [N, L]
    attention = torch.softmax(on_hidden + on_places, dim=1)
    mixed = mixed + attention @ one.gram
    squares = squares + (attention * mixed).sum(dim=1)
    inverse = (squares.clamp_min(0) / EMBEDDING_DIM + eps).rsqrt()
    scores = (along.squeeze(1) + attention @ one.along_words) * inverse + one.offset
    if count is None:
        return scores, None, None
    lowest = torch.topk(scores.detach(), count, sorted=False).values.min()
    rows = (scores >= lowest).nonzero()[:, 0]
    inverse = inverse[rows]
    sums = torch.cat((inverse @ hidden[rows], inverse @ attention[rows], inverse.sum()[None]))
    return scores, sums, torch.tensor(len(rows), device=scores.device)
