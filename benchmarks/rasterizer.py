"""Time the rasteriser against others on the same Gaussians, in the same run.

    python benchmarks/rasterizer.py                  CPU: our kernels, reference.py, gsplat's PyTorch implementation
    python benchmarks/rasterizer.py --device cuda --scene_gen SCENE_GEN.py [--json bench.json]
                                                     GPU: our CUDA kernels and gsplat's, with memory and agreement

docs/PERFORMANCE.md says how it measures, and what came out. On the CPU, the models in ../shared are taken without
--ply and --source, or a procedural scene where they are absent.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# Threads that wait give up their core: else one other busy process makes the many small operations of reference.py and
# gsplat 30 times slower. OpenMP reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.gpu_report import markdown  # noqa: E402
from benchmarks.gpu_timing import machine_name  # noqa: E402
from benchmarks.rasterizer_cpu import run_cpu  # noqa: E402
from benchmarks.rasterizer_cuda import run_cuda  # noqa: E402
from utils.device import choose_device  # noqa: E402
from utils.errors import UserError, run  # noqa: E402


def parse() -> argparse.Namespace:
    """The flags, all with a value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=15, help="of each case; their median counts")
    on_cpu = parser.add_argument_group("on the CPU")
    on_cpu.add_argument("--ply", type=Path, help="a 3DGS point_cloud.ply")
    on_cpu.add_argument("--source", type=Path, help="the scene it was trained on, whose first view is rendered")
    on_cpu.add_argument("--slow_repeats", type=int, default=1, help="of reference.py and gsplat; 0 leaves them out")
    on_gpu = parser.add_argument_group("on a GPU")
    on_gpu.add_argument(
        "--scene_gen",
        type=Path,
        help="Python file with make_scene and make_cam; default: the environment variable SCENE_GEN, then "
        "../shared/bench/scene_gen.py",
    )
    on_gpu.add_argument("--sizes", type=int, nargs="+", default=[300_000, 577_000, 1_000_000], help="Gaussians")
    on_gpu.add_argument(
        "--sweep", type=int, nargs="*", default=[100_000, 2_000_000, 5_000_000], help="Gaussians, one channel only"
    )
    on_gpu.add_argument("--json", type=Path, help="file for all results; plot_rasterizer.py draws them")
    flags = parser.parse_args()
    for name in ("repeats", "sizes", "sweep"):
        value = getattr(flags, name)
        if min(value if isinstance(value, list) else [value], default=1) < 1:
            raise UserError(f"--{name} {value}: expected at least 1.")
    return flags


def main() -> None:
    flags = parse()
    device = choose_device(flags.device)
    if device.type == "cuda":
        print(markdown(run_cuda(flags.scene_gen, flags.sizes, flags.sweep, flags.repeats, device, flags.json)))
        return
    if flags.json is not None:
        raise UserError("--json holds the results of a GPU. Add --device cuda, or leave it out.")
    print(f"machine: {machine_name(device)}")
    run_cpu(flags.ply, flags.source, flags.repeats, flags.slow_repeats)


if __name__ == "__main__":
    run(main)
