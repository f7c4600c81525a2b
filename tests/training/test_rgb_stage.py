"""RGB stage: exposure, ignored pixels, random start and background, divergence, resume with MCMC."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

import eval as eval_script
import train as train_script
from arguments import RGBParams
from scene.cameras import scene_bounds
from scene.dataset import Scene
from scene.formats.ply import load_ply
from scene.layouts.ref_lerf import load
from scene.readers.image_files import read_image
from tests.rigs.small_run import call
from training.gaussian_optimizer import GaussianOptimizer
from training.photos import Exposures
from training.rgb import RGBStage, initial_gaussians

ITERATIONS = 120
PLY = f"point_cloud/iteration_{ITERATIONS}/point_cloud.ply"
RUN = [
    *(
        "--device",
        "cpu",
        "--iterations",
        "0",
        "--rgb_iterations",
        ITERATIONS,
        "--sh_degree",
        "1",
        "--log_interval",
        "10",
    ),
    *("--densify_from_iter", "10", "--densification_interval", "10", "--sh_interval", "20"),
]
MCMC = ["--densification", "mcmc", "--cap_max", "10000", "--exposure", "--random_background", "--antialiasing"]


def train(scene: Path, folder: Path, *flags: object) -> int:
    return call(train_script, "-s", scene, "-m", folder, *RUN, *flags)


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def last_psnr(folder: Path) -> float:
    return next(line["test_psnr"] for line in reversed(log(folder)) if "test_psnr" in line)


@pytest.fixture(scope="module")
def mcmc(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of an MCMC run with most options."""
    folder = tmp_path_factory.mktemp("mcmc") / "model"
    assert train(scene, folder, *MCMC, "--test_iterations", "1") == 0
    return folder


def test_a_damaged_test_photo_is_reported_before_training(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(scene, tmp_path / "scene")
    photo = load(tmp_path / "scene").test[0].image_path
    photo.write_bytes(photo.read_bytes()[: photo.stat().st_size // 3])
    assert train(tmp_path / "scene", tmp_path / "model") == 2
    assert photo.name in capsys.readouterr().err
    assert not (tmp_path / "model/log.jsonl").exists() or not log(tmp_path / "model")


def test_mcmc_grows_and_learns(mcmc: Path) -> None:
    lines = [line for line in log(mcmc) if "loss" in line]
    first, last = (line["test_psnr"] for line in log(mcmc) if "test_psnr" in line)
    assert last > first + 1  # 1.5 to 1.7 with seeds 0 to 2; the loss follows the random backgrounds
    counts = [line["gaussians"] for line in lines]
    assert counts == sorted(counts)
    assert len(load_ply(mcmc / PLY)) == counts[-1] > 1.2 * counts[0]


def test_mcmc_resumes_bit_for_bit(mcmc: Path, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RGBStage, "step", interrupting(RGBStage.step, 33))
    assert train(scene, tmp_path / "m", *MCMC) == 128 + signal.SIGINT
    assert call(train_script, "-m", tmp_path / "m", "--resume") == 0
    for name in (PLY, f"point_cloud/iteration_{ITERATIONS}/exposure.json"):
        assert (tmp_path / "m" / name).read_bytes() == (mcmc / name).read_bytes()


def interrupting(step: Callable, at: int) -> Callable:
    def wrapped(self, iteration: int):
        if iteration == at and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, iteration)

    sent = []
    return wrapped


def test_deterministic_changes_no_bits_of_mcmc_on_the_cpu(mcmc: Path, scene: Path, tmp_path: Path) -> None:
    try:
        assert train(scene, tmp_path / "m", *MCMC, "--deterministic") == 0
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
    assert (tmp_path / "m" / PLY).read_bytes() == (mcmc / PLY).read_bytes()


def test_eval_measures_the_colour_of_a_model_without_a_field(mcmc: Path, scene: Path, tmp_path: Path) -> None:
    """Against PSNR and SSIM of scikit-image on the written images."""
    folder = Path(shutil.copytree(mcmc, tmp_path / "m"))
    assert call(eval_script, "-m", folder, "--device", "cpu") == 0
    results = json.loads((folder / "rgb_results.json").read_text())
    assert results["psnr"] == pytest.approx(last_psnr(folder), abs=1e-4)
    assert results["gaussians"] == len(load_ply(folder / PLY))
    for view, found in results["views"].items():
        both = read_image(folder / f"test/iteration_{ITERATIONS}/rgb/{view}.png")
        rendering, photo = np.split(both, 2, axis=1)
        assert np.array_equal(photo, read_image(next((scene / "images").glob(f"{view}.*"))))
        expected = peak_signal_noise_ratio(photo, rendering)
        assert found["psnr"] == pytest.approx(expected, abs=0.02)  # 8 bits
        structure = structural_similarity(
            photo, rendering, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert found["ssim"] == pytest.approx(structure, abs=0.02)  # it leaves out the border
    assert len(results["views"]) > 0
    assert call(eval_script, "-m", folder, "--iteration", "7") == 2


@pytest.fixture
def loaded(scene: Path) -> Scene:
    return load(scene, "images", -1, "gt_mask")


def make_stage(loaded: Scene, folder: Path, **flags) -> RGBStage:
    params = RGBParams(rgb_iterations=1000, **flags)
    gaussians = initial_gaussians(loaded, params, 1, 0, torch.device("cpu"))
    return RGBStage(folder, loaded, gaussians, params, torch.zeros(3), seed=0)


def brighten(loaded: Scene, gains: list[float]) -> Scene:
    """Multiply the training photos by gains in turn."""

    class Photo:
        def __init__(self, view, gain: float):
            self._view, self._gain = view, gain

        def __getattr__(self, name: str):
            return getattr(self._view, name)

        def image(self) -> np.ndarray:
            return (self._view.image() * self._gain).clip(0, 255).astype(np.uint8)

    return replace(loaded, train=[Photo(view, gains[i % len(gains)]) for i, view in enumerate(loaded.train)])


def test_exposure_follows_the_photos(loaded: Scene, tmp_path: Path) -> None:
    gains = [0.7, 1.0]
    scene = brighten(loaded, gains)
    found = {}
    for exposure in (False, True):
        stage = make_stage(scene, tmp_path, exposure=exposure, exposure_lr_init=0.02, exposure_lr_final=0.01)
        found[exposure] = np.mean([stage.step(i)["l1"].item() for i in range(1, 250)][-50:])
    assert found[True] < 0.8 * found[False]
    matrices = stage._exposures.matrices
    torch.testing.assert_close(matrices.mean(dim=0), torch.eye(3, 4), atol=1e-5, rtol=0)
    white = (matrices[:, :, :3].sum(dim=2) + matrices[:, :, 3]).mean(dim=1)  # transformed white
    dark, bright = (white[i::2].mean().item() for i in range(2))
    assert dark / bright == pytest.approx(0.7, abs=0.1)


def test_exposure_matches_adam(loaded: Scene) -> None:
    """Against torch.optim.Adam on a single transform, up to the shift that keeps the mean."""
    params = RGBParams(exposure_lr_init=0.01, exposure_lr_final=0.01)
    views = loaded.train[:2]
    exposures = Exposures(views, params, torch.device("cpu"))
    expected = torch.eye(3, 4).requires_grad_()
    adam = torch.optim.Adam([expected], lr=0.01)
    torch.manual_seed(0)
    for _ in range(5):
        image, weights = torch.rand(2, 3, 4, 5)
        (exposures.apply(views[1], image) * weights).sum().backward()
        exposures.update(1)
        adam.zero_grad()
        transformed = expected[:, :3] @ image.flatten(1) + expected[:, 3:]
        (transformed * weights.flatten(1)).sum().backward()
        adam.step()
    torch.testing.assert_close(exposures.matrices[1] - exposures.matrices[0], expected.detach() - torch.eye(3, 4))


def write_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), mask.astype(np.uint8) * 255)


def left_half(loaded: Scene) -> np.ndarray:
    camera = loaded.train[0].camera
    return np.arange(camera.width)[None].repeat(camera.height, 0) < camera.width // 2


def first_gradient(stage: RGBStage, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Return the gradient of the SH coefficients in the first step."""
    kept = []
    with monkeypatch.context() as patched:
        update = GaussianOptimizer.update
        patched.setattr(
            GaussianOptimizer,
            "update",
            lambda self, iteration: kept.append(self.model.features_dc.grad.clone()) or update(self, iteration),
        )
        stage.step(1)
    return kept[0]


@pytest.mark.parametrize("one_for_all", [True, False])
def test_ignored_pixels_do_not_count(
    loaded: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_for_all: bool
) -> None:
    """Changing masked pixels does not change the gradient."""
    masks = tmp_path / "masks"
    for name in ["everywhere"] if one_for_all else [view.id for view in loaded.train]:
        write_mask(masks / f"{name}.png", left_half(loaded))
    painted = replace(loaded, train=[Painted(view) for view in loaded.train])
    gradients = {}
    for folder in (masks, None):
        gradients[folder] = [
            first_gradient(make_stage(scene, tmp_path, ignore_mask_dir=folder), monkeypatch)
            for scene in (loaded, painted)
        ]
    torch.testing.assert_close(*gradients[masks], atol=1e-9, rtol=1e-4)
    assert gradients[masks][0].any()
    assert not torch.allclose(*gradients[None], rtol=0.1)
    # Gaussians visible only in the left half get no gradient
    assert (gradients[masks][0][:, 0, 0] == 0).sum() > (gradients[None][0][:, 0, 0] == 0).sum()


class Painted:
    """A view with noise in the left half of its photo."""

    def __init__(self, view):
        self._view = view

    def __getattr__(self, name: str):
        return getattr(self._view, name)

    def image(self) -> np.ndarray:
        photo = self._view.image()
        half = photo.shape[1] // 2
        photo[:, :half] = np.random.default_rng(0).integers(0, 256, photo[:, :half].shape)
        return photo


@pytest.mark.parametrize(
    ("names", "word"),
    [(None, "not a folder"), ([], "no .png"), (["a", "b"], "none of a, b"), (["frame"], "")],
)
def test_missing_ignore_masks(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture, names: list[str] | None, word: str
) -> None:
    for name in names or []:
        write_mask(tmp_path / "masks" / f"{name}.png", np.zeros((60, 80), bool))
    if names == []:
        (tmp_path / "masks").mkdir()
    flags = ["--ignore_mask_dir", tmp_path / "masks", "--rgb_iterations", "1"]
    assert train(scene, tmp_path / "m", *flags) == (2 if word else 0)
    errors = capsys.readouterr().err
    assert word in errors
    assert "Traceback" not in errors


def test_a_random_start_needs_no_points(copied_scene: Path, tmp_path: Path) -> None:
    for path in (copied_scene / "sparse" / "0").glob("points3D.*"):
        path.unlink()
    flags = ["--init", "random", "--init_points", "300", "--densify_until_iter", "0"]
    assert train(copied_scene, tmp_path / "m", *flags) == 0
    lines = [line for line in log(tmp_path / "m") if "loss" in line]
    assert lines[0]["gaussians"] == 300
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_random_points_lie_around_the_focus_of_the_cameras(loaded: Scene) -> None:
    params = RGBParams(init="random", init_points=2000)
    xyz = initial_gaussians(loaded, params, 0, 0, torch.device("cpu")).xyz
    center, half_side = scene_bounds([view.camera for view in loaded.train])
    reach = (xyz - torch.from_numpy(center).float()).abs().max(dim=0).values
    assert torch.allclose(reach, torch.full((3,), half_side), rtol=0.01)
    assert torch.equal(xyz, initial_gaussians(loaded, params, 0, 0, torch.device("cpu")).xyz)
    assert not torch.equal(xyz, initial_gaussians(loaded, params, 0, 1, torch.device("cpu")).xyz)


@pytest.mark.parametrize("value", [float("nan"), 1e9])
def test_divergence_names_the_view(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Detected at the next log line, and reported with the step and view of the bad loss."""
    views = []
    step = RGBStage.step

    def broken(self: RGBStage, iteration: int):
        terms = step(self, iteration)
        views.append(self.view)
        return terms | {"loss": terms["loss"] * value} if iteration == 14 else terms

    monkeypatch.setattr(RGBStage, "step", broken)
    assert train(scene, tmp_path / "m", "--save_iterations", "10", "--checkpoint_interval", "10") == 2
    errors = capsys.readouterr().err
    assert "diverged" in errors
    assert f"at step 14, in the view {views[13]}." in errors
    assert len(views) == 20  # no step waited for the loss
    assert len(load_ply(tmp_path / "m/point_cloud/iteration_10/point_cloud.ply")) > 0
    assert torch.load(tmp_path / "m/resume.pth", weights_only=True)["iteration"] == 10


def test_nan_parameters_are_not_saved(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rasteriser skips Gaussians at NaN, so the loss stays finite."""
    step = RGBStage.step

    def broken(self: RGBStage, iteration: int):
        terms = step(self, iteration)
        if iteration == ITERATIONS:
            with torch.no_grad():
                self.gaussians.xyz[0] = float("nan")
        return terms

    monkeypatch.setattr(RGBStage, "step", broken)
    assert train(scene, tmp_path / "m", "--checkpoint_interval", "50") == 2
    assert "xyz is NaN or infinite in 1 of" in capsys.readouterr().err
    assert not (tmp_path / "m" / PLY).exists()
    assert torch.load(tmp_path / "m/resume.pth", weights_only=True)["iteration"] == 100


def test_inactive_sh_degrees_are_not_trained(loaded: Scene, tmp_path: Path) -> None:
    stage = make_stage(loaded, tmp_path, sh_interval=3)
    for iteration in (1, 2):
        stage.step(iteration)
        assert not stage.gaussians.features_rest.any()
        assert stage.gaussians.features_rest not in stage._optimizer.adam.state
    stage.step(3)
    assert stage.gaussians.active_sh_degree == 1
    assert stage.gaussians.features_rest.any()
