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

from scene.gaussian_model import PARAMETER_NAMES, GaussianModel
from utils.errors import UserError
from utils.files import atomic_path

NETWORK_LR, FEATURE_LR = 1e-4, 0.0025
NETWORKS = ("mlp1", "mlp2", "mlp3", "cross_attention")  # items 13 to 16 of a checkpoint with a referring field


def load_checkpoint(path: str | Path) -> tuple[GaussianModel, dict[str, Tensor] | None, int]:
    """Read chkpnt*.pth: (Gaussians, state dict of the referring field or None, iteration).

    Raises:
        UserError: if the file is missing, damaged, would run code, or has another form.
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
        extent = float(items[12] if len(items) == 17 else items[11])  # a number of NumPy or Python
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            f"{path}: spatial_lr_scale is not a number, as in a 3DGS checkpoint; the file is damaged."
        ) from None
    raw: dict[str, Any] = {name: value.detach().float() for name, value in tensors.items()}
    model = GaussianModel(**raw, active_sh_degree=items[0], spatial_lr_scale=extent)
    model.check(str(path))
    return model, _field_tensors(path, items, len(model)) if len(items) == 17 else None, iteration


def _field_tensors(path: str | Path, items: Any, count: int) -> dict[str, Tensor]:
    """Return the state dict of the referring field in a 17-item checkpoint of `count` Gaussians."""
    feature, states = items[7], dict(zip(NETWORKS, items[13:], strict=True))
    wrong = [name for name, state in states.items() if not isinstance(state, dict)]
    if wrong or not isinstance(feature, Tensor) or feature.shape[:1] != (count,):
        name = (wrong or ["language_feature"])[0]
        raise UserError(f"{path}: the referring field in it does not fit: {name} is not what ReferSplat writes there.")
    return {
        "language_feature": feature.detach(),
        **{f"{name}.{key}": value for name, state in states.items() for key, value in state.items()},
    }


def save_checkpoint(path: str | Path, model: GaussianModel, field: dict[str, Tensor], iteration: int) -> None:
    """Write a 17-item checkpoint that the released code loads; `field` is a state dict, moments are left out."""
    count = len(model)
    states = {
        name: {key.removeprefix(f"{name}."): value.cpu() for key, value in field.items() if key.startswith(f"{name}.")}
        for name in NETWORKS
    }
    groups = [{"params": [field["language_feature"]], "lr": FEATURE_LR, "name": "language_feature"}]
    groups += [{"params": list(state.values()), "lr": NETWORK_LR, "name": name} for name, state in states.items()]
    optimizer = torch.optim.Adam(groups, eps=1e-15)
    items = (
        model.active_sh_degree,
        *(torch.nn.Parameter(tensor) for tensor in model.to("cpu").parameters().values()),
        torch.nn.Parameter(field["language_feature"].detach().cpu().clone()),
        torch.zeros(count),  # max_radii2D
        torch.zeros(count, 1),  # xyz_gradient_accum
        torch.zeros(count, 1),  # denom
        optimizer.state_dict(),
        float(model.spatial_lr_scale),
        *states.values(),
    )
    save_tensors(path, (items, iteration))


def save_tensors(path: str | Path, content: Any) -> None:
    """Save with torch.save, atomically."""
    with atomic_path(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch hides the operating system's refusal in its zip writer
            raise OSError(str(error).splitlines()[0]) from error


def load_tensors(path: str | Path) -> Any:
    """Load tensors, containers and numbers onto the CPU. Raises UserError if the file is damaged or holds any code."""
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
    """Globals of a pickled NumPy number, such as the spatial_lr_scale of 3DGS."""
    scalar = np.float64(0).__reduce__()[0]
    return [
        (scalar, "numpy.core.multiarray.scalar"),  # written by NumPy 1
        (scalar, "numpy._core.multiarray.scalar"),  # written by NumPy 2
        np.dtype,
        type(np.dtype("float64")),
        type(np.dtype("float32")),
    ]
