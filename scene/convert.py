"""python -m scene.convert IN OUT: a Gaussian model in another file format.

    python -m scene.convert output/ramen ramen.compressed.ply                  # the Gaussians of a model folder
    python -m scene.convert output/ramen ramen.spz --iteration 7000
    python -m scene.convert scene.splat point_cloud.ply

Formats go by the ending: .ply (3DGS), .compressed.ply (SuperSplat), .splat, .spz; chkpnt*.pth can be read, too. What
each of them keeps: docs/FORMATS.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scene.formats.files import file_ending, save_gaussians
from scene.model_folder import iterations, load_config, load_start, point_cloud_path, trained_with_antialiasing
from utils.errors import UserError, run


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scene.convert", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("source", type=Path, metavar="IN", help="model folder, .ply, .splat, .spz or chkpnt*.pth")
    parser.add_argument("target", type=Path, metavar="OUT", help="file ending in .ply, .compressed.ply, .splat or .spz")
    parser.add_argument(
        "--iteration", type=int, default=-1, metavar="N", help="saved iteration of a model folder; -1 takes the newest"
    )
    return parser.parse_args(argv)


def model_file(source: Path, iteration: int) -> Path:
    """The file to read: `source` itself, or the Gaussians of a model folder.

    Raises:
        UserError: if the folder holds none, or not those of `iteration`.
    """
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


def says_antialiasing(source: Path) -> bool:
    """Whether the config of the model folder that `source` is, or lies in as a point cloud, has --antialiasing."""
    folders = [source, *source.absolute().parents[2:3]]
    folder = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    return folder is not None and trained_with_antialiasing(load_config(folder))


def _is_in_model(path: Path) -> bool:
    """Whether a model folder has its own Gaussians at this place."""
    folders = path.resolve().parents
    return any(folder.name == "point_cloud" and (folder.parent / "config.json").is_file() for folder in folders)


def main(argv: list[str] | None = None) -> None:
    """Convert one model."""
    flags = parse(argv)
    file_ending(flags.target)  # refuse it before the work
    if flags.target.is_dir():
        raise UserError(f"{flags.target} is a folder; give the name of a file to write.")
    source = model_file(flags.source, flags.iteration)
    if flags.target.resolve() == source.resolve() or _is_in_model(flags.target):
        raise UserError(f"{flags.target} is the file of a model, which would be lost; give the name of another file.")
    model, field, _ = load_start(source)
    model.antialiasing |= says_antialiasing(flags.source)
    lost = save_gaussians(flags.target, model)
    if field is not None:
        lost.append("the referring field, which only model folders hold")
    megabytes = flags.target.stat().st_size / 1e6
    print(f"{source} -> {flags.target}: {len(model)} Gaussians, SH degree {model.max_sh_degree}, {megabytes:.2f} MB")
    for item in lost:
        print(f"lost: {item}")


if __name__ == "__main__":
    run(main)
