"""Standard 3DGS point_cloud.ply files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData, PlyElement, PlyParseError

from scene.gaussian_model import GaussianModel
from utils.errors import UserError
from utils.files import atomic_path

MAX_HEADER_BYTES = 64 * 1024
BASE_PROPERTIES = ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity")


def load_ply(path: str | Path) -> GaussianModel:
    """Read a 3DGS .ply (binary or ASCII), whose SH degree is found from its properties.

    Raises:
        UserError: if the file is missing, damaged, not a Gaussian model, or holds NaN.
    """
    path = Path(path)
    _check_header(path)
    try:
        vertices = PlyData.read(path)["vertex"].data  # structured array, memory-mapped where binary
    except (PlyParseError, ValueError, OverflowError, OSError, KeyError, MemoryError) as error:
        raise UserError(f"{path} cannot be read as a .ply: {error}. Copy it or train it again.") from None
    names = vertices.dtype.names or ()
    rest = [name for name in names if name.startswith("f_rest_")]
    coefficients = len(rest) // 3
    expected = [*BASE_PROPERTIES, *_numbered("f_rest_", len(rest)), *_numbered("scale_", 3), *_numbered("rot_", 4)]
    missing = [name for name in expected if name not in names]
    if missing or len(rest) not in (0, 9, 24, 45):
        found = f"{len(rest)} f_rest_ properties" if not missing else f"no property {missing[0]}"
        raise UserError(
            f"{path} is not a 3DGS model: {found}, expected x, y, z, f_dc_0..2, 0, 9, 24 or 45 f_rest_, opacity, "
            "scale_0..2 and rot_0..3. Compressed or converted files must be exported as a standard 3DGS .ply first."
        )

    def columns(*wanted: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([vertices[name].astype(np.float32) for name in wanted], axis=1))

    count = len(vertices)
    features_rest = torch.zeros(count, 0, 3)
    if rest:  # stored channel by channel
        features_rest = columns(*_numbered("f_rest_", len(rest))).view(count, 3, coefficients).transpose(1, 2)
    model = GaussianModel(
        xyz=columns("x", "y", "z"),
        features_dc=columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None],
        features_rest=features_rest.contiguous(),
        scaling=columns(*_numbered("scale_", 3)),
        rotation=columns(*_numbered("rot_", 4)),
        opacity=columns("opacity"),
        active_sh_degree=0,
    )
    model.active_sh_degree = model.max_sh_degree
    model.check(str(path))
    return model


def save_ply(path: str | Path, model: GaussianModel) -> None:
    """Write a standard binary 3DGS .ply atomically, with the zero normals other programs expect."""

    def array(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().flatten(1).cpu().numpy()

    blocks = {
        ("x", "y", "z"): array(model.xyz),
        ("nx", "ny", "nz"): np.zeros((len(model), 3)),
        _numbered("f_dc_", 3): array(model.features_dc),
        _numbered("f_rest_", 3 * model.features_rest.shape[1]): array(model.features_rest.transpose(1, 2)),
        ("opacity",): array(model.opacity),
        _numbered("scale_", 3): array(model.scaling),
        _numbered("rot_", 4): array(model.rotation),
    }
    names = [name for block in blocks for name in block]
    table = np.concatenate([values.astype(np.float32) for values in blocks.values()], axis=1)
    rows = np.ascontiguousarray(table).view([(name, "<f4") for name in names])[:, 0]
    with atomic_path(path) as temporary:
        PlyData([PlyElement.describe(rows, "vertex")], byte_order="<").write(temporary)


def _numbered(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{i}" for i in range(count))


def _check_header(path: Path) -> None:
    """Refuse what is no .ply, and counts that the file cannot hold, before anything of that size is allocated."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(MAX_HEADER_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a 3DGS point_cloud.ply (--start_checkpoint or -m).") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    end = re.search(rb"(?:^|\n)end_header\r?\n", head)
    if not head.startswith(b"ply") or end is None:
        raise UserError(
            f"{path} is not a .ply file: no header between 'ply' and 'end_header' in its first "
            f"{min(size, MAX_HEADER_BYTES)} bytes. Expected a 3DGS point_cloud.ply."
        )
    is_ascii = b"format ascii" in head[: end.start()]
    needed, properties, count = end.end(), 0, 0
    for line in [*head[: end.start()].split(b"\n"), b"element"]:
        words = line.split()
        if words[:1] == [b"element"]:
            needed += count * properties
            properties = 0
            count = int(words[2]) if len(words) == 3 and re.fullmatch(rb"\d{1,18}", words[2]) else 0
        elif words[:1] == [b"property"]:
            if words[1:2] == [b"list"]:
                raise UserError(f"{path} holds a mesh or lists, not Gaussians: {line.decode(errors='replace')!r}.")
            properties += 2 if is_ascii else 1  # bytes that one value takes at least
    if needed > size + 1:
        raise UserError(
            f"{path} is truncated or damaged: its header announces at least {needed} bytes, the file has {size}. "
            "Copy or train it again."
        )
