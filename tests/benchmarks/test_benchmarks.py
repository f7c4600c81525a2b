"""The benchmark's scene loader and its report; nothing here is timed."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from benchmarks.gpu_report import markdown, table
from benchmarks.gpu_timing import reason
from benchmarks.workload import SceneGenerator
from tests.rigs.paths import ROOT
from utils.errors import UserError

GENERATOR = """
import torch

def make_scene(n, seed=0, device="cuda"):
    shapes = ((n, 3), (n, 3), (n, 4), (n, 1), (n, 16, 3))
    return [torch.zeros(s, device=device) for s in shapes]

class Cam:
    image_width, image_height, fx = 64, 48, 50.0
    W2C = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])

def make_cam(device="cuda"):
    return Cam()
"""


def test_workload_of_a_generator_is_activated_and_has_its_camera(tmp_path):
    path = tmp_path / "generator.py"
    path.write_text(GENERATOR)
    work = SceneGenerator(path).workload(5, torch.device("cpu"))
    assert (work.scales == 1).all()  # exp(0)
    assert (work.opacities == 0.5).all()  # sigmoid(0)
    settings = work.settings()
    assert (settings.image_width, settings.image_height) == (64, 48)
    assert settings.tanfovx == pytest.approx(64 / 100)
    centre = torch.tensor([0.0, 0.0, 0.0, 1.0]) @ settings.viewmatrix
    assert centre.tolist() == [1, 2, 3, 1]


@pytest.mark.parametrize("text", [None, "make_scene = None\n"], ids=["absent", "without make_cam"])
def test_generator_that_cannot_be_used_is_named(tmp_path, text):
    path = tmp_path / "generator.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="make_cam") as caught:
        SceneGenerator(path)
    assert str(path) in str(caught.value)


def test_generator_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SCENE_GEN", str(tmp_path / "elsewhere.py"))
    with pytest.raises(UserError, match="elsewhere.py.*--scene_gen"):
        SceneGenerator(None)


def timing(case: str, who: str, ms: float, peak: int, channels: int = 1) -> dict:
    times = {"ms": ms, "quartiles_ms": [ms, ms], "single_ms": 2 * ms}
    return {"case": case, "who": who, "n": 1000, "channels": channels, "peak_bytes": peak, "note": "", **times}


def made_up_report(*timings: dict, missing: str | None = None) -> dict:
    return {
        "machine": "a GPU",
        "git_revision": "abc",
        "gsplat": None if missing else "1.5.3",
        "gsplat_missing": missing,
        "sizes": [1000],
        "repeats": 3,
        "picture": [64, 48],
        "copy_bytes_per_second": 1e12,
        "timings": list(timings),
        "plans": [
            {
                "n": 1000,
                "nbytes": 2**20,
                "allocated_bytes": 2**21,
                "contributing_gaussians": 900,
                "floor_bytes": {"1": 10**9},
            }
        ],
        "agreement": [],
        "knn": [{"n": 1000, "ms": 1.0}, {"n": 5000, "note": "RuntimeError: too large"}],
    }


def row(text: str, *cells: str) -> list[str]:
    """Cells of the one row that starts with `cells`."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    (found,) = [r for r in rows if tuple(r[: len(cells)]) == cells]
    return found


def test_report_judges_times_and_memory_by_the_targets():
    text = markdown(
        made_up_report(
            timing("scores forward", "ours", ms=0.8, peak=60),
            timing("scores forward", "ours, plan", ms=0.3, peak=80),
            timing("scores forward", "gsplat", ms=1.0, peak=100),
        )
    )
    without = row(text, "scores forward", "1", "ours", "gsplat")
    assert (without[6], without[10]) == ("0.80x, misses 0.7", "0.60x, meets 0.7")
    with_plan = row(text, "scores forward", "1", "ours, plan", "gsplat")
    assert (with_plan[6], with_plan[10]) == ("0.30x, meets 0.35", "0.80x, misses 0.7")
    assert row(text, "1,000", "1")[3:] == ["1.000", "0.300", "0.3x"]  # 1 GB at 1 TB/s takes 1 ms


def test_report_without_gsplat_has_our_times_and_says_why():
    text = markdown(made_up_report(timing("scores forward", "ours", ms=0.8, peak=60), missing="no module"))
    assert "gsplat not possible here: no module" in text
    assert row(text, "scores forward", "1", "ours", "gsplat")[4:7] == ["0.800", "-", "-"]
    assert row(text, "5,000")[-1] == "RuntimeError: too large"


def test_table_lines_up():
    assert table(("a", "long head"), [("wide cell", "1")]) == [
        "| a         | long head |",
        "|-----------|-----------|",
        "| wide cell | 1         |",
    ]


def test_reason_names_what_a_failure_came_from():
    error = ImportError("no such\n file")
    error.__context__ = RuntimeError("nvcc failed")
    assert reason(error) == "ImportError: no such file (after RuntimeError: nvcc failed)"
    assert reason(ValueError()) == "ValueError"


def test_json_is_refused_on_the_cpu(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "rasterizer.py"), "--json", str(tmp_path / "out.json")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 2
    assert "--json" in run.stderr
