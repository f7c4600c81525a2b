"""Compile a `Target`, the description of one shared library. Standard library only."""

from __future__ import annotations

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from . import toolchain
from .constants import ABI_VERSION, VERSION
from .toolchain import BuildError, Compiler

SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
PROBE = """#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef _WIN32
__declspec(dllexport)
#endif
int probe(int n) {
#ifdef _OPENMP
    n += omp_get_max_threads();
#endif
    return static_cast<int>(std::vector<int>(static_cast<unsigned>(n), 1).size());
}
"""


@dataclass(frozen=True)
class Target:
    """A shared library to build: everything that decides what the build yields."""

    name: str  # "cpu", "cuda", or that of another package's kernels
    tool: Compiler
    flags: tuple[str, ...]  # required
    machine: str  # where the library runs
    folder: Path  # of the sources, *.cu for nvcc, else *.cpp
    headers: Path  # folder of the headers that several targets share
    optional: tuple[tuple[str, ...], ...] = ()  # groups of flags, each dropped if the compiler rejects it
    links: tuple[str, ...] = ()  # flags of the link only
    codes: tuple[str, ...] = ()  # GPU code: "sm_90" is machine code, "compute_90" PTX

    @property
    def key(self) -> str:
        """Hash of the description and the sources, wherever these lie."""
        names = [field.name for field in fields(self) if field.name not in ("folder", "headers")]
        parts = (sources_hash(self.folder, self.headers), *(repr(getattr(self, name)) for name in names))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]

    @property
    def units(self) -> list[Path]:
        """The translation units, sorted."""
        return sorted(self.folder.glob("*.cu" if self.tool.family == "nvcc" else "*.cpp"))


def sources_hash(folder: Path, headers: Path) -> str:
    """Hash the names and contents of the sources in `folder` and of the files in `headers`, not in other folders."""
    digest = hashlib.sha256(f"{VERSION} {ABI_VERSION}".encode())
    paths = {*folder.glob("*.*"), *headers.glob("*.*")}
    for path in sorted(path for path in paths if path.suffix in (".h", ".cuh", ".cpp", ".cu")):
        digest.update(path.relative_to(headers).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def library_name(target: str) -> str:
    """File name of a target's shared library."""
    return f"libdgr_{target}{SUFFIX}"


def compile_target(target: Target, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Compile a target in a scratch folder; return the library and the optional flags that the compiler accepted."""
    accepted: list[str] = []
    if target.optional:
        probe, library = folder / "probe.cpp", folder / f"probe{SUFFIX}"
        probe.write_text(PROBE)
        _compile(target, [probe], (), library)  # a compiler that fails here fails for a real reason
        for group in target.optional:
            with suppress(BuildError):
                _compile(target, [probe], (*accepted, *group), library)
                accepted += group
    library = folder / library_name(target.name)
    _compile(target, target.units, tuple(accepted), library)
    return library, tuple(accepted)


def parallel_jobs(count: int) -> int:
    """Number of compilations at a time: MAX_JOBS if it is a positive number, else one per core."""
    given = os.environ.get("MAX_JOBS", "")
    limit = int(given) if given.isdigit() and int(given) > 0 else os.cpu_count() or 1
    return max(1, min(limit, count))


def _compile(target: Target, units: list[Path], optional: tuple[str, ...], library: Path) -> None:
    """Compile `units` to objects beside the library, several at a time, and link them."""
    tool, folder = target.tool, library.parent
    msvc = tool.family == "msvc"
    # Linker options make compilations warn; compiler options are needed by the link too (-fopenmp, -march with LTO).
    links = [flag for flag in optional if flag.startswith(("-static", "-Wl,"))]
    command = [*tool.command, *target.flags, *(flag for flag in optional if flag not in links)]

    def run(*arguments: str) -> None:
        code, output = toolchain.run([*command, *arguments], cwd=folder)
        if code != 0:
            raise BuildError(
                f"Compiling the {target.name} library failed (exit code {code}, {tool.version}).\n"
                f"Command: {' '.join([*command, *arguments])}\n{output.strip() or '(the compiler printed nothing)'}"
            )

    def compile_unit(unit: Path) -> str:
        item = str(folder / f"{unit.stem}{'.obj' if os.name == 'nt' else '.o'}")
        run(f"-I{target.headers}", "-c", str(unit), *([f"/Fo{item}"] if msvc else ["-o", item]))
        return item

    with ThreadPoolExecutor(parallel_jobs(len(units))) as pool:
        objects = list(pool.map(compile_unit, units))
    if msvc:
        run("/LD", *objects, f"/Fe{library}")
    else:
        run("-shared", *objects, *links, *target.links, "-o", str(library))
    if not library.is_file():
        raise BuildError(
            f"{' '.join(tool.command)} ended with exit code 0 but wrote no {library.name}: it is not a compiler."
        )
