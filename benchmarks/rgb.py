"""Time and quality of the RGB stage on a real scene: MCMC with a bound, and adaptive density control.

    python benchmarks/rgb.py --json rgb.json --pictures docs                  # both runs: minutes on a GPU
    python benchmarks/rgb.py --runs mcmc --mcmc_iterations 500 -r 4           # a subset, anywhere
    python benchmarks/rgb.py --runs mcmc -- --exposure                        # what follows -- goes to train.py
    python benchmarks/rgb.py --profile 200                                    # where the time of a step goes instead

Every run is a train.py of its own, measured by eval.py afterwards. Wall time is that of the whole process of train.py,
from its imports to the saved model; the last steps are timed without measuring or saving between them. Kernels are
compiled before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see rasterizer.py

from benchmarks.gpu_report import table  # noqa: E402
from benchmarks.gpu_timing import machine_name  # noqa: E402
from benchmarks.rgb_profile import profile  # noqa: E402
from benchmarks.workload import SOURCE  # noqa: E402
from utils.device import choose_device  # noqa: E402
from utils.errors import UserError, run  # noqa: E402
from utils.files import read_json, write_json  # noqa: E402
from utils.scripts import git_revision  # noqa: E402

POINTS = 4  # of the test curve; no reset of the opacities just before one
LAST_SHARE = 0.05  # of the steps, which are timed without anything between them
TELL_EVERY = 10  # seconds between two lines of progress
PICTURES = 3  # test views to keep
TARGETS = {"mcmc": "at least 29.2 dB in at most 60 s (one H100, 10,000 steps, at most 100,000 Gaussians)"}


class Runs:
    """Trainings on one scene.

    Args:
        flags: of the command line.
        folder: of the model folders.
    """

    def __init__(self, flags: argparse.Namespace, folder: Path):
        self._flags, self._folder = flags, folder

    def train(self, kind: str) -> dict:
        """One run: its numbers, or in "note" why there are none."""
        flags, model = self._flags, self._folder / kind
        steps = getattr(flags, f"{kind}_iterations")
        tested = [str(steps * k // POINTS) for k in range(1, POINTS)]
        words = [
            *("-s", flags.source, "-m", model, "-r", flags.resolution, "--device", flags.device, "--iterations", "0"),
            *("--eval", "--densification", kind, "--rgb_iterations", steps, "--test_iterations", *tested),
            *("--log_interval", max(1, min(100, steps // 100))),
            *(("--cap_max", flags.cap_max) if kind == "mcmc" else ()),
            *flags.passed,
        ]
        result: dict = {"run": kind, "steps": steps, "flags": " ".join(map(str, words[2:]))}
        began = time.perf_counter()
        result["note"] = self._run("train.py", words, model)
        result["wall_seconds"] = time.perf_counter() - began
        if not result["note"]:
            result |= read_log(model / "log.jsonl", steps)
            result["note"] = self._run("eval.py", ["-m", model, "--rgb", "--device", flags.device], model)
        if not result["note"]:
            scores = read_json(model / "rgb_results.json", "the results of eval.py")
            result |= {name: scores[name] for name in ("gaussians", "psnr", "ssim", "views")}
            self._keep_pictures(kind, model / "test" / f"iteration_{scores['iteration']}" / "rgb")
        return result

    def _run(self, script: str, words: list, model: Path) -> str:
        """Run a script, telling how far it is; returns why it failed, or nothing."""
        command = [sys.executable, str(ROOT / script), *map(str, words)]
        tell(" ".join(command))
        output = self._folder / f"{model.name}-{script}.txt"
        with open(output, "w", encoding="utf-8") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
            told = time.monotonic()
            while process.poll() is None:
                time.sleep(0.05)
                if time.monotonic() - told > TELL_EVERY:
                    told = time.monotonic()
                    tell(last_line(model / "log.jsonl"))
        lines = output.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip().splitlines()
        if process.returncode:
            return f"{script} ended with {process.returncode}: {' / '.join(lines[-3:])}"
        return ""

    def _keep_pictures(self, kind: str, folder: Path) -> None:
        """Copy renderings beside photos of a few test views, evenly chosen."""
        found = sorted(folder.rglob("*.png"))
        if self._flags.pictures is not None and found:
            self._flags.pictures.mkdir(parents=True, exist_ok=True)
            for k in range(min(PICTURES, len(found))):
                path = found[(2 * k + 1) * len(found) // (2 * PICTURES)]
                shutil.copyfile(path, self._flags.pictures / f"rgb_{kind}_{path.stem}.png")


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def last_line(log: Path) -> str:
    """The newest line of a log that may not be there yet."""
    try:
        return log.read_text(encoding="utf-8").splitlines()[-1]
    except (OSError, IndexError):
        return "starting"


def read_log(log: Path, steps: int) -> dict:
    """Seconds of all steps, milliseconds of one of the last, and the curve of the test views."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    timed = {line["iteration"]: line["seconds"] for line in lines if "loss" in line}
    first = max((i for i in timed if i <= (1 - LAST_SHARE) * steps), default=min(timed))
    last = max(timed)
    names = ("iteration", "seconds", "test_psnr", "test_ssim")
    return {
        "seconds": timed[last],
        "last_step_ms": 1e3 * (timed[last] - timed[first]) / max(last - first, 1),
        "curve": [{name: line[name] for name in names} for line in lines if "test_psnr" in line],
    }


def markdown(report: dict) -> str:
    """The tables of a report."""
    rows = [
        (
            *(r["run"], f"{r['steps']:,}", f"{r['gaussians']:,}", f"{r['wall_seconds']:.1f}", f"{r['seconds']:.1f}"),
            *(f"{r['last_step_ms']:.2f}", f"{r['psnr']:.2f}", f"{r['ssim']:.4f}"),
        )
        for r in report["runs"]
        if not r["note"]
    ]
    head = ("run", "steps", "Gaussians", "wall s", "s of steps", "ms a step, at the end", "test PSNR", "test SSIM")
    lines = [f"{report['machine']}; commit {report['git_revision']}; {report['source']}", "", *table(head, rows)]
    for r in report["runs"]:
        if not r["note"]:
            curve = ", ".join(f"{p['iteration']:,}: {p['test_psnr']:.2f} dB ({p['seconds']:.0f} s)" for p in r["curve"])
            lines += ["", f"{r['run']} `{r['flags']}`: {curve}"]
        if r["run"] in TARGETS:
            lines.append(f"wanted: {TARGETS[r['run']]}")
        if r["note"]:
            lines.append(f"- {r['run']}: {r['note']}")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The flags; those for train.py are in `passed`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-s", "--source", type=Path, default=SOURCE, help="scene folder")
    parser.add_argument("-r", "--resolution", type=int, default=1, help="see train.py")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--runs", nargs="+", default=["mcmc", "adc"], choices=("mcmc", "adc"))
    parser.add_argument("--mcmc_iterations", type=int, default=10_000, help="steps of the run mcmc")
    parser.add_argument("--adc_iterations", type=int, default=30_000, help="steps of the run adc")
    parser.add_argument("--cap_max", type=int, default=100_000, help="most Gaussians of mcmc")
    parser.add_argument(
        "--profile", type=int, metavar="N", help="profile N steps of mcmc at the bound, in this process"
    )
    parser.add_argument("--models", type=Path, help="keep the model folders here; else they are removed")
    parser.add_argument("--pictures", type=Path, help="folder for a few test views beside their photos")
    parser.add_argument("--json", type=Path, help="file for all results")
    parser.add_argument("passed", nargs="*", metavar="-- FLAGS", help="flags for train.py")
    flags = parser.parse_args()
    for name in ("mcmc_iterations", "adc_iterations", "cap_max", "profile"):
        if (value := getattr(flags, name)) is not None and value < 1:
            raise UserError(f"--{name} {value}: expected at least 1.")
    if not flags.source.is_dir():
        raise UserError(f"{flags.source} does not exist. Name the scene folder with -s.")
    return flags


def main() -> None:
    flags = parse()
    device = choose_device(flags.device)  # compiles the kernels, if that was not done yet
    if flags.profile is not None:
        print(profile(flags.source, flags.resolution, flags.cap_max, flags.profile, device), flush=True)
        return
    report: dict = {
        "machine": machine_name(device),
        "git_revision": git_revision(),
        "source": f"{flags.source.name}, -r {flags.resolution}",
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = flags.models or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        runs = Runs(flags, folder)
        for kind in flags.runs:
            report["runs"].append(runs.train(kind))
            if flags.json is not None:
                write_json(flags.json, report)
    print(markdown(report), flush=True)


if __name__ == "__main__":
    run(main)
