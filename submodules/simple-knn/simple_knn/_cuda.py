"""The search on the GPU, with the CUDA library of this project's `diff_gaussian_rasterization` if it is available."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # float32 holds them exactly
RASTERIZER = "diff_gaussian_rasterization"


def mean_squared(points: Tensor) -> Tensor | None:
    """Mean squared distance to the three nearest other points, or None if the kernel does not take this tensor.

    Runs on the current stream of the tensor's device, without synchronising.

    Args:
        points: [N, 3], finite.

    Returns:
        [N] float32 on the device of `points`.

    Raises:
        MemoryError, RuntimeError: if CUDA reports an error.
    """
    if points.device.type != "cuda" or points.dtype not in DTYPES or library() is None:
        return None
    points = points.to(torch.float32).contiguous()
    mean = torch.empty(len(points), dtype=torch.float32, device=points.device)  # [N]
    gpu, scratch_bytes = importlib.import_module(f"{RASTERIZER}.abi").Gpu(points.device), ctypes.c_int64()
    gpu.call("dgr_cuda_knn", len(points), points, None, scratch_bytes, mean)  # only computes the size
    scratch = torch.empty(scratch_bytes.value, dtype=torch.uint8, device=points.device)
    gpu.call("dgr_cuda_knn", len(points), points, scratch, scratch_bytes, mean)
    return mean


def library() -> ctypes.CDLL | None:
    """Return the rasteriser's CUDA library, None if it is missing, does not run or is older than the search."""
    if not _rasterizer_is_ours():
        return None
    lib, _ = importlib.import_module(f"{RASTERIZER}.build").library_or_none("cuda")
    if not hasattr(lib, "dgr_cuda_knn"):
        return None
    return lib if importlib.import_module(f"{RASTERIZER}.backends").cuda_missing() is None else None


def _rasterizer_is_ours() -> bool:
    """Whether the package that `import` finds is this project's; a fork of the same name must not even be run."""
    loaded = sys.modules.get(RASTERIZER)
    if loaded is not None:
        return getattr(loaded, "__project__", None) == "refersplat"
    spec = importlib.util.find_spec(RASTERIZER)
    if spec is None or spec.origin is None:  # nothing, or a folder without __init__.py
        return False
    text = Path(spec.origin).read_text(encoding="utf-8", errors="replace")
    return re.search(r'^__project__ = "refersplat"', text, re.MULTILINE) is not None
