"""Decoding: the blended scores of a view become probabilities, and probabilities become a mask.

render.py, eval.py and the test mIoU of training all decode here. The logit of a pixel is sum_i w_i m_i, the scores m of
Eq. 3 blended with the weights w of the pixel. Its probability is the sigmoid, and 0 where no Gaussian covers the
pixel: the sigmoid of that empty sum would be 0.5. Foreground is where the probability exceeds the threshold.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

THRESHOLD = 0.5  # of training, of every protocol, and the default of --threshold

Array = TypeVar("Array", Tensor, np.ndarray)


def to_probabilities(logits: Tensor, covered: Tensor) -> Tensor:
    """Return the probability of each pixel, [K, H, W]; overwrites the logits.

    Args:
        logits: blended scores of K sentences, [K, H, W].
        covered: whether any Gaussian covers the pixel, bool [H, W].
    """
    return logits.sigmoid_().mul_(covered)


def hide_uncovered(logits: Tensor, covered: Tensor) -> Tensor:
    """Set the logits [K, H, W] of pixels that are not `covered` [H, W] to -inf in place, where the sigmoid is 0."""
    return logits.masked_fill_(~covered, -torch.inf)


def to_mask(probabilities: Array, threshold: float = THRESHOLD) -> Array:
    """Return the foreground, bool, of probabilities of any shape."""
    return probabilities > threshold


def logits_to_mask(logits: Tensor) -> Tensor:
    """Return the foreground, bool, at the threshold 0.5; uncovered pixels, whose logit is 0, are background."""
    return logits > 0
