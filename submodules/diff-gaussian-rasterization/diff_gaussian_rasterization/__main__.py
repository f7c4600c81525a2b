"""python -m diff_gaussian_rasterization

The doctor: prints what was found on this machine, which backend will run, and what to do if it is not the one you
want. Exit code 0 if a native CPU library works, 1 otherwise. Libraries are built now if need be.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

import torch

from . import backend_for, backends, build, toolchain
from .constants import VERSION


def main() -> int:
    """Print the report and return the exit code."""
    advice: list[str] = []
    print(f"diff_gaussian_rasterization {VERSION} (ReferSplat)")
    show("package", build.PACKAGE)
    for other in namesakes():
        show("hidden namesake", other)
        advice.append(f"{other} has the same name and would win in another folder: pip uninstall it if you can.")
    show("system", f"{platform.platform()}, Python {platform.python_version()}")
    show("CPU", f"{os.cpu_count()} cores, {toolchain.simd_level()}")
    try:
        compiler = toolchain.find_compiler()
        show("C++ compiler", f"{' '.join(compiler.command)}: {compiler.version}")
    except build.BuildError as error:
        show("C++ compiler", "none that works")
        advice.append(str(error))
    show("build cache", build.cache_folder())
    working = show_library("cpu", advice)
    show_cuda(advice)
    for device in ("cpu", "cuda"):
        show(f"backend for {device}", chosen(device, advice))
    print("\nTo do:" if advice else "\nNothing to do.")
    for line in dict.fromkeys(advice):
        print("- " + line.replace("\n", "\n  "))
    return 0 if working else 1


def show(name: str, value: object) -> None:
    """One line of the report."""
    print(f"  {name + ':':<18}{value}")


def show_library(target: str, advice: list[str]) -> bool:
    """Load a target's library and show where it is and how it was built; whether that worked."""
    library, reason = build.library_or_none(target)
    if library is None:
        show(f"{target} library", "none")
        advice.append(reason)
        return False
    path = Path(library._name)
    record = json.loads((path.parent / "build.json").read_text(encoding="utf-8"))
    show(f"{target} library", path)
    show("built with", record["compiler"])
    if target == "cuda":
        show("compiled for", " ".join(record["codes"]))
    else:
        show("OpenMP", "yes" if record["openmp"] else "no")
        if not record["openmp"]:
            advice.append(
                "The CPU library runs on one core, because the compiler refused OpenMP. Install OpenMP for it "
                f"(Linux clang: libomp-dev; macOS: brew install gcc, then CXX=g++-NN), then remove {path.parent}."
            )
    return True


def show_cuda(advice: list[str]) -> None:
    """Show GPU, driver, nvcc and torch, and whether they fit together."""
    gpus, nvcc = toolchain.local_gpus(), toolchain.find_nvcc()
    cuda = torch.version.cuda
    show("torch", f"{torch.__version__}, " + (f"built with CUDA {cuda}" if cuda else "built without CUDA"))
    for name, capability, driver in gpus:
        show("GPU", f"{name}, compute capability {capability[:-1]}.{capability[-1]}, driver {driver}")
    if not gpus:
        show("GPU", "none (nvidia-smi lists none, torch sees none)")
    show("nvcc", f"{nvcc.path}: {nvcc.version}" if nvcc else "none")
    if torch.cuda.is_available():
        if show_library("cuda", advice) and (reason := backends.cuda_missing()):
            advice.append(reason)
        return
    show("cuda library", "none, as torch sees no GPU")
    if not gpus:
        return
    if cuda:
        advice.append("torch does not see the GPU although nvidia-smi does: its CUDA may be newer than the driver.")
    else:
        advice.append("torch was built without CUDA: install the build that pytorch.org's selector names for your GPU.")
    try:
        build.plan("cuda")
    except build.BuildError as error:
        advice.append(str(error))


def chosen(device: str, advice: list[str]) -> str:
    """The backend that would run on `device`, or that none would."""
    if device == "cuda" and not torch.cuda.is_available():
        return "none (torch sees no GPU)"
    try:
        return backend_for(torch.device(device))
    except (RuntimeError, ValueError) as error:
        advice.append(str(error))
        return "none, see below"


def namesakes() -> list[Path]:
    """Other packages of this name on the import path."""
    name = build.PACKAGE.name
    found = {(Path(entry or ".") / name).resolve() for entry in sys.path}
    return sorted(path for path in found if path != build.PACKAGE and (path / "__init__.py").is_file())


if __name__ == "__main__":
    sys.exit(main())
