"""`.splat` files: 32 bytes per Gaussian and nothing else, introduced by the web viewer antimatter15/splat.

    position        3 x float32
    scale           3 x float32    standard deviations, not their logarithms
    colour, opacity 4 x uint8      255 (0.5 + C0 f_dc) of SH degree 0, and 255 times the opacity
    rotation        4 x uint8      128 + 128 q for the normalised quaternion w x y z

There is no header and no count; the axes are those of the .ply. Other libraries round colours down; here they are
rounded to the nearest byte.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scene.gaussian_model import SH_C0, GaussianModel
from utils.errors import UserError
from utils.files import atomic_path, read_bytes

RECORD = np.dtype([("xyz", "<f4", 3), ("scale", "<f4", 3), ("rgb", "u1", 3), ("opacity", "u1"), ("rotation", "u1", 4)])
MAX_LOGIT = math.log(254.75 / 0.25)  # for the opacity byte 255: the middle of the opacities that round to it


def load_splat(path: Path) -> GaussianModel:
    """Read a .splat. Raises UserError if it is missing or truncated, or holds NaN or negative scales."""
    content = read_bytes(path)
    if len(content) % RECORD.itemsize:
        raise UserError(
            f"{path} is not a .splat file or truncated: its {len(content)} bytes are not a multiple of "
            f"{RECORD.itemsize}. Copy or convert it again."
        )
    rows = np.frombuffer(content, RECORD)
    scale = torch.from_numpy(rows["scale"].copy())
    rotation = torch.from_numpy(rows["rotation"].astype(np.float32) - 128) / 128
    rotation[(rotation == 0).all(dim=1), 0] = 1  # the zero quaternion: not rotated
    model = GaussianModel(
        xyz=torch.from_numpy(rows["xyz"].copy()),
        features_dc=torch.from_numpy((rows["rgb"].astype(np.float32) / 255 - 0.5) / SH_C0)[:, None],
        features_rest=torch.zeros(len(rows), 0, 3),
        scaling=torch.where(scale == 0, torch.finfo(scale.dtype).tiny, scale).log(),  # NaN for negative scales
        rotation=rotation,
        opacity=opacity_logits(rows["opacity"]),
        active_sh_degree=0,
    )
    model.check(str(path))
    return model


def save_splat(path: Path, model: GaussianModel) -> list[str]:
    """Write a .splat atomically, in the order of the Gaussians, and return what is lost, in words."""
    rows = np.zeros(len(model), RECORD)
    colors = 0.5 + SH_C0 * model.features_dc.detach()[:, 0].double().cpu()  # [N, 3]
    rows["xyz"] = model.xyz.detach().cpu().numpy()
    rows["scale"] = model.get_scaling.detach().cpu().numpy()
    rows["rgb"] = colors.clamp(0, 1).mul(255).round().numpy()
    rows["opacity"] = opacity_bytes(model.opacity)
    rows["rotation"] = model.get_rotation.detach().cpu().mul(128).add(128).round().clamp(0, 255).numpy()
    with atomic_path(path) as temporary:
        rows.tofile(temporary)
    lost = []
    if model.max_sh_degree:
        lost.append(f"spherical harmonics of degree 1 to {model.max_sh_degree}: colours do not depend on the view")
    if outside := int(((colors < 0) | (colors > 1)).any(dim=1).sum()):
        lost.append(f"colours outside 0..1, clamped in {outside} of {len(model)} Gaussians")
    return lost


def opacity_bytes(logits: Tensor) -> np.ndarray:
    """Quantise opacity logits [N, 1] to the nearest bytes, [N] uint8."""
    return torch.sigmoid(logits.detach().double()).mul(255).round().to(torch.uint8).flatten().cpu().numpy()


def opacity_logits(values: np.ndarray) -> Tensor:
    """Convert opacity bytes [N] uint8 to finite logits, [N, 1] float32."""
    return finite_logits(torch.logit(torch.from_numpy(values.astype(np.float64)) / 255)).float()[:, None]


def finite_logits(logits: Tensor) -> Tensor:
    """Move the infinite logits of the opacity bytes 0 and 255 by a quarter of a byte's step, where they are finite."""
    return logits.clamp(-MAX_LOGIT, MAX_LOGIT)
