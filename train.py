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

from arguments import ModelParams, PipelineParams, ReferringParams, RGBParams, TrainingParams, parse
from evaluation.rgb import background_color
from gaussian_renderer import ScoreRenderer
from inference.training_masks import write_training_masks
from referring.field import ReferringField
from referring.kernels.backend import Backend, choose_backend
from referring.text_encoder import EMBEDDED, TextEncoder
from scene.dataset import Scene
from scene.formats.ply import load_ply, save_ply
from scene.gaussian_model import GaussianModel
from scene.layouts.loader import load, wanted_for_training
from scene.model_folder import (
    check_scene,
    iterations,
    load_start,
    point_cloud_path,
    save_cameras,
    save_config,
    saved_flags,
)
from scene.readers.image_files import is_transparent
from training.initial import initial_gaussians
from training.referring import ReferringStage, drop_untrusted_masks
from training.rgb import RGBStage
from training.session import RESUME_FILE, Interrupted, Session, read_resume
from training.two_stage import Flags, flags_a, flags_b, masks_done, stage_a
from utils.device import choose_device, memory_budget, plan_bytes
from utils.errors import UserError, run
from utils.scripts import git_revision, setup_logging

log = logging.getLogger("refersplat")

Start = tuple[GaussianModel, ReferringField | None, int]  # the start model; None on resume
# Above it, plain PyTorch computes a sentence's graph again instead of keeping it: on the CPU, and share of a GPU.
GRAPH_BYTES, GRAPH_SHARE = 2 << 30, 0.25
GROUPS = [ModelParams, PipelineParams, TrainingParams, RGBParams, ReferringParams]
# what a resumed run may change: everything else decides the result
FREE_ON_RESUME = {
    "device", "deterministic", "plan_memory", "precision", "resume", "save_iterations", "test_iterations",
    "checkpoint_interval", "log_interval", "export_checkpoint", "source_path", "model_path", "iterations",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the flags say (those of this process if None); returns the exit code."""
    setup_logging()
    flags = parse(__doc__.split("\n")[0], GROUPS, argv, saved=flags_to_resume)
    model, pipeline, training, rgb, referring = flags
    if model.source_path is None:
        raise UserError("-s is missing: give the scene folder, with images/ and sparse/0/ in it.")
    make_absolute(model, training, referring)
    model.model_path = model.model_path or Path("output") / model.source_path.resolve().name
    refuse_to_overwrite(model.model_path, training)
    if training.resume:
        refuse_other_flags(model.model_path, flags)
    if training.two_stage:
        return train_two_stages(flags)
    return train_model(flags, [flags], model.model_path)


def train_two_stages(flags: Flags) -> int:
    """Train model A, render its masks, train model B on them; with --resume, what is done stays."""
    folder = flags[0].model_path
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
    """Train one model; returns the exit code.

    Args:
        flags: of the run; with --resume it goes on.
        configs: flags to save, each in its own model folder.
        named: the model folder that messages tell the user to go on with.
    """
    model, pipeline, training, rgb, referring = flags
    folder = model.model_path
    resumed = read_resume(folder) if training.resume else None
    device = choose_device(pipeline.device, training.deterministic)
    backend = choose_backend(device, referring.precision, memory_budget(device, GRAPH_SHARE, GRAPH_BYTES))
    scene = load(model)
    check_scene(folder, scene)
    has_sentences = any(view.referrals for view in scene.train)
    if referring.iterations and has_sentences and referring.mask_confidence and not drop_untrusted_masks(scene.train):
        raise UserError(
            f"all masks in {scene.path / model.mask_dir} have confidence 0 (confidence.json). Mend that file, or let "
            "all masks count the same with --no-mask_confidence."
        )
    if referring.iterations and not has_sentences:
        raise UserError(
            f"{scene.path} has no training view with a sentence and a mask; the layout {scene.dataset} expects "
            f"{wanted_for_training(scene, model.mask_dir)}. Add them (`python -m scene.check -s {scene.path}` lists "
            "what is missing), or train colour only with --iterations 0."
        )
    log.info("device: %s", device)
    start = None
    if training.start_checkpoint and not training.resume:
        gaussians, tensors, iteration = load_start(training.start_checkpoint)
        field = ReferringField.from_tensors(tensors, training.start_checkpoint) if tensors is not None else None
        start = gaussians, field, iteration
    if start:
        for config in configs:  # model B of two stages starts with them, too
            refuse_other_gaussians(config[0].model_path, start)
        if start[0].antialiasing and not rgb.antialiasing:
            log.info("the start model was trained with antialiasing; it goes on with it (--antialiasing)")
            rgb.antialiasing = True
    tokens = {}
    if referring.iterations:  # before the seed: whether tokens come from the cache must not change random numbers
        sentences = scene.sentences([*scene.train, *scene.test])
        tokens = TextEncoder(referring.text_encoder, device=device).encode(sentences)
    torch.manual_seed(training.seed)
    try:
        with Session(folder, training, resumed) as session:
            for config in configs:
                versions = {"torch": torch.__version__, "git_revision": git_revision()}
                save_config(config[0].model_path, list(config), versions)
            save_cameras(folder, scene)
            gaussians, rgb_iteration = rgb_stage(session, scene, device, flags, start, resumed)
            if referring.iterations:
                renderer = ScoreRenderer(gaussians, plan_bytes(pipeline.plan_memory, device))
                field = start_field(start, tokens, gaussians, referring.text_encoder, backend)
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


def next_step(folder: Path, scene: Scene, has_field: bool) -> str:
    """What to do with the model: eval.py where it has something to evaluate, else render.py where it has a field."""
    if any(view.referrals for view in scene.test) if has_field else scene.test:
        return f"Next: python eval.py -m {folder}"
    if has_field:
        reason, views = (
            ("no test view has a sentence and a mask", "") if scene.test else ("no test view", " --views train")
        )
        return f'Next ({reason}, so nothing to evaluate): python render.py -m {folder}{views} --text "..."'
    return "There is no test view to evaluate it on (--eval holds out every 8th)"


def rgb_stage(
    session: Session,
    scene: Scene,
    device: torch.device,
    flags: Flags,
    start: Start | None,
    resumed: dict[str, Any] | None,
) -> tuple[GaussianModel, int]:
    """The frozen Gaussians and their iteration: trained, taken from the start model, or read back on resume."""
    model, _, training, rgb, _ = flags
    folder = model.model_path
    if resumed and resumed["stage"] == "referring":
        iteration = resumed["state"]["rgb_iteration"]
        gaussians = load_ply(point_cloud_path(folder, iteration)).to(device)
        gaussians.antialiasing = rgb.antialiasing
        return gaussians, iteration
    if start:
        gaussians, _, iteration = start
        gaussians.antialiasing = rgb.antialiasing
        if rgb.cap_max is not None and len(gaussians) > rgb.cap_max:
            log.warning("--cap_max bounds the RGB stage only: the start model keeps its %d Gaussians", len(gaussians))
        if point_cloud_path(folder, iteration).resolve() != training.start_checkpoint.resolve():
            save_ply(point_cloud_path(folder, iteration), gaussians)
        return gaussians.to(device), iteration
    if not rgb.rgb_iterations:
        raise UserError("--rgb_iterations 0 leaves nothing to train on; give a 3DGS model with --start_checkpoint.")
    refuse_random_background(scene, rgb)
    gaussians = initial_gaussians(scene, rgb, model.sh_degree, training.seed, device)
    stage = RGBStage(folder, scene, gaussians, rgb, background_color(model), training.seed)
    session.run(stage, rgb.rgb_iterations)
    return stage.gaussians.to(device), rgb.rgb_iterations


def start_field(
    start: Start | None,
    tokens: dict[str, torch.Tensor],
    gaussians: GaussianModel,
    text_encoder: str,
    backend: Backend,
) -> ReferringField:
    """A new field, or that of a 17-item start checkpoint; a resumed stage fills it with its own state."""
    text_dim = next(iter(tokens.values())).shape[1]
    field = start[1] if start else None
    if field is not None and field.text_dim != text_dim:
        raise UserError(
            f"the start checkpoint was trained on text tokens of {field.text_dim} numbers, but --text_encoder "
            f"{text_encoder} gives {text_dim}. Name the encoder it was trained with."
        )
    field = field or ReferringField(len(gaussians), text_dim)
    field.backend = backend
    return field.to(gaussians.device)


def make_absolute(model: ModelParams, training: TrainingParams, referring: ReferringParams) -> None:
    """Make paths absolute, so that config.json serves scripts that run in another folder."""
    model.source_path = model.source_path.absolute()
    if training.start_checkpoint:
        training.start_checkpoint = training.start_checkpoint.absolute()
    encoder = Path(referring.text_encoder).expanduser()
    if referring.text_encoder != EMBEDDED and encoder.is_dir():
        referring.text_encoder = str(encoder.absolute())


def flags_to_resume(namespace: argparse.Namespace) -> dict[str, Any]:
    """With --resume, flags that are not given again are those of the run that was interrupted."""
    if not namespace.resume:
        return {}
    if namespace.model_path is None:
        raise UserError("--resume needs -m, the model folder of the interrupted run.")
    return {**saved_flags(namespace.model_path, GROUPS), "resume": True}


def refuse_other_flags(folder: Path, flags: tuple[Any, ...]) -> None:
    """Raise UserError if a flag that decides the result differs from the interrupted run's."""
    saved = saved_flags(folder, GROUPS)
    for group in flags:
        for name, value in vars(group).items():
            if name not in FREE_ON_RESUME and name in saved and saved[name] != value:
                raise UserError(
                    f"--resume with --{name} {value}, but the interrupted run used {saved[name]}. Leave the flag out, "
                    "or start another run in another folder with -m."
                )


def refuse_random_background(scene: Scene, rgb: RGBParams) -> None:
    """Raise UserError if photos would show one background and pictures another."""
    found = next((v.image_path for v in scene.train if rgb.random_background and is_transparent(v.image_path)), None)
    if found:
        raise UserError(
            f"--random_background, but {found} is transparent: photos are laid over black (white with -w) on "
            "loading, and would not change with the background. Leave the flag out, or give opaque photos."
        )


def refuse_to_overwrite(folder: Path, training: TrainingParams) -> None:
    """Raise UserError if a new run would write over a model that is there."""
    if training.resume:
        return
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


def refuse_other_gaussians(folder: Path, start: Start) -> None:
    """Raise UserError if the start model would replace other Gaussians of the same iteration in the model folder."""
    gaussians, _, iteration = start
    path = point_cloud_path(folder, iteration)
    if path.is_file() and not torch.equal(load_ply(path).xyz, gaussians.xyz):
        raise UserError(f"{path} holds other Gaussians than --start_checkpoint. Choose another folder with -m.")


if __name__ == "__main__":
    run(main)
