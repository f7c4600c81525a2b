"""The interface of a plan, the same for every backend."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class RasterPlan(ABC):
    """Frozen geometry of one view: projected and sorted once, then any scores can be blended, any number of times.

    Attributes:
        radii: [N] int32, radius in pixels, 0 for an invisible Gaussian.
    """

    radii: Tensor

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held by the plan."""

    @abstractmethod
    def render(self, scores: Tensor) -> Tensor:
        """Blend scores [N, K] into [K, H, W], without background; differentiable in the scores only.

        Raises:
            ValueError: for scores of another shape, dtype or device.
        """
