"""The benchmarks of referring training and queries: what they count, what they run, what they print."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import floors, quality, query, referring, stages
from benchmarks.referring_report import CASES, FIRST, KEPT_VIEW, NEW_VIEW, STEP, STEP_ALL, markdown
from benchmarks.referring_work import VIEWS, ReferringWork, outline
from benchmarks.workload import SceneGenerator, evenly
from inference.predict import Predictor
from inference.trained_model import load_trained
from referring.field import ReferringField, pad_tokens
from scene.cameras import Camera
from scene.model_folder import point_cloud_path
from tests.rigs.small_run import call

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


def test_views_of_the_orbit_stand_evenly_around_the_middle(generator):
    cameras = SceneGenerator(generator).orbit(evenly(4, first=0.5))
    centres = np.stack([camera.center for camera in cameras])
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 4, rtol=1e-6)
    np.testing.assert_allclose(centres.sum(axis=0), 0, atol=1e-5)
    assert len({camera.name for camera in cameras}) == 4


def test_every_view_has_the_sentences_and_outlines_of_the_objects(generator):
    work = ReferringWork(SceneGenerator(generator), 200)
    assert len(work.scene.train) == VIEWS == 8
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


def event(cat: str, name: str, ts: float, dur: float, correlation: int | None = None) -> dict:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": {"correlation": correlation}}


def test_kernels_count_to_the_window_that_launched_them():
    mark = stages.MARK
    trace = [
        event("user_annotation", mark + stages.LOSSES, 0, 100),  # the whole step
        event("user_annotation", mark + stages.WORDS, 10, 20),
        event("user_annotation", mark + stages.BACKWARD, 50, 20),
        event("gpu_user_annotation", mark + stages.ADAM, 0, 1000),  # what a GPU shows of annotations is no window
        event("user_annotation", mark + stages.SPLAT, 40, 5),
        event("cuda_runtime", "cudaGraphLaunch", 15, 1, correlation=1),
        event("cuda_driver", "cuLaunchKernelEx", 42, 1, correlation=2),
        event("cuda_runtime", "cudaGraphLaunch", 55, 1, correlation=3),
        event("cuda_runtime", "cudaMemcpyAsync", 90, 1, correlation=4),
        event("kernel", "field::pool_kernel", 200, 1000, correlation=1),  # runs long after its launch
        event("kernel", "gemm", 1200, 500, correlation=1),
        event("kernel", "backproject", 1700, 250, correlation=2),
        event("kernel", "field::pool_kernel", 2000, 2000, correlation=3),
        event("gpu_memcpy", "Memcpy DtoD", 4000, 125, correlation=4),
        event("kernel", "nobody launched it", 5000, 3000, correlation=9),
        {"ph": "i", "name": "an instant"},
    ]
    found = stages.attribute(trace, calls=2)
    expected = {"pool": 0.5, stages.WORDS: 0.25, "splat": 0.125, "backward": 1.0, "losses": 0.0625, "others": 1.5}
    assert found.stages == expected
    assert found.kernels["backward: field::pool_kernel"] == 1.0
    assert found.graphs == 1


def test_without_a_gpu_windows_count_less_those_inside():
    mark = stages.MARK
    trace = [
        event("user_annotation", mark + "losses", 0, 10_000),
        event("user_annotation", mark + "splat", 1_000, 4_000),
        event("user_annotation", mark + "prepare the view", 1_000, 1_000),
        event("user_annotation", mark + "backward", 6_000, 3_000),
        event("user_annotation", mark + "losses", 20_000, 2_000),
    ]
    found = stages.attribute(trace, calls=2)
    assert found.stages == {"losses": 2.5, "splat": 1.5, "prepare the view": 0.5, "backward": 1.5}
    assert not found.kernels


@pytest.mark.parametrize(("sentences", "words"), [(1, 16), (5, 7)])
@pytest.mark.parametrize("backward", [False, True])
def test_operations_of_a_gaussian_are_those_of_the_products_in_plain_pytorch(sentences, words, backward):
    def counted(n: int) -> tuple[int, float]:
        field = ReferringField(n, 64)
        torch.nn.init.normal_(field.language_feature)
        tokens = pad_tokens([torch.randn(words, 64) for _ in range(sentences)])
        with FlopCounterMode(display=False) as counter:
            scores, _ = field.score(torch.randn(n, 3), field.encode_words(*tokens))
            if backward:
                torch.autograd.grad(scores.square().sum(), list(field.parameters()))
        seen = floors.Views(lists=0, shown=n, pixels=0)
        forward = floors.mask_operations(field, sentences, words)
        ours = floors.step_operations(field, sentences, words, sentences, seen) if backward else forward
        return counter.get_total_flops(), sum(ours.values())

    (few, ours_few), (many, ours_many) = counted(100), counted(300)
    assert 1 <= (ours_many - ours_few) / (many - few) < 1.03  # it leaves out products of a matrix and a vector


def test_bytes_of_a_step_hold_what_adam_reads_and_writes():
    field = ReferringField(50, 64)
    optimizer = torch.optim.Adam(field.parameters())
    for parameter in field.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    held = sum(t.nbytes for p in field.parameters() for t in (p, p.grad)) + sum(t.nbytes for t in moments)
    moved = floors.step_bytes(field, 3, floors.Views(lists=0, shown=50, pixels=0))
    assert next(iter(moved.values())) == 2 * held


def flags_of(generator: Path, *more: object) -> list[object]:
    return ["--scene_gen", generator, "--repeats", 2, *more]


def test_referring_benchmark_measures_every_case_and_notes_a_size_that_fails(generator, tmp_path, capsys):
    file = tmp_path / "report.json"
    assert call(referring, *flags_of(generator, "--sizes", 200, 5000, "--device", "cpu", "--json", file)) == 0
    report = json.loads(file.read_text())
    assert report["notes"] == [f"5,000 Gaussians, {part}: MemoryError: too many" for part in ("times", "stages")]
    assert [t["case"] for t in report["timings"]] == list(CASES)
    assert all(t["ms"] > 0 and t["who"] == "ours" and not t["note"] for t in report["timings"])
    shares = {entry["case"]: entry["stages"] for entry in report["stages"]}
    assert {"pool", "score", "splat", "losses", "backward", "Adam"} < shares[STEP].keys()
    assert {"pool", "score", "splat", "mask"} < shares[FIRST].keys()
    assert shares[NEW_VIEW]["splat"] > shares[NEW_VIEW]["mask"]
    assert [entry["case"] for entry in report["floors"]] == [STEP, STEP_ALL, FIRST, NEW_VIEW, KEPT_VIEW]
    printed = capsys.readouterr().out
    assert printed.startswith(report["machine"])
    assert "- 5,000 Gaussians, times: MemoryError: too many" in printed


@pytest.mark.gpu
def test_referring_benchmark_on_a_gpu_tells_the_stages_of_a_recorded_step(generator, tmp_path):
    file = tmp_path / "report.json"
    assert call(referring, *flags_of(generator, "--sizes", 900, "--device", "cuda", "--json", file)) == 0
    report = json.loads(file.read_text())
    assert report["notes"] == []
    assert {(t["case"], t["who"]) for t in report["timings"] if t["ms"]} > {(STEP, "ours"), (STEP, "plain PyTorch")}
    assert {(m["case"], m["who"]) for m in report["memory"]} > {(STEP, "ours"), (STEP_ALL, "plain PyTorch")}
    (step,) = [entry for entry in report["stages"] if entry["case"] == STEP]
    assert step["graphs"] == 3
    wanted = {stages.WORDS, "pool", "score", "selection", "splat", "losses", "backward", "Adam"}
    assert step["stages"].keys() == wanted  # nothing is left among others


def timing(case: str, who: str, ms: float, sentences: int = 1) -> dict:
    times = {"ms": ms, "quartiles_ms": [ms, ms], "single_ms": 2 * ms, "peak_bytes": None, "note": ""}
    return {"case": case, "who": who, "n": 300_000, "channels": sentences, **times}


def test_report_sets_times_beside_targets_recorded_figures_and_the_floor():
    text = markdown(
        {
            "machine": "a GPU",
            "git_revision": "abc",
            "precision": "fp32",
            "sizes": [300_000],
            "repeats": 3,
            "picture": [986, 728],
            "copy_bytes_per_second": 1e12,
            "product_operations_per_second": 1e15,
            "timings": [
                timing(STEP, "ours", 2.0),
                timing(STEP, "plain PyTorch", 10.0),
                timing(STEP_ALL, "ours", 6.0, sentences=20),
                timing(NEW_VIEW, "ours", 0.5),
            ],
            "memory": [{"case": STEP, "who": "ours", "n": 300_000, "peak": 500_000_000}],
            "stages": [
                {"case": STEP, "n": 300_000, "stages": {"pool": 0.3, "Adam": 1.2}, "kernels": {}, "graphs": 3.0}
            ],
            "floors": [{"case": STEP, "n": 300_000, "bytes": {"a": 4e8, "b": 1e8}, "operations": {"c": 1e11}}],
            "notes": ["one"],
        }
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    of = {row[0]: row[1:] for row in reversed(rows)}  # the first table's where a case is in several
    assert of[STEP] == ["1.800", "2.000", "2.000 to 2.000", "4.000", "10.0", "5.0x", "41.9", "20.9x"]
    assert of[f"{STEP_ALL}, for each"][:2] == ["0.400", "0.300"]
    assert of[NEW_VIEW][:2] == ["0.667 (1,500 a second)", "0.500 (2,000 a second)"]
    assert [STEP, "20 %", "80 %", "1.500", "2.000", "3"] in rows
    assert [STEP, "500.0", "0.500", "100.00", "0.100", "2.000", "4.0x"] in rows
    assert ["300,000", STEP, "0.6", "0.50", "-", "2.9"] in rows
    assert text.endswith("\n- one")


def test_masks_of_queries_are_those_of_render_and_views_are_new(model):
    trained = load_trained(model)
    cameras = [Camera(f"{x}", np.eye(3), np.array([x, 0.0, 6.0]), 60, 60, 40, 30, 80, 60) for x in (-0.2, 0.0, 0.2)]
    tokens = list(torch.randn(2, 4, trained.field.text_dim))
    new, kept = (query.Queries(trained.gaussians, trained.field, tokens, cameras, keep) for keep in (False, True))
    predictor = Predictor(trained.gaussians, trained.field, lambda _: {"s": tokens[0]}, threshold=0.5, max_bytes=0)
    expected = [predictor.probabilities(camera, ["s"])[0] > 0.5 for camera in cameras]
    for queries in (new, kept):
        found = [queries.first_mask(), queries.further_view(), queries.further_view()]
        assert torch.equal(torch.stack(found), torch.stack(expected))
    assert new.renderer.plans.hits == 0
    assert kept.renderer.plans.misses == len(cameras)


def test_query_benchmark_takes_a_model_folder(model, capsys):
    assert call(query, "-m", model, "--repeats", 1, "--device", "cpu") == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == list(CASES)[4:]


def test_query_benchmark_without_a_model_takes_the_generated_scene(generator, capsys):
    assert call(query, *flags_of(generator, "--size", 100, "--device", "cpu")) == 0
    assert "100 Gaussians, 48x32" in capsys.readouterr().out


def test_quality_benchmark_reads_the_curve_of_every_run(scene, model, tmp_path, capsys):
    start = point_cloud_path(model, 40)
    file = tmp_path / "quality.json"
    flags = ["--source", scene, "--start", start, "--device", "cpu", "--json", file, "--warm_up", 0, "--seeds", 0]
    assert call(quality, *flags, "--iterations", 3, "--test_interval", 2, "--contrastive", "none") == 0
    report = json.loads(file.read_text())
    assert [run["sentences_per_step"] for run in report["runs"]] == ["1", "all"]
    for run in report["runs"]:
        assert run["note"] == ""
        assert [point["iteration"] for point in run["curve"]] == [2, 3]
        assert 0 < run["curve"][0]["seconds"] < run["curve"][1]["seconds"] < run["wall_seconds"]
    assert report["flags"].endswith("--contrastive none")
    assert "28.7" in capsys.readouterr().out

    plot = pytest.importorskip("benchmarks.plot_quality", reason="needs matplotlib", exc_type=ImportError)
    plot.draw([report, report], tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_quality_benchmark_says_why_a_run_failed(scene, tmp_path, capsys):
    (tmp_path / "start.ply").write_text("no ply")
    flags = ["--source", scene, "--start", tmp_path / "start.ply", "--device", "cpu", "--warm_up", 0, "--seeds", 0]
    assert call(quality, *flags, "--iterations", 1, "--sentences_per_step", "all") == 0
    assert "- all, seed 0: train.py ended with 2: error:" in capsys.readouterr().out
