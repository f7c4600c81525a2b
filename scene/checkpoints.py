"""Checkpoints of 3DGS (12 items) and of the released ReferSplat code (17 items): import and export.

Both are `(items, iteration)` written by torch.save. Import never runs code from the file.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from referring.field import FEATURE_DIM, ReferringField
from scene.gaussian_model import PARAMETER_NAMES, GaussianModel
from utils.errors import UserError
from utils.files import atomic_path

NETWORK_LR, FEATURE_LR = 1e-4, 0.0025


def load_checkpoint(path: str | Path) -> tuple[GaussianModel, ReferringField | None, int]:
    """Read chkpnt*.pth: (Gaussians, referring field or None, iteration).

    Raises:
        UserError: if the file is missing, damaged, asks for code to be run, or is of another form.
    """
    content = load_tensors(path)
    items, iteration = content if isinstance(content, (tuple, list)) and len(content) == 2 else (None, None)
    if not isinstance(items, (tuple, list)) or len(items) not in (12, 17) or not isinstance(iteration, int):
        found = f"{len(items)} items" if isinstance(items, (tuple, list)) else type(content).__name__
        raise UserError(
            f"{path} is not a checkpoint of 3DGS or ReferSplat: found {found}, expected ((12 or 17 items), iteration). "
            "A point_cloud.ply of the same model can be used instead."
        )
    tensors = dict(zip(PARAMETER_NAMES, items[1:7], strict=True))
    wrong = [name for name, value in tensors.items() if not isinstance(value, Tensor) or value.dim() < 2]
    if wrong or not isinstance(items[0], int):
        name = (wrong or ["active_sh_degree"])[0]
        raise UserError(f"{path}: {name} is not what a 3DGS checkpoint holds; the file is damaged.")
    try:
        extent = float(items[12] if len(items) == 17 else items[11])  # NumPy's or Python's number
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            f"{path}: spatial_lr_scale is no number, as in a 3DGS checkpoint; the file is damaged."
        ) from None
    model = GaussianModel(
        **{name: value.detach().float() for name, value in tensors.items()},
        active_sh_degree=items[0],
        spatial_lr_scale=extent,
    )
    model.check(str(path))
    return model, _import_field(path, items, len(model)) if len(items) == 17 else None, iteration


def _import_field(path: str | Path, items: Any, count: int) -> ReferringField:
    """The referring field of a 17-item checkpoint of `count` Gaussians."""
    feature, states = items[7], items[13:]
    try:
        field = ReferringField(count, states[0]["fc1.weight"].shape[1])
        if tuple(feature.shape) != (count, FEATURE_DIM):
            raise ValueError(f"language_feature has shape {tuple(feature.shape)}, expected {(count, FEATURE_DIM)}")
        for network, state in zip(field.networks().values(), states, strict=True):
            network.load_state_dict(state)
        field.language_feature.data.copy_(feature)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: the referring field in it does not fit ReferSplat's networks: {error}") from None
    return field


def save_checkpoint(path: str | Path, model: GaussianModel, field: ReferringField, iteration: int) -> None:
    """Write a 17-item checkpoint that the released code loads; optimiser moments start anew there."""
    count = len(model)
    groups = {"language_feature": [field.language_feature]}
    groups |= {name: list(network.parameters()) for name, network in field.networks().items()}
    optimizer = torch.optim.Adam(
        [
            {"params": params, "lr": FEATURE_LR if name == "language_feature" else NETWORK_LR, "name": name}
            for name, params in groups.items()
        ],
        eps=1e-15,
    )
    frozen = model.to("cpu")
    items = (
        model.active_sh_degree,
        *(torch.nn.Parameter(tensor) for tensor in frozen.parameters().values()),
        torch.nn.Parameter(field.language_feature.detach().cpu().clone()),
        torch.zeros(count),  # max_radii2D
        torch.zeros(count, 1),  # xyz_gradient_accum
        torch.zeros(count, 1),  # denom
        optimizer.state_dict(),
        float(model.spatial_lr_scale),
        *({k: v.cpu() for k, v in network.state_dict().items()} for network in field.networks().values()),
    )
    save_tensors(path, (items, iteration))


def save_tensors(path: str | Path, content: Any) -> None:
    """torch.save, atomically."""
    with atomic_path(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch hides the operating system's refusal in its zip writer
            raise OSError(str(error).splitlines()[0]) from error


def load_tensors(path: str | Path) -> Any:
    """torch.load onto the CPU that takes tensors, plain containers and NumPy numbers, and runs nothing.

    Raises:
        UserError: if the file is missing, damaged, or holds anything else.
    """
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a .pth checkpoint.") from None
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line), "")
        raise UserError(
            f"{path} was refused: it is damaged, or it holds more than tensors and numbers and could run code when "
            f"loaded. {reason.strip()} Convert it to point_cloud.ply in the environment that wrote it."
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged pickle makes torch.load raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read as a checkpoint: {reason}. It is damaged; copy it again.") from None


def _numpy_scalars() -> list[Any]:
    """What a pickled NumPy number needs; spatial_lr_scale of 3DGS is one."""
    scalar = np.float64(0).__reduce__()[0]
    return [
        (scalar, "numpy.core.multiarray.scalar"),  # written by NumPy 1
        (scalar, "numpy._core.multiarray.scalar"),  # written by NumPy 2
        np.dtype,
        type(np.dtype("float64")),
        type(np.dtype("float32")),
    ]
