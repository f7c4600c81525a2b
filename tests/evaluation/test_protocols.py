"""Protocols and their figures on a made-up model whose IoUs are known, by hand and against scikit-learn and -image."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from evaluation.pairs import evaluate, read_csv, write_csv
from evaluation.protocols import PROTOCOLS, Outcome, confidence_interval, mean, summary
from evaluation.responses import (
    THRESHOLDS,
    Responses,
    argmax_scores,
    find_peak,
    ious_at,
    measure_responses,
    response_figures,
)
from scene.cameras import Camera
from scene.dataset import Polygons, Referral, View, box_around, sentence_id
from scene.readers.image_files import ImageCache
from utils.images import write_image
from utils.metrics import Score, boundary_iou, localised, score

HEIGHT, WIDTH = 10, 20


def strip(count: int) -> np.ndarray:
    """The first `count` columns."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, :count] = True
    return mask


def view_of(scene: Path, view_id: str, objects: list[tuple[str, str, np.ndarray]]) -> View:
    """A view with sentences (category, sentence, true mask)."""
    referrals = []
    for category, sentence, truth in objects:
        path = scene / "gt_mask" / view_id / f"{category}.png"
        write_image(path, truth.astype(np.uint8) * 255)
        referrals.append(Referral(sentence_id(category, sentence), category, sentence, path))
    camera = Camera(f"{view_id}.png", np.eye(3), np.zeros(3), 30.0, 30.0, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT)
    return View(view_id, camera, tuple(referrals), scene / "x.png", (WIDTH, HEIGHT), None, ImageCache(1 << 20))


# Every truth is the first 10 columns; a prediction of n <= 10 of them has IoU n / 10.
MADE_UP = {
    "one": [("cup", "a", 10), ("cup", "b", 2), ("box", "c", 5)],  # b overwrites a
    "two": [("cup", "a", 6), ("cup", "b", 8), ("box", "c", 0), ("ghost", "d", 7)],  # the ghost's truth is empty
}


@pytest.fixture
def made_up(tmp_path: Path) -> list:
    """Pairs of a model with IoU 1, 0.2, 0.5 in view one and 0.6, 0.8, 0 in view two."""
    views = []
    for name, objects in MADE_UP.items():
        truths = [(c, s, strip(0 if c == "ghost" else 10)) for c, s, _ in objects]
        view = view_of(tmp_path / "scene", name, truths)
        for referral, (_, _, columns) in zip(view.referrals, objects, strict=True):
            path = tmp_path / "masks" / name / f"{referral.sentence_id}.png"
            write_image(path, strip(columns).astype(np.uint8) * 255)
        views.append(view)
    return evaluate(views, tmp_path / "masks")


def outcomes_of(pairs: list) -> list[Outcome]:
    return [pair.outcome for pair in pairs]


def test_ref_lerf_and_released_differ_where_sentences_overwrite_each_other(made_up: list) -> None:
    outcomes = outcomes_of(made_up)
    pairs = summary(PROTOCOLS["ref-lerf"], outcomes)
    assert pairs["mIoU"] == pytest.approx(100 * (1 + 0.2 + 0.5 + 0.6 + 0.8 + 0) / 6, abs=1e-12)
    assert pairs["pairs"] == 6
    released = summary(PROTOCOLS["released"], outcomes)
    assert released["mIoU"] == pytest.approx(100 * (0.2 + 0.5 + 0.8 + 0) / 4, abs=1e-12)  # b and c of both views
    assert released["pairs"] == 4
    assert pairs["other_protocols"] == {"released": released["mIoU"]}
    assert released["other_protocols"] == {"ref-lerf": pairs["mIoU"]}
    # with one sentence an object nothing is overwritten, and both are the same
    single = [o for o in outcomes if o.sentence_id != sentence_id("cup", "a")]
    assert summary(PROTOCOLS["ref-lerf"], single)["mIoU"] == summary(PROTOCOLS["released"], single)["mIoU"]


def test_files_named_frame_and_category_give_the_released_number(made_up: list, tmp_path: Path) -> None:
    """The released naming itself, written and scored without the code under test."""
    files = {}
    for pair in made_up:
        files[f"{pair.view.id}_{pair.referral.category}.png"] = pair
    values = []
    for pair in files.values():
        predicted, truth = strip(predicted_columns(pair)), pair.view.mask(pair.referral)
        if truth.sum() > 0:
            values.append((predicted & truth).sum() / (predicted | truth).sum())
    assert PROTOCOLS["released"].miou(outcomes_of(made_up)) == pytest.approx(100 * np.mean(values), abs=1e-12)


def predicted_columns(pair) -> int:
    """Columns that the made-up model predicts for a pair."""
    key = (pair.referral.category, pair.referral.sentence)
    return next(columns for c, s, columns in MADE_UP[pair.view.id] if (c, s) == key)


def test_means_over_views_first(made_up: list) -> None:
    """3d-ovs: (1 + 0.2 + 0.5) / 3 of view one, and of view two without its ghost (0.6 + 0.8 + 0) / 3."""
    outcomes = [o for o in outcomes_of(made_up) if (o.view, o.category) != ("two", "box")]
    found = summary(PROTOCOLS["3d-ovs"], outcomes)
    assert found["mIoU"] == pytest.approx(100 * ((1.7 / 3) + 1.4 / 2) / 2)
    assert found["acc@0.5"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert PROTOCOLS["lerf-ovs"].miou(outcomes) == pytest.approx(100 * 3.1 / 5)


def test_further_figures_by_hand(made_up: list) -> None:
    found = summary(PROTOCOLS["ref-lerf"], outcomes_of(made_up), {("one", made_up[0].referral.sentence_id): True})
    assert found["overall_iou"] == pytest.approx(100 * (10 + 2 + 5 + 6 + 8 + 0) / 60)
    assert found["mAcc"] == pytest.approx(100 * np.mean([1, 12 / 20, 15 / 20, 16 / 20, 18 / 20, 10 / 20]))
    assert found["coverage"] == pytest.approx(100 * 5 / 6)  # nothing was predicted for the box of view two
    assert found["localisation"] == pytest.approx(100 / 6)
    assert (found["acc@0.25"], found["acc@0.5"]) == (pytest.approx(100 * 4 / 6), pytest.approx(100 * 4 / 6))
    assert summary(PROTOCOLS["ref-lerf"], outcomes_of(made_up))["localisation"] is None
    absent = response_figures(None, PROTOCOLS["ref-lerf"], outcomes_of(made_up))["absent"]
    assert absent == {
        "pairs": 1,
        "with_foreground": 1,
        "false_positive_rate": 100.0,
        "false_positive_percent": pytest.approx(35.0),
    }


def test_a_missing_prediction_counts_as_an_empty_one(made_up: list) -> None:
    made_up[0].prediction.unlink()
    pairs = evaluate([made_up[0].view], made_up[0].prediction.parent.parent)
    found = summary(PROTOCOLS["ref-lerf"], outcomes_of(pairs))
    assert found["mIoU"] == pytest.approx(100 * 0.7 / 3)
    assert found["overall_iou"] == pytest.approx(100 * 7 / 30)
    assert found["coverage"] == pytest.approx(200 / 3)


def test_nothing_to_measure_is_none_and_no_error() -> None:
    empty = [Outcome("v", "c", "s", Score(math.nan))]
    for protocol in PROTOCOLS.values():
        found = summary(protocol, empty, {})
        assert found["mIoU"] is None
        assert found["overall_iou"] is None
        assert found["confidence_interval"] is None
    assert mean([], np.array([])) is None


@settings(deadline=None, max_examples=50)
@given(arrays(bool, (2, 3, 6, 5)))
def test_iou_and_accuracy_agree_with_scikit_learn(masks: np.ndarray) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    outcomes, flat = [], []
    for k, (prediction, truth) in enumerate(zip(*masks, strict=True)):
        outcomes.append(Outcome("v", "c", str(k), score(prediction, truth)))
        if truth.any():
            flat.append((truth.ravel(), prediction.ravel()))
    found = summary(PROTOCOLS["ref-lerf"], outcomes)
    if not flat:
        assert found["mIoU"] is None
        return
    ious = [metrics.jaccard_score(*pair) for pair in flat]
    assert found["mIoU"] == pytest.approx(100 * np.mean(ious))
    assert found["mAcc"] == pytest.approx(100 * np.mean([metrics.accuracy_score(*pair) for pair in flat]))
    pooled = [np.concatenate(column) for column in zip(*flat, strict=True)]
    assert found["overall_iou"] == pytest.approx(100 * metrics.jaccard_score(*pooled))


def test_boundary_iou_by_hand() -> None:
    """A square of 10 x 10 and its left half: boundaries of width 1 have 36 and 26 pixels and share 18."""
    truth, half = np.zeros((30, 30), bool), np.zeros((30, 30), bool)
    truth[5:15, 5:15] = half[5:15, 5:10] = True
    assert round(0.02 * math.hypot(30, 30)) == 1
    assert boundary_iou(half, truth) == pytest.approx(18 / (36 + 26 - 18))
    assert boundary_iou(truth, truth) == 1
    assert boundary_iou(np.zeros_like(truth), truth) == 0


@settings(deadline=None, max_examples=30)
@given(arrays(bool, (2, 4, 5)))
def test_boundaries_agree_with_scipy_and_scikit_image(coarse: np.ndarray) -> None:
    morphology = pytest.importorskip("skimage.morphology")
    masks = [np.kron(mask, np.ones((25, 25), bool)).astype(bool) for mask in coarse]  # 100 x 125: 3 pixels wide
    width = round(0.02 * math.hypot(100, 125))
    assert width == 3
    by_scipy = [m & ~ndimage.binary_erosion(m, np.ones((3, 3)), iterations=width, border_value=0) for m in masks]
    padded = [np.pad(m, width) for m in masks]
    footprint = morphology.footprint_rectangle((2 * width + 1, 2 * width + 1))
    by_skimage = [
        m & ~morphology.erosion(p, footprint)[width:-width, width:-width] for m, p in zip(masks, padded, strict=True)
    ]
    for boundaries in (by_scipy, by_skimage):
        union = (boundaries[0] | boundaries[1]).sum()
        expected = (boundaries[0] & boundaries[1]).sum() / union if union else 1
        assert boundary_iou(*masks) == pytest.approx(expected)


def test_localisation_by_hand() -> None:
    response = np.full((HEIGHT, WIDTH), -3.0)
    response[4, 7] = response[6, 2] = 2.5
    assert find_peak(response) == (7, 4)  # of equal ones the first in reading order
    assert localised((7, 4), [(0, 0, 3, 3), (7, 2, 9, 4)])  # on the edge is inside
    assert not localised((7, 4), [(8, 2, 9, 4), (7, 5, 7, 9)])
    assert not localised((7, 4), [])


def test_polygons_are_masks_and_boxes() -> None:
    """Two rectangles of one category: outlines belong to them, and each has a box of its own."""
    both = Polygons((WIDTH, HEIGHT), (((2, 1), (5, 1), (5, 4), (2, 4)), ((10.9, 6), (12, 6), (12, 8), (10.9, 8))))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[1:5, 2:6] = expected[6:9, 10:13] = True
    np.testing.assert_array_equal(both.mask().astype(bool), expected)
    assert [box_around(mask) for mask in both.each()] == [(2, 1, 5, 4), (10, 6, 12, 8)]


def test_polygons_agree_with_scikit_image_inside() -> None:
    """Of a large polygon only pixels at the outline may be drawn otherwise."""
    draw = pytest.importorskip("skimage.draw")
    corners = ((10.0, 5.0), (90.0, 20.0), (70.0, 80.0), (40.0, 50.0), (15.0, 75.0))
    ours = Polygons((100, 90), (corners,)).mask().astype(bool)
    theirs = draw.polygon2mask((90, 100), [(y, x) for x, y in corners])
    core, hull = ndimage.binary_erosion(theirs, np.ones((3, 3))), ndimage.binary_dilation(theirs, np.ones((3, 3)))
    assert core.any()
    assert (ours | ~core).all()
    assert (hull | ~ours).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_the_curve_is_the_iou_of_each_threshold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probability = np.round(rng.random((8, 9)), 2).astype(np.float32)  # some lie on a threshold
    truth = rng.random((8, 9)) > 0.6
    truth[0, 0] = True
    limits = np.array(THRESHOLDS, dtype=np.float32)
    expected = [score(probability > limit, truth).iou for limit in limits]
    np.testing.assert_allclose(ious_at(probability, truth, THRESHOLDS), expected)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_argmax_agrees_with_scikit_learn(seed: int) -> None:
    """3D-OVS: classes as one-hot columns, Jaccard of each, subset accuracy."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    logits, truths = rng.normal(size=(3, 5, 6)), rng.random((3, 5, 6)) > 0.5
    truths[:, 0, 0] = True
    one_hot = np.eye(3, dtype=int)[logits.reshape(3, -1).argmax(axis=0)]
    expected = truths.reshape(3, -1).T.astype(int)
    miou, accuracy = argmax_scores(logits, truths)
    assert miou == pytest.approx(metrics.jaccard_score(expected, one_hot, average=None).mean())
    assert accuracy == pytest.approx(metrics.accuracy_score(expected, one_hot))
    logits[:, 0, 0] = -np.inf  # nothing covers the pixel: it belongs to no class
    assert argmax_scores(logits, truths)[0] <= miou + 1e-9 or one_hot[0].sum() == 1


class FixedPredictor:
    """Logits 4 in the first columns, -4 elsewhere, by sentence; nothing covers the last column."""

    threshold = 0.5
    columns = {"a": 10, "b": 2, "c": 5, "d": 7}

    def logits(self, camera: Camera, sentences: list[str], once: bool) -> torch.Tensor:
        logits = np.stack([np.where(strip(self.columns[s]), 4.0, -4.0) for s in sentences]).astype(np.float32)
        logits[:, :, -1] = -np.inf
        logits[:, 3, 1] += 1  # the highest
        return torch.from_numpy(logits)


def test_responses_of_a_made_up_model(tmp_path: Path) -> None:
    """Object d is annotated in view two only, so that it is absent in view one; c's truth is far from its response."""
    far = np.zeros((HEIGHT, WIDTH), bool)
    far[:, 15:] = True
    views = [
        view_of(tmp_path, "one", [("cup", "a", strip(10)), ("box", "c", far)]),
        view_of(tmp_path, "two", [("cup", "a", strip(10)), ("ghost", "d", strip(7)), ("box", "b", strip(0))]),
        view_of(tmp_path, "three", []),
    ]
    found = measure_responses(FixedPredictor(), views)
    ids = {s: sentence_id(c, s) for c, s in (("cup", "a"), ("box", "c"), ("ghost", "d"), ("box", "b"))}
    assert found.localised == {
        ("one", ids["a"]): True,
        ("one", ids["c"]): False,
        ("two", ids["a"]): True,
        ("two", ids["d"]): True,
    }
    assert found.false_positives == [pytest.approx(7 / 20)]  # d in view one; b and c name objects that are there
    views[0] = replace(views[0], unmasked=frozenset({"ghost"}))  # named there, without a mask: maybe not absent
    assert measure_responses(FixedPredictor(), views).false_positives == []
    assert [round(v, 3) for v in found.covered] == [1, 0.8, 1, 1]
    outcomes = [
        Outcome(view, "x", ids[s], Score(iou))
        for view, s, iou in (("one", "a", 1.0), ("one", "c", 0.0), ("two", "a", 1.0), ("two", "d", 1.0))
    ]
    extra = response_figures(found, PROTOCOLS["ref-lerf"], outcomes)
    assert extra["threshold_curve"][9] == {"threshold": 0.5, "mIoU": pytest.approx(75.0)}
    assert extra["absent"]["pairs"] == 1
    assert extra["absent"]["false_positive_percent"] == pytest.approx(35.0)


def test_the_curve_changes_no_other_number(made_up: list) -> None:
    """Responses that would be perfect at threshold 0.05 leave mIoU where it is."""
    outcomes = outcomes_of(made_up)
    perfect = {(o.view, o.sentence_id): np.ones(len(THRESHOLDS)) for o in outcomes}
    extra = response_figures(Responses(ious=perfect), PROTOCOLS["ref-lerf"], outcomes)
    assert {point["mIoU"] for point in extra["threshold_curve"]} == {100.0}
    assert "mIoU" not in extra


def test_confidence_interval_draws_sentences_with_all_their_views() -> None:
    """Ten views of one sentence say as much about the interval as one: only sentences are drawn."""
    rng = np.random.default_rng(5)
    values = rng.random(12)
    once = [Outcome("v0", "c", str(s), Score(float(v))) for s, v in enumerate(values)]
    ten = [Outcome(f"v{k}", "c", str(s), Score(float(v))) for s, v in enumerate(values) for k in range(10)]
    low, high = confidence_interval(PROTOCOLS["ref-lerf"], once)
    assert confidence_interval(PROTOCOLS["ref-lerf"], ten) == pytest.approx([low, high])
    # the normal approximation of a mean of 12 values
    half = 1.96 * values.std() / math.sqrt(12)
    assert low == pytest.approx(100 * (values.mean() - half), abs=2.5)
    assert high == pytest.approx(100 * (values.mean() + half), abs=2.5)
    assert confidence_interval(PROTOCOLS["ref-lerf"], once[:1]) is None


def test_confidence_interval_agrees_with_scipy() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).random(40) ** 2
    outcomes = [Outcome("v", "c", str(s), Score(float(v))) for s, v in enumerate(values)]
    theirs = bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(0))
    expected = [100 * theirs.confidence_interval.low, 100 * theirs.confidence_interval.high]
    assert confidence_interval(PROTOCOLS["ref-lerf"], outcomes) == pytest.approx(expected, abs=1.0)


def test_outcomes_come_back_from_the_csv(made_up: list, tmp_path: Path) -> None:
    write_csv(tmp_path, made_up, tmp_path / "scene")
    for protocol in PROTOCOLS.values():
        assert protocol.miou(read_csv(tmp_path)) == pytest.approx(protocol.miou(outcomes_of(made_up)))
