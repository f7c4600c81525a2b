"""pseudo_mask.py as a user runs it, offline, with tiny random models from folders."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import pseudo_mask
import train as train_script
from pseudo_masks.candidates import choose_candidate
from pseudo_masks.detector import Detector
from pseudo_masks.grounded_sam import GroundedSam
from pseudo_masks.segmenter import Segmenter
from scene.layouts.ref_lerf import load
from scene.readers.image_files import read_image, read_mask
from tests.rigs.small_run import call, hashes
from tests.rigs.tiny_models import write_detector, write_sam, write_sam2
from tests.rigs.tiny_scene import (
    HEIGHT,
    WIDTH,
    entry,
    frame,
    write_json,
    write_mask,
    write_referring_scene,
    write_scene,
)

WORDS = ["the", "cup", "red", "a", "new", "one", "box", "blue", "on", "table", "."]
OBJECTS = [
    {"category": "red cup", "sentence": ["the red cup", "a cup on the table"]},
    {"category": "blue box", "sentence": ["the blue box"]},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for tiny models, whose masks cover about half of a photo."""
    root = tmp_path_factory.mktemp("models")
    flags = ["--detector", write_detector(root / "dino", WORDS), "--segmenter", write_sam(root / "sam")]
    return [str(flag) for flag in flags] + ["--max_area", "1", "--device", "cpu"]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Four training views and a test view of one cup with two sentences; only the test view has its mask."""
    folder = write_referring_scene(tmp_path / "desk", train=range(1, 5), test=[5])
    for number in range(1, 5):
        shutil.rmtree(folder / f"gt_mask/{frame(number)}")
    return folder


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the targets that the models were run for."""
    names: list[str] = []
    original = GroundedSam.make_masks

    def noted(self: GroundedSam, photo: np.ndarray, targets: list) -> list:
        names.extend(target.name for target in targets)
        return original(self, photo, targets)

    monkeypatch.setattr(GroundedSam, "make_masks", noted)
    return names


def mask_path(scene: Path, number: int, category: str = "red cup") -> Path:
    return scene / f"gt_mask/{frame(number)}/{category}.png"


def read_sidecar(scene: Path, number: int, category: str = "red cup") -> dict:
    return json.loads(mask_path(scene, number, category).with_suffix(".json").read_text())


def test_masks_sidecars_and_sheet(desk: Path, models: list[str], requested: list[str]) -> None:
    before = hashes(desk / "gt_mask")
    assert call(pseudo_mask, "-s", desk, *models) == 0
    assert requested == [f"{frame(number)} (red cup)" for number in range(1, 5)]
    assert {k: v for k, v in hashes(desk / "gt_mask").items() if k in before} == before, "test masks are ground truth"
    detector, segmenter = Detector(models[1], torch.device("cpu")), Segmenter(models[3], torch.device("cpu"))
    for number in range(1, 5):
        values = cv2.imread(str(mask_path(desk, number)), cv2.IMREAD_UNCHANGED)
        assert values.shape == (HEIGHT, WIDTH)
        assert set(np.unique(values)) == {0, 255}
        sidecar = read_sidecar(desk, number)
        assert (sidecar["category"], sidecar["sentences"]) == ("red cup", ["the cup", "red"])
        assert (sidecar["size"], sidecar["selection"], sidecar["max_area"]) == ([WIDTH, HEIGHT], "eq5", 1.0)
        assert sidecar["mask_sha256"] == hashlib.sha256(mask_path(desk, number).read_bytes()).hexdigest()
        candidates = sidecar["candidates"]
        assert {candidate["sentence"] for candidate in candidates} == {0, 1}, "of all sentences"
        assert all(candidate["confidence"] > 0.3 for candidate in candidates)
        # The mask is the winner's, made again from its box by the models themselves.
        photo = read_image(desk / f"images/{frame(number)}.png")
        found = detector.detect(photo, sidecar["sentences"], 0.3, 0.25, 50, 1)
        boxes = torch.cat([each.boxes for each in found])
        masks = segmenter.masks(segmenter.embed(photo), boxes)
        chosen = choose_candidate(masks, torch.cat([each.confidences for each in found]))
        assert sidecar["winner"] == chosen.winner
        assert sidecar["score"] == pytest.approx(chosen.scores[chosen.winner], abs=1e-4)
        np.testing.assert_allclose([c["box"] for c in candidates], boxes, atol=0.02)
        assert np.array_equal(values > 0, masks[chosen.winner].numpy())
    sheet = read_image(desk / "gt_mask_sheets/red_cup.jpg")
    assert sheet.shape[1] > 4 * 480, "four views in a row"
    loaded = load(desk)
    assert sum(len(view.referrals) for view in loaded.train) == 8


def test_second_run_does_nothing_and_a_lost_mask_is_made_again(
    desk: Path, models: list[str], requested: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(pseudo_mask, "-s", desk, *models) == 0
    done = hashes(desk / "gt_mask")
    requested.clear()
    with monkeypatch.context() as patched:  # not even the models are loaded
        patched.setattr(GroundedSam, "__init__", lambda *_: pytest.fail("models are not needed"))
        assert call(pseudo_mask, "-s", desk, *models) == 0
    assert hashes(desk / "gt_mask") == done
    forget(desk, 3)
    assert call(pseudo_mask, "-s", desk, *models) == 0
    assert requested == [f"{frame(3)} (red cup)"]
    assert hashes(desk / "gt_mask") == done


def forget(scene: Path, number: int, category: str = "red cup") -> None:
    """Delete both files of a target."""
    mask_path(scene, number, category).unlink()
    mask_path(scene, number, category).with_suffix(".json").unlink()


def test_a_deleted_mask_is_not_made_again(
    desk: Path, models: list[str], requested: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(pseudo_mask, "-s", desk, *models) == 0
    mask_path(desk, 3).unlink()
    requested.clear()
    for redo in ("none", "empty"):
        assert call(pseudo_mask, "-s", desk, *models, "--redo", redo) == 0
    assert requested == []
    assert call(pseudo_mask, "-s", desk, *models, "--redo", "all") == 0
    assert requested == [f"{frame(number)} (red cup)" for number in (1, 2, 4)]
    assert call(pseudo_mask, "-s", desk, "--check") == 1
    assert f"{frame(3)} (red cup): the mask was deleted" in capsys.readouterr().out


def test_interrupted_run_keeps_finished_views(
    desk: Path, models: list[str], requested: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        noted = GroundedSam.make_masks

        def interrupted(self: GroundedSam, photo: np.ndarray, targets: list) -> list:
            if targets[0].frame == frame(3):
                raise KeyboardInterrupt
            return noted(self, photo, targets)

        patched.setattr(GroundedSam, "make_masks", interrupted)
        assert call(pseudo_mask, "-s", desk, *models) == 130
    assert [mask_path(desk, number).is_file() for number in range(1, 5)] == [True, True, False, False]
    requested.clear()
    assert call(pseudo_mask, "-s", desk, *models) == 0
    assert requested == [f"{frame(3)} (red cup)", f"{frame(4)} (red cup)"]


def test_one_bad_photo_does_not_stop_the_rest(
    desk: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bad = desk / f"images/{frame(2)}.png"
    good = bad.read_bytes()
    bad.write_bytes(b"no picture")
    assert call(pseudo_mask, "-s", desk, *models) == 2
    assert f"1 of 4 views failed, the others are done: {bad}" in capsys.readouterr().err
    assert [mask_path(desk, number).is_file() for number in range(1, 5)] == [True, False, True, True]
    bad.write_bytes(good)
    assert call(pseudo_mask, "-s", desk, *models) == 0
    assert mask_path(desk, 2).is_file()


def test_nothing_found(desk: Path, models: list[str], requested: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(pseudo_mask, "-s", desk, *models, "--box_threshold", "1") == 0
    assert (read_sidecar(desk, 1)["winner"], read_sidecar(desk, 1)["candidates"]) == (None, [])
    assert not mask_path(desk, 1).exists()
    assert "without a mask: 4" in capsys.readouterr().err
    requested.clear()
    assert call(pseudo_mask, "-s", desk, *models) == 0, "finished, too"
    assert requested == []
    assert call(pseudo_mask, "-s", desk, *models, "--redo", "empty") == 0
    assert len(requested) == 4
    assert mask_path(desk, 1).is_file()


def test_candidates_that_are_too_large(desk: Path, models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(pseudo_mask, "-s", desk, *models, "--max_area", "0.0001") == 0
    assert read_sidecar(desk, 1)["winner"] is None
    assert all(candidate["score"] is None for candidate in read_sidecar(desk, 1)["candidates"])
    assert call(pseudo_mask, "-s", desk, "--check") == 1
    count = len(read_sidecar(desk, 1)["candidates"])
    assert (
        f"{frame(1)} (red cup): all {count} candidates are empty or larger than --max_area" in capsys.readouterr().out
    )


def test_corrected_masks_stay(desk: Path, models: list[str], requested: list[str]) -> None:
    """--redo all replaces what the script wrote, and neither a mask drawn over it nor one that was there before."""
    write_mask(mask_path(desk, 1), left=2)
    assert call(pseudo_mask, "-s", desk, *models) == 0
    write_mask(mask_path(desk, 2), left=2)
    corrected = hashes(desk / "gt_mask")
    requested.clear()
    assert call(pseudo_mask, "-s", desk, *models, "--redo", "all", "--selection", "top1") == 0
    assert requested == [f"{frame(number)} (red cup)" for number in (3, 4)]
    after = hashes(desk / "gt_mask")
    assert all(after[str(mask_path(desk, number))] == corrected[str(mask_path(desk, number))] for number in (1, 2))
    sidecar = read_sidecar(desk, 3)
    assert sidecar["selection"] == "top1"
    assert sidecar["score"] == max(candidate["confidence"] for candidate in sidecar["candidates"])


def test_sentences_for_a_new_scene(tmp_path: Path, models: list[str], requested: list[str]) -> None:
    """Annotations are made for the training views in which an object has a mask; every 8th view is held out."""
    desk = write_scene(tmp_path / "desk", [f"{frame(number)}.png" for number in range(1, 10)])
    list_file = tmp_path / "objects.json"
    list_file.write_text(json.dumps({"object": OBJECTS}))
    write_mask(mask_path(desk, 3), left=2)  # somebody's own
    flags = ["-s", desk, "--sentences", list_file, *models]
    assert call(pseudo_mask, *flags) == 0
    assert {name.split()[0] for name in requested} == {frame(number) for number in range(2, 9)}, "not 1 and 9"
    assert sorted(path.stem for path in (desk / "json/train_json").iterdir()) == [frame(n) for n in range(2, 9)]
    written = json.loads((desk / f"json/train_json/{frame(3)}.json").read_text())["object"]
    assert written == [entry(frame(3), o["category"], o["sentence"]) for o in OBJECTS]
    loaded = load(desk)
    assert [view.id for view in loaded.test] == [frame(1), frame(9)]
    assert sum(len(view.referrals) for view in loaded.train) == 7 * 3

    forget(desk, 4, "blue box")  # an object that is gone leaves the annotation, and comes back
    (desk / f"json/train_json/{frame(5)}.json").unlink()  # as if a run had ended before it was written
    requested.clear()
    assert call(pseudo_mask, *flags, "--box_threshold", "1") == 0
    assert requested == [f"{frame(4)} (blue box)"]
    assert json.loads((desk / f"json/train_json/{frame(4)}.json").read_text())["object"] == written_for(4, OBJECTS[:1])
    assert json.loads((desk / f"json/train_json/{frame(5)}.json").read_text())["object"] == written_for(5, OBJECTS)
    assert call(pseudo_mask, *flags, "--redo", "empty") == 0
    assert json.loads((desk / f"json/train_json/{frame(4)}.json").read_text())["object"] == written_for(4, OBJECTS)


def written_for(number: int, objects: list[dict]) -> list[dict]:
    return [entry(frame(number), item["category"], item["sentence"]) for item in objects]


def test_more_objects_join_the_annotations(tmp_path: Path, models: list[str]) -> None:
    desk = write_referring_scene(tmp_path / "desk", train=[1, 2])
    (tmp_path / "objects.json").write_text(json.dumps({"object": OBJECTS[1:]}))
    assert call(pseudo_mask, "-s", desk, "--sentences", tmp_path / "objects.json", *models) == 0
    written = json.loads((desk / f"json/train_json/{frame(1)}.json").read_text())["object"]
    assert written == [entry(frame(1), sentences=["the cup", "red"]), *written_for(1, OBJECTS[1:])]


def test_annotations_stay_until_there_are_masks(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run without a model keeps all sentences."""
    before = hashes(desk / "json")
    (tmp_path / "objects.json").write_text(json.dumps({"object": OBJECTS}))
    flags = ["--sentences", tmp_path / "objects.json", "--mask_dir", "other", "--device", "cpu"]
    assert call(pseudo_mask, "-s", desk, *flags, "--detector", tmp_path) == 2
    assert "model configuration" in capsys.readouterr().err
    assert hashes(desk / "json") == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"object": []}, "names no object"),
        ({"red cup": ["the cup"]}, "no list under the key 'object'"),
        ({"object": [{"category": "../cup", "sentence": ["x"]}]}, "leads out of its folder"),
        ({"object": [{"category": "cup", "sentence": [" "]}]}, "has no sentence"),
        ({"object": [*OBJECTS, {"category": "Red cup", "sentence": ["x"]}]}, "appears twice"),
    ],
)
def test_bad_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict, message: str) -> None:
    desk = write_scene(tmp_path / "desk", [f"{frame(1)}.png"])
    (tmp_path / "objects.json").write_text(json.dumps(content))
    assert call(pseudo_mask, "-s", desk, "--sentences", tmp_path / "objects.json") == 2
    assert message in capsys.readouterr().err


def test_wrong_use(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*flags: object) -> str:
        assert call(pseudo_mask, *flags) == 2
        return capsys.readouterr().err

    assert "-s is missing" in error()
    assert "--check only looks" in error("-s", desk, "--check", "--sentences", "x.json")
    assert "does not exist" in error("-s", desk, "--sentences", tmp_path / "none.json")
    bare = write_scene(tmp_path / "bare", [f"{frame(1)}.png"])
    assert "--sentences FILE" in error("-s", bare)
    write_json(bare / f"json/{frame(1)}.json", entry(frame(1)))
    (tmp_path / "objects.json").write_text(json.dumps({"object": OBJECTS}))
    assert "Leave --sentences away" in error("-s", bare, "--sentences", tmp_path / "objects.json")


def test_train_on_the_masks(copied_scene: Path, tmp_path: Path, models: list[str]) -> None:
    """SAM 2, another mask folder, and a training that takes its masks from there."""
    segmenter = write_sam2(tmp_path / "sam2")
    flags = [*models, "--segmenter", segmenter, "--mask_dir", "pseudo"]
    assert call(pseudo_mask, "-s", copied_scene, *flags) == 0
    made = list((copied_scene / "pseudo").glob("*/*.png"))
    loaded = load(copied_scene, mask_dir="pseudo")
    used = {referral.mask_path for view in loaded.train for referral in view.referrals}
    assert used == set(made)
    assert len(used) > 20
    assert all(read_mask(path).any() for path in made)
    steps = ["--text_encoder", "embedded", "--device", "cpu", "--rgb_iterations", "2", "--iterations", "2"]
    assert call(train_script, "-s", copied_scene, "-m", tmp_path / "model", "--mask_dir", "pseudo", *steps) == 0
    assert (tmp_path / "model/referring/iteration_2.safetensors").is_file()
