"""Selection of Gaussians by their probabilities, and the 3D IoU with labels, against cases worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from inference.labels import Overlap, label_gaussians, measure_overlap
from inference.selection import find_large_parts, select_gaussians, smooth_over_neighbours
from scene.gaussian_model import GaussianModel
from utils.errors import UserError


def at(xyz: list[list[float]] | torch.Tensor, size: float = 0.1) -> GaussianModel:
    """Round Gaussians of one size."""
    xyz = torch.as_tensor(xyz, dtype=torch.float32)
    count = len(xyz)
    return GaussianModel(
        xyz=xyz,
        features_dc=torch.zeros(count, 1, 3),
        features_rest=torch.zeros(count, 0, 3),
        scaling=torch.full((count, 3), size).log(),
        rotation=torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        opacity=torch.zeros(count, 1),
        active_sh_degree=0,
    )


def on_a_line(*places: float) -> torch.Tensor:
    return torch.tensor([[place, 0.0, 0.0] for place in places])


class TestSelect:
    def test_probabilities_above_the_threshold_are_selected(self) -> None:
        values = torch.tensor([0.2, 0.5, 0.500001, 0.9])
        model = at(on_a_line(0, 1, 2, 3))
        assert select_gaussians(model, values, 0.5).tolist() == [False, False, True, True]
        assert select_gaussians(model, values, 0.1).all()
        assert not select_gaussians(model, values, 0.9).any()

    def test_smoothing_is_the_mean_with_the_nearest(self) -> None:
        """Neighbours along the line: 0 has 1 and 2, 1 has 0 and 2, 2 has 1 and 0, 10 has 11 and 2, 11 has 10 and 2."""
        xyz, values = on_a_line(0, 1, 2.1, 10, 11), torch.tensor([1.0, 0.1, 0.7, 0.9, 0.2])
        expected = [0.6, 0.6, 0.6, 0.6, 0.6]
        assert smooth_over_neighbours(xyz, values, 2).tolist() == pytest.approx(expected)
        assert smooth_over_neighbours(xyz, values, 1).tolist() == pytest.approx([0.55, 0.55, 0.4, 0.55, 0.55])
        assert smooth_over_neighbours(xyz, values, 50).tolist() == pytest.approx([0.58] * 5)  # there are but five
        assert select_gaussians(at(xyz), values, 0.45, smooth=1).tolist() == [True, True, False, True, True]

    def test_smoothing_fills_holes_and_drops_stray_ones(self) -> None:
        grid = torch.cartesian_prod(*[torch.arange(5.0)] * 3)
        left = grid[:, 0] < 2
        values = left.float()
        values[[6, 62 + 50]] = torch.tensor([0.0, 1.0])  # a hole in the left, a stray one in the right
        assert left[6]
        assert not left[112]
        chosen = select_gaussians(at(grid), values, 0.5, smooth=6)
        assert chosen[6]
        assert not chosen[112]

    def test_blocks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        xyz, values = torch.rand(50, 3), torch.rand(50)
        whole = smooth_over_neighbours(xyz, values, 4)
        monkeypatch.setattr("inference.selection.BLOCK", 7)
        assert torch.equal(smooth_over_neighbours(xyz, values, 4), whole)

    def test_small_parts_are_left_out(self) -> None:
        """Parts of 4, 2 and 1; deviations of 0.1 let Gaussians touch up to 0.6 apart."""
        model = at(on_a_line(0, 0.55, 1.1, 1.65, 3, 3.5, 9))
        for share, expected in ((0.0, 7), (0.25, 7), (0.3, 6), (0.5, 6), (0.51, 4), (1.0, 4)):
            assert int(find_large_parts(model, share).sum()) == expected
        values = torch.tensor([1.0, 1, 0, 1, 1, 1, 1])  # parts of 2, 1, 2 and 1
        assert select_gaussians(model, values, 0.5, smallest_part=1).tolist() == [
            True,
            True,
            False,
            False,
            True,
            True,
            False,
        ]

    def test_none_and_one(self) -> None:
        model = at(on_a_line(0, 1))
        assert not select_gaussians(model, torch.zeros(2), 0.5, smooth=3, smallest_part=0.5).any()
        assert select_gaussians(model, torch.tensor([0.0, 1.0]), 0.5, smallest_part=0.5).tolist() == [False, True]


class TestOverlap:
    def test_by_hand(self) -> None:
        chosen = np.array([True, True, True, False, False, True])
        labels = np.array([2, 2, 0, 2, 0, -1])
        found = measure_overlap(chosen, labels, 2)
        assert found == Overlap(both=2, chosen=3, labelled=3, unlabelled=1)
        assert found.iou == 2 / 4
        assert (found.precision, found.recall) == (2 / 3, 2 / 3)

    def test_every_label_above_0_is_the_object_by_default(self) -> None:
        found = measure_overlap(np.array([True, True, False, False]), np.array([1, 0, 7, -3]), None)
        assert (found.iou, found.unlabelled) == (1 / 3, 1)

    def test_empty_sets(self) -> None:
        nothing = measure_overlap(np.zeros(3, bool), np.zeros(3, int), 1)
        assert (nothing.iou, nothing.precision, nothing.recall) == (0, 0, 0)


def write_points(path: Path, xyz: np.ndarray, labels: np.ndarray, name: str = "label", faces: bool = False) -> Path:
    """Write a .ply of labelled points, as a mesh with one triangle if `faces`."""
    rows = np.empty(len(xyz), [("x", "f4"), ("y", "f4"), ("z", "f4"), (name, labels.dtype)])
    rows["x"], rows["y"], rows["z"], rows[name] = *xyz.T, labels
    elements = [PlyElement.describe(rows, "vertex")]
    if faces:
        triangle = np.array([([0, 1, 2],)], dtype=[("vertex_indices", "i4", (3,))])
        elements.append(PlyElement.describe(triangle, "face"))
    PlyData(elements).write(path)
    return path


class TestLabels:
    def test_array(self, tmp_path: Path) -> None:
        for labels in (np.array([0, 5, -100]), np.array([False, True, True]), np.array([0, 5, 255], np.uint8)):
            np.save(tmp_path / "labels.npy", labels)
            found = label_gaussians(tmp_path / "labels.npy", np.zeros((3, 3)), None)
            assert found.tolist() == np.maximum(labels.astype(int), -1).tolist()

    @pytest.mark.parametrize("faces", [False, True])
    def test_nearest_point(self, tmp_path: Path, faces: bool) -> None:
        """Points at 0, 1, 2, 3 (spacing 1: limit 3); Gaussians between, 2.9 and 3.1 beyond, and one unlabelled."""
        points = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]], np.float64)
        path = write_points(tmp_path / "cloud.ply", points, np.array([4, 0, -1, 7], "i4"), faces=faces)
        xyz = np.array([[0.4, 0, 0], [0.6, 0, 0], [5.9, 0, 0], [6.1, 0, 0], [2, 0.1, 0]])
        assert label_gaussians(path, xyz, None).tolist() == [4, 0, 7, -1, -1]
        assert label_gaussians(path, xyz, 0.3).tolist() == [-1, -1, -1, -1, -1]
        assert label_gaussians(path, xyz, 0.45).tolist() == [4, 0, -1, -1, -1]

    def test_refusals(self, tmp_path: Path) -> None:
        xyz, points = np.zeros((3, 3)), np.eye(3)
        np.save(tmp_path / "short.npy", np.zeros(2, int))
        np.save(tmp_path / "floats.npy", np.zeros(3))
        np.save(tmp_path / "objects.npy", np.array([{}, {}, {}]))
        (tmp_path / "text.npy").write_text("labels")
        (tmp_path / "labels.txt").write_text("1 2 3")
        write_points(tmp_path / "colour.ply", points, np.array([1, 2, 3], "i4"), name="red")
        write_points(tmp_path / "half.ply", points, np.array([1.0, 2.5, 3.0]))
        write_points(tmp_path / "nan.ply", np.full((3, 3), np.nan), np.array([1, 2, 3], "i4"))
        write_points(tmp_path / "empty.ply", points[:0], np.array([], "i4"))
        write_points(tmp_path / "far.ply", points + 100, np.array([1, 2, 3], "i4"))
        for name, words in {
            "short.npy": r"int64 \[2\].*3 Gaussians",
            "floats.npy": "float64",
            "objects.npy": "cannot be read",
            "text.npy": "cannot be read",
            "absent.npy": "does not exist",
            "labels.txt": r"neither .npy.*nor .ply",
            "colour.ply": "no property label, only x, y, z, red",
            "half.ply": "1 of 3 points.*first: 1",
            "nan.ply": "3 of 3 points",
            "empty.ply": "no points",
            "far.ply": "--label_distance",
        }.items():
            with pytest.raises(UserError, match=words) as caught:
                label_gaussians(tmp_path / name, xyz, None)
            assert name in str(caught.value)
