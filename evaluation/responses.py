"""Figures that need the model's logits: localisation, other thresholds, absent objects, argmax over sentences."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from evaluation.protocols import Outcome, Protocol
from referring.decoding import to_mask
from scene.cameras import Camera
from scene.dataset import View
from utils.metrics import localised

THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 20))  # of the sensitivity curve


@dataclass
class Responses:
    """Measurements of every sentence in every view that has any; dictionaries are by (view, sentence id)."""

    localised: dict[tuple[str, str], bool] = field(default_factory=dict)  # the peak of the logits lies in a box
    ious: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)  # at each of `THRESHOLDS`; truth is not empty
    # predicted share of the picture, 0..1, of each test sentence whose object the view's annotation does not name
    false_positives: list[float] = field(default_factory=list)
    covered: list[float] = field(default_factory=list)  # share of each object's pixels, 0..1, that Gaussians cover
    argmax: list[tuple[float, float]] = field(default_factory=list)  # of each view, see `argmax_scores`


class LogitRenderer(typing.Protocol):
    """Renders blended logits like `inference.predict.Predictor`."""

    @property
    def threshold(self) -> float: ...

    def logits(self, camera: Camera, sentences: list[str], once: bool = False) -> torch.Tensor: ...


def measure_responses(predictor: LogitRenderer, views: list[View]) -> Responses:
    """Render every test sentence in every test view with sentences, without writing anything."""
    measured = Responses()
    views = [view for view in views if view.referrals]
    sentences = {r.sentence_id: (r.category, r.sentence) for view in views for r in view.referrals}
    for view in views:
        named = {r.category for r in view.referrals} | view.unmasked
        absent = [sentence for category, sentence in sentences.values() if category not in named]
        present = [r.sentence for r in view.referrals]
        logits = predictor.logits(view.camera, present + absent, once=True).numpy()  # [K, H, W], -inf if uncovered
        for referral, response in zip(view.referrals, logits, strict=False):
            key, truth = (view.id, referral.sentence_id), view.mask(referral)
            if truth.any():
                measured.localised[key] = localised(find_peak(response), view.boxes(referral))
                measured.ious[key] = ious_at(sigmoid(response), truth, THRESHOLDS)
                measured.covered.append(float(np.isfinite(response[truth]).mean()))
        truths = np.stack([view.mask(referral) for referral in view.referrals])
        if truths.any(axis=(1, 2)).all():
            measured.argmax.append(argmax_scores(logits[: len(truths)], truths))
        for response in logits[len(view.referrals) :]:
            mask = to_mask(sigmoid(response), predictor.threshold)
            measured.false_positives.append(float(mask.mean()))
    return measured


def find_peak(response: np.ndarray) -> tuple[int, int]:
    """Return (x, y) of the highest value of [H, W]; the first in reading order if several are equal."""
    y, x = np.unravel_index(np.argmax(response), response.shape)
    return int(x), int(y)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the sigmoid in float32, as `Predictor.probabilities` computes it."""
    return torch.from_numpy(logits).sigmoid().numpy()


def ious_at(probability: np.ndarray, truth: np.ndarray, thresholds: Iterable[float]) -> np.ndarray:
    """Return the IoU [T] of the non-empty truth [H, W] with the mask `probability > t` for each ascending threshold."""
    # float32, as the probabilities: in double precision 0.05 is a little more, and a pixel on it would change sides
    limits = np.array(list(thresholds), dtype=np.float32)
    exceeded = np.searchsorted(limits, probability.ravel(), side="left")  # how many thresholds lie below the pixel
    counts = np.bincount(exceeded, minlength=len(limits) + 1)
    true_counts = np.bincount(exceeded[truth.ravel()], minlength=len(limits) + 1)
    predicted = counts[::-1].cumsum()[::-1][1:]  # pixels that exceed the first threshold, the second ...
    hits = true_counts[::-1].cumsum()[::-1][1:]
    return hits / (predicted + np.count_nonzero(truth) - hits)


def argmax_scores(logits: np.ndarray, truths: np.ndarray) -> tuple[float, float]:
    """Return mean IoU and accuracy, 0..1, if each pixel goes to the sentence of its highest logit, as 3D-OVS does.

    A pixel with -inf everywhere goes to none. The accuracy is the share of pixels that are right for all K sentences.

    Args:
        logits: [K, H, W].
        truths: bool [K, H, W], none empty.
    """
    picked = (np.arange(len(logits))[:, None, None] == logits.argmax(axis=0)) & np.isfinite(logits.max(axis=0))
    hits, unions = (picked & truths).sum(axis=(1, 2)), (picked | truths).sum(axis=(1, 2))
    return float((hits / unions).mean()), float((picked == truths).all(axis=0).mean())


def response_figures(responses: Responses | None, protocol: Protocol, outcomes: list[Outcome]) -> dict[str, Any]:
    """Return the entries "threshold_curve", "absent", "pixel_coverage" and "argmax" of results.json, in per cent.

    "absent" counts pairs with empty ground truth and, if there are responses, the test sentences whose object is not
    annotated in a view. The curve is the protocol's mIoU at other thresholds; no number is chosen by it.
    """
    shares = [o.score.false_positive for o in outcomes if not math.isnan(o.score.false_positive)]
    shares += responses.false_positives if responses else []
    answered = sum(share > 0 for share in shares)
    curve = argmax = None
    if responses and responses.argmax:
        miou, accuracy = (100 * float(v) for v in np.mean(responses.argmax, axis=0))
        argmax = {"views": len(responses.argmax), "mIoU": miou, "accuracy": accuracy}
    if responses:
        curve = []
        for index, threshold in enumerate(THRESHOLDS):
            moved = [_at_threshold(outcome, responses, index) for outcome in outcomes]
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


def _at_threshold(outcome: Outcome, responses: Responses, index: int) -> Outcome:
    values = responses.ious.get((outcome.view, outcome.sentence_id))
    if values is None:
        return outcome
    return outcome._replace(score=replace(outcome.score, iou=float(values[index])))
