"""PSNR and SSIM against scikit-image, the SSIM gradient against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from utils.colour_metrics import colour_scores, psnr, ssim


def test_psnr_agrees_with_scikit_image() -> None:
    image, target = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0)), torch.full((3, 20, 30), 0.5)
    expected = peak_signal_noise_ratio(target.double().numpy(), image.double().numpy(), data_range=1)
    assert psnr(image, target) == pytest.approx(expected, abs=1e-4)
    assert psnr(target, target) == math.inf


def test_ssim_agrees_with_scikit_image() -> None:
    """Images have a black frame, where scikit-image's mirrored border equals our zero padding."""
    torch.manual_seed(2)
    target = F.interpolate(torch.rand(1, 3, 12, 15), size=(61, 77), mode="bicubic").clamp(0, 1)[0]
    image = (target + 0.1 * torch.randn_like(target)).clamp(0, 1)
    image, target = F.pad(image, [16] * 4).double(), F.pad(target, [16] * 4).double()
    expected = structural_similarity(
        image.permute(1, 2, 0).numpy(), target.permute(1, 2, 0).numpy(), channel_axis=2,
        data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True,
    )[1].mean()  # fmt: skip
    assert ssim(image, target).item() == pytest.approx(expected, abs=1e-6)
    assert ssim(target, target).item() == pytest.approx(1)


def test_ssim_gradient_matches_finite_differences() -> None:
    torch.manual_seed(3)
    target = torch.rand(3, 14, 17, dtype=torch.float64)
    image = torch.rand(3, 14, 17, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: 3 * ssim(x, target), image)


def test_ssim_builds_no_graph_without_a_gradient() -> None:
    image = torch.rand(3, 14, 17)
    assert ssim(image, image).grad_fn is None


def test_ignored_pixels_do_not_count_in_scores() -> None:
    torch.manual_seed(0)
    photo = torch.rand(3, 40, 60)
    image = photo.clone()
    image[:, :, 30:] += 0.1 * torch.rand(3, 40, 30)
    image[:, :, :30] = 0
    ignored = torch.arange(60).expand(40, 60) < 30
    found, expected = colour_scores(image, photo, ignored), colour_scores(image[:, :, 30:], photo[:, :, 30:])
    assert found.psnr == pytest.approx(expected.psnr, abs=1e-3)
    assert found.ssim == pytest.approx(expected.ssim, abs=0.02)
