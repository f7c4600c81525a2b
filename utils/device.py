"""Device selection, memory budgets, and non-blocking copies to the CPU."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from diff_gaussian_rasterization import backend_for
from utils.errors import UserError

PLAN_BYTES = 2_000_000_000  # raster plans on the CPU, where other programs need memory too
PLAN_SHARE = 0.5  # raster plans on a GPU, as a share of its free memory


def choose_device(name: str, deterministic: bool = False) -> torch.device:
    """Resolve --device auto|cpu|cuda, and flush denormal numbers to zero from here on.

    `auto` picks the GPU only if the rasteriser has kernels for it: the CPU kernels beat plain PyTorch on a GPU.

    Args:
        name: value of the flag.
        deterministic: make runs on a GPU bit-reproducible; PyTorch then rejects operations that cannot be.

    Raises:
        UserError: if name is "cuda" and PyTorch sees no GPU, or DGR_BACKEND is not available.
    """
    if deterministic:
        # cuBLAS reads it at the first matrix product of the process.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # By default PyTorch also fills all new memory with NaN. Nothing here reads uninitialised memory.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the setter imports torch.compile: 1 s
        torch.use_deterministic_algorithms(deterministic)
    _require_gpu(name)
    try:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() and backend_for("cuda") == "cuda" else "cpu"
        backend_for(name)
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from None
    # Softmax over thousands of Gaussians and Adam's moments are full of denormal numbers, which are ten times slower on
    # CPUs. Threads inherit the setting, so it must precede the first one.
    torch.set_flush_denormal(True)
    return torch.device(name)


def torch_device(name: str) -> torch.device:
    """Resolve --device auto|cpu|cuda for plain PyTorch, without our kernels.

    Raises:
        UserError: if name is "cuda" and PyTorch sees no GPU.
    """
    _require_gpu(name)
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _require_gpu(name: str) -> None:
    if name == "cuda" and not torch.cuda.is_available():
        build = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        raise UserError(
            f"--device cuda: PyTorch {torch.__version__} ({build}) sees no GPU here. Check `nvidia-smi` and the "
            "driver, install a CUDA build of PyTorch, or use --device cpu."
        )


def memory_budget(device: torch.device, share: float, on_cpu: int) -> int:
    """Return a share of the free memory of a GPU in bytes, or `on_cpu` for the CPU."""
    if device.type != "cuda":
        return on_cpu
    free, _ = torch.cuda.mem_get_info(device)
    return int(share * (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)))


def plan_bytes(gigabytes: float | None, device: torch.device) -> int:
    """Return --plan_memory in bytes; None means the default of the device."""
    return memory_budget(device, PLAN_SHARE, PLAN_BYTES) if gigabytes is None else int(gigabytes * 1e9)


class Download:
    """A non-blocking copy of a tensor to the CPU; a CPU tensor is used as it is.

    The copy goes to page-locked memory, which a GPU writes several times faster and PyTorch reuses for later copies.
    """

    def __init__(self, tensor: Tensor):
        self._copy, self._event = tensor, None
        if tensor.is_cuda:
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.current_stream(tensor.device).record_event()

    @property
    def is_ready(self) -> bool:
        """Whether the copy has finished."""
        return self._event is None or self._event.query()

    def wait(self) -> Tensor:
        """Wait for the copy and return it."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy


def to_cpu(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU through page-locked memory."""
    return Download(tensor).wait()
