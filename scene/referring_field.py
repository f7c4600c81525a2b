"""The referring field: per-Gaussian features, three MLPs and the position-guided cross-attention of ReferSplat.

Section 3.2 and 3.3 of the paper; sub-module and parameter names are those of the released checkpoints. Numbers of
Gaussians, words and sentences are N, L and S below; D = 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURE_DIM = 16  # d_r of the paper
EMBEDDING_DIM = 128  # D of the paper


class MLP(nn.Module):
    """Three linear layers with ReLU between them, named as in the released checkpoints."""

    def __init__(self, sizes: tuple[int, int, int, int]):
        super().__init__()
        self.fc1 = nn.Linear(sizes[0], sizes[1])
        self.fc2 = nn.Linear(sizes[1], sizes[2])
        self.fc3 = nn.Linear(sizes[2], sizes[3])

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(inputs)))))


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

    def queries(self, features: Tensor, positions: Tensor) -> Tensor:
        """Q [N, D] of features x [N, D] and positions p [N, D]; the same for every sentence."""
        return self.q_linear(features) + self.gp_linear(positions)

    def forward(self, gaussians: EncodedGaussians, words: Tensor) -> Tensor:
        """Embeddings g [N, D] of all Gaussians for the words w [L, D] of one sentence (Eq. 6 and 7)."""
        features, positions, queries = gaussians.features, gaussians.positions, gaussians.queries
        word_positions = torch.softmax(words @ features.T, dim=1) @ positions  # [L, D]
        keys = self.k_linear(words) + self.kp_linear(word_positions)  # [L, D]
        attention = torch.softmax(queries @ keys.T * features.shape[1] ** -0.5, dim=1)  # [N, L]
        return self.norm(attention @ self.v_linear(words) + features)


@dataclass
class EncodedGaussians:
    """What of the field does not depend on the sentence: features x, unit positions p, queries Q, each [N, D]."""

    features: Tensor
    positions: Tensor
    queries: Tensor


class ReferringField(nn.Module):
    """Scores of Gaussians for a sentence.

    Args:
        num_gaussians: N.
        text_dim: T, width of the text encoder's tokens (1024 for BERT-large, 384 for MiniLM).
    """

    def __init__(self, num_gaussians: int, text_dim: int):
        super().__init__()
        self.language_feature = nn.Parameter(torch.zeros(num_gaussians, FEATURE_DIM))
        self.mlp1 = MLP((text_dim, 512, 256, EMBEDDING_DIM))
        self.mlp2 = MLP((FEATURE_DIM, 32, 64, EMBEDDING_DIM))
        self.mlp3 = MLP((3, 16, 64, EMBEDDING_DIM))
        self.cross_attention = CrossAttention()

    @property
    def text_dim(self) -> int:
        """T, the token width the field was made for."""
        return self.mlp1.fc1.in_features

    def networks(self) -> dict[str, nn.Module]:
        """The four networks by the names of the released checkpoints, in their order."""
        return {name: getattr(self, name) for name in ("mlp1", "mlp2", "mlp3", "cross_attention")}

    def encode_gaussians(self, xyz: Tensor) -> EncodedGaussians:
        """Encode the Gaussians at `xyz` [N, 3], once for all sentences of a step."""
        features = self.mlp2(self.language_feature)
        positions = F.normalize(self.mlp3(xyz), dim=1)
        return EncodedGaussians(features, positions, self.cross_attention.queries(features, positions))

    def encode_words(self, tokens: list[Tensor]) -> list[Tensor]:
        """Words w [L_s, D] of S sentences from their tokens [L_s, T], in one pass of mlp1."""
        words = self.mlp1(torch.cat(tokens))
        return list(words.split([len(t) for t in tokens]))

    def embed(self, gaussians: EncodedGaussians, words: Tensor) -> Tensor:
        """Text-aware Gaussian embeddings g [N, D] for one sentence with words [L, D]."""
        return self.cross_attention(gaussians, words)

    def score(self, gaussians: EncodedGaussians, words: Tensor) -> tuple[Tensor, Tensor]:
        """(scores m [N], embeddings g [N, D]); m_i is the sum over words j of g_i . w_j, a logit (Eq. 3)."""
        embeddings = self.embed(gaussians, words)
        return embeddings @ words.sum(dim=0), embeddings

    @torch.no_grad()
    def scores(self, xyz: Tensor, tokens: list[Tensor]) -> Tensor:
        """Scores [N, S] of all Gaussians for S sentences with tokens [L_s, T]; no gradients."""
        gaussians = self.encode_gaussians(xyz)
        words = self.encode_words(tokens)
        return torch.stack([self.score(gaussians, sentence)[0] for sentence in words], dim=1)
