"""Time referring training and queries at the size of real scenes, beside plain PyTorch and what the hardware allows.

    python benchmarks/referring.py --json referring.json             GPU: minutes
    python benchmarks/referring.py --sizes 2000 --repeats 3          anywhere; plain PyTorch is all there is on a CPU
    python benchmarks/referring_report.py referring.json             its tables again, as Markdown

benchmarks/referring_work.py says what is trained, docs/PERFORMANCE.md how it is measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see rasterizer.py

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks import floors, stages  # noqa: E402
from benchmarks.gpu_timing import (  # noqa: E402
    WARM_UP,
    Contender,
    compare,
    copy_bandwidth,
    machine_name,
    product_rate,
    reason,
)
from benchmarks.query import Queries, time_queries  # noqa: E402
from benchmarks.referring_report import (  # noqa: E402
    FIRST,
    KEPT_VIEW,
    LATE_TAU,
    NEW_VIEW,
    OURS,
    STEP,
    STEP_ALL,
    markdown,
)
from benchmarks.referring_work import (  # noqa: E402
    EARLY,
    LATE,
    SENTENCES,
    WORDS,
    ReferringWork,
    Trainer,
    backends,
    random_field,
    started,
    with_backend,
)
from benchmarks.workload import SceneGenerator  # noqa: E402
from gaussian_renderer import ScoreRenderer  # noqa: E402
from referring.field import ReferringField  # noqa: E402
from referring.kernels.backend import PRECISIONS, Backend  # noqa: E402
from scene.gaussian_model import GaussianModel  # noqa: E402
from utils.device import choose_device  # noqa: E402
from utils.errors import UserError, run  # noqa: E402
from utils.files import write_json  # noqa: E402
from utils.scripts import git_revision  # noqa: E402

PROFILED = 10  # calls in a trace
STEPS = {STEP: "1", STEP_ALL: "all"}  # sentences a step

Result = TypeVar("Result")


class Bench:
    """One number of Gaussians; results go to `report`."""

    def __init__(self, work: ReferringWork, fields: dict[str, Backend], device: torch.device, report: dict):
        self._work, self._backends, self._device, self._report = work, fields, device, report
        self._n, self._repeats = len(work.gaussians), report["repeats"]

    def time(self) -> None:
        """Times, memory and floors of steps and queries."""
        for case, sentences_per_step in STEPS.items():
            self._time_steps(case, sentences_per_step)
        self._time_queries()

    def _time_steps(self, case: str, sentences_per_step: str) -> None:
        """Plain PyTorch takes part at the first share of top Gaussians only."""
        trainers: dict[str, Trainer] = {}
        sentences = SENTENCES if sentences_per_step == "all" else int(sentences_per_step)
        for who, backend in self._backends.items():
            if who != OURS and sentences_per_step == "all" and self._n > self._report["plain_up_to"]:
                self._report["notes"].append(f"{self._n:,} Gaussians, {case}, {who}: left out, see --plain_up_to")
                continue
            made = self._attempt(f"{case}, {who}", lambda b=backend: self._started(sentences_per_step, b))
            if made is None:
                continue
            trainers[who], memory = made
            if memory is not None:
                self._report["memory"].append({"case": case, "who": who, "n": self._n, **asdict(memory)})
        early = {who: Contender(lambda t=trainer: t.step(EARLY)) for who, trainer in trainers.items()}
        late = {who: Contender(lambda t=trainer: t.step(LATE)) for who, trainer in trainers.items() if who == OURS}
        for name, contenders in ((case, early), (case + LATE_TAU, late)):
            timings = compare(name, self._n, sentences, contenders, self._device, self._repeats)
            self._report["timings"] += [asdict(timing) for timing in timings]
        if OURS in trainers:
            field, seen = trainers[OURS].field, floors.views(trainers[OURS].renderer, self._work.cameras)
            moved = floors.step_bytes(field, sentences, seen)
            done = floors.step_operations(field, sentences, WORDS, SENTENCES, seen)
            self._report["floors"].append({"case": case, "n": self._n, "bytes": moved, "operations": done})

    def _time_queries(self) -> None:
        gaussians, fields, tokens = self._queried()
        cameras = self._work.cameras
        timings = time_queries(gaussians, fields, tokens, cameras, self._device, self._repeats)
        self._report["timings"] += [asdict(timing) for timing in timings]
        seen = floors.views(ScoreRenderer(gaussians, max_bytes=0), cameras)
        for case in (FIRST, NEW_VIEW, KEPT_VIEW):
            moved = floors.mask_bytes(self._n, seen, new_sentence=case == FIRST, new_view=case != KEPT_VIEW)
            done = floors.mask_operations(fields[OURS], 1, WORDS) if case == FIRST else {}
            self._report["floors"].append({"case": case, "n": self._n, "bytes": moved, "operations": done})

    def trace(self) -> None:
        """The stages of steps and queries."""
        for case, sentences_per_step in STEPS.items():
            trainer, _ = self._started(sentences_per_step, self._backends[OURS])
            self._trace(case, trainer.step, stages.step_windows(trainer.field.backend), stages.LOSSES)
        gaussians, fields, tokens = self._queried()
        new, kept = (Queries(gaussians, fields[OURS], tokens, self._work.cameras, keep=keep) for keep in (False, True))
        for case, work in ((FIRST, new.first_mask), (NEW_VIEW, new.further_view), (KEPT_VIEW, kept.further_view)):
            self._trace(case, work, stages.query_windows(fields[OURS].backend), stages.MASK)

    def _trace(self, case: str, work: Callable[[], object], windows: list[stages.Window], outside: str) -> None:
        for _ in range(WARM_UP):
            work()
        shares = stages.shares(work, PROFILED, windows, outside, self._device)
        self._report["stages"].append({"case": case, "n": self._n, **shares._asdict()})

    def _queried(self) -> tuple[GaussianModel, dict[str, ReferringField], list[Tensor]]:
        """Gaussians, fields by who computes them, and tokens, on the device."""
        field = random_field(self._n).to(self._device)
        fields = {who: with_backend(field, backend) for who, backend in self._backends.items()}
        return self._work.gaussians.to(self._device), fields, [t.to(self._device) for t in self._work.tokens.values()]

    def _started(self, sentences_per_step: str, backend: Backend) -> tuple[Trainer, object]:
        return started(lambda: Trainer(self._work, sentences_per_step, backend, self._device), self._device)

    def _attempt(self, what: str, work: Callable[[], Result]) -> Result | None:
        """What `work` returns; None, and a note, if it cannot be done here, so that the others still run."""
        try:
            return work()
        except Exception as error:
            self._report["notes"].append(f"{self._n:,} Gaussians, {what}: {reason(error)}")
            return None


def measure(flags: argparse.Namespace, device: torch.device) -> dict:
    """Everything, written to the JSON file again and again, so that a run that is cut off leaves what it has.

    Raises:
        UserError: without a scene generator, or for a precision that cannot be had.
    """
    generator, fields = SceneGenerator(flags.scene_gen), backends(device, flags.precision)
    (camera,) = generator.orbit([0.0])
    report = {
        "machine": machine_name(device),
        "git_revision": git_revision(),
        "precision": flags.precision,
        "sizes": sorted(flags.sizes),
        "repeats": flags.repeats,
        "plain_up_to": flags.plain_up_to,
        "picture": [camera.width, camera.height],
        "copy_bytes_per_second": copy_bandwidth(device, flags.repeats),
        "product_operations_per_second": product_rate(device, flags.repeats),
        **{part: [] for part in ("timings", "memory", "stages", "floors", "notes")},
    }
    parts = {"times": Bench.time, "stages": Bench.trace}  # traces last: what they set up in the driver may slow it down
    for part, take in parts.items():
        for n in report["sizes"]:
            try:
                take(Bench(ReferringWork(generator, n), fields, device, report))
            except Exception as error:  # a size that cannot be had leaves the others
                report["notes"].append(f"{n:,} Gaussians, {part}: {reason(error)}")
            torch.cuda.empty_cache()
            if flags.json is not None:
                write_json(flags.json, report)
    return report


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[300_000, 577_000, 1_000_000], help="Gaussians")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="see train.py")
    parser.add_argument("--repeats", type=int, default=15, help="of each case; their median counts")
    parser.add_argument(
        "--plain_up_to", type=int, default=10**9, help="Gaussians up to which plain PyTorch takes all sentences a step"
    )
    parser.add_argument("--scene_gen", type=Path, help="see rasterizer.py")
    parser.add_argument("--json", type=Path, help="file for all results")
    flags = parser.parse_args()
    if min(flags.repeats, *flags.sizes) < 1:
        raise UserError(f"--repeats {flags.repeats} --sizes {flags.sizes}: expected numbers from 1 on.")
    return flags


def main() -> None:
    flags = parse()
    print(markdown(measure(flags, choose_device(flags.device))))


if __name__ == "__main__":
    run(main)
