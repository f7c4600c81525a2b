"""The CUDA kernels of a training step (csrc/dgr_step.h) for PyTorch, each one or two launches.

Activations with their gradients, L1 + D-SSIM against a photo, Adam for all parameters at once, MCMC noise, and the
statistics of adaptive densification. GPU only; the caller has a plain PyTorch version for other devices, and
`available` says which one to run. Every sum has a fixed order: the same bits in every run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import abi
from .backends import backend_for


def available(device: torch.device) -> bool:
    """Whether the kernels run on this device."""
    return backend_for(device) == "cuda"


def photo_loss(
    image: Tensor, photo: Tensor, ignored: Tensor | None, dssim_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(1 - dssim_weight) L1 + dssim_weight (1 - SSIM) of a picture; differentiable in `image`.

    Args:
        image: [C, H, W] float32.
        photo: [C, H, W] uint8; 255 is 1.
        ignored: [H, W] bool, pixels set to black in both, which still count in the means; or None.
        dssim_weight: 0..1.

    Returns:
        The loss, and its parts L1 and SSIM without a gradient.

    Raises:
        ValueError: for tensors that do not fit together.
    """
    _check("image", image, torch.float32, image.shape if image.dim() == 3 and image.numel() else (1, 1, 1), image)
    _check("photo", photo, torch.uint8, image.shape, image)
    if ignored is not None:
        _check("ignored", ignored, torch.bool, image.shape[1:], image)
        ignored = ignored.contiguous()
    return _PhotoLoss.apply(image, photo.contiguous(), ignored, dssim_weight)


class _PhotoLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, photo: Tensor, ignored: Tensor | None, dssim_weight: float) -> tuple:
        ctx.set_materialize_grads(False)  # no zeros for L1 and SSIM
        image = image.contiguous()
        channels, height, width = image.shape
        ctx.photo = abi.Photo(photo.data_ptr(), abi.address(ignored), channels, height, width)
        ctx.kept, ctx.dssim_weight = (photo, ignored), dssim_weight
        derivatives = image.new_empty(3, *image.shape) if ctx.needs_input_grad[0] else None
        blocks = channels * -(-height // abi.LOSS_TILE) * -(-width // abi.LOSS_TILE)
        terms = [image.new_empty(()) for _ in range(3)]
        abi.Gpu(image.device).call(
            "dgr_cuda_photo_loss", ctx.photo, dssim_weight, image, derivatives, image.new_empty(2 * blocks), *terms
        )
        ctx.save_for_backward(image, derivatives)
        ctx.mark_non_differentiable(*terms[1:])
        return tuple(terms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor | None, *_: Tensor | None) -> tuple:
        if loss_grad is None:
            return (None,) * 4
        image, derivatives = ctx.saved_tensors
        gradient = torch.empty_like(image)
        abi.Gpu(image.device).call(
            "dgr_cuda_photo_loss_backward", ctx.photo, ctx.dssim_weight, image, derivatives, loss_grad, gradient
        )
        return gradient, None, None, None


class RawParameters(NamedTuple):
    """Contiguous float32 parameters of N Gaussians before their activations; see `csrc/dgr_step.h`."""

    features_dc: Tensor  # [N, 1, 3]
    features_rest: Tensor  # [N, R, 3]
    scaling: Tensor  # [N, 3] logarithms
    rotation: Tensor  # [N, 4]
    opacity: Tensor  # [N, 1] logits

    def structure(self, shown_count: int) -> abi.Raw:
        """The C structure, with the first `shown_count` SH coefficients in use."""
        count = self.opacity.shape[0]
        for name, tensor in zip(self._fields, self, strict=True):
            if tensor.dtype != torch.float32 or not tensor.is_contiguous() or tensor.shape[0] != count:
                raise ValueError(
                    f"{name} must be a contiguous float32 tensor of {count} rows, got {tensor.dtype} of "
                    f"shape {list(tensor.shape)}."
                )
        return abi.Raw(count, self.features_rest.shape[1], shown_count, *(t.data_ptr() for t in self))


def activate(
    raw: RawParameters, sh_degree: int, opacity_weight: float = 0.0, scale_weight: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Apply the activations; differentiable in all parameters.

    Args:
        sh_degree: degree in use; coefficients of higher degrees get a gradient of 0, or none if the degree is 0.
        opacity_weight, scale_weight: weights of the penalty.

    Returns:
        Opacities [N, 1], scales [N, 3], unit quaternions [N, 4], harmonics [N, (sh_degree + 1)^2, 3], and the penalty
        opacity_weight mean(opacities) + scale_weight mean(scales), or None if both weights are 0.
    """
    if sh_degree == 0:
        *activated, _, penalty = _Activate.apply(1, opacity_weight, scale_weight, *raw)
        return *activated, raw.features_dc, penalty
    return _Activate.apply((sh_degree + 1) ** 2, opacity_weight, scale_weight, *raw)


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shown_count: int, opacity_weight: float, scale_weight: float, *raw: Tensor) -> tuple:
        ctx.set_materialize_grads(False)
        _, _, scaling, rotation, opacity = raw
        ctx.raw, ctx.weights = RawParameters(*raw).structure(shown_count), (opacity_weight, scale_weight)
        opacities, scales, rotations = map(torch.empty_like, (opacity, scaling, rotation))
        shs = partials = penalty = None
        if shown_count > 1:
            shs = opacity.new_empty(len(opacity), shown_count, 3)
        if opacity_weight or scale_weight:
            penalty = opacity.new_empty(())
            partials = opacity.new_empty(2 * -(-len(opacity) // abi.ACTIVATE_BLOCK))
        activated = abi.Activated(*map(abi.address, (shs, scales, rotations, opacities)))
        abi.Gpu(opacity.device).call("dgr_cuda_activate", ctx.raw, activated, *ctx.weights, partials, penalty)
        ctx.save_for_backward(*raw, opacities, scales, rotations)
        return opacities, scales, rotations, shs, penalty

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple:
        *raw, opacities, scales, rotations = ctx.saved_tensors
        grad_opacities, grad_scales, grad_rotations, grad_shs = abi.contiguous(*gradients[:4])
        needs_grad = list(ctx.needs_input_grad[3:])
        if grad_shs is None:
            needs_grad[:2] = False, False  # the features
        grads = [torch.empty_like(tensor) if needed else None for tensor, needed in zip(raw, needs_grad, strict=True)]
        abi.Gpu(opacities.device).call(
            "dgr_cuda_activate_backward",
            ctx.raw,
            abi.Activated(None, *map(abi.address, (scales, rotations, opacities))),
            abi.Activated(*map(abi.address, (grad_shs, grad_scales, grad_rotations, grad_opacities))),
            *ctx.weights,
            gradients[4],
            abi.RawGradients(*map(abi.address, grads)),
        )
        return None, None, None, *grads


class AdamTensor(NamedTuple):
    """A parameter in an Adam step; its tensors are float32, contiguous and of equal size."""

    parameter: Tensor
    gradient: Tensor
    first: Tensor  # moments
    second: Tensor
    rate: float
    step: int  # 1 in the first


@torch.no_grad()
def adam(tensors: Iterable[AdamTensor], betas: tuple[float, float], epsilon: float) -> None:
    """Take an Adam step for all tensors, each with its own learning rate, in place and in one launch.

    Raises:
        ValueError: for a parameter or moments that are not contiguous.
    """
    rows, kept = [], []
    for parameter, gradient, first, second, rate, step in tensors:
        if not (parameter.is_contiguous() and first.is_contiguous() and second.is_contiguous()):
            raise ValueError(f"A parameter of shape {list(parameter.shape)} or its moments are not contiguous.")
        gradient = gradient.contiguous()
        kept.append(gradient)
        addresses = (parameter.data_ptr(), gradient.data_ptr(), first.data_ptr(), second.data_ptr())
        corrections = tuple(1 - beta**step for beta in betas)
        rows.append(abi.AdamTensor(*addresses, parameter.numel(), rate, corrections))
    if rows:
        abi.Gpu(kept[0].device).call("dgr_cuda_adam", (abi.AdamTensor * len(rows))(*rows), len(rows), *betas, epsilon)


@torch.no_grad()
def add_noise(
    means: Tensor, raw: RawParameters, noise: Tensor, rate: float, steepness: float, threshold: float
) -> None:
    """Add rate sigmoid(steepness (threshold - opacity)) R S^2 noise to the means [N, 3] in place; noise is [N, 3]."""
    abi.Gpu(means.device).call("dgr_cuda_add_noise", raw.structure(1), rate, steepness, threshold, noise, means)


@torch.no_grad()
def count_visits(
    means2D_gradient: Tensor, radii: Tensor, gradient_sum: Tensor, visits: Tensor, max_radii: Tensor
) -> None:
    """Add gradient norms [N, 3] and visits (radii [N] > 0) to the sums, and keep the largest radii, in place."""
    abi.Gpu(radii.device).call(
        "dgr_cuda_observe", len(radii), means2D_gradient.contiguous(), radii, gradient_sum, visits, max_radii
    )


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], image: Tensor) -> None:
    if tensor.dtype != dtype or tensor.shape != shape or tensor.device != image.device:
        raise ValueError(
            f"{name} must be {dtype} of shape {list(shape)} on {image.device}, got {tensor.dtype} of shape "
            f"{list(tensor.shape)} on {tensor.device}."
        )
