"""Metrics against hand-computed cases and scikit-image; log.jsonl and its curves."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.spatial import distance

from evaluation.curves import MAX_POINTS, Series, draw_chart, read_log, thin_out
from utils.metrics import Score, iou, ious, overlaps, resized_mask, score, summarize


def rectangle(rows: slice, columns: slice, shape: tuple[int, int] = (10, 12)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


def test_iou_of_two_overlapping_rectangles():
    # 4 x 6 and 4 x 6, overlap 2 x 3: 6 / (24 + 24 - 6)
    first, second = rectangle(slice(0, 4), slice(0, 6)), rectangle(slice(2, 6), slice(3, 9))
    assert iou(first, second) == pytest.approx(6 / 42)


def test_iou_of_empty_masks():
    empty, full = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    assert (iou(empty, empty), iou(empty, full), iou(full, empty), iou(full, full)) == (1, 0, 0, 1)


@given(arrays(bool, (2, 4, 3, 2)))
def test_ious_of_tensors_are_those_of_pictures_whose_truth_is_not_empty(masks: np.ndarray):
    predictions, truths = masks
    expected = [iou(*pair) for pair in zip(predictions, truths, strict=True) if pair[1].any()]
    assert ious(overlaps(torch.from_numpy(predictions), torch.from_numpy(truths))) == expected


def test_iou_refuses_other_sizes():
    with pytest.raises(ValueError, match="different size"):
        iou(np.zeros((3, 4), bool), np.zeros((4, 3), bool))


@settings(deadline=None)
@given(st.data())
def test_iou_is_one_minus_the_jaccard_distance(data):
    shape = data.draw(array_shapes(min_dims=2, max_dims=2, max_side=12))
    first, second = (data.draw(arrays(bool, shape)) for _ in range(2))
    if first.any() or second.any():
        assert iou(first, second) == pytest.approx(1 - distance.jaccard(first.ravel(), second.ravel()))


def test_resized_mask_doubles_every_pixel():
    mask = np.random.default_rng(0).random((5, 7)) > 0.5
    assert np.array_equal(resized_mask(mask, (10, 14)), mask.repeat(2, axis=0).repeat(2, axis=1))


def test_score_of_another_size_is_noted_and_exact_at_double_size():
    truth = rectangle(slice(2, 6), slice(4, 8))
    found = score(truth.repeat(2, axis=0).repeat(2, axis=1), truth)
    assert (found.iou, found.missing, found.resized) == (1.0, False, True)


def test_score_without_prediction_or_truth():
    truth, empty = rectangle(slice(0, 2), slice(0, 3)), np.zeros((10, 12), bool)
    nothing = score(None, truth)
    assert (nothing.iou, nothing.missing, nothing.boundary_iou, nothing.answered) == (0.0, True, 0.0, False)
    assert (nothing.intersection, nothing.union, nothing.accuracy) == (0, 6, 1 - 6 / 120)
    found = score(truth, empty)
    assert math.isnan(found.iou)
    assert found.false_positive == pytest.approx(6 / 120)
    both = score(None, empty)
    assert both.missing
    assert math.isnan(both.iou)
    assert both.false_positive == 0, "a missing prediction is an empty one"


def test_summary_of_a_hand_computed_case():
    nothing = math.nan
    scores = [
        ("mug", Score(0.5)),  # counts for Acc@0.5: IoU >= t
        ("mug", Score(0.0, missing=True)),
        ("a b", Score(0.3)),
        ("a_b", Score(0.8)),
        ("a_b", Score(nothing, false_positive=0.1)),
        ("ghost", Score(nothing, false_positive=0.0)),
        ("ghost", Score(nothing, missing=True)),
    ]
    result = summarize(scores)
    assert result["mIoU"] == pytest.approx(100 * 1.6 / 4)
    assert (result["acc@0.25"], result["acc@0.5"], result["pairs"]) == (75, 50, 4)
    assert result["per_category"]["mug"] == {"mIoU": 25, "acc@0.25": 50, "acc@0.5": 50, "pairs": 2}
    assert result["per_category"]["a b"]["mIoU"] == pytest.approx(30)
    assert result["per_category"]["a_b"]["mIoU"] == pytest.approx(80)
    assert result["per_category"]["ghost"] == {"mIoU": None, "acc@0.25": None, "acc@0.5": None, "pairs": 0}
    assert result["empty_ground_truth"] == {"pairs": 3, "with_foreground": 1, "false_positive_percent": 5.0}
    json.dumps(result, allow_nan=False)


def test_log_with_a_torn_line_a_resume_and_strange_values(tmp_path):
    lines = [
        {"stage": "rgb", "iteration": 10, "seconds": 1.0, "loss": 0.5, "psnr": 20},
        {"stage": "rgb", "iteration": 20, "seconds": 2.0, "loss": 9.0, "note": "text", "flag": True},
        {"stage": "rgb", "iteration": 20, "seconds": 1.0, "loss": 0.25},
        {"stage": "referring", "iteration": 10, "seconds": 1.0, "loss": float("nan"), "bce": 0.7},
    ]
    text = "\n".join(["[1, 2]", *map(json.dumps, lines), '{"stage": "referring", "iteration": 20, "bce": 0.'])
    (tmp_path / "log.jsonl").write_text(text)
    assert read_log(tmp_path / "log.jsonl") == [
        Series("rgb", "loss", [(10, 0.5), (20, 0.25)]),
        Series("rgb", "psnr", [(10, 20.0)]),
        Series("referring", "bce", [(10, 0.7)]),
    ]
    assert read_log(tmp_path / "none.jsonl") == []


def test_thinned_keeps_mean_and_extremes():
    values = np.random.default_rng(1).normal(size=4 * MAX_POINTS)
    groups = thin_out(list(enumerate(values.tolist())))
    assert len(groups) == MAX_POINTS
    expected = values.reshape(MAX_POINTS, 4)
    columns = np.array(groups)
    assert np.allclose(columns[:, 1:].T, [expected.mean(1), expected.min(1), expected.max(1)])


@settings(deadline=None)
@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=30))
def test_chart_is_well_formed_and_stays_inside(values):
    svg = ElementTree.fromstring(draw_chart(Series("a<b", "loss & co", list(enumerate(values)))))
    points = [p.split(",") for p in svg.find("polyline").get("points").split()]
    assert len(points) == len(values)
    assert all(0 <= float(x) <= 360 and 0 <= float(y) <= 190 for x, y in points)
