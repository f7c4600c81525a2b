"""The CPU table: our kernels, reference.py and gsplat's PyTorch implementation on the same Gaussians."""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.workload import Workload, load_workload  # also puts our packages on the path

import diff_gaussian_rasterization as ours  # isort: skip
from benchmarks.gsplat_torch import Gsplat  # isort: skip

GSPLAT_LISTS = 2_000  # Gaussians; its lists are made in Python loops, which take minutes for 100,000
GSPLAT_BLENDING = 20_000  # Gaussians; it keeps every (Gaussian, pixel) intersection in memory
PREPARE = "ours: prepare (project, sort, tile lists)"


@dataclass
class Row:
    """One line of the table."""

    name: str
    like: str  # name of the row that does the same work in our kernels
    seconds: list[float]
    note: str = ""


class Table:
    """Runs cases and prints them."""

    def __init__(self, repeats: int):
        self.repeats, self.rows = repeats, []

    def time(
        self, name: str, work: Callable[[], object], like: str = "", repeats: int | None = None, note: str = ""
    ) -> None:
        """Median of `repeats` runs after one that warms up; a case that cannot run becomes a line with the reason."""
        seconds = []
        try:
            for _ in range((repeats or self.repeats) + (repeats != 1)):
                start = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - start)
        except Exception as error:
            reason = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
            note, seconds = f"not possible here: {type(error).__name__}: {reason[:120]}", []
        self.rows.append(Row(name, like, seconds[1:] or seconds, note))
        print(f"  {name} ...", file=sys.stderr)

    def show(self) -> None:
        """Print the table."""
        medians = {row.name: statistics.median(row.seconds) for row in self.rows if row.seconds}
        print(f"\n{'case':<58}{'median ms':>11}{'min ms':>11}{'ratio':>9}  note")
        for row in self.rows:
            if not row.seconds:
                print(f"{row.name:<58}{'-':>11}{'-':>11}{'-':>9}  {row.note}")
                continue
            ratio = f"{medians[row.name] / medians[row.like]:.1f}x" if row.like in medians else ""
            print(
                f"{row.name:<58}{1e3 * medians[row.name]:>11.1f}{1e3 * min(row.seconds):>11.1f}{ratio:>9}  {row.note}"
            )


def time_ours(table: Table, work: Workload, channels: int) -> None:
    """Our kernels."""
    settings = work.settings()
    g = torch.Generator().manual_seed(1)
    size = (work.camera.height, work.camera.width)
    scores = torch.randn(len(work.means), channels, generator=g).to(work.means.device)
    cotangent = torch.randn(channels, *size, generator=g).to(scores.device)
    leaf = scores.clone().requires_grad_()

    def scores_both(render: Callable[[Tensor], Tensor]) -> None:
        leaf.grad = None
        render(leaf).backward(cotangent)

    def without_plan(values: Tensor) -> Tensor:
        return ours.rasterize_scores(values, settings=settings, **work.geometry())

    plan = ours.prepare(settings=settings, **work.geometry())
    name = f"ours, K={channels}: "
    if channels == 1:
        table.time(PREPARE, lambda: ours.prepare(settings=settings, **work.geometry()))
    table.time(name + "scores forward", lambda: without_plan(scores))
    table.time(name + "scores forward + backward", lambda: scores_both(without_plan))
    table.time(
        name + "scores forward, with plan", lambda: plan.render(scores), note=f"plan {plan.nbytes / 2**20:.1f} MiB"
    )
    table.time(name + "scores forward + backward, with plan", lambda: scores_both(plan.render))
    full = ours.GaussianRasterizer(settings)
    table.time(name + "colour forward", lambda: time_full(full, work, scores, None))
    table.time(name + "colour forward + backward, all gradients", lambda: time_full(full, work, scores, cotangent))


def time_full(rasterizer: torch.nn.Module, work: Workload, scores: Tensor, cotangent: Tensor | None) -> None:
    """Colour and scores; with a cotangent also the gradient of every input."""
    inputs = {
        **work.geometry(),
        "means2D": torch.zeros_like(work.means),
        "shs": work.shs,
        "language_feature_precomp": scores,
    }
    if cotangent is not None:
        inputs = {key: value.detach().requires_grad_() for key, value in inputs.items()}
    color, language, _ = rasterizer(**inputs)
    if cotangent is not None:
        torch.autograd.backward([color, language], [torch.ones_like(color), cotangent])


def time_reference(table: Table, work: Workload, repeats: int) -> None:
    """reference.py, one channel."""
    settings = work.settings()
    scores = torch.ones(len(work.means), 1, device=work.means.device)
    cotangent = torch.ones(1, work.camera.height, work.camera.width, device=scores.device)
    leaf = scores.clone().requires_grad_()
    full = ours.GaussianRasterizer(settings, backend="reference")

    def scores_forward(values: Tensor) -> Tensor:
        return ours.rasterize_scores(values, settings=settings, backend="reference", **work.geometry())

    for name, like, case in (
        ("scores forward", "scores forward", lambda: scores_forward(scores)),
        ("scores forward + backward", "scores forward + backward", lambda: scores_forward(leaf).backward(cotangent)),
        (
            "colour forward + backward",
            "colour forward + backward, all gradients",
            lambda: time_full(full, work, scores, cotangent),
        ),
    ):
        table.time(f"reference.py, K=1: {name}", case, f"ours, K=1: {like}", repeats)


def time_gsplat(table: Table, work: Workload, repeats: int) -> None:
    """gsplat's own PyTorch functions, step by step, see gsplat_torch.py."""
    prefix = "gsplat _torch_impl: "
    settings, device = work.settings(), work.means.device
    try:
        gsplat = Gsplat(work.camera, device)
    except Exception as error:
        table.rows.append(Row(prefix + "all", "", [], f"not possible here: {type(error).__name__}: {error}"))
        return
    inputs = (work.means, work.scales, work.rotations)
    table.time(prefix + "projection forward", lambda: gsplat.project(*inputs), PREPARE, repeats)
    table.time(prefix + "projection forward + backward", lambda: gsplat.project_both(*inputs), "", repeats)

    few = work.every(GSPLAT_LISTS)
    like = f"ours: prepare, {GSPLAT_LISTS:,} Gaussians"
    radii, means2d, depths, _ = gsplat.project(few["means3D"], few["scales"], few["rotations"])
    table.time(like, lambda: ours.prepare(settings=settings, **few))
    name = prefix + f"tile lists, {GSPLAT_LISTS:,} Gaussians"
    table.time(name, lambda: gsplat.tile_lists(radii, means2d, depths), like, 1, "Python loops")

    some = work.every(GSPLAT_BLENDING)
    plan, accumulate = ours.prepare(settings=settings, **some), gsplat.accumulation(some, settings)
    scores = torch.randn(GSPLAT_BLENDING, 1, device=device, requires_grad=True)
    apart = (accumulate(scores)[..., 0] - plan.render(scores)[0]).abs()
    same = f"{(apart < 1e-3).float().mean():.2%} of the pixels within 1e-3 of ours"
    for what, pull in (
        ("forward", lambda picture: None),
        ("forward + backward", lambda picture: picture.sum().backward()),
    ):
        size = f"{GSPLAT_BLENDING:,} Gaussians"
        like = f"ours, K=1: scores {what}, with plan, {size}"
        table.time(like, lambda pull=pull: pull(plan.render(scores)))
        name = prefix + f"blending {what}, {size}"
        table.time(name, lambda pull=pull: pull(accumulate(scores)), like, repeats, same)


def run_cpu(ply: Path | None, source: Path | None, repeats: int, slow_repeats: int) -> None:
    """Time every case and print the table.

    Args:
        ply, source: a point_cloud.ply and the scene it was trained on; None for the models in ../shared.
        slow_repeats: runs of reference.py and gsplat; 0 leaves them out.
    """
    work, note = load_workload(ply, source)
    print(f"backend: {ours.backend_for('cpu')}\ndata: {note}")
    print(f"{len(work.means):,} Gaussians, {work.camera.width} x {work.camera.height}, SH degree {work.sh_degree}")
    table = Table(repeats)
    for channels in (1, 16):
        time_ours(table, work, channels)
    if slow_repeats > 0:
        time_reference(table, work, slow_repeats)
        time_gsplat(table, work, slow_repeats)
    table.show()
