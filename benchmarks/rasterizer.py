"""Time the rasteriser against gsplat's CUDA kernels, or against reference.py on a CPU, on the same Gaussians.

    python benchmarks/rasterizer.py --device cpu --sizes 100000
    python benchmarks/rasterizer.py --device cuda --json rasterizer.json   # 300,000 to 1,000,000 Gaussians; minutes

Gradients of scores reach the scores only, as in training with frozen geometry; gsplat's geometry then needs no
gradient either. gsplat runs in its fastest settings: not packed, 16-pixel tiles, no extra outputs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# Threads that wait give up their core: else one other busy process makes the many small operations of reference.py
# 30 times slower. OpenMP reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks import measure  # noqa: E402
from benchmarks.measure import milliseconds, ratio  # noqa: E402
from benchmarks.workload import SceneGenerator  # noqa: E402
from gaussian_renderer import raster_settings  # noqa: E402
from scene.cameras import Camera  # noqa: E402
from scene.gaussian_model import GaussianModel  # noqa: E402
from utils.device import choose_device  # noqa: E402
from utils.errors import UserError, run  # noqa: E402

import diff_gaussian_rasterization as ours  # isort: skip # noqa: E402 (importing utils puts the checkout's first)

SETTINGS = {"near_plane": 0.2, "eps2d": 0.3, "packed": False, "tile_size": 16, "render_mode": "RGB"}
OURS, PLAN, GSPLAT, REFERENCE = "ours", "ours, plan", "gsplat", "reference.py"


class Gsplat:
    """One model in one view of gsplat. The first one in an environment compiles its kernels, which takes minutes."""

    def __init__(self, model: GaussianModel, camera: Camera):
        import gsplat

        opacities = model.get_opacity[:, 0].contiguous()  # [N]
        names = ("means", "quats", "scales", "opacities")
        geometry = model.get_xyz, model.get_rotation, model.get_scaling, opacities
        self.version, self.geometry = gsplat.__version__, dict(zip(names, geometry, strict=True))
        intrinsics = [[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]]
        self._rasterization = partial(
            gsplat.rasterization,
            viewmats=torch.from_numpy(camera.world_to_camera()).float().to(model.device)[None],  # [1, 4, 4]
            Ks=torch.tensor(intrinsics, dtype=torch.float32, device=model.device)[None],  # [1, 3, 3]
            width=camera.width,
            height=camera.height,
            **SETTINGS,
        )
        self.render(torch.ones(len(model), 1, device=model.device))

    def render(self, colors: Tensor, sh_degree: int | None = None, geometry: dict[str, Tensor] | None = None) -> Tensor:
        """Scores [N, K], or spherical harmonics [N, M, 3] of a degree, as a picture [K, H, W] on black."""
        picture, _, _ = self._rasterization(**(geometry or self.geometry), colors=colors, sh_degree=sh_degree)
        return picture[0].permute(2, 0, 1)


class RasterBench(measure.Bench):
    """One model and view."""

    def __init__(self, model: GaussianModel, camera: Camera, report: dict):
        super().__init__(len(model), model.device, report)
        self._settings = raster_settings(camera, torch.zeros(3), model.active_sh_degree)
        names = ("means3D", "opacities", "scales", "rotations")
        geometry = model.get_xyz, model.get_opacity, model.get_scaling, model.get_rotation
        self._geometry, self._shs = dict(zip(names, geometry, strict=True)), model.active_features
        self._size, self._gsplat = (camera.height, camera.width), None
        self._skipped = {REFERENCE} if self.device.type == "cuda" else set()
        try:
            if not report["gsplat_missing"]:  # compiling it takes minutes, also in vain: one attempt is enough
                self._gsplat = Gsplat(model, camera)
                report["gsplat"] = self._gsplat.version
        except Exception as error:
            report["gsplat_missing"] = measure.reason(error)
        if self._gsplat is None:
            self._skipped.add(GSPLAT)

    def _compare(self, case: str, channels: int, calls: dict[str, Callable[[], object]]) -> None:
        """Time the calls that can run here: gsplat where it is installed, reference.py on a CPU."""
        self.compare(case, channels, {who: c for who, c in calls.items() if who not in self._skipped}, slow=REFERENCE)

    def time_scores(self, channels: int) -> None:
        """Time a picture of scores, and the same with the gradient of the scores."""
        scores = torch.rand(self.n, channels, device=self.device, requires_grad=True)
        grad_image = torch.rand(channels, *self._size, device=self.device) - 0.5
        prepare = partial(ours.prepare, settings=self._settings, **self._geometry)
        plan = prepare()

        def render(backend: str | None = None) -> Tensor:
            return ours.rasterize_scores(scores, settings=self._settings, backend=backend, **self._geometry)

        calls = {OURS: render, PLAN: lambda: plan.render(scores)}
        calls |= {GSPLAT: lambda: self._gsplat.render(scores), REFERENCE: partial(render, "reference")}
        with torch.no_grad():
            self._compare("prepare a plan", channels, {OURS: prepare})
            self._compare("scores forward", channels, calls)
        both = {who: lambda call=call: torch.autograd.grad(call(), scores, grad_image) for who, call in calls.items()}
        self._compare("scores forward + backward", channels, both)

        for timing in self.report["timings"]:
            if timing["peak_bytes"] and (timing["n"], timing["channels"], timing["who"]) == (self.n, channels, PLAN):
                timing["peak_bytes"] += plan.nbytes  # it was made before the calls

    def time_colour(self) -> None:
        """Time a colour picture, and the same with the gradients of everything."""
        grad_image = torch.rand(3, *self._size, device=self.device) - 0.5
        inputs, means2D = {**self._geometry, "shs": self._shs}, torch.zeros_like(self._geometry["means3D"])

        def render(backend: str | None, inputs: dict[str, Tensor] = inputs) -> Tensor:
            return ours.GaussianRasterizer(self._settings, backend=backend)(means2D=means2D, **inputs)[0]

        def render_gsplat(inputs: dict[str, Tensor] | None = None) -> Tensor:
            geometry = dict(inputs or self._gsplat.geometry)
            return self._gsplat.render(geometry.pop("shs", self._shs), self._settings.sh_degree, geometry)

        def backward(call: Callable[[dict[str, Tensor]], Tensor], inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
            return torch.autograd.grad(call(leaves), tuple(leaves.values()), grad_image)

        calls = {OURS: partial(render, None), GSPLAT: render_gsplat, REFERENCE: partial(render, "reference")}
        with torch.no_grad():
            self._compare("colour forward", 3, calls)
        rival_inputs = {} if self._gsplat is None else {**self._gsplat.geometry, "shs": self._shs}
        both = {who: partial(backward, call, inputs) for who, call in calls.items()}
        self._compare("colour forward + backward", 3, both | {GSPLAT: partial(backward, render_gsplat, rival_inputs)})


def markdown(report: dict) -> str:
    """The tables of a report."""
    rivals = {(t["n"], t["case"], t["channels"]): t for t in report["timings"] if t["who"] in (GSPLAT, REFERENCE)}
    rows: dict[int, list] = {n: [] for n in report["sizes"]}
    for t in report["timings"]:
        rival = rivals.get((t["n"], t["case"], t["channels"]), t | {"ms": None, "peak_bytes": None})
        peak = "-" if t["peak_bytes"] is None else f"{t['peak_bytes'] / 2**20:.1f}"
        numbers = milliseconds(t["ms"]), milliseconds(t["single_ms"]), ratio(t["ms"], rival["ms"])
        memory = peak, ratio(t["peak_bytes"], rival["peak_bytes"])
        rows[t["n"]].append((t["case"], str(t["channels"]), t["who"], *numbers, *memory))
    head = ("case", "K", "kernels", "ms", "one call, ms", "of the rival's", "MiB", "of the rival's")
    rival = f"gsplat {report['gsplat']}" if report["gsplat"] else f"without gsplat: {report['gsplat_missing']}"
    return measure.markdown(report, head, rows, rival)


def main() -> None:
    parser = measure.flag_parser(__doc__, generated=True)
    parser.add_argument("--channels", type=measure.count, nargs="+", default=[1, 16], help="scores a Gaussian")
    flags = parser.parse_args()
    device = choose_device(flags.device)
    if ours.backend_for(device) != device.type:
        raise UserError(
            f"The rasteriser would run as {ours.backend_for(device)}, not with its compiled kernels. "
            "`python -m diff_gaussian_rasterization` says what is missing."
        )
    torch.manual_seed(1)
    generator = SceneGenerator(flags.scene_gen)
    (camera,) = generator.orbit([0.3])
    missing = None if device.type == "cuda" else "it has kernels for GPUs only"
    report = measure.sizes_report(flags, device, camera, gsplat=None, gsplat_missing=missing)

    def take(n: int) -> None:
        bench = RasterBench(generator.model(n, device), camera, report)
        for channels in flags.channels:
            bench.time_scores(channels)
        bench.time_colour()

    measure.take_sizes(flags, report, take)
    print(markdown(report))


if __name__ == "__main__":
    run(main)
