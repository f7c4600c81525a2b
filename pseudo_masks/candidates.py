"""The choice among the candidate masks of an object: confidence-weighted IoU (paper Eq. 5) and two other rules.

Candidate k of K is a mask M_k with detection confidence gamma_k. A mask is a set of pixels, and gamma_k M_k the fuzzy
set in which every pixel of M_k has membership gamma_k: its size is gamma_k |M_k|, and intersection and union take the
smaller and the larger membership.

    eq5       p_k = sum over j of |gamma_k M_k ∩ gamma_j M_j| / |gamma_k M_k ∪ gamma_j M_j|
    released  p_k = sum over j != k of IoU(M_k, M_j) gamma_k gamma_j, as in the released script, which shifts the
              gammas of all masks after a dropped candidate; here each gamma stays with its mask
    top1      p_k = gamma_k

The highest p wins; among equals the higher confidence, then the earlier candidate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RULES = ("eq5", "released", "top1")
PIXELS = 1 << 20  # compared at a time: float32 counts are exact, and memory is bounded
DECIMALS = 9  # of compared scores, so that sums of the same numbers in another order tie


@dataclass(frozen=True)
class Choice:
    """The chosen candidate of an object."""

    winner: int | None  # index of the mask to keep, None if no candidate is eligible
    scores: list[float | None]  # p_k of each candidate, None for those that are not eligible
    areas: list[float]  # share of the picture that each candidate covers, 0..1


def choose_candidate(masks: Tensor, confidences: Tensor, rule: str = "eq5", max_area: float = 1.0) -> Choice:
    """Choose one of the candidates of an object in a view.

    Empty candidates and those that cover more than `max_area` are not eligible, and have no part in the comparison.

    Args:
        masks: bool [K, H, W]; K may be 0.
        confidences: gamma, [K], each above 0 and at most 1.
        rule: one of `RULES`.
        max_area: largest share of the picture a mask may cover.

    Raises:
        ValueError: if the rule is unknown or the shapes disagree.
    """
    if rule not in RULES:
        raise ValueError(f"unknown selection rule {rule!r}, expected one of {RULES}")
    if masks.ndim != 3 or confidences.shape != masks.shape[:1]:
        raise ValueError(f"masks {tuple(masks.shape)} and confidences {tuple(confidences.shape)} disagree")
    pixels = max(1, masks.shape[1] * masks.shape[2])
    sizes = masks.flatten(1).sum(1, dtype=torch.float64).cpu()  # [K]
    areas = sizes / pixels
    eligible = ((sizes > 0) & (areas <= max_area)).nonzero().flatten().tolist()
    scores: list[float | None] = [None] * len(masks)
    gamma = confidences.double().cpu()
    for index, score in zip(eligible, _scores(masks[eligible], gamma[eligible], rule), strict=True):
        scores[index] = score
    winner = max(eligible, key=lambda k: (round(scores[k] or 0.0, DECIMALS), float(gamma[k]), -k), default=None)
    return Choice(winner, scores, areas.tolist())


def _scores(masks: Tensor, gamma: Tensor, rule: str) -> list[float]:
    """Return p_k of candidates, none of them empty: masks bool [K, H, W], gamma float64 [K]."""
    if rule == "top1" or not len(masks):
        return gamma.tolist()
    shared = intersections(masks)  # [K, K]
    sizes = shared.diagonal()  # [K]
    if rule == "released":
        iou = shared / (sizes[:, None] + sizes - shared)
        pairs = iou * gamma[:, None] * gamma
        return pairs.fill_diagonal_(0).sum(1).tolist()
    weighted = gamma * sizes  # [K]
    common = shared * torch.minimum(gamma[:, None], gamma)
    return (common / (weighted[:, None] + weighted - common)).sum(1).tolist()


def intersections(masks: Tensor) -> Tensor:
    """Return the number of pixels that each two masks, bool [K, H, W], share: float64 [K, K] on the CPU."""
    flat = masks.flatten(1)
    shared = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for part in flat.split(PIXELS, dim=1):
        part = part.float()
        shared += (part @ part.T).double().cpu()
    return shared
