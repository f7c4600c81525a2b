"""Pictures that stay on the device, with a CPU in place of the GPU."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

from training import uploads
from training.uploads import Uploads

SHAPE, COUNT, FIT = (6, 8), 99, 33


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    monkeypatch.setattr(uploads, "memory_budget", lambda *_, on_cpu: FIT * SHAPE[0] * SHAPE[1] + 5)
    return Counter()


def read(reads: Counter[int], number: int) -> np.ndarray:
    reads[number] += 1
    return np.full(SHAPE, number, np.uint8)


def test_prepared_pictures_are_read_once_as_far_as_they_fit(reads: Counter[int]) -> None:
    pictures = {number: partial(read, reads, number) for number in range(COUNT)}
    kept = Uploads(torch.device("cpu"))
    kept.prepare(pictures)
    assert len(reads) <= FIT + uploads.MOST_READERS  # it does not go on in vain
    for number, load in pictures.items():
        assert (kept.get(number, load) == number).all()
    assert all(reads[number] == 1 for number in range(FIT))
    kept.prepare(pictures)
    assert all(reads[number] == 1 for number in range(FIT))
    before = reads[COUNT - 1]
    kept.get(COUNT - 1, pictures[COUNT - 1])
    assert reads[COUNT - 1] == before + 1


def test_what_a_reader_raises_arrives(reads: Counter[int]) -> None:
    def damaged() -> np.ndarray:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        Uploads(torch.device("cpu")).prepare({0: partial(read, reads, 0), 1: damaged})
