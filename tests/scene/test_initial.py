"""Initialisation of the RGB stage: the bound on Gaussians, start models, learning rates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import train as train_script
from arguments import RGBParams
from scene.dataset import Scene
from scene.formats.files import save_gaussians
from scene.formats.ply import load_ply, save_ply
from scene.gaussian_model import SH_C0, GaussianModel
from scene.layouts.ref_lerf import load
from scene.model_folder import load_colour
from tests.rigs.format_models import make_model
from tests.rigs.small_run import call
from training.rgb import initial_gaussians


@pytest.fixture
def loaded(scene: Path) -> Scene:
    return load(scene)


def start(loaded: Scene, seed: int = 0, **flags: object) -> GaussianModel:
    return initial_gaussians(loaded, RGBParams(**flags), 0, seed, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["adc", "mcmc"])
def test_points_beyond_the_bound_are_sampled(loaded: Scene, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="refersplat"):
        first, again, other = (start(loaded, seed, densification=kind, cap_max=50) for seed in (0, 0, 1))
    assert len(first) == 50 < len(loaded.xyz)
    assert f"50 of the {len(loaded.xyz)} points" in caplog.text
    rows = (first.xyz.numpy()[:, None] == loaded.xyz).all(axis=2).argmax(axis=1)
    assert len(set(rows.tolist())) == 50
    colors = torch.from_numpy(loaded.rgb[rows]).float() / 255
    torch.testing.assert_close(first.features_dc[:, 0] * SH_C0 + 0.5, colors)
    assert torch.equal(again.xyz, first.xyz)
    assert not torch.equal(other.xyz, first.xyz)


def test_a_start_model_beyond_the_bound_is_not_changed(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_ply(tmp_path / "start.ply", make_model(30))
    flags = ["--device", "cpu", "--iterations", "0", "--start_checkpoint", tmp_path / "start.ply", "--cap_max", "20"]
    assert call(train_script, "-s", scene, "-m", tmp_path / "m", *flags) == 0
    assert len(load_ply(tmp_path / "m/point_cloud/iteration_0/point_cloud.ply")) == 30
    assert "keeps its 30 Gaussians" in capsys.readouterr().err


def test_a_start_model_with_antialiasing_keeps_it(scene: Path, tmp_path: Path) -> None:
    pytest.importorskip("gaussforge")
    model = make_model(30)
    model.antialiasing = True
    save_gaussians(tmp_path / "start.spz", model)
    flags = ["--device", "cpu", "--iterations", "0", "--start_checkpoint", tmp_path / "start.spz"]
    assert call(train_script, "-s", scene, "-m", tmp_path / "m", *flags) == 0
    assert load_colour(tmp_path / "m")[0].antialiasing


@pytest.mark.parametrize("flag", ["--rgb_feature_lr", "--rgb_sh_lr", "--position_lr_init", "--mlp_lr"])
def test_negative_rates_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture, flag: str) -> None:
    assert call(train_script, "-s", tmp_path, "-m", tmp_path / "m", f"{flag}=-0.1") == 2
    assert "expected at least 0" in capsys.readouterr().err
