"""Read and write Gaussian models in any supported format, chosen by the ending of the file name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scene.formats.compressed_ply import model_from_compressed, save_compressed_ply
from scene.formats.ply import model_from_ply, read_ply, save_ply
from scene.formats.splat import load_splat, save_splat
from scene.formats.spz import load_spz, save_spz
from scene.gaussian_model import GaussianModel
from utils.errors import UserError


def load_gaussians(path: Path) -> GaussianModel:
    """Read Gaussians from a .ply (standard or compressed), .splat or .spz. Raises UserError if it is damaged."""
    ending = file_ending(path)
    if ending in (".splat", ".spz"):
        return load_splat(path) if ending == ".splat" else load_spz(path)
    content = read_ply(path, "a 3DGS point_cloud.ply or a compressed .ply of SuperSplat")
    convert = model_from_compressed if "chunk" in content else model_from_ply
    return convert(content, str(path))


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
    """Return the known ending of a file name, in lower case. Raises UserError if the name has another ending."""
    for ending in _WRITERS:
        if path.name.lower().endswith(ending):
            return ending
    raise UserError(f"{path} ends in no known format of Gaussians; known are {', '.join(_WRITERS)}.")


_WRITERS: dict[str, Callable[[Path, GaussianModel], list[str]]] = {
    ".compressed.ply": save_compressed_ply,  # before .ply, which it also ends with
    ".ply": save_ply,
    ".splat": save_splat,
    ".spz": save_spz,
}
