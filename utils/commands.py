"""Console commands of the installed project, e.g. `refersplat-train`: each runs the script or module of that name."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

MODULES = {
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
    """Run the module that the name of the called command stands for, with the flags of this process."""
    runpy.run_module(MODULES[Path(sys.argv[0]).stem], run_name="__main__", alter_sys=True)
