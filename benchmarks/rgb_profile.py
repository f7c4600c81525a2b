"""Where the time of a step of the RGB stage goes: kernels on the GPU, PyTorch's operations, Python on the host."""

from __future__ import annotations

import cProfile
import io
import pstats
import tempfile
import time
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from arguments import RGBParams
from benchmarks.gpu_report import table
from benchmarks.gpu_timing import machine_name
from scene.layouts.ref_lerf import load
from training.rgb import RGBStage, initial_gaussians

GROWING = 700  # steps until the bound is reached and all SH degrees are in use
ROWS = 25


def profile(source: Path, resolution: int, cap_max: int, steps: int, device: torch.device) -> str:
    """Train to `cap_max` Gaussians in a hurry, then time and trace `steps` steps without densification: Markdown."""
    scene = load(source, "images", resolution, "gt_mask", True)
    params = RGBParams(
        rgb_iterations=10_000,
        densification="mcmc",
        cap_max=cap_max,
        densify_from_iter=100,
        densification_interval=10,
        densify_until_iter=GROWING,
        sh_interval=100,
    )
    gaussians = initial_gaussians(scene, params, 3, 0, device)
    with tempfile.TemporaryDirectory() as folder:
        stage = RGBStage(Path(folder), scene, gaussians, params, torch.zeros(3), seed=0)
        for iteration in range(1, GROWING + 1):
            stage.step(iteration)
        _wait(device)
        began = time.perf_counter()
        for iteration in range(GROWING + 1, GROWING + steps + 1):
            stage.step(iteration)
        _wait(device)
        wall = 1e3 * (time.perf_counter() - began) / steps
        host = _python(stage, steps, device)
        rows, busy = _traced(stage, steps, device)
    camera = scene.train[0].camera
    size = f"{len(stage.gaussians):,} Gaussians, SH degree {stage.gaussians.active_sh_degree}"
    lines = [f"{machine_name(device)}; {size}, {camera.width}x{camera.height}", "", f"wall: {wall:.3f} ms a step"]
    if device.type == "cuda":
        lines.append(f"kernels: {busy:.3f} ms a step; where that is well below the wall time, the host is what is slow")
    return "\n".join([*lines, "", *rows, "", "Python on the host:", "", host])


def _traced(stage: RGBStage, steps: int, device: torch.device) -> tuple[list[str], float]:
    """Tables of kernels and operations, and the milliseconds a step for which kernels ran."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with torch.profiler.profile(activities=activities) as trace:
        for iteration in range(GROWING + 1, GROWING + steps + 1):
            stage.step(iteration)
        _wait(device)
    events = trace.key_averages()
    kernels = [e for e in events if e.device_type == DeviceType.CUDA]
    operations = [e for e in events if e.device_type == DeviceType.CPU]
    head = ("{}", "us a step", "calls a step")
    tables = []
    for title, found, spent in (
        ("kernel", kernels, lambda e: e.self_device_time_total),
        ("operation, time on the host", operations, lambda e: e.self_cpu_time_total),
    ):
        rows = sorted(found, key=spent, reverse=True)[:ROWS]
        cells = [(e.key[:90], f"{spent(e) / steps:.1f}", f"{e.count / steps:.2f}") for e in rows]
        tables += [*table((head[0].format(title), *head[1:]), cells), ""] if cells else []
    return tables, sum(e.self_device_time_total for e in kernels) / steps / 1e3


def _python(stage: RGBStage, steps: int, device: torch.device) -> str:
    """The functions in which the host spends most, as cProfile tells it."""
    watch, text = cProfile.Profile(), io.StringIO()
    watch.enable()
    for iteration in range(GROWING + 1, GROWING + steps + 1):
        stage.step(iteration)
    _wait(device)
    watch.disable()
    pstats.Stats(watch, stream=text).sort_stats("tottime").print_stats(ROWS)
    return text.getvalue().strip()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
