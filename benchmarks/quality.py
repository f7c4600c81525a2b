"""mIoU and time of the referring stage on a real scene, for several seeds and numbers of sentences a step.

    python benchmarks/quality.py --json quality.json                          # hours on a CPU, minutes on a GPU
    python benchmarks/quality.py --seeds 0 --sentences_per_step all -- --contrastive paper   # after --: for train.py

Every run is a train.py of its own. The seconds of a curve, from log.jsonl, are those from the first step on, with
checkpoints and earlier measurements. The very first run on a machine also compiles kernels.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see rasterizer.py

from arguments.groups import number_or_all  # noqa: E402
from benchmarks import measure  # noqa: E402
from utils.device import choose_device  # noqa: E402
from utils.errors import run  # noqa: E402

START = measure.SHARED / "scenes/redkitchen_3dgs/point_cloud/iteration_10000/point_cloud.ply"
HEAD = ("sentences a step", "seeds", "test mIoU at the end", "seconds of steps", "of the whole process")


def train(flags: argparse.Namespace, setting: str, seed: int, model: Path) -> dict:
    """Train one model: its curve and its time, or in "note" why there are none."""
    words = ["-s", flags.source, "--start_checkpoint", flags.start, "-r", flags.resolution, "-m", model]
    words += ["--text_encoder", flags.text_encoder, "--device", flags.device, "--seed", seed, *flags.passed]
    words += ["--iterations", flags.iterations, "--sentences_per_step", setting]
    words += ["--test_iterations", *range(flags.test_interval, flags.iterations + 1, flags.test_interval)]
    began = time.perf_counter()
    note = measure.run_script("train.py", *words)
    wall = time.perf_counter() - began
    curve = [] if note else measure.read_curve(model / "log.jsonl", "test_miou")
    result = {"run": f"{setting}, seed {seed}", "sentences_per_step": setting, "seed": seed}
    return result | {"wall_seconds": wall, "note": note, "curve": curve}


def markdown(report: dict) -> str:
    """The table of a report."""
    rows = []
    for setting in dict.fromkeys(r["sentences_per_step"] for r in report["runs"]):
        runs = [r for r in report["runs"] if r["sentences_per_step"] == setting and r["curve"]]
        last = [r["curve"][-1] for r in runs]
        columns = [p["test_miou"] for p in last], [p["seconds"] for p in last], [r["wall_seconds"] for r in runs]
        if runs:
            rows.append((setting, " ".join(str(r["seed"]) for r in runs), *map(_mean_and_all, columns)))
    facts = f"{report['iterations']:,} steps, test views measured every {report['test_interval']:,}; {report['flags']}"
    return measure.runs_markdown(report, facts, HEAD, rows)


def _mean_and_all(values: list[float]) -> str:
    each = ", ".join(f"{value:.1f}" for value in values)
    return f"{statistics.mean(values):.1f} ({each})" if len(values) > 1 else each


def main() -> None:
    parser, count = measure.flag_parser(__doc__, generated=False), measure.count
    parser.add_argument("--start", type=Path, default=START, help="point_cloud.ply of the scene's Gaussians")
    parser.add_argument("--text_encoder", default="embedded", help="see train.py")
    parser.add_argument("--iterations", type=count, default=20_000, help="steps of a run")
    parser.add_argument("--test_interval", type=count, default=1_000, help="steps between two points of a curve")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sentences_per_step", type=number_or_all, nargs="+", default=["1", "all"], metavar="N|all")
    flags = parser.parse_args()
    report = measure.new_report(
        choose_device(flags.device),
        iterations=flags.iterations,
        test_interval=flags.test_interval,
        flags=f"-r {flags.resolution} --text_encoder {Path(flags.text_encoder).name} {' '.join(flags.passed)}".strip(),
        runs=[],
    )
    # The settings take turns, so that an interrupted run has some of each.
    runs = [(setting, seed) for seed in flags.seeds for setting in flags.sentences_per_step]
    trainings = {f"sentences-{k}-seed-{s}": partial(train, flags, k, s) for k, s in runs}
    measure.take_runs(flags, report, trainings)
    print(markdown(report))


if __name__ == "__main__":
    run(main)
