"""Sentences and masks of the views as tensors on the device, and the mIoU of the test views during training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian_renderer import ScoreRenderer
from referring.decoding import logits_to_mask
from referring.field import ReferringField, pad_tokens
from scene.dataset import Referral, View
from training.photos import DeviceImages
from utils.metrics import ious, overlaps

GROUP = 16  # sentences of test views scored together


class Contrast(NamedTuple):
    """The C sentences that each of R referrals is contrasted with, the same for all referrals of a view.

    Views with fewer sentences are padded with any sentence, which is neither positive nor negative.
    """

    sentences: Tensor  # [R, C] int64, rows of `Referrals.tokens`
    own: Tensor  # [R, C], one-hot: the referral's own sentence among them
    positive: Tensor  # [R, C] bool, of the same object
    negative: Tensor  # [R, C] bool, of other objects


class Referrals(NamedTuple):
    """The R referrals of some views, numbered in the order of the views, and their sentences, each once."""

    tokens: Tensor  # [sentences, L, T], L of the longest sentence
    present: Tensor  # [sentences, L] bool, False for padding
    sentence: Tensor  # [R] int64, rows of `tokens`
    lengths: list[int]  # [R], word counts
    contrast: Contrast | None


def tabulate(views: list[View], tokens: dict[str, Tensor], contrastive: str, device: torch.device) -> Referrals:
    """Build the tables of the views' referrals.

    Args:
        views: with at least one referral each.
        tokens: [L, T] of each sentence.
        contrastive: contrasts each referral with the sentences of its view ("released"), of all views ("paper"), or
            with nothing ("none").
        device: where the tables go.
    """
    texts = sorted({referral.sentence for view in views for referral in view.referrals})
    rows = {text: row for row, text in enumerate(texts)}
    padded, present = pad_tokens([tokens[text] for text in texts])
    by_referral = [referral.sentence for view in views for referral in view.referrals]
    sentence = torch.tensor([rows[text] for text in by_referral])
    lengths = [len(tokens[text]) for text in by_referral]
    contrast = None
    if contrastive != "none":
        tables = _contrast(views, rows, contrastive == "paper", padded.dtype)
        contrast = Contrast(*(table.to(device) for table in tables))
    return Referrals(padded.to(device), present.to(device), sentence.to(device), lengths, contrast)


def _contrast(views: list[View], rows: dict[str, int], is_scene_wide: bool, dtype: torch.dtype) -> Contrast:
    lists = [[(referral.category, referral.sentence) for referral in view.referrals] for view in views]
    scene = sorted({pair for pairs in lists for pair in pairs})
    most = len(scene) if is_scene_wide else max(map(len, lists))
    parts = []
    for pairs in lists:
        others = scene if is_scene_wide else pairs
        numbers = torch.tensor([rows[text] for _, text in others]).expand(len(pairs), -1)
        own = F.one_hot(torch.tensor([others.index(pair) for pair in pairs]), len(others)).to(dtype)
        same = torch.tensor([[category == other for other, _ in others] for category, _ in pairs])
        parts.append([F.pad(table, (0, most - len(others))) for table in (numbers, own, same, ~same)])
    return Contrast(*map(torch.cat, zip(*parts, strict=True)))


def step_sizes(views: list[View], sentences_per_step: str) -> Counter[int]:
    """Count the steps of an epoch by their number of sentences, for a value of --sentences_per_step."""
    sizes: Counter[int] = Counter()
    for view in views:
        count = len(view.referrals)
        most = count if sentences_per_step == "all" else int(sentences_per_step)
        sizes[most] += count // most
        sizes[count % most] += 1
    del sizes[0]
    return +sizes


class ViewMasks:
    """Masks of the referrals of some views; on a GPU they are uploaded at once, as far as `DeviceImages` keeps them.

    Raises:
        UserError: if a file cannot be decoded.
    """

    def __init__(self, views: list[View], device: torch.device):
        self._masks = DeviceImages(device)
        self._masks.prepare({(view.id, r.mask_key): partial(view.mask, r) for view in views for r in view.referrals})

    def get(self, view: View, referrals: Sequence[Referral]) -> Tensor:
        """Return the masks of K referrals of a view, [K, H, W] bool."""
        masks = [self._masks.get((view.id, r.mask_key), partial(view.mask, r)) for r in referrals]
        return torch.stack(masks) if len(masks) > 1 else masks[0][None]


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
