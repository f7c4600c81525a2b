"""What the kernels share: products of tiles, and the hidden layers of a block of Gaussians.

A block is BLOCK Gaussians; tiles are written [rows, columns]. `networks` are weight and bias of mlp2.fc1, mlp2.fc2,
mlp3.fc1 and mlp3.fc2, as the modules hold them.
"""

from __future__ import annotations

import triton
import triton.language as tl

FEATURES = tl.constexpr(16)  # numbers of a referring feature
FIRST2 = tl.constexpr(32)  # outputs of the first layer of mlp2
FIRST3 = tl.constexpr(16)  # of mlp3
HIDDEN = tl.constexpr(64)  # outputs of the second layer of both
PLACE = tl.constexpr(16)  # x, y, z, 1 and zeros: no product takes fewer columns


@triton.jit
def product(a, b, MODE: tl.constexpr):
    """a [M, K] times b [K, N] in float32.

    MODE "split" is for float32: each number becomes the sum of two bfloat16, and the product of the lower ones is left
    out, which leaves an error of 1e-5. Plain "tf32" has 5e-4 and "bf16" 4e-3; "ieee" is float32 without matrix units.
    """
    if MODE == "split":
        result = tl.dot(a, b, input_precision="bf16x3")
    elif MODE == "bf16":
        result = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    else:
        result = tl.dot(a, b, input_precision=MODE)
    return result


@triton.jit
def fine_product(a, b, MODE: tl.constexpr):
    """The same where 1e-5 would not do: softmax multiplies errors of its logits, and through a norm gradients cancel.

    "split" takes two float16 for each number here, which leaves an error of 1e-7. These have a small range: rows of a
    are brought to a size of 1 to 2 by powers of two, and b, of weights, has to lie within 6e4.
    """
    if MODE == "split":
        exponent = tl.max(tl.abs(a), axis=1).to(tl.int32, bitcast=True) >> 23
        a = a * ((254 - exponent) << 23).to(tl.float32, bitcast=True)[:, None]
        a_high = a.to(tl.float16)
        b_high = b.to(tl.float16)
        a_low = (a - a_high.to(tl.float32)).to(tl.float16)
        b_low = (b - b_high.to(tl.float32)).to(tl.float16)
        result = tl.dot(a_high, b_high, tl.dot(a_high, b_low, tl.dot(a_low, b_high)))
        result = result * (exponent << 23).to(tl.float32, bitcast=True)[:, None]
    else:
        result = product(a, b, MODE)
    return result


@triton.jit
def load_matrix(start, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A row-major matrix."""
    return tl.load(start + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])


@triton.jit
def load_transposed(start, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS] from a row-major matrix [COLUMNS, ROWS]."""
    return tl.load(start + tl.arange(0, COLUMNS)[None, :] * ROWS + tl.arange(0, ROWS)[:, None])


@triton.jit
def load_vector(start, LENGTH: tl.constexpr):
    return tl.load(start + tl.arange(0, LENGTH))


@triton.jit
def block_rows(block, count, BLOCK: tl.constexpr):
    """Row numbers of a block, and which of them are below `count`."""
    rows = tl.arange(0, BLOCK).to(tl.int64) + block * BLOCK
    return rows, rows < count


@triton.jit
def load_features(features, rows, valid):
    columns = tl.arange(0, FEATURES)[None, :]
    return tl.load(features + rows[:, None] * FEATURES + columns, mask=valid[:, None], other=0.0)


@triton.jit
def load_places(xyz, rows, valid):
    """[BLOCK, PLACE] of x, y, z, 1, 0, ..."""
    columns = tl.arange(0, PLACE)[None, :]
    place = tl.load(xyz + rows[:, None] * 3 + columns, mask=valid[:, None] & (columns < 3), other=0.0)
    return tl.where(columns == 3, 1.0, place)


@triton.jit
def hidden_features(features, networks, MODE: tl.constexpr):
    """First and second layer of mlp2: [BLOCK, FIRST2], h [BLOCK, HIDDEN]."""
    first = fine_product(features, load_transposed(networks[0], FEATURES, FIRST2), MODE)
    first = tl.maximum(first + load_vector(networks[1], FIRST2), 0.0)
    second = fine_product(first, load_transposed(networks[2], FIRST2, HIDDEN), MODE)
    return first, tl.maximum(second + load_vector(networks[3], HIDDEN), 0.0)


@triton.jit
def place_weight(networks):
    """Weight and bias of mlp3.fc1 as [PLACE, FIRST3], for rows x, y, z, 1."""
    column = tl.arange(0, PLACE)[:, None]
    output = tl.arange(0, FIRST3)[None, :]
    weight = tl.load(networks[4] + output * 3 + column, mask=column < 3, other=0.0)
    return tl.where(column == 3, tl.load(networks[5] + output), weight)


@triton.jit
def hidden_places(places, networks, MODE: tl.constexpr):
    """First and second layer of mlp3: [BLOCK, FIRST3], k [BLOCK, HIDDEN].

    The first as good as in float32 whatever the mode: coordinates may have any size, and errors there open and close
    ReLUs.
    """
    first = tl.maximum(tl.dot(places, place_weight(networks), input_precision="tf32x3"), 0.0)
    second = fine_product(first, load_transposed(networks[6], FIRST3, HIDDEN), MODE)
    return first, tl.maximum(second + load_vector(networks[7], HIDDEN), 0.0)


@triton.jit
def quadratic(hidden, form, MODE: tl.constexpr):
    """hidden . A hidden + a . hidden + c [BLOCK] of a form (A, a, c)."""
    along = fine_product(hidden, load_matrix(form[0], HIDDEN, HIDDEN), MODE) + load_vector(form[1], HIDDEN)
    return tl.sum(along * hidden, axis=1) + tl.load(form[2])
