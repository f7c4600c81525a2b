"""The scalars of training steps, from the device into the log, without a step that waits for a GPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from utils.device import Download
from utils.errors import UserError

EXPLODED = 1e4  # a loss of this size is not a bad start, but numbers on their way to infinity


class Interval:
    """The scalars of the steps since the last line of the log; tensors among them stay on the device."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, str]] = []
        self._names: list[str] = []
        self._tensors: list[Tensor] = []  # one [T] a step
        self._numbers: dict[str, float] = {}  # sums over the steps

    def add(self, iteration: int, view: str, scalars: dict[str, Tensor | float]) -> None:
        """Note the scalars of a step and its view.

        Args:
            scalars: the same names in every step; the loss and other tensors [] of one type on one device, which may be
                written again, and plain numbers.
        """
        self._steps.append((iteration, view))
        self._names = list(scalars)
        self._tensors.append(torch.stack([value for value in scalars.values() if isinstance(value, Tensor)]).detach())
        for name, value in scalars.items():
            if not isinstance(value, Tensor):
                self._numbers[name] = self._numbers.get(name, 0.0) + value

    def line(self, seconds: float) -> Line:
        """The line of the log for these steps, of which there is at least one; its numbers are on their way.

        Args:
            seconds: of training until now.
        """
        return Line(self._steps, self._names, Download(torch.stack(self._tensors)), self._numbers, seconds)

    def check(self, stage: str, folder: Path) -> None:
        """See `Line.check`; waits for the steps."""
        if self._steps:
            self.line(0).check(stage, folder)


class Line:
    """The scalars of the last steps as the log has them.

    Args:
        steps: iteration and view of each of n steps.
        names: of the scalars; those that are not in `numbers` are columns of `values`, in this order.
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
    def is_here(self) -> bool:
        """Whether nothing has to be waited for."""
        return self._values.is_done

    def means(self) -> dict[str, float]:
        """The mean of each scalar over the steps."""
        sums = iter(self._values.wait().double().sum(dim=0).tolist())
        return {
            name: (self._numbers[name] if name in self._numbers else next(sums)) / len(self._steps)
            for name in self._names
        }

    def check(self, stage: str, folder: Path) -> None:
        """Raise UserError at the first loss that is no number, or far beyond any that a model can have."""
        column = [name for name in self._names if name not in self._numbers].index("loss")
        for (iteration, view), loss in zip(self._steps, self._values.wait()[:, column].tolist(), strict=True):
            if not abs(loss) <= EXPLODED:
                raise UserError(
                    f"the {stage} stage diverged: its loss is {loss:.4g} at step {iteration}, in the view {view}. Look "
                    "at this photo and its camera, or lower the learning rates; what was saved before is intact in "
                    f"{folder}."
                )
