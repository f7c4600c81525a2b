"""Files of Gaussians: round trips within the bounds of docs/DATA.md, bytes as specified, bad input."""

from __future__ import annotations

import gzip
import io
import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from plyfile import PlyData, PlyElement

from gaussian_renderer import render
from scene.cameras import Camera
from scene.formats import spz
from scene.formats.compressed_ply import CHUNK, morton_order
from scene.formats.files import load_gaussians, save_gaussians
from scene.formats.ply import ply_from_model
from scene.formats.spz import half_turn
from scene.gaussian_model import SH_C0, GaussianModel
from tests.rigs.format_models import ENDINGS, make_model
from tests.rigs.paths import SHARED
from tests.rigs.splat_scenes import one_thread
from utils.errors import UserError

gaussforge = pytest.importorskip("gaussforge", reason=f"gaussforge reads and writes .spz; {spz.INSTALL}")

SPLATS = SHARED / "splats"
# Bounds of docs/DATA.md: opacity (0..1), SH degree 0 as colour (0..1), SH of higher degrees, log scale, degrees of
# rotation. Positions, and colours and scales of .compressed.ply, have bounds that depend on the model.
BOUNDS = {
    ".ply": (0, 0, 0, 0, 0),
    ".compressed.ply": (0.5 / 255, None, 0.5 / 32, None, 0.28),
    ".splat": (0.5 / 255, 0.5 / 255, None, 0, 0.9),
    ".spz": (0.5 / 255, 0.5 / 255 / 0.15 * SH_C0, 8.5 / 128, 0.5 / 16, 0.28),
}
SLACK = 2e-5  # of float32, and of logits near 0 and 1


def round_trip(model: GaussianModel, path: Path) -> GaussianModel:
    """Write and read a model, in its original order."""
    save_gaussians(path, model)
    back = load_gaussians(path)
    if path.name.endswith(".compressed.ply"):
        inverse = np.argsort(morton_order(model.xyz.numpy()))
        tensors = {name: tensor[inverse] for name, tensor in back.parameters().items()}
        back = GaussianModel(**tensors, active_sh_degree=back.active_sh_degree)
    return back


def degrees_between(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Angle [N] of the rotation from one quaternion to another."""
    a, b = F.normalize(one.double()), F.normalize(other.double())
    b = torch.where((a * b).sum(1, keepdim=True) < 0, -b, b)
    return torch.rad2deg(4 * torch.asin(((a - b).norm(dim=1) / 2).clamp(max=1)))


def chunk_spans(values: torch.Tensor, order: np.ndarray) -> torch.Tensor:
    """Range of the values [N, K] in each Gaussian's chunk, [N, K]."""
    spans = torch.empty_like(values)
    for start in range(0, len(values), CHUNK):
        rows = order[start : start + CHUNK]
        spans[rows] = values[rows].amax(0) - values[rows].amin(0)
    return spans


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("ending", ENDINGS)
def test_round_trip_within_the_bounds(tmp_path: Path, ending: str, degree: int) -> None:
    model = make_model(700, degree)
    back = round_trip(model, tmp_path / f"model{ending}")
    opacity, color, rest, scaling, rotation = BOUNDS[ending]
    order = morton_order(model.xyz.numpy())
    names = [name for name, tensor in back.parameters().items() if tensor.shape == getattr(model, name).shape]
    error = {name: (getattr(back, name) - getattr(model, name)).abs() for name in names}

    assert back.active_sh_degree == (0 if ending == ".splat" else degree)
    assert (back.get_opacity - model.get_opacity).abs().max() <= opacity + SLACK
    assert degrees_between(back.rotation, model.rotation).max() <= rotation + 0.01
    if ending == ".compressed.ply":
        steps = torch.tensor([2047.0, 1023.0, 2047.0]) * 2
        assert (error["xyz"] <= chunk_spans(model.xyz, order) / steps + SLACK).all()
        assert (error["scaling"] <= chunk_spans(model.scaling, order) / steps + SLACK).all()
        spans = chunk_spans(model.features_dc[:, 0], order)
        assert (error["features_dc"][:, 0] <= spans / (2 * 255) + SLACK).all()
    else:
        assert error["xyz"].max() <= (0.5 / 4096 + 1e-6 if ending == ".spz" else 0)
        assert error["scaling"].max() <= scaling + 1e-5
        assert error["features_dc"].max() * SH_C0 <= color + SLACK
    if degree and ending != ".splat":
        assert error["features_rest"].max() <= rest + SLACK
        if ending == ".spz":
            assert error["features_rest"][:, :3].max() <= 4.5 / 128 + SLACK  # degree 1 has a bit more


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_second_round_trip_changes_nothing(tmp_path: Path, ending: str) -> None:
    once = round_trip(make_model(300, 1), tmp_path / f"once{ending}")
    twice = round_trip(once, tmp_path / f"twice{ending}")
    tolerance = {".compressed.ply": 2e-2}.get(ending, 1e-5)  # its chunks' bounds are those of rounded values
    assert (twice.xyz - once.xyz).abs().max() <= tolerance
    assert (twice.get_opacity - once.get_opacity).abs().max() <= 1e-5
    assert degrees_between(once.rotation, twice.rotation).max() < (0.9 if ending == ".splat" else 0.2)


def looking(model_center: tuple[float, float, float], direction: np.ndarray, distance: float) -> Camera:
    """A camera of 96x96 pixels that looks along `direction` at a point."""
    forward = direction / np.linalg.norm(direction)
    right = np.cross((0.2, 1.0, 0.1), forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    eye = np.array(model_center) - distance * forward
    return Camera("view", rotation, -rotation @ eye, 100, 100, 48, 48, 96, 96)


def picture(camera: Camera, model: GaussianModel) -> torch.Tensor:
    with torch.no_grad(), one_thread():
        return render(camera, model, torch.zeros(3)).image


def test_half_turn_turns_everything_with_the_world() -> None:
    """A turned model seen by a turned camera looks the same: positions, covariances and SH."""
    model = make_model(200)
    turn = np.diag([1.0, -1.0, -1.0])
    for direction in ((0.3, 0.5, 1.0), (-1.0, 0.2, 0.4)):
        camera = looking((0, 0, 0), np.array(direction), 9.0)
        turned = Camera("turned", camera.rotation @ turn, camera.translation, 100, 100, 48, 48, 96, 96)
        expected = picture(camera, model)
        assert expected.std() > 0.05
        torch.testing.assert_close(picture(turned, half_turn(model)), expected, atol=2e-5, rtol=0)
        assert (picture(turned, model) - expected).abs().mean() > 0.02


@pytest.mark.parametrize(("ending", "least"), [(".ply", 90), (".compressed.ply", 35), (".splat", 30), (".spz", 30)])
def test_pictures_survive(tmp_path: Path, ending: str, least: float) -> None:
    model = make_model(400, 0 if ending == ".splat" else 3)
    model.scaling += 1.5
    camera = looking((0, 0, 0), np.array([0.3, 0.5, 1.0]), 9.0)
    back = round_trip(model, tmp_path / f"model{ending}")
    error = (picture(camera, back).clamp(0, 1) - picture(camera, model).clamp(0, 1)).pow(2).mean()
    assert -10 * math.log10(float(error) + 1e-12) > least  # dB


def test_bytes_of_a_splat(tmp_path: Path) -> None:
    """The record that antimatter15's converter writes."""
    model = make_model(1, 0)
    model.xyz[:] = torch.tensor([1.0, -2.0, 3.5])
    model.scaling[:] = torch.log(torch.tensor([0.5, 0.25, 2.0]))
    model.features_dc[:] = (torch.tensor([1.0, 0.5, 0.2]) - 0.5) / SH_C0
    model.rotation[:] = torch.tensor([2.0, 0.0, -2.0, 0.0])
    model.opacity[:] = 0
    save_gaussians(tmp_path / "one.splat", model)
    found = struct.unpack("<6f8B", (tmp_path / "one.splat").read_bytes())
    assert found[:6] == pytest.approx((1, -2, 3.5, 0.5, 0.25, 2))
    assert found[6:9] == (255, 128, 51)
    assert found[9] in (127, 128)
    assert found[10:] == (219, 128, 37, 128)  # 128 + 128 / sqrt(2)


def test_bytes_of_a_spz(tmp_path: Path) -> None:
    """Niantic's version 3, decoded by hand; up is +y and back is +z."""
    model = make_model(2, 1)
    model.xyz[:] = torch.tensor([[1.0, -2.0, 3.5], [0.25, 0.5, -0.75]])
    model.scaling[:] = -3.0
    model.features_dc[:] = 1.0
    model.features_rest[:] = torch.tensor([0.5, 0.25, -0.5])[:, None]
    save_gaussians(tmp_path / "two.spz", model)
    content = gzip.decompress((tmp_path / "two.spz").read_bytes())
    magic, version, count, degree, bits, _, _ = struct.unpack("<4sIIBBBB", content[:16])
    assert (magic, version, count, degree, bits) == (b"NGSP", 3, 2, 1, 12)
    body = content[16:]
    positions = [int.from_bytes(body[i : i + 3], "little", signed=True) / 4096 for i in range(0, 18, 3)]
    assert positions == [1, 2, -3.5, 0.25, -0.5, 0.75]
    colors, scales, rest = body[20:26], body[26:32], body[40:58]
    assert set(colors) == {round(1.0 * 0.15 * 255 + 127.5)}
    assert set(scales) == {round((-3 + 10) * 16)}
    # coefficients go with y, z, x: y and z are turned
    assert [(value - 128) / 128 for value in rest[:9]] == pytest.approx([-0.5] * 3 + [-0.25] * 3 + [-0.5] * 3, abs=0.07)


def test_bits_of_a_compressed_ply(tmp_path: Path) -> None:
    """A file packed by hand, with and without chunk colours."""
    names = [f"{end}_{what}{axis}" for what in ("", "scale_") for end in ("min", "max") for axis in "xyz"]
    bounds = dict(zip(names, [0, 0, 0, 1, 2, 4, -5, -5, -5, -1, -1, -1], strict=True))
    packed = {
        "packed_position": (2047 << 21) | (0 << 11) | 1023,
        "packed_rotation": (1 << 30) | (511 << 20) | (512 << 10) | 1023,
        "packed_scale": (0 << 21) | (1023 << 11) | 0,
        "packed_color": (255 << 24) | (0 << 16) | (51 << 8) | 128,
    }
    chunk = np.array([tuple(bounds.values())], [(name, "<f4") for name in bounds])
    vertex = np.array([tuple(packed.values())], [(name, "<u4") for name in packed])
    sh = np.array([(0, 255, 128, 127, 64, 0, 0, 0, 192)], [(f"f_rest_{i}", "u1") for i in range(9)])
    elements = [PlyElement.describe(rows, name) for rows, name in ((chunk, "chunk"), (vertex, "vertex"), (sh, "sh"))]
    PlyData(elements).write(tmp_path / "old.ply")  # told by content, whatever the name
    model = load_gaussians(tmp_path / "old.ply")
    np.testing.assert_allclose(model.xyz[0], [1, 0, 4 * 1023 / 2047], rtol=1e-6)
    np.testing.assert_allclose(model.scaling[0], [-5, -1, -5], rtol=1e-6)
    np.testing.assert_allclose(0.5 + SH_C0 * model.features_dc[0, 0], [1, 0, 0.2], atol=1e-6)
    assert float(model.get_opacity) == pytest.approx(128 / 255)
    np.testing.assert_allclose(model.rotation[0], [0, math.sqrt(0.5), 0, math.sqrt(0.5)], atol=1e-3)
    middles = [-4, 4, 128.5, 127.5, 64.5, -4, -4, -4, 192.5]  # of the bytes, but for the ends
    channels = np.array([m if abs(m) == 4 else (m / 256 - 0.5) * 8 for m in middles]).reshape(3, 3)
    np.testing.assert_allclose(model.features_rest[0], channels.T, atol=1e-6)


@given(st.integers(1, 600), st.integers(0, 2**20))
@settings(deadline=None, max_examples=15)
def test_morton_order_is_a_permutation_of_neighbours(count: int, seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    order = morton_order(points)
    assert sorted(order) == list(range(count))
    if count > 300:
        steps = [np.linalg.norm(np.diff(p, axis=0), axis=1).mean() for p in (points[order], points)]
        assert steps[0] < 0.5 * steps[1]


@pytest.mark.parametrize("ending", [".compressed.ply", ".splat", ".spz"])
def test_extreme_values_stay_finite(tmp_path: Path, ending: str) -> None:
    model = make_model(4, 1)
    model.opacity[:] = torch.tensor([[-60.0], [60.0], [-6.0], [0.0]])
    model.scaling[0], model.scaling[1] = -80.0, 4.0
    model.features_dc[0], model.features_rest[1] = 9.0, -7.0
    model.rotation[2] = 0
    lost = save_gaussians(tmp_path / f"extreme{ending}", model)
    back = round_trip(model, tmp_path / f"extreme{ending}")
    assert all(torch.isfinite(tensor).all() for tensor in back.parameters().values())
    assert (back.get_opacity - model.get_opacity).abs().max() <= 0.5 / 255 + 1e-6
    assert any("clamped" in item for item in lost)


def test_positions_too_far_for_spz(tmp_path: Path) -> None:
    """A stray Gaussian is left out, a model that is too large is refused; neither wraps around."""
    model = make_model(200, 1)
    model.xyz[3, 1] = -3000.0
    lost = save_gaussians(tmp_path / "stray.spz", model)
    assert lost == ["1 of 200 Gaussians, further than 2048 units from the origin, left out"]
    back = load_gaussians(tmp_path / "stray.spz")
    kept = torch.arange(200) != 3
    assert (back.xyz - model.xyz[kept]).abs().max() < 1e-3
    model.xyz += 5000
    with pytest.raises(UserError, match="200 of 200 Gaussians.*2048"):
        save_gaussians(tmp_path / "far.spz", model)
    assert [path.name for path in tmp_path.iterdir()] == ["stray.spz"]


def test_a_missing_library_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gaussforge", None)
    with pytest.raises(UserError, match=r"pip install 'gaussforge"):
        save_gaussians(tmp_path / "a.spz", make_model(3))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("damage", ["empty", "short", "cut", "text", "missing", "folder"])
def test_damaged_files_end_in_one_message(files: Path, tmp_path: Path, ending: str, damage: str) -> None:
    content = (files / f"model{ending}").read_bytes()
    path = tmp_path / f"bad{ending}"
    damaged = {"empty": b"", "short": content[:7], "cut": content[: len(content) // 2 + 1], "text": b"hello " * 99}
    if damage in damaged:
        path.write_bytes(damaged[damage])
    elif damage == "folder":
        path.mkdir()
    with pytest.raises(UserError, match="bad"):
        load_gaussians(path)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("ending", ENDINGS)
def test_changed_bytes_never_crash(files: Path, ending: str, data: st.DataObject) -> None:
    content = bytearray((files / f"model{ending}").read_bytes())
    if ending == ".spz":
        content = bytearray(gzip.decompress(content))
    last = min(len(content), 1500) - 1
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
    path = files / f"changed{ending}"
    path.write_bytes(gzip.compress(content) if ending == ".spz" else content)
    try:
        model = load_gaussians(path)
    except UserError as error:
        assert "changed" in str(error)  # noqa: PT017
    else:
        model.check("changed")


@pytest.mark.parametrize("version", [2, 3, 4])
def test_versions_of_spz(tmp_path: Path, version: int) -> None:
    """Files that the library writes, which leaves the axes to its caller."""
    model, buffer = make_model(300, 2), io.BytesIO()
    ply_from_model(half_turn(model)).write(buffer)
    content = gaussforge.GaussForge().convert(buffer.getvalue(), "ply", "spz", spz_version=version)["data"]
    (tmp_path / "model.spz").write_bytes(content)
    assert (bytes(content[:4]) == b"NGSP") == (version == 4)
    back = load_gaussians(tmp_path / "model.spz")
    assert (back.xyz - model.xyz).abs().max() <= 0.5 / 4096 + 1e-6
    assert degrees_between(back.rotation, model.rotation).max() < (15 if version == 2 else 0.28)
    assert (back.features_rest - model.features_rest).abs().max() <= 8.5 / 128 + SLACK


def test_data_beyond_the_announced_size_is_not_unpacked(tmp_path: Path) -> None:
    header = struct.pack("<4sIIBBBB", b"NGSP", 2, 10, 0, 12, 0, 0)
    (tmp_path / "bomb.spz").write_bytes(gzip.compress(header + bytes(1 << 24)))
    with pytest.raises(UserError, match="far more than its 10 Gaussians"):
        load_gaussians(tmp_path / "bomb.spz")


def test_counts_are_checked(tmp_path: Path) -> None:
    header = struct.pack("<4sIIBBBB", b"NGSP", 2, 2**31, 3, 12, 0, 0)
    for name, content in (("zipped.spz", gzip.compress(header)), ("plain.spz", header + bytes(16))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="announces 2147483648"):
            load_gaussians(tmp_path / name)


@pytest.mark.skipif(not SPLATS.is_dir(), reason=f"{SPLATS} is not there; set SHARED_DIR")
@pytest.mark.parametrize(("name", "count"), [("biker.spz", 152_746), ("guitar.compressed.ply", 90_854)])
def test_scenes_of_other_programs_render(name: str, count: int) -> None:
    """A person and a guitar, opaque, upright, with the ground at y = 0 and y pointing down."""
    model = load_gaussians(SPLATS / name)
    assert len(model) == count
    solid = model.xyz[model.get_opacity[:, 0] > 0.3]
    center = solid.median(dim=0).values.numpy()
    extent = (solid.quantile(0.98, dim=0) - solid.quantile(0.02, dim=0)).numpy()
    assert extent[1] > 2 * extent[0]  # taller than wide
    assert extent[1] > 2 * extent[2]
    assert solid[:, 1].quantile(0.01) < -2  # nothing is below the ground, up is -y
    assert abs(float(solid[:, 1].quantile(0.99))) < 0.1
    camera = looking(tuple(center), np.array([-1.0, 0.2, 0.0]), 1.2 * extent[1])
    with torch.no_grad():
        image = render(camera, model, torch.ones(3)).image.clamp(0, 1)
    assert image[:, :, :8].min() > 0.95  # background beside it
    column = image[:, :, 40:56].mean(dim=(0, 2))
    assert column.min() < 0.6
