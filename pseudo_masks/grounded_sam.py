"""Grounded-SAM: boxes of every sentence of an object, a mask for each box, and of these the one that most agree on.

The JSON beside a mask has "detector", "segmenter", "selection", the thresholds, and "candidates". Of each it tells the
sentence (index into "sentences"), the box (left, top, right, bottom in pixels), the confidence, the words that the box
answers to, the share of the photo that its mask covers, and its score p_k, null where the mask is empty or too large.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from arguments import PseudoMaskParams
from pseudo_masks.detector import Detections, Detector
from pseudo_masks.plan import Pair
from pseudo_masks.records import Outcome
from pseudo_masks.segmenter import Embedded, Segmenter
from pseudo_masks.selection import select


class GroundedSam:
    """Makes the masks of a view.

    Args:
        flags: names of the models, thresholds and the selection rule.
        device: where the models run.

    Raises:
        UserError: if a model is not to be found, damaged or of the wrong kind.
    """

    def __init__(self, flags: PseudoMaskParams, device: torch.device):
        self._flags = flags
        self._detector = Detector(flags.detector, device, flags.half)
        family = None if flags.sam_family == "auto" else flags.sam_family
        self._segmenter = Segmenter(flags.segmenter, device, flags.half, family)

    def outcomes(self, photo: np.ndarray, pairs: list[Pair]) -> list[Outcome]:
        """A mask, or none, for each pair of one view; the photo is uint8 RGB [H, W, 3].

        Raises:
            UserError: if a model computes no numbers.
        """
        flags = self._flags
        sentences = list(dict.fromkeys(sentence for pair in pairs for sentence in pair.sentences))
        found = self._detector.detect(
            photo, sentences, flags.box_threshold, flags.text_threshold, flags.max_boxes, flags.batch
        )
        by_sentence = dict(zip(sentences, found, strict=True))
        embedded = self._segmenter.embed(photo) if any(len(each.boxes) for each in found) else None
        return [self._outcome([by_sentence[s] for s in pair.sentences], embedded) for pair in pairs]

    def _outcome(self, found: list[Detections], embedded: Embedded | None) -> Outcome:
        """The mask of one object, from what was found for each of its sentences."""
        flags = self._flags
        facts: dict[str, Any] = {
            "detector": flags.detector, "segmenter": flags.segmenter, "selection": flags.selection,
            "box_threshold": flags.box_threshold, "text_threshold": flags.text_threshold, "max_area": flags.max_area,
        }  # fmt: skip
        boxes = torch.cat([each.boxes for each in found])  # [K, 4]
        if not len(boxes):
            return Outcome(None, {**facts, "winner": None, "score": None, "candidates": []})
        confidences = torch.cat([each.confidences for each in found])  # [K]
        masks = self._segmenter.masks(embedded, boxes)  # [K, H, W]
        selection = select(masks, confidences, flags.selection, flags.max_area)
        origins = [(index, label) for index, each in enumerate(found) for label in each.labels]
        candidates = [
            {
                "sentence": sentence,
                "box": [round(side, 2) for side in boxes[k].tolist()],
                "confidence": round(float(confidences[k]), 6),
                "words": words,
                "area": round(selection.areas[k], 6),
                "score": None if selection.scores[k] is None else round(selection.scores[k], 6),
            }
            for k, (sentence, words) in enumerate(origins)
        ]
        winner = selection.winner
        facts |= {"winner": winner, "score": None if winner is None else candidates[winner]["score"]}
        mask = None if winner is None else masks[winner].cpu().numpy()
        return Outcome(mask, {**facts, "candidates": candidates})
