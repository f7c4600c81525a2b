"""Multi-view agreement of masks on a real scene: mask IoU per object before and after, time, and the worst views.

    python benchmarks/consensus.py --picture worst.jpg --json consensus.json       # a minute or two on a CPU

The masks of --mask_dir are damaged; those of gt_mask, clean, are looked at for measuring only. In the second case each
object also has 30 % of its masks replaced by those of one other object, in neighbouring views: of all runs of views and
all objects, where the other object has most masks.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_report import table  # noqa: E402
from benchmarks.gpu_timing import machine_name  # noqa: E402
from benchmarks.workload import PLY, SOURCE  # noqa: E402
from pseudo_masks.consensus import consensus, summarize  # noqa: E402
from scene.dataset import Scene  # noqa: E402
from scene.layouts.mask_confidence import read_confidences  # noqa: E402
from scene.layouts.ref_lerf import load, mask_names  # noqa: E402
from scene.model_folder import load_start  # noqa: E402
from scene.readers.image_files import read_image, read_mask  # noqa: E402
from utils.device import choose_device, plan_bytes  # noqa: E402
from utils.errors import UserError, run  # noqa: E402
from utils.files import write_json  # noqa: E402
from utils.images import CYAN, GREEN, add_caption, contact_sheet, encode, write_image  # noqa: E402
from utils.metrics import iou, resized_mask  # noqa: E402
from utils.scripts import git_revision  # noqa: E402

SHARE = 0.3  # of an object's masks, replaced by those of another
WORST = 6  # views in the picture
Masks = dict[tuple[str, str], Path]  # (mask file relative to its folder, category) -> file


def masks_of(scene: Scene, folder: str) -> Masks:
    """The masks of a folder that JSON files name for training views, in the order of the views."""
    named = mask_names(scene.path, scene.train)
    return {
        (name, category): scene.path / folder / name
        for view in scene.train
        for category, names in named.get(view.id, {}).items()
        for name in names
        if (scene.path / folder / name).is_file()
    }


def with_wrong_blocks(masks: Masks, share: float = SHARE) -> tuple[Masks, dict[str, tuple[str, int]]]:
    """The masks with a block of each object's replaced, and {category: (other object, number of masks replaced)}."""
    replaced, told = dict(masks), {}
    by_frame = {(os.path.dirname(name), category): path for (name, category), path in masks.items()}
    categories = sorted({category for _, category in masks})
    for category in categories:
        names = [name for name, of in masks if of == category]
        frames = [os.path.dirname(name) for name in names]
        length = round(share * len(frames))
        choices = [
            (sum((frame, other) in by_frame for frame in frames[first : first + length]), other, first)
            for other in categories
            for first in range(len(frames) - length + 1)
            if other != category
        ]
        if not choices:
            continue
        count, other, first = max(choices)
        for name, frame in zip(names[first : first + length], frames[first : first + length], strict=True):
            replaced[name, category] = by_frame.get((frame, other), masks[name, category])
        told[category] = (other, count)
    return replaced, told


def write_masks(masks: Masks, folder: Path) -> None:
    """The masks as a folder of the Ref-LERF layout."""
    for (name, _), path in masks.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(read_mask(path).astype(np.uint8) * 255, ".png"))


def measured(truths: Masks, folder: Path) -> dict[tuple[str, str], float]:
    """IoU 0..1 of each mask; one that is missing has 0."""
    found = {}
    for (name, category), path in truths.items():
        truth = read_mask(path)
        if not truth.any():
            continue
        mask = read_mask(folder / name) if (folder / name).is_file() else np.zeros_like(truth)
        found[name, category] = iou(resized_mask(mask, truth.shape), truth)
    return found


def contours(photo: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The photo with the outline of a mask."""
    picture = np.ascontiguousarray(photo // 4 * 3)
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(picture, found, -1, colour, 2)


def worst_views(scene: Scene, truths: Masks, given: Path, found: Path, scores: dict[tuple[str, str], float]) -> list:
    """Rows of the picture: photo, the mask given, the consensus, the truth, of the lowest consensus IoU."""
    views = {view.id: view for view in scene.train}
    rows, before = [], measured(truths, given)
    for key in sorted(scores, key=scores.get)[:WORST]:
        name, category = key
        truth, photo = read_mask(truths[key]), read_image(views[os.path.dirname(name)].image_path)
        rows_, columns = np.nonzero(truth)
        middle, half = (int(rows_.mean()), int(columns.mean())), max(90, int(0.9 * max(np.ptp(rows_), np.ptp(columns))))
        window = tuple(slice(max(0, m - half), m + half) for m in middle)
        cells = [add_caption(_square(photo[window]), f"{Path(name).parent}: {category}")]
        for folder, what, value in ((given, "given", before[key]), (found, "consensus", scores[key])):
            mask = read_mask(folder / name) if (folder / name).is_file() else np.zeros_like(truth)
            picture = contours(photo, resized_mask(mask, truth.shape), CYAN)
            cells.append(add_caption(_square(picture[window]), f"{what}: IoU {100 * value:.1f}"))
        cells.append(add_caption(_square(contours(photo, truth, GREEN)[window]), "ground truth"))
        rows.append(cells)
    return rows


def _square(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, (320, 320), interpolation=cv2.INTER_CUBIC)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--source", type=Path, default=SOURCE, help="scene folder with clean masks in gt_mask")
    parser.add_argument("--start", type=Path, default=PLY, help="its Gaussians")
    parser.add_argument("--mask_dir", default="gt_mask_noisy", help="masks to look at")
    parser.add_argument("--resolution", type=int, default=-1, help="-r of pseudo_masks.consensus")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--repeat", type=int, default=2, help="runs of the first case; the fastest counts")
    parser.add_argument("--picture", type=Path, help=".jpg of the worst views of the second case")
    parser.add_argument("--json", type=Path, help="file for all results")
    flags = parser.parse_args()
    for path, name in ((flags.source, "source"), (flags.start, "start")):
        if not path.exists():
            raise UserError(
                f"{path} does not exist. Name the {'scene' if name == 'source' else 'model'} with --{name}."
            )
    return flags


def main() -> None:
    flags = parse()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    device = choose_device(flags.device)
    scene = load(flags.source, resolution=flags.resolution, mask_dir=flags.mask_dir)
    gaussians = load_start(flags.start)[0].to(device)
    truths, given = masks_of(scene, "gt_mask"), masks_of(scene, flags.mask_dir)
    truths = {key: path for key, path in truths.items() if key in given}
    if not truths:
        raise UserError(f"{flags.source}: no training view has a mask in both gt_mask and --mask_dir {flags.mask_dir}.")
    wrong, told = with_wrong_blocks(given)
    columns, report = {}, {"machine": machine_name(device), "git_revision": git_revision(), "seconds": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for case, masks in (("noisy", given), ("wrong block", wrong)):
            source, target = Path(temporary) / case, Path(temporary) / f"{case} consensus"
            write_masks(masks, source)
            seconds = []
            for _ in range(max(1, flags.repeat) if case == "noisy" else 1):
                began = time.perf_counter()
                written = consensus(scene, gaussians, source, target, max_bytes=plan_bytes(None, device))
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - began)
            report["seconds"][case] = seconds
            columns[case], columns[f"{case}: consensus"] = measured(truths, source), measured(truths, target)
            confidences = read_confidences(target)
            report[case] = [
                {"mask": name, "category": category, "iou": columns[case][name, category],
                 "consensus": value, "confidence": confidences.get(name)}
                for (name, category), value in columns[f"{case}: consensus"].items()
            ]  # fmt: skip
            print(f"{case}: {summarize(written)}; seconds: {', '.join(f'{s:.1f}' for s in seconds)}", file=sys.stderr)
        if flags.picture is not None:
            scores = columns["wrong block: consensus"]
            rows = worst_views(scene, truths, Path(temporary) / "wrong block", target, scores)
            write_image(flags.picture, contact_sheet(rows))
    if flags.json is not None:
        write_json(flags.json, report)
    print(markdown(report, columns, told))


def markdown(report: dict, columns: dict[str, dict], told: dict[str, tuple[str, int]]) -> str:
    """The table: mean IoU of each object's masks, and of all."""
    keys = list(columns["noisy"])
    rows = []
    for category in sorted({category for _, category in keys}):
        members = [key for key in keys if key[1] == category]
        means = [100 * statistics.mean(column[key] for key in members) for column in columns.values()]
        other, count = told.get(category, ("-", 0))
        rows.append((category, str(len(members)), *(f"{mean:.1f}" for mean in means), f"{count} of {other}"))
    means = [100 * statistics.mean(column.values()) for column in columns.values()]
    rows.append(("**all masks**", str(len(keys)), *(f"**{mean:.1f}**" for mean in means), ""))
    fastest = min(report["seconds"]["noisy"])
    return "\n".join(
        [
            f"{report['machine']}; commit {report['git_revision']}; {fastest:.1f} s, files read and written",
            "",
            *table(("object", "masks", *columns, "wrong masks in the block"), rows),
        ]
    )


if __name__ == "__main__":
    run(main)
