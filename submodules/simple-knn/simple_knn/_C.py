"""Drop-in for the compiled module of the same name: `from simple_knn._C import distCUDA2`."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re
import sys
from pathlib import Path

import torch
from scipy.spatial import cKDTree
from torch import Tensor

GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # float32 holds them exactly
RASTERIZER = "diff_gaussian_rasterization"


def distCUDA2(points: Tensor) -> Tensor:  # noqa: N802 (the name that existing code imports)
    """Mean squared distance of each point to its three nearest other points.

    Points at the same place are neighbours at distance 0; the point itself never counts. With fewer than four points
    the mean is over the others that exist; a single point has distance 0.

    Tensors of at most 32 bits on a CUDA device are searched there if the CUDA library of this project's
    `diff_gaussian_rasterization` is available (the first call may build it). All others, float64 included, are searched
    by SciPy on the CPU in double precision.

    Args:
        points: [N, 3], any float dtype and device, finite.

    Returns:
        [N] float32 on the device of `points`.

    Raises:
        MemoryError, RuntimeError: if CUDA reports an error.
        ValueError: if the shape is not [N, 3] or a coordinate is NaN or infinite.
    """
    if not isinstance(points, Tensor) or points.ndim != 2 or points.shape[1] != 3:
        found = list(points.shape) if isinstance(points, Tensor) else type(points).__name__
        raise ValueError(f"points is {found}; expected a tensor [N, 3]")
    points = points.detach()
    if not points.isfinite().all():
        bad = (~points.isfinite().all(dim=1)).nonzero()[:, 0]
        raise ValueError(
            f"{len(bad)} of {len(points)} points are not finite, the first is number {int(bad[0])}: "
            f"{points[bad[0]].tolist()}. Remove them first."
        )
    if points.is_cuda and points.dtype in GPU_DTYPES and library() is not None:
        return _search_on_gpu(points.to(torch.float32).contiguous())
    xyz = points.to("cpu", torch.float64)  # [N, 3]
    neighbours = min(3, len(xyz) - 1)
    if neighbours < 1:
        return torch.zeros(len(xyz), dtype=torch.float32, device=points.device)
    # One column more than needed: the nearest is the point itself, or one at the same place, which is as good.
    distances, _ = cKDTree(xyz.numpy()).query(xyz.numpy(), k=neighbours + 1, workers=-1)  # [N, neighbours + 1]
    mean = torch.from_numpy(distances[:, 1:]).square().mean(dim=1)
    return mean.to(points.device, torch.float32)


def _search_on_gpu(points: Tensor) -> Tensor:
    """Search on the current stream of the device of contiguous float32 points [N, 3], without synchronising."""
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
