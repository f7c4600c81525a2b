"""Which Gaussians are a sentence's, given a probability for each: smoothed over neighbours and without stray parts.

A mask thresholds p = sigmoid(sum_i w_i m_i), the scores m of Eq. 3 blended with the weights w of a pixel. For a
Gaussian alone there are two probabilities (--choose):

- "score": sigmoid(m_i). An opaque pixel that shows chosen Gaussians only is in the mask as well, and one that shows
  none of them is not, at any threshold. But training sees blended scores only, so that those of hidden and faint
  Gaussians, which come to light when the others are gone, may be anything.
- "views": the mean of p over the pixels of the training views, weighted with w_i: what the pictures say of the
  Gaussian, also where it adds little to them. It is `ScoreRenderer.lift` of the pictures of p.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from scene.gaussian_model import GaussianModel

LINKS = 16  # nearest chosen Gaussians that a chosen one may touch
TOUCH = 3.0  # two touch if their centres are no farther apart than the sum of their radii, this many deviations each
BLOCK = 1 << 18  # rows of one query of neighbours, which bounds its memory


def choose(
    gaussians: GaussianModel, probabilities: Tensor, threshold: float, smooth: int = 0, smallest_part: float = 0.0
) -> Tensor:
    """The Gaussians of a sentence, bool [N] on the model's device.

    Args:
        gaussians: the model.
        probabilities: sigmoid of the scores, [N].
        threshold: chosen is what exceeds it, 0..1.
        smooth: K of `smoothed`.
        smallest_part: share of `large_parts`.
    """
    values = smoothed(gaussians.get_xyz, probabilities, smooth) if smooth else probabilities.cpu()
    chosen = values > threshold
    if smallest_part and chosen.any():
        found = gaussians.subset(chosen.to(gaussians.device))
        chosen[chosen.clone()] = large_parts(found, smallest_part)
    return chosen.to(gaussians.device)


def smoothed(xyz: Tensor, values: Tensor, neighbours: int) -> Tensor:
    """Mean of values [N] over the `neighbours` nearest centres and the Gaussian itself, [N] on the CPU.

    Fewer than `neighbours` + 1 Gaussians are all averaged.
    """
    points, numbers = _float64(xyz), _float64(values)
    indices, _ = nearest(points, points, min(neighbours + 1, len(points)))
    return torch.from_numpy(numbers[indices].mean(axis=1)).to(values.dtype)


def large_parts(gaussians: GaussianModel, share: float) -> Tensor:
    """Which Gaussians lie in a connected part with at least `share` of the Gaussians of the largest part, bool [N].

    Two are connected if they touch (`TOUCH`; the radius is that of the longest axis) and one is among the `LINKS`
    nearest of the other.
    """
    points, radii = _float64(gaussians.get_xyz), _float64(gaussians.get_scaling.amax(dim=1))
    count = len(points)
    indices, distances = nearest(points, points, min(LINKS + 1, count))
    rows, columns = np.nonzero(distances <= TOUCH * (radii[:, None] + radii[indices]))
    graph = coo_array((np.ones(len(rows), bool), (rows, indices[rows, columns])), shape=(count, count))
    _, part = connected_components(graph, directed=False)  # [N]
    sizes = np.bincount(part)
    return torch.from_numpy(sizes[part] >= share * sizes.max())


def nearest(points: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices, distances), both [Q, count], of the points [N, 3] nearest to each of the queries [Q, 3]."""
    tree = cKDTree(points)
    indices, distances = np.empty((len(queries), count), np.int32), np.empty((len(queries), count), np.float32)
    for start in range(0, len(queries), BLOCK):
        rows = slice(start, start + BLOCK)
        far, found = tree.query(queries[rows], k=np.arange(1, count + 1), workers=-1)
        indices[rows], distances[rows] = found, far
    return indices, distances


def _float64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).numpy()
