"""Compressed .ply of SuperSplat and PlayCanvas: 16 bytes per Gaussian, and 9, 24 or 45 more for spherical harmonics.

    element chunk    min and max of position, log scale and (since version 2) colour over 256 Gaussians, float32
    element vertex   packed_position, packed_scale: 11, 10, 11 bits between min and max of the chunk
                     packed_rotation: index of the largest component of w x y z, then the others in 10 bits each
                     packed_color: 8, 8, 8 bits between min and max of the chunk, 8 bits of opacity
    element sh       f_rest_0 ... as in the standard .ply, one byte each for -4..4

The layout is that of playcanvas/splat-transform (MIT), whose reader and writer define it. The error of positions
is a fraction of the chunk's size, so the writer sorts Gaussians along a Morton curve, as SuperSplat does: neighbours
share a chunk.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData, PlyElement

from scene.formats.ply import element_rows, flatten_sh, numbered, unflatten_sh
from scene.formats.splat import opacity_bytes, opacity_logits
from scene.gaussian_model import SH_C0, GaussianModel
from utils.errors import UserError
from utils.files import atomic_path

CHUNK = 256
POSITION_BITS = (11, 10, 11)  # x y z, for positions and scales
COLOR_BITS = (8, 8, 8)
MAX_LOG_SCALE = 20.0
MAX_SH = 4.0
BOUNDS = {
    name: tuple(f"{end}_{axis}" for end in ("min", "max") for axis in axes)
    for name, axes in {"position": "xyz", "scale": ("scale_x", "scale_y", "scale_z"), "color": "rgb"}.items()
}
PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")


def model_from_compressed(content: PlyData, source: str) -> GaussianModel:
    """Convert the content of a compressed .ply to Gaussians. Raises UserError, naming `source`, if it is damaged."""
    chunks, vertices = element_rows(content, "chunk"), element_rows(content, "vertex")
    has_colors = "min_r" in (chunks.dtype.names or ())  # older files have none: colours lie between 0 and 1
    expected = [*BOUNDS["position"], *BOUNDS["scale"], *(BOUNDS["color"] if has_colors else ())]
    missing = [name for name in expected if name not in (chunks.dtype.names or ())]
    missing += [name for name in PACKED if name not in (vertices.dtype.names or ()) or vertices[name].dtype.kind != "u"]
    if missing:
        raise UserError(f"{source} is not a compressed .ply of SuperSplat: it has no {missing[0]}. Export it again.")
    count = len(vertices)
    if len(chunks) != -(-count // CHUNK):
        raise UserError(
            f"{source} is damaged: {len(chunks)} chunks for {count} Gaussians, expected {-(-count // CHUNK)} chunks of "
            f"{CHUNK}. Export it again."
        )

    def between(name: str, shares: np.ndarray) -> torch.Tensor:
        ends = np.stack([chunks[end].astype(np.float64) for end in BOUNDS[name]], axis=1)  # [chunks, 6]
        ends = np.repeat(ends, CHUNK, axis=0)[:count]
        return torch.from_numpy(ends[:, :3] * (1 - shares) + ends[:, 3:] * shares).float()

    color = vertices["packed_color"]
    shares = _unpack(color >> 8, COLOR_BITS)
    rgb = between("color", shares) if has_colors else torch.from_numpy(shares).float()
    model = GaussianModel(
        xyz=between("position", _unpack(vertices["packed_position"], POSITION_BITS)),
        features_dc=((rgb - 0.5) / SH_C0)[:, None],
        features_rest=_unpack_sh(content, count, source),
        scaling=between("scale", _unpack(vertices["packed_scale"], POSITION_BITS)),
        rotation=_unpack_rotation(vertices["packed_rotation"]),
        opacity=opacity_logits((color & 255).astype(np.uint8)),
        active_sh_degree=0,
    )
    model.active_sh_degree = model.max_sh_degree
    model.check(source)
    return model


def save_compressed_ply(path: Path, model: GaussianModel) -> list[str]:
    """Write a compressed .ply atomically, Gaussians along a Morton curve, and return what is lost, in words."""
    order = morton_order(model.xyz.detach().cpu().numpy())
    arrays = {
        name: value.detach().cpu().flatten(1)[order].double().numpy() for name, value in model.parameters().items()
    }
    values = {
        "position": arrays["xyz"],
        "scale": arrays["scaling"].clip(-MAX_LOG_SCALE, MAX_LOG_SCALE),
        "color": 0.5 + SH_C0 * arrays["features_dc"],
    }
    starts = np.arange(0, len(model), CHUNK)
    ends: dict[str, np.ndarray] = {}
    shares: dict[str, np.ndarray] = {}
    for name, value in values.items():
        bounds = [reduce.reduceat(value, starts).astype(np.float32) for reduce in (np.minimum, np.maximum)]
        ends |= dict(zip(BOUNDS[name], np.concatenate(bounds, axis=1).T, strict=True))
        low, high = (np.repeat(bound.astype(np.float64), CHUNK, axis=0)[: len(model)] for bound in bounds)
        shares[name] = (value - low) / np.maximum(high - low, 1e-12)
    opacity = opacity_bytes(model.opacity[order]).astype(np.uint32)
    packed = (
        _pack(shares["position"], POSITION_BITS),
        _pack_rotation(arrays["rotation"]),
        _pack(shares["scale"], POSITION_BITS),
        _pack(shares["color"], COLOR_BITS) << 8 | opacity,
    )
    elements = [
        PlyElement.describe(_rows(ends, "<f4"), "chunk"),
        PlyElement.describe(_rows(dict(zip(PACKED, packed, strict=True)), "<u4"), "vertex"),
    ]
    if model.max_sh_degree:
        rest = flatten_sh(model.features_rest[order]).astype(np.float64)  # [N, 3C]
        rest = np.floor((rest / (2 * MAX_SH) + 0.5) * 256).clip(0, 255).T
        rows = _rows(dict(zip(numbered("f_rest_", len(rest)), rest, strict=True)), "u1")
        elements.append(PlyElement.describe(rows, "sh"))
    with atomic_path(path) as temporary:
        PlyData(elements, byte_order="<").write(temporary)
    lost = ["the order of the Gaussians"]
    for what, name, most in (("log scales", "scaling", MAX_LOG_SCALE), ("SH coefficients", "features_rest", MAX_SH)):
        if outside := int((np.abs(arrays[name]) > most).any(axis=1).sum()):
            lost.append(f"{what} outside -{most:g}..{most:g}, clamped in {outside} of {len(model)} Gaussians")
    return lost


def morton_order(xyz: np.ndarray) -> np.ndarray:
    """Return the order [N] of points [N, 3] along a Morton curve, with 21 bits per axis of their bounding box."""
    least = xyz.min(axis=0).astype(np.float64)
    side = np.maximum(xyz.max(axis=0) - least, 1e-12)
    cells = ((xyz - least) / side * (2**21 - 1)).astype(np.uint64)
    for shift, mask in (  # inserts two zero bits between neighbouring bits of a cell number
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        cells = (cells | cells << np.uint64(shift)) & np.uint64(mask)
    code = cells[:, 0] | cells[:, 1] << np.uint64(1) | cells[:, 2] << np.uint64(2)
    return np.argsort(code, kind="stable")


def _rows(columns: dict[str, np.ndarray], kind: str) -> np.ndarray:
    """Make a structured array from named columns of one type."""
    return np.rec.fromarrays(list(columns.values()), [(name, kind) for name in columns])


def _pack(shares: np.ndarray, bits: tuple[int, ...]) -> np.ndarray:
    """Quantise numbers in 0..1, [N, K], to `bits` each and pack them, the first in the highest bits: [N] uint32."""
    packed = np.zeros(len(shares), np.uint32)
    for column, width in zip(shares.T, bits, strict=True):
        most = (1 << width) - 1
        packed = packed << np.uint32(width) | np.floor(column * most + 0.5).clip(0, most).astype(np.uint32)
    return packed


def _unpack(packed: np.ndarray, bits: tuple[int, ...]) -> np.ndarray:
    """Invert `_pack`: [N, K] float64."""
    columns, shift = [], 0
    for width in reversed(bits):
        most = (1 << width) - 1
        columns.append((packed >> np.uint32(shift) & np.uint32(most)) / most)
        shift += width
    return np.stack(columns[::-1], axis=1)


def _pack_rotation(rotation: np.ndarray) -> np.ndarray:
    """Pack quaternions [N, 4] as their smallest three components over sqrt(2), the largest made positive."""
    norm = np.linalg.norm(rotation, axis=1, keepdims=True)
    unit = np.where(norm > 0, rotation / np.maximum(norm, 1e-12), (1.0, 0, 0, 0))
    largest = np.abs(unit).argmax(axis=1)
    rows = np.arange(len(unit))
    unit *= np.where(unit[rows, largest] < 0, -1, 1)[:, None]
    others = unit[np.arange(4) != largest[:, None]].reshape(-1, 3)
    return largest.astype(np.uint32) << np.uint32(30) | _pack(others / 2**0.5 + 0.5, (10, 10, 10))


def _unpack_rotation(packed: np.ndarray) -> torch.Tensor:
    """Invert `_pack_rotation`: unit quaternions [N, 4]."""
    others = (_unpack(packed, (10, 10, 10)) - 0.5) * 2**0.5
    largest = np.sqrt((1 - (others**2).sum(axis=1)).clip(0))
    rotation = np.empty((len(packed), 4))
    is_largest = np.arange(4) == (packed >> np.uint32(30))[:, None]
    rotation[is_largest], rotation[~is_largest] = largest, others.ravel()
    return torch.from_numpy(rotation).float()


def _unpack_sh(content: PlyData, count: int, source: str) -> torch.Tensor:
    """Decode features_rest [N, C, 3]: a byte is the middle of its range, 0 and 255 are the ends."""
    if "sh" not in content:
        return torch.zeros(count, 0, 3)
    rows = content["sh"].data
    names = numbered("f_rest_", len(rows.dtype.names or ()))
    if (
        len(names) not in (9, 24, 45)
        or len(rows) != count
        or any(rows.dtype.fields.get(n, "?")[0] != "u1" for n in names)
    ):
        raise UserError(
            f"{source} is damaged: its element sh has {len(rows)} rows of {len(names)} properties, expected {count} of "
            "f_rest_0 up to 8, 23 or 44 in bytes. Export it again."
        )
    values = np.stack([rows[name] for name in names], axis=1)  # [N, 3C]
    shares = np.where(values == 0, 0, np.where(values == 255, 1, (values + 0.5) / 256))
    return unflatten_sh(torch.from_numpy((shares - 0.5) * 2 * MAX_SH).float())
