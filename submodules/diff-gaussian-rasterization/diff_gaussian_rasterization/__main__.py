"""The doctor: python -m diff_gaussian_rasterization

Reports compilers, GPUs and libraries of this machine, which backend will run, and how to fix what is missing. Builds
missing libraries. The exit code is 0 if the CPU library works, else 1.
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
    """Print the report; return the exit code."""
    advice: list[str] = []
    print(f"diff_gaussian_rasterization {VERSION} (ReferSplat)")
    show("package", build.PACKAGE)
    for other in shadowed_packages():
        show("shadowed package", other)
        advice.append(f"{other} has the same name and would be imported in another folder: uninstall it if you can.")
    show("system", f"{platform.platform()}, Python {platform.python_version()}")
    show("CPU", f"{os.cpu_count()} cores, {toolchain.simd_level()}")
    try:
        compiler = toolchain.find_compiler()
        show("C++ compiler", f"{' '.join(compiler.command)}: {compiler.version}")
    except build.BuildError as error:
        show("C++ compiler", "none working")
        advice.append(str(error))
    show("build cache", build.cache_folder())
    working = show_library("cpu", advice)
    show_cuda(advice)
    for device in ("cpu", "cuda"):
        show(f"backend for {device}", describe_backend(device, advice))
    print("\nTo do:" if advice else "\nNothing to do.")
    for line in dict.fromkeys(advice):
        print("- " + line.replace("\n", "\n  "))
    return 0 if working else 1


def show(name: str, value: object) -> None:
    """Print one line of the report."""
    print(f"  {name + ':':<18}{value}")


def show_library(target: str, advice: list[str]) -> bool:
    """Load a target's library, show where it is and how it was built, and return whether it loaded."""
    library, reason = build.library_or_none(target)
    if library is None:
        show(f"{target} library", "none")
        advice.append(reason)
        return False
    path = Path(library._name)
    record = json.loads(path.with_name("build.json").read_text(encoding="utf-8"))
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
    """Show GPU, driver, nvcc and torch, and whether they match."""
    gpus, nvcc = toolchain.local_gpus(), toolchain.find_nvcc()
    cuda = torch.version.cuda
    show("torch", f"{torch.__version__}, built " + (f"with CUDA {cuda}" if cuda else "without CUDA"))
    for name, capability, driver in gpus:
        show("GPU", f"{name}, compute capability {capability[:-1]}.{capability[-1]}, driver {driver}")
    if not gpus:
        show("GPU", "none (nvidia-smi lists none, torch sees none)")
    show("nvcc", f"{nvcc.command[0]}: {nvcc.version}" if nvcc else "none")
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
        build.find_target("cuda")
    except build.BuildError as error:
        advice.append(str(error))


def describe_backend(device: str, advice: list[str]) -> str:
    """Return the backend that runs on a device, or "none"."""
    if device == "cuda" and not torch.cuda.is_available():
        return "none (torch sees no GPU)"
    try:
        return backend_for(device)
    except (RuntimeError, ValueError) as error:
        advice.append(str(error))
        return "none, see below"


def shadowed_packages() -> list[Path]:
    """Return other packages of this name on the import path."""
    name = build.PACKAGE.name
    found = {(Path(entry or ".") / name).resolve() for entry in sys.path}
    return sorted(path for path in found if path != build.PACKAGE and (path / "__init__.py").is_file())


if __name__ == "__main__":
    sys.exit(main())
