"""A trained model: the Gaussians and the referring field of a model folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from referring.field import ReferringField
from scene.checkpoints import load_checkpoint
from scene.formats.ply import load_ply
from scene.gaussian_model import GaussianModel
from scene.model_folder import (
    field_path,
    iterations,
    load_config,
    load_field,
    point_cloud_path,
    require_saved,
    trained_with_antialiasing,
)
from utils.errors import UserError


@dataclass
class TrainedModel:
    """A trained model of a model folder."""

    path: Path
    config: dict[str, dict[str, Any]]
    iteration: int
    gaussians: GaussianModel
    field: ReferringField


def load_trained(folder: Path, iteration: int = -1, device: torch.device | str = "cpu") -> TrainedModel:
    """Load the Gaussians and the referring field of a model folder.

    Args:
        folder: model folder written by train.py or the released code (its chkpntN.pth).
        iteration: saved iteration of the referring stage; -1 takes the newest.

    Raises:
        UserError: if something is missing, damaged or does not belong together.
    """
    if not folder.is_dir():
        raise UserError(f"the model folder {folder} does not exist. Train one with train.py -s SCENE -m {folder}.")
    config = load_config(folder)
    found = iterations(folder, "referring")
    checkpoints = sorted(folder.glob("chkpnt*.pth"), key=_checkpoint_iteration)
    if found:
        chosen = found[-1] if iteration == -1 else iteration
        require_saved(folder, chosen, found)
        path = field_path(folder, chosen)
        tensors, metadata = load_field(path)
        field = ReferringField.from_tensors(tensors, path)
        cloud = point_cloud_path(folder, metadata["rgb_iteration"])
        gaussians = load_ply(cloud)
        if len(gaussians) != len(field.language_feature):
            raise UserError(
                f"{cloud} has {len(gaussians)} Gaussians, but the referring field of iteration {chosen} was trained on "
                f"{len(field.language_feature)}. Restore the point cloud it was trained on, or train again."
            )
        gaussians.antialiasing = trained_with_antialiasing(config)
    elif checkpoints:  # the released code trained it
        path = checkpoints[-1] if iteration == -1 else folder / f"chkpnt{iteration}.pth"
        gaussians, released, chosen = load_checkpoint(path)
        if released is None:
            raise UserError(f"{path} holds an RGB model only (12 items); train on it with --start_checkpoint {path}.")
        field = ReferringField.from_tensors(released, path)
    else:
        raise UserError(f"{folder} holds no trained referring field (referring/iteration_N.safetensors); run train.py.")
    return TrainedModel(folder, config, chosen, gaussians.to(device), field.to(device).eval().requires_grad_(False))


def _checkpoint_iteration(path: Path) -> int:
    match = re.fullmatch(r"chkpnt(\d+)", path.stem)
    return int(match[1]) if match else -1  # not chkpntN.pth
