"""benchmarks/rgb.py on a small scene: its numbers are those of the runs, and a run that fails leaves the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.rgb import read_log
from tests.rigs.small_run import ROOT


def benchmark(scene: Path, folder: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/rgb.py", "-s", scene, "--device", "cpu", "--models", folder, *flags]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_numbers_are_those_of_the_runs(scene: Path, tmp_path: Path) -> None:
    steps = ["--mcmc_iterations", 40, "--adc_iterations", 20, "--cap_max", 9200]
    done = benchmark(scene, tmp_path, *steps, "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    for entry, (kind, count) in zip(report["runs"], (("mcmc", 40), ("adc", 20)), strict=True):
        assert (entry["run"], entry["steps"], entry["note"]) == (kind, count, "")
        results = json.loads((tmp_path / kind / "rgb_results.json").read_text())
        assert entry["psnr"] == results["psnr"] == pytest.approx(entry["curve"][-1]["test_psnr"], abs=1e-3)
        assert [point["iteration"] for point in entry["curve"]] == [count * k // 4 for k in range(1, 5)]
        assert f"{results['gaussians']:,}" in done.stdout
        assert f"{results['psnr']:.2f}" in done.stdout
        assert entry["wall_seconds"] > entry["seconds"] > 0


def test_a_run_that_fails_is_told(scene: Path, tmp_path: Path) -> None:
    done = benchmark(scene, tmp_path, "--runs", "adc", "--adc_iterations", 2, "--", "--ignore_mask_dir", "nowhere")
    assert done.returncode == 0
    assert "adc: train.py ended with 2" in done.stdout
    assert "nowhere is not a folder" in done.stdout


def test_the_last_steps_are_timed(tmp_path: Path) -> None:
    lines = [{"iteration": i, "seconds": i * (0.01 if i <= 950 else 0.02), "loss": 1.0} for i in range(50, 1001, 50)]
    lines.append({"iteration": 1000, "seconds": 20.0, "test_psnr": 30.0, "test_ssim": 0.9})
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = read_log(tmp_path / "log.jsonl", 1000)
    assert found["last_step_ms"] == pytest.approx(1e3 * (20 - 9.5) / 50)
    assert found["curve"] == [{"iteration": 1000, "seconds": 20.0, "test_psnr": 30.0, "test_ssim": 0.9}]
