"""The referring field: per-Gaussian features, three MLPs and the position-guided cross-attention of ReferSplat.

Sections 3.2 and 3.3 of the paper, whose equations are in referring/reference.py; referring/kernels/algebra.py computes
the same scores without anything of size N x D. Sub-module and parameter names are those of the released checkpoints.
N Gaussians, S sentences, L padded words, D = 128.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from referring.kernels.algebra import (
    EMBEDDING_DIM,
    FEATURE_DIM,
    HIDDEN,
    GaussianInputs,
    fold_last_layers,
    mean_embedding,
    sentence_coefficients,
)
from referring.kernels.backend import Backend
from referring.kernels.linear import linear
from referring.kernels.plain import PlainField
from utils.errors import UserError


class MLP(nn.Module):
    """Three linear layers with ReLU between them, named as in the released checkpoints."""

    def __init__(self, sizes: tuple[int, int, int, int]):
        super().__init__()
        self.fc1 = nn.Linear(sizes[0], sizes[1])
        self.fc2 = nn.Linear(sizes[1], sizes[2])
        self.fc3 = nn.Linear(sizes[2], sizes[3])

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(linear(inputs, self.fc1.weight, self.fc1.bias))
        hidden = F.relu(linear(hidden, self.fc2.weight, self.fc2.bias))
        return linear(hidden, self.fc3.weight, self.fc3.bias)


class CrossAttention(nn.Module):
    """Words attend to Gaussians for their position, Gaussians attend to words for their meaning."""

    def __init__(self, dim: int = EMBEDDING_DIM):
        super().__init__()
        self.q_linear = nn.Linear(dim, dim)
        self.k_linear = nn.Linear(dim, dim)
        self.v_linear = nn.Linear(dim, dim)
        self.gp_linear = nn.Linear(dim, dim)
        self.kp_linear = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)


class Words(NamedTuple):
    """Words w of S sentences."""

    embeddings: Tensor  # [S, L, D], zeros for padding
    present: Tensor  # [S, L] bool, False for padding

    def means(self) -> Tensor:
        """Return sentence embeddings e_s [S, D], the means over the words without padding."""
        return self.embeddings.sum(dim=1) / self.present.sum(dim=1, keepdim=True)


def pad_tokens(tokens: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad tokens [L_s, T] of S sentences with zeros to [S, L, T]; also return which are words, [S, L] bool."""
    padded = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    lengths = torch.tensor([len(t) for t in tokens], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]


class ReferringField(nn.Module):
    """The trainable part of ReferSplat: features of N Gaussians and four small networks.

    Args:
        num_gaussians: N.
        text_dim: T, width of the text encoder's tokens (1024 for BERT-large, 384 for MiniLM).

    Attributes:
        backend: computes the scores, in plain PyTorch unless set otherwise.
    """

    def __init__(self, num_gaussians: int, text_dim: int):
        super().__init__()
        self.backend: Backend = PlainField()
        self.language_feature = nn.Parameter(torch.zeros(num_gaussians, FEATURE_DIM))
        self.mlp1 = MLP((text_dim, 512, 256, EMBEDDING_DIM))
        self.mlp2 = MLP((FEATURE_DIM, 32, HIDDEN, EMBEDDING_DIM))
        self.mlp3 = MLP((3, 16, HIDDEN, EMBEDDING_DIM))
        self.cross_attention = CrossAttention()

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], source: Path | str) -> ReferringField:
        """Create a field from a state dict.

        Args:
            tensors: by parameter name.
            source: the file they come from, for the message.

        Raises:
            UserError: if a tensor is missing, unknown or of another shape.
        """
        try:
            field = cls(len(tensors["language_feature"]), tensors["mlp1.fc1.weight"].shape[1])
            field.load_state_dict(tensors)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise UserError(
                f"{source}: the referring field in it does not fit ReferSplat's networks: {error}"
            ) from None
        return field

    @property
    def text_dim(self) -> int:
        """T, the width of the text tokens."""
        return self.mlp1.fc1.in_features

    def networks(self) -> dict[str, nn.Module]:
        """Return the four networks by name, in the order of the released checkpoints."""
        return {name: getattr(self, name) for name in ("mlp1", "mlp2", "mlp3", "cross_attention")}

    def encode_words(self, tokens: Tensor, present: Tensor) -> Words:
        """Return the words of padded tokens [S, L, T], see `pad_tokens`."""
        return Words(self.mlp1(tokens) * present[..., None], present)

    def score(self, xyz: Tensor, words: Words, top_k: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return scores m [S, N] (Eq. 3) and f_g [S, D], the mean embedding g of the top-k Gaussians.

        Args:
            xyz: positions of the Gaussians, [N, 3].
            words: of S sentences.
            top_k: [S] int32, from 1 to N; all Gaussians that tie with the lowest of the top k take part. None skips
                f_g.
        """
        length = words.present.shape[1]
        backend = self.backend.for_words(length)
        if missing := backend.padded(length) - length:
            words = Words(F.pad(words.embeddings, (0, 0, 0, missing)), F.pad(words.present, (0, missing)))
        net, last = self.cross_attention, (self.mlp2.fc3, self.mlp3.fc3, self.cross_attention.v_linear)
        layers = fold_last_layers(*((layer.weight, layer.bias) for layer in last))
        hidden = self.mlp2.fc1, self.mlp2.fc2, self.mlp3.fc1, self.mlp3.fc2
        networks = tuple(tensor for layer in hidden for tensor in (layer.weight, layer.bias))
        gaussians = GaussianInputs(self.language_feature, xyz, networks, layers.norm, layers.square)
        encoded: Any = backend.encode(gaussians)  # for the methods of the same backend
        pooled = backend.pool(gaussians, encoded, words.embeddings @ self.mlp2.fc3.weight)
        parts = net.q_linear, net.gp_linear, net.k_linear, net.kp_linear, net.norm
        coefficients, values = sentence_coefficients(words.embeddings, words.present, pooled, layers, parts)
        scores, sums, counts = backend.score(encoded, coefficients, net.norm.eps, top_k)
        if sums is None or counts is None:
            return scores, None
        return scores, mean_embedding(sums, counts, values, layers.centred, net.norm.weight, net.norm.bias)

    @torch.no_grad()
    def scores(self, xyz: Tensor, tokens: list[Tensor]) -> Tensor:
        """Return scores [S, N] for S sentences with tokens [L_s, T], without gradients."""
        return self.score(xyz, self.encode_words(*pad_tokens(tokens)))[0]
