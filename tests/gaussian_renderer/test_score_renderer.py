"""Plan cache, coverage, and closed-form lifting, on every backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from gaussian_renderer import ScoreRenderer, raster_settings
from gaussian_renderer.plan_cache import PlanCache
from scene.cameras import Camera
from scene.gaussian_model import GaussianModel
from tests.rigs.splat_scenes import DEVICES, cropped, looking_down_z, random_splats, relative_l2
from utils.device import PLAN_BYTES, plan_bytes

COUNT = 40
TOLERANCE = 1e-5  # for sums of some hundred float32 numbers of size 1
CAMERAS = [looking_down_z(37, 21), looking_down_z(20, 30), cropped(looking_down_z(16, 16), 2, 3, 9, 11)]


@pytest.fixture(params=["compiled", "reference"])
def backend(request: pytest.FixtureRequest, device: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Select the kernels of the device or plain PyTorch."""
    monkeypatch.setenv("DGR_BACKEND", device if request.param == "compiled" else "reference")
    return request.param


def model(device: str = "cpu", count: int = COUNT) -> GaussianModel:
    splats = random_splats(60, count, size=0.3)
    return GaussianModel(
        xyz=splats.means3D,
        features_dc=splats.shs,
        features_rest=torch.zeros(count, 0, 3),
        scaling=splats.scales.log(),
        rotation=splats.rotations,
        opacity=torch.logit(splats.opacities.clamp(0.01, 0.99)),
        active_sh_degree=0,
    ).to(device)


def pictures(channels: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(channels, c.height, c.width, generator=generator) for c in CAMERAS]


@pytest.mark.usefixtures("backend")
class TestLift:
    def test_equals_the_dense_sum(self, device: str) -> None:
        """Against the weights W of all views, rendered with one channel per Gaussian."""
        renderer = ScoreRenderer(model(device), 10**9)
        images = pictures(3)
        expected, expected_weights = torch.zeros(COUNT, 3).double(), torch.zeros(COUNT).double()
        for camera, image in zip(CAMERAS, images, strict=True):
            dense = renderer.render_scores(camera, torch.eye(COUNT, device=device)).double().cpu()  # [N, H, W]
            expected += torch.einsum("nhw,chw->nc", dense, image.double())
            expected_weights += dense.sum((1, 2))
        weights, sums = renderer.lift(CAMERAS, iter(images))
        assert weights.shape == (COUNT,)
        assert sums.shape == (COUNT, 3)
        assert expected_weights.max() > 10
        assert relative_l2(sums, expected) < TOLERANCE
        assert relative_l2(weights, expected_weights) < TOLERANCE

    def test_is_linear(self, device: str) -> None:
        renderer = ScoreRenderer(model(device), 10**9)
        first, second = pictures(2, seed=1), pictures(2, seed=2)
        mixed = [2 * a - 3 * b for a, b in zip(first, second, strict=True)]
        lifted = [renderer.lift(CAMERAS, images)[1] for images in (first, second, mixed)]
        assert relative_l2(lifted[2], 2 * lifted[0] - 3 * lifted[1]) < TOLERANCE

    def test_returns_a_constant(self, device: str) -> None:
        renderer = ScoreRenderer(model(device), 10**9)
        colour = torch.tensor([0.2, 0.7, 1.0])
        weights, sums = renderer.lift(CAMERAS, (colour[:, None, None].expand(-1, c.height, c.width) for c in CAMERAS))
        seen = weights > 1e-3
        assert seen.any()
        assert (weights >= 0).all()
        means = (sums / weights[:, None])[seen].cpu()
        torch.testing.assert_close(means, colour.expand_as(means), atol=1e-4, rtol=1e-4)

    def test_lifts_a_rendered_constant_to_the_mean_coverage(self, device: str) -> None:
        """Scores of 1 are rendered as the coverage c and lifted to its mean."""
        renderer = ScoreRenderer(model(device), 10**9)
        ones = torch.ones(COUNT, 1, device=device)
        weights, sums = renderer.lift(CAMERAS, (renderer.render_scores(c, ones) for c in CAMERAS))
        assert (sums[:, 0] <= weights * (1 + TOLERANCE)).all()
        coverages = [1 - renderer.plan(c).transmittance() for c in CAMERAS]
        assert all(c.min() >= 0 and 0.3 < c.max() <= 1 for c in coverages)
        expected = renderer.lift(CAMERAS, (c[None] for c in coverages))[1]
        assert relative_l2(sums, expected) < TOLERANCE

    def test_accepts_masks(self, device: str) -> None:
        renderer = ScoreRenderer(model(device), 10**9)
        masks = [image > 0 for image in pictures(1)]
        assert torch.allclose(
            renderer.lift(CAMERAS, masks)[1], renderer.lift(CAMERAS, [m.float() for m in masks])[1], rtol=1e-5
        )

    @pytest.mark.parametrize(
        ("cameras", "images"),
        [
            ([], []),
            (CAMERAS, pictures(1)[:2]),
            (CAMERAS[:1], pictures(1)[1:2]),
            (CAMERAS[:2], [pictures(1)[0], pictures(2)[1]]),
        ],
        ids=["no view", "missing image", "other size", "other channels"],
    )
    def test_rejects_images_that_do_not_fit(self, device: str, cameras: list[Camera], images: list[Tensor]) -> None:
        with pytest.raises(ValueError):
            ScoreRenderer(model(device), 10**9).lift(cameras, images)


class FakePlan:
    def __init__(self, nbytes: int):
        self.nbytes = nbytes


def sized(nbytes: int, made: list[int]) -> Iterator:
    def make() -> FakePlan:
        made.append(nbytes)
        return FakePlan(nbytes)

    return make


class TestPlanCache:
    def test_hits_and_bytes(self) -> None:
        cache, made = PlanCache(100), []
        plans = [cache.get(key, sized(30, made)) for key in "abcab"]
        assert (cache.hits, cache.misses, cache.nbytes, len(made)) == (2, 3, 90, 3)
        assert plans[0] is plans[3]
        assert "2 of 5" in str(cache)
        assert "40%" in str(cache)

    def test_max_bytes_holds_and_the_newest_plan_stays(self) -> None:
        cache, made = PlanCache(100), []
        for key, size in enumerate((60, 30, 50, 500)):
            cache.get(key, sized(size, made))
            assert cache.nbytes <= 100 or len(cache) == 1
        assert cache.nbytes == 500
        cache.get(3, sized(0, made))
        assert len(made) == 4

    def test_eviction_suits_epochs_larger_than_the_cache(self) -> None:
        """70 of 100 views fit, in a new random order each epoch; evicting the oldest would hit far less."""
        cache, generator = PlanCache(70), torch.Generator().manual_seed(0)
        for _ in range(50):
            for view in torch.randperm(100, generator=generator).tolist():
                cache.get(view, sized(1, []))
        assert cache.hits / 5000 > 0.67

    def test_growing_plans_are_measured_again(self) -> None:
        cache = PlanCache(100)
        for key in "ab":
            cache.get(key, sized(40, [])).nbytes = 55
        assert cache.nbytes == 55 + 40  # the growth of "b" is measured at the next use
        cache.get("a", sized(0, []))
        assert (cache.nbytes, len(cache)) == (55, 1)

    def test_evicts_and_retries_when_memory_runs_out(self) -> None:
        cache, tries = PlanCache(100), []
        for key in "ab":
            cache.get(key, sized(40, []))

        def work() -> str:
            tries.append(len(cache))
            if len(cache):
                raise torch.OutOfMemoryError("full")
            return "done"

        assert cache.retry_after_eviction(work) == "done"
        assert tries == [2, 0]
        assert (cache.nbytes, cache.max_bytes) == (0, 40)

    def test_an_empty_cache_does_not_retry(self) -> None:
        def work() -> None:
            raise torch.OutOfMemoryError("full")

        with pytest.raises(torch.OutOfMemoryError):
            PlanCache(100).retry_after_eviction(work)

    @pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
    def test_retries_end_once_only_plans_of_the_work_itself_are_cached(self, error: type[Exception]) -> None:
        cache, tries = PlanCache(100), []
        cache.get("a", sized(40, []))

        def work() -> None:
            tries.append(len(cache))
            cache.get("b", sized(40, []))
            raise error("full")

        with pytest.raises(error):
            cache.retry_after_eviction(work)
        assert tries == [1, 0]

    def test_cameras_of_the_same_name_have_their_own_plans(self) -> None:
        renderer = ScoreRenderer(model(), 10**9)
        camera = CAMERAS[0]
        moved = Camera(**{**vars(camera), "translation": camera.translation + 0.3})
        scores = torch.randn(COUNT, 1, generator=torch.Generator().manual_seed(0))
        before = renderer.render_scores(camera, scores)
        assert not torch.allclose(renderer.render_scores(moved, scores), before)
        assert torch.equal(renderer.render_scores(Camera(**vars(camera)), scores), before)
        assert (renderer.plans.hits, renderer.plans.misses) == (1, 2)


def test_plan_memory_in_gigabytes() -> None:
    assert plan_bytes(1.5, torch.device("cpu")) == 1_500_000_000
    assert plan_bytes(None, torch.device("cpu")) == PLAN_BYTES


@pytest.mark.parametrize("device", DEVICES)
def test_settings_are_on_the_cpu(device: str) -> None:
    settings = raster_settings(CAMERAS[0], torch.ones(3, device=device), sh_degree=0)
    tensors = (settings.bg, settings.viewmatrix, settings.projmatrix, settings.campos)
    assert {t.device.type for t in tensors} == {"cpu"}


@pytest.mark.gpu
class TestOnTheGpu:
    def test_default_bound_is_half_of_what_is_free(self) -> None:
        device = torch.device("cuda")
        free, total = torch.cuda.mem_get_info()
        assert 0.3 * free < plan_bytes(None, device) <= 0.5 * total

    def test_plans_are_evicted_from_the_gpu(self) -> None:
        """The cached bytes are those of the allocator, and all are freed."""
        renderer = ScoreRenderer(model("cuda", 20_000), 10**9)
        before = torch.cuda.memory_allocated()
        for camera in CAMERAS:
            renderer.plan(camera)
        assert torch.cuda.memory_allocated() - before >= 0.9 * renderer.plans.nbytes
        kept, failed = renderer.plans, []

        def work() -> None:
            if not failed:
                failed.append(True)
                torch.empty(1 << 60, dtype=torch.uint8, device="cuda")

        kept.retry_after_eviction(work)
        assert kept.nbytes == 0
        assert torch.cuda.memory_allocated() - before < 1 << 20

    def test_cached_plans_are_used_without_synchronisation(self) -> None:
        renderer = ScoreRenderer(model("cuda"), 10**9)
        scores = torch.randn(COUNT, 2, device="cuda", requires_grad=True)
        for mode in ("default", "error"):  # the first time makes the plan
            torch.cuda.set_sync_debug_mode(mode)
            try:
                renderer.render_scores(CAMERAS[0], scores).sum().backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")


def test_rendering_a_view_once_gives_the_same_image_without_a_plan(backend: str, device: str) -> None:
    renderer = ScoreRenderer(model(device), max_bytes=2**30)
    scores = torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    for camera in CAMERAS:
        once = renderer.render_scores(camera, scores, once=True)
        assert len(renderer.plans) == 0
        kept = ScoreRenderer(model(device), max_bytes=2**30).render_scores(camera, scores)
        torch.testing.assert_close(once, kept, atol=TOLERANCE, rtol=TOLERANCE)
        cotangent = torch.randn_like(once)
        (gradient,), (expected,) = (torch.autograd.grad(picture, scores, cotangent) for picture in (once, kept))
        torch.testing.assert_close(gradient, expected, atol=TOLERANCE, rtol=TOLERANCE)
    renderer.plan(CAMERAS[0])
    hits = renderer.plans.hits
    renderer.render_scores(CAMERAS[0], scores, once=True)  # a cached plan is used
    assert renderer.plans.hits == hits + 1
