"""Where tensors live, and how much of them fits there."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from diff_gaussian_rasterization import backend_for
from utils.errors import UserError

PLAN_BYTES = 2_000_000_000  # for the sorted splats of views on the CPU, where other programs want memory too
PLAN_SHARE = 0.5  # of the free memory of a GPU


def choose_device(name: str, deterministic: bool = False) -> torch.device:
    """The device of --device auto|cpu|cuda; on the CPU, denormal numbers count as zero from here on.

    `auto` takes the GPU where the rasteriser has kernels for it, since plain PyTorch there is slower than the kernels
    on the CPU.

    Args:
        name: value of the flag.
        deterministic: the same bits in every run on a GPU too; PyTorch refuses operations that cannot give them.

    Raises:
        UserError: if "cuda" is asked for and PyTorch sees no GPU, or DGR_BACKEND cannot be had.
    """
    if deterministic:
        # Read once, at the first matrix product of the process.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # By default PyTorch also overwrites all new memory with NaN. Nothing here reads what it has not written.
        torch.utils.deterministic.fill_uninitialized_memory = False
    if deterministic != torch.are_deterministic_algorithms_enabled():  # setting it imports PyTorch's compiler: a second
        torch.use_deterministic_algorithms(deterministic)
    _require_gpu(name)
    try:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() and backend_for("cuda") == "cuda" else "cpu"
        backend_for(name)
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from None
    # Softmax over thousands of Gaussians and Adam's moments are full of denormal numbers, with which CPUs compute ten
    # times slower. Threads inherit the setting, so it comes before the first of them starts.
    torch.set_flush_denormal(True)
    return torch.device(name)


def torch_device(name: str) -> torch.device:
    """The device of --device auto|cpu|cuda for work of PyTorch alone, which needs no kernels of ours.

    Raises:
        UserError: if "cuda" is asked for and PyTorch sees no GPU.
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


def free_gpu_bytes(device: torch.device) -> int:
    """Bytes of a GPU that PyTorch can still hand out: what the driver has, and what its allocator keeps unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def gpu_share(device: torch.device, share: float, on_cpu: int) -> int:
    """A share of the memory that is free on a GPU now; `on_cpu` bytes for the CPU."""
    return int(share * free_gpu_bytes(device)) if device.type == "cuda" else on_cpu


def plan_bytes(gigabytes: float | None, device: torch.device) -> int:
    """The bound of --plan_memory in bytes; None stands for its default on this device."""
    return gpu_share(device, PLAN_SHARE, PLAN_BYTES) if gigabytes is None else int(gigabytes * 1e9)


class Download:
    """A copy on the CPU of a tensor that may be on a GPU; it is under way from here on, and the CPU goes on.

    A GPU writes into page-locked memory several times faster. PyTorch keeps such memory for later copies once the copy
    is dropped.
    """

    def __init__(self, tensor: Tensor):
        self._copy, self._event = tensor, None
        if tensor.is_cuda:
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.current_stream(tensor.device).record_event()

    @property
    def is_done(self) -> bool:
        """Whether `wait` need not wait."""
        return self._event is None or self._event.query()

    def wait(self) -> Tensor:
        """The copy; a tensor on the CPU is its own."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy


def on_cpu(tensor: Tensor) -> Tensor:
    """A copy on the CPU of what is on a GPU; a tensor on the CPU is its own. See `Download`."""
    return Download(tensor).wait()
