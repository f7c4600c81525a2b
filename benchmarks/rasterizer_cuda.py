"""The GPU comparison: our CUDA kernels and gsplat's on the same Gaussians, in the same run.

Gradients of scores reach the scores only, as in training with frozen geometry; gsplat's geometry then needs no
gradient either, and a line of its own has all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu_timing import Contender, allocated_by, compare, copy_bandwidth, elapsed_ms, machine_name, reason
from benchmarks.gsplat_cuda import Gsplat
from benchmarks.workload import SceneGenerator, Workload
from utils.errors import UserError
from utils.files import write_json
from utils.scripts import git_revision

import diff_gaussian_rasterization as ours  # isort: skip
from simple_knn._C import distCUDA2  # isort: skip

CHANNELS = (1, 2, 4, 8, 16, 32, 64)  # of a forward pass
TRAINED_CHANNELS = (1, 16)  # of a forward and backward pass
KNN_SIZES = (100_000, 1_000_000, 5_000_000)
KNN_SCIPY = 1_000_000  # the size at which SciPy's tree on the CPU is timed, once


class Bench:
    """One workload with our plan and with gsplat, which is None where it cannot be had; results go to `report`."""

    def __init__(self, work: Workload, report: dict, repeats: int):
        self.work, self.report, self.repeats = work, report, repeats
        self.device, self.n = work.means.device, len(work.means)
        self.settings = work.settings()
        self.prepare = partial(ours.prepare, settings=self.settings, **work.geometry())
        self.prepare()  # what is allocated once, at the first call, is no part of a plan
        self.plan, self.plan_bytes = allocated_by(self.prepare, self.device)
        self.plan_nbytes = self.plan.nbytes
        self.gsplat, self.kept_lists, self.kept_lists_bytes = None, {}, 0
        if report["gsplat_missing"]:  # compiling it takes minutes, also in vain: one attempt is enough
            return
        try:
            self.gsplat = Gsplat(work)
            report["gsplat"] = self.gsplat.version
            self.kept_lists, self.kept_lists_bytes = allocated_by(self.gsplat.lists, self.device)
        except Exception as error:
            self.gsplat, report["gsplat_missing"] = None, reason(error)

    def random(self, *shape: int) -> Tensor:
        """Uniform numbers, the same in every run."""
        generator = torch.Generator(self.device).manual_seed(1)
        return torch.rand(*shape, generator=generator, device=self.device)

    def without_plan(self, scores: Tensor) -> Tensor:
        """Scores [N, K] as a picture [K, H, W]."""
        return ours.rasterize_scores(scores, settings=self.settings, **self.work.geometry())

    def compare(self, case: str, channels: int, contenders: dict[str, Contender]) -> None:
        """Time contenders and add them to the report; those of gsplat only where it is there."""
        there = {who: c for who, c in contenders.items() if self.gsplat is not None or not who.startswith("gsplat")}
        timings = compare(case, self.n, channels, there, self.device, self.repeats)
        self.report["timings"] += [asdict(timing) for timing in timings]

    def gsplat_chunk(self, scores: Tensor) -> int:
        """gsplat's faster way to blend these channels: at once, or in passes of 32, its default."""
        chunks = sorted({32, max(32, scores.shape[1])})
        if self.gsplat is None or len(chunks) == 1:
            return 32
        runs = {chunk: partial(self.gsplat.scores, scores, chunk) for chunk in chunks}
        return min(chunks, key=lambda chunk: (runs[chunk](), elapsed_ms(runs[chunk], self.device, 5))[1])

    @torch.no_grad()
    def time_prepare(self) -> None:
        """Projection, sorting, tile lists."""
        contenders = {"ours": Contender(self.prepare), "gsplat": Contender(lambda: self.gsplat.lists())}
        self.compare("prepare", 0, contenders)

    @torch.no_grad()
    def time_scores_forward(self, channels: int) -> None:
        """Inference."""
        scores = self.random(self.n, channels)
        chunk = self.gsplat_chunk(scores)
        contenders = {
            "ours": Contender(lambda: self.without_plan(scores)),
            "gsplat": Contender(lambda: self.gsplat.scores(scores, chunk)),
            "ours, plan": Contender(lambda: self.plan.render(scores), self.plan_bytes),
            "gsplat, kept lists": Contender(
                lambda: self.gsplat.blend(self.kept_lists, scores, chunk), self.kept_lists_bytes
            ),
        }
        self.compare("scores forward", channels, contenders)

    def time_scores_both(self, channels: int) -> None:
        """Training of scores."""
        scores = self.random(self.n, channels).requires_grad_()
        cotangent = self.random(channels, self.work.camera.height, self.work.camera.width) - 0.5  # [K, H, W]
        cotangent_last = cotangent.permute(1, 2, 0)[None].contiguous()  # [1, H, W, K]

        def pull(render: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
            return torch.autograd.grad(render(scores), scores, cotangent)

        def pull_gsplat(render: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
            return torch.autograd.grad(render(scores), scores, cotangent_last)

        def pull_gsplat_all() -> tuple[Tensor, ...]:
            geometry = {name: tensor.detach().requires_grad_() for name, tensor in self.gsplat.geometry.items()}
            picture = self.gsplat.scores(scores, geometry=geometry)
            return torch.autograd.grad(picture, (scores, *geometry.values()), cotangent_last)

        def used_plan() -> ours.RasterPlan:
            plan = self.prepare()
            _deterministic(lambda: pull(plan.render))()
            return plan

        fixed_order_plan, fixed_order_bytes = allocated_by(used_plan, self.device)  # a plan keeps that order, too
        contenders = {
            "ours": Contender(lambda: pull(self.without_plan)),
            "gsplat": Contender(lambda: pull_gsplat(self.gsplat.scores)),
            "ours, plan": Contender(lambda: pull(self.plan.render), self.plan_bytes),
            "gsplat, kept lists": Contender(
                lambda: pull_gsplat(partial(self.gsplat.blend, self.kept_lists)), self.kept_lists_bytes
            ),
            "ours, plan, deterministic": Contender(
                _deterministic(lambda: pull(fixed_order_plan.render)), fixed_order_bytes
            ),
            "gsplat, all gradients": Contender(pull_gsplat_all),
        }
        self.compare("scores forward + backward", channels, contenders)

    def time_colour(self) -> None:
        """Colour of degree 3: a picture, and training of everything."""
        means2D = torch.zeros_like(self.work.means)
        rasterizer = ours.GaussianRasterizer(self.settings._replace(include_feature=False))
        cotangent = self.random(3, self.work.camera.height, self.work.camera.width) - 0.5  # [3, H, W]
        cotangent_last = cotangent.permute(1, 2, 0)[None].contiguous()  # [1, H, W, 3]
        inputs = {**self.work.geometry(), "shs": self.work.shs}

        def picture(inputs: dict[str, Tensor]) -> Tensor:
            color, _, _ = rasterizer(means2D=means2D, **inputs)
            return color

        def picture_gsplat(geometry: dict[str, Tensor], shs: Tensor) -> Tensor:
            return self.gsplat.colour(shs, self.work.sh_degree, geometry)

        def pull() -> tuple[Tensor, ...]:
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
            return torch.autograd.grad(picture(leaves), tuple(leaves.values()), cotangent)

        def pull_gsplat() -> tuple[Tensor, ...]:
            geometry = {name: tensor.detach().requires_grad_() for name, tensor in self.gsplat.geometry.items()}
            shs = self.work.shs.detach().requires_grad_()
            return torch.autograd.grad(picture_gsplat(geometry, shs), (shs, *geometry.values()), cotangent_last)

        with torch.no_grad():
            contenders = {
                "ours": Contender(lambda: picture(inputs)),
                "gsplat": Contender(lambda: picture_gsplat(self.gsplat.geometry, self.work.shs)),
            }
            self.compare("colour forward", 3, contenders)
        contenders = {
            "ours": Contender(pull),
            "gsplat": Contender(pull_gsplat),
            "ours, deterministic": Contender(_deterministic(pull)),
        }
        self.compare("colour forward + backward", 3, contenders)
        if self.gsplat is not None:
            with torch.no_grad():
                rival = picture_gsplat(self.gsplat.geometry, self.work.shs)
                self.report["agreement"].append(self._agreement("colour", picture(inputs), rival))

    @torch.no_grad()
    def compare_scores(self) -> None:
        """How far our pictures of scores are from gsplat's, whose conventions differ in details."""
        if self.gsplat is None:
            return
        scores = self.random(self.n, 4)
        rival = self.gsplat.scores(scores)
        for what, picture in (("scores", self.without_plan(scores)), ("scores, plan", self.plan.render(scores))):
            self.report["agreement"].append(self._agreement(what, picture, rival))

    def _agreement(self, what: str, picture: Tensor, rival: Tensor) -> dict:
        apart = (picture - rival[0].permute(2, 0, 1)).abs().flatten()  # [C H W]
        rank = round(0.999 * len(apart))
        return {
            "what": what,
            "n": self.n,
            "max": apart.max().item(),
            "percentile_99.9": apart.kthvalue(max(rank, 1)).values.item(),
        }

    @torch.no_grad()
    def describe_plan(self) -> None:
        """Size of the plan, and the bytes that a forward pass must move at least.

        These are the plan without its radii, the values of the Gaussians that contribute to a pixel, and the picture,
        each once.
        """
        image = torch.ones(1, self.work.camera.height, self.work.camera.width, device=self.device)
        drawn = int((self.plan.backproject(image) > 0).sum())
        lists = self.plan_nbytes - self.plan.radii.nbytes
        floor = {str(channels): lists + 4 * channels * (drawn + image.numel()) for channels in CHANNELS}
        self.report["plans"].append(
            {
                "n": self.n,
                "nbytes": self.plan_nbytes,
                "allocated_bytes": self.plan_bytes,
                "contributing_gaussians": drawn,
                "floor_bytes": floor,
            }
        )


def _deterministic(work: Callable[[], object]) -> Callable[[], object]:
    """The same work, with the same bits in every run."""

    def wrapped() -> object:
        with _deterministic_mode():
            return work()

    return wrapped


@contextmanager
def _deterministic_mode() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def time_knn(generator: SceneGenerator, report: dict, sizes: tuple[int, ...], device: torch.device) -> None:
    """simple_knn on the centres of the scene; SciPy's tree on the CPU at one size."""
    distances = distCUDA2
    for n in sizes:
        points = generator.workload(n, device).means
        row = {"n": n}
        report["knn"].append(row)
        try:
            found = distances(points)
            row["ms"] = statistics.median(elapsed_ms(partial(distances, points), device) for _ in range(5))
        except Exception as error:
            row["note"] = reason(error)
            continue
        if n == KNN_SCIPY:
            on_cpu = points.cpu()
            start = time.perf_counter()
            expected = distances(on_cpu)
            row["scipy_ms"] = 1e3 * (time.perf_counter() - start)
            apart = (found.cpu() - expected).abs() / expected.clamp_min(torch.finfo(torch.float32).tiny)
            row["largest_relative_difference"] = apart.max().item()


def run_cuda(
    scene_gen: Path | None, sizes: list[int], sweep: list[int], repeats: int, device: torch.device, json: Path | None
) -> dict:
    """Everything, written to `json` after each size, so that a run that is cut off leaves what it has.

    Args:
        scene_gen: see `SceneGenerator`.
        sizes: numbers of Gaussians for all cases.
        sweep: further numbers of Gaussians, for one channel only.

    Raises:
        UserError: without a scene generator, or without our CUDA kernels, for plain PyTorch would take hours.
    """
    if ours.backend_for(device) != "cuda":
        raise UserError(
            f"The rasteriser would run as {ours.backend_for(device)}, not with its CUDA kernels. "
            "`python -m diff_gaussian_rasterization` says what is missing."
        )
    generator = SceneGenerator(scene_gen)
    report = {
        "machine": machine_name(device),
        "git_revision": git_revision(),
        "gsplat": None,
        "gsplat_missing": None,
        "sizes": sorted(sizes),
        "repeats": repeats,
        "copy_bytes_per_second": copy_bandwidth(device, repeats),
        **{part: [] for part in ("timings", "plans", "agreement", "knn")},
    }
    for n in sorted({*sizes, *sweep}):
        bench = Bench(generator.workload(n, device), report, repeats)
        report["picture"] = [bench.work.camera.width, bench.work.camera.height]
        whole = n in sizes
        bench.time_prepare()
        for channels in CHANNELS if whole else (1,):
            bench.time_scores_forward(channels)
        for channels in TRAINED_CHANNELS if whole else (1,):
            bench.time_scores_both(channels)
        if whole:
            bench.time_colour()
            bench.compare_scores()
        bench.describe_plan()
        del bench
        torch.cuda.empty_cache()
        _save(report, json)
    time_knn(generator, report, KNN_SIZES, device)
    _save(report, json)
    return report


def _save(report: dict, json: Path | None) -> None:
    if json is not None:
        write_json(json, report)
