"""python -m pseudo_masks.consensus -s SCENE --start_checkpoint MODEL --out_dir DIR: masks that agree across views.

    python -m pseudo_masks.consensus -s data/ramen --start_checkpoint point_cloud.ply --out_dir gt_mask_3d
    python train.py -s data/ramen -m output/ramen --start_checkpoint point_cloud.ply --mask_dir gt_mask_3d

Masks made from single pictures are right in most views and wrong in some; a model of the scene tells which
(pseudo_masks/mask_votes.py). For every (training view, object) of the JSON files, the folder receives the given mask if
it agrees with the consensus of the views, else the rendered consensus, also where no mask was given; and nothing where
the object is hidden. Its `confidence.json` has a confidence for each mask (scene/layouts/mask_confidence.py).
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from arguments import ConsensusParams, PipelineParams, parse
from gaussian_renderer import ScoreRenderer
from pseudo_masks.mask_votes import MaskedView, Votes, vote
from scene.dataset import Scene, View
from scene.gaussian_model import GaussianModel
from scene.issues import first_five
from scene.layouts.mask_confidence import foreign_files, mask_hash, write_confidences
from scene.layouts.ref_lerf import load, mask_names
from scene.model_folder import config_has_antialiasing, load_start, model_file
from scene.readers.image_files import mask_at_size, read_mask
from training.photos import DeviceImages
from utils.device import choose_device, plan_bytes
from utils.errors import UserError, run
from utils.images import encode
from utils.metrics import iou
from utils.scripts import setup_logging

log = logging.getLogger("refersplat")

SPECK = 0.05  # parts of a mask that are smaller than this share of the largest are floaters


@dataclass(frozen=True)
class ObjectInView:
    """An object that a JSON file names in a training view."""

    view: View
    category: str
    files: list[str]  # paths of its mask relative to the mask folder, existing or not; several mean their union


@dataclass(frozen=True)
class ConsensusMask:
    """The result for one object in one view."""

    pair: ObjectInView
    source: str  # "kept" (the given mask), "consensus" (rendered), or "hidden" (no mask was written)
    agreement: float | None  # of the given mask with the other views, 0..1; None if no mask was given
    confidence: float  # of the written mask, 0..1; 0 if hidden


def main(argv: list[str] | None = None) -> None:
    setup_logging()
    find_consensus(*parse(__doc__.split("\n")[0], [ConsensusParams, PipelineParams], argv))


def find_consensus(flags: ConsensusParams, pipeline: PipelineParams) -> None:
    """Load a scene and its Gaussians, write the consensus masks, and print a summary."""
    if flags.source_path is None:
        raise UserError("-s is missing: give the scene folder, with images/, json/ and cameras in it.")
    if flags.start_checkpoint is None:
        raise UserError("--start_checkpoint is missing: give the Gaussians of the scene (.ply, .pth ...).")
    if flags.out_dir is None:
        raise UserError("--out_dir is missing: name the folder that receives the masks.")
    device = choose_device(pipeline.device)
    scene = load(flags.source_path, flags.images, flags.resolution, flags.mask_dir)
    gaussians = load_start(model_file(flags.start_checkpoint, -1))[0].to(device)
    gaussians.antialiasing |= config_has_antialiasing(flags.start_checkpoint)
    max_bytes = plan_bytes(pipeline.plan_memory, device)
    written = consensus(scene, gaussians, flags.mask_dir, flags.out_dir, flags.keep, flags.min_area, max_bytes)
    print(f"{summarize(written)}: {scene.path / flags.out_dir}")


def consensus(
    scene: Scene,
    gaussians: GaussianModel,
    mask_dir: str | Path,
    out_dir: str | Path,
    keep: float = ConsensusParams.keep,
    min_area: float = ConsensusParams.min_area,
    max_bytes: int = 2_000_000_000,
) -> list[ConsensusMask]:
    """Write masks that agree across the training views of a scene, and their confidences.

    The folder `out_dir` appears as a whole at the end. A scene loaded with a smaller picture size gives masks computed
    at that size, written at the size of the photos.

    Args:
        scene: of the Ref-LERF layout, loaded with any folder of masks.
        gaussians: the frozen model of the scene.
        mask_dir: the given masks, in the scene's folder or absolute.
        out_dir: the folder to write, in the scene's folder or absolute; an earlier result of this function is replaced.
        keep: IoU with the consensus from which a given mask is kept, 0..1.
        min_area: share of the picture below which an object counts as hidden.
        max_bytes: memory for raster plans (`utils.device.plan_bytes`).

    Returns:
        The result of each (training view, object) that the JSON files name.

    Raises:
        UserError: if there is no mask, a mask cannot be decoded, or `out_dir` holds something else.
    """
    source, target = scene.path / mask_dir, scene.path / out_dir
    _check_folders(source, target, scene.path)
    named = mask_names(scene.path, scene.train)
    pairs = [ObjectInView(v, name, files) for v in scene.train for name, files in named.get(v.id, {}).items()]
    views, columns = _masked_views(pairs, source, gaussians.device)
    if not views:
        raise UserError(f"no mask of a training view is in {source}. Name the folder of the masks with --mask_dir.")
    renderer = ScoreRenderer(gaussians, max_bytes)
    votes = renderer.plans.retry_after_eviction(lambda: vote(renderer, list(views.values()), len(columns)))
    agreement = dict(zip(views, votes.agreement.tolist(), strict=True))  # view id -> [K], NaN without a mask
    written: list[ConsensusMask] = []
    with _replaced(target) as folder:
        for members in tqdm(_by_view([p for p in pairs if p.category in columns]), desc="writing masks", unit="view"):
            chosen = [columns[pair.category] for pair in members]
            rendered = renderer.plans.retry_after_eviction(partial(_render, renderer, votes, members[0].view, chosen))
            for pair, column, picture in zip(members, chosen, rendered, strict=True):
                agreed = agreement[pair.view.id][column] if pair.view.id in agreement else np.nan
                agreed = None if np.isnan(agreed) else agreed
                written.append(_write(pair, picture, _photo_mask(pair, source), agreed, folder, keep, min_area))
        write_confidences(folder, _entries(written, folder))
    lost = sorted({pair.category for pair in pairs if pair.category not in columns})
    if lost:
        log.warning("objects without any mask, left out: %d (%s)", len(lost), ", ".join(lost[:5]))
    return written


def summarize(written: list[ConsensusMask]) -> str:
    """Return the number of masks of each source, in one line."""
    count = {kind: sum(w.source == kind for w in written) for kind in ("kept", "consensus", "hidden")}
    new = sum(w.source == "consensus" and w.agreement is None for w in written)
    return (
        f"{count['kept']} masks kept, {count['consensus'] - new} replaced, {new} added where there was none, "
        f"{count['hidden']} left out as the object is hidden"
    )


def _check_folders(source: Path, target: Path, scene: Path) -> None:
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; name the folder of the given masks with --mask_dir.")
    contains_source = target.resolve() in (source.resolve(), *source.resolve().parents, scene.resolve())
    if contains_source or source.resolve() in target.resolve().parents:
        raise UserError(f"--out_dir {target} would write over --mask_dir {source}. Name another folder.")
    refuse_other_files(target)


def refuse_other_files(target: Path) -> None:
    """Raise UserError if `target` holds anything that `consensus` did not write, or that was changed since."""
    if target.exists() and not target.is_dir():
        raise UserError(f"--out_dir {target} is a file. Name another folder, or remove it.")
    others = foreign_files(target)
    if others:
        raise UserError(
            f"--out_dir {target} would be replaced, but has files that were not written by pseudo_masks.consensus or "
            f"were changed since: {first_five(others)}. Name another folder, or remove it."
        )


def _by_view(pairs: list[ObjectInView]) -> list[list[ObjectInView]]:
    return [list(members) for _, members in groupby(pairs, key=lambda pair: pair.view.id)]


def _masked_views(
    pairs: list[ObjectInView], source: Path, device: torch.device
) -> tuple[dict[str, MaskedView], dict[str, int]]:
    """Return the views with masks by id, and the number of each object with masks."""
    cache, views = DeviceImages(device), {}
    present = [pair for pair in pairs if _camera_mask(pair, source).any()]
    columns = {name: number for number, name in enumerate(sorted({pair.category for pair in present}))}
    cache.prepare({(p.view.id, p.category): partial(_camera_mask, p, source) for p in present})
    for members in _by_view(present):
        ordered = sorted(members, key=lambda pair: columns[pair.category])

        def masks(ordered: list[ObjectInView] = ordered) -> Tensor:
            images = [cache.get((p.view.id, p.category), partial(_camera_mask, p, source)) for p in ordered]
            return torch.stack(images)

        view = ordered[0].view
        views[view.id] = MaskedView(view.camera, [columns[pair.category] for pair in ordered], masks)
    return views, columns


def _camera_mask(pair: ObjectInView, source: Path) -> np.ndarray:
    """Return the given mask as the camera sees it, bool [H, W]; [1, 1] and empty without a file."""
    masks = [pair.view.mask_at(source / name) for name in pair.files if os.path.isfile(source / name)]
    return np.logical_or.reduce(masks) if masks else np.zeros((1, 1), bool)


def _photo_mask(pair: ObjectInView, source: Path) -> np.ndarray | None:
    """Return the given mask at the size of the photo, bool [H, W]; None if it is missing or empty."""
    masks = [read_mask(source / name) for name in pair.files if os.path.isfile(source / name)]
    resized = [mask_at_size(mask.astype(np.uint8), pair.view.source_size) for mask in masks]
    return np.logical_or.reduce(resized) if any(mask.any() for mask in resized) else None


def _render(renderer: ScoreRenderer, votes: Votes, view: View, columns: list[int]) -> np.ndarray:
    """Render how surely each pixel belongs to some objects, [K, H, W] float32.

    0 at half of the object's threshold and below, 0.5 at the threshold, 1 at one and a half of it and above.
    """
    pictures = renderer.render_scores(view.camera, votes.votes[:, columns].contiguous())
    return pictures.div_(votes.thresholds[columns, None, None]).sub_(0.5).clamp_(0, 1).cpu().numpy()


def _write(
    pair: ObjectInView,
    certainty: np.ndarray,
    given: np.ndarray | None,
    agreement: float | None,
    folder: Path,
    keep: float,
    min_area: float,
) -> ConsensusMask:
    certainty = pair.view.as_photo(certainty)
    mask = without_specks(certainty > 0.5)
    if mask.mean() < max(min_area, 1 / mask.size):
        return ConsensusMask(pair, "hidden", agreement, 0.0)
    kept = False
    if given is not None and iou(given, mask) >= keep:
        mask, kept = given, True
    for name in pair.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(mask.astype(np.uint8) * 255, ".png"))
    return ConsensusMask(pair, "kept" if kept else "consensus", agreement, soft_iou(certainty, mask))


def without_specks(mask: np.ndarray) -> np.ndarray:
    """Return a mask, bool [H, W], without parts that are small against its largest one."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    areas = stats[:, cv2.CC_STAT_AREA]
    large = areas >= SPECK * areas[1:].max()
    large[0] = False  # the background
    return large[labels]


def soft_iou(certainty: np.ndarray, mask: np.ndarray) -> float:
    """Return the sum of minima over the sum of maxima of values in 0..1 and a bool mask, both [H, W]; 0..1."""
    inside = float(certainty[mask].sum())
    return inside / (float(mask.sum()) + float(certainty.sum()) - inside)


def _entries(written: list[ConsensusMask], folder: Path) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "confidence": round(w.confidence, 4),
            "source": w.source,
            "agreement": None if w.agreement is None else round(w.agreement, 4),
            "mask_sha256": mask_hash(folder / name),
        }
        for w in written
        if w.source != "hidden"
        for name in w.pair.files
    }


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """Yield a folder to write into, which replaces `target` at the end; on any failure `target` stays as it was."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}-", dir=target.parent, ignore_cleanup_errors=True
        ) as temporary:
            new, old = Path(temporary, "new"), Path(temporary, "old")
            new.mkdir()
            try:
                yield new
                if target.exists():
                    target.rename(old)
                new.rename(target)
            finally:
                if old.exists() and not target.exists():
                    old.rename(target)
    except OSError as error:
        raise UserError(
            f"could not write {target}: {error.strerror or error}. What was there before is untouched; free some "
            "space or name another folder with --out_dir."
        ) from error


if __name__ == "__main__":
    run(main)
