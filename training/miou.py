"""How well the field selects the objects of the test views while it is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from gaussian_renderer import ScoreRenderer
from referring.decoding import logits_to_mask
from referring.field import ReferringField
from scene.dataset import View
from training.view_masks import ViewMasks
from utils.metrics import ious, overlaps

GROUP = 16  # sentences whose scores are computed together


class TestViews:
    """The test views of a scene, measured without waiting for a GPU before the end.

    Args:
        views: with at least one referral each.
        tokens: word tokens [L, T] of every sentence.
        masks: of the views.
        device: of the field.
    """

    __test__ = False  # for pytest: this is no class of tests

    def __init__(self, views: list[View], tokens: dict[str, Tensor], masks: ViewMasks, device: torch.device):
        self._views, self._masks = views, masks
        sentences = list(dict.fromkeys(r.sentence for view in views for r in view.referrals))
        self._tokens = [tokens[sentence].to(device) for sentence in sentences]
        numbers = [[sentences.index(r.sentence) for r in view.referrals] for view in views]
        self._rows = [torch.tensor(of_view, device=device) for of_view in numbers]

    @torch.no_grad()
    def miou(self, field: ReferringField, xyz: Tensor, renderer: ScoreRenderer) -> dict[str, float]:
        """Mean IoU (0..100) over the pairs of view and sentence whose mask is not empty; nothing if there is no pair.

        Args:
            field, xyz: the field and the positions [N, 3] of its Gaussians.
            renderer: of the Gaussians.
        """
        if not self._views:
            return {}
        groups = [self._tokens[start : start + GROUP] for start in range(0, len(self._tokens), GROUP)]
        scores = torch.cat([field.scores(xyz, group) for group in groups])  # [S, N]
        counted = []
        for view, rows in zip(self._views, self._rows, strict=True):
            logits = renderer.render_scores(view.camera, scores[rows].T.contiguous(), once=True)  # [K, H, W]
            counted.append(overlaps(logits_to_mask(logits), self._masks.of(view, list(view.referrals))))
        values = ious(torch.cat(counted))
        return {"test_miou": 100 * sum(values) / max(len(values), 1)}
