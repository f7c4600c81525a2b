"""Mask metrics: IoU, boundary IoU, pixel accuracy, localisation, and their means over (view, sentence) pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

ACCURACY_AT = (0.25, 0.5)  # IoU thresholds of accuracy
BOUNDARY_SHARE = 0.02  # boundary width of `boundary_iou`, as a share of the image diagonal


def iou(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the intersection over union of two bool masks [H, W], 0..1; 1 if both are empty.

    Raises:
        ValueError: if the shapes differ (see `resized_mask`).
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"masks of different size: prediction {prediction.shape}, truth {truth.shape}")
    return _iou(*_overlap(prediction, truth))


def _overlap(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    return int(np.count_nonzero(prediction & truth)), int(np.count_nonzero(prediction | truth))


def overlaps(predictions: Tensor, truths: Tensor) -> Tensor:
    """Count pixels of intersection, union and truth of K pairs of bool masks [K, H, W]: int64 [K, 3], for `ious`."""
    pairs = (predictions & truths, predictions | truths, truths)
    return torch.stack([masks.flatten(1).sum(dim=1) for masks in pairs], dim=1)


def ious(counted: Tensor) -> list[float]:
    """Return the IoU of each row of `overlaps` [K, 3], except where the truth is empty and IoU is undefined."""
    return [_iou(intersection, union) for intersection, union, truth in counted.tolist() if truth]


def _iou(intersection: int, union: int) -> float:
    return intersection / union if union else 1.0


def resized_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize a bool mask [h, w] to `shape` [H, W], nearest neighbour."""
    height, width = shape
    return cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0


def boundary_iou(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the boundary IoU of two bool masks [H, W], 0..1 (Cheng et al. 2021); 1 if both are empty.

    It is the IoU of the boundary regions: pixels of a mask within d of the outside in 8-neighbour steps, d = 2 % of the
    image diagonal, at least 1 pixel. Outside the image counts as outside the mask.
    """
    width = max(1, round(BOUNDARY_SHARE * math.hypot(*truth.shape)))
    return iou(_boundary(prediction, width), _boundary(truth, width))


def _boundary(mask: np.ndarray, width: int) -> np.ndarray:
    framed = np.pad(mask.astype(np.uint8), 1)
    inner = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask & (inner == 0)


def localised(peak: tuple[int, int], boxes: Iterable[tuple[int, int, int, int]]) -> bool:
    """Return whether the peak pixel (x, y) lies in any box (left, top, right, bottom), edges included."""
    x, y = peak
    return any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes)


@dataclass(frozen=True)
class Score:
    """One pair (view, sentence) against its ground truth."""

    iou: float  # 0..1; 0 without a prediction; NaN if the ground truth is empty
    missing: bool = False  # there is no prediction
    false_positive: float = math.nan  # predicted share of the image, 0..1, if the truth is empty; else NaN
    resized: bool = False  # the prediction differed in size from the ground truth
    intersection: int = 0  # pixels
    union: int = 0  # pixels; a missing prediction counts as empty
    boundary_iou: float = math.nan  # 0..1; 0 and NaN as in `iou`
    accuracy: float = math.nan  # share of correct pixels, 0..1; NaN as in `iou`
    answered: bool = False  # the prediction is not empty


def score(prediction: np.ndarray | None, truth: np.ndarray) -> Score:
    """Score a predicted mask, or None, against the true one; both bool [H, W]."""
    empty = not truth.any()
    if prediction is None:
        if empty:
            return Score(math.nan, missing=True, false_positive=0.0)
        return Score(0.0, True, union=int(truth.sum()), boundary_iou=0.0, accuracy=float((~truth).mean()))
    resized = prediction.shape != truth.shape
    if resized:
        prediction = resized_mask(prediction, truth.shape)
    answered = bool(prediction.any())
    if empty:
        return Score(math.nan, false_positive=float(prediction.mean()), resized=resized, answered=answered)
    intersection, union = _overlap(prediction, truth)
    return Score(
        _iou(intersection, union),
        resized=resized,
        intersection=intersection,
        union=union,
        boundary_iou=boundary_iou(prediction, truth),
        accuracy=float((prediction == truth).mean()),
        answered=answered,
    )


def _means(values: list[float]) -> dict[str, Any]:
    """Return mIoU and accuracies in per cent (None without values), and the number of values."""
    result: dict[str, Any] = {"mIoU": 100 * float(np.mean(values)) if values else None}
    for limit in ACCURACY_AT:
        result[f"acc@{limit}"] = 100 * sum(v >= limit for v in values) / len(values) if values else None
    return result | {"pairs": len(values)}


def summarize(scores: Iterable[tuple[str, Score]]) -> dict[str, Any]:
    """Aggregate (category, score) pairs.

    Every pair with a non-empty ground truth has the same weight, overall and within its category; a missing prediction
    has IoU 0. Pairs with an empty ground truth are left out of means and accuracies and reported apart.

    Returns:
        "mIoU", "acc@0.25", "acc@0.5" in per cent (accuracy: share of pairs with IoU >= t), "pairs" (in the mean),
        "per_category" (the same four of each category) and "empty_ground_truth": "pairs", "with_foreground" (how
        many have a non-empty prediction) and "false_positive_percent" (mean share of the image; None without pairs).
    """
    scores = list(scores)
    categories = sorted({category for category, _ in scores})
    counted = [(category, s.iou) for category, s in scores if not math.isnan(s.iou)]
    false_positive = [s.false_positive for _, s in scores if not math.isnan(s.false_positive)]
    return _means([value for _, value in counted]) | {
        "per_category": {
            category: _means([value for owner, value in counted if owner == category]) for category in categories
        },
        "empty_ground_truth": {
            "pairs": sum(math.isnan(s.iou) for _, s in scores),
            "with_foreground": sum(share > 0 for share in false_positive),
            "false_positive_percent": 100 * float(np.mean(false_positive)) if false_positive else None,
        },
    }
