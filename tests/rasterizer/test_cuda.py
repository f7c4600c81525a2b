"""The CUDA kernels against the CPU kernels, on scenes too large for reference.py, and against closed forms.

The small scenes of test_rasterizer*.py and test_golden.py run on CUDA as well.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diff_gaussian_rasterization import (
    GaussianRasterizationSettings,
    GaussianRasterizer,
    RasterPlan,
    prepare,
    rasterize_scores,
)
from tests.rigs.splat_scenes import Splats, looking_down_z, random_splats, relative_l2, view_settings

PICTURE_TOLERANCE = 1e-4  # for 99.9 % of the pixels; the others sit on an alpha or transmittance threshold
GRADIENT_TOLERANCE = 1e-3  # relative L2
THRESHOLD_SHARE = 1e-3

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _both_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DGR_BACKEND", raising=False)


def agreement(found: Tensor, expected: Tensor) -> Tensor:
    """[H, W] bool, on the CPU: the pixels of [C, H, W] that are equal within the tolerance, which are nearly all."""
    assert found.shape == expected.shape
    agree = ((found.detach().cpu() - expected.detach().cpu()).abs() <= PICTURE_TOLERANCE).all(0)
    apart = (~agree).sum().item()
    assert apart <= max(1, THRESHOLD_SHARE * agree.numel()), f"{apart} of {agree.numel()} pixels differ"
    return agree


def compare_full(splats: Splats, settings: GaussianRasterizationSettings) -> None:
    """Outputs and every gradient of the full path for random cotangents, which are 0 where the pictures differ."""
    inputs = {device: splats.leaves(device=device) for device in ("cpu", "cuda")}
    outputs = {device: GaussianRasterizer(settings)(**leaves) for device, leaves in inputs.items()}
    assert torch.equal(outputs["cuda"][2].cpu(), outputs["cpu"][2])
    pictures = {device: torch.cat(output[:2]) for device, output in outputs.items()}
    agree = agreement(pictures["cuda"], pictures["cpu"])
    cotangent = torch.randn(pictures["cpu"].shape, generator=torch.Generator().manual_seed(0)) * agree
    for device, picture in pictures.items():
        picture.backward(cotangent.to(device))
    for name, expected in inputs["cpu"].items():
        error = relative_l2(inputs["cuda"][name].grad, expected.grad)
        assert error < GRADIENT_TOLERANCE, f"{name}: {error:.2e}"


def compare_scores(splats: Splats, settings: GaussianRasterizationSettings) -> None:
    """Scores with and without a plan, their gradient, backproject and transmittance."""
    on_gpu = splats.to("cuda")
    expected_plan = prepare(settings=settings, **splats.geometry())
    plan = prepare(settings=settings, **on_gpu.geometry())
    assert torch.equal(plan.radii.cpu(), expected_plan.radii)
    agreement(plan.transmittance()[None], expected_plan.transmittance()[None])

    expected_scores = splats.language_feature_precomp.clone().requires_grad_()
    expected = expected_plan.render(expected_scores)
    planned, direct = (on_gpu.language_feature_precomp.clone().requires_grad_() for _ in range(2))
    pictures = [plan.render(planned), rasterize_scores(direct, settings=settings, **on_gpu.geometry())]
    agree = agreement(pictures[0], expected) & agreement(pictures[1], expected)
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)) * agree
    expected.backward(cotangent)
    for picture in pictures:
        picture.backward(cotangent.to("cuda"))
    for name, found in (
        ("with plan", planned.grad),
        ("without plan", direct.grad),
        ("backproject", plan.backproject(cotangent.to("cuda"))),
    ):
        error = relative_l2(found, expected_scores.grad)
        assert error < GRADIENT_TOLERANCE, f"{name}: {error:.2e}"


@pytest.mark.parametrize(
    ("size", "opacity", "degree", "channels"), [(0.01, 1, 3, 3), (0.05, 0.1, 0, 1)], ids=["opaque", "transparent"]
)
def test_50k_gaussians(size: float, opacity: float, degree: int, channels: int) -> None:
    splats = random_splats(80, 50_000, channels, sh_degree=degree, size=size)
    splats.opacities *= opacity
    settings = view_settings(looking_down_z(640, 480), sh_degree=degree)
    compare_full(splats, settings)
    compare_scores(splats, settings)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8, 16, 17, 31, 32, 33, 64, 100])
def test_score_counts(channels: int) -> None:
    splats = random_splats(81, 5000, channels, size=0.05)
    splats.opacities *= 0.2
    compare_scores(splats, view_settings(looking_down_z(150, 97)))


@pytest.mark.parametrize("channels", [1, 2, 4, 8, 13, 16, 32, 64])
def test_feature_counts(channels: int) -> None:
    splats = random_splats(82, 3000, channels, size=0.05)
    splats.opacities *= 0.2
    compare_full(splats, view_settings(looking_down_z(149, 83)))


@pytest.mark.slow
def test_five_million_gaussians() -> None:
    """A few thousand Gaussians blend into each pixel, and many have equal depths in float32."""
    splats = random_splats(83, 5_000_000, size=0.01)
    splats.opacities *= 0.02
    settings = view_settings(looking_down_z(64, 48))
    compare_scores(splats, settings)
    compare_full(splats, settings)


def test_more_than_65535_tiles() -> None:
    splats = random_splats(84, 2000, size=0.05)
    compare_scores(splats, view_settings(looking_down_z(4400, 4000)))


@pytest.mark.parametrize("width", [1, 15, 16, 17, 5000])
def test_narrow_pictures(width: int) -> None:
    for size in ((width, 1), (1, width)):
        settings = view_settings(looking_down_z(*size, focal=40.0))
        splats = random_splats(85, 300, 2)
        compare_full(splats, settings)
        compare_scores(splats, settings)


def pile(n: int, channels: int, opacity: float) -> Splats:
    """Gaussians of one shape at one place in the middle of the picture: equal depths, drawn in the order of index."""
    splats = random_splats(86, n, channels)
    splats.means3D = torch.tensor([[0.0, 0.0, 2.0]]).repeat(n, 1)
    splats.opacities = torch.full((n, 1), opacity)
    splats.scales = torch.full((n, 3), 0.05)
    return splats


def test_equal_depths_are_drawn_by_index() -> None:
    """In closed form: the i-th has weight 0.5^(i + 1), until the next would bring the transmittance under 1e-4."""
    n, drawn = 20_000, 13
    splats = pile(n, 2, 0.5).to("cuda")
    settings = view_settings(looking_down_z(1, 1))
    weights = 0.5 ** torch.arange(1, drawn + 1, device="cuda")
    expected = weights @ splats.language_feature_precomp[:drawn]
    plan = prepare(settings=settings, **splats.geometry())
    found = [
        plan.render(splats.language_feature_precomp),
        rasterize_scores(splats.language_feature_precomp, settings=settings, **splats.geometry()),
        GaussianRasterizer(settings)(**splats.leaves())[1],
    ]
    for picture in found:
        assert torch.allclose(picture[:, 0, 0], expected, atol=1e-6)
    gradient = plan.backproject(torch.ones(1, 1, 1, device="cuda"))[:, 0]
    assert torch.allclose(gradient[:drawn], weights)
    assert gradient[drawn:].eq(0).all()
    assert plan.transmittance().item() == pytest.approx(0.5**drawn)


@pytest.mark.parametrize("skipped", [0, 9, 99], ids=lambda k: f"{k} of {k + 1} under the floor")
def test_long_list_in_one_tile(skipped: int) -> None:
    """20,000 Gaussians in the same tiles; about 2,000 of weight 1/222 close a pixel."""
    splats = pile(20_000, 3, 0.0045)
    splats.opacities[torch.arange(20_000) % (skipped + 1) > 0] = 0.0038
    settings = view_settings(looking_down_z(40, 24))
    compare_full(splats, settings)
    compare_scores(splats, settings)


def test_growing_and_shrinking_scenes() -> None:
    """Nothing is kept between calls: a scene's result is the same whatever was drawn before."""
    settings = view_settings(looking_down_z(100, 60))

    def render(n: int) -> Tensor:
        splats = random_splats(87, n).to("cuda")
        return rasterize_scores(splats.language_feature_precomp, settings=settings, **splats.geometry())

    first = {n: render(n) for n in (50, 3000, 0, 1, 700)}
    for n, picture in reversed(first.items()):
        assert torch.equal(render(n), picture)


def test_plans_of_several_views_do_not_mix() -> None:
    splats = random_splats(88, 500, 2).to("cuda")
    cameras = [looking_down_z(w, h) for w, h in ((64, 48), (31, 77), (128, 16))]
    plans: list[RasterPlan] = [prepare(settings=view_settings(camera), **splats.geometry()) for camera in cameras]
    scores = splats.language_feature_precomp.clone().requires_grad_()
    pictures = [plan.render(scores) for plan in plans]
    for camera, picture in zip(cameras, pictures, strict=True):
        alone = rasterize_scores(scores, settings=view_settings(camera), **splats.geometry())
        assert torch.allclose(picture, alone, atol=1e-5)
    sum(picture.sum() for picture in pictures).backward()
    expected = sum(plan.backproject(torch.ones_like(p)) for plan, p in zip(plans, pictures, strict=True))
    assert relative_l2(scores.grad, expected) < 1e-5
