"""The one build description of the native libraries, for `pip install` and for the first import alike.

A target is a folder of sources that becomes one shared library with a C ABI: "cpu" (csrc/cpu/*.cpp, any C++17
compiler) and "cuda" (csrc/cuda/*.cu, nvcc). `load_library` takes, in this order,

1. the library that pip built into the package (`_native/<target>/`), if it was made of the present sources for a
   CPU or GPU like this one;
2. the library in the cache, `<cache>/<target>-<key>/`, the key being a hash of sources, flags, compiler and machine;
3. a fresh build into the cache, under a file lock, published by one atomic rename;
4. without nvcc: a CUDA library in the cache that some other machine built of the present sources for a GPU like this.

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
from dataclasses import dataclass, fields
from pathlib import Path

from . import toolchain
from .compiling import SUFFIX, accepted_flags, compile_units
from .constants import ABI_VERSION, VERSION
from .lock import file_lock
from .toolchain import BuildError, Compiler, Nvcc

PACKAGE = Path(__file__).resolve().parent
CSRC = PACKAGE / "csrc"
TARGETS = ("cpu", "cuda")

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
# torch may have loaded an older libstdc++ (conda) than the compiler's own; carry ours. That and the CUDA runtime stay
# out of sight of other libraries.
STATIC_RUNTIME = ("-static-libstdc++", "-static-libgcc")


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a build of one target yields."""

    target: str  # cpu | cuda
    tool: Compiler | Nvcc
    flags: tuple[str, ...]  # required ones
    machine: str  # where the library runs
    optional: tuple[tuple[str, ...], ...] = ()  # groups that are dropped where the compiler refuses them
    links: tuple[str, ...] = ()  # required by the link only
    codes: tuple[str, ...] = ()  # of GPUs: "sm_90" is machine code, "compute_90" PTX
    folder: Path | None = None  # of the sources, where they are another package's; else csrc/<target>

    @property
    def key(self) -> str:
        """Hash of all of it and of the sources, wherever these lie."""
        names = [field.name for field in fields(self) if field.name != "folder"]
        parts = (sources_hash(self.target, self.folder), *(repr(getattr(self, name)) for name in names))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def library_name(target: str) -> str:
    """File name of a target's shared library."""
    return f"libdgr_{target}{SUFFIX}"


def sources(target: str, folder: Path | None = None) -> list[Path]:
    """The translation units of a target, sorted; see `Plan.folder`."""
    return sorted((folder or CSRC / target).glob("*.cu" if target.startswith("cuda") else "*.cpp"))


def sources_hash(target: str, folder: Path | None = None) -> str:
    """Hash of the target's sources, its headers and the common ones, names included."""
    root = folder or CSRC
    paths = (*root.glob("*.*"), *(() if folder else (CSRC / target).glob("*.*")))
    headers = [path for path in paths if path.suffix in (".h", ".cuh") or (folder and path.suffix == ".cu")]
    digest = hashlib.sha256(f"{VERSION} {ABI_VERSION}".encode())
    for path in sorted({*sources(target, folder), *headers}):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where libraries built just in time lie: DGR_CACHE_DIR, else diff_gaussian_rasterization in the user's cache."""
    if given := os.environ.get("DGR_CACHE_DIR"):
        return Path(given).expanduser().resolve()
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "diff_gaussian_rasterization"


def plan(target: str) -> Plan:
    """What a build of `target` would do here.

    Raises:
        BuildError: if the target has no sources or no compiler.
    """
    if target not in TARGETS:
        raise ValueError(f"target is {target!r}; expected one of {TARGETS}")
    if not sources(target):
        raise BuildError(f"There are no sources for the {target} library in {CSRC / target}.")
    if target == "cuda":
        return cuda_plan()
    tool = toolchain.find_compiler()
    flags, optional = (MSVC_FLAGS, _msvc_optional()) if tool.family == "msvc" else _gnu_flags(tool)
    return Plan(target, tool, flags, toolchain.cpu_key(), optional)


def _gnu_flags(compiler: Compiler) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    flags = GNU_FLAGS + (("-fno-gnu-unique",) if compiler.family == "gcc" and os.name != "nt" else ())
    optional = [("-march=native",), ("-fopenmp",)]
    if toolchain.cpu_key().split("-")[1] in ("arm64", "aarch64", "ppc64le"):
        optional[0] = ("-mcpu=native",)
    if sys.platform == "linux":
        optional.append((*STATIC_RUNTIME, "-Wl,--exclude-libs,ALL"))
    return flags, tuple(optional)


def _msvc_optional() -> tuple[tuple[str, ...], ...]:
    features = toolchain.cpu_features()
    arch = "/arch:AVX512" if "avx512f" in features else "/arch:AVX2" if "avx2" in features else None
    return ((arch,),) * bool(arch) + (("/openmp:llvm",),)


def cuda_plan(target: str = "cuda", folder: Path | None = None, defines: tuple[str, ...] = (), oldest: int = 0) -> Plan:
    """What nvcc would do here with the CUDA sources of this package, or with those of another's `folder`.

    Args:
        target, folder: see `Plan`.
        defines: more flags.
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
    links = (
        ("-Xcompiler", ",".join(STATIC_RUNTIME), "-Xlinker", "--exclude-libs=ALL") if sys.platform == "linux" else ()
    )
    flags += defines
    return Plan(target, nvcc, tuple(flags), toolchain.platform_key(), links=links, codes=codes, folder=folder)


def build_library(out_dir: str | Path, target: str = "cpu") -> Path:
    """Compile `target` and put the library with its record build.json into `out_dir`, which is made.

    Raises:
        BuildError: if it cannot be built; the message holds the compiler's whole output and what to do.
    """
    return _build(Path(out_dir).resolve(), plan(target))


def _build(out_dir: Path, what: Plan) -> Path:
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=out_dir) as scratch:
        folder = Path(scratch)
        optional = accepted_flags(what, CSRC, folder)
        library = compile_units(
            what, CSRC, sources(what.target, what.folder), optional, folder / library_name(what.target)
        )
        record = {
            "target": what.target,
            "key": what.key,
            "sources": sources_hash(what.target, what.folder),
            "machine": what.machine,
            "codes": what.codes,
            "compiler": what.tool.version,
            "flags": [*what.flags, *optional],
            "openmp": any("openmp" in flag for flag in optional),
            "sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
        }
        (folder / "build.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(library, out_dir / library.name)
        os.replace(folder / "build.json", out_dir / "build.json")
    return out_dir / library.name


def _record(folder: Path, target: str) -> dict | None:
    """The record of a finished library whose file is whole, else None."""
    try:
        record = json.loads((folder / "build.json").read_text(encoding="utf-8"))
        content = (folder / library_name(target)).read_bytes()
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and record.get("sha256") == hashlib.sha256(content).hexdigest()
    return record if whole else None


def installed_library(target: str = "cpu") -> Path | None:
    """The library that pip built into the package, if it suits the present sources and this machine."""
    folder = PACKAGE / "_native" / target
    return folder / library_name(target) if _suits(_record(folder, target), target) else None


def _suits(record: dict | None, target: str) -> bool:
    """Whether a library with this record is of the present sources and runs on this machine's CPU or GPUs."""
    if record is None or record.get("sources") != sources_hash(target):
        return False
    if target == "cpu":
        return record.get("machine") == toolchain.cpu_key()
    codes = tuple(record.get("codes", ()))
    return record.get("machine") == toolchain.platform_key() and all(
        toolchain.code_runs(codes, capability) for _, capability, _ in toolchain.local_gpus()
    )


def targets_for_install() -> list[str]:
    """What pip builds: CUDA only where nvcc and a GPU are, or TORCH_CUDA_ARCH_LIST says for which GPUs.

    All architectures there are would take many minutes; the first use on a machine with a GPU compiles only its own.
    """
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or toolchain.local_gpus()
    cuda = sources("cuda") and wanted and toolchain.find_nvcc()
    return [target for target in TARGETS if target != "cuda" or cuda]


def cached_library(target: str = "cpu") -> Path:
    """The library in the cache, built now if it is not there yet.

    Raises:
        BuildError: if it cannot be built or the cache cannot be written.
    """
    if target == "cuda" and toolchain.find_nvcc() is None:
        for folder in sorted(cache_folder().glob("cuda-*")):
            if _suits(_record(folder, target), target):
                return folder / library_name(target)
    return build_into_cache(plan(target))


def build_into_cache(what: Plan) -> Path:
    """Do what `plan` says, unless the cache holds its outcome; the library.

    Raises:
        BuildError: if it cannot be built or the cache cannot be written.
    """
    target, cache = what.target, cache_folder()
    final = cache / f"{target}-{what.key}"
    if _record(final, target):
        return final / library_name(target)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with file_lock(cache / f"{final.name}.lock"):
            if _record(final, target) is None:  # else another process built it while this one waited
                if what.codes:  # for the CPU it is a matter of seconds
                    print(f"Compiling the {target} kernels for {' '.join(what.codes)}, once.", file=sys.stderr)
                with tempfile.TemporaryDirectory(prefix=f"{final.name}-", dir=cache) as scratch:
                    staged = Path(scratch) / "library"
                    _build(staged, what)
                    shutil.rmtree(final, ignore_errors=True)  # a damaged one
                    os.rename(staged, final)
    except TimeoutError as error:
        raise BuildError(str(error)) from error
    except OSError as error:
        raise BuildError(
            f"The build cache {cache} cannot be used: {error}. Set DGR_CACHE_DIR to a folder that can be written."
        ) from error
    return final / library_name(target)


def load_library(target: str = "cpu") -> ctypes.CDLL:
    """The native library of `target`, built on first use.

    The outcome holds for the process, a failure too: a broken compiler is asked once, not in every render.

    Raises:
        BuildError: if there is no working library: no compiler, a failed compilation, or a file that does not load.
    """
    library, reason = library_or_none(target)
    if library is None:
        raise BuildError(reason)
    return library


@functools.cache
def library_or_none(target: str = "cpu") -> tuple[ctypes.CDLL | None, str]:
    """`load_library` without the exception: the library and "", or None and the reason."""
    try:
        path = installed_library(target)
        if path is not None:
            try:
                return _open(path), ""
            except BuildError:
                pass  # e.g. a container without libgomp, or a file replaced by hand: build one that fits
        return _open(cached_library(target)), ""
    except BuildError as error:
        return None, str(error)


def _open(path: Path) -> ctypes.CDLL:
    """Load a shared library and make sure that it speaks this package's ABI."""
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
