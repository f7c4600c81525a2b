"""Every (view, sentence) of a scene with its predicted mask and how good that is."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.protocols import Outcome
from evaluation.report import Row
from scene.dataset import Referral, View
from scene.readers.image_files import read_mask
from utils.errors import UserError
from utils.files import atomic_path
from utils.metrics import Score, score

COLUMNS = ("view", "sentence_id", "category", "sentence", "iou", "prediction", "ground_truth")


@dataclass(frozen=True)
class Pair:
    """One sentence in one test view, its predicted mask and how good that is."""

    view: View
    referral: Referral
    prediction: Path
    score: Score

    @property
    def outcome(self) -> Outcome:
        """The pair as the protocols take it."""
        return Outcome(self.view.id, self.referral.category, self.referral.sentence_id, self.score)

    def row(self) -> Row:
        """The pair as the report shows it."""
        referral = self.referral
        return Row(self.view.id, referral.category, referral.sentence, self.score.iou, self.score.missing)


def read_prediction(path: Path) -> np.ndarray | None:
    """A predicted mask, bool [H, W]; None if the file is missing or not a picture."""
    try:
        return read_mask(path)
    except UserError:
        return None


def evaluate(views: list[View], masks: Path) -> list[Pair]:
    """Score `masks/<view id>/<sentence id>.png` for every sentence of every view.

    A file that is missing or not an image is a missing prediction.

    Raises:
        UserError: if the views have no sentence at all.
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


def read_csv(folder: Path) -> Iterable[Outcome]:
    """The pairs of per_sentence.csv with their IoU; what else a `Score` holds is not in the file.

    Raises:
        UserError: if the file is missing or damaged.
    """
    path = folder / "per_sentence.csv"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [Outcome(row["view"], row["category"], row["sentence_id"], Score(float(row["iou"]))) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error!r}. Evaluate again: python eval.py -m {folder}.") from None


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
