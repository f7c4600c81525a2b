"""Time and quality of the RGB stage on a real scene: MCMC with a bound, and adaptive density control.

    python benchmarks/rgb.py -s SCENE --json rgb.json                 # both runs: minutes on a GPU
    python benchmarks/rgb.py --runs mcmc --mcmc_iterations 500 -r 4   # a subset, anywhere
    python benchmarks/rgb.py --runs mcmc -- --exposure                # what follows -- goes to train.py

Every run is a train.py of its own, measured by eval.py afterwards. Wall time is that of the whole process of train.py;
the last steps are timed without measuring or saving between them. Kernels are compiled before.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see rasterizer.py

from benchmarks import measure  # noqa: E402
from utils.device import choose_device  # noqa: E402
from utils.errors import run  # noqa: E402
from utils.files import read_json  # noqa: E402

POINTS = 4  # of the test curve; no reset of the opacities just before one
LAST_SHARE = 0.05  # of the steps, which are timed without anything between them


def train(flags: argparse.Namespace, kind: str, model: Path) -> dict:
    """Train and evaluate one model: its numbers, or in "note" why there are none."""
    steps = getattr(flags, f"{kind}_iterations")
    words = [
        *("-r", flags.resolution, "--device", flags.device, "--iterations", 0, "--eval", "--densification", kind),
        *("--rgb_iterations", steps, "--test_iterations", *(steps * k // POINTS for k in range(1, POINTS))),
        *("--log_interval", max(1, min(100, steps // 100))),
        *(("--cap_max", flags.cap_max) if kind == "mcmc" else ()),
        *flags.passed,
    ]
    result: dict = {"run": kind, "steps": steps, "flags": " ".join(map(str, words))}
    began = time.perf_counter()
    result["note"] = measure.run_script("train.py", "-s", flags.source, "-m", model, *words)
    result["wall_seconds"] = time.perf_counter() - began
    if not result["note"]:
        result |= read_log(model / "log.jsonl", steps)
        result["note"] = measure.run_script("eval.py", "-m", model, "--rgb", "--device", flags.device)
    if not result["note"]:
        scores = read_json(model / "rgb_results.json", "the results of eval.py")
        result |= {name: scores[name] for name in ("gaussians", "psnr", "ssim", "views")}
    return result


def read_log(log: Path, steps: int) -> dict:
    """Seconds of all steps, milliseconds of one of the last, and the curve of the test views."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    timed = {line["iteration"]: line["seconds"] for line in lines if "loss" in line}
    first = max((i for i in timed if i <= (1 - LAST_SHARE) * steps), default=min(timed))
    last = max(timed)
    return {
        "seconds": timed[last],
        "last_step_ms": 1e3 * (timed[last] - timed[first]) / max(last - first, 1),
        "curve": measure.read_curve(log, "test_psnr", "test_ssim"),
    }


def markdown(report: dict) -> str:
    """The table of a report; the curves are in the JSON only."""
    rows = [
        (
            *(r["run"], f"{r['steps']:,}", f"{r['gaussians']:,}", f"{r['wall_seconds']:.1f}", f"{r['seconds']:.1f}"),
            *(f"{r['last_step_ms']:.2f}", f"{r['psnr']:.2f}", f"{r['ssim']:.4f}"),
        )
        for r in report["runs"]
        if not r["note"]
    ]
    head = ("run", "steps", "Gaussians", "wall s", "s of steps", "ms a step, at the end", "test PSNR", "test SSIM")
    return measure.runs_markdown(report, report["source"], head, rows)


def main() -> None:
    parser, count = measure.flag_parser(__doc__, generated=False), measure.count
    parser.add_argument("--runs", nargs="+", default=["mcmc", "adc"], choices=("mcmc", "adc"))
    parser.add_argument("--mcmc_iterations", type=count, default=10_000, help="steps of the run mcmc")
    parser.add_argument("--adc_iterations", type=count, default=30_000, help="steps of the run adc")
    parser.add_argument("--cap_max", type=count, default=100_000, help="most Gaussians of mcmc")
    flags = parser.parse_args()
    device = choose_device(flags.device)  # compiles the kernels, if that was not done yet
    report = measure.new_report(device, source=f"{flags.source.name}, -r {flags.resolution}", runs=[])
    measure.take_runs(flags, report, {kind: partial(train, flags, kind) for kind in flags.runs})
    print(markdown(report))


if __name__ == "__main__":
    run(main)
