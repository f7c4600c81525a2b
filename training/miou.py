"""mIoU of the test views during training."""

from __future__ import annotations

import torch
from torch import Tensor

from gaussian_renderer import ScoreRenderer
from referring.decoding import logits_to_mask
from referring.field import ReferringField
from scene.dataset import View
from training.referrals import ViewMasks
from utils.metrics import ious, overlaps

GROUP = 16  # sentences scored together


class TestViews:
    """The test views of a scene; measuring them synchronises with a GPU only once, at the end.

    Args:
        views: with at least one referral each.
        tokens: word tokens [L, T] of every sentence.
        masks: of the views.
        device: of the field.
    """

    __test__ = False  # pytest: not a test class

    def __init__(self, views: list[View], tokens: dict[str, Tensor], masks: ViewMasks, device: torch.device):
        self._views, self._masks = views, masks
        sentences = list(dict.fromkeys(r.sentence for view in views for r in view.referrals))
        self._tokens = [tokens[sentence].to(device) for sentence in sentences]
        numbers = [[sentences.index(r.sentence) for r in view.referrals] for view in views]
        self._rows = [torch.tensor(rows, device=device) for rows in numbers]

    @torch.no_grad()
    def miou(self, field: ReferringField, xyz: Tensor, renderer: ScoreRenderer) -> dict[str, float]:
        """Return the mean IoU (0..100) over pairs of view and sentence with a non-empty mask; empty without views."""
        if not self._views:
            return {}
        groups = [self._tokens[start : start + GROUP] for start in range(0, len(self._tokens), GROUP)]
        scores = torch.cat([field.scores(xyz, group) for group in groups])  # [S, N]
        counts = []
        for view, rows in zip(self._views, self._rows, strict=True):
            logits = renderer.render_scores(view.camera, scores[rows].T.contiguous(), once=True)  # [K, H, W]
            counts.append(overlaps(logits_to_mask(logits), self._masks.get(view, view.referrals)))
        values = ious(torch.cat(counts))
        return {"test_miou": 100 * sum(values) / max(len(values), 1)}
