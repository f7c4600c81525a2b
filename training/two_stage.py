"""Two-stage optimisation (paper, Section 4): the folders and the flags of its two models.

MODEL/stage_a/           model A, a model folder like any other
MODEL/stage_a/masks/     A's masks in the training views, rendered by `inference.training_masks`; complete when
                         masks.json is there
MODEL/                   model B, trained on these masks and A's Gaussians
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from arguments import ModelParams, PipelineParams, ReferringParams, RGBParams, TrainingParams
from scene.model_folder import field_path, load_config, load_field, point_cloud_path, trained_with_antialiasing
from training.session import RESUME_FILE
from utils.errors import UserError
from utils.files import read_json

Flags = tuple[ModelParams, PipelineParams, TrainingParams, RGBParams, ReferringParams]


def model_folder(flags: Flags) -> Path:
    """Return the model folder of flags in which train.py has set it."""
    assert flags[0].model_path is not None
    return flags[0].model_path


def stage_a(folder: Path) -> Path:
    """Return the folder of model A inside that of model B."""
    return folder / "stage_a"


def masks_done(folder: Path) -> Path:
    """Return the file in the folder of model A that is written when its masks are complete."""
    return folder / "masks/masks.json"


def flags_a(flags: Flags) -> Flags:
    """Return the flags of model A; with --resume it continues only if it was interrupted itself.

    Raises:
        UserError: if there is nothing to train.
    """
    model, pipeline, training, rgb, referring = flags
    if not referring.iterations:
        raise UserError("--two_stage trains the referring stage twice, but --iterations is 0. Leave one of them out.")
    folder = stage_a(model_folder(flags))
    resume = training.resume and (folder / RESUME_FILE).is_file()
    rgb = replace(rgb)
    if resume:  # the start model decides on antialiasing, and is not loaded again
        rgb.antialiasing = trained_with_antialiasing(load_config(folder))
    training = replace(training, resume=resume, two_stage=False)
    return replace(model, model_path=folder), pipeline, training, rgb, referring


def flags_b(flags: Flags) -> tuple[Flags, Flags]:
    """Return the flags to train model B with, and those that its config.json keeps.

    Raises:
        UserError: if the masks of model A do not name its iteration.
    """
    model, pipeline, training, rgb, referring = flags
    first, masks = stage_a(model_folder(flags)), masks_done(stage_a(model_folder(flags)))
    content = read_json(masks, "the list of masks")
    iteration = content.get("iteration") if isinstance(content, dict) else None
    if not isinstance(iteration, int):
        raise UserError(f"{masks} does not name an iteration. Remove the file; --resume writes the masks again.")
    cloud = point_cloud_path(first, load_field(field_path(first, iteration))[1]["rgb_iteration"])
    rgb = replace(rgb, antialiasing=trained_with_antialiasing(load_config(first)))
    resume = training.resume and (model_folder(flags) / RESUME_FILE).is_file()
    on_masks = replace(model, mask_dir=str(masks.parent.absolute()))
    from_a = replace(training, resume=resume, start_checkpoint=cloud)
    return (on_masks, pipeline, from_a, rgb, referring), (model, pipeline, training, rgb, referring)
