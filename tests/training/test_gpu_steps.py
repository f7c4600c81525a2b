"""Steps of the referring field recorded as CUDA graphs, against the same kernels launched one by one: equal bits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("PyTorch sees no GPU", allow_module_level=True)

from scene.checkpoints import load_tensors, save_tensors
from scene.dataset import Scene
from scene.layouts.ref_lerf import load
from tests.training.test_field_steps import new_stage
from training.field_steps import FieldSteps, Launched, Recorded, Work
from training.referring import ReferringStage

pytestmark = pytest.mark.gpu

AROUND_A_NEW_TAU = range(1985, 2015)  # the released schedule changes it at 2000


@pytest.fixture(autouse=True)
def _deterministic(settings_of_torch: None) -> None:
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)


@pytest.fixture(scope="module")
def loaded(scene: Path) -> Scene:
    return load(scene, "images", -1, "gt_mask")


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[type, int]]:
    """How every step was taken, and for how many sentences."""
    taken: list[tuple[type, int]] = []
    of = FieldSteps.of

    def noting(self: FieldSteps, chosen: list[int], top: int) -> object:
        step = of(self, chosen, top)
        taken.append((type(step), len(chosen)))
        return step

    monkeypatch.setattr(FieldSteps, "of", noting)
    return taken


def taken(stage: ReferringStage, iterations: range = AROUND_A_NEW_TAU) -> list[Tensor]:
    """Loss terms of every step, then the parameters and the state of the optimiser."""
    found = []
    for iteration in iterations:
        terms = stage.step(iteration)
        found += [terms[name].clone() for name in ("loss", "bce", "contrastive") if name in terms]
    optimizer = stage.state()["optimizer"]["state"]
    return [
        *found,
        *(parameter.detach().clone() for parameter in stage.field.parameters()),
        *(value.clone() for state in optimizer.values() for value in state.values()),
    ]


def launched(monkeypatch: pytest.MonkeyPatch, make: Callable[[], ReferringStage]) -> list[Tensor]:
    with monkeypatch.context() as patched:
        patched.setattr("training.field_steps.MOST_RECORDED", 0)
        return taken(make())


def assert_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    for number, (value, wanted) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(value, wanted), number


@pytest.mark.parametrize(
    ("sentences", "contrastive"),
    [("1", "released"), ("7", "released"), ("all", "released"), ("1", "paper"), ("7", "paper"), ("7", "none")],
)
def test_recorded_steps_give_the_same_bits(
    loaded: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: list, sentences: str, contrastive: str
) -> None:
    def make() -> ReferringStage:
        return new_stage(loaded, tmp_path, "cuda", sentences_per_step=sentences, contrastive=contrastive)

    expected = launched(monkeypatch, make)
    assert {kind for kind, _ in kinds} == {Launched}
    kinds.clear()
    assert_same_bits(taken(make()), expected)
    assert {kind for kind, _ in kinds} == {Recorded}
    if sentences == "7":
        assert len({size for _, size in kinds}) > 1  # views whose sentences are no multiple of 7


def test_more_sizes_than_graphs(loaded: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: list) -> None:
    """Recorded and launched steps in turn."""

    def make() -> ReferringStage:
        return new_stage(loaded, tmp_path, "cuda", sentences_per_step="7")

    expected = launched(monkeypatch, make)
    kinds.clear()
    monkeypatch.setattr("training.field_steps.MOST_RECORDED", 1)
    assert_same_bits(taken(make()), expected)
    assert {kind for kind, _ in kinds} == {Launched, Recorded}


def test_a_state_that_is_read_back(loaded: Scene, tmp_path: Path) -> None:
    """By a stage that has recorded steps with the tensors of another state, and by one that has not."""
    stages = [new_stage(loaded, tmp_path, "cuda", sentences_per_step="7") for _ in range(2)]
    taken(stages[0], range(1, 10))
    save_tensors(tmp_path / "state.pth", stages[0].state())
    expected = taken(stages[0])
    for stage in stages:
        stage.load_state(load_tensors(tmp_path / "state.pth"))
        assert_same_bits(taken(stage), expected)


def test_what_cannot_be_recorded_is_launched(
    loaded: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: list, caplog: pytest.LogCaptureFixture
) -> None:
    def make() -> ReferringStage:
        return new_stage(loaded, tmp_path, "cuda", sentences_per_step="7")

    expected = launched(monkeypatch, make)
    kinds.clear()
    monkeypatch.setattr(Work, "backward", refusing(Work.backward, RuntimeError("as if not permitted"), times=1))
    monkeypatch.setattr(logging.getLogger("refersplat"), "propagate", True)
    stream = torch.cuda.current_stream()
    with caplog.at_level(logging.WARNING, "refersplat"):
        assert_same_bits(taken(make()), expected)
    assert torch.cuda.current_stream() == stream
    assert {kind for kind, _ in kinds} == {Launched}
    assert caplog.text.count("as if not permitted") == 1


def test_recording_without_memory_drops_plans(
    loaded: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: list
) -> None:
    def make() -> ReferringStage:
        return new_stage(loaded, tmp_path, "cuda", sentences_per_step="7")

    expected = launched(monkeypatch, make)
    kinds.clear()
    stage = make()
    views = [view for view in loaded.train if view.referrals]
    stage._renderer.plan(views[0].camera)
    monkeypatch.setattr(Work, "backward", refusing(Work.backward, torch.OutOfMemoryError("full"), times=1))
    assert_same_bits(taken(stage), expected)
    assert {kind for kind, _ in kinds} == {Recorded}


def refusing(function: Callable, error: Exception, times: int) -> Callable:
    """`function`, which fails the first times it is recorded."""
    left = [error] * times

    def wrapped(*arguments: object) -> object:
        if left and torch.cuda.is_current_stream_capturing():
            raise left.pop()
        return function(*arguments)

    return wrapped
