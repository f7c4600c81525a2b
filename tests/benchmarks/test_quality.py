"""benchmarks/quality.py on a small scene: curves of all runs, and a run that fails is named."""

from __future__ import annotations

import json

from benchmarks import quality
from scene.model_folder import point_cloud_path
from tests.rigs.small_run import call


def test_the_curve_of_every_run_is_read(scene, model, tmp_path):
    file = tmp_path / "quality.json"
    flags = ["-s", scene, "--start", point_cloud_path(model, 40), "--device", "cpu", "--json", file]
    flags += ["--seeds", 0, "--iterations", 3, "--test_interval", 2, "--", "--contrastive", "none"]
    assert call(quality, *flags) == 0
    report = json.loads(file.read_text())
    assert [run["sentences_per_step"] for run in report["runs"]] == ["1", "all"]
    for run in report["runs"]:
        assert run["note"] == ""
        assert [point["iteration"] for point in run["curve"]] == [2, 3]
        assert 0 < run["curve"][0]["seconds"] < run["curve"][1]["seconds"] < run["wall_seconds"]
    assert report["flags"].endswith("--contrastive none")


def test_a_run_that_fails_is_named_with_the_reason(scene, tmp_path, capsys):
    (tmp_path / "start.ply").write_text("no ply")
    flags = ["-s", scene, "--start", tmp_path / "start.ply", "--device", "cpu", "--seeds", 0]
    assert call(quality, *flags, "--iterations", 1, "--sentences_per_step", "all") == 0
    assert "- all, seed 0: train.py ended with 2: error:" in capsys.readouterr().out
