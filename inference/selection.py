"""Selection of the Gaussians of a sentence by their probabilities, smoothed and without stray parts.

A mask thresholds p = sigmoid(sum_i w_i m_i), the scores m of Eq. 3 blended with the weights w of a pixel. A single
Gaussian has two probabilities (--choose):

- "score": sigmoid(m_i). An opaque pixel of selected Gaussians only is in the mask, and one without any is not, at any
  threshold. But training sees blended scores only, so the scores of hidden and faint Gaussians, which appear when the
  others are removed, are arbitrary.
- "views": the mean of p over the pixels of the training views, weighted with w_i: the evidence of the pictures, also
  for Gaussians that add little to them. It is `ScoreRenderer.lift` of the pictures of p.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from arguments import SelectionParams
from inference.predict import Opened
from referring.decoding import to_mask
from scene.gaussian_model import GaussianModel

LINKS = 16  # nearest selected Gaussians that a selected one may touch
TOUCH = 3.0  # two touch if their centres are no farther apart than the sum of their radii, this many deviations each
BLOCK = 1 << 18  # rows of one query of neighbours, which bounds its memory


class Selection(NamedTuple):
    """The Gaussians of a sentence."""

    sentence: str
    selected: Tensor  # bool [N] on the model's device
    highest: float  # highest probability of any Gaussian, before smoothing


def select(opened: Opened, sentences: dict[str, str], params: SelectionParams) -> dict[str, Selection]:
    """Select the Gaussians of each sentence; both dictionaries are by sentence id."""
    predictor, texts = opened.predictor, list(sentences.values())
    if params.choose == "score":
        probabilities = predictor.score_probabilities(texts)
    else:
        probabilities = predictor.view_probabilities([view.camera for view in opened.scene.train], texts)
    selections = {}
    for (key, sentence), values in zip(sentences.items(), probabilities, strict=True):
        chosen = select_gaussians(
            predictor.gaussians, values, params.score_threshold, params.smooth, params.smallest_part
        )
        selections[key] = Selection(sentence, chosen, float(values.max()))
    return selections


def select_gaussians(
    gaussians: GaussianModel, probabilities: Tensor, threshold: float, smooth: int = 0, smallest_part: float = 0.0
) -> Tensor:
    """Select the Gaussians whose probability [N] exceeds the threshold; returns bool [N] on the model's device.

    Args:
        smooth: number of neighbours to average over first (`smooth_over_neighbours`).
        smallest_part: smallest share of a part to keep (`find_large_parts`).
    """
    values = smooth_over_neighbours(gaussians.get_xyz, probabilities, smooth) if smooth else probabilities.cpu()
    selected = to_mask(values, threshold)
    if smallest_part and selected.any():
        found = gaussians.subset(selected.to(gaussians.device))
        selected[selected.clone()] = find_large_parts(found, smallest_part)
    return selected.to(gaussians.device)


def smooth_over_neighbours(xyz: Tensor, values: Tensor, neighbours: int) -> Tensor:
    """Average values [N] over the `neighbours` nearest centres and the Gaussian itself; returns [N] on the CPU.

    With fewer than `neighbours` + 1 Gaussians, all are averaged.
    """
    points, numbers = _float64(xyz), _float64(values)
    indices, _ = find_nearest(points, points, min(neighbours + 1, len(points)))
    return torch.from_numpy(numbers[indices].mean(axis=1)).to(values.dtype)


def find_large_parts(gaussians: GaussianModel, share: float) -> Tensor:
    """Return which Gaussians lie in a connected part with at least `share` of those of the largest part, bool [N].

    Two are connected if they touch (`TOUCH`; the radius is that of the longest axis) and one is among the `LINKS`
    nearest of the other.
    """
    points, radii = _float64(gaussians.get_xyz), _float64(gaussians.get_scaling.amax(dim=1))
    count = len(points)
    indices, distances = find_nearest(points, points, min(LINKS + 1, count))
    rows, columns = np.nonzero(distances <= TOUCH * (radii[:, None] + radii[indices]))
    graph = coo_array((np.ones(len(rows), bool), (rows, indices[rows, columns])), shape=(count, count))
    _, part = connected_components(graph, directed=False)  # [N]
    sizes = np.bincount(part)
    return torch.from_numpy(sizes[part] >= share * sizes.max())


def find_nearest(points: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and distances, both [Q, count], of the points [N, 3] nearest to each of the queries [Q, 3]."""
    tree = cKDTree(points)
    indices, distances = np.empty((len(queries), count), np.int32), np.empty((len(queries), count), np.float32)
    for start in range(0, len(queries), BLOCK):
        rows = slice(start, start + BLOCK)
        far, found = tree.query(queries[rows], k=np.arange(1, count + 1), workers=-1)
        indices[rows], distances[rows] = found, far
    return indices, distances


def _float64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).numpy()
