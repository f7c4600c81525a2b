"""The three scripts from end to end on a small procedural scene: results, --resume, signals, a full disk."""

from __future__ import annotations

import csv
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import eval as eval_script
import render as render_script
import train as train_script
from inference.trained_model import load_trained
from scene.checkpoints import load_checkpoint
from scene.formats.ply import load_ply
from tests.rigs.small_run import FAST, MODEL_FILES, ROOT, call, failing, hashes, interrupting
from training.referring import ReferringStage
from training.rgb import RGBStage


class TestEndToEnd:
    def test_training_leaves_a_model_folder(self, model: Path) -> None:
        for name in ["config.json", "cameras.json", "resume.pth", *MODEL_FILES]:
            assert (model / name).stat().st_size > 0
        assert list(model.glob("events.out.tfevents.*"))
        assert not list(model.rglob(".*"))  # no temporary file is left
        lines = [json.loads(line) for line in (model / "log.jsonl").read_text().splitlines()]
        rgb = {line["iteration"]: line["loss"] for line in lines if line["stage"] == "rgb" and "loss" in line}
        assert rgb[24] < 0.9 * rgb[2]  # before opacity is reset
        steps = [line for line in lines if line["stage"] == "referring" and "bce" in line]
        assert [line["iteration"] for line in steps] == [2, 4, 6, 8]
        assert steps[0]["plan_hit_rate"] < 1  # some view was new
        assert all(0 < line["plan_gigabytes"] < 0.1 for line in steps)

    def test_render_and_eval(self, copied: Path, scene: Path) -> None:
        assert call(render_script, "-m", copied, "--device", "cpu") == 0
        assert call(eval_script, "-m", copied, "--device", "cpu") == 0
        results = json.loads((copied / "results.json").read_text())
        with open(copied / "per_sentence.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        listed = [json.loads(path.read_text()) for path in (scene / "json" / "test_json").glob("*.json")]
        pairs = sum(len(entry["sentence"]) for frame in listed for entry in frame["object"])
        assert results["pairs"] == len(rows) == pairs
        assert results["missing_predictions"] in (0, [])
        ious = []
        for row in rows:
            prediction = cv2.imread(str(copied / row["prediction"]), cv2.IMREAD_GRAYSCALE) > 0
            truth = cv2.imread(str(scene / row["ground_truth"]), cv2.IMREAD_GRAYSCALE) > 0
            ious.append((prediction & truth).sum() / max((prediction | truth).sum(), 1))
            assert float(row["iou"]) == pytest.approx(ious[-1], abs=1e-4)
        assert results["mIoU"] == pytest.approx(100 * np.mean(ious), abs=0.01)
        assert (copied / "report.html").stat().st_size > 10_000

    def test_own_sentences(self, copied: Path) -> None:
        assert call(render_script, "-m", copied, "--device", "cpu", "--text", "the red ball", "a box/../x") == 0
        assert len(list(copied.glob("test/iteration_8/overlay/*/text-*.png"))) == 2 * len(
            list(copied.glob("test/iteration_8/overlay/*"))
        )

    @pytest.mark.parametrize(("name", "views"), [("desk", "test"), ("none", "train")])
    def test_without_test_pairs_render_is_next(
        self, model: Path, copied_scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, views: str
    ) -> None:
        """eval.py would fail: either no test view has a JSON file, or there are too few views for a test view."""
        caplog.set_level("INFO", "refersplat")
        shutil.rmtree(copied_scene / "json/test_json")
        for number in (1, 9) if views == "test" else ():
            (copied_scene / f"json/train_json/frame_{number:05d}.json").unlink()
        for number in range(7, 11) if views == "train" else ():
            (copied_scene / f"images/frame_{number:05d}.png").unlink()
        scene, folder = copied_scene.rename(copied_scene.with_name(name)), tmp_path / "model"
        start = model / MODEL_FILES[0]
        assert call(train_script, "-s", scene, "-m", folder, "--start_checkpoint", start, *FAST) == 0
        assert "Next: python eval.py" not in caplog.text
        flag = "" if views == "test" else " --views train"
        assert f'python render.py -m {folder}{flag} --text "..."' in caplog.text
        assert call(render_script, "-m", folder, *flag.split(), "--text", "the box", "--device", "cpu") == 0

    def test_start_from_ply_and_export(self, model: Path, scene: Path, tmp_path: Path) -> None:
        """The referring stage on a given model; its export is a checkpoint to start from again."""
        start = model / MODEL_FILES[0]
        flags = ["--text_encoder", "embedded", "--device", "cpu", "--iterations", "2", "--sentences_per_step", "all"]
        folder = tmp_path / "second"
        started = ["-s", scene, "-m", folder, "--start_checkpoint", start, "--export_checkpoint", *flags]
        assert call(train_script, *started) == 0
        assert (folder / MODEL_FILES[0]).read_bytes() == start.read_bytes()
        gaussians, tensors, iteration = load_checkpoint(folder / "chkpnt2.pth")
        trained = load_trained(folder)
        assert iteration == 2
        assert torch.equal(gaussians.xyz, load_ply(start).xyz)
        assert torch.equal(tensors["language_feature"], trained.field.language_feature)
        third = tmp_path / "third"
        assert call(train_script, "-s", scene, "-m", third, "--start_checkpoint", folder / "chkpnt2.pth", *flags) == 0

    @pytest.mark.parametrize(("form", "sentences"), [("paper", "1"), ("paper", "2"), ("none", "2"), ("none", "all")])
    def test_other_losses(self, model: Path, scene: Path, tmp_path: Path, form: str, sentences: str) -> None:
        flags = ["--text_encoder", "embedded", "--device", "cpu", "--iterations", "3", "--contrastive", form]
        flags += ["--sentences_per_step", sentences]
        start = ["--start_checkpoint", model / MODEL_FILES[0]]
        assert call(train_script, "-s", scene, "-m", tmp_path / "m", *start, *flags, "--tau_schedule", "paper") == 0


class TestResume:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_interrupted_run_gives_the_same_bits(
        self, model: Path, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        """A signal in the middle of each stage; the files equal those of the uninterrupted run."""
        stops = {RGBStage: 23, ReferringStage: 5}
        for stage in (RGBStage, ReferringStage):
            monkeypatch.setattr(stage, "step", interrupting(stage.step, stops[stage], number))
        folder = tmp_path / "model"
        assert call(train_script, "-s", scene, "-m", folder, *FAST) == 128 + number
        assert call(train_script, "-m", folder, "--resume") == 128 + number
        assert call(train_script, "-m", folder, "--resume") == 0
        for name in MODEL_FILES:
            assert (folder / name).read_bytes() == (model / name).read_bytes()
        logs = [(path / "log.jsonl").read_text().splitlines() for path in (folder, model)]
        interrupted, whole = ([(e["stage"], e["iteration"]) for e in map(json.loads, log)] for log in logs)
        assert interrupted == whole

    def test_killed_run_goes_on_from_its_checkpoint(
        self, model: Path, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """kill -9 between checkpoints: steps since the last one are taken again."""
        folder = tmp_path / "model"
        with monkeypatch.context() as patched:
            patched.setattr(RGBStage, "step", failing(RGBStage.step, 37))
            with pytest.raises(RuntimeError, match="as if killed"):
                call(train_script, "-s", scene, "-m", folder, *FAST)
        assert call(train_script, "-m", folder, "--resume") == 0
        for name in MODEL_FILES:
            assert (folder / name).read_bytes() == (model / name).read_bytes()

    def test_a_process_obeys_sigterm(self, scene: Path, tmp_path: Path) -> None:
        command = [sys.executable, "train.py", "-s", scene, "-m", tmp_path / "m", *FAST, "--rgb_iterations", "100000"]
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.PIPE, text=True)
        log = tmp_path / "m" / "log.jsonl"
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_text()) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM
        assert "--resume" in errors
        assert "Traceback" not in errors
        assert (tmp_path / "m" / "resume.pth").is_file()

    @pytest.mark.parametrize("flag", ["--seed 5", "--sentences_per_step 2"])
    def test_other_flags_are_refused(self, copied: Path, capsys: pytest.CaptureFixture, flag: str) -> None:
        assert call(train_script, "-m", copied, "--resume", *flag.split()) == 2
        assert f"--resume with {flag}" in capsys.readouterr().err

    def test_a_changed_scene_is_refused(self, copied: Path, copied_scene: Path, capsys: pytest.CaptureFixture) -> None:
        min((copied_scene / "json" / "train_json").glob("*.json")).unlink()
        assert call(train_script, "-m", copied, "-s", copied_scene, "--resume", "--iterations", "10") == 2
        assert "have changed" in capsys.readouterr().err

    def test_divergence_is_named_before_anything_is_saved(self, copied: Path, capsys: pytest.CaptureFixture) -> None:
        before = {name: (copied / name).read_bytes() for name in [*MODEL_FILES, "resume.pth"]}
        state = torch.load(copied / "resume.pth", weights_only=True)
        state["state"]["field"]["language_feature"][0] = float("inf")
        torch.save(state, copied / "resume.pth")
        before["resume.pth"] = (copied / "resume.pth").read_bytes()
        assert call(train_script, "-m", copied, "--resume", "--iterations", "10") == 2
        assert "diverged" in capsys.readouterr().err
        assert all((copied / name).read_bytes() == content for name, content in before.items())

    def test_deterministic_changes_no_bits_on_the_cpu(self, model: Path, scene: Path, tmp_path: Path) -> None:
        flags = [*FAST, "--deterministic"]
        try:
            assert call(train_script, "-s", scene, "-m", tmp_path / "m", *flags) == 0
            assert torch.are_deterministic_algorithms_enabled()
        finally:
            torch.use_deterministic_algorithms(False)
            torch.utils.deterministic.fill_uninitialized_memory = True
        for name in MODEL_FILES:
            assert (tmp_path / "m" / name).read_bytes() == (model / name).read_bytes()

    def test_a_graph_that_is_computed_again_gives_the_same_bits(
        self, model: Path, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whether it is depends on the memory of the machine."""
        monkeypatch.setattr("train.GRAPH_BYTES", 0)
        start = ["--start_checkpoint", model / MODEL_FILES[0]]
        assert call(train_script, "-s", scene, "-m", tmp_path / "again", *start, *FAST) == 0
        monkeypatch.undo()
        assert call(train_script, "-s", scene, "-m", tmp_path / "kept", *start, *FAST) == 0
        files = [tmp_path / name / MODEL_FILES[1] for name in ("kept", "again")]
        assert files[0].read_bytes() == files[1].read_bytes()

    def test_more_iterations(self, copied: Path) -> None:
        assert call(train_script, "-m", copied, "--resume", "--iterations", "10") == 0
        assert (copied / "referring" / "iteration_10.safetensors").is_file()

    def test_nothing_is_overwritten(self, copied: Path, scene: Path, capsys: pytest.CaptureFixture) -> None:
        before = hashes(copied)
        assert call(train_script, "-s", scene, "-m", copied, *FAST) == 2
        assert "--resume" in capsys.readouterr().err
        assert hashes(copied) == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_full_disk_keeps_old_files(copied: Path, tmp_path: Path) -> None:
    """The operating system refuses to write more than 50 kB: one message, code 2, the saved model intact."""
    names = [*MODEL_FILES, "resume.pth", "config.json", "cameras.json"]
    before = {name: (copied / name).read_bytes() for name in names}
    command = [sys.executable, "train.py", "-m", str(copied), "--resume", "--iterations", "12"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "error: could not write" in done.stderr
    assert "Traceback" not in done.stderr
    for name in names[:3]:
        assert (copied / name).read_bytes() == before[name]
    assert not list(copied.rglob(".*"))
    assert call(train_script, "-m", copied, "--resume", "--iterations", "12") == 0
