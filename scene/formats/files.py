"""Read and write Gaussian models in any supported format, chosen by the ending of the file name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scene.formats.compressed_ply import is_compressed, model_from_compressed, save_compressed_ply
from scene.formats.ply import model_from_ply, read_ply, save_ply
from scene.formats.splat import load_splat, save_splat
from scene.formats.spz import load_spz, save_spz
from scene.gaussian_model import GaussianModel
from utils.errors import UserError


def load_gaussians(path: Path) -> GaussianModel:
    """Read a Gaussian model from a .ply (standard or compressed, told apart by content), .splat or .spz.

    Raises:
        UserError: if the file has another ending, is missing or damaged.
    """
    ending = file_ending(path)
    if ending == ".splat":
        return load_splat(path)
    if ending == ".spz":
        return load_spz(path)
    content = read_ply(path, "a 3DGS point_cloud.ply or a compressed .ply of SuperSplat")
    if is_compressed(content):
        return model_from_compressed(content, str(path))
    model = model_from_ply(content, str(path))
    model.check(str(path))
    return model


def save_gaussians(path: Path, model: GaussianModel) -> list[str]:
    """Write a model in the format that the file ending names, atomically, and return what is lost, in words.

    Rounding is not listed; docs/DATA.md gives its bounds for each format.

    Raises:
        UserError: if the name has another ending, or the format cannot hold the model.
    """
    ending = file_ending(path)
    lost = _WRITERS[ending](path, model)
    if model.antialiasing and ending != ".spz":
        lost.append("antialiasing, with which the model was trained: give --antialiasing where train.py starts from it")
    return lost


def file_ending(path: Path) -> str:
    """Return the known ending of a file name, in lower case.

    Raises:
        UserError: if the name has another ending.
    """
    ending = next((ending for ending in _WRITERS if path.name.lower().endswith(ending)), None)
    if ending is None:
        raise UserError(f"{path} ends in no known format of Gaussians; known are {', '.join(_WRITERS)}.")
    return ending


def _save_ply(path: Path, model: GaussianModel) -> list[str]:
    save_ply(path, model)
    return []


_WRITERS: dict[str, Callable[[Path, GaussianModel], list[str]]] = {
    ".compressed.ply": save_compressed_ply,  # before .ply, which it also ends with
    ".ply": _save_ply,
    ".splat": save_splat,
    ".spz": save_spz,
}
