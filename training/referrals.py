"""The sentences of the training views as tensors on the device, so that a step needs no more than numbers of them."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from referring.field import pad_tokens
from scene.dataset import View


class Contrast(NamedTuple):
    """With which sentences each of R referrals is contrasted; all referrals of a view have the same C sentences.

    C is that of the view that has most. What a view lacks is neither positive nor negative, and takes any sentence.
    """

    sentences: Tensor  # [R, C] int64, rows of `Referrals.tokens`
    own: Tensor  # [R, C], 1 at one place of the referral's own sentence among them
    positive: Tensor  # [R, C] bool, those of the same object
    negative: Tensor  # [R, C] bool, those of other objects


class Referrals(NamedTuple):
    """The R referrals of some views, numbered in the order of the views, and their sentences, each once."""

    tokens: Tensor  # [sentences, L, T], L of the longest
    present: Tensor  # [sentences, L] bool, which of these are words
    sentence: Tensor  # [R] int64, row of `tokens`
    lengths: list[int]  # [R], words of the sentence
    contrast: Contrast | None


def tabulate(views: list[View], tokens: dict[str, Tensor], contrastive: str, device: torch.device) -> Referrals:
    """Tables of the views' referrals.

    Args:
        views: with at least one referral each.
        tokens: [L, T] of each sentence.
        contrastive: contrasts each referral with the sentences of its view ("released"), of all views ("paper"), or
            with nothing ("none").
        device: of the tables.
    """
    texts = sorted({referral.sentence for view in views for referral in view.referrals})
    rows = {text: row for row, text in enumerate(texts)}
    padded, present = pad_tokens([tokens[text] for text in texts])
    spoken = [referral.sentence for view in views for referral in view.referrals]
    sentence = torch.tensor([rows[text] for text in spoken])
    lengths = [len(tokens[text]) for text in spoken]
    contrast = None
    if contrastive != "none":
        tables = _contrast(views, rows, of_scene=contrastive == "paper")
        tables = tables._replace(own=tables.own.to(padded.dtype))
        contrast = Contrast(*(table.to(device) for table in tables))
    return Referrals(padded.to(device), present.to(device), sentence.to(device), lengths, contrast)


def _contrast(views: list[View], rows: dict[str, int], of_scene: bool) -> Contrast:
    lists = [[(referral.category, referral.sentence) for referral in view.referrals] for view in views]
    scene = sorted({pair for pairs in lists for pair in pairs})
    most = len(scene) if of_scene else max(map(len, lists))
    parts = []
    for pairs in lists:
        others = scene if of_scene else pairs
        numbers = torch.tensor([rows[text] for _, text in others]).expand(len(pairs), -1)
        own = F.one_hot(torch.tensor([others.index(pair) for pair in pairs]), len(others))
        same = torch.tensor([[category == other for other, _ in others] for category, _ in pairs])
        parts.append([F.pad(table, (0, most - len(others))) for table in (numbers, own, same, ~same)])
    return Contrast(*map(torch.cat, zip(*parts, strict=True)))


def step_sizes(views: list[View], sentences_per_step: str) -> Counter[int]:
    """How many steps of an epoch have how many sentences; for the values of --sentences_per_step."""
    sizes: Counter[int] = Counter()
    for view in views:
        count = len(view.referrals)
        most = count if sentences_per_step == "all" else int(sentences_per_step)
        sizes[most] += count // most
        sizes[count % most] += 1
    del sizes[0]
    return +sizes
