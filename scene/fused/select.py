"""The top share of Gaussians by score, and the indices of flagged Gaussians, without asking the GPU for a number.

Nothing here synchronises with the host and no size depends on what is on the device, so that CUDA graphs can hold it.
Numbers of rows (sentences, say) and of Gaussians are S and N below. All counts are integers: results are the same
bits in every run. Triton compiles at the first call, and again for an N that is 1 or differs in being a multiple of
16: call once before a capture.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

DIGIT_BITS = tl.constexpr(8)  # for Triton 3.6 compiles 4 histograms of 8 bits to fewer instructions than 3 of 11
BINS = tl.constexpr(256)
DIGITS = 4  # of a 32-bit key
BLOCK = 2048  # entries that a program handles at a time
MOST_PROGRAMS = 1024  # of one row of `thresholds`: about what an H100 runs at once
MOST_ENTRIES = 2**30  # of a row: offsets inside one are 32-bit integers

# Of the bits of a score.
SIGN = tl.constexpr(0x80000000)
MAGNITUDE = tl.constexpr(0x7FFFFFFF)
ALL = tl.constexpr(0xFFFFFFFF)
INFINITY = tl.constexpr(0x7F800000)
NEGATIVE_INFINITY = tl.constexpr(0xFF800000)


@triton.jit
def _keys(scores, offsets, valid):
    """Keys (uint32) in the order of the scores; -0 has the key of +0, and NaN that of -infinity."""
    bits = tl.load(scores + offsets, mask=valid, other=0).to(tl.uint32, bitcast=True)
    bits = tl.where(bits == SIGN, 0, bits)
    bits = tl.where((bits & MAGNITUDE) > INFINITY, NEGATIVE_INFINITY, bits)
    return bits ^ tl.where(bits >= SIGN, ALL, SIGN)


@triton.jit
def _leading_digits(histograms, counts, row, rows, FOUND: tl.constexpr):
    """The first FOUND digits of the key sought, and its rank (from 1) among the keys that begin with them."""
    bins = tl.arange(0, BINS)
    prefix = tl.full((), 0, tl.uint32)
    rank = tl.load(counts + row)
    for place in tl.static_range(FOUND):
        histogram = tl.load(histograms + (place * rows + row) * BINS + bins)
        at_least = tl.cumsum(histogram, reverse=True)
        digit = tl.sum((at_least >= rank).to(tl.int32)) - 1
        rank -= tl.sum(tl.where(bins > digit, histogram, 0))
        prefix = (prefix << DIGIT_BITS) | digit.to(tl.uint32)
    return prefix, rank


@triton.jit
def _count_digits(scores, counts, histograms, num, PLACE: tl.constexpr, BLOCK: tl.constexpr):
    """Histogram of digit PLACE (0 is the highest) of the keys whose higher digits are those of the key sought."""
    row, rows = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    prefix, _ = _leading_digits(histograms, counts, row, rows, PLACE)
    shift: tl.constexpr = 32 - DIGIT_BITS * (PLACE + 1)
    found = tl.zeros((BINS,), tl.int32)
    start = tl.program_id(0) * BLOCK
    while start < num:  # not range: Triton 3.6 cannot interpret range(tensor) with NumPy 2.4
        offsets = start + tl.arange(0, BLOCK)
        valid = offsets < num
        key = _keys(scores + row * num, offsets, valid)
        if PLACE > 0:
            valid = valid & ((key >> (shift + DIGIT_BITS)) == prefix)
        found += tl.histogram(((key >> shift) & (BINS - 1)).to(tl.int32), BINS, mask=valid)
        start += tl.num_programs(0) * BLOCK
    bins = tl.arange(0, BINS)
    tl.atomic_add(histograms + (PLACE * rows + row) * BINS + bins, found, mask=found > 0, sem="relaxed")


@triton.jit
def _store_threshold(histograms, counts, result, DIGITS: tl.constexpr):
    """Turns the key that the histograms lead to back into the bits of a score."""
    row = tl.program_id(1).to(tl.int64)
    key, _ = _leading_digits(histograms, counts, row, tl.num_programs(1), DIGITS)
    bits = key ^ tl.where(key >= SIGN, SIGN, ALL)
    tl.store(result + row, bits.to(tl.int32, bitcast=True))


@triton.jit
def _count_flags(flags, block_counts, num, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    flag = tl.load(flags + row * num + offsets, mask=offsets < num, other=0) != 0
    tl.store(block_counts + row * tl.num_programs(0) + tl.program_id(0), tl.sum(flag.to(tl.int32)))


@triton.jit
def _scatter_indices(flags, block_ends, indices, counts, num, BLOCK: tl.constexpr):
    """Indices of the flags that are set, to where the blocks before (`block_ends` has their total) leave off."""
    row, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    offsets = block * BLOCK + tl.arange(0, BLOCK)
    flag = tl.load(flags + row * num + offsets, mask=offsets < num, other=0) != 0
    ones = flag.to(tl.int32)
    end = tl.load(block_ends + row * tl.num_programs(0) + block)
    places = end - tl.sum(ones) + tl.cumsum(ones) - 1
    tl.store(indices + row * num + places, offsets, mask=flag)
    if block == tl.num_programs(0) - 1:
        tl.store(counts + row, end)


def _check(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.dim() != 2 or tensor.dtype not in dtypes or not tensor.is_contiguous():
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{name}: expected a contiguous [S, N] of {expected}, got {list(tensor.shape)} {tensor.dtype}")
    if not (tensor.shape[0] > 0 and 0 < tensor.shape[1] < MOST_ENTRIES):
        raise ValueError(f"{name}: expected S > 0 and 0 < N < {MOST_ENTRIES}, got {list(tensor.shape)}")


def thresholds(scores: Tensor, counts: Tensor) -> Tensor:
    """The counts[s]-th highest score of each row, by radix selection.

    Args:
        scores: [S, N] float32, contiguous. -0 counts as +0. NaN counts as -infinity, so that `scores >= threshold`
            never selects one.
        counts: [S] int32 on the same device, each in 1..N. That range is not checked: out of it, the threshold means
            nothing.

    Returns:
        [S] float32, the bits of one of the row's scores.

    Raises:
        ValueError: a tensor has another shape, type, layout or device than that.
    """
    _check("scores", scores, (torch.float32,))
    (rows, num), device = scores.shape, scores.device
    if counts.shape != (rows,) or counts.dtype != torch.int32 or counts.device != device or not counts.is_contiguous():
        found = f"{list(counts.shape)} {counts.dtype} on {counts.device}"
        raise ValueError(f"counts: expected a contiguous [{rows}] of torch.int32 on {device}, got {found}")
    histograms = torch.zeros(DIGITS, rows, BINS.value, dtype=torch.int32, device=device)
    result = torch.empty(rows, dtype=torch.float32, device=device)
    grid = (min(triton.cdiv(num, BLOCK), MOST_PROGRAMS), rows)
    bits = scores.detach().view(torch.int32)
    for place in range(DIGITS):
        _count_digits[grid](bits, counts, histograms, num, PLACE=place, BLOCK=BLOCK)
    _store_threshold[(1, rows)](histograms, counts, result.view(torch.int32), DIGITS=DIGITS)
    return result


def compact(flags: Tensor) -> tuple[Tensor, Tensor]:
    """The indices of the flags that are set, row by row.

    Args:
        flags: [S, N] bool or uint8 (anything but 0 is set), contiguous.

    Returns:
        rows [S, N] int32, of which the first counts[s] of row s are the indices in ascending order and the rest is
        unspecified, and counts [S] int32.

    Raises:
        ValueError: the flags have another shape, type or layout than that.
    """
    _check("flags", flags, (torch.bool, torch.uint8))
    (rows, num), device = flags.shape, flags.device
    indices = torch.empty(rows, num, dtype=torch.int32, device=device)
    counts = torch.empty(rows, dtype=torch.int32, device=device)
    grid = (triton.cdiv(num, BLOCK), rows)
    block_counts = torch.empty(rows, grid[0], dtype=torch.int32, device=device)
    flags = flags.view(torch.uint8)
    _count_flags[grid](flags, block_counts, num, BLOCK=BLOCK)
    block_ends = torch.cumsum(block_counts, dim=1, dtype=torch.int32)
    _scatter_indices[grid](flags, block_ends, indices, counts, num, BLOCK=BLOCK)
    return indices, counts
