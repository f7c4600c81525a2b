"""A small procedural scene, a model trained on it, and scripts called in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train as train_script
from tests.rigs.paths import ROOT
from utils.errors import run

SMALL = ["--views", "10", "--width", "80", "--height", "60", "--objects", "6"]
FAST = [
    *("--text_encoder", "embedded", "--device", "cpu", "--rgb_iterations", "40", "--iterations", "8"),
    *("--densify_from_iter", "10", "--densify_until_iter", "40", "--densification_interval", "10"),
    *("--opacity_reset_interval", "25"),
    *("--checkpoint_interval", "15", "--log_interval", "2"),
]
MODEL_FILES = ["point_cloud/iteration_40/point_cloud.ply", "referring/iteration_8.safetensors"]


def call(script, *flags: object) -> int:
    """Exit code of a script run in this process."""
    old, sys.argv = sys.argv, [script.__name__ + ".py", *map(str, flags)]
    try:
        with pytest.raises(SystemExit) as ended:
            run(script.main)
        return ended.value.code
    finally:
        sys.argv = old
        torch.set_flush_denormal(False)  # as scripts set it; hypothesis needs denormal numbers


def make_scene(folder: Path) -> Path:
    """The scene, made in `folder`."""
    command = [sys.executable, "-m", "synthetic", "--out", str(folder), "--seed", "3", *SMALL]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def make_model(scene: Path, folder: Path) -> Path:
    """A model of it, trained for a few steps."""
    assert call(train_script, "-s", scene, "-m", folder, *FAST) == 0
    return folder


def hashes(folder: Path) -> dict[str, int]:
    return {str(path): hash(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def interrupting(step: Callable, at: int, number: int) -> Callable:
    """`step`, which sends a signal to this process the first time it takes step `at`."""
    sent = []

    def wrapped(self, iteration: int):
        if iteration == at and not sent:
            sent.append(True)
            os.kill(os.getpid(), number)
        return step(self, iteration)

    return wrapped


def failing(step: Callable, at: int) -> Callable:
    """`step`, which fails at step `at`."""

    def wrapped(self, iteration: int):
        if iteration == at:
            raise RuntimeError("as if killed")
        return step(self, iteration)

    return wrapped
