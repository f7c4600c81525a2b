"""Protocols: which pairs of view and sentence count, and how they are averaged. Formulas: docs/EVALUATION.md.

Two mIoU are comparable only under the same protocol, so results.json names it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from utils.metrics import ACCURACY_AT, Score, summarize

RESAMPLES, LEVEL = 2000, 0.95  # of the bootstrap


class Outcome(NamedTuple):
    """One pair (view, sentence) and its score; protocols take outcomes in the order in which the masks were made."""

    view: str
    category: str
    sentence_id: str
    score: Score


@dataclass(frozen=True)
class Protocol:
    """Definition of the mIoU of a dataset."""

    name: str  # value of --protocol
    meaning: str  # definition of mIoU in words
    dataset: str  # the dataset whose published numbers it compares with
    last_only: bool = False  # one mask a view and category: the sentences overwrite each other, the last is scored
    by_view: bool = False  # mean over the classes of a view first, then over views

    def filter(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """Return the pairs that count, including those with empty ground truth."""
        if not self.last_only:
            return list(outcomes)
        return list({(outcome.view, outcome.category): outcome for outcome in outcomes}.values())

    def weights(self, outcomes: Sequence[Outcome]) -> np.ndarray:
        """Return the weight of each pair in means, [P]; 0 where the ground truth is empty."""
        counts = np.array([not math.isnan(outcome.score.iou) for outcome in outcomes], dtype=float)
        if not self.by_view:
            return counts
        sizes = Counter(o.view for o, counted in zip(outcomes, counts, strict=True) if counted)
        return np.array([c / max(sizes[o.view], 1) for o, c in zip(outcomes, counts, strict=True)])

    def miou(self, outcomes: Iterable[Outcome]) -> float | None:
        """Return the mIoU of the protocol in per cent; None if no pair counts."""
        counted = self.filter(outcomes)
        return mean([o.score.iou for o in counted], self.weights(counted))


PAIRS = "mean IoU over all (test view, sentence) pairs"
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("ref-lerf", PAIRS, "ref-lerf"),
        Protocol(
            "released",
            "mean IoU over (test view, category): sentences of one object overwrite each other, the last is scored, as "
            "the released script scores",
            "ref-lerf",
            last_only=True,
        ),
        Protocol("lerf-ovs", "mean IoU over all (test view, category) pairs, truth from polygons", "lerf-ovs"),
        Protocol("3d-ovs", "mean over test views of the mean IoU over classes", "3d-ovs", by_view=True),
    )
}


def mean(values: Sequence[float], weights: np.ndarray) -> float | None:
    """Return the weighted mean in per cent; values of weight 0 may be NaN; None if all weights are 0."""
    counted = weights > 0
    if not counted.any():
        return None
    return 100 * float(np.average(np.asarray(values, dtype=float)[counted], weights=weights[counted]))


def summary(
    protocol: Protocol, outcomes: Iterable[Outcome], localised: dict[tuple[str, str], bool] | None = None
) -> dict[str, Any]:
    """Compute every figure of one run; numbers in per cent, None where there is nothing to measure.

    `localised` tells whether the peak of the logits is inside a box of the object, by (view, sentence id).

    Returns:
        The entries of `utils.metrics.summarize`, and "overall_iou", "boundary_iou", "mAcc", "coverage", "localisation",
        "confidence_interval" of mIoU ([low, high] or None) and "other_protocols" (mIoU under those of its dataset).
    """
    outcomes = list(outcomes)
    chosen = protocol.filter(outcomes)
    weights = protocol.weights(chosen)
    counted = [outcome for outcome in chosen if not math.isnan(outcome.score.iou)]
    found = summarize((o.category, o.score) for o in chosen)
    if protocol.by_view:
        found["mIoU"] = mean([o.score.iou for o in chosen], weights)
        for limit in ACCURACY_AT:
            found[f"acc@{limit}"] = mean([o.score.iou >= limit for o in chosen], weights)
    union = sum(o.score.union for o in counted)
    hits = None
    if localised is not None:
        hits = mean([localised.get((o.view, o.sentence_id), False) for o in chosen], weights)
    return found | {
        "overall_iou": 100 * sum(o.score.intersection for o in counted) / union if union else None,
        "boundary_iou": mean([o.score.boundary_iou for o in chosen], weights),
        "mAcc": mean([o.score.accuracy for o in chosen], weights),
        "coverage": mean([o.score.answered for o in chosen], weights),
        "localisation": hits,
        "confidence_interval": confidence_interval(protocol, outcomes),
        "other_protocols": {
            name: other.miou(outcomes)
            for name, other in PROTOCOLS.items()
            if other.dataset == protocol.dataset and other is not protocol
        },
    }


def confidence_interval(protocol: Protocol, outcomes: Iterable[Outcome], seed: int = 0) -> list[float] | None:
    """Return the 95 % percentile bootstrap interval of mIoU in per cent, [low, high]; None below two sentences.

    Sentences are drawn with replacement, each with all its views: masks of one sentence in several views are not
    independent. Equal pairs always give equal draws.
    """
    chosen = protocol.filter(outcomes)
    weights = protocol.weights(chosen)
    sums: dict[str, list[float]] = {}  # weighted IoU and weight of each sentence
    for outcome, weight in zip(chosen, weights, strict=True):
        if weight > 0:
            entry = sums.setdefault(outcome.sentence_id, [0.0, 0.0])
            entry[0] += weight * outcome.score.iou
            entry[1] += weight
    if len(sums) < 2:
        return None
    table = np.array(list(sums.values()))  # [S, 2]
    drawn = np.random.default_rng(seed).integers(0, len(table), (RESAMPLES, len(table)))
    totals = table[drawn].sum(axis=1)  # [R, 2]
    tail = 50 * (1 - LEVEL)
    return [100 * float(v) for v in np.percentile(totals[:, 0] / totals[:, 1], [tail, 100 - tail])]
