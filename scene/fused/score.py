"""Scores of Gaussians for sentences, and the sums over the highest of them that the contrastive loss needs.

Every sentence has the same number of words L here, a power of two from 16 on; those it lacks have a constant of
`NO_WORD` in their logit. `forms` are the tensors of scene.field_inputs.Forms in their order.
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
    pull_quadratic,
    store_feature_sums,
    store_matrix,
    store_place_sums,
    store_vector,
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
    load_vector,
    product,
    quadratic,
)

WIDTH = tl.constexpr(128)  # D


@triton.jit
def listed_rows(list_, block, count, BLOCK: tl.constexpr):
    """Rows of Gaussians in a block of a list, and which of them are in the list."""
    place = block * BLOCK + tl.arange(0, BLOCK)
    valid = place < count
    return tl.load(list_ + place, mask=valid, other=0).to(tl.int64), valid


@triton.jit
def attend(hidden, places, scale, square, forms, sentence, eps, L: tl.constexpr, MODE: tl.constexpr):
    """A block's attention [BLOCK, L] to the words of a sentence, and what LayerNorm of attention @ values + x needs.

    Returns the attention, the gradient of the square |y|^2 with respect to it, the square, the product with the words
    along, and the inverse deviation, each [BLOCK].
    """
    matrix = sentence * L * HIDDEN
    words = sentence * L
    on_places = fine_product(places, load_transposed(forms[1] + matrix, HIDDEN, L), MODE) + load_vector(
        forms[2] + words, L
    )
    logits = fine_product(hidden, load_transposed(forms[0] + matrix, HIDDEN, L), MODE) + on_places * scale[:, None]
    logits += load_vector(forms[3] + words, L)
    weights = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    attention = weights / tl.sum(weights, axis=1)[:, None]
    mixed = fine_product(hidden, load_transposed(forms[4] + matrix, HIDDEN, L), MODE) + load_vector(forms[5] + words, L)
    of_values = fine_product(attention, load_matrix(forms[6] + words * L, L, L), MODE)
    square += tl.sum(attention * (mixed + of_values), axis=1)
    along = tl.sum(hidden * load_vector(forms[7] + sentence * HIDDEN, HIDDEN), axis=1)
    along += tl.sum(attention * load_vector(forms[8] + words, L), axis=1) + tl.load(forms[9] + sentence)
    inverse = tl.rsqrt(tl.maximum(square, 0.0) / WIDTH + eps)
    return attention, mixed + 2 * of_values, square, along, inverse


@triton.jit(do_not_specialize=["count"])
def score_kernel(
    features, xyz, scales, count, networks, square_form, forms, sentences, eps, squares, scores,
    L: tl.constexpr, BLOCK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Squares |x - mean of x|^2 [N] and scores [S, N]."""
    for block in range(tl.program_id(0), tl.cdiv(count, BLOCK), tl.num_programs(0)):
        rows, valid = block_rows(block, count, BLOCK)
        _, hidden = hidden_features(load_features(features, rows, valid), networks, MODE)
        _, places = hidden_places(load_places(xyz, rows, valid), networks, MODE)
        scale = tl.load(scales + rows, mask=valid, other=0.0)
        square = quadratic(hidden, square_form, MODE)
        tl.store(squares + rows, square, mask=valid)
        for sentence in range(sentences):
            attention, on_attention, total, along, inverse = attend(
                hidden, places, scale, square, forms, sentence, eps, L, MODE
            )
            target = scores + sentence * tl.cast(count, tl.int64) + rows
            tl.store(target, along * inverse + tl.load(forms[10] + sentence), mask=valid)


@triton.jit(do_not_specialize=["count"])
def top_kernel(
    features, xyz, scales, squares, count, networks, forms, eps, tops, top_counts, sums,
    L: tl.constexpr, BLOCK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Over the Gaussians tops [S, N] of a sentence: sums of inverse deviation times h, attention and 1."""
    sentence = tl.program_id(1)
    top_count = tl.load(top_counts + sentence)
    of_hidden = tl.zeros([HIDDEN], tl.float32)
    of_words = tl.zeros([L], tl.float32)
    of_ones = 0.0
    for block in range(tl.program_id(0), tl.cdiv(top_count, BLOCK), tl.num_programs(0)):
        rows, valid = listed_rows(tops + sentence * tl.cast(count, tl.int64), block, top_count, BLOCK)
        _, hidden = hidden_features(load_features(features, rows, valid), networks, MODE)
        _, places = hidden_places(load_places(xyz, rows, valid), networks, MODE)
        scale = tl.load(scales + rows, mask=valid, other=0.0)
        square = tl.load(squares + rows, mask=valid, other=0.0)
        attention, on_attention, total, along, inverse = attend(
            hidden, places, scale, square, forms, sentence, eps, L, MODE
        )
        inverse = tl.where(valid, inverse, 0.0)
        of_hidden += tl.sum(hidden * inverse[:, None], axis=0)
        of_words += tl.sum(attention * inverse[:, None], axis=0)
        of_ones += tl.sum(inverse, axis=0)
    target = sums + (tl.program_id(0) * tl.num_programs(1) + sentence) * (HIDDEN + L + 1)
    target = store_vector(target, of_hidden, HIDDEN)
    tl.store(store_vector(target, of_words, L), of_ones)


@triton.jit
def pull_scores(
    hidden, places, scale, square, rows, valid, count, forms, sentence, eps, scores, gradients, thresholds,
    top_gradients, L: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Back from the gradients of a block's scores and of the top sums [S, HIDDEN + L + 1] of a sentence.

    Returns the attention; gradients of its logits [BLOCK, L], of square and of along [BLOCK]; and the inverse deviation
    of the highest Gaussians, zero elsewhere [BLOCK].
    """
    attention, of_square, square, along, inverse = attend(hidden, places, scale, square, forms, sentence, eps, L, MODE)
    place = sentence * tl.cast(count, tl.int64) + rows
    gradient = tl.load(gradients + place, mask=valid, other=0.0)
    is_top = valid & (tl.load(scores + place, mask=valid, other=0.0) >= tl.load(thresholds + sentence))
    top = top_gradients + sentence * (HIDDEN + L + 1)
    on_words = load_vector(top + HIDDEN, L)
    on_inverse = tl.sum(hidden * load_vector(top, HIDDEN), axis=1) + tl.sum(attention * on_words, axis=1)
    on_inverse += tl.load(top + HIDDEN + L)
    of_inverse = gradient * along + tl.where(is_top, on_inverse, 0.0)
    square_gradient = tl.where(square > 0, of_inverse * inverse * inverse * inverse * (-0.5 / WIDTH), 0.0)
    along_gradient = gradient * inverse
    top_weight = tl.where(is_top, inverse, 0.0)
    of_attention = along_gradient[:, None] * load_vector(forms[8] + sentence * L, L)
    of_attention += square_gradient[:, None] * of_square + top_weight[:, None] * on_words
    centre = tl.sum(attention * of_attention, axis=1)
    return attention, attention * (of_attention - centre[:, None]), square_gradient, along_gradient, top_weight


@triton.jit(do_not_specialize=["count"])
def pull_forms_kernel(
    features, xyz, scales, squares, count, networks, forms, eps, scores, gradients, thresholds, top_gradients,
    active, active_count, sums,
    SUMS: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Gradients of a sentence's forms from one program's blocks of the Gaussians `active` [N]."""
    sentence = tl.program_id(1)
    listed = tl.load(active_count)
    on_hidden = tl.zeros([HIDDEN, L], tl.float32)
    on_directions = tl.zeros([HIDDEN, L], tl.float32)
    on_scales = tl.zeros([L], tl.float32)
    constants = tl.zeros([L], tl.float32)
    mixed = tl.zeros([HIDDEN, L], tl.float32)
    mixed_constants = tl.zeros([L], tl.float32)
    gram = tl.zeros([L, L], tl.float32)
    along_hidden = tl.zeros([HIDDEN], tl.float32)
    along_words = tl.zeros([L], tl.float32)
    along_constant = 0.0
    for block in range(tl.program_id(0), tl.cdiv(listed, BLOCK), tl.num_programs(0)):
        rows, valid = listed_rows(active, block, listed, BLOCK)
        _, hidden = hidden_features(load_features(features, rows, valid), networks, MODE)
        _, places = hidden_places(load_places(xyz, rows, valid), networks, MODE)
        scale = tl.load(scales + rows, mask=valid, other=0.0)
        square = tl.load(squares + rows, mask=valid, other=0.0)
        attention, of_logits, of_square, of_along, _ = pull_scores(
            hidden, places, scale, square, rows, valid, count, forms, sentence, eps, scores, gradients, thresholds,
            top_gradients, L, MODE,
        )  # fmt: skip
        scaled = of_logits * scale[:, None]
        squared = attention * of_square[:, None]
        on_hidden += product(tl.trans(hidden), of_logits, MODE)
        on_directions += product(tl.trans(places), scaled, MODE)
        on_scales += tl.sum(scaled, axis=0)
        constants += tl.sum(of_logits, axis=0)
        mixed += product(tl.trans(hidden), squared, MODE)
        mixed_constants += tl.sum(squared, axis=0)
        gram += product(tl.trans(squared), attention, MODE)
        along_hidden += tl.sum(hidden * of_along[:, None], axis=0)
        along_words += tl.sum(attention * of_along[:, None], axis=0)
        along_constant += tl.sum(of_along, axis=0)
    target = sums + (tl.program_id(0) * tl.num_programs(1) + sentence) * SUMS
    target = store_matrix(target, tl.trans(on_hidden), L, HIDDEN)
    target = store_matrix(target, tl.trans(on_directions), L, HIDDEN)
    target = store_vector(target, on_scales, L)
    target = store_vector(target, constants, L)
    target = store_matrix(target, tl.trans(mixed), L, HIDDEN)
    target = store_vector(target, mixed_constants, L)
    target = store_matrix(target, gram, L, L)
    target = store_vector(target, along_hidden, HIDDEN)
    target = store_vector(target, along_words, L)
    tl.store(target, along_constant)


@triton.jit(do_not_specialize=["count"])
def pull_features_kernel(
    features, xyz, scales, squares, count, networks, square_form, forms, sentences, eps, scores, gradients, thresholds,
    top_gradients, active, active_count, of_features, sums_of_features,
    SUMS: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Gradients of the features [N, FEATURES] of the Gaussians `active`, and one program's sums for mlp2."""
    listed = tl.load(active_count)
    sums = no_feature_sums()
    form_sums = no_form()
    for block in range(tl.program_id(0), tl.cdiv(listed, BLOCK), tl.num_programs(0)):
        rows, valid = listed_rows(active, block, listed, BLOCK)
        feature = load_features(features, rows, valid)
        first, hidden = hidden_features(feature, networks, MODE)
        _, places = hidden_places(load_places(xyz, rows, valid), networks, MODE)
        scale = tl.load(scales + rows, mask=valid, other=0.0)
        square = tl.load(squares + rows, mask=valid, other=0.0)
        of_hidden = tl.zeros([BLOCK, HIDDEN], tl.float32)
        of_squares = tl.zeros([BLOCK], tl.float32)
        for sentence in range(sentences):
            attention, of_logits, of_square, of_along, top_weight = pull_scores(
                hidden, places, scale, square, rows, valid, count, forms, sentence, eps, scores, gradients, thresholds,
                top_gradients, L, MODE,
            )  # fmt: skip
            matrix = sentence * L * HIDDEN
            of_hidden += product(of_logits, load_matrix(forms[0] + matrix, L, HIDDEN), MODE)
            of_hidden += product(attention * of_square[:, None], load_matrix(forms[4] + matrix, L, HIDDEN), MODE)
            of_hidden += of_along[:, None] * load_vector(forms[7] + sentence * HIDDEN, HIDDEN)
            on_top = load_vector(top_gradients + sentence * (HIDDEN + L + 1), HIDDEN)
            of_hidden += top_weight[:, None] * on_top
            of_squares += of_square
        more, form_sums = pull_quadratic(hidden, of_squares, square_form, form_sums, MODE)
        of_feature, sums = pull_features(feature, first, hidden, of_hidden + more, networks, sums, MODE)
        columns = tl.arange(0, FEATURES)[None, :]
        tl.store(of_features + rows[:, None] * FEATURES + columns, of_feature, mask=valid[:, None])
    store_feature_sums(sums_of_features + tl.program_id(0) * SUMS, sums, form_sums)


@triton.jit(do_not_specialize=["count"])
def pull_places_kernel(
    features, xyz, scales, squares, count, networks, norm, forms, sentences, eps, scores, gradients, thresholds,
    top_gradients, active, active_count, sums_of_places,
    SUMS: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """One program's sums for mlp3."""
    listed = tl.load(active_count)
    sums = no_place_sums()
    form_sums = no_form()
    for block in range(tl.program_id(0), tl.cdiv(listed, BLOCK), tl.num_programs(0)):
        rows, valid = listed_rows(active, block, listed, BLOCK)
        _, hidden = hidden_features(load_features(features, rows, valid), networks, MODE)
        place = load_places(xyz, rows, valid)
        first, places = hidden_places(place, networks, MODE)
        scale = tl.load(scales + rows, mask=valid, other=0.0)
        square = tl.load(squares + rows, mask=valid, other=0.0)
        of_directions = tl.zeros([BLOCK, HIDDEN], tl.float32)
        of_scale = tl.zeros([BLOCK], tl.float32)
        for sentence in range(sentences):
            attention, of_logits, of_square, of_along, top_weight = pull_scores(
                hidden, places, scale, square, rows, valid, count, forms, sentence, eps, scores, gradients, thresholds,
                top_gradients, L, MODE,
            )  # fmt: skip
            of_directions += product(of_logits, load_matrix(forms[1] + sentence * L * HIDDEN, L, HIDDEN), MODE)
            of_scale += tl.sum(of_logits * load_vector(forms[2] + sentence * L, L), axis=1)
        sums, form_sums = pull_places(
            place, first, places, scale, of_directions, of_scale, networks, norm, sums, form_sums, MODE
        )
    store_place_sums(sums_of_places + tl.program_id(0) * SUMS, sums, form_sums)
