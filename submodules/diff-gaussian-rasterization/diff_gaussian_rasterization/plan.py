"""The interface of a plan, the same for every backend."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .inputs import check_tensor


class RasterPlan(ABC):
    """Frozen geometry of one view: projected and sorted once, then any scores can be blended, any number of times.

    What it holds was computed on the stream that was current then; work on another one must wait for that. A view is a
    linear map: the picture is W m for scores m, where W [pixels, N] holds each Gaussian's alpha times the
    transmittance in front of it.

    Attributes:
        radii: [N] int32, radius in pixels, 0 for an invisible Gaussian.
        size: (H, W) of the picture.
        dtype: of scores and pictures.
    """

    radii: Tensor
    size: tuple[int, int]
    dtype: torch.dtype = torch.float32

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held by the plan."""

    @abstractmethod
    def render(self, scores: Tensor) -> Tensor:
        """W m: blend scores [N, K] into [K, H, W], without background; differentiable in the scores only.

        Raises:
            ValueError: for scores of another shape, dtype or device.
        """

    @abstractmethod
    def backproject(self, image: Tensor) -> Tensor:
        """W^T image: for each Gaussian the sum over the pixels of its weight times image [C, H, W]: [N, C].

        With a channel of ones, that one's sums divided into the others are the closed-form lift of the image. Not
        differentiable.

        Raises:
            ValueError: for an image of another shape, dtype or device.
        """

    @torch.no_grad()
    def transmittance(self) -> Tensor:
        """[H, W]: share of light that passes all Gaussians of a pixel; 1 where nothing is, 0 where all is opaque."""
        ones = torch.ones(len(self.radii), 1, dtype=self.dtype, device=self.radii.device)
        return 1 - self.render(ones)[0]

    def _check_scores(self, scores: Tensor) -> None:
        check_tensor("scores", scores, self._like(), (len(self.radii), None), "the plan")

    def _check_image(self, image: Tensor) -> None:
        check_tensor("image", image, self._like(), (None, *self.size), "the plan")

    def _like(self) -> Tensor:
        """A tensor of this plan's dtype and device."""
        return self.radii.new_empty(0, dtype=self.dtype)


class CompiledPlan(RasterPlan):
    """A plan whose W and W^T are kernels."""

    @abstractmethod
    def _blend(self, scores: Tensor) -> Tensor:
        """W m for contiguous scores [N, K]."""

    @abstractmethod
    def _backproject(self, image: Tensor) -> Tensor:
        """W^T G for a contiguous image [C, H, W]."""

    def render(self, scores: Tensor) -> Tensor:
        self._check_scores(scores)
        if scores.requires_grad and torch.is_grad_enabled():
            return _Render.apply(scores, self)
        return self._blend(scores.contiguous())

    @torch.no_grad()
    def backproject(self, image: Tensor) -> Tensor:
        self._check_image(image)
        return self._backproject(image.contiguous())


class _Render(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores: Tensor, plan: CompiledPlan) -> Tensor:
        ctx.plan = plan
        return plan._blend(scores.detach().contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx, picture_grad: Tensor):
        return ctx.plan._backproject(picture_grad.contiguous()), None
