"""Labels of Gaussians from a file, and the overlap of a 3D selection with one of them.

Two kinds of files (--labels):

- `.npy`, an array [N] of integers or booleans: a label for each Gaussian, in the order of the model's point cloud.
- `.ply` with x, y, z and label: labelled points or the vertices of a mesh, in the axes and units of the scene. Each
  Gaussian takes the label of the point nearest to its centre, or none if that is farther than a limit.

A label below 0 means unlabelled, as in ScanNet's benchmark. Gaussians without label do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference.selection import find_nearest
from scene.formats.ply import read_ply
from utils.errors import UserError

EXPECTED = "a .ply of points with a property label (--labels)"
NO_LABEL = -1
SPACINGS = 3.0  # default limit of the distance, in median distances between neighbouring points


@dataclass(frozen=True)
class Overlap:
    """Overlap of a selection with the object's label, in Gaussians; each counts once, whatever its size and opacity."""

    both: int  # selected and labelled as the object
    chosen: int  # selected, among those with a label
    labelled: int  # labelled as the object
    unlabelled: int  # without label: they do not count

    @property
    def iou(self) -> float:
        return self.both / max(1, self.chosen + self.labelled - self.both)  # 0 if both sets are empty

    @property
    def precision(self) -> float:
        return self.both / max(1, self.chosen)

    @property
    def recall(self) -> float:
        return self.both / max(1, self.labelled)


def measure_overlap(selected: np.ndarray, labels: np.ndarray, label: int | None) -> Overlap:
    """Compare a selection, bool [N], with the object's label in labels [N]; None takes every label above 0."""
    known = labels > NO_LABEL
    expected = labels > 0 if label is None else labels == label
    selected = selected & known
    return Overlap(int((selected & expected).sum()), int(selected.sum()), int(expected.sum()), int((~known).sum()))


def label_gaussians(path: Path, xyz: np.ndarray, limit: float | None) -> np.ndarray:
    """Return a label for each Gaussian, [N] int64; `NO_LABEL` where it has none.

    Args:
        path: the file of labels.
        xyz: centres of the Gaussians, [N, 3].
        limit: largest distance to a labelled point, world units; None takes `SPACINGS`.

    Raises:
        UserError: if the file is missing or damaged, of another kind or length, or far from all Gaussians.
    """
    if path.suffix.lower() == ".npy":
        return _read_array(path, len(xyz))
    if path.suffix.lower() != ".ply":
        raise UserError(f"--labels {path} ends in neither .npy (a label for each Gaussian) nor .ply (labelled points).")
    points, labels = _read_points(path)
    if limit is None:
        limit = SPACINGS * _spacing(points)
    indices, distances = find_nearest(points, xyz.astype(np.float64), 1)
    near = distances[:, 0] <= limit
    if not near.any():
        raise UserError(
            f"no Gaussian is within {limit:.4g} of a point of {path}: the nearest is {distances.min():.4g} away. Give "
            "points in the axes and units of the scene, or a larger --label_distance."
        )
    return np.where(near, np.maximum(labels[indices[:, 0]], NO_LABEL), NO_LABEL)


def _read_array(path: Path, count: int) -> np.ndarray:
    try:
        labels = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a label for each Gaussian (--labels).") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as an array of NumPy: {error}. Save it with numpy.save.") from None
    if not isinstance(labels, np.ndarray) or labels.shape != (count,) or labels.dtype.kind not in "iub":
        found = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, np.ndarray) else "several arrays"
        raise UserError(
            f"{path} holds {found}, but the model has {count} Gaussians: expected whole numbers [{count}], one for "
            "each in the order of point_cloud.ply."
        )
    return np.maximum(labels.astype(np.int64), NO_LABEL)


def _read_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return positions [M, 3] float64 and labels [M] int64."""
    content = read_ply(path, EXPECTED, lists=True)
    names = content["vertex"].data.dtype.names if "vertex" in content else ()
    missing = [name for name in ("x", "y", "z", "label") if name not in names]
    if missing:
        raise UserError(
            f"{path} has no property {missing[0]}, only {', '.join(names) or 'nothing'}; expected {EXPECTED}. Rename "
            "the property that holds the labels."
        )
    columns = [np.asarray(content["vertex"][name]) for name in ("x", "y", "z", "label")]
    if not len(columns[0]) or any(column.dtype.kind not in "iuf" for column in columns):
        raise UserError(f"{path} has no points, or lists for their positions or labels; expected {EXPECTED}.")
    *axes, labels = columns
    points = np.stack(axes, axis=1).astype(np.float64)
    bad = ~np.isfinite(points).all(axis=1) | (labels != np.round(labels))  # NaN differs from itself
    if bad.any():
        raise UserError(
            f"{path}: {int(bad.sum())} of {len(points)} points have a position that is not finite or a label that is "
            f"no whole number (first: {int(bad.argmax())}). Remove them."
        )
    return points, labels.astype(np.int64)


def _spacing(points: np.ndarray) -> float:
    """Return the median distance of distinct points to their nearest neighbour; 0 for a single point."""
    distinct = np.unique(points, axis=0)
    if len(distinct) == 1:
        return 0.0
    return float(np.median(find_nearest(distinct, distinct, 2)[1][:, 1]))
