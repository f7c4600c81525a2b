"""Frozen geometry: plans against the full rasteriser, reference.py in float64, and the dense matrix of weights."""

from __future__ import annotations

import pytest
import torch

from diff_gaussian_rasterization import GaussianRasterizer, RasterPlan, prepare, rasterize_scores
from scene.cameras import Camera
from tests.rigs.splat_scenes import DEGENERATE, Splats, looking_down_z, random_splats, relative_l2, view_settings

TOLERANCE = 1e-5  # of sums of some hundred float32 numbers about 1

pytestmark = pytest.mark.usefixtures("compiled_backend")
# For properties of every backend's plans.
every_plan = pytest.mark.parametrize("backend", [None, "reference"], ids=["compiled", "reference"])


def make_plan(splats: Splats, camera: Camera, backend: str | None = None) -> RasterPlan:
    return prepare(settings=view_settings(camera), backend=backend, **splats.geometry())


@pytest.mark.parametrize("channels", [0, 1, 2, 3, 5, 17, 40, 64])
def test_scores_path_equals_full_path(channels: int, device: str) -> None:
    splats = random_splats(50, 300, channels).to(device)
    settings = view_settings(looking_down_z(70, 45))
    inputs = splats.leaves()
    _, language, radii = GaussianRasterizer(settings)(**inputs)
    scores = splats.language_feature_precomp.clone().requires_grad_()
    plan = prepare(settings=settings, **splats.geometry())
    picture = plan.render(scores)
    assert picture.shape == (channels, 45, 70)
    assert torch.allclose(picture, language, atol=TOLERANCE)
    assert torch.equal(plan.radii, radii)
    assert plan.nbytes > 0
    unplanned = scores.detach().clone().requires_grad_()
    direct = rasterize_scores(unplanned, settings=settings, **splats.geometry())
    assert torch.allclose(direct, picture, atol=TOLERANCE)

    cotangent = torch.randn(picture.shape, generator=torch.Generator().manual_seed(1)).to(device)
    for output in (picture, language, direct):
        output.backward(cotangent)
    expected = inputs["language_feature_precomp"].grad
    assert relative_l2(scores.grad, expected) < TOLERANCE
    assert relative_l2(unplanned.grad, expected) < TOLERANCE


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33)], ids=str)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate(case: str, size: tuple[int, int], device: str) -> None:
    splats = random_splats(30, 40, 2)
    vars(splats).update(DEGENERATE[case](splats))
    scores = splats.language_feature_precomp
    image = torch.randn(3, size[1], size[0], generator=torch.Generator().manual_seed(2))
    plan = make_plan(splats.to(device), looking_down_z(*size))
    geometry = {name: t.double() for name, t in splats.geometry().items()}
    oracle = prepare(settings=view_settings(looking_down_z(*size)), backend="reference", **geometry)
    assert torch.equal(plan.radii.cpu(), oracle.radii)
    assert torch.allclose(plan.render(scores.to(device)).cpu().double(), oracle.render(scores.double()), atol=2e-5)
    assert torch.allclose(plan.transmittance().cpu().double(), oracle.transmittance(), atol=TOLERANCE)
    assert relative_l2(plan.backproject(image.to(device)), oracle.backproject(image.double())) < 2e-5


@every_plan
@pytest.mark.parametrize("channels", [1, 3, 16, 33])
def test_backproject_is_the_transpose_of_the_weights(backend: str | None, channels: int, device: str) -> None:
    n, width, height = 30, 37, 21
    splats = random_splats(54, n, size=0.3).to(device)
    plan = make_plan(splats, looking_down_z(width, height), backend)
    weights = plan.render(torch.eye(n, device=device)).double()  # [N, H, W]: one Gaussian a channel
    assert weights.max() > 0.1
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(channels, height, width, generator=generator).to(device)
    found = plan.backproject(image)
    assert found.shape == (n, channels)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert relative_l2(found, torch.einsum("nhw,chw->nc", weights, image.double())) < TOLERANCE

    scores = torch.zeros(n, channels, device=device, requires_grad=True)
    plan.render(scores).backward(image)
    assert relative_l2(found, scores.grad) < TOLERANCE

    ones = plan.backproject(torch.ones(1, height, width, device=device))
    assert relative_l2(ones, weights.sum((1, 2))[:, None]) < TOLERANCE


@every_plan
@pytest.mark.parametrize("size", [0.05, 0.6])
def test_transmittance_is_one_minus_the_picture_of_ones(backend: str | None, size: float, device: str) -> None:
    n = 200
    plan = make_plan(random_splats(55, n, size=size).to(device), looking_down_z(50, 35), backend)
    rest = plan.transmittance()
    assert rest.shape == (35, 50)
    assert not rest.requires_grad
    assert rest.min() >= 0
    assert rest.max() <= 1
    assert torch.allclose(rest, 1 - plan.render(torch.ones(n, 1, device=device))[0], atol=TOLERANCE)


@every_plan
def test_nothing_in_view_is_transparent(backend: str | None, device: str) -> None:
    splats = random_splats(56, 10).to(device)
    splats.means3D = splats.means3D - torch.tensor([0.0, 0.0, 20.0], device=device)
    plan = make_plan(splats, looking_down_z(20, 10), backend)
    assert plan.transmittance().eq(1).all()
    assert plan.backproject(torch.ones(2, 10, 20, device=device)).eq(0).all()


@every_plan
@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(10, 20),
        torch.zeros(1, 20, 10),
        torch.zeros(1, 10, 20, dtype=torch.float64),
        torch.zeros(1, 10, 20, dtype=torch.float16),
        torch.zeros(1, 10, 20, device="meta"),
    ],
    ids=lambda t: f"{list(t.shape)} {t.dtype} {t.device}",
)
def test_mistakes_in_images(backend: str | None, image: torch.Tensor, device: str) -> None:
    plan = make_plan(random_splats(57, 4).to(device), looking_down_z(20, 10), backend)
    with pytest.raises(ValueError, match="image"):
        plan.backproject(image if image.is_meta else image.to(device))


@every_plan
def test_mistakes_in_scores(backend: str | None, device: str) -> None:
    plan = make_plan(random_splats(72, 4).to(device), looking_down_z(20, 10), backend)
    wrong = (torch.zeros(3, 1), torch.zeros(4), torch.zeros(4, 1).double(), torch.zeros(4, 1).half())
    for scores in (*(t.to(device) for t in wrong), torch.zeros(4, 1, device="meta")):
        with pytest.raises(ValueError, match="scores"):
            plan.render(scores)


def test_plan_outlives_its_inputs(device: str) -> None:
    splats = random_splats(51, 100, 1).to(device)
    plan = make_plan(splats, looking_down_z(40, 30))
    before = plan.render(splats.language_feature_precomp)
    for tensor in splats.geometry().values():
        tensor.zero_()
    assert torch.equal(plan.render(splats.language_feature_precomp), before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_plan_made_without_gradients_works_in_training(mode: type, device: str) -> None:
    splats = random_splats(58, 100, 2).to(device)
    plan = make_plan(splats, looking_down_z(40, 30))
    with mode():
        early = make_plan(splats, looking_down_z(40, 30))
        picture = early.render(splats.language_feature_precomp)
    assert not picture.requires_grad
    gradients = []
    for made in (plan, early):
        scores = splats.language_feature_precomp.clone().requires_grad_()
        rendered = made.render(scores)
        assert torch.equal(rendered, picture)
        rendered.square().sum().backward()
        gradients.append(scores.grad)
    assert relative_l2(*gradients) < TOLERANCE


def test_non_contiguous_inputs(device: str) -> None:
    splats = random_splats(53, 50, 3).to(device)
    settings = view_settings(looking_down_z(30, 30))
    expected = rasterize_scores(splats.language_feature_precomp, settings=settings, **splats.geometry())
    strided = {name: t.t().contiguous().t() for name, t in splats.geometry().items()}
    scores = splats.language_feature_precomp.t().contiguous().t().requires_grad_()
    found = rasterize_scores(scores, settings=settings, **strided)
    assert torch.equal(found, expected)

    plan = prepare(settings=settings, **strided)
    found.sum().backward()  # a cotangent without strides
    image = torch.ones(30, 30, 3, device=device).permute(2, 0, 1)
    assert relative_l2(scores.grad, plan.backproject(torch.ones(3, 30, 30, device=device))) < TOLERANCE
    assert relative_l2(scores.grad, plan.backproject(image)) < TOLERANCE
