"""Images kept on the device, with the CPU in place of a GPU."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

from training import photos
from training.photos import DeviceImages

SHAPE, COUNT, FIT = (6, 8), 99, 33


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    monkeypatch.setattr(photos, "memory_budget", lambda *_, on_cpu: FIT * SHAPE[0] * SHAPE[1] + 5)
    return Counter()


def read(reads: Counter[int], number: int) -> np.ndarray:
    reads[number] += 1
    return np.full(SHAPE, number, np.uint8)


def test_prepared_images_are_read_once_while_they_fit(reads: Counter[int]) -> None:
    images = {number: partial(read, reads, number) for number in range(COUNT)}
    cache = DeviceImages(torch.device("cpu"))
    cache.prepare(images)
    assert len(reads) <= FIT + photos.MAX_READERS  # it stops reading once the budget is used up
    for number, load in images.items():
        assert (cache.get(number, load) == number).all()
    assert all(reads[number] == 1 for number in range(FIT))
    cache.prepare(images)
    assert all(reads[number] == 1 for number in range(FIT))
    before = reads[COUNT - 1]
    cache.get(COUNT - 1, images[COUNT - 1])
    assert reads[COUNT - 1] == before + 1


def test_exceptions_of_readers_are_raised(reads: Counter[int]) -> None:
    def damaged() -> np.ndarray:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        DeviceImages(torch.device("cpu")).prepare({0: partial(read, reads, 0), 1: damaged})
