"""The C++ kernels of csrc/dgr.h for PyTorch. PyTorch owns all memory; the kernels see addresses."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import abi
from .constants import TILE
from .inputs import View
from .plan import RasterPlan

# Channels of one backward pass of scores: bounds the memory of partial gradients, P floats a channel.
MAX_CHANNELS_PER_PASS = 32


class SortedSplats(NamedTuple):
    """Projected Gaussians front to back, and the lists of the tiles; see DgrLists in csrc/dgr.h."""

    order: Tensor  # [V] int64, ids of the visible Gaussians
    splats: Tensor  # [V, 8] float32
    pair_offsets: Tensor  # [V + 1] int64
    tile_starts: Tensor  # [tiles + 1] int64
    entries: Tensor  # [P, 2] int32 (uint32 for the kernels)
    rows: Tensor  # [P] int16 (uint16 for the kernels)

    def lists(self) -> abi.Lists:
        """The C structure."""
        return abi.Lists(len(self.order), len(self.entries), *map(abi.address, self[1:]))

    def reduce(self, partials: Tensor) -> Tensor:
        """Sum partial results [P, C] of (Gaussian, tile) pairs into [V, C]."""
        sums = _floats(len(self.order), partials.shape[1])
        abi.call("dgr_reduce", len(self.order), self.pair_offsets, partials.shape[1], partials, sums)
        return sums

    def backproject(self, c_view: abi.CView, count: int, image: Tensor) -> Tensor:
        """W^T image [C, H, W]: [count, C]."""
        sums = _floats(count, len(image)).zero_()
        for first in range(0, len(image), MAX_CHANNELS_PER_PASS):
            part = image[first : first + MAX_CHANNELS_PER_PASS]
            partials = _floats(len(self.entries), len(part))
            abi.call("dgr_backproject", c_view, self.lists(), len(part), part, partials)
            sums[:, first : first + len(part)].index_copy_(0, self.order, self.reduce(partials))
        return sums


def _floats(*shape: int) -> Tensor:
    """Allocate memory for a kernel, whatever the default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _integers(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu")


def sort_splats(c_view: abi.CView, gaussians: abi.Gaussians) -> tuple[SortedSplats, Tensor]:
    """Project, sort by depth and list the tiles: (sorted splats, radii [N] int32)."""
    n = gaussians.count
    splats, depths = _floats(n, abi.SPLAT_FLOATS), _floats(n)
    radii = _integers(n, dtype=torch.int32)
    abi.call("dgr_project", c_view, gaussians, splats, depths, radii)

    order, scratch = _integers(n), _integers(4 * n, dtype=torch.int32)
    count = ctypes.c_int64()
    abi.call("dgr_order", n, splats, depths, radii, scratch, order, count)
    v = count.value
    order = order[:v].clone()

    tiles = -(-c_view.width // TILE) * -(-c_view.height // TILE)
    sorted_splats, sorted_radii = _floats(v, abi.SPLAT_FLOATS), _integers(v, dtype=torch.int32)
    pair_offsets, tile_starts, block_starts = _integers(v + 1), _integers(tiles + 1), _integers(abi.BIN_BLOCKS, tiles)
    abi.call(
        "dgr_bin_count",
        *(c_view, v, order, splats, radii, sorted_splats, sorted_radii),
        *(pair_offsets, tile_starts, block_starts, count),
    )
    entries = _integers(count.value, 2, dtype=torch.int32)
    rows = _integers(count.value, dtype=torch.int16)
    abi.call("dgr_bin_fill", c_view, v, sorted_splats, sorted_radii, block_starts, entries, rows)
    return SortedSplats(order, sorted_splats, pair_offsets, tile_starts, entries, rows), radii


class CpuPlan(RasterPlan):
    """Frozen geometry of one view, in the layout of the kernels."""

    def __init__(self, c_view: abi.CView, splats: SortedSplats, radii: Tensor):
        self._c_view, self._splats = c_view, splats
        self.radii, self.size = radii, (c_view.height, c_view.width)

    @property
    def nbytes(self) -> int:
        return self.radii.nbytes + sum(t.nbytes for t in self._splats)

    def _blend(self, scores: Tensor) -> Tensor:
        picture = _floats(scores.shape[1], *self.size)
        values = scores.index_select(0, self._splats.order)  # [V, K]
        abi.call("dgr_blend", self._c_view, self._splats.lists(), scores.shape[1], values, 0, picture)
        return picture

    def _backproject(self, image: Tensor) -> Tensor:
        return self._splats.backproject(self._c_view, len(self.radii), image)


def prepare(view: View, means3D: Tensor, *others: Tensor | None) -> CpuPlan:
    """Project and sort the Gaussians of one view; see `inputs.check_geometry` for the tensors."""
    means3D, others = means3D.contiguous(), abi.contiguous(*others)
    c_view = abi.c_view(view)
    return CpuPlan(c_view, *sort_splats(c_view, abi.gaussians(means3D, *others)))


class _Rasterize(torch.autograd.Function):
    """Colour and extra channels, with all gradients."""

    @staticmethod
    def forward(ctx, view: View, means3D, means2D, opacities, shs, colors, features, scales, rotations, cov3D_precomp):
        inputs = abi.contiguous(means3D, opacities, shs, colors, features, scales, rotations, cov3D_precomp)
        means3D, opacities, shs, colors, features, *shape = inputs
        n, channels = len(means3D), 3 + (0 if features is None else features.shape[1])
        c_view = abi.c_view(view, 0 if shs is None else shs.shape[1])
        splats, radii = sort_splats(c_view, abi.gaussians(means3D, opacities, *shape))
        if shs is not None:
            colors = _floats(n, 3)
            abi.call("dgr_sh_colors", c_view, n, means3D, shs, colors)
        values = colors if features is None else torch.cat((colors, features), dim=1)
        values = values.index_select(0, splats.order)  # [V, C]
        picture = _floats(channels, view.height, view.width)
        abi.call("dgr_blend", c_view, splats.lists(), channels, values, 1, picture)

        ctx.c_view = c_view
        ctx.save_for_backward(means3D, opacities, shs, *shape, values, picture, *splats)
        ctx.mark_non_differentiable(radii)
        return picture[:3].clone(), picture[3:].clone(), radii

    @staticmethod
    @once_differentiable
    def backward(ctx, color_grad, language_grad, _):
        means3D, opacities, shs, scales, rotations, cov3D, values, picture, *rest = ctx.saved_tensors
        splats, c_view = SortedSplats(*rest), ctx.c_view
        n, channels = len(means3D), values.shape[1]
        needs_grad = ctx.needs_input_grad[1:]
        if not any((*needs_grad[:5], *needs_grad[6:])):
            features = splats.backproject(c_view, n, language_grad.contiguous()) if needs_grad[5] else None
            return None, *(None,) * 5, features, *(None,) * 3
        picture_grad = torch.cat((color_grad, language_grad))
        partials = _floats(len(splats.entries), abi.MOMENTS + channels)
        abi.call("dgr_blend_backward", c_view, splats.lists(), channels, values, picture, picture_grad, partials)
        sums = splats.reduce(partials)
        del partials

        shapes = abi.gradient_shapes(c_view.sh_stride, channels - 3)
        grads = [_floats(n, *shape) if needed else None for shape, needed in zip(shapes, needs_grad, strict=True)]
        abi.call(
            "dgr_project_backward",
            *(c_view, abi.gaussians(means3D, opacities, scales, rotations, cov3D), shs),
            *(len(splats.order), splats.order, channels, sums, _integers(n), abi.gradients(grads)),
        )
        return None, *grads


rasterize = _Rasterize.apply
