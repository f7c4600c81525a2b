"""RGB stage on a GPU: results of the CPU, the same bits with --deterministic, no synchronisation in PyTorch."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

if not torch.cuda.is_available():  # before the scripts are imported, which takes seconds
    pytest.skip("PyTorch sees no GPU", allow_module_level=True)

import train as train_script
from arguments import RGBParams
from gaussian_renderer import render
from scene.dataset import Scene
from scene.layouts.ref_lerf import load
from tests.rigs.small_run import call, interrupting, make_scene
from tests.training.test_step_kernels import check_photo_loss, pictures
from training.photos import photo_loss
from training.rgb import RGBStage, initial_gaussians

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("default_torch_settings")]

MOST_KERNELS = 100  # in a step with MCMC: 13 of ours, 5 of PyTorch, about 25 that list and sort Gaussians

OPTIONS = {
    "adc": {},
    "mcmc": {"densification": "mcmc", "cap_max": 12_000},
    "all options": {
        "densification": "mcmc",
        "cap_max": 12_000,
        "exposure": True,
        "antialiasing": True,
        "random_background": True,
        "ignore_mask_dir": Path("ignored"),
    },
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_scene(tmp_path_factory.mktemp("synthetic") / "scene")
    (folder / "ignored").mkdir()
    (folder / "ignored" / "all.png").write_bytes(next((folder / "gt_mask").rglob("*.png")).read_bytes())
    return folder


@pytest.fixture(scope="module")
def loaded(scene: Path) -> Scene:
    return load(scene, "images", -1, "gt_mask")


def make_stage(device: str, loaded: Scene, folder: Path, **flags) -> RGBStage:
    params = RGBParams(rgb_iterations=1000, densify_from_iter=20, sh_interval=10, **flags)
    gaussians = initial_gaussians(loaded, params, 2, 0, torch.device(device))
    return RGBStage(folder, loaded, gaussians, params, torch.zeros(3), seed=0)


@pytest.mark.parametrize("options", OPTIONS)
def test_first_steps_match_the_cpu(loaded: Scene, tmp_path: Path, options: str) -> None:
    flags = {**OPTIONS[options], **({"noise_lr": 0.0} if "mcmc" in str(OPTIONS[options]) else {})}
    stages = [make_stage(device, loaded, tmp_path, **flags) for device in ("cpu", "cuda")]
    for iteration in range(1, 8):
        cpu, cuda = (stage.step(iteration) for stage in stages)
        for name in ("loss", "l1", "ssim"):
            assert cuda[name].item() == pytest.approx(cpu[name].item(), rel=2e-3, abs=1e-4), (iteration, name)


@pytest.mark.parametrize("options", OPTIONS)
def test_ordinary_steps_never_synchronise_in_pytorch(loaded: Scene, tmp_path: Path, options: str) -> None:
    """Once the photos are on the GPU; the rasteriser reads the size of its lists through its own library."""
    stage = make_stage("cuda", loaded, tmp_path, **OPTIONS[options])
    for iteration in range(1, 2 * len(loaded.train)):
        stage.step(iteration)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for iteration in range(101, 101 + 2 * len(loaded.train)):
            if iteration % 100:
                terms = stage.step(iteration)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(terms["loss"])


def test_mcmc_growth_keeps_the_rendering(loaded: Scene, tmp_path: Path) -> None:
    stage = make_stage("cuda", loaded, tmp_path, **OPTIONS["mcmc"])
    for iteration in range(1, 60):
        stage.step(iteration)
    camera, model = loaded.test[0].camera, stage.gaussians
    with torch.no_grad():
        before, count = render(camera, model, torch.zeros(3)).image, len(model)
        stage._density.grow()
        after = render(camera, model, torch.zeros(3)).image
    assert len(model) > count
    assert (after - before).square().mean() < 1e-4


def test_deterministic_mcmc_runs_are_equal(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was interrupted and resumed equals one that was not."""
    flags = [
        *("-s", scene, "--device", "cuda", "--deterministic", "--iterations", "0", "--rgb_iterations", "60"),
        *("--densify_from_iter", "10", "--densification_interval", "10", "--densification", "mcmc"),
        *("--exposure", "--antialiasing", "--random_background", "--sh_interval", "20", "--cap_max", "12000"),
    ]
    assert call(train_script, *flags, "-m", tmp_path / "whole") == 0
    monkeypatch.setattr(RGBStage, "step", interrupting(RGBStage.step, 33, signal.SIGINT))
    assert call(train_script, *flags, "-m", tmp_path / "broken") == 128 + signal.SIGINT
    assert call(train_script, "-m", tmp_path / "broken", "--resume") == 0
    name = "point_cloud/iteration_60/point_cloud.ply"
    assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("size", [(1, 1), (11, 5), (481, 645), (1080, 1920)])  # H, W
@pytest.mark.parametrize("masked", [False, True])
def test_photo_loss_matches_float64(size: tuple[int, int], masked: bool) -> None:
    check_photo_loss(size, masked, torch.device("cuda"))


def test_photo_loss_is_deterministic() -> None:
    image, photo = (tensor.cuda() for tensor in pictures((481, 645)))
    results = []
    for _ in range(2):
        leaf = image.clone().requires_grad_()
        terms = photo_loss(leaf, photo, None, 0.2)
        terms[0].backward()
        results.append([*(term.detach() for term in terms), leaf.grad])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_step_takes_few_launches(loaded: Scene, tmp_path: Path) -> None:
    stage = make_stage("cuda", loaded, tmp_path, **OPTIONS["mcmc"])
    for iteration in range(101, 140):
        stage.step(iteration)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for iteration in range(141, 151):
            stage.step(iteration)
        torch.cuda.synchronize()
    on_gpu = [event.name for event in trace.events() if event.device_type == DeviceType.CUDA]
    kernels = [name for name in on_gpu if not name.startswith(("Memcpy", "Memset"))]
    assert 10 < len(kernels) / 10 <= MOST_KERNELS
