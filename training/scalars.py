"""Scalars of training steps: from the device into the log without synchronising with a GPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from utils.device import Download
from utils.errors import UserError

DIVERGED = 1e4  # a loss of this size is not a bad start but on its way to infinity


class LogInterval:
    """Scalars of the steps since the last log line; tensors among them stay on the device."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, str]] = []
        self._names: list[str] = []
        self._tensors: list[Tensor] = []  # one [T] a step
        self._numbers: dict[str, float] = {}  # sums over the steps

    def add(self, iteration: int, view: str, scalars: dict[str, Tensor | float]) -> None:
        """Add the scalars of a step.

        Args:
            iteration: of the step.
            view: its view's id.
            scalars: the same names in every step; tensors [], which the caller may overwrite later, and numbers.
        """
        self._steps.append((iteration, view))
        self._names = list(scalars)
        self._tensors.append(torch.stack([value for value in scalars.values() if isinstance(value, Tensor)]).detach())
        for name, value in scalars.items():
            if not isinstance(value, Tensor):
                self._numbers[name] = self._numbers.get(name, 0.0) + value

    def line(self, seconds: float) -> LogLine:
        """Return the log line of these steps, at least one; its copy from the device is still pending.

        Args:
            seconds: of training until now.
        """
        return LogLine(self._steps, self._names, Download(torch.stack(self._tensors)), self._numbers, seconds)

    def check(self, stage: str, folder: Path) -> None:
        """See `LogLine.check`; waits for the steps."""
        if self._steps:
            self.line(0).check(stage, folder)


class LogLine:
    """Means over the last steps.

    Args:
        steps: iteration and view of each of n steps.
        names: of the scalars; those that are not in `numbers` are the columns of `values`, in this order.
        values: [n, T].
        numbers: sums over the steps.
        seconds: of training until the last step.
    """

    def __init__(
        self,
        steps: list[tuple[int, str]],
        names: list[str],
        values: Download,
        numbers: dict[str, float],
        seconds: float,
    ):
        self.iteration, self.seconds = steps[-1][0], seconds
        self._steps, self._names, self._values, self._numbers = steps, names, values, numbers

    @property
    def is_ready(self) -> bool:
        """Whether the copy from the device is complete."""
        return self._values.is_ready

    def means(self) -> dict[str, float]:
        """Return the mean of each scalar over the steps."""
        sums = iter(self._values.wait().double().sum(dim=0).tolist())
        return {
            name: (self._numbers[name] if name in self._numbers else next(sums)) / len(self._steps)
            for name in self._names
        }

    def check(self, stage: str, folder: Path) -> None:
        """Raise UserError at the first loss that is NaN, infinite or far beyond what a model can have."""
        column = [name for name in self._names if name not in self._numbers].index("loss")
        for (iteration, view), loss in zip(self._steps, self._values.wait()[:, column].tolist(), strict=True):
            if not abs(loss) <= DIVERGED:
                raise UserError(
                    f"the {stage} stage diverged: its loss is {loss:.4g} at step {iteration}, in the view {view}. Look "
                    "at this photo and its camera, or lower the learning rates; what was saved before is intact in "
                    f"{folder}."
                )
