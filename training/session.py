"""The loop of both stages: progress, logs, atomic checkpoints, Ctrl-C and SIGTERM."""

from __future__ import annotations

import json
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from arguments import TrainingParams
from scene.checkpoints import load_tensors, save_tensors
from scene.dataset import View
from utils.device import Download
from utils.errors import UserError
from utils.files import write_text

LOG_FILE, RESUME_FILE = "log.jsonl", "resume.pth"
DIVERGED = 1e4  # a loss of this size is not a bad start but on its way to infinity


class Interrupted(Exception):
    """The run was stopped by a signal and everything is saved. `code` is the shell's exit code for that signal."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Stage(Protocol):
    """One stage of training, as `Session.run` drives it."""

    name: str  # in logs
    view: str  # id of the last step's view

    def step(self, iteration: int) -> dict[str, Tensor | float]:
        """Run one step (1-based) and return its scalars, always the same names, "loss" among them.

        Tensors are read only when logged; the next step may overwrite them.
        """

    def evaluate(self) -> dict[str, float]:
        """Measure the test views."""

    def save(self, iteration: int) -> None:
        """Write the model of this iteration into the model folder."""

    def state(self) -> dict[str, Any]:
        """Return all that `load_state` needs to continue bit for bit: tensors, numbers, plain containers."""

    def load_state(self, state: dict[str, Any]) -> None: ...


class LogInterval:
    """Scalars of the steps of one log line; tensors among them stay on the device.

    Attributes:
        iteration: of the last step.
        seconds: of training until the last step; set by `finish`.
    """

    def __init__(self) -> None:
        self.iteration, self.seconds = 0, 0.0
        self._steps: list[tuple[int, str]] = []  # iteration and view
        self._names: list[str] = []
        self._tensors: list[Tensor] = []  # one [T] a step
        self._numbers: dict[str, float] = {}  # sums over the steps
        self._copy: Download | None = None

    def add(self, iteration: int, view: str, scalars: dict[str, Tensor | float]) -> None:
        """Add the scalars of a step on a view.

        Args:
            scalars: the same names in every step; tensors [], which the caller may overwrite later, and numbers.
        """
        self.iteration, self._names = iteration, list(scalars)
        self._steps.append((iteration, view))
        self._tensors.append(torch.stack([value for value in scalars.values() if isinstance(value, Tensor)]).detach())
        for name, value in scalars.items():
            if not isinstance(value, Tensor):
                self._numbers[name] = self._numbers.get(name, 0.0) + value

    def finish(self, seconds: float) -> None:
        """Start the copy of the scalars of these steps, at least one, from the device."""
        self.seconds, self._copy = seconds, Download(torch.stack(self._tensors))

    @property
    def is_ready(self) -> bool:
        """Whether the copy from the device is complete."""
        return self._copy is not None and self._copy.is_ready

    def means(self) -> dict[str, float]:
        """Return the mean of each scalar over the steps."""
        sums = iter(self._values().double().sum(dim=0).tolist())
        totals = {name: self._numbers[name] if name in self._numbers else next(sums) for name in self._names}
        return {name: total / len(self._steps) for name, total in totals.items()}

    def check(self, stage: str, folder: Path) -> None:
        """Raise UserError at the first loss that is NaN, infinite or far beyond what a model can have."""
        if not self._steps:
            return
        column = [name for name in self._names if name not in self._numbers].index("loss")
        for (iteration, view), loss in zip(self._steps, self._values()[:, column].tolist(), strict=True):
            if not abs(loss) <= DIVERGED:
                raise UserError(
                    f"the {stage} stage diverged: its loss is {loss:.4g} at step {iteration}, in the view {view}. Look "
                    "at this photo and its camera, or lower the learning rates; what was saved before is intact in "
                    f"{folder}."
                )

    def _values(self) -> Tensor:  # [steps, T]
        return (self._copy or Download(torch.stack(self._tensors))).wait()


class Session:
    """Runs training stages in one model folder, as a context manager that catches signals.

    Args:
        folder: model folder.
        params: flags of the run.
        resumed: the state read by `read_resume`, or None for a new run.
    """

    def __init__(self, folder: Path, params: TrainingParams, resumed: dict[str, Any] | None):
        self._folder, self._params, self._resumed = folder, params, resumed
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._seconds = resumed["seconds"] if resumed else 0.0
        self._pending: LogInterval | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if resumed:
                _drop_lines_after(folder / LOG_FILE, resumed["stage"], resumed["iteration"])
            purge = resumed["iteration"] + 1 if resumed else None
            self._lines = open(folder / LOG_FILE, "a" if resumed else "w", encoding="utf-8")  # noqa: SIM115
            self._tensorboard = SummaryWriter(folder, purge_step=purge, flush_secs=30)
        except OSError as error:
            raise UserError(
                f"could not write into the model folder {folder}: {error.strerror or error}. Free some space or name "
                "another folder with -m."
            ) from error

    def __enter__(self) -> Session:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)
        self._thread_hook, threading.excepthook = threading.excepthook, _report_unless_os_error
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        for file in (self._lines, self._tensorboard):
            with suppress(OSError):  # a full disk was already reported where it mattered
                file.close()
        threading.excepthook = self._thread_hook

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._signal == signal.SIGINT == number:
            raise KeyboardInterrupt  # a second Ctrl-C means it
        self._signal = number

    def run(self, stage: Stage, iterations: int) -> None:
        """Run `stage` up to step `iterations`, from its first step or where the interrupted run stopped.

        Raises:
            Interrupted: after saving, if a signal came.
        """
        first = 1
        if self._resumed and self._resumed["stage"] == stage.name:
            try:
                stage.load_state(self._resumed["state"])
            except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
                raise UserError(
                    f"{self._folder / RESUME_FILE} does not fit this run: {error}. Restore the file, or start another "
                    "run in another folder with -m."
                ) from None
            first = self._resumed["iteration"] + 1
        params, interval = self._params, LogInterval()
        started = time.monotonic() - self._seconds
        label = {"desc": stage.name, "unit": "step", "dynamic_ncols": True}
        with tqdm(total=iterations, initial=first - 1, **label) as self._progress:  # finishes its line before an error
            for iteration in range(first, iterations + 1):
                scalars = stage.step(iteration)
                interval.add(iteration, stage.view, scalars)
                self._seconds = time.monotonic() - started
                last, stop = iteration == iterations, self._signal
                to_log = last or iteration % params.log_interval == 0
                to_test = last or iteration in params.test_iterations
                to_save = last or iteration in params.save_iterations
                to_checkpoint = last or iteration % params.checkpoint_interval == 0 or stop is not None
                if to_log:
                    self._flush_line(stage.name)
                    interval.finish(self._seconds)
                    self._pending, interval = interval, LogInterval()
                if to_test or to_save or to_checkpoint or self._pending is not None and self._pending.is_ready:
                    self._flush_line(stage.name)
                if to_save or to_checkpoint:
                    interval.check(stage.name, self._folder)
                if to_test:
                    self._write(stage.name, iteration, self._seconds, stage.evaluate())
                if to_save:
                    stage.save(iteration)
                if to_checkpoint:
                    content = {"iteration": iteration, "seconds": self._seconds, "state": stage.state()}
                    save_tensors(self._folder / RESUME_FILE, {"stage": stage.name, **content})
                self._progress.update()
                if stop is not None and not last:
                    raise Interrupted(128 + stop)

    def _flush_line(self, stage: str) -> None:
        """Write the pending log line, if any. It is pending so that the next steps launch while a GPU computes it."""
        interval, self._pending = self._pending, None
        if interval is not None:
            interval.check(stage, self._folder)
            means = interval.means()
            self._write(stage, interval.iteration, interval.seconds, means)
            self._progress.set_postfix(loss=f"{means['loss']:.4f}", refresh=False)

    def _write(self, stage: str, iteration: int, seconds: float, scalars: dict[str, float]) -> None:
        if not scalars:
            return
        line = {"stage": stage, "iteration": iteration, "seconds": round(seconds, 3), **scalars}
        try:
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()
            # one event for all: `add_scalar` writes one each, and a GPU with short steps waits for it
            assert self._tensorboard.file_writer is not None  # until it is closed
            values = [Summary.Value(tag=f"{stage}/{name}", simple_value=value) for name, value in scalars.items()]
            self._tensorboard.file_writer.add_summary(Summary(value=values), iteration)
        except OSError as error:
            raise UserError(
                f"could not write {LOG_FILE} or TensorBoard events in {self._folder}: {error.strerror or error}. Free "
                "some space and go on with --resume; what was saved before is intact."
            ) from error


def view_fingerprint(views: list[View]) -> list[str]:
    """Return what must not change in the views for a saved sampling order to stay valid."""
    return [f"{view.id}: {len(view.referrals)} sentences" for view in views]


def require_same_views(saved: list[str], views: list[View]) -> None:
    """Raise ValueError if the views differ from those of the interrupted run."""
    now = view_fingerprint(views)
    if saved != now:
        changed = next(iter(sorted(set(saved) ^ set(now))), "their order")
        raise ValueError(f"the scene's training views have changed since the run was interrupted ({changed})")


def read_resume(folder: Path) -> dict[str, Any]:
    """Read the state that an interrupted run left in its model folder.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    path = folder / RESUME_FILE
    if not path.is_file():
        raise UserError(f"nothing to resume: {path} does not exist. Start the run without --resume.")
    content = load_tensors(path)
    if not isinstance(content, dict) or not {"stage", "iteration", "seconds", "state"} <= content.keys():
        raise UserError(f"{path} is not a resume file of this project. Start the run anew without --resume.")
    return content


def _report_unless_os_error(failure: threading.ExceptHookArgs) -> None:
    """Ignore OSErrors of TensorBoard's thread: a full disk is raised again by the next `add_summary`."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def _drop_lines_after(path: Path, stage: str, iteration: int) -> None:
    """Remove log lines of steps that will be repeated, and a truncated last line."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(entry, dict) or stage == "rgb" and entry.get("stage") != "rgb":
            continue
        if entry.get("stage") != stage or entry.get("iteration", 0) <= iteration:
            kept.append(line)
    write_text(path, "".join(f"{line}\n" for line in kept))


def draw_without_replacement(order: list[int], count: int, generator: torch.Generator) -> int:
    """Pop the next of `count` items; refill `order` with a random permutation when it is empty."""
    if not order:
        order.extend(torch.randperm(count, generator=generator).tolist())
    return order.pop()
