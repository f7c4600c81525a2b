"""mIoU and time of the referring stage on a real scene, for several seeds and numbers of sentences a step.

    python benchmarks/quality.py --json quality.json                          # hours on a CPU, minutes on a GPU
    python benchmarks/quality.py --seeds 0 --sentences_per_step all --contrastive paper   # the last is train.py's
    python benchmarks/plot_quality.py quality.json                            # the curves, docs/quality.png

Every run is a train.py of its own; flags that are not known here go to it. Wall time is that of the whole process. The
seconds of a curve are those of log.jsonl: from the first step on, with the checkpoints and with the measurements of the
test views that came before, without the start of the process. The first use of a kernel compiles it; a short run that
does not count comes first for that.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from arguments.groups import number_or_all  # noqa: E402
from benchmarks.gpu_report import table  # noqa: E402
from benchmarks.gpu_timing import machine_name  # noqa: E402
from benchmarks.workload import PLY, SOURCE  # noqa: E402
from utils.device import choose_device  # noqa: E402
from utils.errors import UserError, run  # noqa: E402
from utils.files import read_json, write_json  # noqa: E402
from utils.scripts import git_revision  # noqa: E402

TARGET = "at least 30", "at most 40"  # mIoU and seconds of issue 4, for redkitchen and 20,000 steps
RELEASED = "28.7", "343"  # the released algorithm after 20,000 steps, recorded in the same issue


class Runs:
    """Trainings on one scene.

    Args:
        flags: of the command line.
        passed: flags for train.py.
        folder: of the model folders.
    """

    def __init__(self, flags: argparse.Namespace, passed: list[str], folder: Path):
        self._flags, self._folder = flags, folder
        self._common = [
            *("-s", str(flags.source), "--start_checkpoint", str(flags.start), "-r", str(flags.resolution)),
            *("--text_encoder", flags.text_encoder, "--device", flags.device, *passed),
        ]

    def warm_up(self, sentences_per_step: str) -> None:
        """Compile what is compiled once, with a run that nobody looks at."""
        steps = str(self._flags.warm_up)
        model = self._folder / f"warm-up-{sentences_per_step}"
        self._train(model, "--iterations", steps, "--sentences_per_step", sentences_per_step)

    def train(self, sentences_per_step: str, seed: int) -> dict:
        """One run: its curve, its result and its time, or why there are none."""
        flags, model = self._flags, self._folder / f"sentences-{sentences_per_step}-seed-{seed}"
        tested = range(flags.test_interval, flags.iterations + 1, flags.test_interval)
        began = time.perf_counter()
        note = self._train(
            *(model, "--iterations", str(flags.iterations), "--sentences_per_step", sentences_per_step),
            *("--seed", str(seed), "--test_iterations", *map(str, tested)),
        )
        wall = time.perf_counter() - began
        result = {"sentences_per_step": sentences_per_step, "seed": seed, "wall_seconds": wall, "note": note}
        result["curve"] = read_curve(model / "log.jsonl")
        if flags.eval and not note:
            result["note"] = self._run("eval.py", "-m", str(model), "--device", flags.device)
            if not result["note"]:
                result["eval_miou"] = read_json(model / "results.json", "the results of eval.py")["mIoU"]
        return result

    def _train(self, model: Path, *more: str) -> str:
        return self._run("train.py", "-m", str(model), *self._common, *more)

    def _run(self, script: str, *words: str) -> str:
        """Run a script; returns why it failed, or nothing."""
        command = [sys.executable, str(ROOT / script), *words]
        print(" ".join(command), file=sys.stderr)
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        lines = done.stderr.strip().splitlines() or ["no message"]
        return f"{script} ended with {done.returncode}: {lines[-1]}" if done.returncode else ""


def read_curve(log: Path) -> list[dict]:
    """Iteration, seconds and test mIoU of the lines of log.jsonl that have one."""
    if not log.is_file():
        return []
    lines = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    names = "iteration", "seconds", "test_miou"
    return [{name: line[name] for name in names} for line in lines if "test_miou" in line]


def markdown(report: dict) -> str:
    """The table of a report."""
    rows = []
    for setting in dict.fromkeys(r["sentences_per_step"] for r in report["runs"]):
        runs = [r for r in report["runs"] if r["sentences_per_step"] == setting and r["curve"] and not r["note"]]
        evaluated = [r["eval_miou"] for r in runs if "eval_miou" in r]
        if runs:
            rows.append(
                (
                    *(setting, " ".join(str(r["seed"]) for r in runs)),
                    _mean_and_all([r["curve"][-1]["test_miou"] for r in runs]),
                    _mean_and_all(evaluated) if evaluated else "-",
                    _mean_and_all([r["curve"][-1]["seconds"] for r in runs]),
                    _mean_and_all([r["wall_seconds"] for r in runs]),
                )
            )
    rows += [
        (who, "", miou, "", "", seconds)
        for who, (miou, seconds) in (("1, released algorithm (recorded)", RELEASED), ("wanted", TARGET))
    ]
    lines = [
        f"{report['machine']}; commit {report['git_revision']}; {report['iterations']:,} steps, test views measured "
        f"every {report['test_interval']:,}; flags: {report['flags']}",
        "",
        *table(("sentences a step", "seeds", "test mIoU at the end", "of eval.py", "seconds of steps", "of all"), rows),
    ]
    notes = [f"- {r['sentences_per_step']}, seed {r['seed']}: {r['note']}" for r in report["runs"] if r["note"]]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _mean_and_all(values: list[float]) -> str:
    each = ", ".join(f"{value:.1f}" for value in values)
    return f"{statistics.mean(values):.1f} ({each})" if len(values) > 1 else each


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The flags, and those for train.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--source", type=Path, default=SOURCE, help="scene folder")
    parser.add_argument("--start", type=Path, default=PLY, help="point_cloud.ply of its Gaussians")
    parser.add_argument("--text_encoder", default="embedded", help="see train.py")
    parser.add_argument("--resolution", type=int, default=1, help="see train.py")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--iterations", type=int, default=20_000, help="steps of a run")
    parser.add_argument("--test_interval", type=int, default=1_000, help="steps between two points of a curve")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sentences_per_step", type=number_or_all, nargs="+", default=["1", "all"], metavar="N|all")
    parser.add_argument("--eval", action="store_true", help="also run eval.py on each model")
    parser.add_argument("--warm_up", type=int, default=40, help="steps of the run that does not count; 0 leaves it out")
    parser.add_argument("--models", type=Path, help="keep the model folders here; else they are removed")
    parser.add_argument("--json", type=Path, help="file for all results")
    flags, passed = parser.parse_known_args()
    for name, least in (("iterations", 1), ("test_interval", 1), ("warm_up", 0)):
        if getattr(flags, name) < least:
            raise UserError(f"--{name} {getattr(flags, name)}: expected at least {least}.")
    for path, name in ((flags.source, "source"), (flags.start, "start")):
        if not path.exists():
            raise UserError(
                f"{path} does not exist. Name the {'scene' if name == 'source' else 'model'} with --{name}."
            )
    return flags, passed


def main() -> None:
    flags, passed = parse()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # of the runs; see rasterizer.py
    report = {
        "machine": machine_name(choose_device(flags.device)),
        "git_revision": git_revision(),
        "iterations": flags.iterations,
        "test_interval": flags.test_interval,
        "flags": f"-r {flags.resolution} --text_encoder {Path(flags.text_encoder).name} {' '.join(passed)}".strip(),
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        runs = Runs(flags, passed, flags.models or Path(temporary))
        for setting in flags.sentences_per_step if flags.warm_up else []:
            runs.warm_up(setting)
        for seed in flags.seeds:  # the settings take turns, so that a run that is cut off has some of each
            for setting in flags.sentences_per_step:
                report["runs"].append(runs.train(setting, seed))
                if flags.json is not None:
                    write_json(flags.json, report)
    print(markdown(report))


if __name__ == "__main__":
    run(main)
