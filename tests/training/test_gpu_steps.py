"""Steps of the referring field as CUDA graphs, against the same kernels launched one by one: equal bits."""

from __future__ import annotations

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
from tests.rigs.logs import captured_warnings
from tests.training.test_field_steps import new_stage
from training.field_steps import FieldStep, FieldSteps
from training.referring import ReferringStage

pytestmark = pytest.mark.gpu

AROUND_A_NEW_TAU = range(1985, 2015)  # the released schedule changes it at 2000


@pytest.fixture(autouse=True)
def _deterministic(default_torch_settings: None) -> None:
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)


@pytest.fixture(scope="module")
def loaded(scene: Path) -> Scene:
    return load(scene, "images", -1, "gt_mask")


@pytest.fixture
def graph_steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """Whether each step was a replay of graphs, and for how many sentences."""
    found: list[tuple[bool, int]] = []
    forward = FieldSteps.forward

    def wrapped(self: FieldSteps, numbers: list[int], top_k: int) -> object:
        outputs = forward(self, numbers, top_k)
        found.append((self.graphs is not None, len(numbers)))
        return outputs

    monkeypatch.setattr(FieldSteps, "forward", wrapped)
    return found


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
        patched.setattr("training.field_steps.MAX_GRAPHS", 0)
        return taken(make())


def assert_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    for number, (value, wanted) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(value, wanted), number


@pytest.mark.parametrize(
    ("sentences", "contrastive"),
    [("1", "released"), ("7", "released"), ("all", "released"), ("1", "paper"), ("7", "paper"), ("7", "none")],
)
def test_graphs_give_the_same_bits(
    loaded: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph_steps: list, sentences: str, contrastive: str
) -> None:
    def make() -> ReferringStage:
        return new_stage(loaded, tmp_path, "cuda", sentences_per_step=sentences, contrastive=contrastive)

    expected = launched(monkeypatch, make)
    assert {is_graph for is_graph, _ in graph_steps} == {False}
    graph_steps.clear()
    assert_same_bits(taken(make()), expected)
    assert {is_graph for is_graph, _ in graph_steps} == {True}
    if sentences == "7":
        assert len({size for _, size in graph_steps}) > 1  # views whose sentences are no multiple of 7


def test_more_sizes_than_graphs(
    loaded: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph_steps: list
) -> None:
    """Graphs and single launches in turn."""

    def make() -> ReferringStage:
        return new_stage(loaded, tmp_path, "cuda", sentences_per_step="7")

    expected = launched(monkeypatch, make)
    graph_steps.clear()
    monkeypatch.setattr("training.field_steps.MAX_GRAPHS", 1)
    assert_same_bits(taken(make()), expected)
    assert {is_graph for is_graph, _ in graph_steps} == {False, True}


def test_loading_a_state(loaded: Scene, tmp_path: Path) -> None:
    """By a stage whose graphs use the tensors of another state, and by one without graphs."""
    stages = [new_stage(loaded, tmp_path, "cuda", sentences_per_step="7") for _ in range(2)]
    taken(stages[0], range(1, 10))
    save_tensors(tmp_path / "state.pth", stages[0].state())
    expected = taken(stages[0])
    for stage in stages:
        stage.load_state(load_tensors(tmp_path / "state.pth"))
        assert_same_bits(taken(stage), expected)


def test_failed_capture_falls_back_to_launches(
    loaded: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph_steps: list
) -> None:
    def make() -> ReferringStage:
        return new_stage(loaded, tmp_path, "cuda", sentences_per_step="7")

    expected = launched(monkeypatch, make)
    graph_steps.clear()
    monkeypatch.setattr(
        FieldStep, "backward", refusing(FieldStep.backward, RuntimeError("as if not permitted"), times=1)
    )
    stream = torch.cuda.current_stream()
    with captured_warnings() as warnings:
        assert_same_bits(taken(make()), expected)
    assert torch.cuda.current_stream() == stream
    assert {is_graph for is_graph, _ in graph_steps} == {False}
    assert sum("as if not permitted" in warning for warning in warnings) == 1


def test_capture_without_memory_drops_plans(
    loaded: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph_steps: list
) -> None:
    def make() -> ReferringStage:
        return new_stage(loaded, tmp_path, "cuda", sentences_per_step="7")

    expected = launched(monkeypatch, make)
    graph_steps.clear()
    stage = make()
    views = [view for view in loaded.train if view.referrals]
    stage._renderer.plan(views[0].camera)
    monkeypatch.setattr(FieldStep, "backward", refusing(FieldStep.backward, torch.OutOfMemoryError("full"), times=1))
    assert_same_bits(taken(stage), expected)
    assert {is_graph for is_graph, _ in graph_steps} == {True}


def refusing(function: Callable, error: Exception, times: int) -> Callable:
    """Return `function`, failing the first times it is captured."""
    left = [error] * times

    def wrapped(*arguments: object) -> object:
        if left and torch.cuda.is_current_stream_capturing():
            raise left.pop()
        return function(*arguments)

    return wrapped
