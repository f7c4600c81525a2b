"""Where tensors live."""

from __future__ import annotations

import torch

from utils.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device of --device auto|cpu|cuda.

    Raises:
        UserError: if "cuda" is asked for and PyTorch sees no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        build = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        raise UserError(
            f"--device cuda: PyTorch {torch.__version__} ({build}) sees no GPU here. Check `nvidia-smi` and the "
            "driver, install a CUDA build of PyTorch, or use --device cpu."
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
