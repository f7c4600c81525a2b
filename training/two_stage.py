"""Two-stage optimisation (paper, Section 4): the masks of a trained model, in the training views, for a second model.

MODEL/stage_a/           model A, a model folder like any other
MODEL/stage_a/masks/     A's masks in the training views, by the names of the given ones, and the true masks of test
                         views, if the given folder has them; complete when masks.json is there
MODEL/                   model B, trained on these

A predicts a mask a sentence, but masks belong to objects: the probabilities of an object's sentences are averaged.
Where A sees nothing of an object, the mask that A was trained on stays, with its confidence; one of confidence 0 goes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from arguments import ModelParams, PipelineParams, ReferringParams, RGBParams, TrainingParams
from inference.predict import Predictor
from inference.trained_model import load_trained
from referring.kernels.backend import choose_backend
from referring.text_encoder import TextEncoder
from scene.dataset import Referral, View, first_five
from scene.layouts.loader import load
from scene.layouts.mask_confidence import write_confidences
from scene.model_folder import (
    field_path,
    load_config,
    load_field,
    point_cloud_path,
    trained_with_antialiasing,
)
from training.session import RESUME_FILE
from utils.device import choose_device, plan_bytes
from utils.errors import UserError
from utils.files import read_json, write_bytes, write_json
from utils.images import encode

log = logging.getLogger("refersplat")

Flags = tuple[ModelParams, PipelineParams, TrainingParams, RGBParams, ReferringParams]

STAGE_A, MASKS, DONE = "stage_a", "masks", "masks.json"
THRESHOLD = 0.5  # of the mean probability, as render.py has it by default


def stage_a(folder: Path) -> Path:
    """The folder of model A in that of model B."""
    return folder / STAGE_A


def train_twice(flags: Flags, train: Callable[[Flags, list[Flags], Path], int]) -> int:
    """Train model A, write its masks, train model B; returns the exit code. With --resume, what is done stays.

    Args:
        flags: of the run, with --two_stage.
        train: trains one model: flags, flags to save, and the model folder that messages name.

    Raises:
        UserError: if there is nothing to train.
    """
    model, pipeline, training, rgb, referring = flags
    folder, first = model.model_path, stage_a(model.model_path)
    if not referring.iterations:
        raise UserError("--two_stage trains the referring stage twice, but --iterations is 0. Leave one of them out.")
    masks = first / MASKS
    if not (masks / DONE).is_file():
        log.info("two stages: model A in %s", first)
        goes_on = training.resume and (first / RESUME_FILE).is_file()
        flags_a = _with(flags, first, resume=goes_on, two_stage=False)
        if goes_on:  # the start model decided on it, which is not read again
            flags_a[3].antialiasing = trained_with_antialiasing(load_config(first))
        if code := train(flags_a, [flags_a, flags], folder):
            return code
        write_masks(flags_a)
    iteration = _iteration_of(masks)
    cloud = point_cloud_path(first, load_field(field_path(first, iteration))[1]["rgb_iteration"])
    log.info("two stages: model B in %s, on the masks in %s", folder, masks)
    rgb_b = replace(rgb, antialiasing=trained_with_antialiasing(load_config(first)))
    flags_b = _with(flags, folder, resume=training.resume and (folder / RESUME_FILE).is_file(), start_checkpoint=cloud)
    flags_b = replace(model, mask_dir=str(masks.absolute())), pipeline, flags_b[2], rgb_b, referring
    return train(flags_b, [(model, pipeline, training, rgb_b, referring)], folder)


def _with(flags: Flags, folder: Path, **training: Any) -> Flags:
    """Copies of the flags, for a model in `folder` and with other flags of the run."""
    model, pipeline, of_run, rgb, referring = flags
    return replace(model, model_path=folder), pipeline, replace(of_run, **training), replace(rgb), referring


def _iteration_of(masks: Path) -> int:
    """The iteration of model A whose masks these are."""
    content = read_json(masks / DONE, "the list of masks")
    iteration = content.get("iteration") if isinstance(content, dict) else None
    if not isinstance(iteration, int):
        raise UserError(f"{masks / DONE} does not name an iteration. Remove the file; --resume writes the masks again.")
    return iteration


@torch.no_grad()
def write_masks(flags: Flags) -> None:
    """Render the masks of a trained model in its training views, into the folder `masks` of its model folder.

    Args:
        flags: that it was trained with.
    """
    model, pipeline, training, _, referring = flags
    device = choose_device(pipeline.device, training.deterministic)
    scene = load(model)
    trained = load_trained(model.model_path, device=device)
    trained.field.backend = choose_backend(device)

    def tokens_of(sentences: list[str]) -> dict[str, torch.Tensor]:
        return TextEncoder(referring.text_encoder, device=device).encode(sentences)

    max_bytes = plan_bytes(pipeline.plan_memory, device)
    predictor = Predictor(trained.gaussians, trained.field, tokens_of, THRESHOLD, max_bytes)
    views = [view for view in scene.train if view.referrals]
    target, given = model.model_path / MASKS, scene.path / model.mask_dir
    kept: dict[str, float] = {}  # confidences of given masks that stay
    lost = 0
    for view in tqdm(views, desc="masks of stage A", unit="view"):
        sentences = list(dict.fromkeys(r.sentence for r in view.referrals))
        probabilities = dict(zip(sentences, predictor.probabilities(view.camera, sentences, once=True), strict=True))
        for path, referrals in _by_mask(view).items():
            mean = torch.stack([probabilities[r.sentence] for r in referrals]).mean(dim=0).numpy()
            mask = view.as_photo(mean) > THRESHOLD
            name = Path(os.path.relpath(path, given))
            if not mask.any():
                confidence = referrals[0].confidence
                if referring.mask_confidence and not confidence:
                    lost += 1
                    continue
                kept[name.as_posix()] = confidence
                mask = view.as_photo(view.mask_at(path)) > THRESHOLD
            # The name may end otherwise: a lossy format would blur the border.
            write_bytes(target / name, encode(mask.astype(np.uint8) * 255, ".png"))
    for path in {r.mask_path for view in scene.test for r in view.referrals}:
        if path.is_relative_to(given):  # the true masks of test views may be nowhere else
            write_bytes(target / path.relative_to(given), path.read_bytes())
    if kept:
        log.warning("model A sees nothing in %d of its masks; the given ones stay (%s)", len(kept), first_five([*kept]))
    if lost:
        log.warning("masks of confidence 0 in which model A sees nothing, left out: %d", lost)
    if any(confidence < 1 for confidence in kept.values()):
        write_confidences(target, {name: {"confidence": confidence} for name, confidence in kept.items()})
    write_json(target / DONE, {"iteration": trained.iteration, "given": [*kept]})


def _by_mask(view: View) -> dict[Path, list[Referral]]:
    groups: dict[Path, list[Referral]] = {}
    for referral in view.referrals:
        groups.setdefault(referral.mask_path, []).append(referral)
    return groups
