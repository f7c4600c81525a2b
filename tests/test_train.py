"""The three scripts from end to end on a small procedural scene: results, --resume, signals, a full disk, bad input."""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import eval as eval_script
import render as render_script
import train as train_script
from scene.checkpoints import load_checkpoint
from scene.gaussian_ply import load_ply, save_ply
from scene.model_folder import load_trained
from training.referring import ReferringStage
from training.rgb import RGBStage
from utils.errors import run

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--views", "10", "--width", "80", "--height", "60", "--objects", "6"]
FAST = [
    *("--text_encoder", "embedded", "--device", "cpu", "--rgb_iterations", "40", "--iterations", "8"),
    *("--densify_from_iter", "10", "--densification_interval", "10", "--opacity_reset_interval", "25"),
    *("--checkpoint_interval", "15", "--log_interval", "2"),
]
MODEL_FILES = ["point_cloud/iteration_40/point_cloud.ply", "referring/iteration_8.safetensors"]


def call(script, *flags: object) -> int:
    """Exit code of a script run in this process."""
    old, sys.argv = sys.argv, [script.__name__ + ".py", *map(str, flags)]
    try:
        with pytest.raises(SystemExit) as ended:
            run(script.main)
        return ended.value.code
    finally:
        sys.argv = old


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "scene"
    command = [sys.executable, "-m", "scene.synthetic", "--out", str(folder), "--seed", "3", *SMALL]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def model(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    assert call(train_script, "-s", scene, "-m", folder, *FAST) == 0
    return folder


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    """A model folder of the test's own."""
    return Path(shutil.copytree(model, tmp_path / "model"))


@pytest.fixture
def copied_scene(scene: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scene, tmp_path / "scene"))


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

    def test_start_from_ply_and_export(self, model: Path, scene: Path, tmp_path: Path) -> None:
        """The referring stage on a given model; its export is a checkpoint to start from again."""
        start = model / MODEL_FILES[0]
        flags = ["--text_encoder", "embedded", "--device", "cpu", "--iterations", "2", "--sentences_per_step", "all"]
        folder = tmp_path / "second"
        started = ["-s", scene, "-m", folder, "--start_checkpoint", start, "--export_checkpoint", *flags]
        assert call(train_script, *started) == 0
        assert (folder / MODEL_FILES[0]).read_bytes() == start.read_bytes()
        gaussians, field, iteration = load_checkpoint(folder / "chkpnt2.pth")
        trained = load_trained(folder)
        assert iteration == 2
        assert torch.equal(gaussians.xyz, load_ply(start).xyz)
        assert torch.equal(field.language_feature, trained.field.language_feature)
        third = tmp_path / "third"
        assert call(train_script, "-s", scene, "-m", third, "--start_checkpoint", folder / "chkpnt2.pth", *flags) == 0

    @pytest.mark.parametrize("form", ["paper", "none"])
    def test_other_losses(self, model: Path, scene: Path, tmp_path: Path, form: str) -> None:
        flags = ["--text_encoder", "embedded", "--device", "cpu", "--iterations", "3", "--contrastive", form]
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

    def test_other_flags_are_refused(self, copied: Path, capsys: pytest.CaptureFixture) -> None:
        assert call(train_script, "-m", copied, "--resume", "--seed", "5") == 2
        assert "--seed 5" in capsys.readouterr().err

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
        monkeypatch.setattr("training.referring.GRAPH_BYTES", 0)
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


def interrupting(step: Callable, at: int, number: int) -> Callable:
    """`step`, which sends a signal to this process the first time it takes step `at`."""
    sent = []

    def wrapped(self, iteration: int):
        if iteration == at and not sent:
            sent.append(True)
            os.kill(os.getpid(), number)
        return step(self, iteration)

    return wrapped


def failing(step: Callable, at: int) -> Callable:
    def wrapped(self, iteration: int):
        if iteration == at:
            raise RuntimeError("as if killed")
        return step(self, iteration)

    return wrapped


def hashes(folder: Path) -> dict[str, int]:
    return {str(path): hash(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


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


class TestBadInput:
    """Each mistake ends with one clear message on stderr and exit code 2."""

    @pytest.fixture(autouse=True)
    def _no_output(self, capsys: pytest.CaptureFixture) -> None:
        self.capsys = capsys

    def refused(self, *words: str) -> None:
        errors = self.capsys.readouterr().err
        final = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(final) == 1, errors
        assert "Traceback" not in errors
        for word in words:
            assert word in final[0]

    def start(self, scene: Path, folder: Path, *flags: object) -> int:
        return call(train_script, "-s", scene, "-m", folder, *FAST, *flags)

    def test_wrong_folder(self, tmp_path: Path) -> None:
        assert self.start(tmp_path / "nowhere", tmp_path / "m") == 2
        self.refused("nowhere")
        assert not (tmp_path / "m").exists()

    def test_missing_sparse_model(self, copied_scene: Path, tmp_path: Path) -> None:
        shutil.rmtree(copied_scene / "sparse")
        assert self.start(copied_scene, tmp_path / "m") == 2
        self.refused("COLMAP", "sparse")

    def test_truncated_model(self, copied_scene: Path, tmp_path: Path) -> None:
        path = copied_scene / "sparse" / "0" / "images.bin"
        path.write_bytes(path.read_bytes()[:100])
        assert self.start(copied_scene, tmp_path / "m") == 2
        self.refused("images.bin", "byte")

    def test_unknown_camera_model(self, copied_scene: Path, tmp_path: Path) -> None:
        path = copied_scene / "sparse" / "0" / "cameras.bin"
        content = bytearray(path.read_bytes())
        content[12] = 99  # model id of the first camera
        path.write_bytes(content)
        assert self.start(copied_scene, tmp_path / "m") == 2
        self.refused("cameras.bin", "99")

    def test_mask_of_another_size_is_resized(self, copied_scene: Path, tmp_path: Path) -> None:
        for path in (copied_scene / "gt_mask").rglob("*.png"):
            cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (160, 120)))
        assert self.start(copied_scene, tmp_path / "m") == 0
        assert "resized" in self.capsys.readouterr().err

    def test_unreadable_mask(self, copied_scene: Path, tmp_path: Path) -> None:
        for path in (copied_scene / "gt_mask").rglob("*.png"):
            path.write_bytes(b"no picture")
        assert self.start(copied_scene, tmp_path / "m") == 2
        self.refused("gt_mask", ".png")

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"objects": []}, "object"),
            ({"object": [{"category": "mug"}]}, "sentence"),
            ({"object": [{"category": "../../mug", "segmentation": "x.png", "sentence": ["a mug"]}]}, "../../mug"),
            ({"object": [{"category": "mug", "segmentation": "../../x.png", "sentence": ["a mug"]}]}, "../../x.png"),
        ],
    )
    def test_bad_json(self, copied_scene: Path, tmp_path: Path, change: dict, word: str) -> None:
        path = min((copied_scene / "json" / "train_json").glob("*.json"))
        path.write_text(json.dumps(change))
        assert self.start(copied_scene, tmp_path / "m") == 2
        self.refused(path.name, word)

    def test_pickle_with_code(self, scene: Path, tmp_path: Path) -> None:
        class Payload:
            def __reduce__(self) -> tuple:
                return os.mkdir, (str(tmp_path / "owned"),)

        torch.save(((Payload(),) * 17, 1), tmp_path / "chkpnt1.pth")
        assert self.start(scene, tmp_path / "m", "--start_checkpoint", tmp_path / "chkpnt1.pth") == 2
        self.refused("chkpnt1.pth", "could run code")
        assert not (tmp_path / "owned").exists()

    def test_nan_in_ply(self, model: Path, scene: Path, tmp_path: Path) -> None:
        gaussians = load_ply(model / MODEL_FILES[0])
        gaussians.opacity[3] = float("nan")
        save_ply(tmp_path / "nan.ply", gaussians)
        assert self.start(scene, tmp_path / "m", "--start_checkpoint", tmp_path / "nan.ply") == 2
        self.refused("nan.ply", "opacity", "NaN")

    def test_model_of_another_scene(self, copied: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        command = [sys.executable, "-m", "scene.synthetic", "--out", str(other), "--seed", "8", *SMALL]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        before = hashes(copied)
        for script in (render_script, eval_script):
            assert call(script, "-m", copied, "-s", other, "--device", "cpu") == 2
            self.refused("another scene")
        assert call(train_script, "-m", copied, "--resume", "-s", other) == 2
        self.refused("another scene")
        assert hashes(copied) == before

    def test_no_gpu(self, scene: Path, tmp_path: Path) -> None:
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        assert call(train_script, "-s", scene, "-m", tmp_path / "m", *FAST, "--device", "cuda") == 2
        self.refused("--device cuda")

    def test_unknown_backend(self, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DGR_BACKEND", "vulkan")
        assert call(train_script, "-s", scene, "-m", tmp_path / "m", *FAST) == 2
        self.refused("DGR_BACKEND", "vulkan")

    @pytest.mark.parametrize("script", [render_script, eval_script])
    def test_untrained_folder(self, tmp_path: Path, script) -> None:
        assert call(script, "-m", tmp_path / "nothing") == 2
        self.refused("nothing")

    def test_missing_iteration(self, copied: Path) -> None:
        assert call(render_script, "-m", copied, "--iteration", "77", "--device", "cpu") == 2
        self.refused("77", "8")

    @pytest.mark.parametrize("script", [train_script, render_script, eval_script])
    def test_unknown_flag(self, script) -> None:
        assert call(script, "--no_such_flag") == 2
        assert "no_such_flag" in self.capsys.readouterr().err

    @pytest.mark.parametrize(
        "flag",
        [
            *("--plan_memory nan", "--plan_memory inf", "--plan_memory 1e300", "--plan_memory -1", "--plan_memory x"),
            *("--tau_floor 2", "--tau_floor nan", "--seed 99999999999999999999999", "--log_interval 0"),
        ],
    )
    def test_numbers_out_of_bounds(self, flag: str, scene: Path, tmp_path: Path) -> None:
        assert call(train_script, "-s", scene, "-m", tmp_path / "m", *flag.split()) == 2
        assert flag.split()[0] in self.capsys.readouterr().err
        assert not (tmp_path / "m").exists()

    def test_gpu_without_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full() -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB.\nand much more")

        monkeypatch.setattr(train_script, "main", full)
        assert call(train_script) == 2
        self.refused("Tried to allocate 80 GiB", "--plan_memory")
