"""Export of selected Gaussians, and their 3D IoU with labels: render.py --export, --remove and --labels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arguments import SelectionParams
from inference.labels import label_gaussians, measure_overlap
from inference.predict import Opened
from inference.selection import Selection
from scene.formats.files import file_ending, save_gaussians
from scene.gaussian_model import GaussianModel
from utils.errors import UserError
from utils.files import write_json

log = logging.getLogger("refersplat")


def check_flags(params: SelectionParams, sentences: int, model_path: Path) -> None:
    """Raise UserError before the model is loaded if flags do not go together, or a path must not be written."""
    targets = [path for path in (params.export, params.remove) if path is not None]
    if params.labels is not None and not targets:
        raise UserError("--labels measures what --export or --remove writes; give one of them with a file name.")
    if params.labels is None and params.label:
        raise UserError("--label names an object of --labels; give the file of labels, too.")
    if targets and not sentences:
        raise UserError('--export and --remove take the Gaussians of a sentence; give it with --text "the red mug".')
    if params.labels is not None and len(params.label) != sentences and (params.label or sentences > 1):
        raise UserError(
            f"--label has {len(params.label)} labels for {sentences} sentences of --text; give one for each, in order."
        )
    if any(label < 0 for label in params.label):
        raise UserError(f"--label {min(params.label)} is below 0, which means unlabelled; give the object's label.")
    for path in targets:
        file_ending(path)
        if path.is_dir():
            raise UserError(f"{path} is a folder; give the name of a file to write.")
        in_model = (model_path / "point_cloud").resolve() in path.resolve().parents
        if in_model or (params.labels is not None and path.resolve() == params.labels.resolve()):
            raise UserError(f"{path} is an input of this program; give the name of another file to write.")
    if len(set(map(Path.resolve, targets))) < len(targets):
        raise UserError(f"--export and --remove both name {targets[0]}; give each a file of its own.")


def write_selections(opened: Opened, selections: dict[str, Selection], params: SelectionParams) -> None:
    """Write the files of --export and --remove, and beside the first a .selection.json that describes them.

    A sentence without Gaussians gets a warning instead of a file.

    Raises:
        UserError: if no sentence has a Gaussian, or --remove would leave none; then nothing is written.
    """
    gaussians = opened.predictor.gaussians
    found = [key for key, one in selections.items() if one.selected.any()]
    for missing in [one for key, one in selections.items() if key not in found]:
        log.warning(
            'no Gaussian exceeds --score_threshold %g for "%s" (highest probability %.3f): no file for it',
            *(params.score_threshold, missing.sentence, missing.highest),
        )
    if not found:
        raise UserError(
            f"none of the {len(gaussians)} Gaussians belongs to any sentence of --text; nothing is written. Say it in "
            "other words, lower --score_threshold, or leave out --smooth."
        )
    labels = None
    if params.labels is not None:
        labels = label_gaussians(params.labels, gaussians.get_xyz.cpu().numpy(), params.label_distance)
    removed = torch.stack([selections[key].selected for key in found]).any(dim=0)  # [N]
    if params.remove is not None and removed.all():
        raise UserError(f"--remove {params.remove} would be empty: the sentences have all {len(gaussians)} Gaussians.")
    entries = []
    for number, (key, (sentence, selected, _)) in enumerate(selections.items()):
        path = params.export if key in found else None
        if path is not None and len(selections) > 1:
            path = _with_ending(path, f"-{key.removeprefix('text-')}{file_ending(path)}")
        entry = _describe(gaussians, selected, sentence, path)
        print(f'{entry["gaussians"]} of {len(gaussians)} Gaussians: "{sentence}"')
        if labels is not None:
            label = params.label[number] if params.label else None
            entry["labels"] = _compare(selected, labels, label)
        if path is not None:
            _save(path, gaussians.subset(selected))
        entries.append(entry)
    if params.remove is not None:
        _save(params.remove, gaussians.subset(~removed))
    settings = {name: getattr(params, name) for name in ("choose", "score_threshold", "smooth", "smallest_part")}
    first = params.export or params.remove
    assert first is not None
    report = _with_ending(first, ".selection.json")  # no name that a model folder has
    origin = {"model": str(opened.trained.path), "iteration": opened.trained.iteration, "gaussians": len(gaussians)}
    removal = {"file": str(params.remove), "gaussians": int((~removed).sum())} if params.remove is not None else None
    write_json(report, {**origin, **settings, "sentences": entries, "without": removal})
    print(f"{report}: sizes, boxes" + (", 3D IoU" if labels is not None else ""))


def _with_ending(path: Path, ending: str) -> Path:
    return path.with_name(path.name[: -len(file_ending(path))] + ending)


def _describe(gaussians: GaussianModel, selected: Tensor, sentence: str, path: Path | None) -> dict[str, Any]:
    """Return number, median and bounding box of the selected centres, in world units."""
    file = None if path is None else str(path)
    entry: dict[str, Any] = {"sentence": sentence, "file": file, "gaussians": int(selected.sum())}
    if not entry["gaussians"]:
        return entry
    centres = gaussians.get_xyz[selected].double().cpu()
    box = [centres.amin(dim=0).tolist(), centres.amax(dim=0).tolist()]
    return {**entry, "centre": centres.median(dim=0).values.tolist(), "box": box}


def _compare(selected: Tensor, labels: np.ndarray, label: int | None) -> dict[str, Any]:
    """Print and return the overlap with a label."""
    found = measure_overlap(selected.cpu().numpy(), labels, label)
    if not found.labelled:
        log.warning("no Gaussian has label %s; its 3D IoU is 0", "above 0" if label is None else label)
    name = "labels above 0" if label is None else f"label {label}"
    aside = f"; {found.unlabelled} Gaussians without label do not count" if found.unlabelled else ""
    print(
        f"  3D IoU {found.iou:.4f} with {name} (precision {found.precision:.4f}, recall {found.recall:.4f}, "
        f"{found.labelled} Gaussians labelled{aside})"
    )
    return {"label": label, "iou": found.iou, "precision": found.precision, "recall": found.recall, **vars(found)}


def _save(path: Path, gaussians: GaussianModel) -> None:
    lost = save_gaussians(path, gaussians)
    print(f"  {path}: {len(gaussians)} Gaussians, {path.stat().st_size / 1e6:.2f} MB")
    for item in lost:
        print(f"  lost: {item}")
