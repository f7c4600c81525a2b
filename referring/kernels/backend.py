"""Backend selection of the referring field: CUDA kernels or plain PyTorch."""

from __future__ import annotations

import logging

import torch

from referring.kernels.functions import FusedField
from referring.kernels.library import WORDS, usable
from referring.kernels.plain import PlainField
from utils.errors import UserError

log = logging.getLogger("refersplat")

PRECISIONS = ("fp32", "tf32", "bf16")


Backend = FusedField | PlainField  # `PlainField` documents the interface


def choose_backend(device: torch.device, precision: str = "fp32", graph_bytes: int | None = None) -> Backend:
    """Return the fastest backend that works on a device.

    Args:
        device: of the Gaussians.
        precision: of the matrix products of the kernels, one of PRECISIONS; plain PyTorch has fp32 only.
        graph_bytes: see `PlainField`.

    Raises:
        UserError: if the kernels cannot run here, but `precision` needs them.
    """
    reason = f"this run is on the {device.type.upper()}"
    if device.type == "cuda":
        library, reason = usable(WORDS[0], precision, device)
        if library is not None:
            return FusedField(precision, graph_bytes, device=device)
    if precision != "fp32":
        raise UserError(
            f"--precision {precision} is for GPU kernels of the referring field, but {reason}. Use --precision fp32."
        )
    if device.type == "cuda":
        log.warning("the referring field runs in plain PyTorch, several times slower: %s", reason)
    return PlainField(graph_bytes)
