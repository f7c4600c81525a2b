"""Evaluation of the RGB stage, `eval.py --rgb`: PSNR and SSIM on the test views, and renderings beside photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from arguments import ModelParams, PipelineParams, RGBParams
from gaussian_renderer import background_color, render_uint8
from scene.issues import first_five
from scene.layouts.ignore_masks import find_ignore_masks
from scene.layouts.loader import load
from scene.model_folder import check_scene, iterations, load_colour, saved_flags
from training.photos import Photos, mean_scores, score_views
from utils.colour_metrics import ColourScores
from utils.device import choose_device
from utils.errors import UserError
from utils.files import write_json
from utils.images import write_image
from utils.scripts import git_revision


def has_rgb_only(folder: Path) -> bool:
    """Return whether a model folder holds Gaussians, but no referring field."""
    has_field = iterations(folder, "referring") or any(folder.glob("chkpnt*.pth"))
    return bool(iterations(folder, "point_cloud")) and not has_field


def evaluate_rgb(model: ModelParams, pipeline: PipelineParams, iteration: int) -> None:
    """Write rgb_results.json and test/iteration_N/rgb/<view id>.png (rendering beside photo), and print a table.

    Raises:
        UserError: if the model or its scene is missing or damaged, or no pixel of a test view counts.
    """
    if model.source_path is None:
        raise UserError(f"{model.model_path} does not say which scene it was trained on; give it with -s.")
    assert model.model_path is not None  # `saved_model_flags` requires it
    folder, device = model.model_path, choose_device(pipeline.device)
    gaussians, chosen = load_colour(folder, iteration)
    gaussians = gaussians.to(device)
    scene = load(model)
    check_scene(folder, scene)
    if not scene.test:
        raise UserError(f"{scene.path} has no test view (split: {scene.split_rule}); train with --eval.")
    flags = RGBParams(**saved_flags(folder, [RGBParams]))
    photos = Photos(device, find_ignore_masks(flags.ignore_mask_dir, scene))
    background = background_color(model)
    scores = score_views(scene.test, gaussians, background, photos)
    ignored = [view for view, score in scores.items() if score is None]
    if len(ignored) == len(scores):
        raise UserError(f"--ignore_mask_dir {flags.ignore_mask_dir} of the training leaves no pixel of any test view.")
    pictures = folder / "test" / f"iteration_{chosen}" / "rgb"
    for view in scene.test:
        rendering = render_uint8(view.camera, gaussians, background)
        write_image(pictures / f"{view.id}.png", np.concatenate([rendering, view.image()], axis=1))
    masks = f"; white pixels of the masks in {flags.ignore_mask_dir} do not count" if flags.ignore_mask_dir else ""
    results = {
        "scene": scene.name,
        "protocol": f"test views: {scene.split_rule}; means over views; no exposure is fitted to test views{masks}",
        "iteration": chosen,
        "gaussians": len(gaussians),
        **mean_scores(scores),
        "views": {view: score and score._asdict() for view, score in scores.items()},
        "ignored_views": ignored,
        "git_revision": git_revision(),
    }
    write_json(folder / "rgb_results.json", results)
    print(format_table(scores))
    if ignored:
        print(f"ignored as a whole, out of the means: {first_five(ignored)}")
    print(f"\n{len(gaussians):,} Gaussians of iteration {chosen}; rgb_results.json and {pictures} written.")


def format_table(scores: dict[str, ColourScores | None]) -> str:
    """Format a line for each view, then the mean."""
    width = max(len("all views"), *map(len, scores))
    rows = {**scores, "all views": ColourScores(**mean_scores(scores))}
    numbers = {view: f"{s.psnr:6.2f}  {s.ssim:6.4f}" if s else "ignored" for view, s in rows.items()}
    return "\n".join([f"{'view':{width}}    PSNR    SSIM", *(f"{view:{width}}  {n}" for view, n in numbers.items())])
