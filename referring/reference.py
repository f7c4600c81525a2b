"""The method of ReferSplat in plain PyTorch, one line an equation: read it first.

This is the definition, not the implementation: it handles one sentence at a time and builds every [N, D] matrix. The
tests compare the fast code with it: field.py and kernels/ (the same numbers without anything of size N x D), losses.py,
and the renderer. "Eq." and "Section" refer to the paper (He et al., ICML 2025); where the released code differs, both
forms are here, and docs/FIDELITY.md says which one is the default.

N Gaussians, L words in the sentence, S sentences, P pixels; T numbers in a token of the text encoder, D = 128 in an
embedding. `net` maps parameter names, those of the released checkpoints, to tensors: `dict(field.named_parameters())`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

D = 128
Net = Mapping[str, Tensor]

# Embeddings (Section 3.2)


def embed_words(net: Net, tokens: Tensor) -> Tensor:
    """Return w for the text encoder's tokens [L, T]."""
    return mlp(net, "mlp1", tokens)  # w [L, D]


def embed_features(net: Net) -> Tensor:
    """Return x for the referring feature f [N, 16] of each Gaussian, which starts at zero."""
    return mlp(net, "mlp2", net["language_feature"])  # x [N, D]


def embed_positions(net: Net, xyz: Tensor) -> Tensor:
    """Return p for the centres [N, 3] of the Gaussians."""
    return F.normalize(mlp(net, "mlp3", xyz), dim=1)  # p [N, D]


def embed_sentence(words: Tensor) -> Tensor:
    """Return e_s, the mean of the words w [L, D]."""
    return words.mean(dim=0)  # e_s [D]


# Position-aware cross-attention (Section 3.3)


def word_positions(words: Tensor, features: Tensor, positions: Tensor, is_paper: bool = False) -> Tensor:
    """Return k_p: where each word is, the mean position of the Gaussians that resemble it."""
    similarity = words @ features.T / (sqrt(D) if is_paper else 1)  # [L, N]; released code: not scaled
    return torch.softmax(similarity, dim=1) @ positions  # k_p, Eq. 6, [L, D]


def attend(net: Net, words: Tensor, features: Tensor, positions: Tensor) -> Tensor:
    """Return g: the features after each Gaussian has attended to the words."""
    places = word_positions(words, features, positions)  # [L, D]
    queries = linear(net, "q_linear", features) + linear(net, "gp_linear", positions)  # Q [N, D]
    keys = linear(net, "k_linear", words) + linear(net, "kp_linear", places)  # K [L, D]
    attention = torch.softmax(queries @ keys.T / sqrt(D), dim=1)  # Eq. 7, [N, L]
    return layer_norm(net, attention @ linear(net, "v_linear", words) + features)  # g [N, D]


def attend_paper(net: Net, words: Tensor, features: Tensor, positions: Tensor) -> Tensor:
    """Return g as the paper prints it, without linear layers. No checkpoint was trained so."""
    keys = words + word_positions(words, features, positions, is_paper=True)  # [L, D]
    attention = torch.softmax((features + positions) @ keys.T / sqrt(D), dim=1)  # Eq. 7, [N, L]
    return layer_norm(net, attention @ words + features)  # g [N, D]


# Scores and the rendered mask (Section 3.2)


def score(net: Net, xyz: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores m of all Gaussians for one sentence, and their embeddings g."""
    words = embed_words(net, tokens)  # [L, D]
    embeddings = attend(net, words, embed_features(net), embed_positions(net, xyz))  # g [N, D]
    return (embeddings @ words.T).sum(dim=1), embeddings  # m_i = sum_j g_i . w_j, Eq. 3, [N]


def splat(weights: Tensor, scores: Tensor) -> Tensor:
    """Return the logits of a view: M = W m, with the blending weights W [P, N], alpha_i prod_{j<i} (1 - alpha_j)."""
    return weights @ scores  # M [P]; the mask is M > 0


# Losses (Section 3.4)


def mask_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Return L_bce of the logits [P] against the pseudo mask [P] of 0 and 1."""
    return -(mask * F.logsigmoid(logits) + (1 - mask) * F.logsigmoid(-logits)).mean()


def tau_paper(iteration: int) -> float:
    """Return tau, the share of Gaussians in f_g, at a 1-based step."""
    return 0.1 * 0.6 ** (iteration / 1000)


def tau_released(iteration: int) -> float:
    """Return tau of the released code."""
    return max(0.1 * 0.6 ** (iteration // 2000), 0.005)


def top_embedding(scores: Tensor, embeddings: Tensor, tau: float) -> Tensor:
    """Return f_g, the mean of g over the share tau of the Gaussians with the highest scores."""
    return embeddings[scores.topk(max(1, int(tau * len(scores)))).indices].mean(dim=0)  # f_g [D]


def contrastive_paper(top: Tensor, sentences: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Return L_con of f_g [D] and the scene's e_s [S, D], [S] bool: of the same object, of other objects."""
    logits = sentences @ top  # [S]
    shares = [torch.cat((one[None], logits[negative])).softmax(dim=0)[0] for one in logits[positive]]
    return -torch.stack(shares).log().mean()  # Eq. 8


def contrastive_released(top: Tensor, sentences: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Return the released code's L_con: the sentences are those of the view."""
    logits = F.cosine_similarity(top[None], sentences, dim=1) / 0.1  # [S]
    differences = logits[negative][None] - logits[positive][:, None]  # n - p of all pairs
    return differences.exp().sum().log1p()


def total_loss(bce: Tensor, contrastive: Tensor, weight: float = 0.1) -> Tensor:
    """Return L = L_bce + lambda L_con; lambda is 0.02 in the paper and 0.1 in the released code."""
    return bce + weight * contrastive


# Layers


def mlp(net: Net, name: str, inputs: Tensor) -> Tensor:
    hidden = F.relu(F.linear(inputs, net[f"{name}.fc1.weight"], net[f"{name}.fc1.bias"]))
    hidden = F.relu(F.linear(hidden, net[f"{name}.fc2.weight"], net[f"{name}.fc2.bias"]))
    return F.linear(hidden, net[f"{name}.fc3.weight"], net[f"{name}.fc3.bias"])


def linear(net: Net, name: str, inputs: Tensor) -> Tensor:
    return F.linear(inputs, net[f"cross_attention.{name}.weight"], net[f"cross_attention.{name}.bias"])


def layer_norm(net: Net, inputs: Tensor) -> Tensor:
    return F.layer_norm(inputs, (D,), net["cross_attention.norm.weight"], net["cross_attention.norm.bias"])
