"""Adaptive density control on hand-made cases: clone, split, prune, reset, --cap_max, Adam's moments."""

from __future__ import annotations

import math

import pytest
import torch

from arguments import RGBParams
from gaussian_renderer import Rendering
from scene.gaussian_model import GaussianModel
from tests.rigs.gaussian_cases import fill_moments, gaussians, moments
from training.densification import DensityControl, last_densification, max_gaussians
from training.gaussian_optimizer import GaussianOptimizer, learning_rates

THRESHOLD = RGBParams().densify_grad_threshold
SMALL, LARGE = 0.005, 0.05  # of the extent 1; 0.01 is between them


def control(model: GaussianModel, **flags) -> tuple[DensityControl, GaussianOptimizer]:
    optimizer = GaussianOptimizer(model, RGBParams(**flags))
    fill_moments(optimizer)
    return DensityControl(optimizer, RGBParams(**flags), torch.Generator().manual_seed(5)), optimizer


def observe(density: DensityControl, gradients: list[float], radii: list[int] | None = None) -> None:
    """Observe one view in which the projected centres have gradients of these lengths."""
    direction = torch.tensor([0.6, -0.8, 0])
    radii = torch.tensor(radii or [3] * len(gradients), dtype=torch.int32)
    density.observe(torch.tensor(gradients)[:, None] * direction, radii)


def test_gradients_are_averaged_over_the_views_that_show_a_gaussian() -> None:
    density, _ = control(gaussians([SMALL] * 3), prune_screen_size=20)
    observe(density, [1.0, 0.0, 2.0], [7, 0, 3])
    observe(density, [3.0, 5.0, 0.0], [4, 9, 0])
    mean = density.gradient_sum / density.visits
    torch.testing.assert_close(mean, torch.tensor([2.0, 5.0, 2.0]))
    assert density.max_radii.tolist() == [7, 9, 3]


def test_a_small_gaussian_is_cloned_in_place() -> None:
    model = gaussians([SMALL, SMALL, SMALL])
    density, optimizer = control(model)
    before = {name: tensor.detach().clone() for name, tensor in model.parameters().items()}
    kept = moments(optimizer)
    observe(density, [0.5 * THRESHOLD, 2 * THRESHOLD, 0.99 * THRESHOLD])
    density.densify_and_prune(prune_large=False)
    assert len(model) == 4
    for name, tensor in model.parameters().items():
        assert torch.equal(tensor, before[name][[0, 1, 2, 1]]), name
        assert tensor.requires_grad
    for name, (first, second) in moments(optimizer).items():
        for now, old in zip((first, second), kept[name], strict=True):
            assert torch.equal(now[:3], old), name
            assert not now[3].any(), name
    assert not density.gradient_sum.any()  # statistics are cleared
    assert len(density.gradient_sum) == 4


def test_a_large_gaussian_is_split_into_two_smaller_ones() -> None:
    model = gaussians([SMALL, LARGE])
    model.scaling[1] = torch.tensor([0.05, 0.02, 0.001]).log()
    quarter = math.sqrt(0.5)
    model.rotation[1] = 3 * torch.tensor([quarter, 0, 0, quarter])  # x to y, y to -x; 3 times too long
    density, optimizer = control(model)
    parent = {name: tensor.detach()[1].clone() for name, tensor in model.parameters().items()}
    observe(density, [0.0, 2 * THRESHOLD])
    density.densify_and_prune(prune_large=False)
    assert len(model) == 3  # the parent is gone
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(5)) * torch.tensor([0.05, 0.02, 0.001])
    turned = torch.stack((-noise[:, 1], noise[:, 0], noise[:, 2]), dim=1)
    torch.testing.assert_close(model.xyz[1:], parent["xyz"] + turned)
    torch.testing.assert_close(model.get_scaling[1:] * 1.6, parent["scaling"].exp().expand(2, 3))
    for name in ("features_dc", "features_rest", "rotation", "opacity"):
        assert torch.equal(getattr(model, name)[1:], parent[name].expand(2, *parent[name].shape)), name
    assert all(not moment[1:].any() for pair in moments(optimizer).values() for moment in pair)


@pytest.mark.parametrize(
    ("prune_large", "screen", "left"),
    [(False, None, [1, 2, 3]), (False, 20, [1, 2, 3]), (True, None, [1, 2]), (True, 20, [1])],
)
def test_transparent_and_large_gaussians_are_pruned(prune_large: bool, screen: int | None, left: list[int]) -> None:
    """The third has a radius of 21 pixels, which needs --prune_screen_size; the fourth is 0.11 units large."""
    model = gaussians([SMALL, SMALL, SMALL, 0.11], opacities=[0.0049, 0.0051, 0.5, 0.5])
    density, optimizer = control(model, prune_screen_size=screen)
    marks = model.xyz.detach().clone()
    kept = moments(optimizer)["xyz"][0]
    observe(density, [0.0] * 4, [20, 20, 21, 5])
    density.densify_and_prune(prune_large)
    assert torch.equal(model.xyz, marks[left])
    assert torch.equal(moments(optimizer)["xyz"][0], kept[left])


def test_pruning_never_removes_all_gaussians() -> None:
    model = gaussians([SMALL] * 2, opacities=[0.001] * 2)
    density, _ = control(model)
    observe(density, [0.0, 0.0])
    density.densify_and_prune(prune_large=False)
    assert len(model) == 2


def test_cap_max_admits_the_largest_gradients() -> None:
    model = gaussians([SMALL] * 4)
    density, _ = control(model, cap_max=6)
    marks = model.xyz.detach().clone()
    observe(density, [2 * THRESHOLD, 5 * THRESHOLD, 3 * THRESHOLD, 4 * THRESHOLD])
    density.densify_and_prune(prune_large=False)
    assert torch.equal(model.xyz[4:], marks[[1, 3]])
    observe(density, [9 * THRESHOLD] * 6)
    density.densify_and_prune(prune_large=False)
    assert len(model) == 6


def test_reset_lowers_opacity_and_clears_only_its_moments() -> None:
    model = gaussians([SMALL] * 3, opacities=[0.9, 0.01, 0.006])
    density, optimizer = control(model)
    before = moments(optimizer)
    density.reset_opacity()
    torch.testing.assert_close(model.get_opacity[:, 0], torch.tensor([0.01, 0.01, 0.006]), atol=1e-6, rtol=0)
    assert not any(moment.any() for moment in moments(optimizer)["opacity"])
    assert torch.equal(moments(optimizer)["xyz"][0], before["xyz"][0])


def test_schedule_of_densification_and_resets() -> None:
    """Densification every 10 steps from 20 to 40; resets every 10 steps, but not with the last densification."""
    times = {"densify_from_iter": 20, "densify_until_iter": 40, "densification_interval": 10}
    density, optimizer = control(gaussians([SMALL]), **times, opacity_reset_interval=10)
    events: list[tuple[int, str]] = []
    density.densify_and_prune = lambda prune_large: events.append((iteration, f"densify {prune_large}"))
    density.reset_opacity = lambda: events.append((iteration, "reset"))
    means2D = torch.zeros(1, 3, requires_grad=True)
    means2D.grad = torch.ones(1, 3)
    one = torch.ones(1, 1)
    rendering = Rendering(one, torch.ones(1, dtype=torch.int32), means2D, None)
    for iteration in range(1, 60):
        density.before_update(iteration, rendering)
    assert events == [
        *((10, "reset"), (20, "densify True"), (20, "reset"), (30, "densify True"), (30, "reset")),
        (40, "densify True"),
    ]
    assert density.visits.tolist() == [40]


@pytest.mark.parametrize(
    ("kind", "iterations", "last"),
    [("adc", 30_000, 15_000), ("adc", 100_000, 15_000), ("adc", 1_000, 500), ("mcmc", 30_000, 25_000),
     ("mcmc", 10_000, 8_333), ("mcmc", 60_000, 25_000)],
)  # fmt: skip
def test_short_runs_densify_for_the_published_share_of_steps(kind: str, iterations: int, last: int) -> None:
    assert last_densification(RGBParams(densification=kind, rgb_iterations=iterations)) == last
    assert last_densification(RGBParams(densification=kind, densify_until_iter=77)) == 77
    assert max_gaussians(RGBParams(densification=kind, cap_max=9)) == 9


def test_learning_rates() -> None:
    params = RGBParams(rgb_iterations=1000)
    position = {i: learning_rates(params, 2.0, i)["xyz"] for i in (0, 500, 1000)}
    assert position == pytest.approx({0: 3.2e-4, 500: 3.2e-5, 1000: 3.2e-6})
    assert learning_rates(RGBParams(rgb_feature_lr=0.02), 1, 1)["features_rest"] == pytest.approx(0.001)
    assert learning_rates(RGBParams(rgb_feature_lr=0.02, rgb_sh_lr=0), 1, 1)["features_rest"] == 0
    published = {"features_dc": 0.0025, "features_rest": 0.000125, "scaling": 0.005, "rotation": 0.001, "opacity": 0.05}
    for cool_down in (1.0, 0.01):
        params.cool_down = cool_down
        for iteration, share in ((1, 1), (900, 1), (950, cool_down**0.5), (1000, cool_down)):
            found = learning_rates(params, 2.0, iteration)
            assert {n: found[n] / share for n in published} == pytest.approx(published)
