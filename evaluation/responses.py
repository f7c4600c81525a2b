"""What only the model's own responses tell: where they are highest, other thresholds, objects that are absent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from evaluation.protocols import Outcome, Protocol
from inference.predict import Predictor
from referring.decoding import to_mask
from scene.dataset import View
from utils.metrics import localised

THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 20))  # of the sensitivity curve


@dataclass
class Responses:
    """Of every sentence in every view that has any.

    Attributes:
        localised: whether the highest response lies in a box of the object, by (view, sentence id).
        ious: IoU at each of `THRESHOLDS`, by (view, sentence id); only where the truth is not empty.
        false_positives: share of the picture, 0..1, that is predicted for each test sentence whose object the view's
            annotation does not name.
        covered: shares of the pixels of each object, 0..1, that at least one Gaussian covers.
        assigned: where every pixel gets the one sentence of the highest response, as 3D-OVS does: of each view, the
            mean IoU of its sentences, and the share of pixels that are right for all of them; 0..1.
    """

    localised: dict[tuple[str, str], bool] = field(default_factory=dict)
    ious: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    false_positives: list[float] = field(default_factory=list)
    covered: list[float] = field(default_factory=list)
    assigned: list[tuple[float, float]] = field(default_factory=list)


def look(predictor: Predictor, views: list[View]) -> Responses:
    """Render every test sentence in every view with sentences, once more, without writing anything.

    Args:
        predictor: of the model.
        views: test views.
    """
    found = Responses()
    views = [view for view in views if view.referrals]
    sentences = {r.sentence_id: (r.category, r.sentence) for view in views for r in view.referrals}
    for view in views:
        named = {r.category for r in view.referrals} | view.unmasked
        absent = [sentence for category, sentence in sentences.values() if category not in named]
        wanted = [r.sentence for r in view.referrals] + absent
        logits = predictor.responses(view.camera, wanted, once=True).numpy()  # [K, H, W], -inf where nothing is
        for referral, response in zip(view.referrals, logits, strict=False):
            key, truth = (view.id, referral.sentence_id), view.mask(referral)
            if truth.any():
                found.localised[key] = localised(highest(response), view.boxes(referral))
                found.ious[key] = ious_at(probability(response), truth, THRESHOLDS)
                found.covered.append(float(np.isfinite(response[truth]).mean()))
        truths = np.stack([view.mask(referral) for referral in view.referrals])
        if truths.any(axis=(1, 2)).all():
            found.assigned.append(assigned(logits[: len(truths)], truths))
        for response in logits[len(view.referrals) :]:
            found.false_positives.append(float(to_mask(probability(response), predictor.threshold).mean()))
    return found


def highest(response: np.ndarray) -> tuple[int, int]:
    """(x, y) of the highest value of [H, W]; the first in reading order where several are."""
    y, x = np.unravel_index(np.argmax(response), response.shape)
    return int(x), int(y)


def probability(logits: np.ndarray) -> np.ndarray:
    """Sigmoid in float32, as `Predictor.probabilities` computes it."""
    return torch.from_numpy(logits).sigmoid().numpy()


def ious_at(probability: np.ndarray, truth: np.ndarray, thresholds: Iterable[float]) -> np.ndarray:
    """IoU with the truth [H, W], not empty, of the mask `probability > t` for each ascending threshold t: [T]."""
    # float32, as the probabilities: in double precision 0.05 is a little more, and a pixel on it would change sides
    limits = np.array(list(thresholds), dtype=np.float32)
    exceeded = np.searchsorted(limits, probability.ravel(), side="left")  # how many thresholds lie below the pixel
    of_all = np.bincount(exceeded, minlength=len(limits) + 1)
    of_truth = np.bincount(exceeded[truth.ravel()], minlength=len(limits) + 1)
    predicted = of_all[::-1].cumsum()[::-1][1:]  # pixels that exceed the first threshold, the second ...
    hits = of_truth[::-1].cumsum()[::-1][1:]
    return hits / (predicted + np.count_nonzero(truth) - hits)


def assigned(logits: np.ndarray, truths: np.ndarray) -> tuple[float, float]:
    """Mean IoU and accuracy, 0..1, where each pixel goes to the sentence of its highest logit.

    Args:
        logits: [K, H, W]; a pixel with -inf everywhere goes to none.
        truths: bool [K, H, W], none empty.

    Returns:
        the mean over K of IoU, and the share of pixels whose K truths are all met (subset accuracy).
    """
    picked = (np.arange(len(logits))[:, None, None] == logits.argmax(axis=0)) & np.isfinite(logits.max(axis=0))
    hits, unions = (picked & truths).sum(axis=(1, 2)), (picked | truths).sum(axis=(1, 2))
    return float((hits / unions).mean()), float((picked == truths).all(axis=0).mean())


def figures(responses: Responses | None, protocol: Protocol, outcomes: list[Outcome]) -> dict[str, Any]:
    """Entries of results.json: "threshold_curve", "absent", "pixel_coverage" and "argmax", in per cent.

    "absent" counts pairs with empty ground truth together with the test sentences whose object is not annotated in a
    view; the latter only if there are responses. The curve is the protocol's mIoU at other thresholds, for information:
    no number of results.json is chosen by it.
    """
    shares = [o.score.false_positive for o in outcomes if o.score.false_positive == o.score.false_positive]
    shares += responses.false_positives if responses else []
    answered = sum(share > 0 for share in shares)
    curve = argmax = None
    if responses and responses.assigned:
        miou, accuracy = (100 * float(v) for v in np.mean(responses.assigned, axis=0))
        argmax = {"views": len(responses.assigned), "mIoU": miou, "accuracy": accuracy}
    if responses:
        curve = []
        for index, threshold in enumerate(THRESHOLDS):
            moved = [_at(outcome, responses, index) for outcome in outcomes]
            curve.append({"threshold": threshold, "mIoU": protocol.miou(moved)})
    return {
        "absent": {
            "pairs": len(shares),
            "with_foreground": answered,
            "false_positive_rate": 100 * answered / len(shares) if shares else None,
            "false_positive_percent": 100 * float(np.mean(shares)) if shares else None,
        },
        "pixel_coverage": 100 * float(np.mean(responses.covered)) if responses and responses.covered else None,
        "argmax": argmax,
        "threshold_curve": curve,
    }


def _at(outcome: Outcome, responses: Responses, index: int) -> Outcome:
    values = responses.ious.get((outcome.view, outcome.sentence_id))
    if values is None:
        return outcome
    return outcome._replace(score=replace(outcome.score, iou=float(values[index])))
