"""Which backend computes the scores, and what is said where the kernels cannot."""

from __future__ import annotations

import logging

import pytest
import torch

from referring.kernels import backend as field_backends
from referring.kernels import functions, library
from referring.kernels.backend import PRECISIONS, choose_backend
from referring.kernels.library import OLDEST_GPU, WORDS
from referring.kernels.plain import PlainField
from utils.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_cpu_computes_in_plain_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(choose_backend(CPU), PlainField)
    assert not caplog.records


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_other_precisions_are_refused_where_there_are_no_kernels(precision: str) -> None:
    with pytest.raises(UserError, match=f"--precision {precision} .* this run is on the CPU"):
        choose_backend(CPU, precision)


@pytest.mark.parametrize("capability", [(7, 5), (9, 0)])
def test_a_gpu_without_kernels_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capability: tuple[int, int]
) -> None:
    def fail(*_: object) -> None:
        raise library.BuildError("nvcc was not found")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(library, "shared_memory_kb", lambda device: 220)
    monkeypatch.setattr(library, "load", fail)
    library.usable.cache_clear()
    with caplog.at_level(logging.WARNING, logger="refersplat"):
        assert isinstance(choose_backend(GPU), PlainField)
    assert ("nvcc was not found" if capability >= OLDEST_GPU else "compute capability 7.5") in caplog.text
    with pytest.raises(UserError, match="Use --precision fp32"):
        choose_backend(GPU, "bf16")
    library.usable.cache_clear()


def test_kernels_where_they_can_run(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    refused = {32: "no compiler any more"}

    def usable(words: int, *_: object) -> tuple[object, str]:
        return (None, refused[words]) if words in refused else ("a library", "")

    for module in (field_backends, functions):
        monkeypatch.setattr(module, "usable", usable)
    backend = choose_backend(GPU)
    for words, padded in ((1, 16), (16, 16), (33, 64), (64, 64)):
        assert backend.for_words(words).capturable
        assert backend.for_words(words).padded(words) == padded
        assert backend.for_words(words) is backend.for_words(padded)
    with caplog.at_level(logging.WARNING, logger="refersplat"):
        assert not backend.for_words(17).capturable
        assert not backend.for_words(WORDS[-1] + 1).capturable
        backend.for_words(17)
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == ["no compiler any more"]
