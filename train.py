"""python train.py -s SCENE -m MODEL: train the RGB stage and the referring stage of one scene.

    python train.py -s data/ramen -m output/ramen                                            # both stages
    python train.py -s data/ramen -m output/ramen --start_checkpoint chkpnt30000.pth         # referring stage only
    python train.py -s data/ramen -m output/ramen --text_encoder embedded -r 2 --sentences_per_step all
    python train.py -s data/ramen -m output/ramen --two_stage                                # again on its own masks
    python train.py -m output/ramen --resume                                                 # after Ctrl-C

Ctrl-C and SIGTERM save and exit. The model folder is described in scene/model_folder.py.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arguments import ModelParams, PipelineParams, ReferringParams, RGBParams, TrainingParams, parse
from gaussian_renderer import ScoreRenderer, background_color
from inference.training_masks import write_training_masks
from referring.field import ReferringField
from referring.kernels.backend import choose_backend
from referring.text_encoder import TextEncoder
from scene.dataset import Scene
from scene.formats.ply import load_ply, save_ply
from scene.gaussian_model import GaussianModel
from scene.layouts.loader import load
from scene.model_folder import check_scene, point_cloud_path, save_cameras, save_config, saved_flags
from training.preflight import (
    StartModel,
    load_start_model,
    make_paths_absolute,
    require_masks,
    require_new_folder,
    require_opaque_photos,
    require_same_flags,
    require_same_gaussians,
)
from training.referring import ReferringStage
from training.rgb import RGBStage, initial_gaussians
from training.session import Interrupted, Session, read_resume
from training.two_stage import Flags, flags_a, flags_b, masks_done, model_folder, stage_a
from utils.device import choose_device, memory_budget, plan_bytes
from utils.errors import UserError, run
from utils.scripts import git_revision, setup_logging

log = logging.getLogger("refersplat")

# Above this size plain PyTorch recomputes a sentence's autograd graph: bytes on the CPU, share of a GPU's memory.
GRAPH_BYTES, GRAPH_SHARE = 2 << 30, 0.25
GROUPS = [ModelParams, PipelineParams, TrainingParams, RGBParams, ReferringParams]


def main(argv: Sequence[str] | None = None) -> int:
    """Train with the flags `argv` (those of this process if None); return the exit code."""
    setup_logging()
    flags = parse(__doc__.split("\n")[0], GROUPS, argv, saved=flags_to_resume)
    model, _, training, _, referring = flags
    if model.source_path is None:
        raise UserError("-s is missing: give the scene folder, with images/ and sparse/0/ in it.")
    make_paths_absolute(model, training, referring)
    folder = model.model_path = model.model_path or Path("output") / model.source_path.resolve().name
    if training.resume:
        require_same_flags(saved_flags(folder, GROUPS), flags)
    else:
        require_new_folder(folder, training)
    if training.two_stage:
        return train_two_stages(flags, folder)
    return train_model(flags, [flags], folder)


def flags_to_resume(namespace: argparse.Namespace) -> dict[str, Any]:
    """Return the interrupted run's flags as defaults for --resume."""
    if not namespace.resume:
        return {}
    if namespace.model_path is None:
        raise UserError("--resume needs -m, the model folder of the interrupted run.")
    return {**saved_flags(namespace.model_path, GROUPS), "resume": True}


def train_two_stages(flags: Flags, folder: Path) -> int:
    """Train model A, render its masks, train model B on them; with --resume, what is done stays."""
    first = flags_a(flags)
    if not masks_done(stage_a(folder)).is_file():
        log.info("two stages: model A in %s", stage_a(folder))
        if code := train_model(first, [first, flags], folder):
            return code
        write_training_masks(first)
    second, saved = flags_b(flags)
    log.info("two stages: model B in %s, on the masks in %s", folder, second[0].mask_dir)
    return train_model(second, [saved], folder)


def train_model(flags: Flags, configs: list[Flags], named: Path) -> int:
    """Train one model, the RGB stage and then the referring stage; return the exit code.

    Args:
        flags: of the run; with --resume it continues.
        configs: flags to save, each in its own model folder.
        named: the model folder that messages name for --resume.
    """
    model, pipeline, training, rgb, referring = flags
    folder = model_folder(flags)
    resumed = read_resume(folder) if training.resume else None
    device = choose_device(pipeline.device, training.deterministic)
    backend = choose_backend(device, referring.precision, memory_budget(device, GRAPH_SHARE, GRAPH_BYTES))
    scene = load(model)
    check_scene(folder, scene)
    if referring.iterations:
        require_masks(scene, model.mask_dir, referring.mask_confidence)
    log.info("device: %s", device)
    start = load_start_model(training.start_checkpoint) if training.start_checkpoint and not resumed else None
    if start:
        require_same_gaussians([model_folder(config) for config in configs], start)
        if start.gaussians.antialiasing and not rgb.antialiasing:
            log.info("the start model was trained with antialiasing; training continues with it (--antialiasing)")
            rgb.antialiasing = True
    tokens = {}
    if referring.iterations:  # before the seed: cached and new tokens must leave the same random numbers
        sentences = scene.sentences([*scene.train, *scene.test])
        tokens = TextEncoder(referring.text_encoder, device=device).encode(sentences)
    torch.manual_seed(training.seed)
    try:
        with Session(folder, training, resumed) as session:
            for config in configs:
                versions: dict[str, str | None] = {"torch": torch.__version__, "git_revision": git_revision()}
                save_config(model_folder(config), list(config), versions)
            save_cameras(folder, scene)
            gaussians, rgb_iteration = rgb_stage(session, scene, device, flags, start, resumed)
            if referring.iterations:
                field = new_field(start, tokens, len(gaussians), referring.text_encoder).to(device)
                field.backend = backend
                renderer = ScoreRenderer(gaussians, plan_bytes(pipeline.plan_memory, device))
                stage = ReferringStage(
                    folder, scene, gaussians, field, tokens, referring, renderer, training.seed, rgb_iteration,
                    training.export_checkpoint,
                )  # fmt: skip
                session.run(stage, referring.iterations)
                log.info("%s", renderer.plans)
    except Interrupted as interrupted:
        log.info("interrupted; saved. Go on with: python train.py -m %s --resume", named)
        return interrupted.code
    log.info("done; the model is in %s. %s", folder, next_step(folder, scene, bool(referring.iterations)))
    if device.type == "cuda":
        log.info("peak GPU memory %.2f GB", torch.cuda.max_memory_allocated() / 1e9)
    return 0


def rgb_stage(
    session: Session,
    scene: Scene,
    device: torch.device,
    flags: Flags,
    start: StartModel | None,
    resumed: dict[str, Any] | None,
) -> tuple[GaussianModel, int]:
    """Return the frozen Gaussians and their iteration: loaded on resume, from the start model, or trained."""
    model, _, training, rgb, _ = flags
    folder = model_folder(flags)
    if resumed and resumed["stage"] == "referring":
        iteration = resumed["state"]["rgb_iteration"]
        gaussians = load_ply(point_cloud_path(folder, iteration)).to(device)
        gaussians.antialiasing = rgb.antialiasing
        return gaussians, iteration
    if start:
        assert training.start_checkpoint is not None
        gaussians, iteration = start.gaussians, start.iteration
        gaussians.antialiasing = rgb.antialiasing
        if rgb.cap_max is not None and len(gaussians) > rgb.cap_max:
            log.warning("--cap_max bounds the RGB stage only: the start model keeps its %d Gaussians", len(gaussians))
        if point_cloud_path(folder, iteration).resolve() != training.start_checkpoint.resolve():
            save_ply(point_cloud_path(folder, iteration), gaussians)
        return gaussians.to(device), iteration
    if not rgb.rgb_iterations:
        raise UserError("--rgb_iterations 0 leaves nothing to train on; give a 3DGS model with --start_checkpoint.")
    if rgb.random_background:
        require_opaque_photos(scene)
    gaussians = initial_gaussians(scene, rgb, model.sh_degree, training.seed, device)
    stage = RGBStage(folder, scene, gaussians, rgb, background_color(model), training.seed)
    session.run(stage, rgb.rgb_iterations)
    return stage.gaussians.to(device), rgb.rgb_iterations


def new_field(start: StartModel | None, tokens: dict[str, Tensor], count: int, text_encoder: str) -> ReferringField:
    """Return a new field for `count` Gaussians, or that of the start model; --resume then loads its own state."""
    text_dim = next(iter(tokens.values())).shape[1]
    if start is None or start.field is None:
        return ReferringField(count, text_dim)
    if start.field.text_dim != text_dim:
        raise UserError(
            f"the start checkpoint was trained on text tokens of {start.field.text_dim} numbers, but --text_encoder "
            f"{text_encoder} gives {text_dim}. Name the encoder it was trained with."
        )
    return start.field


def next_step(folder: Path, scene: Scene, has_field: bool) -> str:
    """Return advice for the user: eval.py if there is something to evaluate, else render.py if there is a field."""
    if any(view.referrals for view in scene.test) if has_field else scene.test:
        return f"Next: python eval.py -m {folder}"
    if has_field:
        reason, views = (
            ("no test view has a sentence and a mask", "") if scene.test else ("no test view", " --views train")
        )
        return f'Next ({reason}, so nothing to evaluate): python render.py -m {folder}{views} --text "..."'
    return "There is no test view to evaluate it on (--eval holds out every 8th)"


if __name__ == "__main__":
    run(main)
