"""Drop-in for the compiled module of the same name: `from simple_knn._C import distCUDA2`."""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from . import _cuda


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
    if (on_gpu := _cuda.mean_squared(points)) is not None:
        return on_gpu
    xyz = points.to("cpu", torch.float64)  # [N, 3]
    neighbours = min(3, len(xyz) - 1)
    if neighbours < 1:
        return torch.zeros(len(xyz), dtype=torch.float32, device=points.device)
    # One column more than needed: the nearest is the point itself, or one at the same place, which is as good.
    distances, _ = cKDTree(xyz.numpy()).query(xyz.numpy(), k=neighbours + 1, workers=-1)  # [N, neighbours + 1]
    mean = torch.from_numpy(distances[:, 1:]).square().mean(dim=1)
    return mean.to(points.device, torch.float32)
