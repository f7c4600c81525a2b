"""Put the two packages under submodules/ first on the import path, ahead of any fork of the same name.

Many forks install themselves as `diff_gaussian_rasterization` and `simple_knn`, with other functions and other
numbers. An installed copy is used only if it is this project's and equals the checkout; otherwise the checkout is.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import re
import sys
from pathlib import Path

from utils.errors import UserError

log = logging.getLogger("refersplat")

SUBMODULES = Path(__file__).resolve().parent.parent / "submodules"
FOLDERS = {name: SUBMODULES / name.replace("_", "-") for name in ("diff_gaussian_rasterization", "simple_knn")}
SOURCES = (".py", ".h", ".hpp", ".cuh", ".cpp", ".cu", ".inl")


@functools.cache  # five packages call it, and an installed copy is hashed
def use_own_packages() -> None:
    """Make ordinary imports find this project's rasteriser and simple_knn.

    Called by the `__init__.py` of every package that imports them. Ends the program with exit code 2 and one message
    if a package is missing.
    """
    try:
        for package in FOLDERS:
            _use_own(package)
    except UserError as error:  # raised by an import, so outside of what `utils.errors.run` catches
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _use_own(package: str) -> None:
    folder = FOLDERS[package]
    checkout = folder / package / "__init__.py"
    found = _find(package)
    if package in sys.modules and _is_ours(found):
        return  # too late for another copy, and it is one of this project's
    if not checkout.is_file():
        if _is_ours(found):
            return
        instead = f"the installed {found} is another project's" if found else "it is not installed either"
        raise UserError(
            f"The package {package} is missing: {checkout} does not exist and {instead}. Restore the folder "
            "submodules/ of the checkout, e.g. with: git checkout -- submodules; or install both packages: "
            "pip install ./submodules/diff-gaussian-rasterization ./submodules/simple-knn"
        )
    if found is not None:
        if Path(found).resolve() == checkout:
            return
        if _is_ours(found) and _fingerprint(Path(found).parent) == _fingerprint(checkout.parent):
            return
        owner = "an older or changed copy of this project's" if _is_ours(found) else "another project's"
        log.warning(
            "The installed %s is %s (%s); using the one in %s instead. To install that: pip install %s",
            *(package, owner, found, folder, folder),
        )
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    if not _is_ours(found := _find(package)):
        raise UserError(
            f"import {package} loads {found}, which is not this project's and could not be overridden. "
            f"Uninstall it: pip uninstall {package.replace('_', '-')}"
        )


def _find(package: str) -> str | None:
    """Return the file that `import package` loads, without running it: a fork may crash or clash."""
    if (loaded := sys.modules.get(package)) is not None:
        return loaded.__file__
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    return spec.origin if spec is not None else None  # None for a folder without __init__.py


def _is_ours(init_file: str | None) -> bool:
    """Whether a package's __init__.py carries this project's mark."""
    try:
        text = Path(init_file or "").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return re.search(r'^__project__ = "refersplat"', text, re.MULTILINE) is not None


def _fingerprint(folder: Path) -> str:
    """Hash the names and contents of a package's source files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in SOURCES):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
