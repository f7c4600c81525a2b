"""Time the rasteriser, its plain-PyTorch twin and gsplat's PyTorch implementation on the same Gaussians.

    python benchmarks/rasterizer.py [--device cpu|cuda] [--ply POINT_CLOUD.ply --source SCENE] [--repeats 9]

Prints one table: median and fastest time of each case, and the median relative to the same work in our kernels.
Without --ply and --source the models in ../shared are taken, or a procedural scene where they are absent.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# Threads that wait give up their core: else one other busy process makes the many small operations of reference.py and
# gsplat 30 times slower. OpenMP reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from gaussian_renderer import raster_settings  # noqa: E402, also puts our packages on the path
from scene.cameras import Camera  # noqa: E402
from scene.dataset import Findings, open_views  # noqa: E402
from scene.gaussian_model import GaussianModel  # noqa: E402
from scene.gaussian_ply import load_ply  # noqa: E402
from utils.device import choose_device  # noqa: E402
from utils.errors import UserError, run  # noqa: E402

import diff_gaussian_rasterization as ours  # noqa: E402, isort: skip
from diff_gaussian_rasterization import reference  # noqa: E402, isort: skip
from benchmarks.gsplat_torch import Gsplat  # noqa: E402, isort: skip

SHARED = ROOT.parent / "shared"
PLY = SHARED / "scenes/redkitchen_3dgs/point_cloud/iteration_10000/point_cloud.ply"
SOURCE = SHARED / "scenes/redkitchen"
GSPLAT_LISTS = 2_000  # Gaussians; its lists are made in Python loops, which take minutes for 100,000
GSPLAT_BLENDING = 20_000  # Gaussians; it keeps every (Gaussian, pixel) intersection in memory
PREPARE = "ours: prepare (project, sort, tile lists)"


@dataclass
class Workload:
    """Activated Gaussians and one camera."""

    means: Tensor  # [N, 3]
    opacities: Tensor  # [N, 1]
    scales: Tensor  # [N, 3]
    rotations: Tensor  # [N, 4]
    shs: Tensor  # [N, M, 3]
    camera: Camera
    sh_degree: int

    def geometry(self) -> dict[str, Tensor]:
        """Arguments of `prepare`."""
        return {
            "means3D": self.means,
            "opacities": self.opacities,
            "scales": self.scales,
            "rotations": self.rotations,
        }

    def every(self, count: int) -> dict[str, Tensor]:
        """Arguments of `prepare` for `count` Gaussians spread over all."""
        ids = torch.linspace(0, len(self.means) - 1, count).long().to(self.means.device)
        return {name: tensor[ids] for name, tensor in self.geometry().items()}

    def settings(self) -> ours.GaussianRasterizationSettings:
        """Settings with extra channels."""
        background = torch.zeros(3, device=self.means.device)
        return raster_settings(self.camera, background, self.sh_degree)._replace(include_feature=True)


def load_workload(ply: Path | None, source: Path | None, device: torch.device) -> tuple[Workload, str]:
    """The Gaussians and a view of them, with a line that says what they are."""
    missing = [str(path) for path in (PLY, SOURCE) if not path.exists()]
    if missing and ply is None and source is None:
        model, camera = procedural_scene(100_000)
        note = f"procedural scene, because {' and '.join(missing)} is not there"
    else:
        ply, source = ply or PLY, source or SOURCE
        model = load_ply(ply)
        views, _ = open_views(source, "images", -1, Findings())
        camera, note = views[0].camera, f"{ply}, view {views[0].id}"
    model = model.to(device)
    tensors = (model.get_xyz, model.get_opacity, model.get_scaling, model.get_rotation, model.get_features)
    workload = Workload(*(t.detach().contiguous() for t in tensors), camera, model.active_sh_degree)
    return workload, note


def procedural_scene(n: int) -> tuple[GaussianModel, Camera]:
    """A floor with spheres on it, and a camera above."""
    g = torch.Generator().manual_seed(0)
    floor = torch.cat((torch.rand(n // 2, 2, generator=g) * 6 - 3, torch.zeros(n // 2, 1)), dim=1)
    which = torch.randint(0, 30, (n - n // 2,), generator=g)
    middles = torch.rand(30, 3, generator=g) * torch.tensor([4.0, 4.0, 0.3]) - torch.tensor([2.0, 2.0, 0.0])
    surface = torch.nn.functional.normalize(torch.randn(n - n // 2, 3, generator=g), dim=1)
    radii = 0.1 + 0.3 * torch.rand(30, 1, generator=g)
    model = GaussianModel(
        xyz=torch.cat((floor, middles[which] + radii[which] * surface)),
        features_dc=torch.randn(n, 1, 3, generator=g),
        features_rest=0.1 * torch.randn(n, 15, 3, generator=g),
        scaling=torch.randn(n, 3, generator=g) * 0.6 - 4.6,
        rotation=torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=1),
        opacity=torch.randn(n, 1, generator=g) * 2,
        active_sh_degree=3,
    )
    down = torch.tensor([[1.0, 0.0, 0.0], [0.0, -0.6, -0.8], [0.0, 0.8, -0.6]], dtype=torch.float64).numpy()
    return model, Camera(
        "procedural", down, torch.tensor([0.0, 0.0, 4.0]).double().numpy(), 550, 550, 322.5, 240.5, 645, 481
    )


@dataclass
class Row:
    """One line of the table."""

    name: str
    like: str  # name of the row that does the same work in our kernels
    seconds: list[float]
    note: str = ""


class Table:
    """Runs cases and prints them."""

    def __init__(self, device: torch.device, repeats: int):
        self.device, self.repeats, self.rows = device, repeats, []

    def time(
        self, name: str, work: Callable[[], object], like: str = "", repeats: int | None = None, note: str = ""
    ) -> None:
        """Median of `repeats` runs after one that warms up; a case that cannot run becomes a line with the reason."""
        seconds = []
        try:
            for _ in range((repeats or self.repeats) + (repeats != 1)):
                self._wait()
                start = time.perf_counter()
                work()
                self._wait()
                seconds.append(time.perf_counter() - start)
        except Exception as error:
            reason = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
            note, seconds = f"not possible here: {type(error).__name__}: {reason[:120]}", []
        self.rows.append(Row(name, like, seconds[1:] or seconds, note))
        print(f"  {name} ...", file=sys.stderr)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

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
    full = reference.GaussianRasterizer(settings)

    def scores_forward(values: Tensor) -> Tensor:
        return reference.rasterize_scores(values, settings=settings, **work.geometry())

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


def machine(device: torch.device) -> str:
    """What it runs on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    try:
        names = re.findall(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    return f"{(names or [platform.processor()])[0]}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--ply", type=Path, help="a 3DGS point_cloud.ply")
    parser.add_argument("--source", type=Path, help="the scene it was trained on, whose first view is rendered")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--slow_repeats", type=int, default=1, help="of reference.py and gsplat; 0 leaves them out")
    flags = parser.parse_args()
    if flags.repeats < 1:
        raise UserError(f"--repeats {flags.repeats}: expected at least 1.")
    device = choose_device(flags.device)
    work, note = load_workload(flags.ply, flags.source, device)
    print(f"machine: {machine(device)}\nbackend: {ours.backend_for(device)}\ndata: {note}")
    print(f"{len(work.means):,} Gaussians, {work.camera.width} x {work.camera.height}, SH degree {work.sh_degree}")
    table = Table(device, flags.repeats)
    for channels in (1, 16):
        time_ours(table, work, channels)
    if flags.slow_repeats > 0:
        time_reference(table, work, flags.slow_repeats)
        time_gsplat(table, work, flags.slow_repeats)
    table.show()


if __name__ == "__main__":
    run(main)
