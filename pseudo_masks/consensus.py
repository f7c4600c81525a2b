"""python -m pseudo_masks.consensus -s SCENE --start_checkpoint MODEL --out_dir DIR: masks that the views agree on.

    python -m pseudo_masks.consensus -s data/ramen --start_checkpoint point_cloud.ply --out_dir gt_mask_3d
    python train.py -s data/ramen -m output/ramen --start_checkpoint point_cloud.ply --mask_dir gt_mask_3d

Masks of one object that single pictures gave are right in most views and wrong in some. Gaussians tell which: see
pseudo_masks/mask_votes.py. For every (training view, object) of the JSON files the folder receives the mask that
came in, where it agrees with what the views agree on; else that, rendered, also where there was no mask; and nothing
where the object is hidden. `confidence.json` in it holds a confidence for each (scene/layouts/mask_confidence.py).
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from arguments import ConsensusParams, PipelineParams, parse
from gaussian_renderer import ScoreRenderer
from pseudo_masks.mask_votes import MaskedView, Votes, agree
from scene.dataset import Scene, View, first_five
from scene.gaussian_model import GaussianModel
from scene.layouts.mask_confidence import foreign_files, mask_hash, write_confidences
from scene.layouts.ref_lerf import load, mask_names
from scene.model_folder import load_start, model_file, says_antialiasing
from scene.readers.image_files import mask_at_size, read_mask
from training.uploads import Uploads
from utils.device import choose_device, plan_bytes
from utils.errors import UserError, run
from utils.images import encode
from utils.log import setup_logging
from utils.metrics import iou

log = logging.getLogger("refersplat")

SPECK = 0.05  # parts of a mask that are smaller than this share of the largest are floaters


@dataclass(frozen=True)
class Named:
    """An object in a training view, as a JSON file names it.

    Attributes:
        view: the view.
        category: the object.
        files: where its mask is or should be, relative to the folder of the masks; several mean their union.
    """

    view: View
    category: str
    files: list[str]


@dataclass(frozen=True)
class Written:
    """What became of one (view, object).

    Attributes:
        named: the pair.
        source: "kept", "consensus" (rendered, another mask was there or none), or "hidden" (no mask was written).
        agreement: 0..1, of the mask that came in with what other views say; None if there was none.
        confidence: 0..1, of the mask written; 0 if there is none.
    """

    named: Named
    source: str
    agreement: float | None
    confidence: float


def consensus(
    scene: Scene,
    gaussians: GaussianModel,
    mask_dir: str | Path,
    out_dir: str | Path,
    keep: float = ConsensusParams.keep,
    min_area: float = ConsensusParams.min_area,
    max_bytes: int = 2_000_000_000,
) -> list[Written]:
    """Write the masks that the views of a scene agree on, and their confidences.

    Only masks of training views are read; the folder `out_dir` appears as a whole at the end. A scene loaded with a
    smaller picture size gives masks found at that size, written at the size of the photos.

    Args:
        scene: of the Ref-LERF layout (`scene.layouts.ref_lerf.load`), loaded with any folder of masks.
        gaussians: the frozen model of the scene, on the device to work on.
        mask_dir: the masks to look at, in the scene's folder or absolute.
        out_dir: the folder to write, in the scene's folder or absolute; an earlier result of this function is replaced.
        keep: IoU with the consensus from which a mask that came in stays as it is, 0..1.
        min_area: share of the picture below which an object counts as hidden.
        max_bytes: memory for sorted splats (`utils.device.plan_bytes`).

    Returns:
        What became of each (training view, object) that the JSON files name.

    Raises:
        UserError: if there is no mask to look at, a mask cannot be decoded, or `out_dir` holds something else.
    """
    source, target = scene.path / mask_dir, scene.path / out_dir
    _refuse_target(source, target, scene.path)
    pairs = _pairs(scene)
    views, categories = _masked_views(pairs, source, gaussians.device)
    if not views:
        raise UserError(f"no mask of a training view is in {source}. Name the folder of the masks with --mask_dir.")
    renderer = ScoreRenderer(gaussians, max_bytes)
    rows = {name: row for row, name in enumerate(views)}
    found = renderer.plans.giving_way(lambda: agree(renderer, list(views.values()), len(categories)))
    agreement = found.agreement.cpu().numpy()
    written: list[Written] = []
    with _replaced(target) as folder:
        for of_view in tqdm(_by_view(pairs), desc="writing masks", unit="view"):
            named = [pair for pair in of_view if pair.category in categories]
            numbers = [categories[pair.category] for pair in named]
            if not named:
                continue
            votes = renderer.plans.giving_way(partial(_rendered, renderer, found, named[0].view, numbers))
            for pair, number, picture in zip(named, numbers, votes, strict=True):
                given = _given(pair, source)
                agreed = float(agreement[rows[pair.view.id], number]) if pair.view.id in rows else np.nan
                written.append(
                    _write(pair, picture, given, None if np.isnan(agreed) else agreed, folder, keep, min_area)
                )
        write_confidences(folder, _entries(written, folder))
    lost = [pair for pair in pairs if pair.category not in categories]
    if lost:
        names = sorted({pair.category for pair in lost})
        log.warning("objects without any mask, left out: %d (%s)", len(names), ", ".join(names[:5]))
    return written


def summary(written: list[Written]) -> str:
    """What became of the masks, in one line."""
    count = {kind: sum(w.source == kind for w in written) for kind in ("kept", "consensus", "hidden")}
    new = sum(w.source == "consensus" and w.agreement is None for w in written)
    return (
        f"{count['kept']} masks kept, {count['consensus'] - new} replaced, {new} added where there was none, "
        f"{count['hidden']} left out as the object is hidden"
    )


def _refuse_target(source: Path, target: Path, scene: Path) -> None:
    """Raise UserError if `target` holds, or would hide, anything but an earlier result."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; name the folder of the masks to look at with --mask_dir.")
    inside = target.resolve() in (source.resolve(), *source.resolve().parents, scene.resolve())
    if inside or source.resolve() in target.resolve().parents:
        raise UserError(f"--out_dir {target} would write over --mask_dir {source}. Name another folder.")
    refuse_other_files(target)


def refuse_other_files(target: Path) -> None:
    """Raise UserError if `target`, which is to be replaced, holds anything that `consensus` did not write.

    Masks that somebody mended since, or added, count as such.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"--out_dir {target} is a file. Name another folder, or remove it.")
    others = foreign_files(target)
    if others:
        raise UserError(
            f"--out_dir {target} would be replaced, but has files that were not written by pseudo_masks.consensus or "
            f"were changed since: {first_five(others)}. Name another folder, or remove it."
        )


def _pairs(scene: Scene) -> list[Named]:
    """Every (training view, object) that the JSON files name, in the order of the views."""
    named = mask_names(scene.path, scene.train)
    return [Named(v, category, files) for v in scene.train for category, files in named.get(v.id, {}).items()]


def _by_view(pairs: list[Named]) -> list[list[Named]]:
    groups: dict[str, list[Named]] = {}
    for pair in pairs:
        groups.setdefault(pair.view.id, []).append(pair)
    return list(groups.values())


def _masked_views(
    pairs: list[Named], source: Path, device: torch.device
) -> tuple[dict[str, MaskedView], dict[str, int]]:
    """The views that have masks, by id, and the number of each object that has one."""
    uploads, views = Uploads(device), {}
    present = [pair for pair in pairs if (mask := _seen(pair, source)) is not None and mask.any()]
    categories = {name: number for number, name in enumerate(sorted({pair.category for pair in present}))}
    uploads.prepare({(p.view.id, p.category): partial(_seen, p, source) for p in present})
    for of_view in _by_view(present):
        ordered = sorted(of_view, key=lambda pair: categories[pair.category])

        def masks(ordered: list[Named] = ordered) -> Tensor:
            return torch.stack([uploads.get((p.view.id, p.category), partial(_seen, p, source)) for p in ordered])

        view = ordered[0].view
        views[view.id] = MaskedView(view.camera, [categories[pair.category] for pair in ordered], masks)
    return views, categories


def _seen(pair: Named, source: Path) -> np.ndarray | None:
    """The pair's mask as the camera sees it, bool [H, W]; None if there is no file."""
    paths = [source / name for name in pair.files if os.path.isfile(source / name)]
    return np.logical_or.reduce([pair.view.mask_at(path) for path in paths]) if paths else None


def _given(pair: Named, source: Path) -> np.ndarray | None:
    """The pair's mask as its files have it, bool [H, W] of the size of the photo; None if there is nothing in it."""
    paths = [source / name for name in pair.files if os.path.isfile(source / name)]
    masks = [read_mask(path).astype(np.uint8) for path in paths]
    resized = [mask_at_size(mask, pair.view.source_size) for mask in masks]
    union = np.logical_or.reduce(resized) if resized else np.zeros(1, bool)
    return union if union.any() else None


def _rendered(renderer: ScoreRenderer, found: Votes, view: View, numbers: list[int]) -> np.ndarray:
    """How surely each pixel belongs to some objects, [K, H, W] float32: 0 at half of the threshold and below, 0.5 at
    the threshold, 1 at one and a half of it and above."""
    picture = renderer.render_scores(view.camera, found.votes[:, numbers].contiguous())
    return picture.div_(found.thresholds[numbers, None, None]).sub_(0.5).clamp_(0, 1).cpu().numpy()


def _write(
    pair: Named,
    votes: np.ndarray,
    given: np.ndarray | None,
    agreement: float | None,
    folder: Path,
    keep: float,
    min_area: float,
) -> Written:
    """Choose or make the mask of a pair, and write it."""
    votes = pair.view.as_photo(votes)
    mask = without_specks(votes > 0.5)
    if mask.mean() < max(min_area, 1 / mask.size):
        return Written(pair, "hidden", agreement, 0.0)
    kept = given is not None and iou(given, mask) >= keep
    mask = given if kept else mask
    for name in pair.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(mask.astype(np.uint8) * 255, ".png"))
    return Written(pair, "kept" if kept else "consensus", agreement, soft_iou(votes, mask))


def without_specks(mask: np.ndarray) -> np.ndarray:
    """The mask [H, W] bool without parts that are small against its largest one."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    areas = stats[:, cv2.CC_STAT_AREA]
    large = areas >= SPECK * areas[1:].max()
    large[0] = False  # the background
    return large[labels]


def soft_iou(votes: np.ndarray, mask: np.ndarray) -> float:
    """Sum of minima over sum of maxima of votes in 0..1 and a bool mask, [H, W] both; 0..1."""
    inside = float(votes[mask].sum())
    return inside / (float(mask.sum()) + float(votes.sum()) - inside)


def _entries(written: list[Written], folder: Path) -> dict[str, dict[str, Any]]:
    """The content of confidence.json."""
    return {
        name: {
            "confidence": round(w.confidence, 4),
            "source": w.source,
            "agreement": None if w.agreement is None else round(w.agreement, 4),
            "mask_sha256": mask_hash(folder / name),
        }
        for w in written
        if w.source != "hidden"
        for name in w.named.files
    }


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` in the end; until then, and on any failure, `target` stays."""
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        yield new
        if target.exists():
            target.rename(old)
        new.rename(target)
    except OSError as error:
        raise UserError(
            f"could not write {target}: {error.strerror or error}. What was there before is untouched; free some "
            "space or name another folder with --out_dir."
        ) from error
    finally:
        if temporary is not None:
            if (temporary / "old").exists() and not target.exists():
                (temporary / "old").rename(target)
            shutil.rmtree(temporary, ignore_errors=True)


def main(argv: list[str] | None = None) -> None:
    """Find the consensus of one scene."""
    setup_logging()
    flags, pipeline = parse(__doc__.split("\n")[0], [ConsensusParams, PipelineParams], argv)
    for name, what in (
        ("source_path", "-s is missing: give the scene folder, with images/, json/ and cameras in it"),
        ("start_checkpoint", "--start_checkpoint is missing: give the Gaussians of the scene (.ply, .pth ...)"),
        ("out_dir", "--out_dir is missing: name the folder that receives the masks"),
    ):
        if getattr(flags, name) is None:
            raise UserError(f"{what}.")
    find_consensus(flags, pipeline)


def find_consensus(flags: ConsensusParams, pipeline: PipelineParams) -> None:
    """Load a scene and its Gaussians, write the masks that the views agree on, and print what became of them."""
    device = choose_device(pipeline.device)
    scene = load(flags.source_path, flags.images, flags.resolution, flags.mask_dir)
    gaussians = load_start(model_file(flags.start_checkpoint, -1))[0]
    gaussians.antialiasing |= says_antialiasing(flags.start_checkpoint)
    max_bytes = plan_bytes(pipeline.plan_memory, device)
    written = consensus(
        scene, gaussians.to(device), flags.mask_dir, flags.out_dir, flags.keep, flags.min_area, max_bytes
    )
    print(f"{summary(written)}: {scene.path / flags.out_dir}")


if __name__ == "__main__":
    run(main)
