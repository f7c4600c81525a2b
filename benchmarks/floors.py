"""The least that the hardware has to do for a training step or a query: bytes moved, and operations of matrix products.

Bytes count as if every tensor crossed the memory bus as often as its row says and no cache held it in between; sorting
a view and everything smaller than a Gaussian or a pixel is left out. An operation is a multiplication or an addition.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from gaussian_renderer import ScoreRenderer
from referring.field import ReferringField
from referring.kernels.algebra import FEATURE_DIM, HIDDEN
from scene.cameras import Camera

FLOAT = 4  # bytes
MLP2 = FEATURE_DIM * 32 + 32 * HIDDEN  # weights of the layers that a Gaussian passes
MLP3 = 3 * 16 + 16 * HIDDEN
FORM = HIDDEN * HIDDEN  # of |U k + c|^2, and of |x - mean of x|^2
POOL_WORD = HIDDEN + HIDDEN + 1  # a logit, and the weighted sums of directions and scales
GEOMETRY = 3 + 1 + 3 + 4  # numbers a Gaussian: centre, opacity, scales, rotation


class Views(NamedTuple):
    """Means over the views.

    Attributes:
        lists: bytes of a plan without its radii.
        shown: Gaussians that contribute to a pixel.
        pixels: of a picture.
    """

    lists: float
    shown: float
    pixels: int


def views(renderer: ScoreRenderer, cameras: list[Camera]) -> Views:
    """Measured on the plans of some views of one size."""
    lists = shown = 0
    for camera in cameras:
        plan = renderer.plan(camera)
        ones = torch.ones(1, *plan.size, device=plan.radii.device)
        lists += plan.nbytes - plan.radii.nbytes
        shown += int((plan.backproject(ones) > 0).sum())
    return Views(lists / len(cameras), shown / len(cameras), cameras[0].width * cameras[0].height)


def step_bytes(field: ReferringField, sentences: int, seen: Views) -> dict[str, float]:
    """Bytes of a step, by what is moved."""
    n = len(field.language_feature)
    parameters = sum(parameter.numel() for parameter in field.parameters())
    return {
        "parameters, their gradients and both moments, read and written": 4 * 2 * FLOAT * parameters,
        "positions, read": 3 * FLOAT * n,
        "scores and their gradients, written and read": 2 * 2 * FLOAT * sentences * n,
        "pictures and their gradients, written and read": 2 * 2 * FLOAT * sentences * seen.pixels,
        "masks, read": sentences * seen.pixels,
        "lists of the plan, read forward and backward": 2 * seen.lists,
    }


def mask_bytes(n: int, seen: Views, new_sentence: bool, new_view: bool) -> dict[str, float]:
    """Bytes of one mask of one sentence in one view, by what is moved."""
    parts = {"scores, read": FLOAT * seen.shown, "picture written and read, mask written": 9 * seen.pixels}
    parts["lists of the plan, read"] = seen.lists
    if new_sentence:
        parts["features and positions, read"] = (FEATURE_DIM + 3) * FLOAT * n
        parts["scores, written"] = FLOAT * n
    if new_view:
        parts["geometry, read"] = GEOMETRY * FLOAT * n
        parts["lists of the plan, written"] = seen.lists
    return parts


def score_word(words: int) -> int:
    """Products that the score of a Gaussian takes for each of so many words."""
    logit, mixed, gram, along = 2 * HIDDEN + 1, HIDDEN, words, 1
    return logit + mixed + gram + along


def step_operations(field: ReferringField, sentences: int, words: int, encoded: int, seen: Views) -> dict[str, float]:
    """Operations of a step, forward and backward.

    The way back through a product takes two of its size, one for each factor; that through a quadratic form one, as it
    needs what the form's product gave once more. Pooling and what comes before it has a
    gradient at every Gaussian; a score only where a pixel shows the Gaussian, or where it is one of the highest, which
    are not counted.

    Args:
        encoded: how many sentences are encoded, for the contrastive loss.
    """
    n, mlp1 = len(field.language_feature), sum(w.numel() for w in field.mlp1.parameters() if w.dim() == 2)
    forward = mask_operations(field, sentences, words)
    of_score = forward["score"] / n * seen.shown
    of_pool, of_layers = forward["pool"], forward["layers and norms"]
    return {
        "forward": sum(forward.values()) + 2 * mlp1 * words * (encoded - sentences),
        "backward of the score": 2 * of_score - 2 * FORM * seen.shown,
        "backward of the pool": 2 * of_pool,
        "backward of layers and norms": 2 * of_layers - 2 * FORM * n,
        "backward of the words": 2 * (2 * mlp1 * words * encoded),
    }


def mask_operations(field: ReferringField, sentences: int, words: int) -> dict[str, float]:
    """Operations of the scores of some sentences, by part."""
    n, mlp1 = len(field.language_feature), sum(w.numel() for w in field.mlp1.parameters() if w.dim() == 2)
    tokens = sentences * words
    return {
        "words": 2 * mlp1 * tokens,
        "layers and norms": 2 * n * (MLP2 + MLP3 + FORM),
        "pool": 2 * n * tokens * POOL_WORD,
        "score": 2 * n * (FORM + sentences * HIDDEN + tokens * score_word(words)),
    }
