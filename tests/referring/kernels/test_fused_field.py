"""The GPU kernels of the referring field against plain PyTorch in float64; without a GPU they are emulated."""

from __future__ import annotations

import copy

import pytest
import torch

from referring.field import ReferringField
from referring.kernels import functions
from referring.kernels.functions import FusedField
from referring.kernels.library import SHARED_KB
from referring.kernels.plain import PlainField

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# What is the same in all keys of a sentence leaves attention to its words as it is.
NO_GRADIENT = "cross_attention.k_linear.bias", "cross_attention.kp_linear.bias"
SIZES = [1, 1000, 1_000_000] if ON_GPU else [1, 300]


def make(n: int, case: str, seed: int = 0) -> tuple[ReferringField, torch.Tensor]:
    torch.manual_seed(seed)
    field = ReferringField(n, 24)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        field.language_feature.normal_()
        if case == "zero features":
            field.language_feature.zero_()
    xyz = torch.randn(n, 3)
    if case == "far away":
        xyz *= 1e6
    if case == "duplicate points":
        xyz[:] = xyz[0].clone()
        field.language_feature.data[n // 2 :] = field.language_feature.data[: n - n // 2].clone()
    return field.to(DEVICE), xyz.to(DEVICE)


def make_words(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    tokens = torch.randn(len(lengths), max(lengths), 24)
    return tokens.to(DEVICE), (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(DEVICE)


def everything(field, xyz, tokens, present, top, on_scores, on_tops) -> dict[str, torch.Tensor]:
    """Scores, top embeddings, and the gradient of a random function of both for each parameter."""
    words = field.encode_words(tokens, present)
    scores, tops = field.score(xyz, words, top)
    loss = (scores * on_scores).sum()
    if top is not None:
        loss = loss + (tops * on_tops).sum()
    names, parameters = zip(*field.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    found = dict(zip(names, gradients, strict=True)) | {"scores": scores.detach()}
    return found if top is None else found | {"tops": tops.detach()}


def compare(
    n: int, lengths: list[int], case: str, mode: str, share: float | None, visible: float = 1.0
) -> dict[str, float]:
    """Relative L2 distance to float64 for each result; what is zero there, absolute."""
    field, xyz = make(n, case)
    tokens, present = make_words(lengths)
    torch.manual_seed(1)
    on_scores = torch.randn(len(lengths), n, device=DEVICE) * (torch.rand(n, device=DEVICE) < visible)
    on_tops = torch.randn(len(lengths), 128, device=DEVICE)
    top = (
        None if share is None else torch.full((len(lengths),), max(1, int(share * n)), dtype=torch.int32, device=DEVICE)
    )
    exact = copy.deepcopy(field).double()
    exact.backend = PlainField()
    wanted = everything(exact, xyz.double(), tokens.double(), present, top, on_scores.double(), on_tops.double())
    field.backend = FusedField(mode)
    found = everything(field, xyz, tokens, present, top, on_scores, on_tops)
    scale = max(float(value.norm()) for name, value in wanted.items() if name not in ("scores", "tops"))
    distances = {}
    for name, value in wanted.items():
        floor = 1e-4 * scale if name not in ("scores", "tops") else 1e-30
        if name in NO_GRADIENT:  # rounding is all there is: it has to be small beside that of the same layer's weight
            floor = max(floor, float(wanted["cross_attention.k_linear.weight"].norm()))
        distances[name] = float((found[name] - value).norm() / value.norm().clamp_min(floor))
    return distances


@pytest.mark.parametrize("lengths", [[1], [7], [30], [16, 3, 9], [5, 1, 2, 16, 4]])
@pytest.mark.parametrize("n", SIZES)
def test_values_and_gradients_are_those_of_float64(n: int, lengths: list[int]) -> None:
    distances = compare(n, lengths, "random", "fp32", share=0.1, visible=0.5)
    assert max(distances.values()) < 1e-3, distances


@pytest.mark.parametrize("case", ["zero features", "duplicate points", "far away"])
def test_degenerate_features_and_points(case: str) -> None:
    distances = compare(150, [5, 12], case, "fp32", share=None)
    assert max(distances.values()) < 1e-3, distances


def test_longest_sentences() -> None:
    distances = compare(100, [64, 40], "random", "fp32", share=0.1)
    assert max(distances.values()) < 1e-3, distances


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_other_precisions_are_coarser(precision: str) -> None:
    distances = compare(200, [9], "random", precision, share=0.1)
    assert 1e-5 < max(distances.values()) < 0.3, distances
    assert distances["scores"] < 0.02, distances


@pytest.mark.parametrize("shared_kb", SHARED_KB)
@pytest.mark.parametrize("words", [16, 40])
def test_gpus_with_less_shared_memory(monkeypatch: pytest.MonkeyPatch, shared_kb: int, words: int) -> None:
    if ON_GPU and functions.shared_memory_kb(DEVICE) < shared_kb:
        pytest.skip("this GPU has less")
    monkeypatch.setattr(functions, "shared_memory_kb", lambda device: shared_kb)
    distances = compare(100, [words], "random", "fp32", share=0.1)
    assert max(distances.values()) < 1e-3, distances


def test_every_run_gives_the_same_bits() -> None:
    field, xyz = make(500, "random")
    field.backend = FusedField()
    tokens, present = make_words([6, 11])
    top = torch.full((2,), 50, dtype=torch.int32, device=DEVICE)
    on_scores, on_tops = torch.randn(2, 500, device=DEVICE), torch.randn(2, 128, device=DEVICE)
    first, second = (everything(field, xyz, tokens, present, top, on_scores, on_tops) for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_feature_that_is_no_number_is_not_hidden() -> None:
    field, xyz = make(40, "random")
    with torch.no_grad():
        field.language_feature[7, 3] = torch.nan
    field.backend = FusedField()
    tokens, present = make_words([6])
    scores = field.score(xyz, field.encode_words(tokens, present))[0]
    assert scores[0, 7].isnan()
