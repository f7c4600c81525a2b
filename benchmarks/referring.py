"""Time referring training steps and queries at the size of real scenes, beside the field in plain PyTorch.

    python benchmarks/referring.py --json referring.json             GPU: minutes
    python benchmarks/referring.py --sizes 2000 --repeats 3          anywhere; plain PyTorch is all there is on a CPU

benchmarks/workload.py says what is trained, docs/PERFORMANCE.md how it is measured. Text is encoded
beforehand; masks of queries stay on the device, but for the one case that downloads probabilities.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see rasterizer.py

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks import measure, workload  # noqa: E402
from benchmarks.measure import milliseconds, ratio  # noqa: E402
from benchmarks.workload import OURS, PLAIN, ReferringWorkload, SceneGenerator  # noqa: E402
from gaussian_renderer import ScoreRenderer  # noqa: E402
from inference.captured_scores import Scorer  # noqa: E402
from inference.predict import Predictor  # noqa: E402
from referring.field import ReferringField  # noqa: E402
from referring.kernels.backend import PRECISIONS, Backend  # noqa: E402
from scene.cameras import Camera  # noqa: E402
from scene.gaussian_model import GaussianModel  # noqa: E402
from training.referring import ReferringStage  # noqa: E402
from utils.device import choose_device  # noqa: E402
from utils.errors import run  # noqa: E402

STEP, STEP_ALL = "step, one sentence", "step, all sentences of a view"
STEPS = {STEP: "1", STEP_ALL: "all"}  # --sentences_per_step
LATE_TAU = ", top share 0.005"  # of the Gaussians, for the contrastive loss; else it is 0.1
FIRST, NEW_VIEW, KEPT_VIEW = "first mask of a new sentence", "further view, new", "further view, its plan kept"
ON_CPU = "further view, new, probabilities on the CPU"


class Queries:
    """Masks of sentences with tokens [L, T] in views, both in turns; `keep` makes the plans of all views first."""

    def __init__(
        self, gaussians: GaussianModel, field: ReferringField, tokens: list[Tensor], cameras: list[Camera], keep: bool
    ):
        self._scorer, self.renderer = Scorer(field, gaussians.get_xyz), ScoreRenderer(gaussians, sys.maxsize)
        self._tokens, self._cameras, self._once = cycle(tokens), cycle(cameras), not keep
        self._scores = self._scorer.scores(tokens[:1])  # [1, N]
        for camera in cameras if keep else []:
            self.renderer.plan(camera)

    def first_mask(self) -> Tensor:
        """Return the mask of the next sentence in the next view, [H, W] bool."""
        self._scores = self._scorer.scores([next(self._tokens)])
        return self.further_view()

    @torch.no_grad()
    def further_view(self) -> Tensor:
        """Return the mask of the same sentence in the next view, [H, W] bool."""
        return self.renderer.render_scores(next(self._cameras), self._scores.T.contiguous(), self._once)[0] > 0


class ReferringBench(measure.Bench):
    """The workload at one number of Gaussians."""

    def __init__(self, work: ReferringWorkload, backends: dict[str, Backend], device: torch.device, report: dict):
        super().__init__(len(work.gaussians), device, report)
        self._work, self._backends = work, backends

    def time_steps(self, case: str, plain_up_to: int) -> None:
        """Time training steps; plain PyTorch takes part at the first share of top Gaussians only."""
        sentences = workload.SENTENCES if case == STEP_ALL else 1
        stages: dict[str, ReferringStage] = {}
        for who, backend in self._backends.items():
            if who == PLAIN and case == STEP_ALL and self.n > plain_up_to:
                self.report["notes"].append(f"{self.n:,} Gaussians, {case}, {who}: left out, see --plain_up_to")
                continue
            try:
                stages[who], peak = workload.start(self._work, STEPS[case], backend, self.device)
            except Exception as error:  # out of memory: the other still runs
                self.report["notes"].append(f"{self.n:,} Gaussians, {case}, {who}: {measure.reason(error)}")
                continue
            if peak is not None:
                self.report["memory"].append({"case": case, "who": who, "n": self.n, "peak": peak})
        self.compare(case, sentences, {who: partial(stage.step, workload.EARLY) for who, stage in stages.items()})
        late = {who: partial(stage.step, workload.LATE) for who, stage in stages.items() if who == OURS}
        self.compare(case + LATE_TAU, sentences, late)

    def time_queries(self) -> None:
        """Time first masks with every backend, and further views, for which the field is not needed."""
        gaussians, field = self._work.gaussians.to(self.device), workload.random_field(self.n).to(self.device)
        tokens = [t.to(self.device) for t in self._work.tokens.values()]
        cameras = self._work.cameras
        fields = {who: workload.with_backend(field, backend) for who, backend in self._backends.items()}
        new = {who: Queries(gaussians, each, tokens, cameras, keep=False) for who, each in fields.items()}
        self.compare(FIRST, 1, {who: queries.first_mask for who, queries in new.items()})
        self.compare(NEW_VIEW, 1, {OURS: new[OURS].further_view})
        kept = Queries(gaussians, fields[OURS], tokens, cameras, keep=True)
        self.compare(KEPT_VIEW, 1, {OURS: kept.further_view})
        predictor = Predictor(gaussians, fields[OURS], lambda names: dict.fromkeys(names, tokens[0]), 0.5, max_bytes=0)
        order = cycle(cameras)
        self.compare(ON_CPU, 1, {OURS: lambda: predictor.probabilities(next(order), ["a sentence"], once=True)})


def markdown(report: dict) -> str:
    """The tables of a report: milliseconds for each sentence or view, and the memory of training."""
    found = {(t["n"], t["case"], t["who"]): t for t in report["timings"] if t["ms"] is not None}
    peaks = {(m["n"], m["case"], m["who"]): f"{m['peak'] / 1e9:.2f}" for m in report["memory"]}
    rows: dict[int, list] = {n: [] for n in report["sizes"]}
    for n, case, _ in [key for key in found if key[2] == OURS]:
        ours, plain = found[n, case, OURS], found.get((n, case, PLAIN), {"ms": None})
        sentences = ours["channels"]
        numbers = ours["ms"], *ours["quartiles_ms"], ours["single_ms"], plain["ms"]
        ms, low, high, single, plain_ms = (milliseconds(v and v / sentences) for v in numbers)
        memory = [peaks.get((n, case, who), "-") for who in (OURS, PLAIN)]
        name = case + (", for each" if sentences > 1 else "")
        rows[n].append((name, ms, f"{low} to {high}", single, plain_ms, ratio(plain["ms"], ours["ms"]), *memory))
    head = ("ms", OURS, "quartiles", "one call", PLAIN, "of ours", "peak memory, GB", PLAIN)
    return measure.markdown(report, head, rows, f"--precision {report['precision']}")


def main() -> None:
    parser = measure.flag_parser(__doc__, generated=True)
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="see train.py")
    parser.add_argument(
        "--plain_up_to", type=int, default=10**9, help="Gaussians up to which plain PyTorch takes all sentences a step"
    )
    flags = parser.parse_args()
    device = choose_device(flags.device)
    generator, backends = SceneGenerator(flags.scene_gen), workload.choose_backends(device, flags.precision)
    (camera,) = generator.orbit([0.0])
    report = measure.sizes_report(flags, device, camera, precision=flags.precision, memory=[])

    def take(n: int) -> None:
        bench = ReferringBench(ReferringWorkload(generator, n), backends, device, report)
        for case in STEPS:
            bench.time_steps(case, flags.plain_up_to)
        bench.time_queries()

    measure.take_sizes(flags, report, take)
    print(markdown(report))


if __name__ == "__main__":
    run(main)
