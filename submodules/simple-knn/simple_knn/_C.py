"""Drop-in for the compiled module of the same name: `from simple_knn._C import distCUDA2`."""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree
from torch import Tensor


def distCUDA2(points: Tensor) -> Tensor:  # noqa: N802 (the name that existing code imports)
    """Mean squared distance of every point to its three nearest other points.

    Points at the same place are each other's neighbours at distance 0; the point itself never counts. With fewer
    than four points the mean runs over those there are; a single point has distance 0. The search runs on the CPU,
    in double precision, whatever the device.

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
    xyz = points.detach().to("cpu", torch.float64)  # [N, 3]
    finite = xyz.isfinite().all(dim=1)  # [N]
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise ValueError(
            f"{int((~finite).sum())} of {len(xyz)} points are not finite, the first is number {first}: "
            f"{xyz[first].tolist()}. Remove them before asking for distances."
        )
    neighbours = min(3, len(xyz) - 1)
    if neighbours < 1:
        return torch.zeros(len(xyz), dtype=torch.float32, device=points.device)
    # One column more than wanted: the nearest is the point itself, or one at the same place, which is as good.
    distances, _ = cKDTree(xyz.numpy()).query(xyz.numpy(), k=neighbours + 1, workers=-1)  # [N, neighbours + 1]
    mean = torch.from_numpy(distances[:, 1:]).square().mean(dim=1)
    return mean.to(points.device, torch.float32)
