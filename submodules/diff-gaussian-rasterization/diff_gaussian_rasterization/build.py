"""Build and load the native libraries: one description for `pip install` and for the build on first use.

There are two, each with a C ABI: "cpu" (csrc/cpu/*.cpp, any C++17 compiler) and "cuda" (csrc/cuda/*.cu, nvcc).
`load_library` takes, in this order,

1. the library that pip built into the package (`_native/<target>/`), if it was built from the present sources for a
   CPU or GPU like this one;
2. the library in the cache, `<cache>/<target>-<key>/`, where the key is a hash of sources, flags, compiler and machine;
3. a fresh build into the cache, under a file lock, published by one atomic rename;
4. without nvcc: a CUDA library in the cache that another machine built from the present sources for a GPU like this.

Standard library only: nothing here needs torch, so pip can build in isolation.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from . import toolchain
from .compiling import Target, compile_target, library_name, sources_hash
from .constants import ABI_VERSION, VERSION
from .lock import file_lock
from .toolchain import BuildError

PACKAGE = Path(__file__).resolve().parent
CSRC = PACKAGE / "csrc"

# Hidden visibility and -fno-gnu-unique: two forks in one process must not share symbols. The two -fno- flags of
# arithmetic allow vectorisation without changing a value; -ffast-math would change values and stays out.
GNU_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-Wall", "-Wextra"),
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
MSVC_FLAGS = ("/nologo", "/std:c++17", "/O2", "/EHsc", "/MD", "/utf-8", "/Zc:__cplusplus")
# Functions that CPU and GPU share call std::max and the like, which are constexpr (--expt-relaxed-constexpr).
# The static CUDA runtime makes the library independent of the one that torch brings.
NVCC_FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-cudart=static", "--expt-relaxed-constexpr")
# torch may have loaded an older libstdc++ (conda) than the compiler's own, so ours is linked in. That and the CUDA
# runtime stay hidden from other libraries.
STATIC_RUNTIME = ("-static-libstdc++", "-static-libgcc")


def cache_folder() -> Path:
    """Folder of the libraries built on first use: DGR_CACHE_DIR, else in the user's cache."""
    if given := os.environ.get("DGR_CACHE_DIR"):
        return Path(given).expanduser().resolve()
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "diff_gaussian_rasterization"


def find_target(name: str) -> Target:
    """Describe the build of "cpu" or "cuda" on this machine; raise a BuildError if there is no compiler."""
    if name == "cuda":
        return cuda_target()
    if name != "cpu":
        raise ValueError(f"unknown target {name!r}, expected 'cpu' or 'cuda'")
    compiler = toolchain.find_compiler()
    flags: tuple[str, ...]
    optional: tuple[tuple[str, ...], ...]
    if compiler.family == "msvc":
        features = toolchain.cpu_features()
        arch = ("/arch:AVX512",) if "avx512f" in features else ("/arch:AVX2",) if "avx2" in features else ()
        flags, optional = MSVC_FLAGS, (arch, ("/openmp:llvm",))
    else:
        flags = GNU_FLAGS + (("-fno-gnu-unique",) if compiler.family == "gcc" and os.name != "nt" else ())
        architecture = toolchain.cpu_key().split("-")[1]
        native = "-mcpu=native" if architecture in ("arm64", "aarch64", "ppc64le") else "-march=native"
        optional = ((native,), ("-fopenmp",))
        if sys.platform == "linux":
            optional += ((*STATIC_RUNTIME, "-Wl,--exclude-libs,ALL"),)
    return Target("cpu", compiler, flags, toolchain.cpu_key(), CSRC / "cpu", CSRC, optional)


def cuda_target(
    name: str = "cuda", folder: Path | None = None, defines: tuple[str, ...] = (), oldest: int = 0
) -> Target:
    """Describe the nvcc build of this package's CUDA sources, or of another package's.

    Args:
        name: of the target; begins with "cuda".
        folder: sources and headers of another package.
        defines: additional flags.
        oldest: compute capability, e.g. 80; nothing is compiled for older GPUs.

    Raises:
        BuildError: if there is no nvcc.
    """
    nvcc = toolchain.find_nvcc()
    if nvcc is None:
        raise BuildError(
            "nvcc was not found (looked at CUDA_HOME, CUDA_PATH, the PATH and /usr/local/cuda). Install the CUDA "
            "toolkit (developer.nvidia.com/cuda-downloads; or: conda install -c nvidia cuda-toolkit), of a version "
            "that knows your GPU and that your driver supports: it need not match the one torch was built with."
        )
    gpus = tuple(capability for _, capability, _ in toolchain.local_gpus())
    codes = toolchain.cuda_codes(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), gpus, toolchain.nvcc_archs(nvcc))
    codes = tuple(code for code in codes if int(code.split("_")[1].rstrip("af")) >= oldest)
    flags = [*NVCC_FLAGS, *(f"-gencode=arch=compute_{code.split('_')[1]},code={code}" for code in codes)]
    flags += ["-Xcompiler", "/MD" if os.name == "nt" else "-fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden"]
    if os.environ.get("CXX"):
        flags += ["-ccbin", toolchain.find_compiler().command[-1]]  # without ccache and the like
    static_runtime = ("-Xcompiler", ",".join(STATIC_RUNTIME), "-Xlinker", "--exclude-libs=ALL")
    links = static_runtime if sys.platform == "linux" else ()
    machine, sources = toolchain.platform_key(), folder or CSRC / "cuda"
    return Target(name, nvcc, (*flags, *defines), machine, sources, folder or CSRC, links=links, codes=codes)


def build_library(out_dir: str | Path, target: str | Target = "cpu") -> Path:
    """Compile a target; put the library and its record build.json into `out_dir`, which is created.

    Raises:
        BuildError: if the build fails; the message holds the compiler's whole output and what to do.
    """
    out_dir = Path(out_dir).resolve()
    target = find_target(target) if isinstance(target, str) else target
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=out_dir) as scratch:
        library, optional = compile_target(target, Path(scratch))
        record = {
            "target": target.name,
            "key": target.key,
            "sources": sources_hash(target.folder, target.headers),
            "machine": target.machine,
            "codes": target.codes,
            "compiler": target.tool.version,
            "flags": [*target.flags, *optional],
            "openmp": any("openmp" in flag for flag in optional),
            "sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
        }
        library.with_name("build.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for name in (library.name, "build.json"):
            os.replace(library.with_name(name), out_dir / name)
    return out_dir / library.name


def _read_record(folder: Path, target: str) -> dict | None:
    """Return the record of a finished, undamaged library, else None."""
    try:
        record = json.loads((folder / "build.json").read_text(encoding="utf-8"))
        content = (folder / library_name(target)).read_bytes()
        return record if record["sha256"] == hashlib.sha256(content).hexdigest() else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _is_usable(record: dict | None, target: str) -> bool:
    """Whether a recorded library was built from the present sources and runs on this machine's CPU or GPUs."""
    if record is None or record.get("sources") != sources_hash(CSRC / target, CSRC):
        return False
    if target == "cpu":
        return record["machine"] == toolchain.cpu_key()
    runs = (toolchain.code_runs(record["codes"], capability) for _, capability, _ in toolchain.local_gpus())
    return record["machine"] == toolchain.platform_key() and all(runs)


def installed_library(target: str = "cpu") -> Path | None:
    """Return the library that pip built into the package, if it fits the present sources and this machine."""
    folder = PACKAGE / "_native" / target
    return folder / library_name(target) if _is_usable(_read_record(folder, target), target) else None


def targets_for_install() -> list[str]:
    """Return the targets pip builds: CUDA only with nvcc and either a GPU or TORCH_CUDA_ARCH_LIST.

    Compiling for all architectures would take many minutes; the first use on a machine with a GPU compiles for that.
    """
    has_archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or toolchain.local_gpus()
    return ["cpu", "cuda"] if has_archs and toolchain.find_nvcc() else ["cpu"]


def cached_library(target: str = "cpu") -> Path:
    """Return the library in the cache, built now if it is missing; see `build_into_cache`."""
    if target == "cuda" and toolchain.find_nvcc() is None:
        for folder in sorted(cache_folder().glob("cuda-*")):
            if _is_usable(_read_record(folder, target), target):
                return folder / library_name(target)
    return build_into_cache(find_target(target))


def build_into_cache(target: Target) -> Path:
    """Build a target unless it is in the cache; return the library.

    Raises:
        BuildError: if the build fails or the cache cannot be written.
    """
    cache = cache_folder()
    final = cache / f"{target.name}-{target.key}"
    library = final / library_name(target.name)
    if _read_record(final, target.name):
        return library
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with file_lock(cache / f"{final.name}.lock"):
            if _read_record(final, target.name) is None:  # else another process built it while this one waited
                if target.codes:  # for the CPU it is a matter of seconds
                    print(f"Compiling the {target.name} kernels for {' '.join(target.codes)}, once.", file=sys.stderr)
                with tempfile.TemporaryDirectory(prefix=f"{final.name}-", dir=cache) as scratch:
                    staged = Path(scratch) / "library"
                    build_library(staged, target)
                    if _read_record(final, target.name) is None:  # else a process was faster where locks do nothing
                        shutil.rmtree(final, ignore_errors=True)  # a damaged one
                        os.rename(staged, final)
    except TimeoutError as error:
        raise BuildError(str(error)) from error
    except OSError as error:
        raise BuildError(
            f"The build cache {cache} cannot be used: {error}. Set DGR_CACHE_DIR to a writable folder."
        ) from error
    return library


def load_library(target: str = "cpu") -> ctypes.CDLL:
    """Load the native library of a target, built on first use.

    The outcome is kept for the process, failures included: a broken compiler is tried once, not in every render.

    Raises:
        BuildError: if there is no working library: no compiler, a failed compilation, or a file that does not load.
    """
    library, reason = library_or_none(target)
    if library is None:
        raise BuildError(reason)
    return library


@functools.cache
def library_or_none(target: str = "cpu") -> tuple[ctypes.CDLL | None, str]:
    """Like `load_library`, without the exception: (library, "") or (None, the reason)."""
    try:
        path = installed_library(target)
        if path is not None:
            with suppress(BuildError):  # e.g. a container without libgomp, or a file replaced by hand: build one
                return open_library(path), ""
        return open_library(cached_library(target)), ""
    except BuildError as error:
        return None, str(error)


def open_library(path: Path) -> ctypes.CDLL:
    """Load a shared library and check that it has this package's ABI.

    Raises:
        BuildError: if it does not load or has another ABI.
    """
    try:
        library = ctypes.CDLL(str(path))
        library.dgr_abi_version.restype = ctypes.c_int32
        library.dgr_version.restype = ctypes.c_char_p
        found = (library.dgr_abi_version(), library.dgr_version().decode())
    except OSError as error:
        raise BuildError(f"{path} was built but does not load: {error}") from error
    except AttributeError as error:
        raise BuildError(f"{path} is not a library of this package: {error}. Remove that file.") from error
    if found != (ABI_VERSION, VERSION):
        raise BuildError(
            f"{path} has ABI {found[0]} of version {found[1]}, but the Python files in {PACKAGE} expect ABI "
            f"{ABI_VERSION} of version {VERSION}. Remove that file, or install the package anew:\n"
            f"  pip install --force-reinstall --no-deps {PACKAGE.parent}"
        )
    return library
