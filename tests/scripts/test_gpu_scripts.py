"""The three scripts on a GPU: against the CPU, the same bits with --deterministic, --resume across devices, no stalls.

The text encoder is a small random BERT, so that no weights have to be there.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.rigs.tiny_bert import write_bert

if not torch.cuda.is_available():  # before the scripts are imported, which takes seconds
    pytest.skip("PyTorch sees no GPU", allow_module_level=True)

import eval as eval_script
import render as render_script
import train as train_script
from arguments import ModelParams, PipelineParams, ReferringParams
from gaussian_renderer import ScoreRenderer
from inference.predict import open_trained
from referring.field import ReferringField
from referring.kernels.backend import choose_backend
from referring.text_encoder import TextEncoder
from scene.gaussian_model import create_from_points
from scene.layouts.ref_lerf import load
from tests.rigs.small_run import call, failing, interrupting
from training.referrals import step_sizes
from training.referring import ReferringStage
from training.rgb import RGBStage
from utils.colour_metrics import ssim

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("default_torch_settings")]

FAST = [
    *("--rgb_iterations", "60", "--iterations", "20", "--sentences_per_step", "all", "--sh_degree", "1"),
    *("--densify_from_iter", "10", "--densify_until_iter", "60", "--densification_interval", "10"),
    *("--opacity_reset_interval", "45"),
    *("--checkpoint_interval", "25", "--log_interval", "2", "--language_feature_lr", "0.05", "--mlp_lr", "0.001"),
]
MODEL_FILES = ["point_cloud/iteration_60/point_cloud.ply", "referring/iteration_20.safetensors"]


@pytest.fixture(scope="module")
def encoder(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of the words of the scene; tokens are cached in a folder of the test's own."""
    objects = [json.loads(path.read_text())["object"] for path in sorted(scene.glob("json/*/*.json"))]
    words = {word for entries in objects for e in entries for s in e["sentence"] for word in s.lower().split()}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("REFERSPLAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield write_bert(tmp_path_factory.mktemp("bert"), sorted(words))


@pytest.fixture(scope="module")
def start(scene: Path, encoder: Path) -> list[object]:
    return ["-s", scene, "--text_encoder", encoder, *FAST]


@pytest.fixture(scope="module")
def model(start: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the GPU."""
    folder = tmp_path_factory.mktemp("model") / "model"
    assert call(train_script, *start, "-m", folder, "--device", "cuda") == 0
    return folder


@pytest.fixture(scope="module")
def same_bits(start: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the GPU with --deterministic."""
    folder = tmp_path_factory.mktemp("deterministic") / "model"
    assert call(train_script, *start, "-m", folder, "--device", "cuda", "--deterministic") == 0
    return folder


def logged(folder: Path, stage: str, name: str) -> dict[int, float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {line["iteration"]: line[name] for line in lines if line["stage"] == stage and name in line}


def test_training_on_the_gpu_starts_like_on_the_cpu(model: Path, start: list[object], tmp_path: Path) -> None:
    """Means of the first steps, before rounding grows into another course of training."""
    folder = tmp_path / "cpu"
    assert call(train_script, *start, "-m", folder, "--device", "cpu", "--iterations", "0") == 0
    for name in ("loss", "l1", "ssim"):
        found, expected = logged(model, "rgb", name), logged(folder, "rgb", name)
        for iteration in (2, 4, 6):
            assert found[iteration] == pytest.approx(expected[iteration], rel=2e-3)
    gaussians = logged(model, "rgb", "gaussians")
    assert gaussians[60] != gaussians[2]  # densification ran
    losses = logged(model, "rgb", "loss")
    assert losses[40] < 0.9 * losses[2]
    bce = logged(model, "referring", "bce")
    assert bce[20] < bce[2]


def test_the_log_tells_the_hit_rate(model: Path) -> None:
    hits = logged(model, "referring", "plan_hit_rate")
    assert hits[2] < 1
    assert hits[20] == 1  # all views fit
    assert logged(model, "referring", "plan_gigabytes")[20] > 0


def test_render_and_eval(model: Path, tmp_path: Path) -> None:
    """Masks of one model, rendered on either device."""
    folders = {device: Path(shutil.copytree(model, tmp_path / device)) for device in ("cuda", "cpu")}
    results = {}
    for device, folder in folders.items():
        assert call(render_script, "-m", folder, "--device", device, "--views", "all") == 0
        assert call(eval_script, "-m", folder, "--device", device) == 0
        results[device] = json.loads((folder / "results.json").read_text())
    assert results["cuda"]["pairs"] == results["cpu"]["pairs"] > 0
    assert results["cuda"]["missing_predictions"] == []
    assert results["cuda"]["mIoU"] == pytest.approx(results["cpu"]["mIoU"], abs=1)


def test_scores_and_probabilities(model: Path) -> None:
    opened = {
        device: open_trained(
            ModelParams(source_path=Path(config_of(model)["source_path"]), model_path=model),
            PipelineParams(device=device),
            iteration=-1,
            threshold=0.5,
        )
        for device in ("cpu", "cuda")
    }
    views = opened["cpu"].scene.test
    sentences = opened["cpu"].scene.sentences(views)
    tokens = TextEncoder(opened["cpu"].text_encoder).encode(sentences)
    scores = {}
    for device, one in opened.items():
        xyz, field = one.trained.gaussians.xyz, one.trained.field
        scores[device] = field.scores(xyz, [tokens[s].to(device) for s in sentences]).cpu()
    assert scores["cpu"].std() > 0.1
    torch.testing.assert_close(scores["cuda"], scores["cpu"], atol=1e-3, rtol=1e-3)
    for view in views:
        cpu, cuda = (o.predictor.probabilities(view.camera, sentences) for o in opened.values())
        assert cuda.device.type == "cpu"
        assert ((cpu - cuda).abs() > 1e-3).float().mean() < 1e-3  # pixels on a threshold of the rasteriser


def config_of(model: Path) -> dict:
    return json.loads((model / "config.json").read_text())["ModelParams"]


def test_deterministic_runs_are_equal(
    same_bits: Path, start: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in each stage and resumed, against a run without a break; PyTorch refuses what it cannot repeat."""
    for stage, step in ((RGBStage, 33), (ReferringStage, 9)):
        monkeypatch.setattr(stage, "step", interrupting(stage.step, step, signal.SIGINT))
    folder = tmp_path / "model"
    flags = ["--device", "cuda", "--deterministic"]
    assert call(train_script, *start, "-m", folder, *flags) == 128 + signal.SIGINT
    assert call(train_script, "-m", folder, "--resume") == 128 + signal.SIGINT
    assert call(train_script, "-m", folder, "--resume") == 0
    for name in MODEL_FILES:
        assert (folder / name).read_bytes() == (same_bits / name).read_bytes(), name


@pytest.mark.parametrize("form", ["paper", "none"])
def test_other_losses_can_be_deterministic(model: Path, start: list[object], tmp_path: Path, form: str) -> None:
    flags = ["--start_checkpoint", model / MODEL_FILES[0], "--iterations", "3", "--contrastive", form]
    flags += ["--sentences_per_step", "1", "--deterministic", "--export_checkpoint", "--device", "cuda"]
    assert call(train_script, *start, "-m", tmp_path / "m", *flags, "--plan_memory", "0") == 0
    assert (tmp_path / "m" / "chkpnt3.pth").is_file()


@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_resume_on_another_device(
    start: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    """After the checkpoint at step 25 of the RGB stage, and again in the referring stage."""
    folder = tmp_path / "model"
    short = ["--sentences_per_step", "1", "--iterations", "4"]
    with monkeypatch.context() as patched:
        patched.setattr(RGBStage, "step", failing(RGBStage.step, 28))
        with pytest.raises(RuntimeError, match="as if killed"):
            call(train_script, *start, *short, "-m", folder, "--device", first)
    assert call(train_script, "-m", folder, "--resume", "--device", second) == 0
    assert call(train_script, "-m", folder, "--resume", "--device", first, "--iterations", "8") == 0
    losses = logged(folder, "rgb", "loss")
    assert losses[40] < 0.9 * losses[2]
    assert (folder / "referring" / "iteration_8.safetensors").is_file()


@pytest.mark.parametrize("contrastive", ["released", "paper"])
@pytest.mark.parametrize("sentences", ["1", "3", "all"])
def test_steps_with_kept_plans_never_wait_for_the_gpu(
    scene: Path, encoder: Path, tmp_path: Path, sentences: str, contrastive: str
) -> None:
    """The second epoch, with another tau: plans, masks, graphs are on the GPU, so the CPU may run ahead."""
    loaded = load(scene, "images", -1, "gt_mask")
    gaussians = create_from_points(loaded.xyz, loaded.rgb, 0, loaded.extent, "cuda")
    tokens = TextEncoder(str(encoder)).encode(loaded.sentences([*loaded.train, *loaded.test]))
    field = ReferringField(len(gaussians), 32).cuda()
    field.backend = choose_backend(torch.device("cuda"))
    params = ReferringParams(sentences_per_step=sentences, contrastive=contrastive)
    renderer = ScoreRenderer(gaussians, 10**9)
    stage = ReferringStage(tmp_path, loaded, gaussians, field, tokens, params, renderer, seed=0, rgb_iteration=0)
    views = [view for view in loaded.train if view.referrals]
    epoch = sum(step_sizes(views, sentences).values())
    for iteration in range(2000 - epoch, 2000):  # then tau changes
        stage.step(iteration)
    assert len(renderer.plans) == len(views)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for iteration in range(2000, 2005):
            terms = stage.step(iteration)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert terms["plan_hit_rate"] == 1
    assert torch.isfinite(terms["loss"])


def test_ssim_has_all_bits() -> None:
    """Bright, nearly flat pictures: with inputs rounded to 10 bits (TF32) their variance is lost."""
    generator = torch.Generator().manual_seed(0)
    target = 0.9 + 0.01 * torch.rand(3, 90, 120, generator=generator)
    image = (target + 0.01 * torch.rand(3, 90, 120, generator=generator)).requires_grad_()
    expected = ssim(image.double(), target.double())
    (gradient,) = torch.autograd.grad(expected, image)
    on_gpu = image.detach().cuda().requires_grad_()
    found = ssim(on_gpu, target.cuda())
    found.backward()
    assert found.item() == pytest.approx(expected.item(), abs=1e-4)
    assert (on_gpu.grad.cpu() - gradient).norm() < 0.01 * gradient.norm()


def test_new_models_are_the_same_on_either_device() -> None:
    generator = np.random.default_rng(0)
    xyz, rgb = generator.normal(size=(500, 3)), generator.integers(0, 256, (500, 3)).astype(np.uint8)
    cpu, cuda = (create_from_points(xyz, rgb, 3, 1.0, device) for device in ("cpu", "cuda"))
    for name, expected in cpu.parameters().items():
        assert cuda.parameters()[name].device.type == "cuda"
        torch.testing.assert_close(cuda.parameters()[name].cpu(), expected, rtol=1e-5, atol=1e-5)
