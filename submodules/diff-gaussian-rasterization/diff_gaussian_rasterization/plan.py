"""The raster plan of a view, with the same interface for every backend."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .inputs import check_tensor


class RasterPlan(ABC):
    """Frozen geometry of one view: projected and sorted once, to blend any scores any number of times.

    A view is a linear map: the picture is W m for scores m, where W [pixels, N] holds each Gaussian's alpha times the
    transmittance in front of it. The plan was computed on the stream that was current then; work on another stream
    must wait for that.

    Attributes:
        radii: [N] int32, radius in pixels, 0 for an invisible Gaussian.
        size: (H, W) of the picture.
        dtype: of scores and pictures.
    """

    radii: Tensor
    size: tuple[int, int]
    dtype: torch.dtype = torch.float32
    _uses_autograd = False  # whether `_blend` is differentiable as it is

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held by the plan."""

    @abstractmethod
    def _blend(self, scores: Tensor) -> Tensor:
        """W m for contiguous scores [N, K]."""

    @abstractmethod
    def _backproject(self, image: Tensor) -> Tensor:
        """W^T image for a contiguous image [C, H, W]."""

    def packed(self) -> RasterPlan:
        """Return the plan in the form that is the fastest to render again and again."""
        return self

    def render(self, scores: Tensor) -> Tensor:
        """W m: blend scores [N, K] into [K, H, W], without background; differentiable in the scores only.

        Raises:
            ValueError: for scores of another shape, dtype or device.
        """
        check_tensor("scores", scores, self._like(), (len(self.radii), None), "the plan")
        if scores.requires_grad and torch.is_grad_enabled() and not self._uses_autograd:
            return _Render.apply(scores, self)
        return self._blend(scores.contiguous())

    @torch.no_grad()
    def backproject(self, image: Tensor) -> Tensor:
        """W^T image: the sum over pixels of each Gaussian's weight times image [C, H, W], as [N, C].

        Divided by the sums of a channel of ones, it is the closed-form lift of the image. Not differentiable.

        Raises:
            ValueError: for an image of another shape, dtype or device.
        """
        check_tensor("image", image, self._like(), (None, *self.size), "the plan")
        return self._backproject(image.contiguous())

    @torch.no_grad()
    def transmittance(self) -> Tensor:
        """[H, W]: share of light that passes all Gaussians of a pixel; 1 for an empty pixel, 0 for an opaque one."""
        return 1 - self.render(self.radii.new_ones(len(self.radii), 1, dtype=self.dtype))[0]

    def _like(self) -> Tensor:
        """An empty tensor of this plan's dtype and device."""
        return self.radii.new_empty(0, dtype=self.dtype)


class _Render(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores: Tensor, plan: RasterPlan) -> Tensor:
        ctx.plan = plan
        return plan._blend(scores.detach().contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx, picture_grad: Tensor):
        return ctx.plan._backproject(picture_grad.contiguous()), None
