"""The CUDA kernels of csrc/dgr_cuda.h for PyTorch.

Gradients are summed by float atomics, whose order changes from run to run. Under
`torch.use_deterministic_algorithms(True)` each (tile, Gaussian) pair gets a partial sum of its own instead, and these
are added in a fixed order: the same bits in every run, at the cost of time and memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import abi
from .inputs import View
from .plan import RasterPlan

MAX_PLAN_GAUSSIANS = 2**28  # rows of a packed entry, see DgrTiles
# Channels of one pass in deterministic mode: bounds the memory of partial sums, P floats a channel.
MAX_CHANNELS_PER_PASS = 32


@dataclass
class Tiles:
    """Splats of one view and the lists of its tiles."""

    gaussian_count: int  # N
    lists: abi.Tiles  # with addresses in the two tensors
    splats: Tensor  # bytes of at least [V, 8] float32
    entries: Tensor  # bytes of the lists

    _transposed: tuple[Tensor, Tensor] | None = None  # entries by splat: positions [P] int32, offsets [V + 1] int64

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self._memory())

    def _memory(self) -> tuple[Tensor, ...]:
        return (self.splats, self.entries, *(self._transposed or ()))

    def by_row(self, value: bool) -> abi.Tiles:
        """The C structure for values and sums with one row per splat (V) or per Gaussian (N)."""
        lists = self.lists
        addresses = (lists.splats, lists.starts, lists.entries, lists.order)
        return abi.Tiles(lists.splat_count, lists.entry_count, *addresses, lists.packed, value)

    def ids(self) -> Tensor:
        """[V] int64, the Gaussian of each splat."""
        floats = self.splats.view(torch.int32)[: abi.SPLAT_FLOATS * self.lists.splat_count]
        return floats.view(self.lists.splat_count, abi.SPLAT_FLOATS)[:, 6].long()

    def record_stream(self, gpu: abi.Gpu) -> None:
        """Keep PyTorch from reusing this memory before the work of the GPU's current stream on it is done."""
        for tensor in self._memory():
            tensor.record_stream(gpu.stream)

    def backproject(self, gpu: abi.Gpu, c_view: abi.CView, image: Tensor) -> Tensor:
        """W^T image [C, H, W]: [N, C]."""
        channels = len(image)
        sums = torch.zeros(self.gaussian_count, channels, dtype=torch.float32, device=image.device)
        if not torch.are_deterministic_algorithms_enabled():
            gpu.call("dgr_cuda_backproject", c_view, self.by_row(False), channels, image, 0, sums)
            return sums
        ids = self.ids()
        for first in range(0, channels, MAX_CHANNELS_PER_PASS):
            part = image[first : first + MAX_CHANNELS_PER_PASS]
            arguments = (c_view, self.by_row(True), len(part), part)
            self._sum_in_order(gpu, sums[:, first : first + len(part)], ids, "dgr_cuda_backproject", *arguments)
        return sums

    def sum_by_splat(self, gpu: abi.Gpu, sums: Tensor, name: str, *arguments) -> None:
        """Fill sums [V, width] of zeros with the kernel `name`, whose last arguments are (by_entry, rows)."""
        if torch.are_deterministic_algorithms_enabled():
            self._sum_in_order(gpu, sums, None, name, *arguments)
        else:
            gpu.call(name, *arguments, 0, sums)

    def _sum_in_order(self, gpu: abi.Gpu, sums: Tensor, ids: Tensor | None, name: str, *arguments) -> None:
        """Like `sum_by_splat`, in a fixed order, into the rows `ids` [V] of sums if given, else into rows 0 to V."""
        splats, entries, device = self.lists.splat_count, self.lists.entry_count, self.splats.device
        width = sums.shape[1]
        rows = torch.zeros(entries, width, dtype=torch.float32, device=device)
        gpu.call(name, *arguments, 1, rows)
        if self._transposed is None:
            positions = torch.empty(entries, dtype=torch.int32, device=device)
            offsets = torch.empty(splats + 1, dtype=torch.int64, device=device)
            gpu.call_with_memory("dgr_cuda_transpose", (splats, self.by_row(True)), (positions, offsets))
            self._transposed = positions, offsets
        gpu.call("dgr_cuda_reduce", splats, width, *self._transposed, rows, ids, sums.stride(0), sums)


def list_tiles(gpu: abi.Gpu, c_view: abi.CView, gaussians: abi.Gaussians) -> tuple[Tiles, Tensor]:
    """Project, sort by depth and list the tiles: (tiles, radii [N] int32).

    Raises:
        ValueError: for more (Gaussian, tile) pairs than a list can hold.
    """
    n, lists = gaussians.count, abi.Tiles()
    radii = torch.empty(n, dtype=torch.int32, device=gpu.stream.device)
    try:
        slots = gpu.call_with_memory("dgr_cuda_list", (c_view, gaussians), (radii, lists))
    except RuntimeError as error:
        if lists.entry_count <= abi.MAX_PAIRS:
            raise
        raise ValueError(
            f"{n:,} Gaussians touch {lists.entry_count:,} tiles of a {c_view.width} x {c_view.height} picture; at most "
            f"{abi.MAX_PAIRS:,} are possible. Render a smaller picture (-r), or remove huge Gaussians."
        ) from error
    return Tiles(n, lists, slots[abi.SLOT_SPLATS], slots[abi.SLOT_LISTS]), radii


class CudaPlan(RasterPlan):
    """Frozen geometry of one view on a GPU."""

    def __init__(self, gpu: abi.Gpu, c_view: abi.CView, tiles: Tiles, radii: Tensor):
        self._stream, self._c_view, self._tiles = gpu.stream, c_view, tiles
        self.radii, self.size = radii, (c_view.height, c_view.width)

    @property
    def nbytes(self) -> int:
        return self.radii.nbytes + self._tiles.nbytes

    def packed(self) -> CudaPlan:
        """Keep only the entries that touch a pixel, in lists of half tiles, and their splats.

        Raises:
            ValueError: for more Gaussians than an entry can number.
        """
        if (visible := self._tiles.lists.splat_count) >= MAX_PLAN_GAUSSIANS:
            raise ValueError(f"A plan holds fewer than {MAX_PLAN_GAUSSIANS:,} Gaussians, {visible:,} are visible.")
        gpu, lists = self._gpu(), abi.Tiles()
        slots = gpu.call_with_memory("dgr_cuda_pack", (self._c_view, self._tiles.lists), (lists,))
        tiles = Tiles(self._tiles.gaussian_count, lists, slots[abi.SLOT_SPLATS], slots[abi.SLOT_LISTS])
        return CudaPlan(gpu, self._c_view, tiles, self.radii)

    def _blend(self, scores: Tensor) -> Tensor:
        channels = scores.shape[1]
        picture = scores.new_empty(channels, *self.size)
        lists = self._tiles.by_row(False)
        self._gpu().call("dgr_cuda_blend", self._c_view, lists, channels, scores, 0, picture)
        return picture

    def _backproject(self, image: Tensor) -> Tensor:
        return self._tiles.backproject(self._gpu(), self._c_view, image)

    def _gpu(self) -> abi.Gpu:
        gpu = abi.Gpu(self.radii.device)
        if gpu.stream != self._stream:
            self._tiles.record_stream(gpu)
        return gpu


@torch.no_grad()
def prepare(view: View, means3D: Tensor, *others: Tensor | None) -> CudaPlan:
    """Project and sort the Gaussians of one view; see `inputs.check_geometry` for the tensors."""
    means3D, others = means3D.contiguous(), abi.contiguous(*others)
    gpu, c_view = abi.Gpu(means3D.device), abi.c_view(view)
    tiles, radii = list_tiles(gpu, c_view, abi.gaussians(means3D, *others))
    return CudaPlan(gpu, c_view, tiles, radii)


class _Rasterize(torch.autograd.Function):
    """Colour and extra channels, with all gradients."""

    @staticmethod
    def forward(ctx, view: View, means3D, means2D, opacities, shs, colors, features, scales, rotations, cov3D_precomp):
        ctx.set_materialize_grads(False)  # no zeros for the radii
        inputs = abi.contiguous(means3D, opacities, shs, colors, features, scales, rotations, cov3D_precomp)
        means3D, opacities, shs, colors, features, *shape = inputs
        gpu, c_view = abi.Gpu(means3D.device), abi.c_view(view, 0 if shs is None else shs.shape[1])
        tiles, radii = list_tiles(gpu, c_view, abi.gaussians(means3D, opacities, *shape))
        ids = tiles.ids()
        if shs is None:
            values = colors.index_select(0, ids)  # [V, 3], visible Gaussians only
        else:
            values = means3D.new_empty(len(ids), 3)
            gpu.call("dgr_cuda_sh_colors", c_view, len(ids), ids, means3D, shs, values)
        if features is not None:
            values = torch.cat((values, features.index_select(0, ids)), dim=1)  # [V, C]
        picture = means3D.new_empty(values.shape[1], view.height, view.width)
        gpu.call("dgr_cuda_blend", c_view, tiles.by_row(True), values.shape[1], values, 1, picture)

        ctx.c_view, ctx.lists = c_view, tiles.lists
        ctx.save_for_backward(means3D, opacities, shs, *shape, values, picture, ids, tiles.splats, tiles.entries)
        ctx.mark_non_differentiable(radii)
        language = picture.new_empty(0, view.height, view.width) if features is None else picture[3:].clone()
        return picture[:3].clone(), language, radii

    @staticmethod
    @once_differentiable
    def backward(ctx, color_grad, language_grad, _):
        means3D, opacities, shs, scales, rotations, cov3D, values, picture, ids, *memory = ctx.saved_tensors
        n, channels = len(means3D), values.shape[1]
        color_grad = torch.zeros_like(picture[:3]) if color_grad is None else color_grad
        language_grad = torch.zeros_like(picture[3:]) if language_grad is None else language_grad
        gpu, c_view, tiles = abi.Gpu(means3D.device), ctx.c_view, Tiles(n, ctx.lists, *memory)
        needs_grad = list(ctx.needs_input_grad[1:])
        needs_features, needs_grad[5] = needs_grad[5], False
        needs_geometry = any(needs_grad)
        shapes = abi.gradient_shapes(c_view.sh_stride, channels - 3)
        sizes = [n * math.prod(shape) * needed for shape, needed in zip(shapes, needs_grad, strict=True)]
        sizes.append(len(ids) * abi.BACKWARD_SUMS * needs_geometry)
        *zeros, sums = means3D.new_zeros(sum(sizes)).split(sizes)  # one launch for all of them
        grads = [z.view(n, *s) if needed else None for z, s, needed in zip(zeros, shapes, needs_grad, strict=True)]
        if needs_geometry:
            picture_grad = color_grad.contiguous() if channels == 3 else torch.cat((color_grad, language_grad))
            arguments = (c_view, tiles.by_row(True), channels, values, picture, picture_grad)
            sums = sums.view(len(ids), abi.BACKWARD_SUMS)
            tiles.sum_by_splat(gpu, sums, "dgr_cuda_blend_backward", *arguments)
            needs_shs = grads[0] is not None or grads[3] is not None
            gpu.call(
                "dgr_cuda_project_backward",
                *(c_view, abi.gaussians(means3D, opacities, scales, rotations, cov3D)),
                *(shs if needs_shs else None, len(ids), ids, sums, abi.gradients(grads)),
            )
        if needs_features:
            grads[5] = tiles.backproject(gpu, c_view, language_grad.contiguous())
        return None, *grads


rasterize = _Rasterize.apply
