"""MCMC densification: Eq. 9 against its definition, unchanged renderings, noise with the covariance of Eq. 8."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from arguments import RGBParams
from gaussian_renderer import render
from scene.cameras import Camera
from scene.gaussian_model import GaussianModel
from tests.rigs.gaussian_cases import fill_moments, gaussians, moments
from training.densification import rotate
from training.gaussian_optimizer import GaussianOptimizer
from training.mcmc import MAX_COPIES, MarkovChain, relocate, sample

CAMERA = Camera("front", np.eye(3), np.zeros(3), 60.0, 60.0, 24.5, 24.5, 49, 49)


def chain(model: GaussianModel, **flags) -> tuple[MarkovChain, GaussianOptimizer]:
    params = RGBParams(densification="mcmc", **flags)
    optimizer = GaussianOptimizer(model, params)
    fill_moments(optimizer)
    return MarkovChain(optimizer, params, torch.Generator().manual_seed(3)), optimizer


@pytest.mark.parametrize("opacity", [0.006, 0.1, 0.5, 0.9, 0.999])
def test_relocation_matches_the_paper(opacity: float) -> None:
    """Against the double sum of Eq. 9."""
    counts = range(1, MAX_COPIES + 1)
    logits = torch.full((len(counts),), opacity, dtype=torch.float64).logit()
    found, factors = relocate(logits, torch.tensor(counts))
    for n, logit, factor in zip(counts, found.tolist(), factors.tolist(), strict=True):
        expected = 1 - (1 - opacity) ** (1 / n)
        assert 1 / (1 + math.exp(-logit)) == pytest.approx(expected, rel=1e-9)
        terms = (
            math.comb(i - 1, k) * (-1) ** k * expected ** (k + 1) / math.sqrt(k + 1)
            for i in range(1, n + 1)
            for k in range(i)
        )
        assert factor == pytest.approx(opacity / math.fsum(terms), rel=1e-5)


def test_two_copies_computed_by_hand() -> None:
    logits, factors = relocate(torch.tensor([0.75]).logit(), torch.tensor([2]))
    assert torch.sigmoid(logits).item() == pytest.approx(0.5)  # 1 - sqrt(1 / 4)
    assert factors.item() == pytest.approx(0.75 / (2 * 0.5 - 0.25 / math.sqrt(2)))


def test_an_opaque_gaussian_can_be_relocated_to() -> None:
    """Its opacity rounds to 1 in float32."""
    logits, factors = relocate(torch.tensor([40.0, 40.0]), torch.tensor([2, 1000]))
    assert torch.isfinite(logits).all()
    assert ((factors > 0) & (factors <= 1)).all()


def picture(model: GaussianModel) -> Tensor:
    with torch.no_grad():
        return render(CAMERA, model, torch.zeros(3)).image


def one_and_dead(dead: int) -> GaussianModel:
    """An opaque Gaussian in the image centre, and dead ones beside it."""
    model = gaussians([0.2] + [0.1] * dead, [0.8] + [0.004] * dead, sh_degree=0)
    model.xyz = torch.tensor([[0.0, 0.0, 2.0]] + [[0.4, 0.3, 2.0]] * dead)
    model.features_dc = torch.full((dead + 1, 1, 3), 1.5)
    return model


@pytest.mark.parametrize("dead", [1, 3, 8])
def test_relocation_keeps_the_rendering(dead: int) -> None:
    model = one_and_dead(dead)
    before = picture(one_and_dead(0))
    density, optimizer = chain(model)
    density.relocate_dead()
    after = picture(model)
    assert torch.equal(model.xyz, model.xyz[:1].expand(dead + 1, 3))
    assert torch.equal(model.opacity, model.opacity[:1].expand(dead + 1, 1))
    assert after[:, 24, 24].tolist() == pytest.approx(before[:, 24, 24].tolist(), abs=2e-3)
    # the integral of a line through the centre; the rasteriser cuts the tails at 3 sigma and alpha 1/255
    assert after[0, 24].sum().item() == pytest.approx(before[0, 24].sum().item(), rel=0.02)
    copied = one_and_dead(dead)  # relocated without Eq. 9
    for tensor in copied.parameters().values():
        tensor[1:] = tensor[:1].clone()
    assert (after - before).abs().mean() < 0.2 * (picture(copied) - before).abs().mean()
    assert all(not moment.any() for pair in moments(optimizer).values() for moment in pair)


def test_only_dead_gaussians_and_their_targets_change() -> None:
    model = gaussians([0.1] * 4, [0.9, 0.005, 0.0051, 0.3])
    model.opacity[2:] = -5.29  # just alive: 0.00501
    density, optimizer = chain(model)
    before, kept = model.xyz.detach().clone(), moments(optimizer)
    density.relocate_dead()
    assert torch.equal(model.xyz[1], before[0])
    assert torch.equal(model.xyz[[0, 2, 3]], before[[0, 2, 3]])
    for name, pair in moments(optimizer).items():
        for now, old in zip(pair, kept[name], strict=True):
            assert not now[[0, 1]].any()
            assert torch.equal(now[[2, 3]], old[[2, 3]])


def test_no_relocation_without_dead_or_live_gaussians() -> None:
    for opacities in ([0.5, 0.6], [0.004, 0.003]):
        model = gaussians([0.1] * 2, opacities)
        before = {name: tensor.clone() for name, tensor in model.parameters().items()}
        chain(model)[0].relocate_dead()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.parameters().items())


def test_growth_keeps_the_rendering_and_stops_at_cap_max() -> None:
    model = one_and_dead(0)
    many = {name: tensor.repeat(40, *[1] * (tensor.dim() - 1)) for name, tensor in model.parameters().items()}
    model = GaussianModel(**many, active_sh_degree=0)
    model.xyz[:, :2] = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    model.scaling -= 1
    model.opacity[:] = torch.logit(torch.tensor(0.3))
    before = picture(model)
    density, optimizer = chain(model, cap_max=43)
    density.grow()
    assert len(model) == 42  # 5 % more
    assert (picture(model) - before).abs().max() < 0.01
    assert all(not moment[40:].any() for pair in moments(optimizer).values() for moment in pair)
    density.grow()
    density.grow()
    assert len(model) == 43


def test_sampling_is_proportional_to_the_weights() -> None:
    weights = torch.tensor([0.1, 0.0, 0.6, 0.3, 0.0], dtype=torch.float64)
    drawn = sample(weights, 20_000, torch.Generator().manual_seed(3))
    shares = drawn.bincount(minlength=5) / 20_000
    assert shares.tolist() == pytest.approx(weights.tolist(), abs=0.015)  # 4 standard deviations
    assert shares[1] == shares[4] == 0


def test_noise_has_the_covariance_of_eq_8_and_spares_opaque_gaussians() -> None:
    count = 40_000
    model = gaussians([0.1] * count, [1e-5] * (count - 1) + [0.2])
    model.scaling[:] = torch.tensor([0.3, 0.1, 0.02]).log()
    model.rotation[:] = 2 * torch.tensor([0.8, 0.2, -0.4, 0.4])
    start = model.xyz.clone()
    density, _ = chain(model, noise_lr=10.0)
    density.add_noise(position_lr=0.5)
    moved = (model.xyz.detach() - start)[: count - 1]
    assert (model.xyz.detach() - start)[-1].abs().max() < 1e-7
    axes = rotate(model.get_rotation[:3].detach(), torch.eye(3)).T  # columns are the axes of the Gaussian
    covariance = axes @ torch.diag(torch.tensor([0.3, 0.1, 0.02]) ** 2) @ axes.T
    strength = 10 * 0.5 / (1 + math.exp(-100 * (0.005 - 1e-5)))
    expected = strength**2 * covariance @ covariance
    assert (moved.T.cov() - expected).norm() < 0.03 * expected.norm()
    assert moved.mean(dim=0).norm() < 0.03 * expected.trace().sqrt()


def test_noise_follows_the_seed_and_resumes() -> None:
    runs = []
    for _ in range(2):
        model = gaussians([0.1] * 5, [0.001] * 5)
        density, _ = chain(model)
        density.add_noise(1.0)
        state = density.state()
        density.add_noise(1.0)
        runs.append(model.xyz.detach().clone())
    assert torch.equal(*runs)
    model = gaussians([0.1] * 5, [0.001] * 5)
    density, _ = chain(model)
    density.add_noise(1.0)
    density.add_noise(1.0)
    density.load_state(state)
    again = model.xyz.detach().clone()
    density.add_noise(1.0)
    expected = runs[0]
    fresh = gaussians([0.1] * 5, [0.001] * 5)
    first, _ = chain(fresh)
    first.add_noise(1.0)
    torch.testing.assert_close(model.xyz - again, expected - fresh.xyz)
