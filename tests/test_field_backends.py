"""Which backend computes the scores, and what is said where the kernels cannot."""

from __future__ import annotations

import logging
import sys

import pytest
import torch

from scene import field_backends
from scene.field_backends import PRECISIONS, choose_backend
from scene.plain_field import PlainField
from utils.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_cpu_computes_in_plain_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(choose_backend(CPU), PlainField)
    assert not caplog.records


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_other_precisions_are_refused_where_there_are_no_kernels(precision: str) -> None:
    with pytest.raises(UserError, match=f"--precision {precision} .* this run is on the CPU"):
        choose_backend(CPU, precision)


@pytest.mark.parametrize(("capability", "triton"), [((7, 5), True), ((9, 0), False)])
def test_a_gpu_without_kernels_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capability: tuple[int, int], triton: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    if not triton:
        monkeypatch.setitem(sys.modules, "scene.fused.functions", None)  # importing it fails
    with caplog.at_level(logging.WARNING, logger="refersplat"):
        assert isinstance(choose_backend(GPU), PlainField)
    assert ("Triton" if not triton else "compute capability 7.5") in caplog.text
    with pytest.raises(UserError, match="Use --precision fp32"):
        choose_backend(GPU, "bf16")


def test_kernels_where_they_can_run(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("triton")
    from scene.fused import functions

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: field_backends.OLDEST_GPU)
    monkeypatch.setattr(functions, "probe", lambda device: None)
    backend = choose_backend(GPU)
    assert backend.capturable
    assert backend.for_words(functions.MAX_WORDS) is backend
    with caplog.at_level(logging.WARNING, logger="refersplat"):
        assert not backend.for_words(functions.MAX_WORDS + 1).capturable
        backend.for_words(functions.MAX_WORDS + 1)
    assert len(caplog.records) == 1
