"""Mistakes of users: each ends with one clear message and exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

import eval as eval_script
import render as render_script
import train as train_script
from scene.formats.ply import load_ply, save_ply
from tests.rigs.small_run import FAST, MODEL_FILES, ROOT, SMALL, call, hashes


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
        command = [sys.executable, "-m", "synthetic", "--out", str(other), "--seed", "8", *SMALL]
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

    def test_precision_without_gpu_kernels(self, scene: Path, tmp_path: Path) -> None:
        assert self.start(scene, tmp_path / "m", "--precision", "tf32") == 2
        self.refused("--precision tf32", "CPU")
        assert not (tmp_path / "m").exists()

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

    def test_text_without_a_sentence(self, model: Path) -> None:
        """As an empty shell variable gives it."""
        assert call(render_script, "-m", model, "--text") == 2
        assert "--text" in self.capsys.readouterr().err

    @pytest.mark.parametrize(
        "flag",
        [
            *("--plan_memory nan", "--plan_memory inf", "--plan_memory 1e300", "--plan_memory -1", "--plan_memory x"),
            *("--tau_floor 2", "--tau_floor nan", "--seed 99999999999999999999999", "--log_interval 0"),
            *("--sentences_per_step 0", "--sentences_per_step -1", "--sentences_per_step every", "--precision fp16"),
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
