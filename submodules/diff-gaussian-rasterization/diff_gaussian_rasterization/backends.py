"""Which implementation runs: DGR_BACKEND = auto | cuda | cpu | reference."""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from types import ModuleType

import torch

from . import build, reference

BACKENDS = ("auto", "cuda", "cpu", "reference")


def backend_for(device: torch.device | str) -> str:
    """Name of the implementation for tensors on `device`: "cuda", "cpu" or "reference".

    With `auto`, the compiled kernels of that device, or, with one warning, plain PyTorch where they cannot be had.

    Raises:
        ValueError: if DGR_BACKEND is not a known name, or names kernels of another device.
        BuildError: if DGR_BACKEND asks for kernels that cannot be built.
    """
    kind = torch.device(device).type
    wanted = os.environ.get("DGR_BACKEND", "") or "auto"
    if wanted not in BACKENDS:
        raise ValueError(f"DGR_BACKEND is {wanted!r}; expected one of {', '.join(BACKENDS)}.")
    if wanted == "reference":
        return wanted
    if wanted == "auto":
        if kind in ("cpu", "cuda") and _kernels_missing(kind) is None:
            return kind
        _warn_once(kind)
        return "reference"
    if wanted != kind:
        raise ValueError(f"DGR_BACKEND={wanted} cannot take tensors on {kind}. Move them, or use auto or reference.")
    reason = _kernels_missing(kind)
    if reason is not None:
        raise build.BuildError(f"DGR_BACKEND={wanted}, but its kernels are not there: {reason}")
    return wanted


def implementation(device: torch.device | str) -> ModuleType:
    """The module that holds `rasterize` and `prepare` for tensors on `device`."""
    backend = backend_for(device)
    if backend == "reference":
        return reference
    if backend == "cuda":
        from . import cuda_native

        return cuda_native
    from . import native

    return native


def _kernels_missing(kind: str) -> str | None:
    """Why the compiled kernels of a device cannot be used, None if they can."""
    if kind == "cuda":
        return cuda_missing()
    library, reason = build.library_or_none(kind)
    return reason if library is None else None


@functools.cache
def cuda_missing() -> str | None:
    """Why the CUDA kernels cannot be used, None if they can. Nothing is compiled where PyTorch sees no GPU."""
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
        "takes), update the driver, or set CUDA_HOME to an older toolkit."
    )


@functools.cache
def _warn_once(kind: str) -> None:
    reason = _kernels_missing(kind) if kind in ("cpu", "cuda") else f"there are no kernels for {kind}."
    warnings.warn(
        f"No compiled kernels run on {kind}, only plain PyTorch, which is correct but slow: {reason}\n"
        "`python -m diff_gaussian_rasterization` says what is missing; DGR_BACKEND=reference silences this warning.",
        RuntimeWarning,
        stacklevel=4,
    )
