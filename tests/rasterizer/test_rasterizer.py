"""The compiled rasteriser against reference.py in float64, and reference.py against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from diff_gaussian_rasterization import (
    GaussianRasterizationSettings,
    GaussianRasterizer,
    backend_for,
    backends,
    build,
    prepare,
    rasterize_scores,
)
from diff_gaussian_rasterization.inputs import make_view
from tests.rigs.splat_scenes import (
    DEGENERATE,
    Splats,
    cropped,
    looking_down_z,
    one_thread,
    random_splats,
    relative_l2,
    threshold_band,
    view_settings,
)

# Measured with these scenes: the largest error of a pixel is 3e-6, that of a gradient 2e-5 (relative L2), in float32 on
# the CPU.
PICTURE_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = {"cpu": 2e-4, "cuda": 1e-3}

pytestmark = pytest.mark.usefixtures("compiled_backend")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():  # the oracle's operations are too small for more, and barriers on a busy machine are slow
        yield


def compare_with_reference(
    splats: Splats,
    settings: GaussianRasterizationSettings,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    leaves: Callable[..., dict[str, Tensor]] = Splats.leaves,
) -> None:
    """Outputs and every gradient for random cotangents, which are 0 on pixels that sit on a threshold."""
    inputs, oracle = leaves(splats, device=device), leaves(splats, torch.float64)
    color, language, radii = GaussianRasterizer(settings)(**inputs)
    color64, language64, radii64 = GaussianRasterizer(settings, backend="reference")(**oracle)
    outside = ~threshold_band(splats, settings, monkeypatch)
    assert outside.double().mean() > 0.9
    assert torch.equal(radii.cpu(), radii64)
    generator = torch.Generator().manual_seed(0)
    for found, expected in ((color, color64), (language, language64)):
        assert found.shape == expected.shape
        if found.numel():
            assert ((found.cpu() - expected).abs() * outside).max() < PICTURE_TOLERANCE
    cotangents = [torch.randn(t.shape, generator=generator) * outside for t in (color, language)]
    torch.autograd.backward([color, language], [c.to(device) for c in cotangents])
    torch.autograd.backward([color64, language64], [c.double() for c in cotangents])
    for name, leaf in inputs.items():
        error = relative_l2(leaf.grad, oracle[name].grad)
        assert error < GRADIENT_TOLERANCE[device], f"{name}: {error:.2e}"


@pytest.mark.parametrize("channels", [0, 1, 3, 17, 64])
def test_channels(channels: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    splats = random_splats(channels, 150, channels)
    compare_with_reference(splats, view_settings(looking_down_z(50, 37)), device, monkeypatch)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_sh_degrees(degree: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    splats = random_splats(10 + degree, 200, 1, sh_degree=3)
    compare_with_reference(splats, view_settings(looking_down_z(48, 64), sh_degree=degree), device, monkeypatch)


def test_opaque_scene_stops_early(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    splats = random_splats(20, 300, 2, size=0.6)
    splats.opacities = splats.opacities.clamp_min(0.8)
    compare_with_reference(splats, view_settings(looking_down_z(64, 48)), device, monkeypatch)


def test_precomputed_colours_and_covariances(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = view_settings(looking_down_z(50, 37))
    compare_with_reference(random_splats(23, 150, 2), settings, device, monkeypatch, Splats.precomputed_leaves)


def test_thin_gaussians(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    splats = random_splats(21, 200, 2)
    splats.scales = splats.scales * torch.tensor([30.0, 0.01, 0.01])
    compare_with_reference(splats, view_settings(looking_down_z(80, 70)), device, monkeypatch)


def test_off_centre_principal_point(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = cropped(looking_down_z(200, 160), 112, 80, 70, 50)
    compare_with_reference(random_splats(22, 500, 1), view_settings(camera), device, monkeypatch)


def test_clamp_is_about_the_middle_of_the_frustum() -> None:
    camera = cropped(looking_down_z(200, 160, focal=100), 112, 80, 70, 50)
    view = make_view(view_settings(camera))
    assert view.center_x == pytest.approx((35 - camera.cx) / 100, abs=1e-6)
    assert view.center_y == pytest.approx((25 - camera.cy) / 100, abs=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33)], ids=str)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate(case: str, size: tuple[int, int], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    splats = random_splats(30, 40, 1)
    vars(splats).update(DEGENERATE[case](splats))
    compare_with_reference(splats, view_settings(looking_down_z(*size)), device, monkeypatch)


def test_not_finite_input_stays_local(device: str) -> None:
    splats = random_splats(31, 60, 1).to(device)
    settings = view_settings(looking_down_z(40, 40))
    keep = torch.ones(60, dtype=torch.bool, device=device)
    broken = {name: t.clone() for name, t in splats.geometry().items()}
    broken["means3D"][3, 0] = math.nan
    broken["scales"][7] = math.inf
    broken["opacities"][11] = math.nan
    keep[[3, 7, 11]] = False
    found = rasterize_scores(splats.language_feature_precomp, settings=settings, **broken)
    rest = {name: t[keep] for name, t in splats.geometry().items()}
    assert torch.equal(found, rasterize_scores(splats.language_feature_precomp[keep], settings=settings, **rest))


def test_one_gaussian_in_closed_form(device: str) -> None:
    """In the middle of an odd picture alpha is the opacity, `s` pixels beside it opacity exp(-s^2 / (2 variance))."""
    size, focal, depth, scale, opacity = 31, 40.0, 4.0, 0.2, 0.7
    inputs = {
        "means3D": torch.tensor([[0.0, 0.0, depth]]),
        "means2D": torch.zeros(1, 3),
        "opacities": torch.tensor([[opacity]]),
        "colors_precomp": torch.tensor([[0.9, 0.2, 0.4]]),
        "scales": torch.full((1, 3), scale),
        "rotations": torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
    }
    color, _, radii = GaussianRasterizer(view_settings(looking_down_z(size, size, focal)))(
        **{name: t.to(device) for name, t in inputs.items()}
    )
    color = color.cpu()
    variance = (focal * scale / depth) ** 2 + 0.3
    assert radii.tolist() == [math.ceil(3 * math.sqrt(variance + math.sqrt(0.1)))]
    background = torch.tensor([0.1, 0.6, 0.3])
    for shift in (0, 2):
        alpha = opacity * math.exp(-(shift**2) / (2 * variance))
        expected = alpha * torch.tensor([0.9, 0.2, 0.4]) + (1 - alpha) * background
        assert torch.allclose(color[:, 15, 15 + shift], expected, atol=1e-6)
    assert torch.allclose(color[:, 0, 0], background)


def test_reference_gradients_are_derivatives() -> None:
    """Finite differences, where no cap, clamp or threshold is near."""
    splats = random_splats(40, 12, 2, sh_degree=3, size=0.4)
    splats.means3D[:, 2] = splats.means3D[:, 2].abs() + 1
    splats.means3D[:, :2] *= 0.3
    splats.opacities = splats.opacities.clamp(0.2, 0.8)
    splats.shs *= 0.2
    settings = view_settings(looking_down_z(9, 7), sh_degree=3)
    leaves = splats.leaves(torch.float64)
    del leaves["means2D"]

    def render(*values):
        inputs = dict(zip(leaves, values, strict=True), means2D=torch.zeros(12, 3, dtype=torch.float64))
        return GaussianRasterizer(settings, backend="reference")(**inputs)[:2]

    assert torch.autograd.gradcheck(render, tuple(leaves.values()), eps=1e-7, atol=1e-5, fast_mode=True)


def test_reference_in_float32_agrees() -> None:
    splats = random_splats(41, 150, 3)
    settings = view_settings(looking_down_z(50, 40))
    color, language, _ = GaussianRasterizer(settings)(**splats.leaves())
    color32, language32, _ = GaussianRasterizer(settings, backend="reference")(**splats.leaves())
    for found, expected in ((color, color32), (language, language32)):
        assert ((found - expected).abs() > 1e-4).double().mean() < 1e-3


def test_gradients_only_where_required(device: str) -> None:
    inputs = random_splats(52, 50, 1).leaves(device=device)
    for name in ("scales", "shs", "means2D"):
        inputs[name].requires_grad_(False)
    color, language, _ = GaussianRasterizer(view_settings(looking_down_z(30, 30)))(**inputs)
    (color.sum() + language.sum()).backward()
    assert {name for name, t in inputs.items() if t.grad is None} == {"scales", "shs", "means2D"}


def test_feature_gradient_alone(device: str) -> None:
    splats, settings = random_splats(53, 50, 5), view_settings(looking_down_z(30, 30))
    expected = splats.leaves(device=device)
    rasterizer = GaussianRasterizer(settings)
    cotangent = torch.randn(5, 30, 30, generator=torch.Generator().manual_seed(0)).to(device)
    (rasterizer(**expected)[1] * cotangent).sum().backward()
    inputs = {name: t.detach() for name, t in splats.leaves(device=device).items()}
    features = inputs["language_feature_precomp"].requires_grad_()
    (rasterizer(**inputs)[1] * cotangent).sum().backward()
    assert relative_l2(features.grad, expected["language_feature_precomp"].grad) < 1e-6


def test_picture_may_be_changed_in_place(device: str) -> None:
    splats, settings = random_splats(54, 50, 0), view_settings(looking_down_z(30, 30))
    inputs = splats.leaves(device=device)
    color, _, _ = GaussianRasterizer(settings)(**inputs)
    color.mul_(2).sum().backward()
    expected = splats.leaves(device=device)
    GaussianRasterizer(settings)(**expected)[0].sum().backward()
    assert relative_l2(inputs["means3D"].grad, 2 * expected["means3D"].grad) < 1e-5


def test_same_bits_in_every_run_for_any_number_of_threads() -> None:
    splats = random_splats(60, 2000, 5, sh_degree=1)
    settings = view_settings(looking_down_z(150, 90), sh_degree=1)
    results = []
    for count in (1, 2, 3, 7, 2):
        torch.set_num_threads(count)  # the fixture puts it back
        inputs = splats.leaves()
        color, language, _ = GaussianRasterizer(settings)(**inputs)
        torch.autograd.backward([color, language], [color.detach().cos(), language.detach().cos()])
        scores = splats.language_feature_precomp.clone().requires_grad_()
        rasterize_scores(scores, settings=settings, **splats.geometry()).square().sum().backward()
        results.append([color, language, scores.grad, *(t.grad for t in inputs.values())])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_include_feature_off(device: str) -> None:
    inputs = random_splats(61, 20, 4).leaves(device=device)
    settings = view_settings(looking_down_z(20, 10), include_feature=False)
    for rasterizer in (GaussianRasterizer(settings), GaussianRasterizer(settings, backend="reference")):
        color, language, _ = rasterizer(**inputs)
        assert language.shape == (0, 10, 20)
        color.sum().backward()


def test_mark_visible(device: str) -> None:
    positions = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.0, 0.3], [5.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    visible = GaussianRasterizer(view_settings(looking_down_z(20, 10))).markVisible(positions.to(device))
    assert visible.tolist() == [False, True, True, False]


MISTAKES = {
    "means3D must be": lambda i: i.update(means3D=i["means3D"][:, :2]),
    "opacities must have shape [8, 1]": lambda i: i.update(opacities=i["opacities"][:, 0]),
    "float16": lambda i: i.update(means3D=i["means3D"].half()),
    "one dtype": lambda i: i.update(opacities=i["opacities"].double()),
    "both": lambda i: i.update(colors_precomp=torch.rand(8, 3)),
    "got none": lambda i: i.pop("shs"),
    "needs 9 coefficients": lambda i: i.update(shs=i["shs"][:, :4]),
    "got scales": lambda i: i.pop("rotations"),
    "cov3D_precomp": lambda i: i.update(cov3D_precomp=torch.rand(8, 6)),
    "rotations must have shape [8, 4]": lambda i: i.update(rotations=i["rotations"][:7]),
    "means2D must have shape [8, 3]": lambda i: i.update(means2D=torch.zeros(8, 2)),
    "language_feature_precomp is on meta": lambda i: i.update(
        language_feature_precomp=torch.zeros(8, 1, device="meta")
    ),
    "must be a torch.Tensor": lambda i: i.update(scales=[[1.0, 1.0, 1.0]] * 8),
}


@pytest.mark.parametrize("backend", [None, "reference"], ids=["compiled", "reference"])
@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_in_tensors(message: str, backend: str | None, device: str) -> None:
    inputs = random_splats(70, 8, 1, sh_degree=2).leaves()
    MISTAKES[message](inputs)
    inputs = {name: t.to(device) if isinstance(t, Tensor) and not t.is_meta else t for name, t in inputs.items()}
    with pytest.raises(ValueError) as error:
        GaussianRasterizer(view_settings(looking_down_z(20, 10), sh_degree=2), backend)(**inputs)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_width": 0}, "at least 1"),
        ({"tanfovx": -1.0}, "positive"),
        ({"tanfovy": math.nan}, "positive"),
        ({"sh_degree": 4}, "0 to 3"),
        ({"viewmatrix": torch.zeros(4, 4)}, "singular"),
        ({"projmatrix": torch.eye(3)}, "projmatrix must have shape [4, 4]"),
        ({"bg": torch.zeros(1)}, "bg must have shape [3]"),
    ],
)
def test_mistakes_in_settings(change: dict, message: str, device: str) -> None:
    splats = random_splats(71, 4, 1).to(device)
    with pytest.raises(ValueError) as error:
        prepare(settings=view_settings(looking_down_z(20, 10))._replace(**change), **splats.geometry())
    assert message in str(error.value)


def test_compiled_kernels_reject_float64(device: str) -> None:
    geometry = {name: t.double() for name, t in random_splats(73, 4).to(device).geometry().items()}
    with pytest.raises(ValueError, match="reference"):
        prepare(settings=view_settings(looking_down_z(20, 10)), **geometry)


def test_backend_choice(monkeypatch) -> None:
    monkeypatch.setenv("DGR_BACKEND", "reference")
    assert backend_for("cpu") == backend_for("cuda") == "reference"
    monkeypatch.setenv("DGR_BACKEND", "cuda")
    with pytest.raises(ValueError, match="tensors on cpu"):
        backend_for("cpu")
    monkeypatch.setenv("DGR_BACKEND", "fast")
    with pytest.raises(ValueError, match="auto, cuda, cpu, reference"):
        backend_for("cpu")
    monkeypatch.delenv("DGR_BACKEND")
    assert backend_for("cpu") == "cpu"


def test_without_kernels_one_warning_and_the_reference(monkeypatch) -> None:
    monkeypatch.setattr(build, "library_or_none", lambda target: (None, "No C++ compiler was found."))
    with pytest.raises(build.BuildError, match="No C\\+\\+ compiler"):
        backend_for("cpu")
    monkeypatch.setenv("DGR_BACKEND", "auto")
    backends.warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="slow: No C\\+\\+ compiler") as caught:
        assert [backend_for("cpu"), backend_for("cpu")] == ["reference", "reference"]
    assert len(caught) == 1
    splats = random_splats(74, 30, 1)
    found = rasterize_scores(
        splats.language_feature_precomp, settings=view_settings(looking_down_z(20, 10)), **splats.geometry()
    )
    assert found.shape == (1, 10, 20)
