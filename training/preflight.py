"""Checks before training: a mistake in the flags or the scene ends the run before hours are spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from arguments import ModelParams, ReferringParams, TrainingParams
from referring.field import ReferringField
from referring.text_encoder import EMBEDDED
from scene.dataset import Scene
from scene.formats.ply import load_ply
from scene.gaussian_model import GaussianModel
from scene.layouts.loader import expected_mask_files
from scene.model_folder import iterations, load_start, point_cloud_path
from scene.readers.image_files import is_transparent
from training.referring import drop_untrusted_masks
from training.session import RESUME_FILE
from training.two_stage import Flags, stage_a
from utils.errors import UserError

# Flags that a resumed run may change; all others decide the result.
FREE_ON_RESUME = {
    "device", "deterministic", "plan_memory", "precision", "resume", "save_iterations", "test_iterations",
    "checkpoint_interval", "log_interval", "export_checkpoint", "source_path", "model_path", "iterations",
}  # fmt: skip


class StartModel(NamedTuple):
    """The model of --start_checkpoint."""

    gaussians: GaussianModel
    field: ReferringField | None  # of a 17-item checkpoint
    iteration: int


def load_start_model(path: Path) -> StartModel:
    """Load --start_checkpoint.

    Raises:
        UserError: if the file is missing, damaged or of an unknown format.
    """
    gaussians, tensors, iteration = load_start(path)
    return StartModel(gaussians, None if tensors is None else ReferringField.from_tensors(tensors, path), iteration)


def make_paths_absolute(model: ModelParams, training: TrainingParams, referring: ReferringParams) -> None:
    """Make paths absolute, so that config.json serves scripts that run in another folder."""
    assert model.source_path is not None
    model.source_path = model.source_path.absolute()
    if training.start_checkpoint:
        training.start_checkpoint = training.start_checkpoint.absolute()
    encoder = Path(referring.text_encoder).expanduser()
    if referring.text_encoder != EMBEDDED and encoder.is_dir():
        referring.text_encoder = str(encoder.absolute())


def require_same_flags(saved: dict[str, Any], flags: Flags) -> None:
    """Raise UserError if a flag that decides the result differs from the interrupted run's."""
    for group in flags:
        for name, value in vars(group).items():
            if name not in FREE_ON_RESUME and name in saved and saved[name] != value:
                raise UserError(
                    f"--resume with --{name} {value}, but the interrupted run used {saved[name]}. Leave the flag out, "
                    "or start another run in another folder with -m."
                )


def require_new_folder(folder: Path, training: TrainingParams) -> None:
    """Raise UserError if a new run would overwrite a model."""
    folders = [folder, stage_a(folder)] if training.two_stage else [folder]
    if any((each / RESUME_FILE).exists() or iterations(each, "referring") for each in folders):
        raise UserError(
            f"{folder} already holds a model of train.py. Go on with it by --resume, choose another folder with -m, "
            "or remove it."
        )
    if iterations(folder, "point_cloud") and not training.start_checkpoint:
        newest = point_cloud_path(folder, iterations(folder, "point_cloud")[-1])
        raise UserError(
            f"{folder} already holds Gaussians. Train the referring stage on them with --start_checkpoint {newest}, or "
            "choose another folder with -m."
        )


def require_masks(scene: Scene, mask_dir: str, mask_confidence: bool) -> None:
    """Raise UserError if no training view has a sentence and a mask that counts."""
    if not any(view.referrals for view in scene.train):
        raise UserError(
            f"{scene.path} has no training view with a sentence and a mask; the layout {scene.dataset} expects "
            f"{expected_mask_files(scene, mask_dir)}. Add them (`python -m scene.check -s {scene.path}` lists "
            "what is missing), or train colour only with --iterations 0."
        )
    if mask_confidence and not drop_untrusted_masks(scene.train):
        raise UserError(
            f"all masks in {scene.path / mask_dir} have confidence 0 (confidence.json). Correct that file, or let "
            "all masks count the same with --no-mask_confidence."
        )


def require_opaque_photos(scene: Scene) -> None:
    """Raise UserError if --random_background would differ from the background that transparent photos have."""
    found = next((view.image_path for view in scene.train if is_transparent(view.image_path)), None)
    if found:
        raise UserError(
            f"--random_background, but {found} is transparent: photos are laid over black (white with -w) on "
            "loading, and would not change with the background. Leave the flag out, or give opaque photos."
        )


def require_same_gaussians(folders: list[Path], start: StartModel) -> None:
    """Raise UserError if the start model would replace other Gaussians of the same iteration in a model folder."""
    for folder in folders:
        path = point_cloud_path(folder, start.iteration)
        if path.is_file() and not torch.equal(load_ply(path).xyz, start.gaussians.xyz):
            raise UserError(f"{path} holds other Gaussians than --start_checkpoint. Choose another folder with -m.")
