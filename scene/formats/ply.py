"""Standard 3DGS point_cloud.ply files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData, PlyElement

from scene.formats.ply_file import read_ply
from scene.gaussian_model import GaussianModel
from utils.errors import UserError
from utils.files import atomic_path

BASE_PROPERTIES = ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity")
EXPECTED = "a 3DGS point_cloud.ply (--start_checkpoint or -m)"


def load_ply(path: str | Path) -> GaussianModel:
    """Read a 3DGS .ply (binary or ASCII), whose SH degree is found from its properties.

    Raises:
        UserError: if the file is missing, damaged, not a Gaussian model, or holds NaN.
    """
    model = model_of(read_ply(Path(path), EXPECTED), str(path))
    model.check(str(path))
    return model


def model_of(content: PlyData, source: str) -> GaussianModel:
    """The Gaussians of a standard .ply that has been read; their numbers are not checked.

    Raises:
        UserError: if the properties are not those of a Gaussian model, naming `source`.
    """
    vertices = content["vertex"].data if "vertex" in content else np.zeros(0)  # structured array
    names = vertices.dtype.names or ()
    rest = [name for name in names if name.startswith("f_rest_")]
    coefficients = len(rest) // 3
    expected = [*BASE_PROPERTIES, *numbered("f_rest_", len(rest)), *numbered("scale_", 3), *numbered("rot_", 4)]
    missing = [name for name in expected if name not in names]
    if missing or len(rest) not in (0, 9, 24, 45):
        found = f"{len(rest)} f_rest_ properties" if not missing else f"no property {missing[0]}"
        raise UserError(
            f"{source} is not a 3DGS model: {found}, expected x, y, z, f_dc_0..2, 0, 9, 24 or 45 f_rest_, opacity, "
            "scale_0..2 and rot_0..3, as a standard 3DGS .ply has them, or a compressed .ply of SuperSplat."
        )

    def columns(*wanted: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([vertices[name].astype(np.float32) for name in wanted], axis=1))

    count = len(vertices)
    features_rest = torch.zeros(count, 0, 3)
    if rest:
        features_rest = rest_of_channels(columns(*numbered("f_rest_", len(rest))))
    return GaussianModel(
        xyz=columns("x", "y", "z"),
        features_dc=columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None],
        features_rest=features_rest,
        scaling=columns(*numbered("scale_", 3)),
        rotation=columns(*numbered("rot_", 4)),
        opacity=columns("opacity"),
        active_sh_degree=round((coefficients + 1) ** 0.5) - 1,
    )


def save_ply(path: str | Path, model: GaussianModel) -> None:
    """Write a standard binary 3DGS .ply atomically, with the zero normals other programs expect."""
    with atomic_path(path) as temporary:
        ply_of(model).write(temporary)


def ply_of(model: GaussianModel) -> PlyData:
    """The content of the standard .ply of a model."""

    def array(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().flatten(1).cpu().numpy()

    blocks = {
        ("x", "y", "z"): array(model.xyz),
        ("nx", "ny", "nz"): np.zeros((len(model), 3)),
        numbered("f_dc_", 3): array(model.features_dc),
        numbered("f_rest_", 3 * model.features_rest.shape[1]): channels_of_rest(model.features_rest),
        ("opacity",): array(model.opacity),
        numbered("scale_", 3): array(model.scaling),
        numbered("rot_", 4): array(model.rotation),
    }
    names = [name for block in blocks for name in block]
    table = np.concatenate([values.astype(np.float32) for values in blocks.values()], axis=1)
    rows = np.ascontiguousarray(table).view([(name, "<f4") for name in names])[:, 0]
    return PlyData([PlyElement.describe(rows, "vertex")], byte_order="<")


def rest_of_channels(values: torch.Tensor) -> torch.Tensor:
    """features_rest [N, C, 3] of the properties f_rest_, [N, 3C], which are stored channel by channel."""
    return values.unflatten(1, (3, -1)).transpose(1, 2).contiguous()


def channels_of_rest(features_rest: torch.Tensor) -> np.ndarray:
    """The properties f_rest_, [N, 3C], of features_rest [N, C, 3]."""
    return features_rest.detach().transpose(1, 2).flatten(1).cpu().numpy()


def numbered(prefix: str, count: int) -> tuple[str, ...]:
    """The property names `prefix`0, `prefix`1 ..."""
    return tuple(f"{prefix}{i}" for i in range(count))
