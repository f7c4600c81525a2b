"""Steps of the referring field against referring/reference.py, order of sentences, restarts."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arguments import ReferringParams
from gaussian_renderer import ScoreRenderer
from referring import reference
from referring.field import ReferringField
from referring.kernels.backend import choose_backend
from referring.losses import contrastive_paper, contrastive_released
from scene.cameras import Camera
from scene.dataset import Referral, Scene
from scene.gaussian_model import create_from_points
from scene.layouts.ref_lerf import load
from training.field_steps import FieldStep, FieldSteps
from training.referrals import Contrast, Referrals, step_sizes, tabulate
from training.referring import ReferringStage

CPU = torch.device("cpu")
GAUSSIANS, TOP, WEIGHT = 60, 7, 0.3
LOSSES = {"released": contrastive_released, "paper": contrastive_paper, "none": contrastive_released}
SENTENCES = [  # (category, sentence) of each view
    [("cup", "the cup"), ("cup", "a red thing"), ("box", "the box to the left")],
    [("box", "the box"), ("cup", "the cup")],
    [("cup", "the cup"), ("box", "a red thing"), ("cup", "it"), ("jar", "the jar"), ("box", "the box to the left")],
]


def views(lists: list[list[tuple[str, str]]]) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(referrals=tuple(Referral("", category, text, Path()) for category, text in pairs))
        for pairs in lists
    ]


@pytest.fixture
def tokens() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {text: torch.randn(len(text.split()), 24).double() for pairs in SENTENCES for _, text in sorted(pairs)}


def new_field() -> tuple[ReferringField, Tensor]:
    torch.manual_seed(2)
    field = ReferringField(GAUSSIANS, 24).double()
    field.language_feature.data.normal_()
    return field, torch.randn(GAUSSIANS, 3).double()


def stepped(referrals: Referrals, form: str, chosen: list[int], on_scores: Tensor) -> tuple[list[Tensor], Tensor]:
    """Outputs of a step, and what plain gradient descent of rate 1 subtracts from the parameters."""
    field, xyz = new_field()
    before = torch.nn.utils.parameters_to_vector(field.parameters()).detach().clone()
    optimizer = torch.optim.SGD(field.parameters(), lr=1)
    step = FieldStep(field, xyz, referrals, LOSSES[form], WEIGHT, optimizer)
    steps = FieldSteps(step, len(referrals.sentence), Counter({len(chosen): 1}))
    outputs = steps.forward(chosen, TOP)
    steps.backward(on_scores)
    steps.update()
    after = torch.nn.utils.parameters_to_vector(field.parameters()).detach()
    return [value for value in outputs if value is not None], before - after


def reference_step(
    tokens: dict[str, Tensor], form: str, view: int, chosen: list[int], on_scores: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Return the same, computed sentence by sentence with referring/reference.py."""
    field, xyz = new_field()
    scene = sorted({pair for pairs in SENTENCES for pair in pairs})
    others = scene if form == "paper" else SENTENCES[view]
    net = dict(field.named_parameters())
    sentences = torch.stack([reference.embed_sentence(reference.embed_words(net, tokens[text])) for _, text in others])
    loss_of = reference.contrastive_paper if form == "paper" else reference.contrastive_released
    scores, losses = [], []
    for category, text in (SENTENCES[view][i] for i in chosen):
        row, embeddings = reference.score(net, xyz, tokens[text])
        scores.append(row)
        positive = torch.tensor([other == category for other, _ in others])
        top = reference.top_embedding(row, embeddings, TOP / GAUSSIANS)
        losses.append(loss_of(top, sentences, positive, ~positive))
    outputs, loss = [torch.stack(scores)], (torch.stack(scores) * on_scores).sum()
    if form != "none":
        outputs.append(torch.stack(losses).mean())
        loss = loss + WEIGHT * outputs[1]
    gradients = torch.autograd.grad(loss, list(field.parameters()))
    return outputs, torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("form", ["released", "paper", "none"])
@pytest.mark.parametrize(("view", "chosen"), [(0, [1]), (1, [1, 0]), (2, [0, 1, 2, 3, 4])])
def test_a_step_matches_the_reference(tokens: dict[str, Tensor], form: str, view: int, chosen: list[int]) -> None:
    """In float64, with views of different numbers of sentences and one sentence of two objects."""
    referrals = tabulate(views(SENTENCES), tokens, form, CPU)
    first = sum(len(pairs) for pairs in SENTENCES[:view])
    torch.manual_seed(3)
    on_scores = torch.randn(len(chosen), GAUSSIANS).double()
    outputs, change = stepped(referrals, form, [first + i for i in chosen], on_scores)
    expected, expected_change = reference_step(tokens, form, view, chosen, on_scores)
    for value, wanted in zip([*outputs, change], [*expected, expected_change], strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["released", "paper"])
def test_more_slots_change_nothing(tokens: dict[str, Tensor], form: str) -> None:
    """Room for more sentences, with any sentence in it, and for longer ones."""
    tables = tabulate(views(SENTENCES), tokens, form, CPU)
    sentences, *masks = (F.pad(table, (0, 3)) for table in tables.contrast)
    sentences[:, -3:] = torch.tensor([0, 2, 1])
    wider = Contrast(sentences, *masks)
    longer = tables._replace(
        tokens=F.pad(tables.tokens, (0, 0, 0, 4), value=1e3), present=F.pad(tables.present, (0, 4)), contrast=wider
    )
    on_scores = torch.randn(2, GAUSSIANS).double()
    outputs, change = stepped(tables, form, [3, 4], on_scores)
    more_outputs, more_change = stepped(longer, form, [3, 4], on_scores)
    for value, wanted in zip([*more_outputs, more_change], [*outputs, change], strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)


def test_sizes_of_steps() -> None:
    assert step_sizes(views(SENTENCES), "1") == {1: 10}
    assert step_sizes(views(SENTENCES), "2") == {2: 4, 1: 2}
    assert step_sizes(views(SENTENCES), "4") == {3: 1, 2: 1, 4: 1, 1: 1}
    assert step_sizes(views(SENTENCES), "all") == {3: 1, 2: 1, 5: 1}


@pytest.fixture(scope="module")
def loaded(scene: Path) -> Scene:
    return load(scene, "images", -1, "gt_mask")


def new_stage(loaded: Scene, folder: Path, device: str = "cpu", **params: str) -> ReferringStage:
    """With random tokens; the same in every call."""
    gaussians = create_from_points(loaded.xyz, loaded.rgb, 0, loaded.extent, device)
    torch.manual_seed(0)
    sentences = loaded.sentences([*loaded.train, *loaded.test])
    tokens = {text: torch.randn(len(text.split()), 32) for text in sentences}
    renderer, params = ScoreRenderer(gaussians, 10**9), ReferringParams(**params)
    field = ReferringField(len(gaussians), 32).to(device)
    field.backend = choose_backend(torch.device(device))
    return ReferringStage(folder, loaded, gaussians, field, tokens, params, renderer, seed=0, rgb_iteration=0)


def draws(stage: ReferringStage, steps: int, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The numbers of the referrals of its next steps, which are not taken."""
    drawn: list[list[int]] = []

    def forward(_: FieldSteps, chosen: list[int], _top_k: int) -> None:
        drawn.append(chosen)
        raise InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr(FieldSteps, "forward", forward)
        for iteration in range(steps):
            with pytest.raises(InterruptedError):
                stage.step(iteration + 1)
    return drawn


class TestStage:
    @pytest.mark.parametrize("most", [1, 2, 4])
    def test_every_sentence_comes_once_an_epoch(
        self, loaded: Scene, tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In the same order for every number of sentences; a view's last step takes those that are left."""
        counts = [len(view.referrals) for view in loaded.train if view.referrals]
        owner = [view for view, count in enumerate(counts) for _ in range(count)]
        steps = sum(-(-count // most) for count in counts)
        groups = draws(new_stage(loaded, tmp_path, sentences_per_step=str(most)), steps, monkeypatch)
        assert sorted(sum(groups, [])) == list(range(sum(counts)))
        for group, after in zip(groups, [*groups[1:], None], strict=True):
            assert len({owner[number] for number in group}) == 1
            is_last = after is None or owner[after[0]] != owner[group[0]]
            assert len(group) == most or is_last
        assert sum(groups, []) == sum(draws(new_stage(loaded, tmp_path), sum(counts), monkeypatch), [])

    def test_a_step_is_taken_once_when_memory_runs_out(
        self, loaded: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, broken = (new_stage(loaded, tmp_path, sentences_per_step="2") for _ in range(2))
        for iteration in (1, 2, 3):
            whole.step(iteration)
        plan, failures = ScoreRenderer.plan, []

        def failing(self: ScoreRenderer, camera: Camera) -> object:
            if not failures:
                failures.append(True)
                raise MemoryError
            return plan(self, camera)

        broken.step(1)
        monkeypatch.setattr(ScoreRenderer, "plan", failing)
        broken.step(2)
        broken.step(3)
        assert failures
        for parameter, expected in zip(broken.field.parameters(), whole.field.parameters(), strict=True):
            assert torch.equal(parameter, expected)

    def test_the_optimiser_of_a_gpu_run_goes_on_here(self, loaded: Scene, tmp_path: Path) -> None:
        """The kind of Adam is that of the device, whatever the saved one was."""
        stages = [new_stage(loaded, tmp_path) for _ in range(2)]
        stages[0].step(1)
        state = copy.deepcopy(stages[0].state())
        state["optimizer"]["param_groups"] = [{**group, "fused": True} for group in state["optimizer"]["param_groups"]]
        stages[1].load_state(state)
        for stage in stages:
            stage.step(2)
        assert all(not group["fused"] for group in stages[1].state()["optimizer"]["param_groups"])
        for parameter, expected in zip(stages[1].field.parameters(), stages[0].field.parameters(), strict=True):
            assert torch.equal(parameter, expected)

    def test_test_views_are_measured_in_groups(
        self, loaded: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage = new_stage(loaded, tmp_path)
        stage.field.language_feature.data.normal_(std=3)
        whole = stage.evaluate()
        assert 0 < whole["test_miou"] < 100
        monkeypatch.setattr("training.referrals.GROUP", 1)
        assert stage.evaluate()["test_miou"] == pytest.approx(whole["test_miou"], abs=0.01)
