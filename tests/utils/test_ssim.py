"""SSIM against scikit-image, its gradient against finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity

from utils.ssim import ssim


def test_ssim_agrees_with_scikit_image() -> None:
    """On pictures with a black frame, where scikit-image's mirrored border is our zero border."""
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


def test_ssim_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(3)
    target = torch.rand(3, 14, 17, dtype=torch.float64)
    image = torch.rand(3, 14, 17, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: 3 * ssim(x, target), image)


def test_nothing_is_kept_without_a_gradient() -> None:
    picture = torch.rand(3, 14, 17)
    assert ssim(picture, picture).grad_fn is None
