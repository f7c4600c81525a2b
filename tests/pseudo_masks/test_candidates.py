"""Choice among candidate masks: hand-made ones with a known winner, and the equations written out by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pseudo_masks import candidates as module
from pseudo_masks.candidates import RULES, choose_candidate, intersections

HEIGHT, WIDTH = 10, 20


def box(left: int, right: int, top: int = 0, bottom: int = 5) -> Tensor:
    """A mask of one rectangle."""
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


FULL, EMPTY = box(0, WIDTH, 0, HEIGHT), box(0, 0)


def chosen(candidates: list[tuple[Tensor, float]], rule: str = "eq5", max_area: float = 0.5) -> int | None:
    masks, gamma = zip(*candidates, strict=True)
    return choose_candidate(torch.stack(masks), torch.tensor(gamma), rule, max_area).winner


def fuzzy_scores(masks: np.ndarray, gamma: np.ndarray) -> list[float]:
    """Eq. 5 pixel by pixel: memberships gamma_k M_k, intersection their minimum, union their maximum."""
    weighted = masks * gamma[:, None, None]
    return [
        sum(np.minimum(a, b).sum() / np.maximum(a, b).sum() for b in weighted)
        for a in weighted
    ]  # fmt: skip


def released_scores(masks: np.ndarray, gamma: np.ndarray) -> list[float]:
    count = len(masks)
    iou = [[(masks[k] & masks[j]).sum() / (masks[k] | masks[j]).sum() for j in range(count)] for k in range(count)]
    return [sum(iou[k][j] * gamma[k] * gamma[j] for j in range(count) if j != k) for k in range(count)]


candidate_lists = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 10), st.integers(0, 4), st.integers(1, 5), st.integers(1, 100)),
    min_size=1,
    max_size=6,
).map(
    lambda rows: [
        (box(left, left + width, top, top + height), g / 100) for left, width, top, height, g in rows
    ]
)  # fmt: skip


@given(candidate_lists)
@settings(max_examples=60, deadline=None)
def test_scores_are_the_equations(candidates) -> None:
    masks = torch.stack([mask for mask, _ in candidates])
    gamma = torch.tensor([g for _, g in candidates], dtype=torch.float64)
    eq5, released = (choose_candidate(masks, gamma, rule, 1.0).scores for rule in ("eq5", "released"))
    np.testing.assert_allclose(eq5, fuzzy_scores(masks.numpy(), gamma.numpy()), rtol=1e-9)
    np.testing.assert_allclose(released, released_scores(masks.numpy(), gamma.numpy()), rtol=1e-9, atol=1e-12)


@given(candidate_lists, st.randoms(use_true_random=False), st.sampled_from(RULES))
@settings(max_examples=60, deadline=None)
def test_order_and_dropped_candidates_change_nothing(candidates, random, rule) -> None:
    """Confidences stay with their masks: wherever ineligible candidates stand, the same mask and score win."""
    masks = torch.stack([mask for mask, _ in candidates])
    gamma = torch.tensor([g for _, g in candidates], dtype=torch.float64)
    before = choose_candidate(masks, gamma, rule, 0.5)
    crowd = [*candidates, (FULL, 0.99), (EMPTY, 0.98), (FULL, 0.01)]
    random.shuffle(crowd)
    after = choose_candidate(
        torch.stack([mask for mask, _ in crowd]), torch.tensor([g for _, g in crowd], dtype=torch.float64), rule, 0.5
    )
    assert after.scores[after.winner] == pytest.approx(before.scores[before.winner], rel=1e-9)
    assert crowd[after.winner][1] == float(gamma[before.winner])


@pytest.mark.parametrize(
    ("rule", "winner"),
    [
        ("eq5", 1),  # A and B agree, and A also with C
        ("released", 1),
        ("top1", 3),  # the confident one that nobody agrees with
    ],
)
def test_agreement_beats_confidence(rule: str, winner: int) -> None:
    a, b, c = (box(0, 8), 0.5), (box(0, 7), 0.45), (box(2, 8), 0.45)
    assert chosen([b, a, c, (box(12, 20, 5, 10), 0.9)], rule) == winner


def test_rules_differ_where_confidences_do() -> None:
    """Twins of low confidence resemble each other most (Eq. 5); the released sum prefers what confident masks share."""
    twins = [(box(0, 4), 0.31), (box(0, 4), 0.31), (box(0, 4), 0.31)]
    confident = [(box(10, 18), 0.9), (box(12, 20), 0.9)]
    assert chosen(twins + confident, "eq5") == 0  # p = 3 against 1.6
    assert chosen(twins + confident, "released") == 3  # p = 0.49 against 0.19


def test_a_dropped_candidate_moves_no_confidence() -> None:
    """The defect of the released script, shown to matter here: with confidences shifted by one, another mask wins."""
    candidates = [(FULL, 0.9), (box(0, 8), 0.35), (box(0, 8), 0.35), (box(10, 17), 0.9), (box(10, 18), 0.8)]
    assert chosen(candidates, "released") == 3
    kept = [mask for mask, _ in candidates[1:]]
    shifted = [(mask, g) for mask, (_, g) in zip(kept, candidates, strict=False)]  # 0.9, 0.35, 0.35, 0.9
    assert released_scores(torch.stack(kept).numpy(), np.array([g for _, g in shifted]))[2] == pytest.approx(0.275625)
    assert 1 + chosen([(m, g) for m, g in shifted], "released") == 1


@pytest.mark.parametrize("rule", RULES)
def test_ties(rule: str) -> None:
    """Equal scores: the more confident; equal in that, too: the first."""
    apart = [(box(0, 4), 0.4), (box(6, 10), 0.6), (box(12, 16), 0.6)]
    assert chosen(apart, rule) == 1
    assert chosen(apart[::-1], rule) == 0
    assert chosen([(box(0, 8), 0.5), (box(4, 12), 0.7)], rule) == 1


@pytest.mark.parametrize("rule", RULES)
def test_sums_in_another_order_tie(rule: str) -> None:
    """Many copies of one mask: rounding must not decide, the first wins."""
    assert chosen([(box(0, 7), 0.3 + 0.1)] * 7 + [(box(12, 20), 0.1)] * 3, rule) == 0


@pytest.mark.parametrize("rule", RULES)
def test_no_winner(rule: str) -> None:
    none = choose_candidate(torch.zeros(0, HEIGHT, WIDTH, dtype=torch.bool), torch.zeros(0), rule)
    assert (none.winner, none.scores, none.areas) == (None, [], [])
    large = choose_candidate(torch.stack([FULL, box(0, 20, 0, 6)]), torch.tensor([0.9, 0.8]), rule, 0.5)
    assert (large.winner, large.scores) == (None, [None, None])
    assert large.areas == pytest.approx([1.0, 0.6])
    assert chosen([(EMPTY, 0.9)], rule) is None


@pytest.mark.parametrize("rule", RULES)
def test_area_limit_is_inclusive_and_a_lone_candidate_wins(rule: str) -> None:
    half = box(0, 20, 0, 5)
    assert chosen([(FULL, 0.9), (half, 0.31)], rule, 0.5) == 1
    assert chosen([(FULL, 0.9), (half, 0.31)], rule, 0.49) is None


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="unknown selection rule 'best'"):
        choose_candidate(torch.zeros(1, 2, 2, dtype=torch.bool), torch.ones(1), "best")
    with pytest.raises(ValueError, match="disagree"):
        choose_candidate(torch.zeros(1, 2, 2, dtype=torch.bool), torch.ones(2))


def test_intersections_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.rand(5, 33, 41, generator=torch.Generator().manual_seed(0)) > 0.4
    expected = [[int((a & b).sum()) for b in masks] for a in masks]
    monkeypatch.setattr(module, "PIXELS", 100)
    assert intersections(masks).tolist() == expected
