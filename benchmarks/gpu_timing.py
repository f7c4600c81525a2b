"""Times and memory of contenders that do the same work on one device, interleaved; memory on a GPU only."""

from __future__ import annotations

import gc
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

WARM_UP = 3  # calls of every contender before anything is counted
BURST = 5  # calls in a row between two events
COPIED = {"cuda": 2**30, "cpu": 2**26}  # bytes
PRODUCT_SIZE = {"cuda": 8192, "cpu": 512}  # rows and columns of the matrices of `product_rate`


@dataclass
class Contender:
    """One way to do the work.

    Attributes:
        work: does it once and returns its results, which are dropped.
        kept_bytes: memory of what was made for `work` beforehand, such as a plan; part of its peak.
    """

    work: Callable[[], object]
    kept_bytes: int = 0


@dataclass
class Timing:
    """What was measured of one contender.

    Attributes:
        n: Gaussians.
        channels: of the picture; 0 where there is none.
        ms: median over the repetitions of the mean of a burst, which is what a loop sees. None if it did not run.
        quartiles_ms: first and third quartile of the same.
        single_ms: median of one call after a synchronisation, in which no launch hides behind earlier work.
        peak_bytes: largest memory above the inputs, kept_bytes included; None where it was not measured.
        note: why there are no numbers.
    """

    case: str
    who: str
    n: int
    channels: int
    ms: float | None = None
    quartiles_ms: tuple[float, float] | None = None
    single_ms: float | None = None
    peak_bytes: int | None = None
    note: str = ""


def compare(
    case: str, n: int, channels: int, contenders: dict[str, Contender], device: torch.device, repeats: int
) -> list[Timing]:
    """Time contenders in turns, in reversed order every other time; one that fails keeps its reason as a note."""
    print(f"  {case}, N={n:,}, K={channels} ...", file=sys.stderr)
    timings = {who: Timing(case, who, n, channels) for who in contenders}
    running = []
    for who, contender in contenders.items():
        try:
            for _ in range(WARM_UP):
                contender.work()
            if device.type == "cuda":
                timings[who].peak_bytes = contender.kept_bytes + peak_bytes(contender.work, device)
            running.append(who)
        except Exception as error:  # out of memory, or not possible here: the others still run
            timings[who].note = reason(error)
            torch.cuda.empty_cache()
    bursts, singles = {who: [] for who in running}, {who: [] for who in running}
    gc.disable()  # a collection in the middle of a repetition would be its slowest part
    for repetition in range(repeats):
        for who in running if repetition % 2 == 0 else reversed(running):
            singles[who].append(elapsed_ms(contenders[who].work, device))
            bursts[who].append(elapsed_ms(contenders[who].work, device, BURST))
    gc.enable()
    for who in running:
        quarters = statistics.quantiles(bursts[who], n=4) if repeats > 1 else bursts[who] * 3
        timings[who].ms, timings[who].quartiles_ms = statistics.median(bursts[who]), (quarters[0], quarters[2])
        timings[who].single_ms = statistics.median(singles[who])
    return list(timings.values())


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


def allocated_by(make: Callable[[], object], device: torch.device) -> tuple[object, int]:
    """What `make` returns, and the memory it holds."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    made = make()
    torch.cuda.synchronize(device)
    return made, torch.cuda.memory_allocated(device) - before


def copy_bandwidth(device: torch.device, repeats: int) -> float:
    """Bytes a second that a copy of 1 GiB reads and writes; on a CPU of 64 MiB."""
    source = torch.empty(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    ms = statistics.median(elapsed_ms(lambda: target.copy_(source), device, BURST) for _ in range(repeats))
    return 2 * source.nbytes / (1e-3 * ms)


def product_rate(device: torch.device, repeats: int) -> float:
    """Operations a second, each multiplication and addition one, of a large product of bfloat16 matrices."""
    size = PRODUCT_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    for _ in range(WARM_UP):
        left @ right
    ms = statistics.median(elapsed_ms(lambda: left @ right, device, BURST) for _ in range(repeats))
    return 2 * size**3 / (1e-3 * ms)


def machine_name(device: torch.device) -> str:
    """What a run on this device runs on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    try:
        names = re.findall(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    return f"{(names or [platform.processor()])[0]}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def reason(error: BaseException) -> str:
    """An exception in one short line, with the one it came from: a failed compilation hides behind an ImportError."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}".removesuffix(": ")
    earlier = error.__cause__ or error.__context__
    return text if earlier is None else f"{text} (after {reason(earlier)})"
