"""Score algebra: per-sentence coefficients and their backward pass, without anything of size N x D.

Features x = W h + b and positions p = (U k + c) / |U k + c| are linear in h and k, the 64 outputs of the layers before.
So every product with them is one with h or k, and every square is a quadratic form of h or k. The words, the linear
layers and LayerNorm of a sentence enter through the small tensors of `SentenceCoefficients`.

All these tensors together are less work than one launch on a GPU takes, so the number of operations is what counts.
The hand-written gradients halve it: products that share a factor are one product, sums of gradients are made in place,
and tensors that were split are not padded with zeros to be added up. N, S, L: Gaussians, sentences, padded words;
W = S L; D, H: EMBEDDING_DIM and HIDDEN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from referring.kernels import linear

FEATURE_DIM = 16  # d_r of the paper
EMBEDDING_DIM = 128  # D of the paper
HIDDEN = 64  # width of h and k
NORM_FLOOR = 1e-24  # of |U k + c|^2, as in torch.nn.functional.normalize
NO_WORD = -1e30  # logit of padding
KEY_SCALE = 0.5 * EMBEDDING_DIM**-0.5  # of the logits; halved, as all products with the layers are doubled
FEATURES, POSITIONS, CENTRED = range(3)  # of `LastLayers.stacked`

QuadraticForm = tuple[Tensor, Tensor, Tensor]  # A [HIDDEN, HIDDEN] symmetric, a [HIDDEN], c []: z . A z + a . z + c


class GaussianInputs(NamedTuple):
    """Inputs of the scores that do not depend on a sentence."""

    features: Tensor  # f [N, 16]
    xyz: Tensor  # [N, 3]
    networks: tuple[Tensor, ...]  # weight and bias of mlp2.fc1, mlp2.fc2, mlp3.fc1, mlp3.fc2
    norm: QuadraticForm  # |U k + c|^2 of k
    square: QuadraticForm  # |x - mean of x|^2 of h, the mean over the D numbers of each x


class SentenceCoefficients(NamedTuple):
    """Score coefficients of S sentences ("forms" in csrc/).

    With h, direction d = k / |U k + c| and scale s = 1 / |U k + c| of a Gaussian, the logits of its attention to the
    words of a sentence are on_hidden h + on_directions d + on_scales s + constants. With attention a, the square of
    y - mean of y for y = x + values a is |x - mean of x|^2 + a . (mixed h + mixed_constants + gram a), and the score is
    (along_hidden . h + along_words . a + along_constant) / deviation + offset.
    """

    on_hidden: Tensor  # [S, L, HIDDEN]
    on_directions: Tensor  # [S, L, HIDDEN]
    on_scales: Tensor  # [S, L]
    constants: Tensor  # [S, L]
    mixed: Tensor  # [S, L, HIDDEN]
    mixed_constants: Tensor  # [S, L]
    gram: Tensor  # [S, L, L]
    along_hidden: Tensor  # [S, HIDDEN]
    along_words: Tensor  # [S, L]
    along_constant: Tensor  # [S]
    offset: Tensor  # [S]


Affine = tuple[Tensor, Tensor]  # weight [outputs, inputs] and bias [outputs]


class LastLayers(NamedTuple):
    """The last layers of the networks as weights [inputs + 1, D], the last row of which is the bias.

    "Centred" means less the mean over the D numbers, as LayerNorm takes it.
    """

    stacked: Tensor  # [3, H + 1, D]: x = W h + b, the position U k + c before normalisation, and centred x
    centred: Tensor  # [H + 1, D], the third of these again
    values: Tensor  # [D + 1, D], of the words' values, centred
    norm: QuadraticForm  # |U k + c|^2 of k
    square: QuadraticForm  # |centred x|^2 of h


def fold_last_layers(features: Affine, positions: Affine, values: Affine) -> LastLayers:
    """Return the last layers of mlp2 and mlp3 and the value layer (mlp2.fc3, mlp3.fc3, v_linear), folded."""
    stacked, centred, folded, *forms = _FoldLastLayers.apply(*features, *positions, *values)
    return LastLayers(stacked, centred, folded, tuple(forms[:3]), tuple(forms[3:]))


class _FoldLastLayers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, u: Tensor, c: Tensor, v: Tensor, v_bias: Tensor) -> Any:
        centred = torch.cat((weight.T, bias[None], v.T, v_bias[None]))
        centred.sub_(centred.mean(dim=1, keepdim=True))
        centred, values = centred.split((HIDDEN + 1, EMBEDDING_DIM + 1))
        stacked = torch.cat((weight.T, bias[None], u.T, c[None], centred)).view(3, HIDDEN + 1, EMBEDDING_DIM)
        weights, biases = stacked[POSITIONS:].split((HIDDEN, 1), dim=1)
        matrices = weights @ weights.mT
        vectors = matrices.new_empty(2, HIDDEN, 1).baddbmm_(weights, biases.mT, beta=0, alpha=2)[..., 0]
        constants = (biases @ biases.mT).view(2)
        ctx.save_for_backward(stacked)
        forms = zip(matrices, vectors, constants, strict=True)
        return stacked, centred, values, *(tensor for form in forms for tensor in form)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_stacked: Tensor, d_centred: Tensor, d_values: Tensor, *d_forms: Tensor) -> Any:
        (stacked,) = ctx.saved_tensors
        norm, norm_vector, norm_constant, square, square_vector, square_constant = d_forms
        # the gradient of A in z . A z + a . z + c is a sum of z z^T, symmetric as A
        tall = torch.cat((norm, norm_vector[None], square, square_vector[None])).view(2, HIDDEN + 1, HIDDEN)
        last = torch.cat((norm_vector, norm_constant[None], square_vector, square_constant[None]))
        weights, biases = stacked[POSITIONS:].split((HIDDEN, 1), dim=1)
        d_pair = torch.baddbmm(d_stacked[POSITIONS:], tall, weights, alpha=2)
        d_positions, d_square = d_pair.baddbmm_(last.view(2, HIDDEN + 1, 1), biases, alpha=2)
        d_means = torch.cat((d_square.add_(d_centred), d_values))
        d_means.sub_(d_means.mean(dim=1, keepdim=True))
        d_x, d_v = d_means.split((HIDDEN + 1, EMBEDDING_DIM + 1))
        d_x = d_x + d_stacked[FEATURES]
        return tuple(part for layer in (d_x, d_positions, d_v) for part in (layer[:-1].T, layer[-1]))


def sentence_coefficients(
    words: Tensor, present: Tensor, pooled: Tensor, layers: LastLayers, net: Sequence[nn.Linear | nn.LayerNorm]
) -> tuple[SentenceCoefficients, Tensor]:
    """Return the score coefficients of S sentences (Eq. 7), and the centred values [S, L, D] of their words.

    Args:
        words: [S, L, D], zeros for padding.
        present: [S, L] bool, False for padding.
        pooled: word positions [S, L, H + 1], see `PlainField.pool`. The bias of x adds the same to the logits of
            all Gaussians, which the softmax over them ignores.
        layers: from `fold_last_layers`.
        net: q_linear, gp_linear, k_linear, kp_linear and norm of a `CrossAttention`.
    """
    parameters = [tensor for part in net for tensor in (part.weight, part.bias)]
    inputs = words, present, pooled, layers.stacked, layers.values, *parameters
    *coefficients, values = _SentenceCoefficients.apply(*inputs)
    return SentenceCoefficients(*coefficients), values


class _SentenceCoefficients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, words: Tensor, present: Tensor, pooled: Tensor, stacked: Tensor, value_layer: Tensor,
        query: Tensor, query_bias: Tensor, query_place: Tensor, query_place_bias: Tensor,
        key: Tensor, key_bias: Tensor, key_place: Tensor, key_place_bias: Tensor, scale: Tensor, shift: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        shape, count = words.shape, present.numel()
        flat, pooled = words.reshape(count, -1), pooled.reshape(count, -1)
        places = linear.products((pooled, stacked[POSITIONS]))  # [W, D]
        key_bias, query_bias = torch._foreach_add([key_bias, query_bias], [key_place_bias, query_place_bias])
        keys = linear.products((flat, key.T), (places, key_place.T), bias=key_bias)
        factors = words.new_empty(3, count, EMBEDDING_DIM)  # [3, W, D], of the three layers
        linear.products((keys, query), scale=KEY_SCALE, out=factors[FEATURES])
        linear.products((keys, query_place), scale=KEY_SCALE, out=factors[POSITIONS])
        linear.products((flat, value_layer[:-1]), bias=value_layer[-1], out=factors[CENTRED])
        values = factors[CENTRED].view(shape)
        weights, biases = stacked.split((HIDDEN, 1), dim=1)
        products = words.new_empty(3, count, HIDDEN).baddbmm_(factors, weights.mT, beta=0, alpha=2)
        constants = words.new_empty(3, count, 1).baddbmm_(factors, biases.mT, beta=0, alpha=2)[..., 0]
        constants[FEATURES].addmv_(keys, query_bias, alpha=2 * KEY_SCALE)
        total = words.sum(dim=1)  # t [S, D]
        along = scale * total
        along_layer = along @ stacked[CENTRED].T  # [S, H + 1]
        on_hidden, on_directions, mixed = products.unflatten(1, shape[:2])
        logit_constants, on_scales, mixed_constants = constants.unflatten(1, shape[:2])
        ctx.save_for_backward(
            flat, pooled, stacked, value_layer, query, query_bias, query_place, key, key_place, scale, shift,
            places, keys, factors, total, along,
        )  # fmt: skip
        ctx.shape = shape
        return (
            on_hidden,
            on_directions,
            on_scales,
            logit_constants.masked_fill(~present, NO_WORD),
            mixed,
            mixed_constants,
            values @ values.mT,
            along_layer[:, :-1],
            (values @ along[..., None])[..., 0],
            along_layer[:, -1],
            total @ shift,
            values,
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (
            words, pooled, stacked, value_layer, query, query_bias, query_place, key, key_place, scale, shift,
            places, keys, factors, total, along,
        ) = ctx.saved_tensors  # fmt: skip
        grads, d_values, (count, dim) = SentenceCoefficients(*grad_outputs[:-1]), grad_outputs[-1], words.shape
        values = factors[CENTRED].view(ctx.shape)
        # Padding gets no attention: the gradient of its constant is already zero.
        weights = grads.on_hidden, grads.on_directions, grads.mixed
        biases = grads.constants, grads.on_scales, grads.mixed_constants
        pairs = zip(weights, biases, strict=True)
        parts = torch.cat([part for weight, bias in pairs for part in (weight, bias[..., None])], dim=-1)
        parts = parts.view(count, 3, HIDDEN + 1).transpose(0, 1)
        d_factors = words.new_empty(3, count, dim).baddbmm_(parts, stacked, beta=0, alpha=2)
        d_stacked = torch.empty_like(stacked).baddbmm_(parts.mT, factors, beta=0, alpha=2)
        # values: from the products, the gram (symmetric, as its gradient), along t, and outside
        d_values = d_factors[CENTRED].view(ctx.shape).add_(d_values).baddbmm_(grads.gram, values, alpha=2)
        d_values = d_values.baddbmm_(grads.along_words[..., None], along[:, None]).view(count, dim)
        d_value_layer = torch.empty_like(value_layer)
        torch.mm(words.T, d_values, out=d_value_layer[:-1])
        torch.sum(d_values, dim=0, out=d_value_layer[-1])
        # keys and their inputs
        on_constants = grads.constants.reshape(count)
        both = (d_factors[FEATURES], query.T), (d_factors[POSITIONS], query_place.T)
        d_keys = linear.products(*both, scale=KEY_SCALE).addr_(on_constants, query_bias, alpha=2 * KEY_SCALE)
        d_queries = words.new_empty(2, dim, dim)
        d_queries.baddbmm_(keys.T.expand(2, -1, -1), d_factors[:CENTRED], beta=0, alpha=KEY_SCALE)
        d_query_bias = torch.empty_like(query_bias).addmv_(keys.T, on_constants, beta=0, alpha=2 * KEY_SCALE)
        d_key_bias, d_places = d_keys.sum(dim=0), linear.products((d_keys, key_place))
        d_stacked[POSITIONS].addmm_(pooled.T, d_places)
        # t
        d_along = torch.cat((grads.along_hidden, grads.along_constant[:, None]), dim=1)
        d_stacked[CENTRED].addmm_(d_along.T, along)
        d_along = (d_along @ stacked[CENTRED])[:, None].baddbmm_(grads.along_words[:, None], values)[:, 0]
        d_total = (d_along * scale).addr_(grads.offset, shift)
        d_words = linear.products((d_keys, key), (d_values, value_layer[:-1].T))
        d_words = d_words.view(ctx.shape).add_(d_total[:, None])
        return (  # biases that are added first share one gradient, which must not be changed in place
            d_words,
            None,
            linear.products((d_places, stacked[POSITIONS].T)).view(*ctx.shape[:2], -1),
            d_stacked,
            d_value_layer,
            *(d_queries[0], d_query_bias, d_queries[1], d_query_bias),
            *(d_keys.T @ words, d_key_bias, d_keys.T @ places, d_key_bias),
            (d_along * total).sum(dim=0),
            grads.offset @ total,
        )


def mean_embedding(
    sums: Tensor, counts: Tensor, values: Tensor, centred: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    """Return f_g [S, D] from sums over Gaussians: apart from the deviation, LayerNorm is linear.

    Args:
        sums: [S, H + L + 1] over `counts` [S] Gaussians, see `PlainField.score`.
        values: [S, L, D].
        centred: [H + 1, D] of `LastLayers`.
        scale, shift: weight and bias [D] of LayerNorm.
    """
    means = sums / counts[:, None]
    on_layer = torch.cat((means[:, :HIDDEN], means[:, -1:]), dim=1)
    return shift + scale * (on_layer @ centred + (means[:, None, HIDDEN:-1] @ values)[:, 0])
