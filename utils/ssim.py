"""Structural similarity (Wang et al. 2004) with the 11x11 Gaussian window, and its gradient in closed form."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity of two pictures [C, H, W] in 0..1, zero padded; differentiable in `image`."""
    return _Similarity.apply(image, target)


class _Similarity(torch.autograd.Function):
    """The gradient is made with the value: 5 blurs and 3, and nothing but one picture is kept until backward."""

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
            # S by mean_x, square_x and product; the window is symmetric and the padding zero, so the blur is its own
            # adjoint and carries the three over to the pixels.
            by_mean = 2 * (mean_y * (a2 - a1) * scale - mean_x * similarity * (1 / b1 - 1 / b2))
            spread = blur(torch.cat((by_mean, -similarity / b2, 2 * a1 * scale)))
            by_mean, by_square, by_product = spread.chunk(3)
            gradient = by_mean + 2 * image * by_square + target * by_product
            ctx.save_for_backward(gradient.div_(image.numel()))
        return similarity.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return outer * gradient, None


def blur(planes: Tensor) -> Tensor:
    """The Gaussian window over each plane of [C, H, W], rows and columns one after the other.

    Channels go last on CPUs, which filter several times faster then. Not on GPUs: cuDNN would take that layout, and
    round its inputs to 10 bits (TF32), which the difference of two means of squares does not survive.
    """
    rows, columns = _kernels(len(planes), planes.device, planes.dtype)
    on_cpu = planes.device.type == "cpu"
    batch = planes[None].contiguous(memory_format=torch.channels_last if on_cpu else torch.contiguous_format)
    batch = F.conv2d(batch, rows, padding=(0, WINDOW // 2), groups=len(planes))
    return F.conv2d(batch, columns, padding=(WINDOW // 2, 0), groups=len(planes))[0]


@functools.lru_cache(maxsize=8)
def _kernels(channels: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The window along rows [C, 1, 1, 11] and columns [C, 1, 11, 1]; kept, since making it is many small kernels."""
    offsets = torch.arange(WINDOW, dtype=dtype) - WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    rows = (window / window.sum()).repeat(channels, 1, 1, 1).to(device)
    return rows, rows.transpose(2, 3).contiguous()
