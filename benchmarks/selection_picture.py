"""Draw sentences in 3D: the scene with each one's mask, its exported Gaussians alone, and the scene without them:

python benchmarks/selection_picture.py -m output/demo/model --view frame_00015 --text "the egg" "the glass" [--smooth 8]
                                       [--smallest_part 0.1] --out picture.png

What is drawn are the files that render.py --export and --remove write, read again as train.py --start_checkpoint does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from arguments import ModelParams, PipelineParams, SelectionParams  # noqa: E402
from evaluation.rgb import background_color  # noqa: E402
from gaussian_renderer import picture  # noqa: E402
from inference.export import write_selections  # noqa: E402
from inference.predict import open_trained  # noqa: E402
from inference.selection import select  # noqa: E402
from inference.video import render_frame  # noqa: E402
from scene.formats.files import load_gaussians  # noqa: E402
from scene.model_folder import saved_flags  # noqa: E402
from utils.errors import UserError, run  # noqa: E402
from utils.images import add_caption, contact_sheet, enlarge, write_image  # noqa: E402


def rows(flags: argparse.Namespace, folder: Path) -> list[list[np.ndarray]]:
    """Three pictures for each sentence, whose files go to `folder`."""
    model = ModelParams(**saved_flags(flags.model, [ModelParams]) | {"model_path": flags.model})
    opened = open_trained(model, PipelineParams(device=flags.device), -1, 0.5)
    views = {view.id: view for view in [*opened.scene.test, *opened.scene.train]}
    if flags.view not in views:
        raise UserError(f"--view {flags.view} is no view of {opened.scene.path}; there are {', '.join(views)}.")
    camera, background = views[flags.view].camera, background_color(model)
    drawn = []
    for number, sentence in enumerate(flags.text):
        files = folder / f"{number}-object.ply", folder / f"{number}-without.ply"
        params = SelectionParams(*files, smooth=flags.smooth, smallest_part=flags.smallest_part)
        write_selections(opened, select(opened, {"sentence": sentence}, params), params)
        cells = [render_frame(opened.predictor, camera, sentence, background)]
        for path, caption in zip(files, ("object", "without it"), strict=True):
            gaussians = load_gaussians(path).to(opened.predictor.gaussians.device)
            gaussians.antialiasing = opened.trained.gaussians.antialiasing
            cells.append(add_caption(enlarge(picture(camera, gaussians, background)), f"{caption}: {len(gaussians)}"))
        drawn.append(cells)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--view", required=True)
    parser.add_argument("--smooth", type=int, default=0)
    parser.add_argument("--smallest_part", type=float, default=0.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--width", type=int, default=320, help="of a picture in the sheet, pixels")
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_image(flags.out, contact_sheet(rows(flags, Path(folder)), flags.width))
    print(f"{flags.out}: {flags.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run(main)
