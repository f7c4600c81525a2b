"""Capture work as CUDA graphs: hundreds of short kernels become one launch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

log = logging.getLogger("refersplat")

WARM_UP = 3  # runs before the capture: kernels are compiled and loaded, libraries allocate their workspace

Result = TypeVar("Result")


def warm_up(work: Callable[[], object], stream: torch.cuda.Stream) -> None:
    """Run `work` a few times on the stream that will capture it."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(stream)


def capture(work: Callable[[], Result], stream: torch.cuda.Stream, pool: Any) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Capture `work`; return the graph and the result of `work`, tensors that each replay overwrites.

    Args:
        pool: memory pool of earlier graphs to share, if they never run at the same time; None for a new one.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        result = work()
    return graph, result


def try_capture(make: Callable[[], Result], consequence: str) -> Result | None:
    """Return `make()`, which captures graphs, or warn of the consequence and return None if that fails.

    Raises:
        torch.OutOfMemoryError: if the capture fails for lack of memory; it can be tried again.
    """
    try:
        with torch.cuda.stream(torch.cuda.current_stream()):  # restores it: a failed capture can leave its own stream
            return make()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        log.warning("%s: CUDA graph capture failed (%s)", consequence, reason)
        return None
