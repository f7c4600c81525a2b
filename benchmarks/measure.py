"""What the benchmark scripts share: interleaved timing, peak memory, Markdown tables, flags and reports."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from scene.cameras import Camera
from utils.files import write_json
from utils.scripts import git_revision

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SHARED_DIR") or ROOT.parent / "shared")
WARM_UP = 3  # calls of every contender before anything is counted
BURST = 5  # calls in a row between two events


class Bench:
    """Measurements on one number of Gaussians, which go to a report."""

    def __init__(self, n: int, device: torch.device, report: dict[str, Any]):
        self.n, self.device, self.report = n, device, report

    def compare(self, case: str, channels: int, calls: dict[str, Callable[[], object]], slow: str = "") -> None:
        """Time calls in turns, in reversed order every other time; the `slow` one is called once only.

        A timing has `ms`, the median over the repetitions of the mean of a burst, which is what a loop sees, with
        `quartiles_ms`; `single_ms`, the median of one call after a synchronisation, in which no launch hides behind
        earlier work; on a GPU `peak_bytes`, memory above what was there before; or in `note` why the call failed.
        """
        print(f"  {case}, N={self.n:,}, K={channels} ...", file=sys.stderr)
        empty = {"case": case, "n": self.n, "channels": channels, "note": ""}
        empty |= dict.fromkeys(("ms", "quartiles_ms", "single_ms", "peak_bytes"))
        timings, bursts, singles = {who: empty | {"who": who} for who in calls}, {}, {}
        for who, call in calls.items():
            try:
                if who == slow:
                    singles[who] = bursts[who] = [elapsed_ms(call, self.device)]
                    continue
                for _ in range(WARM_UP):
                    call()
                if self.device.type == "cuda":
                    timings[who]["peak_bytes"] = peak_bytes(call, self.device)
                bursts[who], singles[who] = [], []
            except Exception as error:  # out of memory, or not possible here: the others still run
                timings[who]["note"] = reason(error)
                torch.cuda.empty_cache()
        gc.disable()  # a collection in the middle of a repetition would be its slowest part
        running = [who for who in bursts if who != slow]
        for repetition in range(self.report["repeats"]):
            for who in running if repetition % 2 == 0 else reversed(running):
                singles[who].append(elapsed_ms(calls[who], self.device))
                bursts[who].append(elapsed_ms(calls[who], self.device, BURST))
        gc.enable()
        for who, values in bursts.items():
            quarters = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
            timings[who]["ms"], timings[who]["quartiles_ms"] = statistics.median(values), (quarters[0], quarters[2])
            timings[who]["single_ms"] = statistics.median(singles[who])
        self.report["timings"] += timings.values()


def elapsed_ms(work: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Milliseconds a call; on a GPU on the current stream, from an idle one to the end of the last kernel."""
    if device.type == "cpu":
        began = time.perf_counter()
        for _ in range(calls):
            work()
        return 1e3 * (time.perf_counter() - began) / calls
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Largest memory of one call above what was allocated before, as PyTorch's allocator counts it."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def new_report(device: torch.device, **facts: Any) -> dict[str, Any]:
    """A report for --json that begins with the machine and the revision."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    name = f"{(names or [platform.processor()])[0]}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    return {"machine": name, "git_revision": git_revision(), **facts}


def sizes_report(flags: argparse.Namespace, device: torch.device, camera: Camera, **facts: Any) -> dict[str, Any]:
    """A report of a benchmark on generated Gaussians."""
    facts |= {"picture": [camera.width, camera.height], "repeats": flags.repeats, "sizes": sorted(flags.sizes)}
    return new_report(device, **facts, timings=[], notes=[])


def flag_parser(description: str, generated: bool) -> argparse.ArgumentParser:
    """A parser with the flags of all benchmarks, and those for generated Gaussians or for train.py on a real scene."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="file for all results")
    if generated:
        default = "$SCENE_GEN, else bench/scene_gen.py below $SHARED_DIR (../shared)"
        parser.add_argument("--sizes", type=count, nargs="+", default=[300_000, 577_000, 1_000_000], help="Gaussians")
        parser.add_argument("--repeats", type=count, default=15, help="of each case; their median counts")
        parser.add_argument("--scene_gen", type=Path, help=f"file with make_scene and make_cam; default: {default}")
    else:
        parser.add_argument("-s", "--source", type=Path, default=SHARED / "scenes/redkitchen", help="scene folder")
        parser.add_argument("-r", "--resolution", type=int, default=1, help="see train.py")
        parser.add_argument("--models", type=Path, help="keep the model folders here; else they are removed")
        parser.add_argument("passed", nargs="*", metavar="-- FLAGS", help="flags for train.py")
    return parser


def count(text: str) -> int:
    """Type of a flag that takes integers from 1 on."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1.")
    return int(text)


def runs_markdown(report: dict[str, Any], facts: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The table of a benchmark on a real scene, then the runs that failed."""
    lines = [f"{report['machine']}; commit {report['git_revision']}; {facts}", "", *markdown_table(head, rows)]
    return "\n".join(lines + [f"- {r['run']}: {r['note']}" for r in report["runs"] if r["note"]])


def take_sizes(flags: argparse.Namespace, report: dict[str, Any], take: Callable[[int], None]) -> None:
    """Call `take` for each size of a report; --json is written after each, so that an interrupted run keeps it."""
    for n in report["sizes"]:
        try:
            take(n)
        except Exception as error:  # a size that does not fit leaves the others
            report["notes"].append(f"{n:,} Gaussians: {reason(error)}")
        torch.cuda.empty_cache()
        if flags.json is not None:
            write_json(flags.json, report)


def take_runs(flags: argparse.Namespace, report: dict[str, Any], trainings: dict[str, Callable[[Path], dict]]) -> None:
    """Train models in folders of these names; --json is written after each, so that an interrupted run keeps it."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, train in trainings.items():
            report["runs"].append(train((flags.models or Path(temporary)) / name))
            if flags.json is not None:
                write_json(flags.json, report)


def read_curve(log: Path, *names: str) -> list[dict[str, Any]]:
    """The lines of log.jsonl that have these numbers of the test views, with iteration and seconds."""
    lines = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return [{key: line[key] for key in ("iteration", "seconds", *names)} for line in lines if names[0] in line]


def run_script(script: str, *words: object) -> str:
    """Run train.py or eval.py; return why it failed, or an empty string."""
    command = [sys.executable, str(ROOT / script), *map(str, words)]
    print(" ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, cwd=ROOT)
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"{script} ended with {done.returncode}: {last}" if done.returncode else ""


def reason(error: BaseException) -> str:
    """An exception in one short line, with the one it came from: a failed compilation hides behind an ImportError."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}".removesuffix(": ")
    earlier = error.__cause__ or error.__context__
    return text if earlier is None else f"{text} (after {reason(earlier)})"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose columns also line up in a terminal."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    padded = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    rule = "|".join("-" * (width + 2) for width in widths)
    return [f"| {padded[0]} |", f"|{rule}|", *(f"| {row} |" for row in padded[1:])]


def milliseconds(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.3f}" if ms < 10 else f"{ms:.1f}"


def ratio(value: float | None, other: float | None) -> str:
    return "-" if value is None or not other else f"{value / other:.2f}x"


def markdown(report: dict[str, Any], head: Sequence[str], rows: dict[int, list], fact: str) -> str:
    """The tables of a benchmark on generated Gaussians: one for each size, then what could not be measured."""
    width, height = report["picture"]
    lines = [
        f"{report['machine']}; {fact}; commit {report['git_revision']}; {width}x{height}, medians of "
        f"{report['repeats']} repetitions."
    ]
    for n in report["sizes"]:
        lines += ["", f"### {n:,} Gaussians", "", *(markdown_table(head, rows[n]) if rows[n] else ["Not measured."])]
    notes = [f"{t['n']:,} Gaussians, {t['case']}, {t['who']}: {t['note']}" for t in report["timings"] if t["note"]]
    notes += report["notes"]
    return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)])
