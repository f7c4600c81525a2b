"""The headers dgr*.h of csrc for ctypes: the structures, and calls that turn a status into an exception."""

from __future__ import annotations

import ctypes
import functools
import struct

import torch
from torch import Tensor

from . import build
from .inputs import View

SPLAT_FLOATS = 8  # DGR_SPLAT_FLOATS
MOMENTS = 6  # DGR_MOMENTS
BIN_BLOCKS = 16  # DGR_BIN_BLOCKS
BACKWARD_SUMS = 9  # DGR_BACKWARD_SUMS
LOSS_TILE = 32  # DGR_LOSS_TILE
ACTIVATE_BLOCK = 256  # DGR_ACTIVATE_BLOCK
MAX_ADAM_TENSORS = 8  # DGR_MAX_ADAM_TENSORS
MAX_PAIRS = 2**32 - 1  # DGR_MAX_PAIRS
SLOT_SPLATS, SLOT_LISTS = 3, 4  # DgrSlot
OUT_OF_MEMORY, REFUSED = -1, -3  # DgrStatus

_pointer, _i64, _i32, _f64 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_double


class Exec(ctypes.Structure):
    """How to run."""

    _fields_ = [("threads", _i32), ("device", _i32), ("stream", _pointer)]


class CView(ctypes.Structure):
    """`View` for the kernels."""

    _fields_ = [
        *((name, _i32) for name in ("width", "height", "sh_degree", "sh_stride")),
        *((name, _f64) for name in ("tan_x", "tan_y", "center_x", "center_y", "scale_modifier")),
        ("view", _f64 * 16),
        ("proj", _f64 * 16),
        ("campos", _f64 * 3),
        ("background", _f64 * 3),
    ]


_PACKED_VIEW = struct.Struct("=4i43d")  # CView, in a tenth of the time that its constructor takes


class Gaussians(ctypes.Structure):
    """Where the Gaussians are."""

    _fields_ = [
        ("count", _i64),
        *((name, _pointer) for name in ("means", "opacities", "scales", "rotations", "cov3d")),
    ]


class Lists(ctypes.Structure):
    """Sorted geometry of one view."""

    _fields_ = [
        ("splat_count", _i64),
        ("pair_count", _i64),
        *((name, _pointer) for name in ("splats", "pair_offsets", "tile_starts", "entries", "rows")),
    ]


class Tiles(ctypes.Structure):
    """Lists of the tiles of one view on a GPU."""

    _fields_ = [
        *((name, _i64) for name in ("splat_count", "entry_count")),
        *((name, _pointer) for name in ("splats", "starts", "entries", "order")),
        *((name, _i32) for name in ("packed", "by_row")),
    ]


class Gradients(ctypes.Structure):
    """Outputs of the last step of the backward pass."""

    _fields_ = [
        (name, _pointer)
        for name in (
            "means",
            "means2d",
            "opacities",
            "scales",
            "rotations",
            "cov3d",
            "shs",
            "colors",
            "features",
        )
    ]


class Photo(ctypes.Structure):
    """A photo, and which of its pixels do not count."""

    _fields_ = [
        *((name, _pointer) for name in ("bytes", "ignored")),
        *((name, _i32) for name in ("channels", "height", "width")),
    ]


class Raw(ctypes.Structure):
    """Gaussians before their activations."""

    _fields_ = [
        *((name, _i64) for name in ("count", "rest_count", "shown_count")),
        *((name, _pointer) for name in ("features_dc", "features_rest", "scaling", "rotation", "opacity")),
    ]


class Activated(ctypes.Structure):
    """Gaussians after their activations, or gradients of that."""

    _fields_ = [(name, _pointer) for name in ("shs", "scales", "rotations", "opacities")]


class RawGradients(ctypes.Structure):
    """Gradients of `Raw`."""

    _fields_ = [(name, _pointer) for name in ("features_dc", "features_rest", "scaling", "rotation", "opacity")]


class AdamTensor(ctypes.Structure):
    """One tensor of Adam."""

    _fields_ = [
        *((name, _pointer) for name in ("parameter", "gradient", "first", "second")),
        ("count", _i64),
        ("rate", _f64),
        ("corrections", _f64 * 2),
    ]


_Allocate = ctypes.CFUNCTYPE(_pointer, _i32, _i64)  # DgrAllocate


def _by(structure: type[ctypes.Structure]):
    return ctypes.POINTER(structure)


_SIGNATURES = {  # of each library, after the first argument, which is always Exec
    "cpu": {
        "dgr_project": (_by(CView), _by(Gaussians), _pointer, _pointer, _pointer),
        "dgr_order": (_i64, _pointer, _pointer, _pointer, _pointer, _pointer, _by(_i64)),
        "dgr_bin_count": (_by(CView), _i64, *(_pointer,) * 8, _by(_i64)),
        "dgr_bin_fill": (_by(CView), _i64, *(_pointer,) * 5),
        "dgr_sh_colors": (_by(CView), _i64, _pointer, _pointer, _pointer),
        "dgr_blend": (_by(CView), _by(Lists), _i64, _pointer, _i32, _pointer),
        "dgr_blend_backward_values": (_by(CView), _by(Lists), _i64, _pointer, _pointer),
        "dgr_blend_backward": (_by(CView), _by(Lists), _i64, *(_pointer,) * 4),
        "dgr_reduce": (_i64, _pointer, _i64, _pointer, _pointer),
        "dgr_project_backward": (
            *(_by(CView), _by(Gaussians), _pointer, _i64, _pointer, _i64, _pointer, _pointer),
            _by(Gradients),
        ),
    },
    "cuda": {
        "dgr_cuda_list": (_by(CView), _by(Gaussians), _Allocate, _pointer, _by(Tiles)),
        "dgr_cuda_pack": (_by(CView), _by(Tiles), _Allocate, _by(Tiles)),
        "dgr_cuda_sh_colors": (_by(CView), _i64, *(_pointer,) * 4),
        "dgr_cuda_blend": (_by(CView), _by(Tiles), _i64, _pointer, _i32, _pointer),
        "dgr_cuda_backproject": (_by(CView), _by(Tiles), _i64, _pointer, _i32, _pointer),
        "dgr_cuda_blend_backward": (_by(CView), _by(Tiles), _i64, *(_pointer,) * 3, _i32, _pointer),
        "dgr_cuda_transpose": (_i64, _by(Tiles), _Allocate, _pointer, _pointer),
        "dgr_cuda_reduce": (_i64, _i64, *(_pointer,) * 4, _i64, _pointer),
        "dgr_cuda_project_backward": (
            *(_by(CView), _by(Gaussians), _pointer, _i64, _pointer, _pointer),
            _by(Gradients),
        ),
        "dgr_cuda_photo_loss": (_by(Photo), _f64, *(_pointer,) * 6),
        "dgr_cuda_photo_loss_backward": (_by(Photo), _f64, *(_pointer,) * 4),
        "dgr_cuda_activate": (_by(Raw), _by(Activated), _f64, _f64, _pointer, _pointer),
        "dgr_cuda_activate_backward": (
            *(_by(Raw), _by(Activated), _by(Activated), _f64, _f64, _pointer),
            _by(RawGradients),
        ),
        "dgr_cuda_adam": (_by(AdamTensor), _i32, _f64, _f64, _f64),
        "dgr_cuda_shake": (_by(Raw), _f64, _f64, _f64, _pointer, _pointer),
        "dgr_cuda_observe": (_i64, *(_pointer,) * 5),
    },
}


@functools.cache
def library(target: str = "cpu") -> ctypes.CDLL:
    """The compiled library with its signatures declared.

    Raises:
        BuildError: if there is none.
    """
    return declare(build.load_library(target), target)


def declare(lib: ctypes.CDLL, target: str = "cpu") -> ctypes.CDLL:
    """Give a library's functions their signatures."""
    for name, arguments in _SIGNATURES[target].items():
        function = getattr(lib, name)
        function.argtypes = (_by(Exec), *arguments)
        function.restype = _i32
    lib.dgr_error_text.argtypes, lib.dgr_error_text.restype = (_i32,), ctypes.c_char_p
    lib.dgr_constants.argtypes, lib.dgr_constants.restype = (_by(_f64), _i32), _i32
    lib.dgr_layout.argtypes, lib.dgr_layout.restype = (_by(_i64), _i32), _i32
    return lib


def call(name: str, *arguments) -> None:
    """Run a kernel of the CPU with as many threads as PyTorch uses; tensors go by their address, None as null.

    Raises:
        MemoryError, RuntimeError: if the kernel reports an error.
    """
    _call(library("cpu"), Exec(torch.get_num_threads(), 0, None), name, arguments)


class Gpu:
    """Calls on one GPU and the stream that is current there now."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.current_stream(device)
        self._library, self._device = library("cuda"), device
        self._exec = Exec(0, device.index, self.stream.cuda_stream)

    def call(self, name: str, *arguments) -> None:
        """As `call`, for a kernel of the GPU, which may still be running afterwards."""
        _call(self._library, self._exec, name, arguments)

    def call_with_memory(self, name: str, before: tuple, after: tuple) -> dict[int, Tensor]:
        """Call with (*before, DgrAllocate, *after); returns what it asked for, by slot."""
        slots: dict[int, Tensor] = {}
        failures: list[BaseException] = []

        def allocate(slot: int, size: int) -> int | None:
            try:
                slots.pop(slot, None)
                slots[slot] = torch.empty(size, dtype=torch.uint8, device=self._device)
                return slots[slot].data_ptr()
            except BaseException as error:  # none passes through C
                failures.append(error)
                return None

        try:
            self.call(name, *before, _Allocate(allocate), *after)
        except _RefusedError:
            slots.clear()  # now, not when the cycle of exception and frames is collected
            # Ctrl-C may come before the `try` of `allocate`, where ctypes drops it.
            raise failures.pop() if failures else KeyboardInterrupt from None
        return slots


class _RefusedError(Exception):
    """`allocate` of call_with_memory gave nothing."""


def _call(lib: ctypes.CDLL, how: Exec, name: str, arguments: tuple) -> None:
    raise_status(lib, name, getattr(lib, name)(how, *(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)))


def raise_status(lib: ctypes.CDLL, name: str, status: int) -> None:
    """Turn what a function returned into an exception.

    Raises:
        MemoryError, RuntimeError: if it is an error.
    """
    if status == OUT_OF_MEMORY:
        raise MemoryError(f"{name}: out of memory")
    if status == REFUSED:
        raise _RefusedError
    if status != 0:
        raise RuntimeError(f"{name}: {lib.dgr_error_text(status).decode()} (status {status})")


def contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Tensors as the kernels read them."""
    return tuple(None if t is None else t.contiguous() for t in tensors)


def gaussians(means3D: Tensor, opacities: Tensor, scales, rotations, cov3D_precomp) -> Gaussians:
    """Contiguous tensors, which must outlive it, as a C structure."""
    tensors = (means3D, opacities, scales, rotations, cov3D_precomp)
    return Gaussians(len(means3D), *(address(t) for t in tensors))


def layout() -> list[int]:
    """What dgr_layout of either library must say, as structures are passed by address."""
    structures = (Exec, CView, Gaussians, Lists, Tiles, Gradients)
    sizes = [*map(ctypes.sizeof, structures), SPLAT_FLOATS, MOMENTS, BIN_BLOCKS, BACKWARD_SUMS]
    sizes += map(ctypes.sizeof, (Photo, Raw, Activated, RawGradients, AdamTensor))
    return [*sizes, LOSS_TILE, ACTIVATE_BLOCK, MAX_ADAM_TENSORS]


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's elements are, for a structure."""
    return None if tensor is None else tensor.data_ptr()


def c_view(view: View, sh_stride: int = 0) -> CView:
    """`View` as a C structure."""
    sizes = view.width, view.height, view.sh_degree, sh_stride
    numbers = view.tan_x, view.tan_y, view.center_x, view.center_y, view.scale_modifier
    arrays = *view.viewmatrix, *view.projmatrix, *view.campos, *view.bg
    return CView.from_buffer_copy(_PACKED_VIEW.pack(*sizes, *numbers, *arrays))
