"""Imports the two packages under submodules/, installed or not, and never another project's of the same name.

Many forks install themselves as `diff_gaussian_rasterization` and `simple_knn`, with other functions and other
numbers. Which copy is taken:

1. the installed one, if it is this project's and its files equal those of the checkout;
2. else the one in the checkout, with a warning if something else of that name is installed.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import re
import sys
from pathlib import Path
from types import ModuleType

from utils.errors import UserError

log = logging.getLogger("refersplat")

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "diff_gaussian_rasterization": ROOT / "submodules" / "diff-gaussian-rasterization",
    "simple_knn": ROOT / "submodules" / "simple-knn",
}
SOURCES = (".py", ".h", ".hpp", ".cuh", ".cpp", ".cu", ".inl")


def import_ours(name: str) -> ModuleType:
    """Import `name`, e.g. "simple_knn._C", from this project's package.

    Raises:
        UserError: if neither the checkout nor the environment has the package, or an import hook insists on another.
    """
    package = name.partition(".")[0]
    find_ours(package)
    module = importlib.import_module(name)
    if not _is_ours(sys.modules[package].__file__):
        raise UserError(
            f"import {package} gives {sys.modules[package].__file__}, which is not this project's and could not be "
            f"passed over. Uninstall it: pip uninstall {package.replace('_', '-')}"
        )
    return module


def find_ours(package: str) -> None:
    """Arrange that `import package` finds this project's package, without importing it.

    Raises:
        UserError: if neither the checkout nor the environment has it.
    """
    folder = FOLDERS[package]
    checkout = folder / package / "__init__.py"
    loaded = sys.modules.get(package)
    if loaded is not None and _is_ours(loaded.__file__):
        return
    installed = loaded.__file__ if loaded is not None else _installed(package)
    if not checkout.is_file():
        if installed is not None and _is_ours(installed):
            return
        found = f"the installed {installed} is another project's" if installed else "it is not installed either"
        raise UserError(
            f"The package {package} is missing: {checkout} does not exist and {found}. Restore the folder "
            "submodules/ of the checkout, e.g. with: git checkout -- submodules"
        )
    if installed is not None and Path(installed).resolve() != checkout:
        if _is_ours(installed) and _fingerprint(Path(installed).parent) == _fingerprint(checkout.parent):
            return
        whose = "an older or changed copy of this project's" if _is_ours(installed) else "another project's"
        log.warning(
            "The installed %s is %s (%s); using the one in %s instead. To install that: pip install %s",
            *(package, whose, installed, folder, folder),
        )
    if loaded is not None:
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def _installed(package: str) -> str | None:
    """The file that `import package` would load. The package itself is not run: a fork's may crash or clash."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    # A folder without __init__.py is a namespace package: nothing of that name is installed.
    return spec.origin if spec is not None else None


def _is_ours(file: str | None) -> bool:
    """Whether the package's __init__.py carries this project's mark."""
    try:
        text = Path(file or "").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return re.search(r'^__project__ = "refersplat"', text, re.MULTILINE) is not None


def _fingerprint(folder: Path) -> str:
    """Hash of a package's source files, names included."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in SOURCES):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
