"""Find C++ compiler, CPU features, nvcc and GPUs of this machine. Standard library only."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

# Compiled for when no GPU is present: Pascal to Blackwell, the newest as PTX too. Filtered by what nvcc knows.
DEFAULT_ARCHS = ("61", "70", "75", "80", "86", "89", "90", "100", "120")


class BuildError(RuntimeError):
    """The native library cannot be built or loaded; the message holds the compiler's whole output and what to do."""


@dataclass(frozen=True)
class Compiler:
    """A working C++ or CUDA compiler."""

    command: tuple[str, ...]  # e.g. ("ccache", "g++")
    family: str  # gcc | clang | msvc | nvcc
    version: str  # first line of its --version, or e.g. "nvcc 13.0"


def run(command: Sequence[str], cwd: Path | None = None, timeout: float | None = None) -> tuple[int, str]:
    """Run a command; return its exit code, 127 if it cannot start, and stdout + stderr."""
    try:
        done = subprocess.run(command, cwd=cwd, timeout=timeout, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def find_compiler() -> Compiler:
    """Return the C++ compiler, $CXX or the first of the usual names on the PATH; raise a BuildError without one."""
    if cxx := os.environ.get("CXX", "").strip():
        command = tuple(shlex.split(cxx, posix=os.name != "nt"))
        compiler = _identify(command)
        if compiler is None:
            code, output = run([*command, "--version"], timeout=60)
            raise BuildError(
                f"The environment variable CXX is {cxx!r}, but `{cxx} --version` does not answer as a C++ compiler "
                f"(exit code {code}):\n{output or '(no output)'}\nUnset CXX or set it to a working g++ or clang++."
            )
        return compiler
    if sys.platform == "win32":
        names, hint = ("cl", "clang++", "g++"), "Install 'Build Tools for Visual Studio' with the C++ workload and "
        hint += "start Python from the 'x64 Native Tools Command Prompt', where cl is on the PATH."
    elif sys.platform == "darwin":
        names, hint = ("clang++", "g++", "c++"), "Install Apple's command line tools: xcode-select --install"
    else:
        packages = "apt-get install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora), conda install cxx-compiler"
        names, hint = ("g++", "clang++", "c++"), f"Install one: {packages}"
    for name in names:
        if shutil.which(name) and (compiler := _identify((name,))):
            return compiler
    raise BuildError(f"No C++ compiler was found (looked for {', '.join(names)} on the PATH; CXX is not set). {hint}")


@functools.cache
def _identify(command: tuple[str, ...]) -> Compiler | None:
    """Identify a compiler by its answer to --version; cl prints its banner in any case."""
    if Path(command[-1]).stem.lower() == "cl":
        _, output = run(command, timeout=60)
        return Compiler(command, "msvc", output.splitlines()[0]) if "Microsoft" in output else None
    code, output = run([*command, "--version"], timeout=60)
    family = "clang" if "clang" in output else "gcc" if "Free Software Foundation" in output else None
    return Compiler(command, family, output.splitlines()[0].strip()) if code == 0 and family else None


@functools.cache
def cpu_features() -> tuple[str, ...]:
    """Return the instruction sets of this CPU, sorted, as the operating system names them."""
    found: set[str] = set()
    if sys.platform == "linux":
        cpuinfo = Path("/proc/cpuinfo")
        text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
        # One line per core, all equal: "flags" on x86, "Features" on Arm, "isa" on RISC-V.
        if line := re.search(r"^(?:flags|Features|isa)\s*:(.*)$", text, re.MULTILINE):
            found.update(line.group(1).split())
    elif sys.platform == "darwin":
        for name in ("machdep.cpu.features", "machdep.cpu.leaf7_features", "machdep.cpu.brand_string"):
            code, output = run(["sysctl", "-n", name], timeout=10)
            if code == 0:
                found.update(output.lower().split())
    elif sys.platform == "win32":
        import ctypes

        # PF_AVX2_INSTRUCTIONS_AVAILABLE and PF_AVX512F_INSTRUCTIONS_AVAILABLE of winnt.h
        known = {"avx2": 40, "avx512f": 41}
        found.update(name for name in known if ctypes.windll.kernel32.IsProcessorFeaturePresent(known[name]))
    return tuple(sorted(found))


def cpu_key() -> str:
    """Machine type and a hash of the CPU features; machines share -march=native libraries only if it is equal."""
    return f"{platform_key()}-{hashlib.sha256(' '.join(cpu_features()).encode()).hexdigest()[:12]}"


def platform_key() -> str:
    """Operating system and machine type, e.g. "linux-x86_64"."""
    return f"{sys.platform}-{platform.machine().lower()}"


def simd_level() -> str:
    """Display name of the widest SIMD instruction set of this CPU."""
    names = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sse4_2": "SSE4.2", "sve": "SVE"}
    default = "NEON" if platform.machine().lower() in ("arm64", "aarch64") else "baseline of the architecture"
    return next((name for feature, name in names.items() if feature in cpu_features()), default)


def find_nvcc() -> Compiler | None:
    """Return nvcc from CUDA_HOME or CUDA_PATH, else the PATH, else /usr/local/cuda; None if there is none."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    name = "nvcc.exe" if os.name == "nt" else "nvcc"
    candidates = [str(Path(home) / "bin" / name) for home in homes if home]
    candidates += [shutil.which("nvcc") or "", f"/usr/local/cuda/bin/{name}"]
    return next((found for path in candidates if path and (found := _identify_nvcc(path))), None)


@functools.cache
def _identify_nvcc(path: str) -> Compiler | None:
    code, output = run([path, "--version"], timeout=60)
    release = re.search(r"release (\d+\.\d+)", output)
    return Compiler((path,), "nvcc", f"nvcc {release.group(1)}") if code == 0 and release else None


@functools.cache
def local_gpus() -> tuple[tuple[str, str, str], ...]:
    """Return (name, compute capability such as "90", driver version) of every NVIDIA GPU.

    nvidia-smi lists them; if it is missing or too old (Jetson, small containers), PyTorch does if it is loaded.
    """
    query = "--query-gpu=name,compute_cap,driver_version"
    code, output = run(["nvidia-smi", query, "--format=csv,noheader"], timeout=60)
    rows = [tuple(part.strip() for part in line.split(",")) for line in output.splitlines()] if code == 0 else []
    gpus = tuple((row[0], row[1].replace(".", ""), row[2]) for row in rows if len(row) == 3)
    torch = sys.modules.get("torch")
    if not gpus and torch is not None and torch.cuda.is_available():
        seen = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        gpus = tuple((gpu.name, f"{gpu.major}{gpu.minor}", "unknown") for gpu in seen)
    return gpus


@functools.cache
def nvcc_archs(nvcc: Compiler) -> tuple[str, ...]:
    """Return the architectures nvcc can compile for, oldest first, e.g. ("75", ..., "120")."""
    code, output = run([*nvcc.command, "--list-gpu-arch"], timeout=60)
    found = set(re.findall(r"^compute_(\d+)$", output, re.MULTILINE)) if code == 0 else set()
    return tuple(sorted(found, key=int))


def cuda_codes(requested: str, gpus: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """Choose the code nvcc generates: "sm_90" is machine code, "compute_90" PTX that a newer driver translates.

    GPUs missing from `requested` (TORCH_CUDA_ARCH_LIST) are added, because images set the variable without knowing the
    machine. With neither, the result is `DEFAULT_ARCHS`, with the newest as PTX too.

    Args:
        requested: e.g. "8.0;9.0a+PTX", separated by spaces, commas or semicolons; may be empty.
        gpus: compute capabilities present, e.g. ("90",).
        known: supported by nvcc, e.g. ("75", "80", "90"); a GPU newer than that gets the newest as PTX.

    Raises:
        BuildError: if `requested` cannot be parsed or names an architecture that nvcc does not support.
    """
    codes: list[str] = []
    for item in re.findall(r"[^\s,;]+", requested):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", item)
        if match is None or (known and match.group(1) + match.group(2) not in known):
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST={requested!r}: {item!r} is not supported. Expected items such as 8.6 or "
                f"9.0+PTX; this nvcc knows {', '.join(f'{arch[:-1]}.{arch[-1]}' for arch in known)}."
            )
        arch = match.group(1) + match.group(2) + match.group(3)
        codes += [f"sm_{arch}"] + ([f"compute_{arch}"] if match.group(4) else [])
    for arch in sorted(set(gpus), key=int):
        if any(code.rstrip("af") == f"sm_{arch}" for code in codes):
            continue
        if arch in known or not known:
            codes.append(f"sm_{arch}")
        elif int(arch) > int(known[-1]):
            codes.append(f"compute_{known[-1]}")
    if not codes:
        archs = [arch for arch in DEFAULT_ARCHS if arch in known] or list(known[-1:])
        codes = [f"sm_{arch}" for arch in archs] + [f"compute_{arch}" for arch in archs[-1:]]
    return tuple(dict.fromkeys(codes))


def code_runs(codes: Sequence[str], capability: str) -> bool:
    """Whether a GPU of this compute capability, e.g. "90", runs a library with `codes` (see `cuda_codes`).

    Machine code runs on equal or newer GPUs of its generation, PTX on all newer ones; "sm_90a" on that GPU only.
    """

    def runs(code: str) -> bool:
        kind, _, arch = code.partition("_")
        built_for, gpu = int(arch.rstrip("af")), int(capability)
        if arch[-1] in "af":
            return built_for == gpu
        return built_for <= gpu and (kind == "compute" or built_for // 10 == gpu // 10)

    return any(map(runs, codes))
