"""Pairs of a test view and a sentence: their predicted masks, scores, results.json and per_sentence.csv."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.protocols import PROTOCOLS, Outcome, Protocol, summary
from evaluation.responses import Responses, response_figures
from scene.dataset import Referral, View
from scene.readers.image_files import read_mask
from utils.errors import UserError
from utils.files import atomic_path
from utils.metrics import Score, score

COLUMNS = ("view", "sentence_id", "category", "sentence", "iou", "prediction", "ground_truth")


@dataclass(frozen=True)
class Pair:
    """One sentence in one test view, its predicted mask and its score."""

    view: View
    referral: Referral
    prediction: Path
    score: Score

    @property
    def name(self) -> str:
        return f"{self.view.id}/{self.referral.sentence_id}"

    @property
    def outcome(self) -> Outcome:
        """The pair as input of the protocols."""
        return Outcome(self.view.id, self.referral.category, self.referral.sentence_id, self.score)


def read_prediction(path: Path) -> np.ndarray | None:
    """Return a predicted mask, bool [H, W]; None if the file is missing or not a picture."""
    try:
        return read_mask(path)
    except UserError:
        return None


def evaluate(views: list[View], masks: Path) -> list[Pair]:
    """Score `masks/<view id>/<sentence id>.png` for every sentence of every view.

    A file that is missing or not an image is a missing prediction.

    Raises:
        UserError: if no view has a sentence.
    """
    pairs = []
    for view in views:
        for referral in view.referrals:
            path = masks / view.id / f"{referral.sentence_id}.png"
            pairs.append(Pair(view, referral, path, score(read_prediction(path), view.mask(referral))))
    if not pairs:
        raise UserError(
            f"none of the {len(views)} test views has a sentence with a mask, so there is nothing to evaluate. "
            "Check the annotations of the scene folder: python -m scene.check -s DIR."
        )
    return pairs


def summarize_pairs(
    pairs: list[Pair], protocol: Protocol = PROTOCOLS["ref-lerf"], responses: Responses | None = None
) -> dict[str, Any]:
    """Return the numbers of results.json."""
    outcomes = [pair.outcome for pair in pairs]
    return (
        summary(protocol, outcomes, responses.localised if responses else None)
        | response_figures(responses, protocol, outcomes)
        | {
            "missing_predictions": [pair.name for pair in pairs if pair.score.missing],
            "resized_predictions": [pair.name for pair in pairs if pair.score.resized],
        }
    )


def write_csv(folder: Path, pairs: list[Pair], scene_path: Path) -> None:
    """Write per_sentence.csv: iou is 0..1, or nan where the ground truth is empty; no prediction is an empty field."""
    with (
        atomic_path(folder / "per_sentence.csv") as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for pair in pairs:
            prediction = "" if pair.score.missing else _relative(pair.prediction, folder)
            truth = _relative(pair.referral.mask_path, scene_path)
            names = (pair.view.id, pair.referral.sentence_id, pair.referral.category, pair.referral.sentence)
            writer.writerow([*names, f"{pair.score.iou:.6f}", prediction, truth])


def read_csv(folder: Path) -> list[Outcome]:
    """Read the pairs of per_sentence.csv; their scores hold the IoU only."""
    path = folder / "per_sentence.csv"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [Outcome(row["view"], row["category"], row["sentence_id"], Score(float(row["iou"]))) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error!r}. Evaluate again: python eval.py -m {folder}.") from None


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
