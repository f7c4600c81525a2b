"""Scalars of training steps in the log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training.session import LogInterval
from utils.errors import UserError


def test_means_of_overwritten_tensors_and_of_numbers() -> None:
    values = np.random.default_rng(0).random((7, 3))
    loss, part = torch.zeros((), requires_grad=True), torch.zeros(())
    interval = LogInterval()
    for number, row in enumerate(values):
        with torch.no_grad():
            loss.fill_(row[0])
            part.fill_(row[2])
        interval.add(number + 4, "view", {"loss": loss, "rate": row[1], "part": part})
    interval.finish(2.5)
    assert (interval.iteration, interval.seconds, interval.is_ready) == (10, 2.5, True)
    means = interval.means()
    assert list(means) == ["loss", "rate", "part"]
    np.testing.assert_allclose(list(means.values()), values.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -2e4])
def test_the_first_diverged_step_is_named(bad: float) -> None:
    interval = LogInterval()
    interval.check("referring", Path("model"))  # no step yet
    for iteration, loss in enumerate([1.0, 9e3, bad, bad], start=1):
        interval.add(iteration, f"photo {iteration}", {"part": torch.tensor(bad), "loss": torch.tensor(loss)})
        if iteration == 2:
            interval.check("referring", Path("model"))
    for _ in range(2):
        with pytest.raises(UserError, match="step 3, in the view photo 3"):
            interval.check("referring", Path("model"))
        interval.finish(0)
