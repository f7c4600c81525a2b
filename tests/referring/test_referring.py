"""Referring field, its losses and schedules against closed forms and referring/reference.py."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arguments import ReferringParams
from referring import reference
from referring.field import ReferringField, pad_tokens
from referring.kernels.plain import PlainField
from referring.losses import contrastive_paper, contrastive_released, top_count
from training.referring import tau_at


@pytest.fixture
def field() -> ReferringField:
    torch.manual_seed(0)
    field = ReferringField(50, 24)
    field.language_feature.data.normal_()
    return field


def reference_score(field: ReferringField, xyz: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [N] and embeddings [N, D] of one sentence."""
    return reference.score(dict(field.named_parameters()), xyz, tokens)


@pytest.mark.parametrize("case", ["random", "zero features", "all at one place", "one Gaussian"])
@pytest.mark.parametrize("words", [1, 7, 30])
@pytest.mark.parametrize("graph_bytes", [None, 0])
def test_scores_and_embeddings_match_the_reference(words: int, case: str, graph_bytes: int | None) -> None:
    """Values and every gradient in float64: the algebra is exact."""
    torch.manual_seed(words)
    n = 1 if case == "one Gaussian" else 60
    field = ReferringField(n, 24).double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if case == "zero features":
            field.language_feature.zero_()
    xyz, tokens = torch.randn(n, 3).double(), torch.randn(words, 24).double()
    if case == "all at one place":
        xyz[:] = xyz[0].clone()
    on_scores, on_top = torch.randn(n).double(), torch.randn(128).double()
    count = max(1, n // 4)

    def gradients(scores: Tensor, top: Tensor) -> list[Tensor]:
        return torch.autograd.grad(scores @ on_scores + top @ on_top, list(field.parameters()))

    scores, embeddings = reference_score(field, xyz, tokens)
    top = embeddings[scores > scores.sort().values[-count] - 1e-12].mean(dim=0)  # with all ties
    expected = scores, top, *gradients(scores, top)
    field.backend = PlainField(graph_bytes)
    scores, tops = field.score(xyz, field.encode_words(*pad_tokens([tokens])), torch.tensor([count]))
    found = scores[0], tops[0], *gradients(scores[0], tops[0])
    names = "scores", "top", *(name for name, _ in field.named_parameters())
    for name, value, wanted in zip(names, found, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_float32_rounding_is_small() -> None:
    torch.manual_seed(0)
    field = ReferringField(5000, 24)
    field.language_feature.data.normal_()
    xyz, tokens, weights = torch.randn(5000, 3), torch.randn(12, 24), torch.randn(5000)
    double = copy.deepcopy(field).double()
    exact = reference_score(double, xyz.double(), tokens.double())[0]
    exact_gradient = torch.autograd.grad(exact @ weights.double(), double.language_feature)[0]
    scores = field.score(xyz, field.encode_words(*pad_tokens([tokens])))[0][0]
    gradient = torch.autograd.grad(scores @ weights, field.language_feature)[0]
    assert (scores - exact).norm() < 1e-6 * exact.norm()
    assert (gradient - exact_gradient).norm() < 1e-5 * exact_gradient.norm()


def test_sentences_do_not_influence_each_other(field: ReferringField) -> None:
    xyz, tokens = torch.randn(50, 3), [torch.randn(n, 24) for n in (1, 7, 3)]
    together = field.scores(xyz, tokens)
    for row, sentence in zip(together, tokens, strict=True):
        torch.testing.assert_close(row, field.scores(xyz, [sentence])[0])


def test_new_field_starts_at_zero_features() -> None:
    assert not ReferringField(5, 24).language_feature.any()


def test_top_selection_takes_the_highest_scores() -> None:
    """Defect 1 of the released code: it always took Gaussian 0."""
    torch.manual_seed(4)
    field = ReferringField(10, 24).double()
    field.language_feature.data.normal_()
    xyz, tokens = torch.randn(10, 3).double(), torch.randn(5, 24).double()
    scores, embeddings = reference_score(field, xyz, tokens)
    words = field.encode_words(*pad_tokens([tokens]))
    for count in (1, 3, 10):
        top = field.score(xyz, words, torch.tensor([count]))[1][0]
        torch.testing.assert_close(top, reference.top_embedding(scores, embeddings, count / 10))


def test_top_count() -> None:
    assert top_count(0.3, 10) == 3
    assert top_count(0.01, 10) == 1  # at least one


@pytest.mark.parametrize("form", [contrastive_released, reference.contrastive_released])
def test_released_contrastive_of_one(form) -> None:
    torch.manual_seed(1)
    top, sentences = torch.randn(8, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)
    positive = torch.tensor([True, False, True, False, False, False])
    logits = [float(F.cosine_similarity(top, s, dim=0)) / 0.1 for s in sentences]
    pairs = sum(math.exp(logits[n] - logits[p]) for p in (0, 2) for n in (1, 3, 4, 5))
    assert form(top, sentences, positive, ~positive).item() == pytest.approx(math.log(1 + pairs))


def test_released_contrastive_matches_the_reference() -> None:
    """Values and gradients; one referral without negatives, one of length zero, and sentences that do not count."""
    torch.manual_seed(1)
    tops, sentences = torch.randn(3, 8).double(), torch.randn(6, 8).double().requires_grad_()
    tops[2] = 0
    tops.requires_grad_()
    positive = torch.tensor([[1, 0, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0]]).bool()
    negative = torch.tensor([[0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 1, 0]]).bool()
    rows = zip(tops, positive, negative, strict=True)
    expected = torch.stack([reference.contrastive_released(top, sentences, *masks) for top, *masks in rows])
    found, weights = contrastive_released(tops, sentences, positive, negative), torch.randn(3).double()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(losses @ weights, (tops, sentences)) for losses in (found, expected)]
    for gradient, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", [contrastive_paper, reference.contrastive_paper])
def test_paper_contrastive_of_one(form) -> None:
    torch.manual_seed(1)
    top, sentences = torch.randn(8, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)
    positive = torch.tensor([True, False, True, False, False, False])
    dots = [math.exp(float(top @ s)) for s in sentences]
    negatives = sum(dots[n] for n in (1, 3, 4, 5))
    expected = -sum(math.log(dots[p] / (dots[p] + negatives)) for p in (0, 2)) / 2
    assert form(top, sentences, positive, ~positive).item() == pytest.approx(expected)


@pytest.mark.parametrize("form", [contrastive_released, contrastive_paper])
def test_no_negative_means_no_loss(form) -> None:
    top = torch.randn(8, requires_grad=True)
    positive = torch.tensor([True, True, True])
    loss = form(top, torch.randn(3, 8), positive, ~positive)
    loss.backward()
    assert loss.item() == 0
    assert not top.grad.any()


def test_contrastive_of_a_batch() -> None:
    """Also where some have no negative, and where sentences do not count."""
    torch.manual_seed(5)
    tops, sentences = torch.randn(3, 8).double(), torch.randn(7, 8).double()
    positive = torch.tensor([[1, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]]).bool()
    counting = torch.tensor([0, 2, 3, 4, 6])  # the others are filled with what must not matter
    padded = torch.zeros(2, 3, 7, dtype=torch.bool)
    padded[:, :, counting] = torch.stack((positive, ~positive))
    sentences[[1, 5]] *= 100
    for form in (contrastive_released, contrastive_paper):
        inputs = tops.clone().requires_grad_(), sentences.clone().requires_grad_()
        found = form(*inputs, *padded)
        alone = [
            form(top, inputs[1][counting], chosen, ~chosen) for top, chosen in zip(inputs[0], positive, strict=True)
        ]
        torch.testing.assert_close(found, torch.stack(alone))
        gradients = [torch.autograd.grad(losses.sum(), inputs) for losses in (found, torch.stack(alone))]
        for value, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(value, expected)
        assert not gradients[0][1][[1, 5]].any()


def test_contrastive_survives_large_logits() -> None:
    top = torch.full((8,), 100.0)
    sentences = torch.stack([-top, top])
    positive = torch.tensor([True, False])
    assert contrastive_paper(top, sentences, positive, ~positive).item() == pytest.approx(160_000)
    assert contrastive_released(top, sentences, positive, ~positive).item() == pytest.approx(20)


def test_tau_schedules() -> None:
    released, paper = ReferringParams(), ReferringParams(tau_schedule="paper")
    assert tau_at(1, released) == tau_at(1999, released) == 0.1
    assert tau_at(2000, released) == pytest.approx(0.06)
    assert tau_at(45_000, released) == 0.005
    assert tau_at(1000, paper) == pytest.approx(0.06)
    assert tau_at(500, paper) == pytest.approx(0.1 * 0.6**0.5)
    assert tau_at(45_000, paper) < 1e-9
    assert tau_at(45_000, ReferringParams(tau_schedule="paper", tau_floor=0.01)) == 0.01
    for iteration in (1, 700, 1999, 2000, 2001, 30_000):
        assert tau_at(iteration, released) == reference.tau_released(iteration)
        assert tau_at(iteration, paper) == reference.tau_paper(iteration)
