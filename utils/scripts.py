"""What the scripts share: console commands, logging, and the revision that they record."""

from __future__ import annotations

import logging
import runpy
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

MODULES = {  # by console command, see pyproject.toml
    "refersplat-train": "train",
    "refersplat-render": "render",
    "refersplat-eval": "eval",
    "refersplat-pseudo-mask": "pseudo_mask",
    "refersplat-consensus": "pseudo_masks.consensus",
    "refersplat-check": "scene.check",
    "refersplat-formats": "scene.formats",
    "refersplat-synthetic": "synthetic",
}


def main() -> None:
    """Run the module of the console command that was called, with the flags of this process."""
    runpy.run_module(MODULES[Path(sys.argv[0]).stem], run_name="__main__", alter_sys=True)


class _TqdmHandler(logging.Handler):
    """Prints messages to stderr above progress bars; warnings are marked."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "warning: " if record.levelno >= logging.WARNING else ""
        tqdm.write(mark + record.getMessage(), file=sys.stderr)


def setup_logging() -> None:
    """Send messages of the logger "refersplat" to stderr."""
    logger = logging.getLogger("refersplat")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(_TqdmHandler())


def git_revision() -> str:
    """Return the checkout's commit, with "-dirty" after local changes; "unknown" without a checkout or git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():  # installed elsewhere: git would describe whatever repository is around it
        return "unknown"
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"
