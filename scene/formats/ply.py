"""PLY files: any content behind checks of the header, and the standard 3DGS point_cloud.ply."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from plyfile import PlyData, PlyElement, PlyParseError

from scene.gaussian_model import GaussianModel
from utils.errors import UserError
from utils.files import atomic_path

BASE_PROPERTIES = ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity")
MAX_HEADER_BYTES = 64 * 1024
EXPECTED = "a 3DGS point_cloud.ply (--start_checkpoint or -m)"


def read_ply(path: Path, expected: str, lists: bool = False) -> PlyData:
    """Read a .ply (binary or ASCII); binary elements without lists are memory-mapped.

    Args:
        expected: what the file should be and which flag names it, for the messages.
        lists: accept lists, such as the faces of a mesh.

    Raises:
        UserError: if the file is missing, damaged, not a .ply, or holds lists that are not accepted.
    """
    _check_header(path, expected, lists)
    try:
        return PlyData.read(path)
    except (PlyParseError, ValueError, OverflowError, OSError, KeyError, MemoryError) as error:
        raise UserError(f"{path} cannot be read as a .ply: {error}. Copy it or make it again.") from None


def element_rows(content: PlyData, name: str) -> NDArray[np.void]:
    """Return the rows of an element as a structured array, without fields if the file has no such element."""
    return content[name].data if name in content else np.zeros(0, [])


def _check_header(path: Path, expected: str, lists: bool) -> None:
    """Refuse anything but a .ply, and counts that the file cannot hold, before memory of that size is allocated."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(MAX_HEADER_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected {expected}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    end = re.search(rb"(?:^|\n)end_header\r?\n", head)
    if not head.startswith(b"ply") or end is None:
        raise UserError(
            f"{path} is not a .ply file: no header between 'ply' and 'end_header' in its first "
            f"{min(size, MAX_HEADER_BYTES)} bytes. Expected {expected}."
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
            if words[1:2] == [b"list"] and not lists:
                raise UserError(f"{path} holds a mesh or lists, not points: {line.decode(errors='replace')!r}.")
            properties += 2 if is_ascii else 1  # smallest size of one value in bytes
    if needed > size + 1:
        raise UserError(
            f"{path} is truncated or damaged: its header announces at least {needed} bytes, the file has {size}. "
            "Copy or make it again."
        )


def load_ply(path: str | Path) -> GaussianModel:
    """Read a 3DGS .ply (binary or ASCII). Raises UserError if it is missing, damaged, no Gaussian model or has NaN."""
    return model_from_ply(read_ply(Path(path), EXPECTED), str(path))


def model_from_ply(content: PlyData, source: str, finite: bool = True) -> GaussianModel:
    """Convert the content of a standard .ply to Gaussians.

    Raises:
        UserError: if they are not a Gaussian model, or not `finite`; the message names `source`.
    """
    vertices = element_rows(content, "vertex")
    names = vertices.dtype.names or ()
    rest = [name for name in names if name.startswith("f_rest_")]
    expected = [*BASE_PROPERTIES, *numbered("f_rest_", len(rest)), *numbered("scale_", 3), *numbered("rot_", 4)]
    missing = [name for name in expected if name not in names]
    if missing or len(rest) not in (0, 9, 24, 45):
        found = f"{len(rest)} f_rest_ properties" if not missing else f"no property {missing[0]}"
        raise UserError(
            f"{source} is not a 3DGS model: {found}, expected x, y, z, f_dc_0..2, 0, 9, 24 or 45 f_rest_, opacity, "
            "scale_0..2 and rot_0..3, as a standard 3DGS .ply has them, or a compressed .ply of SuperSplat."
        )

    def columns(*names: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([vertices[name].astype(np.float32) for name in names], axis=1))

    model = GaussianModel(
        xyz=columns("x", "y", "z"),
        features_dc=columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None],
        features_rest=unflatten_sh(columns(*numbered("f_rest_", len(rest))))
        if rest
        else torch.zeros(len(vertices), 0, 3),
        scaling=columns(*numbered("scale_", 3)),
        rotation=columns(*numbered("rot_", 4)),
        opacity=columns("opacity"),
        active_sh_degree=round((len(rest) // 3 + 1) ** 0.5) - 1,
    )
    if finite:
        model.check(source)
    return model


def save_ply(path: str | Path, model: GaussianModel) -> list[str]:
    """Write a standard binary 3DGS .ply atomically, with the zero normals that other programs expect; lose nothing."""
    with atomic_path(path) as temporary:
        ply_from_model(model).write(temporary)
    return []


def ply_from_model(model: GaussianModel) -> PlyData:
    """Convert a model to the content of a standard .ply."""

    def array(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().flatten(1).cpu().numpy()

    blocks = [array(model.xyz), np.zeros((len(model), 3)), array(model.features_dc), flatten_sh(model.features_rest)]
    blocks += [array(model.opacity), array(model.scaling), array(model.rotation)]
    table = np.concatenate(blocks, axis=1, dtype=np.float32)
    names = ["x", "y", "z", "nx", "ny", "nz", *numbered("f_dc_", 3), *numbered("f_rest_", table.shape[1] - 17)]
    names += ["opacity", *numbered("scale_", 3), *numbered("rot_", 4)]
    rows = np.ascontiguousarray(table).view([(name, "<f4") for name in names])[:, 0]
    return PlyData([PlyElement.describe(rows, "vertex")], byte_order="<")


def unflatten_sh(values: torch.Tensor) -> torch.Tensor:
    """Convert the properties f_rest_, [N, 3C], stored channel by channel, to features_rest [N, C, 3]."""
    return values.unflatten(1, (3, -1)).transpose(1, 2).contiguous()


def flatten_sh(features_rest: torch.Tensor) -> np.ndarray:
    """Convert features_rest [N, C, 3] to the properties f_rest_, [N, 3C], stored channel by channel."""
    return features_rest.detach().transpose(1, 2).flatten(1).cpu().numpy()


def numbered(prefix: str, count: int) -> tuple[str, ...]:
    """Return the property names `prefix`0, `prefix`1 ..."""
    return tuple(f"{prefix}{i}" for i in range(count))
