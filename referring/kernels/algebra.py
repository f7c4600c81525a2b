"""What scores are computed from: the algebra that needs nothing of size N x D.

Features x = W h + b and positions p = (U k + c) / |U k + c| are linear in the 64 outputs of the layers before, h and k.
So every product with them is one with h or k, and every square a quadratic form of h or k. What a sentence needs of
the words, the linear layers and LayerNorm are the small tensors of `Forms`. N, S, L: Gaussians, sentences, words of the
longest sentence; D = 128.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

FEATURE_DIM = 16  # d_r of the paper
EMBEDDING_DIM = 128  # D of the paper
HIDDEN = 64  # numbers in h and k
NORM_FLOOR = 1e-24  # of |U k + c|^2, as torch.nn.functional.normalize has it
NO_WORD = -1e30  # constant in the logits of words that a sentence does not have

Form = tuple[Tensor, Tensor, Tensor]  # A [HIDDEN, HIDDEN] symmetric, a [HIDDEN], c []: z . A z + a . z + c


class Gaussians(NamedTuple):
    """The Gaussians with all that does not depend on a sentence.

    Attributes:
        features: [N, 16].
        xyz: [N, 3].
        networks: weight and bias of mlp2.fc1, mlp2.fc2, mlp3.fc1, mlp3.fc2.
        norm: the form of k that is |U k + c|^2.
        square: the form of h that is |x - mean of x|^2, the mean over the D numbers of each x.
    """

    features: Tensor
    xyz: Tensor
    networks: tuple[Tensor, ...]
    norm: Form
    square: Form


class Forms(NamedTuple):
    """What S sentences ask of the Gaussians.

    With h, direction d = k / |U k + c| and scale s = 1 / |U k + c| of a Gaussian, the logits of its attention to the
    words of a sentence are on_hidden h + on_directions d + on_scales s + constants. With attention a, the square of
    y - mean of y for y = x + values a is |x - mean of x|^2 + a . (mixed h + mixed_constants + gram a), and the score is
    (along_hidden . h + along_words . a + along_constant) / deviation + offset.
    """

    on_hidden: Tensor  # [S, L, HIDDEN]
    on_directions: Tensor  # [S, L, HIDDEN]
    on_scales: Tensor  # [S, L]
    constants: Tensor  # [S, L]
    mixed: Tensor  # [S, L, HIDDEN]
    mixed_constants: Tensor  # [S, L]
    gram: Tensor  # [S, L, L]
    along_hidden: Tensor  # [S, HIDDEN]
    along_words: Tensor  # [S, L]
    along_constant: Tensor  # [S]
    offset: Tensor  # [S]
