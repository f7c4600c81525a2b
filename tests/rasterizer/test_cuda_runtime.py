"""How the CUDA kernels run: streams, devices, memory, dtypes, layouts of tensors, and the same bits in every run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from diff_gaussian_rasterization import GaussianRasterizationSettings, GaussianRasterizer, prepare, rasterize_scores
from tests.rigs.splat_scenes import Splats, looking_down_z, random_splats, relative_l2, view_settings

ROUNDING = 1e-4  # relative L2 of sums in another order

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _cuda_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGR_BACKEND", "cuda")


def forward_results(splats: Splats, settings: GaussianRasterizationSettings) -> dict[str, Tensor]:
    """Everything that can be rendered."""
    color, language, radii = GaussianRasterizer(settings)(**splats.leaves())
    plan = prepare(settings=settings, **splats.geometry())
    scores = splats.language_feature_precomp
    return {
        "color": color.detach(),
        "language": language.detach(),
        "radii": radii,
        "plan": plan.render(scores),
        "no plan": rasterize_scores(scores, settings=settings, **splats.geometry()),
        "transmittance": plan.transmittance(),
    }


def backward_results(splats: Splats, settings: GaussianRasterizationSettings) -> dict[str, Tensor]:
    """Every gradient, for cotangents that depend on the pixel."""
    inputs = splats.leaves()
    color, language, _ = GaussianRasterizer(settings)(**inputs)
    torch.autograd.backward([color, language], [color.detach().cos(), language.detach().cos()])
    plan = prepare(settings=settings, **splats.geometry())
    planned, direct = (splats.language_feature_precomp.clone().requires_grad_() for _ in range(2))
    for picture in (plan.render(planned), rasterize_scores(direct, settings=settings, **splats.geometry())):
        picture.backward(picture.detach().cos())
    return {
        **{name: leaf.grad for name, leaf in inputs.items()},
        "plan": planned.grad,
        "no plan": direct.grad,
        "backproject": plan.backproject(language.detach().cos()),
    }


@contextmanager
def deterministic() -> Iterator[None]:
    """PyTorch's deterministic mode, which also fills every new tensor with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def scene(channels: int = 3, n: int = 20_000) -> tuple[Splats, GaussianRasterizationSettings]:
    """Enough work for blocks to finish in another order in every run."""
    splats = random_splats(90, n, channels, sh_degree=2, size=0.03).to("cuda")
    return splats, view_settings(looking_down_z(322, 243), sh_degree=2)


def test_forward_has_the_same_bits_in_every_run() -> None:
    expected = forward_results(*scene())
    for _ in range(3):
        for name, found in forward_results(*scene()).items():
            assert torch.equal(found, expected[name]), name
    with deterministic():
        for name, found in forward_results(*scene()).items():
            assert torch.equal(found, expected[name]), name


@pytest.mark.parametrize("channels", [1, 3, 16, 33])
def test_deterministic_gradients_have_the_same_bits_in_every_run(channels: int) -> None:
    atomic = backward_results(*scene(channels))
    with deterministic():
        expected = backward_results(*scene(channels))
        for _ in range(3):
            for name, found in backward_results(*scene(channels)).items():
                assert torch.equal(found, expected[name]), name
    for name, found in atomic.items():
        assert relative_l2(found, expected[name]) < ROUNDING, name


def test_deterministic_gradients_of_a_pile() -> None:
    """All sums go to few Gaussians, or through one tile."""
    splats, settings = scene(n=3000)
    # beside the middle of the picture, where gradients of the centre would cancel
    splats.means3D = torch.tensor([[0.03, -0.02, 2.0]], device="cuda").repeat(3000, 1)
    splats.opacities = splats.opacities * 0.01
    atomic = backward_results(splats, settings)
    with deterministic():
        first, second = (backward_results(splats, settings) for _ in range(2))
    for name, found in atomic.items():
        assert torch.equal(first[name], second[name]), name
        assert relative_l2(found, first[name]) < ROUNDING, name


@pytest.mark.parametrize("n", [0, 1, 100])
def test_deterministic_gradients_with_nothing_in_view(n: int) -> None:
    splats, settings = scene(n=n)
    splats.means3D = splats.means3D - torch.tensor([0.0, 0.0, 20.0], device="cuda")
    with deterministic():
        for name, gradient in backward_results(splats, settings).items():
            assert len(gradient) == n
            assert gradient.eq(0).all(), name


@pytest.mark.parametrize("results", [forward_results, backward_results])
def test_work_is_ordered_on_the_current_stream(results) -> None:
    """Inputs arrive late on a stream of their own and are overwritten right after the call."""
    splats, settings = scene()
    with deterministic():
        expected = results(splats, settings)
        late = Splats(**{name: torch.zeros_like(t) for name, t in vars(splats).items()})
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(100_000_000)  # clock cycles, some 50 ms
            for name, tensor in vars(late).items():
                tensor.copy_(getattr(splats, name))
            found = {name: t.clone() for name, t in results(late, settings).items()}
            for tensor in vars(late).values():
                tensor.zero_()
        stream.synchronize()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_streams_side_by_side() -> None:
    """Two streams share no scratch memory."""
    settings = view_settings(looking_down_z(200, 150))
    scenes = [random_splats(seed, 5000, 2, size=0.05).to("cuda") for seed in (91, 92)]
    plans = [prepare(settings=settings, **splats.geometry()) for splats in scenes]
    expected = [p.render(s.language_feature_precomp) for p, s in zip(plans, scenes, strict=True)]
    streams = [torch.cuda.Stream() for _ in scenes]
    torch.cuda.synchronize()
    found: list[list[Tensor]] = [[], []]
    for _ in range(10):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[i].append(plans[i].render(scenes[i].language_feature_precomp))
    torch.cuda.synchronize()
    for pictures, reference in zip(found, expected, strict=True):
        assert all(torch.equal(picture, reference) for picture in pictures)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_second_device() -> None:
    """Kernels run where the tensors are, and the current device stays what it was."""
    splats, settings = scene()
    expected = {**forward_results(splats, settings), **backward_results(splats, settings)}
    torch.cuda.set_device(0)
    there = splats.to("cuda:1")
    for name, found in {**forward_results(there, settings), **backward_results(there, settings)}.items():
        assert found.device == torch.device("cuda:1")
        assert relative_l2(found, expected[name]) < ROUNDING, name
    assert torch.cuda.current_device() == 0
    with pytest.raises(ValueError, match="cuda:0"):
        prepare(settings=settings, **{**there.geometry(), "opacities": splats.opacities})


def strided(tensor: Tensor) -> Tensor:
    """The same values, not contiguous."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def misaligned(tensor: Tensor) -> Tensor:
    """The same values, contiguous, but at an address that is a multiple of four bytes only."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return memory[1:].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("layout", [strided, misaligned])
@pytest.mark.parametrize("channels", [1, 4, 16])
def test_tensor_layouts(layout, channels: int) -> None:
    splats, settings = scene(channels, n=500)
    rearranged = Splats(**{name: layout(t) for name, t in vars(splats).items()})
    plan, unchanged = (prepare(settings=settings, **s.geometry()) for s in (rearranged, splats))
    expected = unchanged.render(splats.language_feature_precomp)
    assert torch.equal(plan.render(rearranged.language_feature_precomp), expected)
    direct = [
        rasterize_scores(s.language_feature_precomp, settings=settings, **s.geometry()) for s in (rearranged, splats)
    ]
    assert torch.equal(*direct)

    leaves = [{n: f(t.detach()).requires_grad_() for n, t in splats.leaves().items()} for f in (layout, torch.clone)]
    pictures = [torch.cat(GaussianRasterizer(settings)(**inputs)[:2]) for inputs in leaves]
    assert torch.equal(*pictures)
    cotangent = pictures[0].detach().cos()
    pictures[0].backward(layout(cotangent))
    pictures[1].backward(cotangent)
    for name, leaf in leaves[0].items():
        assert relative_l2(leaf.grad, leaves[1][name].grad) < ROUNDING, name

    image = cotangent[3:]
    assert relative_l2(plan.backproject(layout(image)), plan.backproject(image)) < ROUNDING
    scores = splats.language_feature_precomp.clone().requires_grad_()
    plan.render(scores).backward(layout(image))
    assert relative_l2(scores.grad, plan.backproject(image)) < ROUNDING


def test_expanded_cotangents() -> None:
    """`sum()` hands back one number for all pixels."""
    splats, settings = scene(n=500)
    leaves = [splats.leaves() for _ in range(2)]
    for inputs, expand in zip(leaves, (True, False), strict=True):
        color, language, _ = GaussianRasterizer(settings)(**inputs)
        if expand:
            (color.sum() + language.sum()).backward()
        else:
            torch.autograd.backward([color, language], [torch.ones_like(color), torch.ones_like(language)])
    for name, leaf in leaves[0].items():
        assert relative_l2(leaf.grad, leaves[1][name].grad) < ROUNDING, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rejected(dtype: torch.dtype) -> None:
    splats, settings = scene(n=50)
    name = str(dtype)
    for argument in ("means3D", "opacities", "scales", "rotations"):
        geometry = splats.geometry()
        geometry[argument] = geometry[argument].to(dtype)
        with pytest.raises(ValueError, match=name):
            prepare(settings=settings, **geometry)
    for argument in ("shs", "language_feature_precomp"):
        inputs = splats.leaves()
        inputs[argument] = inputs[argument].to(dtype)
        with pytest.raises(ValueError, match=name):
            GaussianRasterizer(settings)(**inputs)
    plan = prepare(settings=settings, **splats.geometry())
    with pytest.raises(ValueError, match=name):
        plan.backproject(torch.zeros(1, 243, 322, device="cuda", dtype=dtype))

    scores, weight = splats.language_feature_precomp, torch.eye(3, device="cuda")
    with torch.autocast("cuda", dtype=dtype):  # a matrix product under autocast is of half precision
        with pytest.raises(ValueError, match=name):
            plan.render(scores @ weight)
        with pytest.raises(ValueError, match=name):
            rasterize_scores(scores @ weight, settings=settings, **splats.geometry())


def test_autocast_changes_nothing_for_float32() -> None:
    splats, settings = scene(n=500)
    with deterministic():
        expected = {**forward_results(splats, settings), **backward_results(splats, settings)}
        with torch.autocast("cuda"):
            found = {**forward_results(splats, settings), **backward_results(splats, settings)}
    for name, value in found.items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name]), name


def test_tensors_on_two_devices_are_rejected() -> None:
    splats, settings = scene(n=50)
    with pytest.raises(ValueError, match="opacities is on cpu"):
        prepare(settings=settings, **{**splats.geometry(), "opacities": splats.opacities.cpu()})
    plan = prepare(settings=settings, **splats.geometry())
    with pytest.raises(ValueError, match="on cpu"):
        plan.render(splats.language_feature_precomp.cpu())
    with pytest.raises(ValueError, match="on cpu"):
        plan.backproject(torch.zeros(1, 243, 322))


def requested_bytes() -> int:
    """Device memory requested by tensors, without the allocator's rounding."""
    gc.collect()
    return torch.cuda.memory_stats()["requested_bytes.all.current"]


def test_plan_counts_all_its_bytes() -> None:
    splats, settings = scene()
    prepare(settings=settings, **splats.geometry()).render(splats.language_feature_precomp)  # anything allocated once
    before = requested_bytes()
    plan = prepare(settings=settings, **splats.geometry())
    held = requested_bytes() - before
    assert plan.nbytes == pytest.approx(held, rel=0.01, abs=4096)
    plan.render(splats.language_feature_precomp)
    plan.backproject(torch.zeros(2, 243, 322, device="cuda"))
    plan.transmittance()
    assert requested_bytes() - before == pytest.approx(plan.nbytes, rel=0.01, abs=4096)
    with deterministic():  # may keep more for the next call
        plan.backproject(torch.zeros(2, 243, 322, device="cuda"))
    assert requested_bytes() - before == pytest.approx(plan.nbytes, rel=0.01, abs=4096)
    del plan
    assert requested_bytes() == before


def test_nothing_is_left_after_a_step() -> None:
    splats, settings = scene()
    backward_results(splats, settings)
    before = requested_bytes()
    for _ in range(2):
        backward_results(splats, settings)
    assert requested_bytes() == before


@pytest.mark.parametrize("failing", [1, 2, 4, 6])
def test_out_of_memory_is_raised_and_leaves_nothing(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    splats, settings = scene(n=1000)
    expected = prepare(settings=settings, **splats.geometry()).nbytes
    torch.cuda.synchronize()
    before, calls, empty = torch.cuda.memory_allocated(), [], torch.empty

    def limited(*size, **options) -> torch.Tensor:
        if options.get("dtype") == torch.uint8:
            calls.append(size)
            if len(calls) == failing:
                raise torch.OutOfMemoryError("full")
        return empty(*size, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", limited)
        with pytest.raises(torch.OutOfMemoryError, match="full"):
            prepare(settings=settings, **splats.geometry())
    assert torch.cuda.memory_allocated() == before
    assert prepare(settings=settings, **splats.geometry()).nbytes == expected


def test_plan_used_on_another_stream() -> None:
    splats, settings = scene(n=5000)
    scores = splats.language_feature_precomp
    expected = prepare(settings=settings, **splats.geometry()).render(scores)
    plan, stream = prepare(settings=settings, **splats.geometry()), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        found = plan.render(scores)
    del plan  # its memory must not be given to what comes now, as the other stream has yet to read it
    for _ in range(20):
        torch.full((2**18,), 255, dtype=torch.uint8, device="cuda")
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(found, expected)
