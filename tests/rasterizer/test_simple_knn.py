"""simple_knn against brute force and, on the GPU, against SciPy; the choice between its two searches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from diff_gaussian_rasterization import backends, build
from simple_knn import _C
from simple_knn._C import distCUDA2
from tests.rigs.paths import ROOT


def brute_force(points: np.ndarray) -> np.ndarray:
    """All pairs in double precision; points [N, 3] -> [N]."""
    points = points.astype(np.float64)
    squared = ((points[:, None] - points[None]) ** 2).sum(-1)  # [N, N]
    np.fill_diagonal(squared, np.inf)
    return np.sort(squared, axis=1)[:, :3].mean(axis=1)


def clusters(rng: np.random.Generator) -> np.ndarray:
    """Tight clusters far from each other, as in point clouds from structure from motion."""
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


def test_fewer_than_four_points_use_the_existing_ones():
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
def test_wrong_shape_is_rejected(bad):
    with pytest.raises(ValueError, match=r"expected a tensor \[N, 3\]"):
        distCUDA2(bad)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_points_are_rejected(value):
    points = torch.zeros(6, 3)
    points[4, 1] = value
    with pytest.raises(ValueError, match=r"1 of 6 points are not finite, the first is number 4"):
        distCUDA2(points)


class TestWhichSearchRuns:
    """The GPU search runs only with this project's rasteriser and CUDA library, and for supported tensors."""

    @pytest.fixture
    def fork(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another project's rasteriser, installed and not imported, which must not even be run."""
        package = tmp_path / _C.RASTERIZER
        package.mkdir()
        (package / "__init__.py").write_text("raise AssertionError('fork was run')\n")
        monkeypatch.delitem(sys.modules, _C.RASTERIZER)
        monkeypatch.syspath_prepend(tmp_path)

    @pytest.fixture
    def cuda_library(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        """Stands in for a library that loads and runs."""
        library = SimpleNamespace(dgr_cuda_knn=None)
        monkeypatch.setattr(build, "library_or_none", lambda target: (library, ""))
        monkeypatch.setattr(backends, "cuda_missing", lambda: None)
        return library

    def test_library_of_our_rasterizer(self, cuda_library):
        assert _C.library() is cuda_library

    def test_no_rasterizer(self, cuda_library, monkeypatch):
        monkeypatch.setattr(_C, "RASTERIZER", "no_such_package")
        assert _C.library() is None

    @pytest.mark.usefixtures("fork")
    def test_installed_fork(self, cuda_library):
        assert _C.library() is None

    def test_imported_fork(self, cuda_library, monkeypatch):
        monkeypatch.setitem(sys.modules, _C.RASTERIZER, ModuleType(_C.RASTERIZER))
        assert _C.library() is None

    def test_no_library(self, monkeypatch):
        monkeypatch.setattr(build, "library_or_none", lambda target: (None, "no nvcc"))
        assert _C.library() is None

    def test_library_without_the_search(self, cuda_library):
        del cuda_library.dgr_cuda_knn
        assert _C.library() is None

    def test_library_that_does_not_run(self, cuda_library, monkeypatch):
        monkeypatch.setattr(backends, "cuda_missing", lambda: "the driver is too old")
        assert _C.library() is None

    @pytest.mark.parametrize(
        ("device", "dtype"),
        [("cpu", torch.float32), pytest.param("cuda", torch.float64, marks=pytest.mark.gpu)],
    )
    def test_other_tensors_load_no_library(self, device, dtype, monkeypatch):
        monkeypatch.setattr(_C, "library", lambda: pytest.fail("loaded"))
        found = distCUDA2(torch.tensor([[0, 0, 0], [0, 0, 1e-9], [0, 0, 1]], dtype=dtype, device=device))
        assert found.device.type == device
        torch.testing.assert_close(found.cpu(), torch.tensor([0.5, 0.5, 1]), rtol=1e-6, atol=0)

    @pytest.mark.gpu
    def test_gpu_without_a_library_uses_scipy(self, monkeypatch):
        monkeypatch.setattr(_C, "library", lambda: None)
        found = distCUDA2(torch.tensor([[0.0, 0, 0], [1, 0, 0]], device="cuda"))
        assert found.is_cuda
        assert found.tolist() == [1, 1]

    def test_package_alone(self, tmp_path):
        code = (
            "import sys, torch; from simple_knn._C import distCUDA2; print(distCUDA2(torch.eye(3)).tolist()); "
            "print('diff_gaussian_rasterization' in sys.modules)"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "submodules" / "simple-knn")}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.split("\n")[:2] == ["[2.0, 2.0, 2.0]", "False"]


def scipy_distances(points: np.ndarray) -> np.ndarray:
    """In double precision; points [N, 3], N >= 4 -> [N]."""
    points = points.astype(np.float64)
    distances, _ = cKDTree(points).query(points, k=4, workers=-1)  # [N, 4]
    return (distances[:, 1:] ** 2).mean(axis=1)


@pytest.fixture
def only_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No SciPy to fall back to."""
    monkeypatch.setattr(_C, "cKDTree", lambda points: pytest.fail("the kernel was not used"))


@pytest.mark.gpu
@pytest.mark.usefixtures("only_gpu")
class TestOnGPU:
    @pytest.mark.parametrize(
        "make",
        [
            lambda rng: rng.normal(size=(50_000, 3)),
            lambda rng: np.repeat(rng.uniform(-1000, 1000, (50, 3)), 1000, axis=0) + rng.normal(0, 1e-4, (50_000, 3)),
            lambda rng: np.repeat([[100, 200, 300]], 20_000, axis=0) + rng.normal(0, 1e-4, (20_000, 3)),
            lambda rng: rng.permutation(np.repeat(rng.normal(size=(10_000, 3)), 2, axis=0)),  # one neighbour at 0
            lambda rng: np.repeat(rng.normal(size=(4000, 3)), 5, axis=0),  # three neighbours at 0
            lambda rng: rng.uniform(-1, 1, (50_000, 1)) * [1, 2, 3],  # collinear
            lambda rng: rng.uniform(size=(50_000, 3)) * [1, 1e-6, 0],  # nearly so, along an axis
            lambda rng: rng.normal(size=(50_000, 3)) * [1, 1, 0],  # a plane
            lambda rng: np.concatenate([rng.normal(size=(50_000, 3)), [[1e8, 1e8, -1e8]]]),  # one outlier
            lambda rng: rng.standard_cauchy((50_000, 3)),  # outliers of every size
            lambda rng: np.stack(np.meshgrid(*[np.arange(30)] * 3), axis=-1).reshape(-1, 3),  # a grid, all ties
            lambda rng: rng.uniform(size=(1_000_000, 3)),
        ],
    )
    def test_equals_scipy(self, make: Callable[[np.random.Generator], np.ndarray]):
        points = make(np.random.default_rng(0)).astype(np.float32)
        found = distCUDA2(torch.from_numpy(points).cuda())
        assert found.is_cuda
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.cpu().numpy(), scipy_distances(points), rtol=1e-6, atol=0)

    def test_a_million_points_at_one_place(self):
        assert not distCUDA2(torch.full((1_000_000, 3), 1.7, device="cuda")).any()

    @pytest.mark.parametrize("count", [4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 1025])  # leaves hold 8 points
    def test_few_points(self, count):
        points = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
        found = distCUDA2(torch.from_numpy(points).cuda())
        np.testing.assert_allclose(found.cpu().numpy(), brute_force(points), rtol=1e-6, atol=0)

    def test_fewer_than_four_points_use_the_existing_ones(self):
        points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0]], device="cuda")
        torch.testing.assert_close(distCUDA2(points).cpu(), torch.tensor([2.5, 3.0, 4.5]))
        assert distCUDA2(points[:2]).tolist() == [1, 1]
        assert distCUDA2(points[:1]).tolist() == [0]
        assert distCUDA2(points[:0]).shape == (0,)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype):
        points = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
        expected = scipy_distances(points.float().numpy())
        np.testing.assert_allclose(distCUDA2(points.cuda()).cpu().numpy(), expected, rtol=1e-6, atol=0)

    def test_strides_and_gradients_are_accepted(self):
        points = torch.randn(3, 5000, device="cuda", requires_grad=True)
        found = distCUDA2(points.T)
        assert not found.requires_grad
        assert torch.equal(found, distCUDA2(points.T.contiguous()))

    def test_same_bits_in_every_run_and_order(self):
        points = torch.randn(100_000, 3, device="cuda")
        order = torch.randperm(len(points), device="cuda")
        found = distCUDA2(points)
        assert torch.equal(found, distCUDA2(points))
        assert torch.equal(found[order], distCUDA2(points[order]))

    def test_runs_on_the_current_stream(self):
        points = torch.randn(100_000, 3, device="cuda")
        expected = distCUDA2(points)
        late = torch.zeros_like(points)
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(50_000_000)  # tens of milliseconds: another stream would see the zeros
            late.copy_(points)
            found = distCUDA2(late)
            torch.cuda.current_stream().synchronize()
        assert torch.equal(found, expected)

    def test_non_finite_points_are_rejected(self):
        points = torch.zeros(6, 3, device="cuda")
        points[4, 1] = float("nan")
        with pytest.raises(ValueError, match=r"1 of 6 points are not finite, the first is number 4"):
            distCUDA2(points)
