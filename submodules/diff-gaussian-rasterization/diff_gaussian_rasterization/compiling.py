"""Running a compiler: from sources to a shared library. Standard library only."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from . import toolchain
from .toolchain import BuildError, Compiler, Nvcc

if TYPE_CHECKING:
    from .build import Plan

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


def accepted_flags(what: Plan, headers: Path, folder: Path) -> tuple[str, ...]:
    """The optional flags this compiler takes, each tried on a tiny library."""
    if not what.optional:
        return ()
    probe = folder / "probe.cpp"
    probe.write_text(PROBE)
    library = folder / f"probe{SUFFIX}"
    compile_units(what, headers, [probe], (), library)  # a compiler that fails here fails for a real reason
    accepted: list[str] = []
    for group in what.optional:
        try:
            compile_units(what, headers, [probe], (*accepted, *group), library)
        except BuildError:
            continue
        accepted += group
    return tuple(accepted)


def jobs(count: int) -> int:
    """Compilations at a time: MAX_JOBS if it is a positive number, else one a core."""
    given = os.environ.get("MAX_JOBS", "")
    limit = int(given) if given.isdigit() and int(given) > 0 else os.cpu_count() or 1
    return max(1, min(limit, count))


def compile_units(what: Plan, headers: Path, units: list[Path], optional: tuple[str, ...], library: Path) -> None:
    """Compile `units` to objects beside the shared library, several at a time, and link them to it.

    Args:
        headers: folder of the headers that all targets share.
        optional: flags beside the required ones.
    """
    folder = library.parent
    msvc = isinstance(what.tool, Compiler) and what.tool.family == "msvc"
    command = [what.tool.path] if isinstance(what.tool, Nvcc) else list(what.tool.command)
    # Linker options make compilations warn, compiler options are needed by the link too (-fopenmp, -march with LTO).
    links = [flag for flag in optional if flag.startswith(("-static", "-Wl,"))]
    flags = [*what.flags, *(flag for flag in optional if flag not in links)]
    links += what.links

    def compile_one(unit: Path) -> Path:
        item = folder / f"{unit.stem}{'.obj' if os.name == 'nt' else '.o'}"
        output = [f"/Fo{item}"] if msvc else ["-o", str(item)]
        _check([*command, *flags, f"-I{headers}", "-c", str(unit), *output], folder, what)
        return item

    with ThreadPoolExecutor(jobs(len(units))) as pool:
        objects = [str(item) for item in pool.map(compile_one, units)]
    if msvc:
        _check([*command, *flags, "/LD", *objects, f"/Fe{library}"], folder, what)
    else:
        _check([*command, *flags, "-shared", *objects, *links, "-o", str(library)], folder, what)
    if not library.is_file():
        raise BuildError(
            f"{' '.join(command)} ended with exit code 0 but wrote no {library.name}: it is not a compiler."
        )
    return library


def _check(command: list[str], folder: Path, what: Plan) -> None:
    code, output = toolchain.run(command, cwd=folder)
    if code != 0:
        raise BuildError(
            f"Compiling the {what.target} library failed (exit code {code}, {what.tool.version}).\n"
            f"Command: {' '.join(command)}\n{output.strip() or '(the compiler printed nothing)'}"
        )
