"""The model folder that training writes and rendering reads.

config.json                                all flags of the run, versions
cameras.json                               the scene's cameras, as 3DGS writes them, with cx and cy
point_cloud/iteration_N/point_cloud.ply    Gaussians after N steps of the RGB stage
referring/iteration_N.safetensors          referring field after N steps of the referring stage
resume.pth                                 state that --resume continues from
stage_a/                                   with --two_stage: model folder of the first model, and its masks
log.jsonl, events.out.tfevents.*           training curves
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scene.checkpoints import load_checkpoint
from scene.dataset import Scene
from scene.formats.files import load_gaussians
from scene.formats.ply import load_ply
from scene.gaussian_model import GaussianModel
from utils.errors import UserError
from utils.files import atomic_path, read_json, write_json

POSE_TOLERANCE = 1e-3  # relative to the distance of the camera from the origin


def save_config(folder: Path, groups: list[Any], versions: dict[str, str | None]) -> None:
    """Write config.json from flag groups (dataclass instances)."""
    content = {type(group).__name__: asdict(group) for group in groups}
    write_json(folder / "config.json", json.loads(json.dumps({**content, "versions": versions}, default=str)))


def load_config(folder: Path) -> dict[str, dict[str, Any]]:
    """Read config.json, or cfg_args of 3DGS, as {group: {flag: value}}. Raises UserError if missing or damaged."""
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json", "the model's config")
        if isinstance(config, dict) and all(isinstance(group, dict) for group in config.values()):
            return config
        raise UserError(f"{folder / 'config.json'} is not a config of this project: expected groups of flags.")
    if (folder / "cfg_args").is_file():
        return {"ModelParams": _read_cfg_args(folder / "cfg_args")}
    raise UserError(
        f"{folder} is not a model folder: it has no config.json (nor cfg_args of 3DGS). "
        "Give the folder that train.py wrote with -m."
    )


def saved_flags(folder: Path, groups: list[type]) -> dict[str, Any]:
    """Return the flags of an earlier run by name, for `arguments.parse(saved=...)`; paths become `Path` again."""
    config, flags = load_config(folder), {}
    for group in groups:
        for field in fields(group):
            if field.name in config.get(group.__name__, {}):
                value = config[group.__name__][field.name]
                flags[field.name] = Path(value) if "Path" in str(field.type) and value is not None else value
    return flags


def _read_cfg_args(path: Path) -> dict[str, Any]:
    """Parse 3DGS's cfg_args, a printed Namespace, as literals; nothing is evaluated."""
    try:
        call = ast.parse(path.read_text(encoding="utf-8").strip(), mode="eval").body
        if not isinstance(call, ast.Call):
            raise ValueError("not a Namespace(...)")
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as 3DGS's cfg_args: {error}.") from None


def save_cameras(folder: Path, scene: Scene) -> None:
    """Write cameras.json as 3DGS does, with the principal point and the split of each view added."""
    views = [*((view, "train") for view in scene.train), *((view, "test") for view in scene.test)]
    entries = [
        {
            "id": index,
            "img_name": camera.name,
            "width": camera.width,
            "height": camera.height,
            "position": camera.center.tolist(),
            "rotation": camera.rotation.T.tolist(),
            "fy": camera.fy,
            "fx": camera.fx,
            "cx": camera.cx,
            "cy": camera.cy,
            "split": split,
        }
        for index, (camera, split) in enumerate((view.camera, split) for view, split in views)
    ]
    write_json(folder / "cameras.json", entries)


def check_scene(folder: Path, scene: Scene) -> None:
    """Raise UserError if the cameras of the model folder are not those of the scene."""
    if not (folder / "cameras.json").is_file():
        return
    entries = read_json(folder / "cameras.json", "the model's camera list")
    try:
        positions = {e["img_name"]: torch.tensor(e["position"], dtype=torch.float64).view(3) for e in entries}
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder / 'cameras.json'} is damaged: {error!r}. Restore it or train again.") from None
    centers = {view.camera.name: torch.from_numpy(view.camera.center) for view in [*scene.train, *scene.test]}
    shared = [(center, positions[name]) for name, center in centers.items() if name in positions]
    if shared and all((center - saved).norm() <= POSE_TOLERANCE * (1 + center.norm()) for center, saved in shared):
        return
    raise UserError(
        f"the model in {folder} was trained on another scene than {scene.path}: "
        + ("its cameras have other positions." if shared else "they have no image name in common.")
        + " Give the scene it was trained on with -s, or another model folder with -m."
    )


def point_cloud_path(folder: Path, iteration: int) -> Path:
    return folder / "point_cloud" / f"iteration_{iteration}" / "point_cloud.ply"


def field_path(folder: Path, iteration: int) -> Path:
    return folder / "referring" / f"iteration_{iteration}.safetensors"


def iterations(folder: Path, kind: str) -> list[int]:
    """List the saved iterations, ascending; `kind` is "point_cloud" or "referring"."""
    paths = (folder / kind).glob("*/point_cloud.ply" if kind == "point_cloud" else "*.safetensors")
    names = (path.parent.name if kind == "point_cloud" else path.stem for path in paths)
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"iteration_(\d+)", name)))


def save_field(folder: Path, field: dict[str, Tensor], iteration: int, rgb_iteration: int, text_encoder: str) -> None:
    """Write a referring field's state dict; the metadata names the Gaussians and the text encoder it belongs to."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in field.items()}
    metadata = {"iteration": iteration, "rgb_iteration": rgb_iteration, "text_encoder": text_encoder}
    with atomic_path(field_path(folder, iteration)) as temporary:
        try:
            # one entry: safetensors writes several in random order, and equal runs must give equal files
            save_file(tensors, temporary, metadata={"refersplat": json.dumps(metadata)})
        except SafetensorError as error:  # hides the operating system's refusal
            raise OSError(str(error)) from error


def load_field(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the state dict of a referring field and its metadata. Raises UserError if the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = json.loads((file.metadata() or {})["refersplat"])
        metadata["rgb_iteration"] = int(metadata["rgb_iteration"])
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a trained referring field.") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"{path} cannot be read as a referring field: {error}. Train it again.") from None
    return tensors, metadata


def load_colour(folder: Path, iteration: int = -1) -> tuple[GaussianModel, int]:
    """Load (Gaussians, iteration) of a saved iteration, -1 for the newest. Raises UserError if there is none."""
    found = iterations(folder, "point_cloud")
    if not found:
        raise UserError(f"{folder} holds no Gaussians (point_cloud/iteration_N/point_cloud.ply); run train.py.")
    chosen = found[-1] if iteration == -1 else iteration
    require_saved(folder, chosen, found)
    gaussians = load_ply(point_cloud_path(folder, chosen))
    gaussians.antialiasing = trained_with_antialiasing(load_config(folder))
    return gaussians, chosen


def trained_with_antialiasing(config: dict[str, dict[str, Any]]) -> bool:
    """Whether the Gaussians were trained with --antialiasing, and so must be rendered with it."""
    return bool(config.get("RGBParams", {}).get("antialiasing", False))


def require_saved(folder: Path, iteration: int, found: list[int]) -> None:
    """Raise UserError if `iteration` is not among the saved ones."""
    if iteration not in found:
        raise UserError(f"{folder} has no iteration {iteration} (--iteration); saved are {', '.join(map(str, found))}.")


def load_start(path: Path) -> tuple[GaussianModel, dict[str, Tensor] | None, int]:
    """Load --start_checkpoint, a chkpnt*.pth or any file of Gaussians, as `load_checkpoint` does."""
    if path.suffix == ".pth":
        return load_checkpoint(path)
    match = re.search(r"iteration_(\d+)", path.parent.name)
    return load_gaussians(path), None, int(match[1]) if match else 0


def model_file(source: Path, iteration: int) -> Path:
    """Return the file of Gaussians in the model folder `source`, or the file `source`. Raises UserError if none."""
    if not source.is_dir():
        return source
    found = iterations(source, "point_cloud")
    if found and iteration in (-1, *found):
        return point_cloud_path(source, found[-1] if iteration == -1 else iteration)
    checkpoints = {int(p.stem.removeprefix("chkpnt")): p for p in source.glob("chkpnt*.pth") if p.stem[6:].isdigit()}
    if not found and checkpoints and iteration in (-1, *checkpoints):
        return checkpoints[max(checkpoints) if iteration == -1 else iteration]
    if iteration != -1 and (found or checkpoints):
        saved = ", ".join(map(str, found or sorted(checkpoints)))
        raise UserError(f"{source} has no Gaussians of iteration {iteration} (--iteration); saved are {saved}.")
    raise UserError(
        f"{source} holds no Gaussians: neither point_cloud/iteration_N/point_cloud.ply nor chkpntN.pth. "
        "Give a model folder of train.py or a file."
    )


def config_has_antialiasing(source: Path) -> bool:
    """Whether the model folder that `source` is, or lies in as a point cloud, was trained with --antialiasing."""
    folders = [source, *source.absolute().parents[2:3]]
    folder = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    return folder is not None and trained_with_antialiasing(load_config(folder))
