"""What sentences ask of the Gaussians, and the gradient of it: the small matrices of a step, by hand.

All of these matrices together are less work than one launch on a GPU takes, so the number of operations is what counts.
Hand-written gradients halve it: products that share a factor are one product, sums of gradients are made in place, and
nothing that has been cut into pieces is put together again with zeros. S, L: sentences and their words; W = S L; D, H:
EMBEDDING_DIM and HIDDEN of referring/kernels/algebra.py, where the algebra is told.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from referring.kernels import linear
from referring.kernels.algebra import EMBEDDING_DIM, HIDDEN, NO_WORD, Form, Forms

KEY_SCALE = 0.5 * EMBEDDING_DIM**-0.5  # of the logits; half of it, as all products with the layers are doubled
FEATURES, POSITIONS, CENTRED = range(3)  # of `Layers.stacked`


Affine = tuple[Tensor, Tensor]  # weight and bias


class Layers(NamedTuple):
    """Last layers as sentences meet them: weights [inputs, D], with the bias as one more row.

    Attributes:
        stacked: [3, H + 1, D]: of x = W h + b, of the position U k + c before it is normalised, and of x less the mean
            of its D numbers, as LayerNorm takes it.
        centred: [H + 1, D], the third of these again.
        values: [D + 1, D], of the values of words, each less the mean of its D numbers.
        norm, square: the forms of k and h that are |U k + c|^2 and |x - mean of x|^2.
    """

    stacked: Tensor
    centred: Tensor
    values: Tensor
    norm: Form
    square: Form


def last_layers(features: Affine, positions: Affine, values: Affine) -> Layers:
    """From weight [D, inputs] and bias [D] of mlp2.fc3, mlp3.fc3 and v_linear."""
    stacked, centred, values, *forms = _LastLayers.apply(*features, *positions, *values)
    return Layers(stacked, centred, values, tuple(forms[:3]), tuple(forms[3:]))


class _LastLayers(torch.autograd.Function):
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
    def backward(ctx: Any, of_stacked: Tensor, of_centred: Tensor, of_values: Tensor, *of_forms: Tensor) -> Any:
        (stacked,) = ctx.saved_tensors
        norm, norm_vector, norm_constant, square, square_vector, square_constant = of_forms
        # gradients of A in z . A z + a . z + c are sums of z z^T, symmetric as A is
        tall = torch.cat((norm, norm_vector[None], square, square_vector[None])).view(2, HIDDEN + 1, HIDDEN)
        last = torch.cat((norm_vector, norm_constant[None], square_vector, square_constant[None]))
        weights, biases = stacked[POSITIONS:].split((HIDDEN, 1), dim=1)
        of_pair = torch.baddbmm(of_stacked[POSITIONS:], tall, weights, alpha=2)
        of_positions, of_square = of_pair.baddbmm_(last.view(2, HIDDEN + 1, 1), biases, alpha=2)
        of_means = torch.cat((of_square.add_(of_centred), of_values))
        of_means.sub_(of_means.mean(dim=1, keepdim=True))
        of_x, of_v = of_means.split((HIDDEN + 1, EMBEDDING_DIM + 1))
        of_x = of_x + of_stacked[FEATURES]
        return tuple(part for layer in (of_x, of_positions, of_v) for part in (layer[:-1].T, layer[-1]))


class Asked(NamedTuple):
    """What S sentences ask.

    Attributes:
        forms: of the Gaussians.
        values: of the words [S, L, D], each less the mean of its D numbers.
    """

    forms: Forms
    values: Tensor


def ask(words: Tensor, present: Tensor, pooled: Tensor, layers: Layers, net: torch.nn.Module, norm: Affine) -> Asked:
    """The forms of sentences (Eq. 7).

    Args:
        words: [S, L, D], zeros where a sentence has fewer words.
        present: [S, L] bool, which are words.
        pooled: where the words are [S, L, H + 1], see `PlainField.pool`. The bias of x adds the same to the logits of
            all Gaussians, which the softmax over them does not see.
        layers: from `last_layers`.
        net: a `CrossAttention`.
        norm: weight and bias of its LayerNorm.
    """
    linears = net.q_linear, net.gp_linear, net.k_linear, net.kp_linear
    parameters = [tensor for layer in linears for tensor in (layer.weight, layer.bias)]
    *forms, values = _Ask.apply(words, present, pooled, layers.stacked, layers.values, *parameters, *norm)
    return Asked(Forms(*forms), values)


class _Ask(torch.autograd.Function):
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
        factors = words.new_empty(3, count, EMBEDDING_DIM)  # of the three layers in the products
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
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (
            words, pooled, stacked, value_layer, query, query_bias, query_place, key, key_place, scale, shift,
            places, keys, factors, total, along,
        ) = ctx.saved_tensors  # fmt: skip
        of, of_values, (count, dim) = Forms(*gradients[:-1]), gradients[-1], words.shape
        values = factors[CENTRED].view(ctx.shape)
        # No word, no attention: the gradient of its constant is zero already.
        parts = of.on_hidden, of.constants, of.on_directions, of.on_scales, of.mixed, of.mixed_constants
        parts = torch.cat([part if part.dim() == 3 else part[..., None] for part in parts], dim=-1)
        parts = parts.view(count, 3, HIDDEN + 1).transpose(0, 1)
        of_factors = words.new_empty(3, count, dim).baddbmm_(parts, stacked, beta=0, alpha=2)
        of_stacked = torch.empty_like(stacked).baddbmm_(parts.mT, factors, beta=0, alpha=2)
        # values: in the products, in the gram, whose gradient is symmetric as it is, along t, and from outside
        of_values = of_factors[CENTRED].view(ctx.shape).add_(of_values).baddbmm_(of.gram, values, alpha=2)
        of_values = of_values.baddbmm_(of.along_words[..., None], along[:, None]).view(count, dim)
        of_value_layer = torch.empty_like(value_layer)
        torch.mm(words.T, of_values, out=of_value_layer[:-1])
        torch.sum(of_values, dim=0, out=of_value_layer[-1])
        # keys, and what they came from
        on_constants = of.constants.reshape(count)
        both = (of_factors[FEATURES], query.T), (of_factors[POSITIONS], query_place.T)
        of_keys = linear.products(*both, scale=KEY_SCALE).addr_(on_constants, query_bias, alpha=2 * KEY_SCALE)
        of_queries = words.new_empty(2, dim, dim)
        of_queries.baddbmm_(keys.T.expand(2, -1, -1), of_factors[:CENTRED], beta=0, alpha=KEY_SCALE)
        of_query_bias = torch.empty_like(query_bias).addmv_(keys.T, on_constants, beta=0, alpha=2 * KEY_SCALE)
        of_key_bias, of_places = of_keys.sum(dim=0), linear.products((of_keys, key_place))
        of_stacked[POSITIONS].addmm_(pooled.T, of_places)
        # t
        of_along = torch.cat((of.along_hidden, of.along_constant[:, None]), dim=1)  # of the products with the layer
        of_stacked[CENTRED].addmm_(of_along.T, along)
        of_along = (of_along @ stacked[CENTRED])[:, None].baddbmm_(of.along_words[:, None], values)[:, 0]
        of_total = (of_along * scale).addr_(of.offset, shift)
        of_words = linear.products((of_keys, key), (of_values, value_layer[:-1].T))
        of_words = of_words.view(ctx.shape).add_(of_total[:, None])
        return (  # biases that are added before all else share one gradient, not to be changed in place
            of_words,
            None,
            linear.products((of_places, stacked[POSITIONS].T)).view(*ctx.shape[:2], -1),
            of_stacked,
            of_value_layer,
            *(of_queries[0], of_query_bias, of_queries[1], of_query_bias),
            *(of_keys.T @ words, of_key_bias, of_keys.T @ places, of_key_bias),
            (of_along * total).sum(dim=0),
            of.offset @ total,
        )


class MeanEmbedding(torch.autograd.Function):
    """f_g [S, D] from sums over Gaussians: but for the deviation LayerNorm is linear.

    Arguments: sums [S, H + L + 1], see `PlainField.score`, over `counts` [S]; values [S, L, D]; centred [H + 1, D] of
    `Layers`; weight and bias [D] of LayerNorm.
    """

    @staticmethod
    def forward(
        ctx: Any, sums: Tensor, counts: Tensor, values: Tensor, centred: Tensor, scale: Tensor, shift: Tensor
    ) -> Tensor:
        means = sums / counts[:, None]
        on_layer, on_words = torch.cat((means[:, :HIDDEN], means[:, -1:]), dim=1), means[:, HIDDEN:-1]
        mean = (on_layer @ centred)[:, None].baddbmm_(on_words[:, None], values)[:, 0]  # before scale and shift
        ctx.save_for_backward(counts, values, centred, scale, on_layer, on_words, mean)
        return torch.addcmul(shift, scale, mean)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        counts, values, centred, scale, on_layer, on_words, mean = ctx.saved_tensors
        of_mean = gradient * scale
        of_layer, of_words = of_mean @ centred.T, (values @ of_mean[..., None])[..., 0]
        of_sums = torch.cat((of_layer[:, :HIDDEN], of_words, of_layer[:, HIDDEN:]), dim=1).div_(counts[:, None])
        of_values, of_centred = on_words[..., None] * of_mean[:, None], on_layer.T @ of_mean
        return of_sums, None, of_values, of_centred, (gradient * mean).sum(dim=0), gradient.sum(dim=0)


class Twice(torch.autograd.Function):
    """Tensors for two consumers, the second's behind the first's: autograd adds their gradients tensor by tensor, this
    in one operation."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in (*tensors, *tensors))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(_ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        count = len(gradients) // 2
        first, second = gradients[:count], gradients[count:]
        found = [one if other is None else other for one, other in zip(first, second, strict=True)]
        both = [i for i in range(count) if first[i] is not None and second[i] is not None]
        if both:  # dense, as one kernel for all wants them
            sides = ([side[i].contiguous() for i in both] for side in (first, second))
            for i, total in zip(both, torch._foreach_add(*sides), strict=True):
                found[i] = total
        return tuple(found)
