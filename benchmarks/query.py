"""Time queries of a referring field: the first mask of a sentence from its tokens, and the mask in each further view.

    python benchmarks/query.py -m output/ramen                 # a trained model, its sentences in its test views
    python benchmarks/query.py --size 300000 --device cuda     # the generated scene of benchmarks/referring.py

The text is encoded beforehand. A mask stays where the model is; pictures that go to the CPU have a line of their own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see rasterizer.py

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from arguments import ModelParams, PipelineParams  # noqa: E402
from benchmarks.gpu_report import milliseconds, table  # noqa: E402
from benchmarks.gpu_timing import Contender, Timing, compare, machine_name  # noqa: E402
from benchmarks.referring_report import FIRST, KEPT_VIEW, NEW_VIEW, ON_CPU  # noqa: E402
from benchmarks.referring_work import ReferringWork, backends, random_field, with_backend  # noqa: E402
from benchmarks.workload import SceneGenerator  # noqa: E402
from gaussian_renderer import ScoreRenderer  # noqa: E402
from inference.captured_scores import Scorer  # noqa: E402
from inference.predict import Predictor, open_trained, saved_model_flags  # noqa: E402
from referring.field import ReferringField  # noqa: E402
from referring.kernels.backend import PRECISIONS  # noqa: E402
from scene.cameras import Camera  # noqa: E402
from scene.gaussian_model import GaussianModel  # noqa: E402
from utils.device import choose_device  # noqa: E402
from utils.errors import UserError, run  # noqa: E402

VIEWS = 8  # of a trained model


class Queries:
    """Masks of sentences in views, both taken in turns.

    Args:
        gaussians, field: the model.
        tokens: [L, T] of each sentence, on the model's device.
        cameras: at least two, so that each view is new unless its plan is kept.
        keep: make the plans of all views beforehand and keep them; else every view is looked at once.
    """

    def __init__(
        self, gaussians: GaussianModel, field: ReferringField, tokens: list[Tensor], cameras: list[Camera], keep: bool
    ):
        self._scorer = Scorer(field, gaussians.get_xyz)
        self.renderer = ScoreRenderer(gaussians, sys.maxsize)
        self._tokens, self._cameras, self._once = cycle(tokens), cycle(cameras), not keep
        self._scores = self._scorer.scores(tokens[:1])  # [1, N]
        for camera in cameras if keep else []:
            self.renderer.plan(camera)

    def first_mask(self) -> Tensor:
        """The mask of the next sentence in the next view, [H, W] bool."""
        self._scores = self._scorer.scores([next(self._tokens)])
        return self.further_view()

    @torch.no_grad()
    def further_view(self) -> Tensor:
        """The mask of the same sentence in the next view, [H, W] bool."""
        return self.renderer.render_scores(next(self._cameras), self._scores.T.contiguous(), self._once)[0] > 0


def time_queries(
    gaussians: GaussianModel,
    fields: dict[str, ReferringField],
    tokens: list[Tensor],
    cameras: list[Camera],
    device: torch.device,
    repeats: int,
) -> list[Timing]:
    """First masks by every field, and further views, which no field takes part in, of the first.

    Args:
        fields: by who computes them.
        tokens, cameras: see `Queries`.
    """
    n, (who, field) = len(gaussians), next(iter(fields.items()))
    new = {name: Queries(gaussians, each, tokens, cameras, keep=False) for name, each in fields.items()}
    timings = compare(FIRST, n, 1, {name: Contender(each.first_mask) for name, each in new.items()}, device, repeats)
    timings += compare(NEW_VIEW, n, 1, {who: Contender(new[who].further_view)}, device, repeats)
    kept = Queries(gaussians, field, tokens, cameras, keep=True)
    timings += compare(KEPT_VIEW, n, 1, {who: Contender(kept.further_view)}, device, repeats)
    predictor = Predictor(gaussians, field, lambda names: dict.fromkeys(names, tokens[0]), threshold=0.5, max_bytes=0)
    order = cycle(cameras)
    work = Contender(lambda: predictor.probabilities(next(order), ["a sentence"], once=True))
    return timings + compare(ON_CPU, n, 1, {who: work}, device, repeats)


def model_queries(flags: argparse.Namespace, device: torch.device) -> tuple[GaussianModel, ReferringField, list, list]:
    """Gaussians, field, tokens and cameras of a trained model: its test views first, and their sentences.

    Raises:
        UserError: if the model or its scene is missing or damaged, or has fewer than two views or no sentence.
    """
    saved = saved_model_flags(flags) | ({"source_path": flags.source_path} if flags.source_path else {})
    opened = open_trained(ModelParams(**saved), PipelineParams(device=device.type), flags.iteration, threshold=0.5)
    views = [*opened.scene.test, *opened.scene.train][:VIEWS]
    sentences = opened.scene.sentences([*opened.scene.test, *opened.scene.train])
    if len(views) < 2 or not sentences:
        raise UserError(
            f"{opened.scene.path} has {len(views)} views and {len(sentences)} sentences; a query needs a sentence, and "
            "two views, of which the second is a further one. Name another model with -m."
        )
    tokens = [t.to(device) for t in opened.predictor.encode(sentences).values()]
    return opened.trained.gaussians, opened.trained.field, tokens, [view.camera for view in views]


def generated_queries(
    size: int, scene_gen: Path | None, device: torch.device
) -> tuple[GaussianModel, ReferringField, list[Tensor], list[Camera]]:
    """Gaussians, field, tokens and cameras of the generated scene."""
    work = ReferringWork(SceneGenerator(scene_gen), size)
    tokens = [t.to(device) for t in work.tokens.values()]
    return work.gaussians.to(device), random_field(size).to(device), tokens, work.cameras


def query_table(timings: Sequence[Timing]) -> list[str]:
    """Markdown."""
    rows = []
    for t in timings:
        views = "-" if t.ms is None else f"{1e3 / t.ms:,.0f}"
        rows.append((t.case, t.who, milliseconds(t.ms), milliseconds(t.single_ms), views, t.note))
    return table(("case", "field", "ms in a loop", "ms of one call", "a second", "note"), rows)


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model_path", type=Path, help="folder of a trained model; else a scene is generated")
    parser.add_argument("-s", "--source_path", type=Path, help="its scene, if it is no longer where it was")
    parser.add_argument("--iteration", type=int, default=-1, help="saved iteration of the model; -1 takes the newest")
    parser.add_argument("--size", type=int, default=300_000, help="Gaussians of a generated scene")
    parser.add_argument("--scene_gen", type=Path, help="see rasterizer.py")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="see train.py")
    parser.add_argument("--repeats", type=int, default=15, help="of each case; their median counts")
    flags = parser.parse_args()
    for name in ("size", "repeats"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name} {getattr(flags, name)}: expected at least 1.")
    return flags


def main() -> None:
    flags = parse()
    device = choose_device(flags.device)
    if flags.model_path is None:
        gaussians, field, tokens, cameras = generated_queries(flags.size, flags.scene_gen, device)
    else:
        gaussians, field, tokens, cameras = model_queries(flags, device)
    fields = {who: with_backend(field, backend) for who, backend in backends(device, flags.precision).items()}
    timings = time_queries(gaussians, fields, tokens, cameras, device, flags.repeats)
    size = f"{cameras[0].width}x{cameras[0].height}"
    print(f"{machine_name(device)}; {len(gaussians):,} Gaussians, {size}; medians of {flags.repeats} repetitions.\n")
    print("\n".join(query_table(timings)))


if __name__ == "__main__":
    run(main)
