"""Backend selection: DGR_BACKEND = auto | cuda | cpu | reference."""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import warnings
from types import ModuleType

import torch

from . import build

BACKENDS = ("auto", "cuda", "cpu", "reference")


def backend_for(device: torch.device | str, choice: str | None = None) -> str:
    """Return the implementation for tensors on a device: "cuda", "cpu" or "reference".

    Args:
        device: the tensors' device.
        choice: one of BACKENDS, by default DGR_BACKEND or "auto": the compiled kernels of the device, or plain PyTorch
            with one warning if they are not available.

    Raises:
        ValueError: for an unknown choice, or the kernels of another device.
        BuildError: for a choice of kernels that cannot be built.
    """
    kind = torch.device(device).type
    source = "DGR_BACKEND" if choice is None else "backend"
    choice = choice or os.environ.get("DGR_BACKEND") or "auto"
    if choice not in BACKENDS:
        raise ValueError(f"{source} is {choice!r}; expected one of {', '.join(BACKENDS)}.")
    if choice == "reference":
        return choice
    if choice == "auto":
        if _missing_kernels(kind) is None:
            return kind
        warn_once(kind)
        return "reference"
    if choice != kind:
        raise ValueError(f"{source}={choice} cannot take tensors on {kind}. Move them, or use auto or reference.")
    reason = _missing_kernels(kind)
    if reason is not None:
        raise build.BuildError(f"{source}={choice}, but its kernels are not available: {reason}")
    return choice


def implementation(device: torch.device | str, choice: str | None = None) -> ModuleType:
    """Return the module with `rasterize` and `prepare` for tensors on a device."""
    return importlib.import_module(f".{backend_for(device, choice)}", __package__)


def _missing_kernels(kind: str) -> str | None:
    """Return why the compiled kernels of a device cannot be used, None if they can."""
    if kind == "cuda":
        return cuda_missing()
    if kind != "cpu":
        return f"there are no kernels for {kind}."
    library, reason = build.library_or_none(kind)
    return reason if library is None else None


@functools.cache
def cuda_missing() -> str | None:
    """Return why the CUDA kernels cannot be used, None if they can. Compiles nothing if PyTorch sees no GPU."""
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU."
    library, reason = build.library_or_none("cuda")
    if library is None:
        return reason
    library.dgr_error_text.restype = ctypes.c_char_p
    status = library.dgr_cuda_ready(torch.cuda.current_device())
    if status == 0:
        return None
    return (
        f"{library._name} does not run on {torch.cuda.get_device_name()}: {library.dgr_error_text(status).decode()}. "
        "If the driver is older than nvcc's CUDA toolkit (`nvidia-smi` shows the highest CUDA version that the driver "
        "supports), update the driver, or set CUDA_HOME to an older toolkit."
    )


@functools.cache
def warn_once(kind: str) -> None:
    """Warn that tensors on this kind of device fall back to plain PyTorch."""
    warnings.warn(
        f"No compiled kernels run on {kind}, only plain PyTorch, which is correct but slow: {_missing_kernels(kind)}\n"
        "`python -m diff_gaussian_rasterization` says what is missing; DGR_BACKEND=reference silences this warning.",
        RuntimeWarning,
        stacklevel=4,
    )
