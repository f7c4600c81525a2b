"""Checkpoints (12 and 17 items) and .ply models: round trips, refusals and damage."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plyfile import PlyData

from referring.field import ReferringField
from scene.checkpoints import load_checkpoint, save_checkpoint
from scene.formats.ply import load_ply, save_ply
from scene.gaussian_model import GaussianModel
from utils.errors import UserError

COUNT = 20
MEMORY = 200 << 20  # bytes


def make_gaussians(sh_degree: int = 3, count: int = COUNT) -> GaussianModel:
    torch.manual_seed(0)
    coefficients = (sh_degree + 1) ** 2 - 1
    shapes = [(3,), (1, 3), (coefficients, 3), (3,), (4,), (1,)]
    return GaussianModel(*(torch.randn(count, *shape) for shape in shapes), active_sh_degree=sh_degree)


def equal(a: GaussianModel, b: GaussianModel) -> bool:
    return all(torch.equal(a.parameters()[name], b.parameters()[name]) for name in a.parameters())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model, field = make_gaussians(), ReferringField(COUNT, 24)
    field.language_feature.data.normal_()
    save_checkpoint(tmp_path / "chkpnt7.pth", model, field.state_dict(), 7)
    return tmp_path / "chkpnt7.pth"


def rewrite(path: Path, change: dict[int, Any], length: int = 17) -> Path:
    items, iteration = torch.load(path, weights_only=True)
    items = [change.get(i, item) for i, item in enumerate(items)][:length]
    torch.save((tuple(items), iteration), path)
    return path


def load(path: Path) -> None:
    """Load a checkpoint and the referring field in it."""
    _, tensors, _ = load_checkpoint(path)
    if tensors is not None:
        ReferringField.from_tensors(tensors, path)


class TestCheckpoint:
    def test_round_trip(self, checkpoint: Path) -> None:
        model, tensors, iteration = load_checkpoint(checkpoint)
        field = ReferringField.from_tensors(tensors, checkpoint)
        assert iteration == 7
        assert equal(model, make_gaussians())
        items, _ = torch.load(checkpoint, weights_only=True)
        assert len(items) == 17
        assert torch.equal(items[7], field.language_feature)
        assert torch.equal(items[16]["gp_linear.weight"], field.cross_attention.gp_linear.weight)
        assert [group["name"] for group in items[11]["param_groups"]][0] == "language_feature"

    def test_twelve_items(self, checkpoint: Path, tmp_path: Path) -> None:
        """A plain 3DGS checkpoint, whose spatial_lr_scale is often a NumPy number."""
        items, _ = torch.load(checkpoint, weights_only=True)
        plain = (*items[:7], *items[8:12], np.float64(4.5))
        torch.save((plain, 30_000), tmp_path / "plain.pth")
        model, field, iteration = load_checkpoint(tmp_path / "plain.pth")
        assert field is None
        assert (model.spatial_lr_scale, iteration, len(plain)) == (4.5, 30_000, 12)

    def test_code_is_not_run(self, tmp_path: Path) -> None:
        class Payload:
            def __reduce__(self) -> tuple:
                return os.mkdir, (str(tmp_path / "owned"),)

        torch.save(((Payload(),) * 12, 1), tmp_path / "evil.pth")
        with pytest.raises(UserError, match="could run code"):
            load_checkpoint(tmp_path / "evil.pth")
        assert not (tmp_path / "owned").exists()

    @pytest.mark.parametrize(
        ("change", "length", "message"),
        [
            ({}, 11, "found 11 items"),
            ({1: torch.zeros(COUNT, 4)}, 17, "xyz has shape"),
            ({5: torch.zeros(COUNT - 1, 4)}, 17, "rotation has shape"),
            ({1: torch.full((COUNT, 3), float("nan"))}, 17, "xyz is NaN"),
            ({4: 3}, 17, "scaling is not"),
            ({7: torch.zeros(COUNT, 15)}, 17, "language_feature"),
            ({14: {}}, 17, "does not fit"),
            ({16: None}, 17, "does not fit"),
        ],
    )
    def test_wrong_content_is_named(self, checkpoint: Path, change: dict, length: int, message: str) -> None:
        with pytest.raises(UserError, match=message):
            load(rewrite(checkpoint, change, length))

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="does not exist"):
            load_checkpoint(tmp_path / "none.pth")

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_damage_is_a_user_error(self, checkpoint: Path, data: st.DataObject) -> None:
        content = bytearray(checkpoint.read_bytes())
        damaged = checkpoint.with_name("damaged.pth")
        if data.draw(st.booleans()):
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        else:
            for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=5)):
                content[position] ^= 1 << data.draw(st.integers(0, 7))
        damaged.write_bytes(content)
        try:
            load(damaged)  # a flip inside a weight may go unnoticed
        except UserError as error:
            assert str(damaged) in str(error)


class TestPly:
    @pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
    def test_round_trip(self, tmp_path: Path, sh_degree: int) -> None:
        model = make_gaussians(sh_degree)
        save_ply(tmp_path / "point_cloud.ply", model)
        loaded = load_ply(tmp_path / "point_cloud.ply")
        assert equal(model, loaded)
        assert loaded.active_sh_degree == sh_degree

    def test_layout_matches_3dgs(self, tmp_path: Path) -> None:
        """f_rest is stored channel by channel, as other programs expect."""
        model = make_gaussians()
        save_ply(tmp_path / "point_cloud.ply", model)
        vertex = PlyData.read(tmp_path / "point_cloud.ply")["vertex"]
        names = [p.name for p in vertex.properties]
        rest = [f"f_rest_{i}" for i in range(45)]
        expected = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity"]
        assert names == [*expected, *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
        assert vertex["f_rest_15"][3] == model.features_rest[3, 0, 1]  # first coefficient of green
        assert vertex["f_rest_1"][3] == model.features_rest[3, 1, 0]  # second of red

    def test_ascii_and_big_endian(self, tmp_path: Path) -> None:
        model = make_gaussians(1)
        save_ply(tmp_path / "a.ply", model)
        data = PlyData.read(tmp_path / "a.ply")
        for text, order in ((True, "="), (False, ">")):
            PlyData(data.elements, text=text, byte_order=order).write(tmp_path / "b.ply")
            loaded = load_ply(tmp_path / "b.ply")
            torch.testing.assert_close(loaded.features_rest, model.features_rest)

    def test_nan_is_named(self, tmp_path: Path) -> None:
        model = make_gaussians()
        model.scaling[7, 1] = float("nan")
        save_ply(tmp_path / "nan.ply", model)
        with pytest.raises(UserError, match=r"nan\.ply: scaling is NaN or infinite in 1 of 20 .*first: 7"):
            load_ply(tmp_path / "nan.ply")

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ("hello", "not a .ply"),
            ("ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\n", "not a .ply"),
            (
                "ply\nformat binary_little_endian 1.0\nelement vertex 4000000000000\nproperty float x\nend_header\n",
                "truncated or damaged",
            ),
            ("ply\nformat ascii 1.0\nelement vertex 4000000000\nproperty float x\nend_header\n1\n", "truncated"),
            (
                "ply\nformat ascii 1.0\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n0\n",
                "mesh or lists",
            ),
            ("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n", "not a 3DGS model"),
            ("ply\nformat ascii 1.0\nelement vertex many\nproperty float x\nend_header\n1\n", "cannot be read"),
            (f"ply\nformat ascii 1.0\nelement vertex {2**63}\nproperty float x\nend_header\n1\n", "cannot be read"),
        ],
    )
    def test_wrong_files_are_named(self, tmp_path: Path, header: str, message: str) -> None:
        (tmp_path / "bad.ply").write_text(header)
        with pytest.raises(UserError, match=message):
            load_ply(tmp_path / "bad.ply")

    @settings(max_examples=150, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_damage_is_a_user_error_within_bounds(self, tmp_path: Path, data: st.DataObject) -> None:
        path, damaged = tmp_path / "good.ply", tmp_path / "damaged.ply"
        if not path.exists():
            save_ply(path, make_gaussians(1))
        content = bytearray(path.read_bytes())
        header = content.index(b"end_header")
        kind = data.draw(st.sampled_from(["truncate", "flip", "flip header", "count"]))
        if kind == "truncate":
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        elif kind == "count":
            digits = str(data.draw(st.integers(0, 10**19))).encode()
            content = content.replace(b"element vertex 20", b"element vertex " + digits)
        else:
            last = header if kind == "flip header" else len(content) - 1
            for position in data.draw(st.lists(st.integers(0, last), min_size=1, max_size=4)):
                content[position] ^= 1 << data.draw(st.integers(0, 7))
        damaged.write_bytes(content)
        tracemalloc.start()
        try:
            load_ply(damaged).check("x")
        except UserError as error:
            assert str(damaged) in str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < MEMORY
