"""python -m scene.formats, and start models in every format."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train as train_script
from arguments import RGBParams
from scene.formats import __main__ as convert
from scene.formats import spz
from scene.formats.files import load_gaussians, save_gaussians
from scene.formats.ply import load_ply, save_ply
from scene.model_folder import load_start, save_config
from tests.rigs.format_models import ENDINGS, make_model
from tests.rigs.paths import ROOT
from tests.rigs.small_run import FAST, call
from utils.errors import UserError

pytest.importorskip("gaussforge", reason=f"gaussforge reads and writes .spz; {spz.INSTALL}")


class TestConvert:
    def call(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scene.formats", *map(str, words)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    def test_as_a_command(self, files: Path, tmp_path: Path) -> None:
        done = self.call(files / "model.spz", tmp_path / "new/model.splat")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert "300 Gaussians, SH degree 3" in lines[0]  # and no line of the library
        assert lines[1].startswith("lost: spherical harmonics of degree 1 to 3")
        assert (tmp_path / "new/model.splat").stat().st_size == 300 * 32

        bad = self.call(files / "model.spz", tmp_path / "model.obj")
        assert (bad.returncode, bad.stdout) == (2, "")
        assert bad.stderr.startswith("error: ")
        assert len(bad.stderr.splitlines()) == 1
        assert ".spz" in bad.stderr

    def test_reads_model_folders(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        folder = tmp_path / "model"
        for iteration in (30, 7):
            save_ply(folder / f"point_cloud/iteration_{iteration}/point_cloud.ply", make_model(iteration))
        convert.main([str(folder), str(tmp_path / "newest.ply")])
        convert.main([str(folder), str(tmp_path / "older.compressed.ply"), "--iteration", "7"])
        assert len(load_ply(tmp_path / "newest.ply")) == 30
        assert len(load_gaussians(tmp_path / "older.compressed.ply")) == 7
        assert "lost: the order" in capsys.readouterr().out
        for words, match in (
            ([str(folder), str(tmp_path / "x.ply"), "--iteration", "8"], "saved are 7, 30"),
            ([str(tmp_path), str(tmp_path / "x.ply")], "holds no Gaussians"),
            ([str(folder), str(folder / "point_cloud.ply.d")], "no known format"),
        ):
            with pytest.raises(UserError, match=match):
                convert.main(words)

    def test_files_of_models_are_not_overwritten(self, files: Path, tmp_path: Path) -> None:
        cloud = tmp_path / "model/point_cloud/iteration_30/point_cloud.ply"
        save_ply(cloud, make_model(30))
        save_config(tmp_path / "model", [RGBParams()], {})
        for source, target in (
            (files / "model.spz", cloud),
            (cloud, cloud),
            (files / "model.spz", files / "model.spz"),
        ):
            before = target.read_bytes()
            with pytest.raises(UserError, match="would be lost"):
                convert.main([str(source), str(target)])
            assert target.read_bytes() == before

    @pytest.mark.parametrize("ending", ENDINGS)
    @pytest.mark.parametrize("antialiasing", [True, False])
    def test_antialiasing_is_kept_or_reported(
        self, tmp_path: Path, capsys: pytest.CaptureFixture, ending: str, antialiasing: bool
    ) -> None:
        folder, target = tmp_path / "model", tmp_path / f"out{ending}"
        cloud = folder / "point_cloud/iteration_30/point_cloud.ply"
        save_ply(cloud, make_model(30))
        save_config(folder, [RGBParams(antialiasing=antialiasing)], {})
        for source in (folder, cloud):
            convert.main([str(source), str(target)])
            told = "lost: antialiasing" in capsys.readouterr().out
            found = load_gaussians(target)
            assert (told, found.antialiasing) == (antialiasing and ending != ".spz", antialiasing and ending == ".spz")
        plain = tmp_path / f"plain{ending}"
        save_gaussians(plain, make_model(30))
        assert torch.equal(found.xyz, load_gaussians(plain).xyz)

    def test_a_failure_keeps_the_old_file(self, files: Path, tmp_path: Path) -> None:
        (tmp_path / "old.splat").write_bytes(b"precious")
        (tmp_path / "bad.spz").write_bytes(b"NGSP")
        with pytest.raises(UserError):
            convert.main([str(tmp_path / "bad.spz"), str(tmp_path / "old.splat")])
        assert (tmp_path / "old.splat").read_bytes() == b"precious"


@pytest.mark.parametrize("ending", ENDINGS)
def test_start_models_in_every_format(files: Path, ending: str) -> None:
    model, field, iteration = load_start(files / f"model{ending}")
    assert (len(model), field, iteration) == (300, None, 0)


@pytest.mark.slow
def test_training_from_a_spz(scene: Path, model: Path, tmp_path: Path) -> None:
    """The referring stage on converted Gaussians, which the model folder keeps as a standard .ply."""
    convert.main([str(model), str(tmp_path / "start.spz")])
    assert (
        call(train_script, "-s", scene, "-m", tmp_path / "m", *FAST, "--start_checkpoint", tmp_path / "start.spz") == 0
    )
    kept = load_ply(tmp_path / "m/point_cloud/iteration_0/point_cloud.ply")
    assert torch.equal(kept.xyz, load_gaussians(tmp_path / "start.spz").xyz)
