"""The compiled kernels of the referring field: built on first use with nvcc, called through ctypes.

Each number of words and each precision is a library of its own, made of the same sources in seconds. The structures
below are those of csrc/field.h.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, byref, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from diff_gaussian_rasterization import BuildError, build, toolchain
from diff_gaussian_rasterization.compiling import Target

CSRC = Path(__file__).resolve().parent / "csrc"
WORDS = (16, 32, 64)  # words of a sentence, for which there are kernels
PASSES = {"fp32": (3, 3), "tf32": (1, 3), "bf16": (1, 1)}  # products of parts: where errors grow, and elsewhere
MOST_MATRICES = 16
ROWS = 16  # Gaussians of a warp
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
BFLOAT16, FLOAT16, FLOAT32 = range(3)  # as what a matrix is packed
SHARED_KB = 220, 160, 96  # of Hopper, Ampere's data centre GPUs, others
OLDEST_GPU = (8, 0)  # compute capability; older ones have no products of bfloat16

Argument = ctypes.Structure | ctypes.Array | Tensor | int | float | None


def _structure(name: str, **fields: type) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


def _pointers(*names: str) -> dict[str, type]:
    return dict.fromkeys(names, c_void_p)


CGaussians = _structure(
    "CGaussians",
    **_pointers("features", "xyz", "bias21", "bias22", "weight31", "bias31", "bias32", "growth"),
    **_pointers("norm_vector", "norm_constant", "square_vector", "square_constant", "scales"),
    operands=c_void_p,
    count=c_int64,
)
CForms = _structure(
    "CForms",
    **_pointers("along_constant", "offset", "squares", "scores", "operands"),
    sentences=c_int32,
    eps=c_float,
)
CScoreGrads = _structure(
    "CScoreGrads", **_pointers("score_grads", "thresholds", "top_constant_grads", "order", "active")
)
CPool = _structure("CPool", operands=c_void_p, words=c_int32)
CMatrix = _structure(
    "CMatrix",
    **_pointers("source", "target"),
    **dict.fromkeys(("row_step", "column_step", "batch_step", "target_step"), c_int64),
    **dict.fromkeys(("rows", "columns", "batch", "type"), c_int32),
)
CLayer = _structure("CLayer", weight=c_void_p, bias=c_void_p, outputs=c_int32, inputs=c_int32)
CProduct = _structure(
    "CProduct",
    **_pointers("left", "right"),
    **dict.fromkeys(("left_row", "left_term", "right_term", "right_column"), c_int64),
)
CMatrices = _structure("CMatrices", at=CMatrix * MOST_MATRICES)

_GAUSSIANS, _POOL, _FORMS, _BACK = POINTER(CGaussians), POINTER(CPool), POINTER(CForms), POINTER(CScoreGrads)
SIGNATURES = {
    "field_pack": (POINTER(CMatrices), c_int),
    "field_products": (POINTER(CProduct), c_int, c_int, c_int, c_int, c_float, c_void_p, c_void_p),
    "field_growth": (POINTER(CLayer), c_void_p),
    "field_scales": (_GAUSSIANS, c_int),
    "field_pool": (_GAUSSIANS, _POOL, c_void_p, c_void_p, c_void_p, c_int),
    "field_finish_pool": (c_int, c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    "field_score": (_GAUSSIANS, _FORMS, c_int),
    "field_top": (_GAUSSIANS, _FORMS, c_void_p, c_void_p, c_void_p, c_int),
    "field_sum_rows": (c_void_p, c_int, c_int64, c_void_p),
    "field_thresholds": (c_void_p, c_void_p, c_int64, c_int, c_void_p, c_void_p, c_void_p),
    "field_list_tops": (c_void_p, c_void_p, c_int64, c_int, c_void_p, c_void_p, c_void_p, c_void_p),
    "field_order_active": (c_void_p, c_void_p, c_void_p, c_int64, c_int, c_void_p, c_void_p, c_void_p, c_void_p),
    "field_forms_backward": (_GAUSSIANS, _FORMS, _BACK, c_void_p, c_int),
    "field_queries_backward": (_GAUSSIANS, _POOL, c_void_p, c_int),
    "field_features_backward": (_GAUSSIANS, _POOL, _FORMS, _BACK, c_void_p, c_void_p, c_void_p, c_int),
    "field_positions_backward": (_GAUSSIANS, _POOL, _FORMS, _BACK, c_void_p, c_int),
}


class Library:
    """The kernels in a shared library, on CUDA devices or, emulated, on the CPU."""

    def __init__(self, path: Path):
        self._library = ctypes.CDLL(str(path))
        for name, arguments in SIGNATURES.items():
            getattr(self._library, name).argtypes = (*arguments, c_void_p)
        self._library.field_error_text.restype = ctypes.c_char_p
        self.warps = [self._library.field_warps(is_large) for is_large in (False, True)]
        self.warps_per_sm = [self._library.field_warps_per_sm(is_light) for is_light in (False, True)]
        self.list_block = self._library.field_list_block()

    def call(self, device: torch.device, name: str, *arguments: Argument) -> None:
        """Launch kernels on the current stream of a device.

        Raises:
            torch.OutOfMemoryError: if the GPU has no memory left for it.
            RuntimeError: if CUDA refuses for another reason.
        """
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
        error = getattr(self._library, name)(*map(_to_c, arguments), stream)
        if error:
            reason = f"{name}: {self._library.field_error_text(error).decode()} (CUDA error {error})"
            raise torch.OutOfMemoryError(reason) if error == OUT_OF_MEMORY else RuntimeError(reason)


@functools.cache
def usable(words: int, precision: str, device: torch.device) -> tuple[Library | None, str]:
    """Try a kernel on a device; return the library and "", or None and the reason why its kernels cannot run there."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST_GPU:
        found, needed = (".".join(map(str, n)) for n in (torch.cuda.get_device_capability(device), OLDEST_GPU))
        return None, f"this GPU has compute capability {found}, and they need {needed}"
    try:
        library = load(words, precision, device.type, shared_memory_kb(device))
        numbers = torch.ones(2, 1, device=device)
        with torch.cuda.device_of(numbers):
            library.call(device, "field_sum_rows", numbers, 2, 1, torch.empty_like(numbers[0]))
    except (BuildError, OSError, RuntimeError) as error:
        return None, str(error).strip() or type(error).__name__
    return library, ""


def _to_c(argument: Argument) -> object:
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    return byref(argument) if isinstance(argument, ctypes.Structure) else argument


def shared_memory_kb(device: torch.device) -> int:
    """Return the memory that a thread block can share, in the sizes that csrc/shared_memory.cuh tells apart."""
    if device.type != "cuda":
        return SHARED_KB[0]
    most = torch.cuda.get_device_properties(device).shared_memory_per_block_optin >> 10  # type: ignore[attr-defined]
    return next((size for size in SHARED_KB if size <= most), SHARED_KB[-1])


@functools.cache
def load(words: int, precision: str, device_type: str, shared_kb: int) -> Library:
    """Return the library for sentences of `words` words, one of WORDS, built if the cache does not have it.

    Args:
        precision: one of PASSES.
        device_type: "cuda", or "cpu" for the emulated kernels.
        shared_kb: see `shared_memory_kb`.

    Raises:
        BuildError: if it cannot be built; the message holds the compiler's output.
    """
    fine, coarse = PASSES[precision]
    sizes = {"WORDS": words, "FORWARD": fine, "BACKWARD": coarse, "SHARED_KB": shared_kb}
    defines = tuple(f"-DFIELD_{name}={size}" for name, size in sizes.items())
    if device_type == "cuda":
        target = build.cuda_target("cuda-field", CSRC, defines, 10 * OLDEST_GPU[0] + OLDEST_GPU[1])
    else:
        flags = ("-std=c++17", "-O2", "-fPIC", *defines)
        target = Target("field", toolchain.find_compiler(), flags, toolchain.cpu_key(), CSRC, CSRC)
    return Library(build.build_into_cache(target))
