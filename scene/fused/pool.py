"""Word positions: for each word the mean position of the Gaussians, weighted by a softmax over all of them (Eq. 6).

Forward takes a block of Gaussians at a time, with a running maximum, as FlashAttention does (Dao et al. 2022); backward
computes everything of a block again. W below is the number of words of all sentences.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scene.fused.shared import (
    no_feature_sums,
    no_form,
    no_place_sums,
    pull_features,
    pull_places,
    store_feature_sums,
    store_place_sums,
)
from scene.fused.tiles import (
    FEATURES,
    HIDDEN,
    block_rows,
    fine_product,
    hidden_features,
    hidden_places,
    load_features,
    load_matrix,
    load_places,
    load_transposed,
    product,
    quadratic,
)


@triton.jit(do_not_specialize=["count"])
def scales_kernel(xyz, count, networks, norm, floor, scales, BLOCK: tl.constexpr, MODE: tl.constexpr):
    """Scales 1 / |U k + c| [N]."""
    for block in range(tl.program_id(0), tl.cdiv(count, BLOCK), tl.num_programs(0)):
        rows, valid = block_rows(block, count, BLOCK)
        _, places = hidden_places(load_places(xyz, rows, valid), networks, MODE)
        tl.store(scales + rows, tl.rsqrt(tl.maximum(quadratic(places, norm, MODE), floor)), mask=valid)


@triton.jit(do_not_specialize=["count"])
def pool_kernel(
    features, xyz, scales, count, networks, queries, words, maxima, totals, sums,
    WORDS: tl.constexpr, BLOCK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """A program's part of the softmax: maxima and totals [W], and weighted directions and scales [W, HIDDEN + 1]."""
    word = tl.program_id(1) * WORDS
    query = load_transposed(queries + word * HIDDEN, HIDDEN, WORDS)
    maximum = tl.full([WORDS], float("-inf"), tl.float32)
    total = tl.zeros([WORDS], tl.float32)
    of_scales = tl.zeros([WORDS], tl.float32)
    of_directions = tl.zeros([WORDS, HIDDEN], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(count, BLOCK), tl.num_programs(0)):
        rows, valid = block_rows(block, count, BLOCK)
        _, hidden = hidden_features(load_features(features, rows, valid), networks, MODE)
        _, places = hidden_places(load_places(xyz, rows, valid), networks, MODE)
        scale = tl.load(scales + rows, mask=valid, other=0.0)
        logits = tl.where(valid[:, None], fine_product(hidden, query, MODE), float("-inf"))
        highest = tl.maximum(maximum, tl.max(logits, axis=0))
        shrink = tl.exp(maximum - highest)
        weights = tl.exp(logits - highest[None, :])
        maximum = highest
        total = total * shrink + tl.sum(weights, axis=0)
        weighted = weights * scale[:, None]
        of_scales = of_scales * shrink + tl.sum(weighted, axis=0)
        of_directions = of_directions * shrink[:, None] + product(tl.trans(weighted), places, MODE)
    target = tl.program_id(0) * words + word + tl.arange(0, WORDS)
    tl.store(maxima + target, maximum)
    tl.store(totals + target, total)
    tl.store(sums + target * (HIDDEN + 1) + HIDDEN, of_scales)
    tl.store(sums + target[:, None] * (HIDDEN + 1) + tl.arange(0, HIDDEN)[None, :], of_directions)


@triton.jit
def softmax_weights(hidden, word, queries, level, WORDS: tl.constexpr, MODE: tl.constexpr):
    """Of a tile of words from `word` on, [BLOCK, WORDS]; `level` [W] is the logarithm of the softmax's denominator."""
    query = load_transposed(queries + word * HIDDEN, HIDDEN, WORDS)
    return tl.exp(fine_product(hidden, query, MODE) - tl.load(level + word + tl.arange(0, WORDS))[None, :])


@triton.jit
def pull_weights(
    hidden, places, scale, word, queries, level, gradients, centres, WORDS: tl.constexpr, MODE: tl.constexpr
):
    """The gradient of the logits [BLOCK, WORDS] of a tile of words.

    `gradients` [W, HIDDEN + 1] are those of what was pooled, `centres` [W] their products with the pooled itself.
    """
    index = word + tl.arange(0, WORDS)
    columns = tl.arange(0, HIDDEN)[:, None]
    along = product(places, tl.load(gradients + index[None, :] * (HIDDEN + 1) + columns), MODE)
    along = (along + tl.load(gradients + index * (HIDDEN + 1) + HIDDEN)[None, :]) * scale[:, None]
    weights = softmax_weights(hidden, word, queries, level, WORDS, MODE)
    return weights * (along - tl.load(centres + index)[None, :])


@triton.jit(do_not_specialize=["count"])
def pull_queries_kernel(
    features, xyz, scales, count, networks, queries, words, level, gradients, centres, sums,
    WORDS: tl.constexpr, BLOCK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries [W, HIDDEN] from one program's blocks."""
    word = tl.program_id(1) * WORDS
    of_queries = tl.zeros([HIDDEN, WORDS], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(count, BLOCK), tl.num_programs(0)):
        rows, valid = block_rows(block, count, BLOCK)
        _, hidden = hidden_features(load_features(features, rows, valid), networks, MODE)
        _, places = hidden_places(load_places(xyz, rows, valid), networks, MODE)
        scale = tl.load(scales + rows, mask=valid, other=0.0)
        of_logits = pull_weights(hidden, places, scale, word, queries, level, gradients, centres, WORDS, MODE)
        of_logits = tl.where(valid[:, None], of_logits, 0.0)
        of_queries += product(tl.trans(hidden), of_logits, MODE)
    target = tl.program_id(0) * words + word + tl.arange(0, WORDS)[None, :]
    tl.store(sums + target * HIDDEN + tl.arange(0, HIDDEN)[:, None], of_queries)


@triton.jit(do_not_specialize=["count"])
def pull_features_kernel(
    features, xyz, scales, count, networks, queries, words, level, gradients, centres, of_features, sums_of_features,
    SUMS: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Gradient of the features [N, FEATURES], and one program's sums for mlp2."""
    sums = no_feature_sums()
    for block in range(tl.program_id(0), tl.cdiv(count, BLOCK), tl.num_programs(0)):
        rows, valid = block_rows(block, count, BLOCK)
        feature = load_features(features, rows, valid)
        first, hidden = hidden_features(feature, networks, MODE)
        _, places = hidden_places(load_places(xyz, rows, valid), networks, MODE)
        scale = tl.load(scales + rows, mask=valid, other=0.0)
        of_hidden = tl.zeros([BLOCK, HIDDEN], tl.float32)
        for word in range(0, words, WORDS):
            of_logits = pull_weights(
                hidden, places, scale, word, queries, level, gradients, centres, WORDS, MODE
            )  # fmt: skip
            of_logits = tl.where(valid[:, None], of_logits, 0.0)
            of_hidden += product(of_logits, load_matrix(queries + word * HIDDEN, WORDS, HIDDEN), MODE)
        of_feature, sums = pull_features(feature, first, hidden, of_hidden, networks, sums, MODE)
        columns = tl.arange(0, FEATURES)[None, :]
        tl.store(of_features + rows[:, None] * FEATURES + columns, of_feature, mask=valid[:, None])
    store_feature_sums(sums_of_features + tl.program_id(0) * SUMS, sums, no_form())


@triton.jit(do_not_specialize=["count"])
def pull_places_kernel(
    features, xyz, scales, count, networks, norm, queries, words, level, gradients, sums_of_places,
    SUMS: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """One program's sums for mlp3."""
    sums = no_place_sums()
    form_sums = no_form()
    for block in range(tl.program_id(0), tl.cdiv(count, BLOCK), tl.num_programs(0)):
        rows, valid = block_rows(block, count, BLOCK)
        _, hidden = hidden_features(load_features(features, rows, valid), networks, MODE)
        place = load_places(xyz, rows, valid)
        first, places = hidden_places(place, networks, MODE)
        scale = tl.load(scales + rows, mask=valid, other=0.0)
        of_directions = tl.zeros([BLOCK, HIDDEN], tl.float32)
        of_scale = tl.zeros([BLOCK], tl.float32)
        for word in range(0, words, WORDS):
            weights = tl.where(valid[:, None], softmax_weights(hidden, word, queries, level, WORDS, MODE), 0.0)
            index = word + tl.arange(0, WORDS)
            columns = tl.arange(0, HIDDEN)[None, :]
            gradient = tl.load(gradients + index[:, None] * (HIDDEN + 1) + columns)
            of_directions += product(weights, gradient, MODE)
            of_scale += tl.sum(weights * tl.load(gradients + index * (HIDDEN + 1) + HIDDEN)[None, :], axis=1)
        sums, form_sums = pull_places(
            place, first, places, scale, of_directions, of_scale, networks, norm, sums, form_sums, MODE
        )
    store_place_sums(sums_of_places + tl.program_id(0) * SUMS, sums, form_sums)
