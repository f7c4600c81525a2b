"""The search on the GPU, by the CUDA library of this project's `diff_gaussian_rasterization`, where that is there."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # those that float32 holds exactly
RASTERIZER = "diff_gaussian_rasterization"


def mean_squared(points: Tensor) -> Tensor | None:
    """Mean squared distance to the three nearest other points, or None if this tensor is not for the kernel.

    Runs on the current stream of the tensor's device and does not wait for it.

    Args:
        points: [N, 3], finite.

    Returns:
        [N] float32 on the device of `points`.

    Raises:
        MemoryError, RuntimeError: if CUDA reports an error.
    """
    if points.device.type != "cuda" or points.dtype not in DTYPES:
        return None
    lib = library()
    if lib is None:
        return None
    points = points.to(torch.float32).contiguous()
    mean = torch.empty(len(points), dtype=torch.float32, device=points.device)  # [N]
    abi = importlib.import_module(f"{RASTERIZER}.abi")
    how = abi.Exec(0, points.device.index, torch.cuda.current_stream(points.device).cuda_stream)
    size = ctypes.c_int64()

    def run(scratch: Tensor | None) -> None:
        memory = None if scratch is None else scratch.data_ptr()
        status = lib.dgr_cuda_knn(
            ctypes.byref(how),
            ctypes.c_int64(len(points)),
            ctypes.c_void_p(points.data_ptr()),
            ctypes.c_void_p(memory),
            ctypes.byref(size),
            ctypes.c_void_p(mean.data_ptr()),
        )
        abi.raise_status(lib, "dgr_cuda_knn", status)

    run(None)  # only tells the size
    run(torch.empty(size.value, dtype=torch.uint8, device=points.device))
    return mean


def library() -> ctypes.CDLL | None:
    """The rasteriser's CUDA library, None where it cannot be had, does not run or is older than the search."""
    if not _rasterizer_is_ours():
        return None
    lib, _ = importlib.import_module(f"{RASTERIZER}.build").library_or_none("cuda")
    if not hasattr(lib, "dgr_cuda_knn"):
        return None
    return lib if importlib.import_module(f"{RASTERIZER}.backends").cuda_missing() is None else None


def _rasterizer_is_ours() -> bool:
    """Whether the package that `import` finds is this project's: forks share its name, and must not even be run."""
    loaded = sys.modules.get(RASTERIZER)
    if loaded is not None:
        return getattr(loaded, "__project__", None) == "refersplat"
    spec = importlib.util.find_spec(RASTERIZER)
    if spec is None or spec.origin is None:  # nothing, or a folder without __init__.py
        return False
    text = Path(spec.origin).read_text(encoding="utf-8", errors="replace")
    return re.search(r'^__project__ = "refersplat"', text, re.MULTILINE) is not None
