"""eval.py --rgb: the scores of the training curve, over the background that the model was trained on, without views
that are ignored as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import eval as eval_script
import train as train_script
from scene.layouts.ref_lerf import load
from tests.rigs.small_run import call

ITERATIONS = 20
RUN = ["--device", "cpu", "--iterations", "0", "--rgb_iterations", ITERATIONS, "--sh_degree", "0"]


def last_line(folder: Path) -> dict:
    """The scores of the test views that training wrote last."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return next(line for line in reversed(lines) if "test_psnr" in line)


def make_transparent(scene: Path) -> None:
    """Give every photo an alpha that falls from left to right."""
    for path in (scene / "images").iterdir():
        bgr = cv2.imread(str(path))
        alpha = np.tile(np.linspace(255, 0, bgr.shape[1]).astype(np.uint8), (bgr.shape[0], 1))
        path.unlink()
        assert cv2.imwrite(str(path.with_suffix(".png")), np.dstack([bgr, alpha]))


@pytest.mark.parametrize("flags", [[], ["-w"]])
def test_scores_of_transparent_photos_are_those_of_training(copied_scene: Path, tmp_path: Path, flags: list) -> None:
    make_transparent(copied_scene)
    folder = tmp_path / "m"
    assert call(train_script, "-s", copied_scene, "-m", folder, *RUN, *flags) == 0
    assert call(eval_script, "-m", folder, "--device", "cpu", "--rgb") == 0
    results = json.loads((folder / "rgb_results.json").read_text())
    expected = last_line(folder)
    assert results["psnr"] == pytest.approx(expected["test_psnr"], abs=1e-4)
    assert results["ssim"] == pytest.approx(expected["test_ssim"], abs=1e-5)


def test_a_random_background_is_refused_with_transparent_photos(
    copied_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ["-s", copied_scene, "-m", tmp_path / "m", *RUN, "--random_background"]
    make_transparent(copied_scene)
    assert call(train_script, *flags) == 2
    errors = capsys.readouterr().err
    assert "--random_background" in errors
    assert "is transparent" in errors
    assert not (tmp_path / "m/point_cloud").exists()


def test_views_that_are_ignored_as_a_whole_stay_out_of_the_means(
    copied_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    test_views = load(copied_scene).test
    masks = copied_scene / "ignored"
    masks.mkdir()
    white, half = np.full((60, 80), 255, np.uint8), np.zeros((60, 80), np.uint8)
    half[:, :40] = 255
    for view, mask in zip(test_views, (white, half), strict=True):
        assert cv2.imwrite(str(masks / f"{view.id}.png"), mask)
    folder = tmp_path / "m"
    assert call(train_script, "-s", copied_scene, "-m", folder, *RUN, "--ignore_mask_dir", "ignored") == 0
    assert call(eval_script, "-m", folder, "--device", "cpu", "--rgb") == 0
    text = (folder / "rgb_results.json").read_text()
    assert "Infinity" not in text
    results = json.loads(text)
    gone, kept = (view.id for view in test_views)
    assert results["views"][gone] is None
    assert results["ignored_views"] == [gone]
    assert results["psnr"] == results["views"][kept]["psnr"] == pytest.approx(last_line(folder)["test_psnr"], abs=1e-4)
    assert "ignored" in results["protocol"]
    assert f"out of the means: {gone}" in capsys.readouterr().out
    assert cv2.imwrite(str(masks / f"{kept}.png"), white)
    assert call(eval_script, "-m", folder, "--device", "cpu", "--rgb") == 2
    assert "--ignore_mask_dir" in capsys.readouterr().err
