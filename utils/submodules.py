"""The two packages under submodules/, whether they are installed or not, and never a namesake of another project."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from types import ModuleType

PROJECT = "refersplat"  # value of `__project__` in our packages
FOLDERS = {"diff_gaussian_rasterization": "diff-gaussian-rasterization", "simple_knn": "simple-knn"}

log = logging.getLogger("refersplat")


def import_ours(name: str) -> ModuleType:
    """Import `name`, a module of one of our two packages.

    The installed package is taken when it is ours; otherwise the copy in this checkout. Forks of the 3DGS rasteriser
    install under the same name, so one that is found instead is named in a warning and left alone.
    """
    package = name.partition(".")[0]
    found = None
    try:
        found = importlib.import_module(package)
    except Exception as error:  # a foreign build may fail in any way while it loads its binary
        reason = f"cannot be imported ({error})"
    else:
        reason = f"belongs to another project ({getattr(found, '__file__', 'no file')})"
    if getattr(found, "__project__", None) != PROJECT:
        if found is not None:
            log.warning("the installed %s %s; using the copy in this checkout", package, reason)
        for module in [module for module in sys.modules if module.partition(".")[0] == package]:
            del sys.modules[module]
        sys.path.insert(0, str(Path(__file__).parent.parent / "submodules" / FOLDERS[package]))
        importlib.invalidate_caches()
    return importlib.import_module(name)
