"""Times and memory of contenders that do the same work on one GPU, interleaved."""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

WARM_UP = 3  # calls of every contender before anything is counted
BURST = 5  # calls in a row between two events


@dataclass
class Contender:
    """One way to do the work.

    Attributes:
        work: does it once and returns its results, which are dropped.
        kept_bytes: GPU memory of what was made for `work` beforehand, such as a plan; part of its peak.
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
        peak_bytes: largest memory above the inputs, kept_bytes included.
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
    """Milliseconds a call on the current stream, from an idle GPU to the end of the last kernel."""
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
    """Bytes a second that a copy of 1 GiB reads and writes."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    ms = statistics.median(elapsed_ms(lambda: target.copy_(source), device, BURST) for _ in range(repeats))
    return 2 * source.nbytes / (1e-3 * ms)


def reason(error: BaseException) -> str:
    """An exception in one short line, with the one it came from: a failed compilation hides behind an ImportError."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}".removesuffix(": ")
    earlier = error.__cause__ or error.__context__
    return text if earlier is None else f"{text} (after {reason(earlier)})"
