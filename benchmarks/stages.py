"""Which part of the work takes how much of the time, from a trace of PyTorch's profiler.

Some methods are named as windows of a stage. A kernel counts to the innermost window that was open when it, or the CUDA
graph it is in, was launched; inside the forward pass the name of a kernel says more. Without a GPU, the
time of the windows themselves counts, less that of the windows inside. Autograd works on threads of its own, while the
caller waits: windows are told apart by time, not by thread.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from gaussian_renderer import ScoreRenderer
from inference.captured_scores import Scorer
from training.field_steps import FieldSteps

from diff_gaussian_rasterization import RasterPlan  # isort: skip, the imports above find it

# With CUDA graphs, CUPTI must not be torn down between two traces; torch.profiler sets the same for those of Inductor.
os.environ.setdefault("DISABLE_CUPTI_LAZY_REINIT", "1")
os.environ.setdefault("TEARDOWN_CUPTI", "0")

MARK = "stage: "  # before the name of a stage in the trace
WORDS, POOL, SCORE, SELECTION = "words and small matrices", "pool", "score", "selection"
SPLAT, LOSSES, BACKWARD, ADAM = "splat", "losses", "backward", "Adam"
PREPARE, MASK, OTHERS = "prepare the view", "mask", "others"
STAGES = (WORDS, POOL, SCORE, SELECTION, PREPARE, SPLAT, LOSSES, MASK, BACKWARD, ADAM, OTHERS)  # in a step's order
BY_NAME = (WORDS, POOL, SCORE, SELECTION)  # where the names of kernels tell the stage
KERNELS = {
    **dict.fromkeys(("scales", "pool", "finish_pool"), POOL),
    **dict.fromkeys(("score", "top"), SCORE),
    **dict.fromkeys(("count_digits", "threshold", "count", "add_up", "list"), SELECTION),
}  # of referring.kernels
KERNELS_KEPT = 60  # those that take most

Window = tuple[type, str, str]  # class, method, stage


class Shares(NamedTuple):
    """Milliseconds of one call.

    Attributes:
        stages: of the kernels of each stage; without a GPU, of its windows.
        kernels: of the kernels that take most, by stage and name; empty without a GPU.
        graphs: CUDA graphs launched.
    """

    stages: dict[str, float]
    kernels: dict[str, float]
    graphs: float


def step_windows(backend: object) -> list[Window]:
    """Windows of a training step; what is outside is `LOSSES`."""
    stages = (("forward", WORDS), ("backward", BACKWARD), ("update", ADAM))
    return [*((FieldSteps, name, stage) for name, stage in stages), *_field_windows(backend)]


def query_windows(backend: object) -> list[Window]:
    """Windows of a query; what is outside is `MASK`."""
    return [(Scorer, "scores", WORDS), *_field_windows(backend)]


def _field_windows(backend: object) -> list[Window]:
    of_backend = [(type(backend), name, stage) for name, stage in (("encode", POOL), ("pool", POOL), ("score", SCORE))]
    of_plans = [(RasterPlan, name, SPLAT) for name in ("render", "backproject")]
    return [*of_backend, *of_plans, (ScoreRenderer, "render_scores", SPLAT), (ScoreRenderer, "plan", PREPARE)]


def shares(work: Callable[[], object], calls: int, windows: list[Window], outside: str, device: torch.device) -> Shares:
    """Where `work` spends its time, over some calls.

    Args:
        windows: see `step_windows` and `query_windows`.
        outside: the stage of what is in no window.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with _marked(windows), profile(activities=activities) as recorded:
        for _ in range(calls):
            with record_function(MARK + outside):
                work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    return attribute(events, calls)


@contextmanager
def _marked(windows: list[Window]) -> Iterator[None]:
    """Let methods mark their calls in a trace."""

    def marking(method: Callable, stage: str) -> Callable:
        def marked(*arguments: Any, **named: Any) -> Any:
            with record_function(MARK + stage):
                return method(*arguments, **named)

        return marked

    with ExitStack() as patches:
        for owner, name, stage in windows:
            patches.enter_context(mock.patch.object(owner, name, marking(getattr(owner, name), stage)))
        yield


def stage_of(kernel: str, otherwise: str) -> str:
    """Stage of a kernel of referring.kernels by its name; of others, `otherwise`."""
    return next((stage for part, stage in KERNELS.items() if f"field::{part}_kernel" in kernel), otherwise)


class _Span(NamedTuple):
    """A time in microseconds in which a window of a stage is open."""

    start: float
    end: float
    stage: str


def attribute(events: list[dict], calls: int) -> Shares:
    """Shares from the events of a Chrome trace of some calls."""
    timed = [e for e in events if e.get("ph") == "X"]
    spans = sorted(filter(None, map(_span, timed)), key=lambda span: (span.start, -span.end))
    launches = {e["args"]["correlation"]: e for e in timed if _is_launch(e)}
    stages, kernels = defaultdict(float), defaultdict(float)
    on_gpu = [e for e in timed if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    for event in on_gpu:
        launch = launches.get(event.get("args", {}).get("correlation"))
        stage = OTHERS if launch is None else _innermost(spans, launch["ts"])
        if stage in BY_NAME:
            stage = stage_of(event["name"], stage)
        stages[stage] += 1e-3 * event["dur"] / calls
        kernels[f"{stage}: {event['name'][:160]}"] += 1e-3 * event["dur"] / calls
    if not on_gpu:
        stages = {stage: ms / calls for stage, ms in _own_times(spans).items()}
    most = sorted(kernels.items(), key=lambda item: -item[1])[:KERNELS_KEPT]
    graphs = sum(e["name"].startswith(("cudaGraphLaunch", "cuGraphLaunch")) for e in launches.values()) / calls
    return Shares({stage: stages[stage] for stage in STAGES if stage in stages}, dict(most), graphs)


def _span(event: dict) -> _Span | None:
    name = event["name"]
    if event.get("cat", "").startswith("gpu_") or not name.startswith(MARK):
        return None
    return _Span(event["ts"], event["ts"] + event["dur"], name.removeprefix(MARK))


def _is_launch(event: dict) -> bool:
    return event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})


def _innermost(spans: list[_Span], time: float) -> str:
    """The stage of the last window that began before `time` and is still open."""
    return next((span.stage for span in reversed(spans) if span.start <= time <= span.end), OTHERS)


def _own_times(spans: list[_Span]) -> dict[str, float]:
    """Milliseconds of each stage's windows less those of the windows directly inside."""
    own, opened = defaultdict(float), []
    for span in spans:
        while opened and opened[-1].end <= span.start:
            opened.pop()
        if opened:
            own[opened[-1].stage] -= 1e-3 * (span.end - span.start)
        own[span.stage] += 1e-3 * (span.end - span.start)
        opened.append(span)
    return own
