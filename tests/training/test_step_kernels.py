"""The kernels of a training step (csrc/dgr_step.h) against plain PyTorch, on a GPU or emulated on the CPU."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arguments import RGBParams
from diff_gaussian_rasterization import abi, build, step_kernels, toolchain
from diff_gaussian_rasterization.backends import cuda_missing
from gaussian_renderer.renderer import activate
from scene.dataset import View
from scene.layouts.ref_lerf import load
from tests.rigs.gaussian_cases import gaussians
from tests.rigs.paths import ROOT
from training.densification import DensityControl
from training.gaussian_optimizer import GaussianOptimizer
from training.mcmc import MarkovChain
from training.photos import photo_loss
from training.rgb import RGBStage, initial_gaussians
from utils.colour_metrics import ssim

DEVICE = torch.device("cuda" if cuda_missing() is None else "cpu")
SIZES = [(1, 1), (11, 5), (33, 70)]  # H, W; a block has 32 x 32 pixels


class Emulated:
    """Replaces `abi.Gpu` on the CPU."""

    def __init__(self, path: Path):
        self._library = ctypes.CDLL(str(path))
        for name, arguments in abi.SIGNATURES["cuda"].items():
            if hasattr(self._library, name):
                getattr(self._library, name).argtypes = (ctypes.POINTER(abi.Exec), *arguments)

    def call(self, name: str, *arguments) -> None:
        passed = (a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
        assert getattr(self._library, name)(abi.Exec(), *passed) == 0


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    path = tmp_path_factory.mktemp("emulated") / "libstep.so"
    includes = [f"-I{folder}" for folder in (ROOT / "referring" / "kernels" / "csrc", build.CSRC)]
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    source = ROOT / "tests" / "rigs" / "emulated" / "step.cpp"
    command = [*toolchain.find_compiler().command, *flags, *includes, str(source), "-o", str(path)]
    subprocess.run(command, check=True)
    return Emulated(path)


@pytest.fixture
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Run the kernels, on a GPU or emulated; `use_pytorch` switches to plain PyTorch."""
    monkeypatch.delenv("DGR_BACKEND", raising=False)
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE.type == "cpu":
            library = request.getfixturevalue("emulated")
            patch.setattr(step_kernels, "available", lambda device: True)
            patch.setattr(abi, "Gpu", lambda device: library)
        yield patch


def use_pytorch(kernels: pytest.MonkeyPatch) -> None:
    """Use plain PyTorch from here on."""
    kernels.undo()
    kernels.setattr(step_kernels, "available", lambda device: False)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    """Check the largest error relative to the largest number."""
    error, size = (found.double().cpu() - expected.double().cpu()).abs().max(), expected.abs().max().item()
    assert error <= tolerance * max(size, 1e-12), (error.item(), size)


def pictures(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Make a rendering [3, H, W] and a smooth photo like it, uint8."""
    generator = torch.Generator().manual_seed(size[0])
    coarse = torch.rand(1, 3, 4, 5, generator=generator)
    photo = (255 * F.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)[0]).byte()
    return photo / 255 + 0.1 * torch.randn(photo.shape, generator=generator), photo


def float64_loss(image: Tensor, photo: Tensor, ignored: Tensor | None, weight: float) -> tuple[Tensor, ...]:
    target = photo.double() / 255
    if ignored is not None:
        image, target = image.masked_fill(ignored, 0), target.masked_fill(ignored, 0)
    l1, similarity = (image - target).abs().mean(), ssim(image, target)
    return (1 - weight) * l1 + weight * (1 - similarity), l1, similarity


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_photo_loss_matches_float64(kernels: pytest.MonkeyPatch, size: tuple[int, int], masked: bool) -> None:
    check_photo_loss(size, masked, DEVICE)


def check_photo_loss(size: tuple[int, int], masked: bool, device: torch.device) -> None:
    """Compare the loss of an image [3, *size] and its gradient with plain PyTorch in float64."""
    image, photo = pictures(size)
    ignored = torch.rand(size, generator=torch.Generator().manual_seed(1)) < 0.3 if masked else None
    exact = image.double().requires_grad_()
    expected = float64_loss(exact, photo, ignored, 0.2)
    (3 * expected[0]).backward()
    image = image.to(device).requires_grad_()
    terms = photo_loss(image, photo.to(device), None if ignored is None else ignored.to(device), 0.2)
    assert [t.requires_grad for t in terms] == [True, False, False]
    (3 * terms[0]).backward()
    for found, exact_term in zip(terms, expected, strict=True):
        assert found.item() == pytest.approx(exact_term.item(), abs=1e-6)
    # where both images are equal up to rounding, the sign of the difference is arbitrary
    decided = (exact.detach() - photo.double() / 255).abs() > 1e-6
    assert_close(image.grad.cpu() * decided, exact.grad * decided, 2e-4)  # plain PyTorch in float32: 1.2e-4
    if ignored is not None:
        assert not image.grad[:, ignored.to(device)].any()


def test_photo_loss_of_equal_images_is_zero(kernels: pytest.MonkeyPatch) -> None:
    _, photo = pictures((20, 40))
    with torch.no_grad():
        loss, l1, similarity = photo_loss((photo / 255).to(DEVICE), photo.to(DEVICE), None, 0.2)
    assert l1.item() == 0
    assert (loss.item(), similarity.item()) == pytest.approx((0, 1), abs=1e-6)


def test_photo_loss_rejects_tensors_that_do_not_fit(kernels: pytest.MonkeyPatch) -> None:
    image, photo = (tensor.to(DEVICE) for tensor in pictures((4, 5)))
    for arguments in (
        (image, photo[:2], None),
        (image, image, None),
        (image, photo, photo[0]),
        (image[0], photo, None),
    ):
        with pytest.raises(ValueError, match="must be torch"):
            photo_loss(*arguments, 0.2)


def make_model(sh_degree: int = 2, count: int = 300):
    """Make Gaussians of all sizes, opacities and rotations, as leaves on the device."""
    generator = torch.Generator().manual_seed(4)
    model = gaussians([0.1] * count, sh_degree=sh_degree)
    model.scaling = torch.randn(count, 3, generator=generator) - 2
    model.rotation = torch.randn(count, 4, generator=generator)
    model.rotation[0] *= 1e-13  # shorter than the epsilon of its normalisation
    model.opacity = 3 * torch.randn(count, 1, generator=generator) - 3
    model = model.to(DEVICE)
    for tensor in model.parameters().values():
        tensor.requires_grad_()
    return model


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.01, 0.03)])
def test_activations_match_pytorch(kernels: pytest.MonkeyPatch, degree: int, weights: tuple[float, float]) -> None:
    results = []
    for _ in range(2):
        model = make_model()
        model.active_sh_degree = degree
        activated = activate(model, *weights)
        generator = torch.Generator().manual_seed(5)
        terms = [(t * torch.randn(t.shape, generator=generator).to(DEVICE)).sum() for t in activated if t is not None]
        torch.stack(terms).sum().backward()
        results.append((activated, {name: tensor.grad for name, tensor in model.parameters().items()}))
        use_pytorch(kernels)
    (found, gradients), (expected, expected_gradients) = results
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_close(ours, theirs)
    for name, gradient in expected_gradients.items():
        assert (gradients[name] is None) == (gradient is None), name
        if name == "rotation":  # the gradient of the short one is huge
            assert_close(gradients[name][0], gradient[0])
            assert_close(gradients[name][1:], gradient[1:])
        elif gradient is not None:
            assert_close(gradients[name], gradient)


def test_parameters_may_have_any_strides(kernels: pytest.MonkeyPatch) -> None:
    """SH coefficients from files are stored channel by channel."""
    results = []
    for is_turned in (False, True):
        model = make_model()
        if is_turned:
            turned = model.features_rest.detach().transpose(1, 2).contiguous().transpose(1, 2)
            model.features_rest = turned.requires_grad_()
        optimizer = GaussianOptimizer(model, params())
        for iteration in (1, 2):
            (activate(model)[3] ** 2).sum().backward()
            optimizer.update(iteration)
        results.append(optimizer.model.features_rest)
    assert torch.equal(*results)


def test_activations_without_some_gradients(kernels: pytest.MonkeyPatch) -> None:
    model = make_model()
    activate(model)[1].sum().backward()
    torch.testing.assert_close(model.scaling.grad, model.scaling.exp().detach())
    assert model.features_dc.grad is None
    assert not model.opacity.grad.any()
    assert not model.rotation.grad.any()


def params(**flags) -> RGBParams:
    return RGBParams(rgb_iterations=100, **flags)


def test_adam_matches_pytorch(kernels: pytest.MonkeyPatch) -> None:
    """Including appended Gaussians, a restored state, and steps without a gradient of the SH coefficients."""
    results = []
    for _ in range(2):
        optimizer = GaussianOptimizer(make_model(), params())
        generator = torch.Generator().manual_seed(6)
        for iteration in range(1, 8):
            for name, tensor in optimizer.model.parameters().items():
                if name != "features_rest" or iteration > 3:
                    tensor.grad = torch.randn(tensor.shape, generator=generator).to(DEVICE)
            optimizer.update(iteration)
            assert all(tensor.grad is None for tensor in optimizer.model.parameters().values())
            if iteration == 4:
                optimizer.append({name: t[:7].detach() for name, t in optimizer.model.parameters().items()})
            if iteration == 5:
                state, optimizer = optimizer.state(), GaussianOptimizer(optimizer.model, params())
                optimizer.load_state(state)
        results.append((optimizer.model.parameters(), optimizer.state()["state"]))
        use_pytorch(kernels)
    (found, state), (expected, expected_state) = results
    for name, tensor in expected.items():
        assert_close(found[name], tensor)
    for number, moments in expected_state.items():
        for name, tensor in moments.items():
            assert_close(state[number][name], tensor, 5e-5)  # PyTorch's kernel on GPUs rounds 1 - beta2 to floats


def test_noise_of_mcmc_matches_pytorch(kernels: pytest.MonkeyPatch) -> None:
    results = []
    for _ in range(2):
        chain = MarkovChain(GaussianOptimizer(make_model(), params()), params(), torch.Generator().manual_seed(7))
        before = chain._model.xyz.detach().clone()
        chain.add_noise(1e-3)
        results.append(chain._model.xyz.detach() - before)
        use_pytorch(kernels)
    assert results[0].any()
    assert_close(*results, 1e-4)  # rounded with the positions


def test_statistics_of_densification_match_pytorch(kernels: pytest.MonkeyPatch) -> None:
    results = []
    for _ in range(2):
        optimizer = GaussianOptimizer(make_model(), params())
        control = DensityControl(optimizer, params(prune_screen_size=20), torch.Generator())
        generator = torch.Generator().manual_seed(8)
        for _ in range(3):
            radii = torch.randint(-1, 9, (300,), generator=generator, dtype=torch.int32).clamp_min(0)
            control.observe(torch.randn(300, 3, generator=generator).to(DEVICE), radii.to(DEVICE))
        results.append(control.state())
        use_pytorch(kernels)
    for name, expected in results[1].items():
        assert_close(results[0][name], expected)


OPTIONS = {
    "adc": {},
    "mcmc": {"densification": "mcmc"},
    "all options": {"densification": "mcmc", "exposure": True, "antialiasing": True, "random_background": True},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_steps_of_the_stage_match_pytorch(
    kernels: pytest.MonkeyPatch, scene: Path, tmp_path: Path, options: str
) -> None:
    """Losses and parameters; a few differ, as the first Adam steps follow the sign of gradients near 0."""
    loaded, flags, results = load(scene, "images", -1, "gt_mask"), params(sh_interval=2, **OPTIONS[options]), []
    for _ in range(2):
        model = initial_gaussians(loaded, flags, 1, 0, DEVICE)
        # for round Gaussians, the gradient of the rotation would be rounding noise
        model.scaling += torch.tensor([0.5, 0.0, -0.5], device=DEVICE)
        model.rotation = torch.randn(len(model), 4, generator=torch.Generator().manual_seed(9)).to(DEVICE)
        stage = RGBStage(tmp_path, loaded, model, flags, torch.zeros(3), seed=0)
        stage._photos.ignored = mask_left_half
        terms = [stage.step(iteration) for iteration in (1, 2, 3)]
        losses = [term[name].item() for term in terms for name in ("loss", "l1", "ssim")]
        results.append((losses, model.parameters()))
        use_pytorch(kernels)
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    for name, expected in results[1][1].items():
        is_near = torch.isclose(results[0][1][name], expected, rtol=1e-4, atol=1e-5)
        assert is_near.float().mean() > 0.98, name


def mask_left_half(view: View) -> Tensor:
    """Mask the left half, [H, W]."""
    return (torch.arange(view.camera.width, device=DEVICE) < view.camera.width // 2).repeat(view.camera.height, 1)
