"""Grounded-SAM: boxes for every sentence of an object, a mask for each box, and the mask that the others support most.

The sidecar of a mask has "detector", "segmenter", "selection", the thresholds, and "candidates". Each candidate has its
sentence (index into "sentences"), box (left, top, right, bottom in pixels), confidence, the words that the box answers
to, the share of the photo that its mask covers, and its score p_k, null where the mask is empty or too large.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from arguments import PseudoMaskParams
from pseudo_masks.candidates import choose_candidate
from pseudo_masks.detector import Detections, Detector
from pseudo_masks.mask_files import MadeMask
from pseudo_masks.segmenter import Embedding, Segmenter
from pseudo_masks.worklist import Target


class GroundedSam:
    """Makes the masks of a view, with the models, thresholds and the rule of choice that the flags name."""

    def __init__(self, flags: PseudoMaskParams, device: torch.device):
        self._flags = flags
        self._detector = Detector(flags.detector, device, flags.half)
        family = None if flags.sam_family == "auto" else flags.sam_family
        self._segmenter = Segmenter(flags.segmenter, device, flags.half, family)

    def make_masks(self, photo: np.ndarray, targets: list[Target]) -> list[MadeMask]:
        """Make a mask, or none, for each target of one view; the photo is uint8 RGB [H, W, 3]."""
        flags = self._flags
        sentences = list(dict.fromkeys(sentence for target in targets for sentence in target.sentences))
        found = self._detector.detect(
            photo, sentences, flags.box_threshold, flags.text_threshold, flags.max_boxes, flags.batch
        )
        by_sentence = dict(zip(sentences, found, strict=True))
        embedding = self._segmenter.embed(photo) if any(len(each.boxes) for each in found) else None
        return [self._make_mask([by_sentence[s] for s in target.sentences], embedding) for target in targets]

    def _make_mask(self, found: list[Detections], embedding: Embedding | None) -> MadeMask:
        """Make the mask of one object from the detections of each of its sentences."""
        flags = self._flags
        facts: dict[str, Any] = {
            "detector": flags.detector, "segmenter": flags.segmenter, "selection": flags.selection,
            "box_threshold": flags.box_threshold, "text_threshold": flags.text_threshold, "max_area": flags.max_area,
        }  # fmt: skip
        boxes = torch.cat([each.boxes for each in found])  # [K, 4]
        if embedding is None or not len(boxes):
            return MadeMask(None, {**facts, "winner": None, "score": None, "candidates": []})
        confidences = torch.cat([each.confidences for each in found])  # [K]
        masks = self._segmenter.masks(embedding, boxes)  # [K, H, W]
        choice = choose_candidate(masks, confidences, flags.selection, flags.max_area)
        origins = [(index, label) for index, each in enumerate(found) for label in each.labels]
        candidates = [
            {
                "sentence": sentence,
                "box": [round(side, 2) for side in boxes[k].tolist()],
                "confidence": round(float(confidences[k]), 6),
                "words": words,
                "area": round(choice.areas[k], 6),
                "score": None if score is None else round(score, 6),
            }
            for k, ((sentence, words), score) in enumerate(zip(origins, choice.scores, strict=True))
        ]
        winner = choice.winner
        facts |= {"winner": winner, "score": None if winner is None else candidates[winner]["score"]}
        mask = None if winner is None else masks[winner].cpu().numpy()
        return MadeMask(mask, {**facts, "candidates": candidates})
