"""Recording work as CUDA graphs: hundreds of short kernels are then one launch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

log = logging.getLogger("refersplat")

WARM_UP = 3  # runs before recording: kernels are compiled and loaded, libraries take their workspace

Result = TypeVar("Result")


def warm_up(work: Callable[[], object], stream: torch.cuda.Stream) -> None:
    """Run `work`, which is to be recorded, on the stream that will record it."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(stream)


def record(work: Callable[[], Result], stream: torch.cuda.Stream, pool: Any) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Record `work`, and what it returned: tensors that each replay of the graph writes again.

    Args:
        pool: memory of graphs recorded before, which this one may use too if they do not overlap; None for its own.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        result = work()
    return graph, result


def try_to_record(make: Callable[[], Result], consequence: str) -> Result | None:
    """What `make` records, or None, with a warning that begins with the consequence, if it cannot be recorded.

    Raises:
        torch.OutOfMemoryError: if it cannot be recorded for lack of memory; it can be tried again.
    """
    try:
        with torch.cuda.stream(torch.cuda.current_stream()):  # sets it again: failing can leave the recorded one
            return make()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        log.warning("%s: they could not be recorded as CUDA graphs (%s)", consequence, reason)
        return None
