"""python -m scene.formats IN OUT: a Gaussian model in another file format.

    python -m scene.formats output/ramen ramen.compressed.ply                  # the Gaussians of a model folder
    python -m scene.formats output/ramen ramen.spz --iteration 7000
    python -m scene.formats scene.splat point_cloud.ply

The ending names the format: .ply (3DGS), .compressed.ply (SuperSplat), .splat, .spz; chkpnt*.pth can be read, too.
docs/DATA.md says what each of them keeps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scene.formats.files import file_ending, save_gaussians
from scene.model_folder import config_has_antialiasing, load_start, model_file
from utils.errors import UserError, run


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scene.formats", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("source", type=Path, metavar="IN", help="model folder, .ply, .splat, .spz or chkpnt*.pth")
    parser.add_argument("target", type=Path, metavar="OUT", help="file ending in .ply, .compressed.ply, .splat or .spz")
    parser.add_argument(
        "--iteration", type=int, default=-1, metavar="N", help="saved iteration of a model folder; -1 takes the newest"
    )
    return parser.parse_args(argv)


def _is_in_model(path: Path) -> bool:
    """Whether the path is that of a model folder's own Gaussians."""
    folders = path.resolve().parents
    return any(folder.name == "point_cloud" and (folder.parent / "config.json").is_file() for folder in folders)


def main(argv: list[str] | None = None) -> None:
    """Convert one model and print what the new format loses."""
    flags = parse(argv)
    file_ending(flags.target)  # refuse an unknown ending before the work
    if flags.target.is_dir():
        raise UserError(f"{flags.target} is a folder; give the name of a file to write.")
    source = model_file(flags.source, flags.iteration)
    if flags.target.resolve() == source.resolve() or _is_in_model(flags.target):
        raise UserError(f"{flags.target} belongs to a model, which would be lost; give the name of another file.")
    model, field, _ = load_start(source)
    model.antialiasing |= config_has_antialiasing(flags.source)
    lost = save_gaussians(flags.target, model)
    if field is not None:
        lost.append("the referring field, which only model folders hold")
    megabytes = flags.target.stat().st_size / 1e6
    print(f"{source} -> {flags.target}: {len(model)} Gaussians, SH degree {model.max_sh_degree}, {megabytes:.2f} MB")
    for item in lost:
        print(f"lost: {item}")


if __name__ == "__main__":
    run(main)
