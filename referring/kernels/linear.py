"""Float32 products of matrices with few rows, in shapes that fill a GPU (split-K).

A library gives each tile of a result, about 32 x 128 numbers, to one multiprocessor, which sums all terms alone. The
16 words of a sentence times a [128, 128] matrix then use one of 132 multiprocessors and take 50 microseconds. Such
products have a kernel of our own. mlp1 sees about 300 words: its sums are split into parts, which a batched product
computes at once and one more kernel adds up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from referring.kernels.library import WORDS, CProduct, Library, usable

TILE = 128  # rows and columns of a block
BLOCKS = 96  # at least
SHORTEST = 16  # terms of a part, at least


def linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `F.linear` of inputs [..., K], weight [M, K] and bias [M]; split-K on a GPU."""
    if not inputs.is_cuda:
        return F.linear(inputs, weight, bias)
    return (split_product(inputs.flatten(0, -2), weight.T) + bias).view(*inputs.shape[:-1], -1)


def products(
    *pairs: tuple[Tensor, Tensor], scale: float = 1.0, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Return scale * (sum of left [R, T] @ right [T, C] over one or two pairs of the same shapes) + bias [C].

    Args:
        out: [R, C], contiguous; receives the result.
    """
    left, right = pairs[0]
    if out is None:
        out = left.new_empty(left.shape[0], right.shape[1])
    can_try = left.is_cuda and left.dtype == torch.float32
    library = usable(WORDS[0], "fp32", left.device)[0] if can_try else None
    if library is not None:
        return product_by_kernel(library, pairs, scale, bias, out)
    torch.mm(left, right, out=out)
    for left, right in pairs[1:]:
        out.addmm_(left, right)
    out.mul_(scale)
    return out if bias is None else out.add_(bias)


def product_by_kernel(
    library: Library, pairs: Sequence[tuple[Tensor, Tensor]], scale: float, bias: Tensor | None, out: Tensor
) -> Tensor:
    """Compute `products` with one kernel."""
    factors = [
        CProduct(
            left=left.data_ptr(), right=right.data_ptr(), left_row=left.stride(0), left_term=left.stride(1),
            right_term=right.stride(0), right_column=right.stride(1),
        )
        for left, right in pairs
    ]  # fmt: skip
    (rows, terms), columns = pairs[0][0].shape, out.shape[1]
    arguments = (CProduct * len(pairs))(*factors), len(pairs), rows, columns, terms, scale
    with torch.cuda.device_of(out):
        library.call(out.device, "field_products", *arguments, bias, out)
    return out


def count_parts(rows: int, columns: int, terms: int) -> int:
    """Return the number of parts for the sums of a [rows, columns] product, a divisor of the number of terms."""
    blocks = -(-rows // TILE) * -(-columns // TILE)
    divisors = [d for d in range(1, max(1, terms // SHORTEST) + 1) if terms % d == 0]
    return next((d for d in divisors if d * blocks >= BLOCKS), divisors[-1])


def split_product(left: Tensor, right: Tensor, parts: int | None = None) -> Tensor:
    """Return left [R, T] @ right [T, C] with sums over T in so many parts; None takes `count_parts`."""
    if parts is None:
        parts = count_parts(left.shape[0], right.shape[1], left.shape[1])
    if parts == 1:
        return left @ right
    lefts, rights = left.unflatten(1, (parts, -1)).transpose(0, 1), right.unflatten(0, (parts, -1))  # views
    return torch.bmm(lefts, rights).sum(dim=0)
