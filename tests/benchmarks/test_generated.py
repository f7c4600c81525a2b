"""The benchmarks on generated Gaussians, rasterizer.py and referring.py: what they run and what they print."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import rasterizer, referring
from benchmarks.measure import markdown_table, reason
from benchmarks.referring import FIRST, KEPT_VIEW, LATE_TAU, NEW_VIEW, ON_CPU, STEP, STEP_ALL, Queries
from benchmarks.workload import VIEWS, ReferringWorkload, SceneGenerator, outline
from inference.predict import Predictor
from inference.trained_model import load_trained
from scene.cameras import Camera
from tests.rigs.small_run import call
from utils.errors import UserError

GENERATOR = """
import math
import torch

def make_scene(n, seed=0, device="cuda"):
    if n > 1000:
        raise MemoryError("too many")
    g = torch.Generator().manual_seed(seed)
    tensors = torch.randn(n, 3, generator=g), torch.full((n, 3), -2.0), torch.randn(n, 4, generator=g)
    return [t.to(device) for t in (*tensors, torch.zeros(n, 1), torch.randn(n, 16, 3, generator=g))]

class Cam:
    image_width, image_height, fx = 48, 32, 40.0

def make_cam(theta=0.3, device="cuda"):
    cam = Cam()
    cam.W2C = torch.eye(4)
    cam.W2C[0, 0] = cam.W2C[2, 2] = math.cos(theta)
    cam.W2C[0, 2], cam.W2C[2, 0] = math.sin(theta), -math.sin(theta)
    cam.W2C[2, 3] = 4.0
    return cam
"""


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generator") / "generator.py"
    path.write_text(GENERATOR)
    return path


def flags_of(generator: Path, *more: object) -> list[object]:
    return ["--scene_gen", generator, "--repeats", 2, *more]


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


def test_views_of_the_orbit_stand_evenly_around_the_middle(generator):
    cameras = ReferringWorkload(SceneGenerator(generator), 200).cameras
    centres = np.stack([camera.center for camera in cameras])
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 4, rtol=1e-6)
    np.testing.assert_allclose(centres.sum(axis=0), 0, atol=1e-5)
    assert len({camera.name for camera in cameras}) == VIEWS == 8


def test_every_view_has_the_sentences_and_outlines_of_the_objects(generator):
    work = ReferringWorkload(SceneGenerator(generator), 200)
    assert len(work.scene.train) == VIEWS
    for view in work.scene.train:
        assert len({r.sentence for r in view.referrals}) == 20
        assert len({r.category for r in view.referrals}) == len({r.mask_path for r in view.referrals}) == 5
        assert all(view.mask(r).shape == (32, 48) and view.mask(r).any() for r in view.referrals)
    assert {tuple(tokens.shape) for tokens in work.tokens.values()} == {(16, 1024)}


def test_outline_of_a_ball_ahead_is_a_disc():
    camera = Camera("c", np.eye(3), np.zeros(3), fx=100, fy=100, cx=60, cy=50, width=120, height=100)
    mask = outline(camera, np.array([0.0, 0, 2]), 0.5)
    radius = 100 * 0.5 / math.sqrt(2**2 - 0.5**2)  # of the cone that touches the ball
    assert mask.sum() == pytest.approx(math.pi * radius**2, rel=0.01)
    assert mask[50, 60]
    rows, columns = np.nonzero(mask)
    assert (rows.mean(), columns.mean()) == (49.5, 59.5)  # numbers of the pixels around the principal point
    assert not outline(camera, np.array([0.0, 0, -2]), 0.5).any()


def test_masks_of_queries_are_those_of_render_and_views_are_new(model):
    trained = load_trained(model)
    cameras = [Camera(f"{x}", np.eye(3), np.array([x, 0.0, 6.0]), 60, 60, 40, 30, 80, 60) for x in (-0.2, 0.0, 0.2)]
    tokens = list(torch.randn(2, 4, trained.field.text_dim))
    new, kept = (Queries(trained.gaussians, trained.field, tokens, cameras, keep) for keep in (False, True))
    predictor = Predictor(trained.gaussians, trained.field, lambda _: {"s": tokens[0]}, threshold=0.5, max_bytes=0)
    expected = [predictor.probabilities(camera, ["s"])[0] > 0.5 for camera in cameras]
    for queries in (new, kept):
        found = [queries.first_mask(), queries.further_view(), queries.further_view()]
        assert torch.equal(torch.stack(found), torch.stack(expected))
    assert new.renderer.plans.hits == 0
    assert kept.renderer.plans.misses == len(cameras)


def test_referring_measures_every_case_and_notes_a_size_that_fails(generator, tmp_path, capsys):
    file = tmp_path / "report.json"
    assert call(referring, *flags_of(generator, "--sizes", 200, 5000, "--device", "cpu", "--json", file)) == 0
    report = json.loads(file.read_text())
    assert report["notes"] == ["5,000 Gaussians: MemoryError: too many"]
    cases = [STEP, STEP + LATE_TAU, STEP_ALL, STEP_ALL + LATE_TAU, FIRST, NEW_VIEW, KEPT_VIEW, ON_CPU]
    assert [t["case"] for t in report["timings"]] == cases
    assert all(t["ms"] > 0 and t["who"] == "ours" and not t["note"] for t in report["timings"])
    printed = capsys.readouterr().out
    assert printed.startswith(report["machine"])
    assert "- 5,000 Gaussians: MemoryError: too many" in printed


@pytest.mark.gpu
def test_referring_on_a_gpu_compares_with_plain_pytorch(generator, tmp_path):
    file = tmp_path / "report.json"
    assert call(referring, *flags_of(generator, "--sizes", 900, "--device", "cuda", "--json", file)) == 0
    report = json.loads(file.read_text())
    assert report["notes"] == []
    assert {(t["case"], t["who"]) for t in report["timings"] if t["ms"]} > {(STEP, "ours"), (STEP, "plain PyTorch")}
    assert {(m["case"], m["who"]) for m in report["memory"]} > {(STEP, "ours"), (STEP_ALL, "plain PyTorch")}


def timing(case: str, who: str, ms: float, channels: int = 1, peak: int | None = None) -> dict:
    times = {"ms": ms, "quartiles_ms": [ms, ms], "single_ms": 2 * ms, "peak_bytes": peak, "note": ""}
    return {"case": case, "who": who, "n": 300_000, "channels": channels, **times}


def made_up_report(*timings: dict, **more: object) -> dict:
    facts = {"machine": "a GPU", "git_revision": "abc", "sizes": [300_000], "repeats": 3, "picture": [986, 728]}
    return {**facts, "timings": list(timings), "notes": ["one"], **more}


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_referring_report_divides_by_sentences_and_sets_plain_pytorch_beside_ours():
    report = made_up_report(
        timing(STEP, "ours", 2.0),
        timing(STEP, "plain PyTorch", 10.0),
        timing(STEP_ALL, "ours", 6.0, channels=20),
        memory=[{"case": STEP, "who": "ours", "n": 300_000, "peak": 500_000_000}],
        precision="fp32",
    )
    text = referring.markdown(report)
    rows = {row[0]: row[1:] for row in cells(text)}
    assert rows[STEP] == ["2.000", "2.000 to 2.000", "4.000", "10.0", "5.00x", "0.50", "-"]
    assert rows[f"{STEP_ALL}, for each"][0] == "0.300"
    assert text.endswith("\n- one")


def test_rasterizer_measures_every_case_and_says_why_gsplat_is_missing(generator, tmp_path, capsys):
    file = tmp_path / "report.json"
    assert call(rasterizer, *flags_of(generator, "--sizes", 200, "--device", "cpu", "--json", file)) == 0
    report = json.loads(file.read_text())
    assert all(t["ms"] > 0 and not t["note"] for t in report["timings"])
    both = {(t["channels"], t["who"]) for t in report["timings"] if t["case"] == "scores forward + backward"}
    assert both == {(k, who) for k in (1, 16) for who in ("ours", "ours, plan", "reference.py")}
    assert "without gsplat: it has kernels for GPUs only" in capsys.readouterr().out


def test_rasterizer_report_has_the_ratios_of_time_and_memory():
    report = made_up_report(
        timing("scores forward", "ours", ms=0.8, peak=60),
        timing("scores forward", "gsplat", ms=1.0, peak=100),
        gsplat="1.5.3",
    )
    assert cells(rasterizer.markdown(report))[2][3:] == ["0.800", "1.600", "0.80x", "0.0", "0.60x"]


def test_table_lines_up():
    assert markdown_table(("a", "long head"), [("wide cell", "1")]) == [
        "| a         | long head |",
        "|-----------|-----------|",
        "| wide cell | 1         |",
    ]


def test_reason_names_what_a_failure_came_from():
    error = ImportError("no such\n file")
    error.__context__ = RuntimeError("nvcc failed")
    assert reason(error) == "ImportError: no such file (after RuntimeError: nvcc failed)"
    assert reason(ValueError()) == "ValueError"
