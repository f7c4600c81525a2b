"""The referring field: per-Gaussian features, three MLPs and the position-guided cross-attention of ReferSplat.

Section 3.2 and 3.3 of the paper; sub-module and parameter names are those of the released checkpoints. Numbers of
Gaussians, sentences and words are N, S and L below; D = 128. How scores come without anything of size N x D is told in
referring/kernels/algebra.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from referring.kernels.algebra import EMBEDDING_DIM, FEATURE_DIM, HIDDEN, Gaussians
from referring.kernels.backend import Backend
from referring.kernels.linear import linear
from referring.kernels.plain import PlainField
from referring.kernels.sentence_forms import Layers, MeanEmbedding, Twice, ask, last_layers
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
    """Words w of S sentences.

    Attributes:
        embeddings: [S, L, D], zeros where a sentence has fewer words.
        present: [S, L] bool.
    """

    embeddings: Tensor
    present: Tensor

    def padded(self, length: int) -> Words:
        """The same with L = `length`."""
        missing = length - self.present.shape[1]
        if not missing:
            return self
        return Words(F.pad(self.embeddings, (0, 0, 0, missing)), F.pad(self.present, (0, missing)))

    def means(self) -> Tensor:
        """Sentence embeddings e_s [S, D]: the mean over the words that a sentence has."""
        return self.embeddings.sum(dim=1) / self.present.sum(dim=1, keepdim=True)


def pad_tokens(tokens: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens [L_s, T] of S sentences as [S, L, T] with zeros behind, and which of these are words, [S, L] bool."""
    padded = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    lengths = torch.tensor([len(t) for t in tokens], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]


class ReferringField(nn.Module):
    """Scores of Gaussians for sentences.

    Args:
        num_gaussians: N.
        text_dim: T, width of the text encoder's tokens (1024 for BERT-large, 384 for MiniLM).

    Attributes:
        backend: computes the scores; plain PyTorch unless it is set to another.
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
        """Make a field of a state dict.

        Args:
            tensors: by the names of the parameters.
            source: the file they come from, for the message.

        Raises:
            UserError: if a tensor is missing, too many or of another shape.
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
        """T, the token width the field was made for."""
        return self.mlp1.fc1.in_features

    def networks(self) -> dict[str, nn.Module]:
        """The four networks by the names of the released checkpoints, in their order."""
        return {name: getattr(self, name) for name in ("mlp1", "mlp2", "mlp3", "cross_attention")}

    def encode_words(self, tokens: Tensor, present: Tensor) -> Words:
        """Words from tokens [S, L, T], in one pass of mlp1; see `pad_tokens`."""
        return Words(self.mlp1(tokens) * present[..., None], present)

    def score(self, xyz: Tensor, words: Words, top: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Scores m [S, N] of the Gaussians at `xyz` [N, 3] (Eq. 3), and f_g [S, D], the mean g of the highest of them.

        Args:
            words: of S sentences.
            top: [S] int32, how many of the highest scores make f_g, from 1 to N; all that tie with the lowest of these
                take part. None leaves f_g out.
        """
        length = words.present.shape[1]
        backend = self.backend.for_words(length)
        words = words.padded(backend.padded(length))
        net, fc3 = self.cross_attention, self.mlp2.fc3
        first, weight, *norm, again, weight_again, scale, shift = Twice.apply(
            words.embeddings, fc3.weight, net.norm.weight, net.norm.bias
        )
        ends = (weight, fc3.bias), (self.mlp3.fc3.weight, self.mlp3.fc3.bias), (net.v_linear.weight, net.v_linear.bias)
        layers = last_layers(*ends)
        for_pool, for_score = self._gaussians(xyz, layers)
        encoded = backend.encode(for_pool)
        pooled = backend.pool(for_pool, encoded, first @ weight_again)
        forms, values = ask(again, words.present, pooled, layers, net, norm)
        scores, sums, counts = backend.score(for_score, encoded, forms, net.norm.eps, top)
        if sums is None:
            return scores, None
        return scores, MeanEmbedding.apply(sums, counts, values, layers.centred, scale, shift)

    @torch.no_grad()
    def scores(self, xyz: Tensor, tokens: list[Tensor]) -> Tensor:
        """Scores [S, N] of all Gaussians for S sentences with tokens [L_s, T]; no gradients."""
        return self.score(xyz, self.encode_words(*pad_tokens(tokens)))[0]

    def _gaussians(self, xyz: Tensor, layers: Layers) -> tuple[Gaussians, Gaussians]:
        """The same for `pool` and for `score`, see `Twice`."""
        hidden = self.mlp2.fc1, self.mlp2.fc2, self.mlp3.fc1, self.mlp3.fc2
        networks = tuple(tensor for layer in hidden for tensor in (layer.weight, layer.bias))
        both = Twice.apply(self.language_feature, *networks, *layers.norm, *layers.square)
        count = len(both) // 2
        sides = both[:count], both[count:]
        return tuple(Gaussians(side[0], xyz, side[1:-6], side[-6:-3], side[-3:]) for side in sides)
