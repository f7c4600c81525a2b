"""eval.py and render.py on a small scene folder with predictions and a model made by hand.

The trained model is a fake with one Gaussian a pixel, so the expected output is known exactly.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import eval as evaluation
import render
from evaluation.curves import Series
from evaluation.report import build_report
from gaussian_renderer.plan_cache import PlanCache
from inference import predict
from inference.predict import PredictionFolder, Predictor, Request, scene_requests
from scene.cameras import Camera
from scene.dataset import Referral, View, sentence_id
from scene.readers.image_files import ImageCache
from utils.errors import UserError
from utils.images import write_image
from utils.metrics import Score

WIDTH, HEIGHT = 32, 24
SENTENCES = [("a b", "the first <b>thing</b>"), ("a_b", "the second, “quoted”\nthing"), ("a b", "another one, & more")]


def square(left: int, top: int, side: int = 8) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def make_view(scene: Path, view_id: str, truths: list[np.ndarray]) -> View:
    """A view with one mask file for each of SENTENCES, as far as `truths` go."""
    image = scene / "images" / f"{view_id}.png"
    colours = np.random.default_rng(len(view_id)).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    write_image(image, colours)
    referrals = []
    for number, ((category, sentence), truth) in enumerate(zip(SENTENCES, truths, strict=False)):
        path = scene / "gt_mask" / view_id / f"{number}.png"
        write_image(path, truth.astype(np.uint8) * 255)
        referrals.append(Referral(sentence_id(category, sentence), category, sentence, path))
    camera = Camera(f"{view_id}.png", np.eye(3), np.zeros(3), 30.0, 30.0, 16.0, 12.0, WIDTH, HEIGHT)
    return View(view_id, camera, tuple(referrals), image, (WIDTH, HEIGHT), None, ImageCache(1 << 20))


@pytest.fixture
def views(tmp_path):
    """Two views of one base name in two folders; the third sentence of the second one is not visible."""
    empty = np.zeros((HEIGHT, WIDTH), bool)
    return [
        make_view(tmp_path / "scene", "left/frame_1", [square(0, 0), square(8, 8)]),
        make_view(tmp_path / "scene", "right/frame_1", [square(4, 4), square(16, 0), empty]),
    ]


def put(folder: Path, view: View, number: int, mask: np.ndarray) -> None:
    write_image(folder / view.id / f"{view.referrals[number].sentence_id}.png", mask.astype(np.uint8) * 255)


@pytest.fixture
def pairs(tmp_path, views):
    """IoU 1, 1/3, 0 (missing), 0 (unreadable) and an empty truth of which 64 pixels are predicted."""
    masks = tmp_path / "model" / "test" / "iteration_5" / "masks"
    put(masks, views[0], 0, square(0, 0).repeat(2, axis=0).repeat(2, axis=1))
    put(masks, views[0], 1, square(12, 8))
    broken = masks / views[1].id / f"{views[1].referrals[1].sentence_id}.png"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"\x89PNG\r\n\x1a\n torn")
    put(masks, views[1], 2, square(0, 0))
    return evaluation.evaluate(views, masks)


def make_results(pairs) -> dict:
    facts = {"scene": "<desk> & chair", "protocol": "p", "iteration": 5, "threshold": 0.5, "git_revision": "abc"}
    return facts | {"seed": 0, "text_encoder": "embedded"} | evaluation.summarize_pairs(pairs)


def test_scores_of_missing_broken_resized_and_empty(pairs, views):
    assert [p.score.iou for p in pairs[:4]] == [1, pytest.approx(1 / 3), 0, 0]
    assert math.isnan(pairs[4].score.iou)
    result = evaluation.summarize_pairs(pairs)
    assert result["mIoU"] == pytest.approx(100 / 3)
    assert (result["acc@0.25"], result["acc@0.5"], result["pairs"]) == (50, 25, 4)
    names = [f"right/frame_1/{r.sentence_id}" for r in views[1].referrals[:2]]
    assert result["missing_predictions"] == names
    assert result["resized_predictions"] == [f"left/frame_1/{views[0].referrals[0].sentence_id}"]
    share = 100 * 64 / (WIDTH * HEIGHT)
    assert result["empty_ground_truth"] == {
        "pairs": 1,
        "with_foreground": 1,
        "false_positive_percent": pytest.approx(share),
    }
    assert set(result["per_category"]) == {"a b", "a_b"}
    json.dumps(result, allow_nan=False)


def test_csv_names_files_that_exist_and_gives_the_mean_again(tmp_path, pairs):
    model, scene = tmp_path / "model", tmp_path / "scene"
    evaluation.write_csv(model, pairs, scene)
    with open(model / "per_sentence.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["view", "sentence_id", "category", "sentence", "iou", "prediction", "ground_truth"]
    assert [(r["category"], r["sentence"]) for r in rows[:2]] == SENTENCES[:2]
    assert [r["prediction"] == "" for r in rows] == [False, False, True, True, False]
    assert all((model / r["prediction"]).is_file() for r in rows if r["prediction"])
    assert all((scene / r["ground_truth"]).is_file() for r in rows)
    values = [float(r["iou"]) for r in rows]
    assert 100 * np.nanmean(values) == pytest.approx(evaluation.summarize_pairs(pairs)["mIoU"], abs=1e-4)


def test_nothing_to_evaluate_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluation.evaluate([make_view(tmp_path, "a", [])], tmp_path)


@pytest.mark.parametrize(("count", "sizes"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (1, 1, 1))])
def test_extremes_of_few_pairs_name_none_twice(tmp_path, pairs, count, sizes):
    chosen = evaluation.find_extremes(pairs[:count])
    assert tuple(map(len, chosen.values())) == sizes
    shown = [id(p) for members in chosen.values() for p in members]
    assert len(shown) == len(set(shown))


def test_extremes_of_many_pairs_are_the_extremes(pairs):
    values = np.random.default_rng(3).permutation(51) / 50
    many = [evaluation.Pair(pairs[0].view, pairs[0].referral, Path(), Score(float(v))) for v in values]
    chosen = {name: [p.score.iou for p in members] for name, members in evaluation.find_extremes(many, 3).items()}
    assert chosen == {"Best": [1, 0.98, 0.96], "Median": [0.52, 0.5, 0.48], "Worst": [0, 0.02, 0.04]}


def test_table_lists_what_is_missing(pairs):
    text = evaluation.format_table(make_results(pairs))
    assert "all pairs      4    33.3      50.0     25.0" in text
    assert "missing predictions, which count as IoU 0: 2" in text
    assert "resized predictions, which had another size than their ground truth: 1" in text
    assert f"right/frame_1/{pairs[2].referral.sentence_id}" in text


class Page(HTMLParser):
    """Collects addresses and checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.text = [], [], ""

    def handle_startendtag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_report_is_one_well_formed_file_without_outside_addresses(tmp_path, pairs):
    model = tmp_path / "model"
    lines = [{"stage": "referring", "iteration": k, "seconds": 1.0, "loss": 1 / (1 + k)} for k in range(40)]
    (model / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "refer')
    evaluation.write_report(model, make_results(pairs), pairs)
    content = (model / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(content)
    assert page.open == []
    assert page.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "://" not in content
    assert "@import" not in content
    assert "url(" not in content
    assert "<script" not in content
    for text in ("<desk> & chair", "the first <b>thing</b>", "another one, & more", "referring stage", "33.3"):
        assert text in page.text
    assert "<polyline" in content
    sheet = cv2.imread(str(model / "contact_sheet.jpg"))
    assert sheet is not None
    assert sheet.shape[1] > 3 * 300


def test_report_without_log_and_without_means(pairs):
    empty = [pairs[4]]
    page = Page()
    page.feed(build_report(make_results(empty), empty, {"Best": []}, []))
    assert page.open == []
    assert "–" in page.text
    assert "Training" not in page.text
    page.feed(build_report(make_results(empty), [], {}, [Series("rgb", "loss", [(1, 0.5)])]))


class FakeGaussians:
    """One Gaussian a pixel of a WIDTH x HEIGHT picture."""

    def __init__(self):
        self.xyz = torch.arange(WIDTH * HEIGHT * 3, dtype=torch.float32).view(-1, 3)
        self.scaling = self.rotation = self.opacity = torch.zeros(WIDTH * HEIGHT, 1)

    @property
    def get_xyz(self):
        return self.xyz


class FakeField(torch.nn.Module):
    """The tokens of a sentence are [1, N]: the very scores that it has."""

    text_dim = WIDTH * HEIGHT

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.calls = 0

    def scores(self, xyz, tokens):
        self.calls += len(tokens)
        return torch.cat(tokens) * self.weight


class FakeRenderer:
    """Puts every Gaussian on its pixel; the right half of the picture is not covered."""

    def __init__(self, gaussians, max_bytes):
        self.plans = PlanCache(max_bytes)

    def render_scores(self, camera, scores, once):
        weights = torch.ones(camera.height, camera.width)
        weights[:, camera.width // 2 :] = 0
        return scores.T.reshape(-1, *weights.shape) * weights


@pytest.fixture
def predictor(monkeypatch):
    """Sentence k of SENTENCES has logit 3 in a square at (2 + k, 2) and -3 elsewhere, but logit 0 in the top row."""
    monkeypatch.setattr(predict, "ScoreRenderer", FakeRenderer)

    def encode(sentences):
        tokens = {}
        for sentence in sentences:
            place = 2 + [s for _, s in SENTENCES].index(sentence) if sentence in dict(map(reversed, SENTENCES)) else 9
            logits = np.where(square(place, 2), 3.0, -3.0)
            logits[0] = 0
            tokens[sentence] = torch.tensor(logits.reshape(1, -1), dtype=torch.float32)
        return tokens

    return Predictor(FakeGaussians(), FakeField(), encode, threshold=0.5, max_bytes=0)


def make_folder(tmp_path: Path, predictor: Predictor) -> PredictionFolder:
    return PredictionFolder(tmp_path / "model" / "test" / "iteration_5", predictor.origin("embedded"))


def test_every_pair_has_its_own_three_pictures(tmp_path, views, predictor):
    folder = make_folder(tmp_path, predictor)
    assert predictor.write(folder, scene_requests(views)) == 5
    assert predictor.field.calls == 3  # scores are computed once a sentence, not once a view
    files = sorted(path.relative_to(folder.root).as_posix() for path in folder.root.rglob("*.png"))
    expected = sorted(
        f"{kind}/{view.id}/{r.sentence_id}.png" for kind in predict.KINDS for view in views for r in view.referrals
    )
    assert files == expected
    for view in views:
        for number, referral in enumerate(view.referrals):
            stored = cv2.imread(str(folder.path("masks", view.id, referral.sentence_id)), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(stored, square(2 + number, 2).astype(np.uint8) * 255)
            heat = cv2.imread(str(folder.path("heat", view.id, referral.sentence_id)))
            assert heat.shape == (HEIGHT, WIDTH, 3)
            overlay = cv2.imread(str(folder.path("overlay", view.id, referral.sentence_id)))
            assert overlay.shape[0] > HEIGHT


def test_uncovered_pixels_are_background_at_any_threshold(views, predictor):
    probabilities = predictor.probabilities(views[0].camera, [SENTENCES[0][1]])[0]
    assert (probabilities[:, WIDTH // 2 :] == 0).all()  # a logit of 0 would be a probability of 0.5
    assert (probabilities[0, : WIDTH // 2] == 0.5).all()


def test_many_sentences_are_rendered_in_chunks_in_order(views, predictor):
    sentences = [s for _, s in SENTENCES] + [f"text {k}" for k in range(2 * predict.CHANNELS)]
    together = predictor.probabilities(views[0].camera, sentences)
    alone = [predictor.probabilities(views[0].camera, [s])[0] for s in sentences]
    assert torch.equal(together, torch.stack(alone))


def test_what_is_current_is_not_rendered_again(tmp_path, views, predictor):
    requests = scene_requests(views)
    predictor.write(make_folder(tmp_path, predictor), requests)
    again = make_folder(tmp_path, predictor)
    assert predictor.write(again, requests) == 0
    again.path("heat", views[0].id, views[0].referrals[1].sentence_id).unlink()
    assert predictor.write(again, requests) == 1
    assert predictor.write(again, requests, rerender=True) == 5


def test_another_threshold_model_encoder_or_camera_is_rendered_again(tmp_path, views, predictor):
    requests = scene_requests(views)

    def rendered() -> int:
        return predictor.write(make_folder(tmp_path, predictor), requests)

    assert (rendered(), rendered()) == (5, 0)
    predictor.threshold = 0.2
    assert (rendered(), rendered()) == (5, 0)
    predictor.field.weight.data += 1e-3
    assert (rendered(), rendered()) == (5, 0)
    predictor.gaussians.xyz = predictor.gaussians.xyz + 1
    assert (rendered(), rendered()) == (5, 0)
    other = PredictionFolder(tmp_path / "model" / "test" / "iteration_5", predictor.origin("another"))
    assert predictor.write(other, requests) == 5
    moved = [Request(make_view(tmp_path, v.id, []), r.sentences) for v, r in zip(views, requests, strict=True)]
    assert predictor.write(other, moved) == 0
    object.__setattr__(moved[0].view, "camera", replace(views[0].camera, cx=views[0].camera.cx - 1))
    assert predictor.write(other, moved) == 2


def test_an_interrupted_run_leaves_nothing_wrong_behind(tmp_path, views, predictor, monkeypatch):
    requests = scene_requests(views)
    predictor.write(make_folder(tmp_path, predictor), requests)
    predictor.threshold = 0.2

    def interrupted(path, image):
        if views[1].id in str(path):
            raise KeyboardInterrupt
        write_image(path, image)

    monkeypatch.setattr(predict, "write_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predictor.write(make_folder(tmp_path, predictor), requests)
    monkeypatch.undo()
    assert predictor.write(make_folder(tmp_path, predictor), requests) == 3
    predictor.threshold = 0.5  # pictures of the first threshold are gone, at least in part
    assert predictor.write(make_folder(tmp_path, predictor), requests) == 5


@pytest.mark.parametrize("content", ["", "[]", "{", '{"views": 3}', '{"views": {"a": 1}}', "\0\0", "{origin}"])
def test_a_damaged_manifest_means_that_nothing_is_current(tmp_path, views, predictor, content):
    requests = scene_requests(views)
    folder = make_folder(tmp_path, predictor)
    predictor.write(folder, requests)
    damaged = {**folder.origin, "views": {views[0].id: {"camera": "1", "sentences": []}}}
    (folder.root / "manifest.json").write_text(content.replace("{origin}", json.dumps(damaged)))
    assert predictor.write(make_folder(tmp_path, predictor), requests) == 5


def test_ids_of_texts_differ_from_those_of_any_scene(views):
    texts = ["the red mug", "The red mug!", "кружка", "杯子", "the  red mug", "../../etc"]
    ids = render.text_sentences(texts)
    assert len(ids) == 5  # white space does not count
    assert all(key.startswith("text-") and "/" not in key and key.isascii() for key in ids)
    assert sentence_id("text", "the red mug") not in ids
    requests = render.make_requests(views, texts)
    assert [r.view for r in requests] == views
    assert all(r.sentences == ids for r in requests)
    assert [list(r.sentences.values()) for r in render.make_requests(views, [])] == [
        [s for _, s in SENTENCES[:2]],
        [s for _, s in SENTENCES],
    ]
    with pytest.raises(UserError, match="empty sentence"):
        render.text_sentences(["fine", "  "])


def test_a_threshold_that_is_no_probability_is_a_user_error(monkeypatch):
    monkeypatch.setattr(predict, "ScoreRenderer", FakeRenderer)
    with pytest.raises(UserError, match="threshold"):
        Predictor(FakeGaussians(), FakeField(), dict, threshold=50, max_bytes=0)
