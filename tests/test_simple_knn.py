"""simple_knn against a brute-force search."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from simple_knn._C import distCUDA2


def brute_force(points: np.ndarray) -> np.ndarray:
    """All pairs in double precision; points [N, 3] -> [N]."""
    points = points.astype(np.float64)
    squared = ((points[:, None] - points[None]) ** 2).sum(-1)  # [N, N]
    np.fill_diagonal(squared, np.inf)
    return np.sort(squared, axis=1)[:, :3].mean(axis=1)


def clusters(rng: np.random.Generator) -> np.ndarray:
    """Tight groups far from each other, as structure from motion yields them."""
    centres = rng.uniform(-100, 100, (8, 3))
    return np.concatenate([centre + rng.normal(0, 1e-3, (50, 3)) for centre in centres])


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: rng.normal(size=(500, 3)),
        clusters,
        lambda rng: np.repeat(rng.normal(size=(60, 3)), 2, axis=0),  # every point twice: one neighbour at distance 0
        lambda rng: np.repeat(rng.normal(size=(20, 3)), 6, axis=0),  # all three neighbours at distance 0
        lambda rng: np.zeros((40, 3)),
        lambda rng: np.concatenate([rng.normal(size=(30, 3)), rng.normal(size=(1, 3)) + 1e4]),  # one far outlier
        lambda rng: rng.normal(size=(200, 3)) * [1, 1, 0],  # a plane
        lambda rng: rng.normal(size=(4, 3)),  # the smallest set with three neighbours
    ],
)
def test_equals_brute_force(make):
    points = make(np.random.default_rng(0)).astype(np.float32)
    found = distCUDA2(torch.from_numpy(points))
    assert found.dtype == torch.float32
    assert found.shape == (len(points),)
    np.testing.assert_allclose(found.numpy(), brute_force(points), rtol=1e-5, atol=0)


def test_fewer_than_four_points_use_those_there_are():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0]])
    torch.testing.assert_close(distCUDA2(points), torch.tensor([2.5, 3.0, 4.5]))
    torch.testing.assert_close(distCUDA2(points[:2]), torch.tensor([1.0, 1.0]))
    assert distCUDA2(points[:1]).tolist() == [0.0]
    assert distCUDA2(points[:0]).shape == (0,)


def test_other_dtypes_and_gradients_are_accepted():
    points = torch.randn(32, 3, dtype=torch.float64, requires_grad=True)
    found = distCUDA2(points)
    assert found.dtype == torch.float32
    assert not found.requires_grad


@pytest.mark.parametrize("bad", [torch.zeros(5), torch.zeros(5, 2), np.zeros((5, 3))])
def test_wrong_shape_is_refused(bad):
    with pytest.raises(ValueError, match=r"expected a tensor \[N, 3\]"):
        distCUDA2(bad)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_points_are_refused(value):
    points = torch.zeros(6, 3)
    points[4, 1] = value
    with pytest.raises(ValueError, match=r"1 of 6 points are not finite, the first is number 4"):
        distCUDA2(points)
