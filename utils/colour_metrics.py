"""Image metrics: PSNR and SSIM; SSIM is a training loss too, so its gradient is written out."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

WINDOW, SIGMA = 11, 1.5  # Gaussian window of SSIM (Wang et al. 2004), pixels
C1, C2 = 0.01**2, 0.03**2


class ColourScores(NamedTuple):
    """PSNR in dB and SSIM of one image."""

    psnr: float
    ssim: float


def colour_scores(image: Tensor, photo: Tensor, ignored: Tensor | None = None) -> ColourScores | None:
    """Score an image [3, H, W], clamped to 0..1, against a photo in 0..1.

    Args:
        ignored: bool [H, W], pixels that do not count; black in both images where SSIM windows reach them.

    Returns:
        the scores, or None if every pixel is ignored.
    """
    image = image.clamp(0, 1)
    if ignored is None:
        return ColourScores(psnr(image, photo), ssim(image, photo).item())
    counted = 1 - ignored.float().mean().item()
    if counted == 0:
        return None
    loss = 1 - ssim(image.masked_fill(ignored, 0), photo.masked_fill(ignored, 0)).item()
    return ColourScores(psnr(image[:, ~ignored], photo[:, ~ignored]), 1 - loss / counted)


def psnr(image: Tensor, target: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of two images in 0..1, infinity if they are equal."""
    error = (image - target).square().mean().item()
    return -10 * math.log10(error) if error > 0 else math.inf


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Return the mean structural similarity of two images [C, H, W] in 0..1, zero padded; differentiable in `image`."""
    return _SSIM.apply(image, target)


class _SSIM(torch.autograd.Function):
    """Compute the gradient in the forward pass: eight blurs in all, and only one image is saved for backward."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor) -> Tensor:
        mean_x, mean_y, square_x, square_y, product = blur(
            torch.cat((image, target, image * image, target * target, image * target))
        ).chunk(5)
        means, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
        a1, a2 = 2 * means + C1, 2 * (product - means) + C2
        b1, b2 = squares + C1, square_x + square_y - squares + C2
        scale = 1 / (b1 * b2)
        similarity = a1 * a2 * scale  # S, [C, H, W]
        if ctx.needs_input_grad[0]:
            # dS / d(mean_x, square_x, product). With a symmetric window and zero padding the blur is its own adjoint,
            # so it also backpropagates these three to the pixels.
            grad_mean = 2 * (mean_y * (a2 - a1) * scale - mean_x * similarity * (1 / b1 - 1 / b2))
            grads = blur(torch.cat((grad_mean, -similarity / b2, 2 * a1 * scale)))
            grad_mean, grad_square, grad_product = grads.chunk(3)
            grad_image = grad_mean + 2 * image * grad_square + target * grad_product
            ctx.save_for_backward(grad_image.div_(image.numel()))
        return similarity.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (grad_image,) = ctx.saved_tensors
        return grad_output * grad_image, None


def blur(planes: Tensor) -> Tensor:
    """Convolve each plane of [C, H, W] with the Gaussian window, first rows, then columns."""
    # Channels-last is several times faster on CPUs. On GPUs cuDNN would then round inputs to 10 bits (TF32), too few
    # for the differences of means of squares in SSIM.
    rows, columns = _kernels(len(planes), planes.device, planes.dtype)
    on_cpu = planes.device.type == "cpu"
    batch = planes[None].contiguous(memory_format=torch.channels_last if on_cpu else torch.contiguous_format)
    batch = F.conv2d(batch, rows, padding=(0, WINDOW // 2), groups=len(planes))
    return F.conv2d(batch, columns, padding=(WINDOW // 2, 0), groups=len(planes))[0]


@functools.lru_cache(maxsize=8)
def _kernels(channels: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the window along rows [C, 1, 1, 11] and columns [C, 1, 11, 1]; making it takes many launches."""
    offsets = torch.arange(WINDOW, dtype=dtype) - WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    rows = (window / window.sum()).repeat(channels, 1, 1, 1).to(device)
    return rows, rows.transpose(2, 3).contiguous()
