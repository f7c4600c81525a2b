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
NORM_FLOOR = 1e-24  # of |U k + c|^2, as torch.nn.functional.normalize has it


class MLP(nn.Module):
    """Three linear layers with ReLU between them, named as in the released checkpoints."""

    def __init__(self, sizes: tuple[int, int, int, int]):
        super().__init__()
        self.fc1 = nn.Linear(sizes[0], sizes[1])
        self.fc2 = nn.Linear(sizes[1], sizes[2])
        self.fc3 = nn.Linear(sizes[2], sizes[3])

    def hidden(self, inputs: Tensor) -> Tensor:
        """What the last layer gets."""
        return F.relu(self.fc2(F.relu(self.fc1(inputs))))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc3(self.hidden(inputs))


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


@dataclass
class EncodedGaussians:
    """What of the field does not depend on the sentence.

    Features x = W h + b and positions p = (U k + c) / |U k + c| are linear in the 64 outputs of the layers before, so
    that every product with them is one with h or k, and no [N, D] has to exist.

    Attributes:
        hidden: h [N, 64].
        directions: k / |U k + c| [N, 64].
        scales: 1 / |U k + c| [N].
        squares: |x - mean of x|^2 [N], the mean over the D numbers of each x.
    """

    hidden: Tensor
    directions: Tensor
    scales: Tensor
    squares: Tensor


def _squared_norms(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """|weight h + bias|^2 [N] for h [N, 64]."""
    return ((hidden @ (weight.T @ weight)) * hidden).sum(dim=1) + hidden @ (2 * bias @ weight) + bias @ bias


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
        hidden, hidden3 = self.mlp2.hidden(self.language_feature), self.mlp3.hidden(xyz)
        position = self.mlp3.fc3
        norms = _squared_norms(hidden3, position.weight, position.bias).clamp_min(NORM_FLOOR)
        scales = norms.rsqrt()
        squares = _squared_norms(hidden, *self._centred_features())
        return EncodedGaussians(hidden, hidden3 * scales[:, None], scales, squares)

    def _centred_features(self) -> tuple[Tensor, Tensor]:
        """Weight [D, 64] and bias [D] that give x less the mean of its D numbers, as LayerNorm takes it."""
        feature = self.mlp2.fc3
        return feature.weight - feature.weight.mean(dim=0), feature.bias - feature.bias.mean()

    def encode_words(self, tokens: list[Tensor]) -> list[Tensor]:
        """Words w [L_s, D] of S sentences from their tokens [L_s, T], in one pass of mlp1."""
        words = self.mlp1(torch.cat(tokens))
        return list(words.split([len(t) for t in tokens]))

    def attend(self, gaussians: EncodedGaussians, words: Tensor) -> Tensor:
        """Attention [N, L] of every Gaussian to the words w [L, D] of one sentence (Eq. 6 and 7)."""
        net, feature, position = self.cross_attention, self.mlp2.fc3, self.mlp3.fc3
        # The bias of x adds the same to all Gaussians, which a softmax over them does not see.
        share = torch.softmax((words @ feature.weight) @ gaussians.hidden.T, dim=1)  # [L, N]
        word_positions = (share @ gaussians.directions) @ position.weight.T + torch.outer(
            share @ gaussians.scales, position.bias
        )  # [L, D]
        keys = net.k_linear(words) + net.kp_linear(word_positions)  # [L, D]
        on_features, on_positions = keys @ net.q_linear.weight, keys @ net.gp_linear.weight  # [L, D]
        constant = keys @ (net.q_linear.bias + net.gp_linear.bias) + on_features @ feature.bias  # [L]
        logits = gaussians.hidden @ (on_features @ feature.weight).T
        logits = logits + gaussians.directions @ (on_positions @ position.weight).T
        logits = logits + torch.outer(gaussians.scales, on_positions @ position.bias) + constant  # [N, L]
        return torch.softmax(logits * EMBEDDING_DIM**-0.5, dim=1)

    def score(self, gaussians: EncodedGaussians, words: Tensor) -> tuple[Tensor, Tensor]:
        """(scores m [N], attention [N, L]); m_i is the sum over words j of g_i . w_j, a logit (Eq. 3).

        LayerNorm(y) . t, with y = x + attention @ values and t the sum of the words, needs of y, less its mean, only
        the product with (weight of the norm) * t, and the square.
        """
        attention, norm = self.attend(gaussians, words), self.cross_attention.norm
        weight, bias = self._centred_features()
        values = self.cross_attention.v_linear(words)
        values = values - values.mean(dim=1, keepdim=True)  # [L, D]
        total = words.sum(dim=0)
        along = norm.weight * total  # [D]
        # |y|^2 = |x|^2 + attention . (2 values . x + values values^T attention)
        mixed = gaussians.hidden @ (2 * values @ weight).T + 2 * values @ bias + attention @ (values @ values.T)
        squares = gaussians.squares + (attention * mixed).sum(dim=1)
        product = gaussians.hidden @ (along @ weight) + attention @ (values @ along) + bias @ along
        return product * (squares.clamp_min(0) / EMBEDDING_DIM + norm.eps).rsqrt() + norm.bias @ total, attention

    def embed(self, gaussians: EncodedGaussians, attention: Tensor, words: Tensor, rows: Tensor) -> Tensor:
        """Text-aware embeddings g [M, D] of the Gaussians `rows` [M] for one sentence, see `score`."""
        net = self.cross_attention
        features = self.mlp2.fc3(gaussians.hidden[rows])
        return net.norm(attention[rows] @ net.v_linear(words) + features)

    @torch.no_grad()
    def scores(self, xyz: Tensor, tokens: list[Tensor]) -> Tensor:
        """Scores [N, S] of all Gaussians for S sentences with tokens [L_s, T]; no gradients."""
        gaussians = self.encode_gaussians(xyz)
        words = self.encode_words(tokens)
        return torch.stack([self.score(gaussians, sentence)[0] for sentence in words], dim=1)
