"""The loss of the RGB stage against a photo: L1 and structural similarity."""

from __future__ import annotations

from torch import Tensor

from diff_gaussian_rasterization import step_kernels
from utils.colour_metrics import ssim


def photo_loss(
    image: Tensor, photo: Tensor, ignored: Tensor | None, lambda_dssim: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(1 - lambda) L1 + lambda (1 - SSIM), Eq. 7 of Kerbl et al. 2023; differentiable in `image`.

    Args:
        image: picture [3, H, W].
        photo: [3, H, W] uint8.
        ignored: [H, W] bool, pixels that do not count: black in both; or None.
        lambda_dssim: lambda, 0..1.

    Returns:
        the loss, L1 and SSIM; the last two are to be read, not differentiated.
    """
    if step_kernels.available(image.device):
        return step_kernels.photo_loss(image, photo, ignored, lambda_dssim)
    target = photo.to(image.dtype) / 255
    if ignored is not None:
        image, target = image.masked_fill(ignored, 0), target.masked_fill(ignored, 0)
    l1 = (image - target).abs().mean()
    similarity = ssim(image, target)
    return (1 - lambda_dssim) * l1 + lambda_dssim * (1 - similarity), l1.detach(), similarity.detach()
