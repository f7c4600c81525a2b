"""Score coefficients and their hand-written gradients, against the formulas and autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from referring.field import CrossAttention
from referring.kernels.algebra import (
    EMBEDDING_DIM,
    HIDDEN,
    NO_WORD,
    fold_last_layers,
    mean_embedding,
    sentence_coefficients,
)

SHAPES = [(1, 1), (1, 7), (3, 5)]  # S, L


@pytest.fixture(autouse=True)
def _float64() -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], leaves: list[Tensor]) -> None:
    """Values, and gradients of the leaves for random cotangents; those of square matrices are symmetric."""
    cotangents = []
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
        cotangent = torch.randn_like(wanted)
        square = wanted.dim() > 1 and wanted.shape[-1] == wanted.shape[-2]
        cotangents.append(cotangent + cotangent.mT if square else cotangent)
    gradients = [torch.autograd.grad(values, leaves, cotangents) for values in (found, expected)]
    for gradient, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-11)


def layer_leaves() -> list[tuple[Tensor, Tensor]]:
    return [(leaf(EMBEDDING_DIM, inputs), leaf(EMBEDDING_DIM)) for inputs in (HIDDEN, HIDDEN, EMBEDDING_DIM)]


def centred(values: Tensor, dim: int) -> Tensor:
    return values - values.mean(dim, keepdim=True)


def affine(weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat((weight.T, bias[None]))


def test_folded_layers() -> None:
    features, positions, values = layer_leaves()
    found = fold_last_layers(features, positions, values)
    middle = centred(affine(*features), 1)
    forms = []
    for layer in (affine(*positions), middle):
        forms += [layer[:-1] @ layer[:-1].T, 2 * layer[:-1] @ layer[-1], layer[-1] @ layer[-1]]
    stacked = torch.stack((affine(*features), affine(*positions), middle))
    expected = stacked, middle, centred(affine(*values), 1), *forms
    flat = found.stacked, found.centred, found.values, *found.norm, *found.square
    assert_same(flat, expected, [*features, *positions, *values])


@pytest.mark.parametrize(("sentences", "words"), SHAPES)
def test_coefficients(sentences: int, words: int) -> None:
    features, positions, values = layer_leaves()
    net, pooled = CrossAttention(), leaf(sentences, words, HIDDEN + 1)
    torch.nn.init.normal_(net.norm.weight)
    torch.nn.init.normal_(net.norm.bias)
    embeddings, present = leaf(sentences, words, EMBEDDING_DIM), torch.rand(sentences, words) < 0.7
    layers = fold_last_layers(features, positions, values)
    parts = net.q_linear, net.gp_linear, net.k_linear, net.kp_linear, net.norm
    coefficients, found_values = sentence_coefficients(embeddings, present, pooled, layers, parts)

    keys = net.k_linear(embeddings) + net.kp_linear(pooled @ affine(*positions))
    keys = keys * EMBEDDING_DIM**-0.5
    queried, placed = keys @ net.q_linear.weight, keys @ net.gp_linear.weight
    constants = queried @ features[1] + keys @ (net.q_linear.bias + net.gp_linear.bias)
    value = centred(embeddings @ values[0].T + values[1], -1)
    middle, total = centred(affine(*features), 1), embeddings.sum(dim=1)
    along = net.norm.weight * total
    expected = (
        queried @ features[0],
        placed @ positions[0],
        placed @ positions[1],
        constants.masked_fill(~present, NO_WORD),
        2 * value @ middle[:-1].T,
        2 * value @ middle[-1],
        value @ value.mT,
        along @ middle[:-1].T,
        (value @ along[..., None])[..., 0],
        along @ middle[-1],
        total @ net.norm.bias,
        value,
    )
    of_net = [*net.q_linear.parameters(), *net.gp_linear.parameters(), *net.k_linear.parameters()]
    of_net += [*net.kp_linear.parameters(), *net.norm.parameters()]
    flat = *coefficients, found_values
    # no attention to words that are not there: their constants have no gradient
    gradients = [torch.randn_like(v) for v in expected]
    gradients[3] = gradients[3] * present
    gradients[6] = gradients[6] + gradients[6].mT
    leaves = [embeddings, pooled, *features, *positions, *values, *of_net]
    for value_found, wanted in zip(flat, expected, strict=True):
        torch.testing.assert_close(value_found, wanted, rtol=1e-12, atol=1e-12)
        assert value_found[0].is_contiguous()
    both = [torch.autograd.grad(outputs, leaves, gradients) for outputs in (flat, expected)]
    for gradient, wanted in zip(*both, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("sentences", "words"), SHAPES)
def test_mean_embedding(sentences: int, words: int) -> None:
    sums, counts = leaf(sentences, HIDDEN + words + 1), torch.arange(1, sentences + 1, dtype=torch.int32)
    values, layer = leaf(sentences, words, EMBEDDING_DIM), leaf(HIDDEN + 1, EMBEDDING_DIM)
    scale, shift = leaf(EMBEDDING_DIM), leaf(EMBEDDING_DIM)
    of_hidden, of_words, of_ones = sums.split((HIDDEN, words, 1), dim=1)
    total = of_hidden @ layer[:-1] + of_ones * layer[-1] + (of_words[:, None] @ values)[:, 0]
    found = mean_embedding(sums, counts, values, layer, scale, shift)
    assert_same((found,), (scale * total / counts[:, None] + shift,), [sums, values, layer, scale, shift])
