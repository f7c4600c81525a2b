"""The way back from h, k and the scales of a block of Gaussians to their features and to both networks.

The way through the features and the one through the places are walked by separate launches: what a program adds up over
its blocks has to stay in registers. At its end it writes these sums as one row of numbers.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from scene.fused.tiles import (
    FEATURES,
    FIRST2,
    FIRST3,
    HIDDEN,
    PLACE,
    fine_product,
    load_matrix,
    load_vector,
    product,
)

CAPPED_SCALE = tl.constexpr(0.99e12)  # above it a scale is that of NORM_FLOOR, which has no gradient

FORM_SHAPES = (64, 64), (64,), (1,)
FEATURE_SHAPES = (32, 16), (32,), (64, 32), (64,), *FORM_SHAPES  # mlp2.fc1, mlp2.fc2, and the form of the squares
PLACE_SHAPES = (16, 16), (64, 16), (64,), *FORM_SHAPES  # mlp3.fc1 of x, y, z, 1; mlp3.fc2; and the form of the norms
FEATURE_SUMS = sum(math.prod(shape) for shape in FEATURE_SHAPES)
PLACE_SUMS = sum(math.prod(shape) for shape in PLACE_SHAPES)


def unpack(sums: Tensor, shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    """The tensors of these shapes that lie one behind the other in `sums`, whose leading dimensions stay."""
    parts = sums.split([math.prod(shape) for shape in shapes], dim=-1)
    return [part.reshape(*sums.shape[:-1], *shape) for part, shape in zip(parts, shapes, strict=True)]


@triton.jit
def store_matrix(start, tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write a tile row-major; returns where the next one goes."""
    tl.store(start + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :], tile)
    return start + ROWS * COLUMNS


@triton.jit
def store_vector(start, tile, LENGTH: tl.constexpr):
    tl.store(start + tl.arange(0, LENGTH), tile)
    return start + LENGTH


@triton.jit
def no_form():
    return tl.zeros([HIDDEN, HIDDEN], tl.float32), tl.zeros([HIDDEN], tl.float32), 0.0


@triton.jit
def store_form(start, sums):
    start = store_matrix(start, sums[0], HIDDEN, HIDDEN)
    tl.store(store_vector(start, sums[1], HIDDEN), sums[2])


@triton.jit
def pull_quadratic(hidden, gradient, form, sums, MODE: tl.constexpr):
    """Back through `quadratic` with a gradient [BLOCK]: the gradient of hidden, and the sums of the form's."""
    weighted = hidden * gradient[:, None]
    along = 2 * fine_product(hidden, load_matrix(form[0], HIDDEN, HIDDEN), MODE) + load_vector(form[1], HIDDEN)
    of_form = sums[0] + product(tl.trans(weighted), hidden, MODE)
    return along * gradient[:, None], (of_form, sums[1] + tl.sum(weighted, axis=0), sums[2] + tl.sum(gradient, axis=0))


@triton.jit
def pull_second(first, hidden, gradient, weight, FIRST: tl.constexpr, MODE: tl.constexpr):
    """Back through the second layer of a network and the ReLU before it, from a gradient of hidden [BLOCK, HIDDEN].

    Returns the gradient of what enters that ReLU [BLOCK, FIRST], and those of weight and bias.
    """
    before = tl.where(hidden > 0, gradient, 0.0)
    entering = tl.where(first > 0, product(before, load_matrix(weight, HIDDEN, FIRST), MODE), 0.0)
    return entering, product(tl.trans(before), first, MODE), tl.sum(before, axis=0)


@triton.jit
def no_feature_sums():
    return (
        tl.zeros([FIRST2, FEATURES], tl.float32),
        tl.zeros([FIRST2], tl.float32),
        tl.zeros([HIDDEN, FIRST2], tl.float32),
        tl.zeros([HIDDEN], tl.float32),
    )


@triton.jit
def pull_features(features, first, hidden, gradient, networks, sums, MODE: tl.constexpr):
    """Back from a gradient of h to the features; returns theirs [BLOCK, FEATURES], and the sums with this block."""
    entering, weight, bias = pull_second(first, hidden, gradient, networks[2], FIRST2, MODE)
    of_features = product(entering, load_matrix(networks[0], FIRST2, FEATURES), MODE)
    weight1 = sums[0] + product(tl.trans(entering), features, MODE)
    return of_features, (weight1, sums[1] + tl.sum(entering, axis=0), sums[2] + weight, sums[3] + bias)


@triton.jit
def store_feature_sums(start, sums, form_sums):
    start = store_matrix(start, sums[0], FIRST2, FEATURES)
    start = store_vector(start, sums[1], FIRST2)
    start = store_matrix(start, sums[2], HIDDEN, FIRST2)
    store_form(store_vector(start, sums[3], HIDDEN), form_sums)


@triton.jit
def no_place_sums():
    return (
        tl.zeros([FIRST3, PLACE], tl.float32),
        tl.zeros([HIDDEN, FIRST3], tl.float32),
        tl.zeros([HIDDEN], tl.float32),
    )


@triton.jit
def pull_places(
    places, first, hidden, scale, direction_gradient, scale_gradient, networks, norm, sums, form_sums,
    MODE: tl.constexpr,
):  # fmt: skip
    """Back from gradients of the directions k * scale [BLOCK, HIDDEN] and of the scales [BLOCK]; the sums of both."""
    scale_gradient += tl.sum(direction_gradient * hidden, axis=1)
    norm_gradient = tl.where(scale < CAPPED_SCALE, -0.5 * scale * scale * scale * scale_gradient, 0.0)
    gradient, form_sums = pull_quadratic(hidden, norm_gradient, norm, form_sums, MODE)
    gradient += direction_gradient * scale[:, None]
    entering, weight, bias = pull_second(first, hidden, gradient, networks[6], FIRST3, MODE)
    return (sums[0] + product(tl.trans(entering), places, MODE), sums[1] + weight, sums[2] + bias), form_sums


@triton.jit
def store_place_sums(start, sums, form_sums):
    start = store_matrix(start, sums[0], FIRST3, PLACE)
    start = store_matrix(start, sums[1], HIDDEN, FIRST3)
    store_form(store_vector(start, sums[2], HIDDEN), form_sums)
