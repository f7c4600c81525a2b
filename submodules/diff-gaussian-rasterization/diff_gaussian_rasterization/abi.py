"""The C ABI of csrc/dgr*.h for ctypes: structures, signatures, and calls that turn a status into an exception."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from . import build
from .inputs import View

SPLAT_FLOATS = 8  # kSplatFloats in csrc/constants.h
MOMENTS = 6  # kMoments
BIN_BLOCKS = 16  # kBinBlocks
BACKWARD_SUMS = 9  # kBackwardSums
LOSS_TILE = 32  # kLossTile
ACTIVATE_BLOCK = 256  # kActivateThreads
MAX_ADAM_TENSORS = 8  # kMaxAdamTensors
MAX_PAIRS = 2**32 - 1  # kMaxPairs
SLOT_SPLATS, SLOT_LISTS = 3, 4  # DgrSlot
OUT_OF_MEMORY, REFUSED = -1, -3  # DgrStatus

_pointer, _i64, _i32, _f64 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_double


def _all(kind: type, names: str) -> list[tuple[str, type]]:
    """Fields of one type."""
    return [(name, kind) for name in names.split()]


# The structures Dgr* of the headers, field by field.
class Exec(ctypes.Structure):
    _fields_ = [("threads", _i32), ("device", _i32), ("stream", _pointer)]


class CView(ctypes.Structure):
    _fields_ = [
        *_all(_i32, "width height sh_degree sh_stride"),
        *_all(_f64, "tan_x tan_y center_x center_y scale_modifier"),
        *(("view", _f64 * 16), ("proj", _f64 * 16), ("campos", _f64 * 3), ("background", _f64 * 3)),
    ]


_PACKED_VIEW = struct.Struct("=4i43d")  # CView, ten times as fast as its constructor


class Gaussians(ctypes.Structure):
    _fields_ = [("count", _i64), *_all(_pointer, "means opacities scales rotations cov3d")]


class Lists(ctypes.Structure):  # sorted geometry of one view
    _fields_ = _all(_i64, "splat_count pair_count") + _all(_pointer, "splats pair_offsets tile_starts entries rows")


class Tiles(ctypes.Structure):  # the same on a GPU
    _fields_ = [
        *_all(_i64, "splat_count entry_count"),
        *_all(_pointer, "splats starts entries order"),
        *_all(_i32, "packed by_row"),
    ]


class Gradients(ctypes.Structure):  # outputs of the projection's backward pass
    _fields_ = _all(_pointer, "means means2d opacities scales rotations cov3d shs colors features")


class Photo(ctypes.Structure):
    _fields_ = _all(_pointer, "bytes ignored") + _all(_i32, "channels height width")


class RawGradients(ctypes.Structure):
    _fields_ = _all(_pointer, "features_dc features_rest scaling rotation opacity")


class Raw(ctypes.Structure):  # before the activations
    _fields_ = [*_all(_i64, "count rest_count shown_count"), *RawGradients._fields_]


class Activated(ctypes.Structure):  # or the gradients of the activated values
    _fields_ = _all(_pointer, "shs scales rotations opacities")


class AdamTensor(ctypes.Structure):
    _fields_ = [
        *_all(_pointer, "parameter gradient first second"),
        *(("count", _i64), ("rate", _f64), ("corrections", _f64 * 2)),
    ]


Allocate = ctypes.CFUNCTYPE(_pointer, _i32, _i64)  # DgrAllocate
_P = ctypes.POINTER
_VIEW, _GAUSSIANS = _P(CView), _P(Gaussians)

SIGNATURES: dict[str, dict[str, tuple]] = {  # per library, without the first argument, which is always Exec
    "cpu": {
        "dgr_project": (_VIEW, _GAUSSIANS, _pointer, _pointer, _pointer),
        "dgr_order": (_i64, _pointer, _pointer, _pointer, _pointer, _pointer, _P(_i64)),
        "dgr_bin_count": (_VIEW, _i64, *(_pointer,) * 8, _P(_i64)),
        "dgr_bin_fill": (_VIEW, _i64, *(_pointer,) * 5),
        "dgr_sh_colors": (_VIEW, _i64, _pointer, _pointer, _pointer),
        "dgr_blend": (_VIEW, _P(Lists), _i64, _pointer, _i32, _pointer),
        "dgr_backproject": (_VIEW, _P(Lists), _i64, _pointer, _pointer),
        "dgr_blend_backward": (_VIEW, _P(Lists), _i64, *(_pointer,) * 4),
        "dgr_reduce": (_i64, _pointer, _i64, _pointer, _pointer),
        "dgr_project_backward": (_VIEW, _GAUSSIANS, _pointer, _i64, _pointer, _i64, *(_pointer,) * 2, _P(Gradients)),
    },
    "cuda": {
        "dgr_cuda_list": (_VIEW, _GAUSSIANS, Allocate, _pointer, _P(Tiles)),
        "dgr_cuda_pack": (_VIEW, _P(Tiles), Allocate, _P(Tiles)),
        "dgr_cuda_sh_colors": (_VIEW, _i64, *(_pointer,) * 4),
        "dgr_cuda_blend": (_VIEW, _P(Tiles), _i64, _pointer, _i32, _pointer),
        "dgr_cuda_backproject": (_VIEW, _P(Tiles), _i64, _pointer, _i32, _pointer),
        "dgr_cuda_blend_backward": (_VIEW, _P(Tiles), _i64, *(_pointer,) * 3, _i32, _pointer),
        "dgr_cuda_transpose": (_i64, _P(Tiles), Allocate, _pointer, _pointer),
        "dgr_cuda_reduce": (_i64, _i64, *(_pointer,) * 4, _i64, _pointer),
        "dgr_cuda_project_backward": (_VIEW, _GAUSSIANS, _pointer, _i64, _pointer, _pointer, _P(Gradients)),
        "dgr_cuda_photo_loss": (_P(Photo), _f64, *(_pointer,) * 6),
        "dgr_cuda_photo_loss_backward": (_P(Photo), _f64, *(_pointer,) * 4),
        "dgr_cuda_activate": (_P(Raw), _P(Activated), _f64, _f64, _pointer, _pointer),
        "dgr_cuda_activate_backward": (_P(Raw), *(_P(Activated),) * 2, _f64, _f64, _pointer, _P(RawGradients)),
        "dgr_cuda_adam": (_P(AdamTensor), _i32, _f64, _f64, _f64),
        "dgr_cuda_add_noise": (_P(Raw), _f64, _f64, _f64, _pointer, _pointer),
        "dgr_cuda_observe": (_i64, *(_pointer,) * 5),
        "dgr_cuda_knn": (_i64, _pointer, _pointer, _P(_i64), _pointer),
    },
}


@functools.cache
def library(target: str = "cpu") -> ctypes.CDLL:
    """Load a compiled library and declare its signatures; see `build.load_library`."""
    return declare(build.load_library(target), target)


def declare(lib: ctypes.CDLL, target: str = "cpu") -> ctypes.CDLL:
    """Declare the signatures of a library's functions."""
    for name, arguments in SIGNATURES[target].items():
        function = getattr(lib, name)
        function.argtypes = (_P(Exec), *arguments)
        function.restype = _i32
    lib.dgr_error_text.argtypes, lib.dgr_error_text.restype = (_i32,), ctypes.c_char_p
    return lib


def call(name: str, *arguments) -> None:
    """Run a CPU kernel with as many threads as PyTorch uses; tensors are passed by address, None as null.

    Raises:
        MemoryError, RuntimeError: if the kernel reports an error.
    """
    _call(library("cpu"), Exec(torch.get_num_threads(), 0, None), name, arguments)


class Gpu:
    """Calls on one GPU, on the stream that is current now."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.current_stream(device)
        self._library, self._device = library("cuda"), device
        self._exec = Exec(0, device.index, self.stream.cuda_stream)

    def call(self, name: str, *arguments) -> None:
        """Launch a GPU kernel; arguments as in `call`."""
        _call(self._library, self._exec, name, arguments)

    def call_with_memory(self, name: str, before: tuple, after: tuple) -> dict[int, Tensor]:
        """Call with (*before, DgrAllocate, *after); return the memory that the kernel allocated, by slot."""
        slots: dict[int, Tensor] = {}
        failures: list[BaseException] = []

        def allocate(slot: int, size: int) -> int | None:
            try:
                slots.pop(slot, None)
                slots[slot] = torch.empty(size, dtype=torch.uint8, device=self._device)
                return slots[slot].data_ptr()
            except BaseException as error:  # an exception cannot pass through C
                failures.append(error)
                return None

        try:
            self.call(name, *before, Allocate(allocate), *after)
        except _RefusedError:
            slots.clear()  # now, not when the cycle of exception and frames is collected
            # Ctrl-C may arrive before the `try` of `allocate`, where ctypes drops it.
            raise failures.pop() if failures else KeyboardInterrupt from None
        return slots


class _RefusedError(Exception):
    """`allocate` of call_with_memory returned null."""


def _call(lib: ctypes.CDLL, how: Exec, name: str, arguments: tuple) -> None:
    status = getattr(lib, name)(how, *(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))
    if status == OUT_OF_MEMORY:
        raise MemoryError(f"{name}: out of memory")
    if status == REFUSED:
        raise _RefusedError
    if status != 0:
        raise RuntimeError(f"{name}: {lib.dgr_error_text(status).decode()} (status {status})")


def contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Make tensors contiguous, as the kernels read them."""
    return tuple(None if t is None else t.contiguous() for t in tensors)


def gaussians(means3D: Tensor, *others: Tensor | None) -> Gaussians:
    """Pass contiguous tensors (means3D, opacities, scales, rotations, cov3D_precomp), which must outlive the result.

    Raises:
        ValueError: unless they are float32.
    """
    if means3D.dtype != torch.float32:
        raise ValueError(
            f"The compiled kernels take float32, means3D is {means3D.dtype}. Call .float() on the inputs, or use "
            'backend="reference", which takes float64.'
        )
    return Gaussians(len(means3D), *map(address, (means3D, *others)))


def gradient_shapes(sh_stride: int, features: int) -> tuple[tuple[int, ...], ...]:
    """Shapes after N of the gradients of `rasterize`: of the tensors after `view`, in that order."""
    return (3,), (3,), (1,), (sh_stride, 3), (3,), (features,), (3,), (4,), (6,)


def gradients(tensors: Sequence[Tensor | None]) -> Gradients:
    """Pass the outputs of the backward pass, in the order of `gradient_shapes`."""
    means, means2d, opacities, shs, colors, features, *shape = map(address, tensors)
    return Gradients(means, means2d, opacities, *shape, shs, colors, features)


def address(tensor: Tensor | None) -> int | None:
    """Address of a tensor's elements, None for None."""
    return None if tensor is None else tensor.data_ptr()


def c_view(view: View, sh_stride: int = 0) -> CView:
    """Convert a `View` to its C structure."""
    sizes = view.width, view.height, view.sh_degree, sh_stride
    numbers = view.tan_x, view.tan_y, view.center_x, view.center_y, view.scale_modifier
    arrays = *view.viewmatrix, *view.projmatrix, *view.campos, *view.bg
    return CView.from_buffer_copy(_PACKED_VIEW.pack(*sizes, *numbers, *arrays))
