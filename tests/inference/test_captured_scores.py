"""Scores replayed as CUDA graphs against plain calls: equal scores, no shared memory; plain calls on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from inference import captured_scores
from inference.captured_scores import Scorer
from referring.field import ReferringField
from referring.kernels.backend import choose_backend
from referring.kernels.plain import PlainField
from tests.rigs.logs import captured_warnings

COUNT, WIDTH = 500, 24


def make(device: str) -> tuple[ReferringField, Tensor]:
    torch.manual_seed(0)
    field = ReferringField(COUNT, WIDTH)
    field.language_feature.data.normal_()
    field.backend = choose_backend(torch.device(device))
    return field.to(device), torch.randn(COUNT, 3).to(device)


def tokens(*lengths: int) -> list[Tensor]:
    return [torch.randn(length, WIDTH) for length in lengths]


def test_on_a_cpu_they_are_plain_calls() -> None:
    field, xyz = make("cpu")
    scorer = Scorer(field, xyz)
    for _ in range(3):
        sentences = tokens(3, 1, 7)
        assert torch.equal(scorer.scores(sentences), field.scores(xyz, sentences))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
class TestOnTheGpu:
    @pytest.fixture
    def replays(self, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
        found: list[bool] = []
        replay = torch.cuda.CUDAGraph.replay
        monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: (found.append(True), replay(self)))
        return found

    def test_replays_give_the_same_scores(self, replays: list[bool]) -> None:
        """Also after longer sentences, whose words remain behind those of shorter ones."""
        field, xyz = make("cuda")
        scorer = Scorer(field, xyz)
        for lengths in [(5,), (16,), (1,), (3, 9), (16, 2), (4, 4), (20,), (17,), (32,)]:
            sentences = tokens(*lengths)
            expected = field.scores(xyz, [sentence.cuda() for sentence in sentences])
            torch.testing.assert_close(scorer.scores(sentences), expected, rtol=1e-5, atol=1e-5)
        assert len(replays) == 6

    def test_results_do_not_share_memory(self) -> None:
        field, xyz = make("cuda")
        scorer, sentences = Scorer(field, xyz), [tokens(5) for _ in range(4)]
        found = [scorer.scores(sentence) for sentence in sentences]
        for scores, sentence in zip(found, sentences, strict=True):
            torch.testing.assert_close(scores, field.scores(xyz, [sentence[0].cuda()]), rtol=1e-5, atol=1e-5)

    def test_changed_parameters_and_backends_are_seen(self) -> None:
        field, xyz = make("cuda")
        scorer, sentence = Scorer(field, xyz), tokens(5)
        before = [scorer.scores(sentence) for _ in range(3)][-1]
        with torch.no_grad():
            field.mlp1.fc3.weight.mul_(2)
        on_gpu = [sentence[0].cuda()]
        assert not torch.allclose(scorer.scores(sentence), before)
        torch.testing.assert_close(scorer.scores(sentence), field.scores(xyz, on_gpu), rtol=1e-5, atol=1e-5)
        field.language_feature.data = torch.randn_like(field.language_feature)  # another place
        for _ in range(3):
            torch.testing.assert_close(scorer.scores(sentence), field.scores(xyz, on_gpu), rtol=1e-5, atol=1e-5)
        field.backend = PlainField()
        assert torch.equal(scorer.scores(sentence), field.scores(xyz, on_gpu))

    def test_number_of_graphs_is_limited(self, monkeypatch: pytest.MonkeyPatch, replays: list[bool]) -> None:
        monkeypatch.setattr(captured_scores, "MAX_GRAPHS", 1)
        field, xyz = make("cuda")
        scorer = Scorer(field, xyz)
        for _ in range(3):
            scorer.scores(tokens(5))
            scorer.scores(tokens(20))
        assert len(replays) == 2

    @pytest.mark.parametrize("error", [RuntimeError("as if not permitted"), torch.OutOfMemoryError("full")])
    def test_failed_capture_falls_back_to_plain_calls(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        field, xyz = make("cuda")
        scorer, sentence = Scorer(field, xyz), tokens(5)
        monkeypatch.setattr(ReferringField, "score", refusing(ReferringField.score, error))
        stream = torch.cuda.current_stream()
        with captured_warnings() as warnings:
            found = [scorer.scores(sentence) for _ in range(4)]
        assert torch.cuda.current_stream() == stream
        assert all(torch.equal(scores, found[0]) for scores in found)
        assert sum("as if not permitted" in warning for warning in warnings) == ("permitted" in str(error))


def refusing(function: Callable, error: Exception) -> Callable:
    """Return `function`, which cannot be captured."""

    def wrapped(*arguments: object) -> object:
        if torch.cuda.is_current_stream_capturing():
            raise error
        return function(*arguments)

    return wrapped
