"""Top-k Gaussians by radix selection, and index lists, without a sort or a synchronisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from referring.kernels.library import Library

DIGITS, BINS = 4, 256  # of a score, see csrc/top_k.cu


def thresholds(library: Library, scores: Tensor, counts: Tensor) -> Tensor:
    """Return the counts[s]-th highest score of each row, by radix selection, [S].

    Args:
        library: the kernels.
        scores: [S, N] float32, contiguous. -0 counts as +0. NaN counts as -infinity, so that `scores >= threshold`
            never selects one.
        counts: [S] int32 on the same device, each in 1..N (not checked).
    """
    sentences, count = scores.shape
    histograms = torch.zeros(DIGITS, sentences, BINS, dtype=torch.int32, device=scores.device)
    states = torch.empty(DIGITS, sentences, 2, dtype=torch.int32, device=scores.device)
    found = torch.empty(sentences, device=scores.device)
    library.call(scores.device, "field_thresholds", scores, counts, count, sentences, histograms, states, found)
    return found


def list_tops(library: Library, scores: Tensor, lowest: Tensor) -> tuple[Tensor, Tensor]:
    """List the Gaussians whose scores [S, N] reach a threshold `lowest` [S].

    Returns:
        indices [S, N] int32, ascending, the first counts[s] of row s filled in, and counts [S] int32.
    """
    sentences, count = scores.shape
    tops, counts = _int32(scores, sentences, count), _int32(scores, sentences)
    scratch = _list_scratch(library, scores, sentences)
    library.call(scores.device, "field_list_tops", scores, lowest, count, sentences, *scratch, tops, counts)
    return tops, counts


def order_active(library: Library, scores: Tensor, lowest: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Order all Gaussians: first those with a gradient [S, N] or among the top-k of any sentence.

    Returns:
        indices [N] int32, ascending in each part, and the size of the first part, [1] int32.
    """
    sentences, count = scores.shape
    order, active = _int32(scores, count), _int32(scores, 1)
    arguments = scores, lowest, gradients, count, sentences, *_list_scratch(library, scores, 1)
    library.call(scores.device, "field_order_active", *arguments, order, active)
    return order, active


def _list_scratch(library: Library, scores: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    blocks = math.ceil(scores.shape[1] / library.list_block)
    flags = torch.empty(rows, blocks, library.list_block // 8, dtype=torch.uint8, device=scores.device)
    return _int32(scores, rows, blocks), flags


def _int32(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device=like.device)
