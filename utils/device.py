"""Where tensors live."""

from __future__ import annotations

import torch

from utils.errors import UserError
from utils.submodules import import_ours


def choose_device(name: str) -> torch.device:
    """The device of --device auto|cpu|cuda; on the CPU, denormal numbers count as zero from here on.

    `auto` takes the GPU where the rasteriser has kernels for it, since plain PyTorch there is slower than the kernels
    on the CPU.

    Raises:
        UserError: if "cuda" is asked for and PyTorch sees no GPU, or DGR_BACKEND cannot be had.
    """
    if name == "cuda" and not torch.cuda.is_available():
        build = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        raise UserError(
            f"--device cuda: PyTorch {torch.__version__} ({build}) sees no GPU here. Check `nvidia-smi` and the "
            "driver, install a CUDA build of PyTorch, or use --device cpu."
        )
    backend_for = import_ours("diff_gaussian_rasterization").backend_for
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
