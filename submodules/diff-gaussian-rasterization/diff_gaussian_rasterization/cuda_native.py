"""The compiled rasteriser on NVIDIA GPUs: csrc/dgr_cuda.h behind `torch.autograd.Function`.

Gradients are summed by float atomics, whose order changes from run to run. Under
`torch.use_deterministic_algorithms(True)` each (tile, Gaussian) pair gets its own partial sum instead, and these are
added in a fixed order: the same bits in every run, for more time and memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import abi
from .inputs import (
    GaussianRasterizationSettings,
    View,
    check_float32,
    check_geometry,
    check_rasterization,
    view_of,
)
from .plan import CompiledPlan

MAX_PLAN_GAUSSIANS = 2**28  # rows of a packed entry, see DgrTiles


# Channels of one pass in deterministic mode: bounds the memory for partial sums, P times so many floats.
MAX_CHANNELS_PER_PASS = 32


@dataclass
class Tiles:
    """Splats of one view and the lists of its tiles."""

    gaussians: int  # N
    lists: abi.Tiles  # with addresses in the two tensors
    splats: Tensor  # bytes of at least [V, 8] float32
    entries: Tensor  # bytes of the lists

    _by_splat: tuple[Tensor, Tensor] | None = None  # positions [P] int32, offsets [V + 1] int64

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self._memory())

    def _memory(self) -> tuple[Tensor, ...]:
        return (self.splats, self.entries, *(self._by_splat or ()))

    def by_row(self, value: bool) -> abi.Tiles:
        """The structure for values and sums with a row for each splat (V) or each Gaussian (N)."""
        lists = self.lists
        addresses = (lists.splats, lists.starts, lists.entries, lists.order)
        return abi.Tiles(lists.splat_count, lists.entry_count, *addresses, lists.packed, value)

    def ids(self) -> Tensor:
        """[V] int64, the Gaussians of the splats."""
        floats = self.splats.view(torch.int32)[: abi.SPLAT_FLOATS * self.lists.splat_count]
        return floats.view(self.lists.splat_count, abi.SPLAT_FLOATS)[:, 6].long()

    def used_on(self, gpu: abi.Gpu) -> None:
        """Keep PyTorch from reusing this memory before the work of another stream on it is done."""
        for tensor in self._memory():
            tensor.record_stream(gpu.stream)

    def backproject(self, gpu: abi.Gpu, c_view: abi.CView, image: Tensor) -> Tensor:
        """W^T image [C, H, W]: [N, C]."""
        channels = len(image)
        sums = torch.zeros(self.gaussians, channels, dtype=torch.float32, device=image.device)
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
        """Fill sums [V, width] of zeros by the kernel `name`, whose last arguments are (by_entry, rows)."""
        if torch.are_deterministic_algorithms_enabled():
            self._sum_in_order(gpu, sums, None, name, *arguments)
        else:
            gpu.call(name, *arguments, 0, sums)

    def _sum_in_order(self, gpu: abi.Gpu, sums: Tensor, ids: Tensor | None, name: str, *arguments) -> None:
        """As `sum_by_splat`, in a fixed order, into the rows `ids` [V] of sums, else into rows [V]."""
        splats, entries, device = self.lists.splat_count, self.lists.entry_count, self.splats.device
        width = sums.shape[1]
        rows = torch.zeros(entries, width, dtype=torch.float32, device=device)
        gpu.call(name, *arguments, 1, rows)
        if self._by_splat is None:
            positions = torch.empty(entries, dtype=torch.int32, device=device)
            offsets = torch.empty(splats + 1, dtype=torch.int64, device=device)
            gpu.call_with_memory("dgr_cuda_transpose", (splats, self.by_row(True)), (positions, offsets))
            self._by_splat = positions, offsets
        gpu.call("dgr_cuda_reduce", splats, width, *self._by_splat, rows, ids, sums.stride(0), sums)


def list_tiles(gpu: abi.Gpu, c_view: abi.CView, gaussians: abi.Gaussians, radii: Tensor) -> Tiles:
    """Project, sort by depth and list the tiles; fills radii [N] int32.

    Raises:
        ValueError: for more pairs than a list can hold.
    """
    n, lists = gaussians.count, abi.Tiles()
    try:
        slots = gpu.call_with_memory("dgr_cuda_list", (c_view, gaussians), (radii, lists))
    except RuntimeError as error:
        if lists.entry_count <= abi.MAX_PAIRS:
            raise
        raise ValueError(
            f"{n:,} Gaussians meet {lists.entry_count:,} tiles of a picture of {c_view.width} x {c_view.height}; at "
            f"most {abi.MAX_PAIRS:,} are possible. Render a smaller picture (-r), or remove huge Gaussians."
        ) from error
    return Tiles(n, lists, slots[abi.SLOT_SPLATS], slots[abi.SLOT_LISTS])


def pack(gpu: abi.Gpu, c_view: abi.CView, tiles: Tiles) -> Tiles:
    """Only the entries that touch a pixel, in lists of half tiles, and their splats.

    Raises:
        ValueError: for more Gaussians than an entry can tell apart.
    """
    if tiles.lists.splat_count >= MAX_PLAN_GAUSSIANS:
        visible = tiles.lists.splat_count
        raise ValueError(f"A plan holds fewer than {MAX_PLAN_GAUSSIANS:,} Gaussians, {visible:,} are visible.")
    lists = abi.Tiles()
    slots = gpu.call_with_memory("dgr_cuda_pack", (c_view, tiles.lists), (lists,))
    return Tiles(tiles.gaussians, lists, slots[abi.SLOT_SPLATS], slots[abi.SLOT_LISTS])


class CudaPlan(CompiledPlan):
    """Frozen geometry of one view on a GPU."""

    def __init__(self, gpu: abi.Gpu, c_view: abi.CView, tiles: Tiles, radii: Tensor):
        self._stream, self._c_view, self._tiles = gpu.stream, c_view, tiles
        self.radii, self.size = radii, (c_view.height, c_view.width)

    @property
    def nbytes(self) -> int:
        return self.radii.nbytes + self._tiles.nbytes

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
            self._tiles.used_on(gpu)
        return gpu


@torch.no_grad()
def prepare(
    means3D: Tensor,
    opacities: Tensor,
    settings: GaussianRasterizationSettings,
    scales: Tensor | None = None,
    rotations: Tensor | None = None,
    cov3D_precomp: Tensor | None = None,
) -> CudaPlan:
    """Project and sort the Gaussians of one view once, and keep only what touches a pixel."""
    gpu, c_view, tiles, radii = _list_scores(means3D, opacities, settings, scales, rotations, cov3D_precomp)
    return CudaPlan(gpu, c_view, pack(gpu, c_view, tiles), radii)


def rasterize_scores(
    scores: Tensor,
    means3D: Tensor,
    opacities: Tensor,
    settings: GaussianRasterizationSettings,
    scales: Tensor | None = None,
    rotations: Tensor | None = None,
    cov3D_precomp: Tensor | None = None,
) -> Tensor:
    """Blend scores [N, K] into [K, H, W]: `prepare(...).render(scores)`, without the work that only reuse repays."""
    gpu, c_view, tiles, radii = _list_scores(means3D, opacities, settings, scales, rotations, cov3D_precomp)
    return CudaPlan(gpu, c_view, tiles, radii).render(scores)


@torch.no_grad()
def _list_scores(
    means3D, opacities, settings, scales, rotations, cov3D_precomp
) -> tuple[abi.Gpu, abi.CView, Tiles, Tensor]:
    """Check, and list the tiles without packing: (gpu, view, tiles, radii [N])."""
    view = view_of(settings)
    check_geometry(means3D, opacities, scales, rotations, cov3D_precomp)
    check_float32(means3D)
    inputs = abi.contiguous(means3D, opacities, scales, rotations, cov3D_precomp)
    gpu, c_view = abi.Gpu(means3D.device), abi.c_view(view)
    radii = torch.empty(len(means3D), dtype=torch.int32, device=means3D.device)
    return gpu, c_view, list_tiles(gpu, c_view, abi.gaussians(*inputs), radii), radii


class _Rasterize(torch.autograd.Function):
    """Colour and extra channels, with all gradients."""

    @staticmethod
    def forward(ctx, view: View, means3D, means2D, opacities, shs, colors, features, scales, rotations, cov3D_precomp):
        ctx.set_materialize_grads(False)  # no zeros for the radii
        inputs = abi.contiguous(means3D, opacities, shs, colors, features, scales, rotations, cov3D_precomp)
        means3D, opacities, shs, colors, features, *shape = inputs
        gpu, c_view = abi.Gpu(means3D.device), abi.c_view(view, 0 if shs is None else shs.shape[1])
        radii = torch.empty(len(means3D), dtype=torch.int32, device=means3D.device)
        tiles = list_tiles(gpu, c_view, abi.gaussians(means3D, opacities, *shape), radii)
        ids = tiles.ids()
        if shs is None:
            values = colors.index_select(0, ids)  # [V, 3]: of the drawn Gaussians only
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
        wanted = list(ctx.needs_input_grad[1:])
        features_wanted, wanted[5] = wanted[5], False
        shapes = ((3,), (3,), (1,), (c_view.sh_stride, 3), (3,), (channels - 3,), (3,), (4,), (6,))
        sizes = [n * math.prod(s) if w else 0 for s, w in zip(shapes, wanted, strict=True)]
        drawn = len(ids) * any(wanted)
        *zeros, sums = means3D.new_zeros(sum(sizes) + drawn * abi.BACKWARD_SUMS).split(  # one launch for all of them
            [*sizes, drawn * abi.BACKWARD_SUMS]
        )
        grads = [z.view(n, *s) if w else None for z, s, w in zip(zeros, shapes, wanted, strict=True)]
        g_means, g_means2d, g_opacity, g_shs, g_colors, _, g_scales, g_rotations, g_cov3d = grads
        if any(wanted):
            picture_grad = color_grad.contiguous() if channels == 3 else torch.cat((color_grad, language_grad))
            arguments = (c_view, tiles.by_row(True), channels, values, picture, picture_grad)
            sums = sums.view(drawn, abi.BACKWARD_SUMS)
            tiles.sum_by_splat(gpu, sums, "dgr_cuda_blend_backward", *arguments)
            outputs = (g_means, g_means2d, g_opacity, g_scales, g_rotations, g_cov3d, g_shs, g_colors, None)
            gpu.call(
                "dgr_cuda_project_backward",
                *(c_view, abi.gaussians(means3D, opacities, scales, rotations, cov3D)),
                *(None if g_means is None and g_shs is None else shs, len(ids), ids, sums),
                abi.Gradients(*(abi.address(t) for t in outputs)),
            )
        if features_wanted:
            grads[5] = tiles.backproject(gpu, c_view, language_grad.contiguous())
        return None, *grads


def rasterize(
    means3D: Tensor,
    means2D: Tensor,
    opacities: Tensor,
    settings: GaussianRasterizationSettings,
    shs: Tensor | None = None,
    colors_precomp: Tensor | None = None,
    language_feature_precomp: Tensor | None = None,
    scales: Tensor | None = None,
    rotations: Tensor | None = None,
    cov3D_precomp: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render colour and extra channels: (color [3, H, W], language [K, H, W], radii [N] int32).

    Raises:
        ValueError: for inputs that do not fit together (see `inputs`).
    """
    view, features = check_rasterization(
        *(means3D, means2D, opacities, settings, shs, colors_precomp, language_feature_precomp),
        *(scales, rotations, cov3D_precomp),
    )
    check_float32(means3D)
    return _Rasterize.apply(
        view, means3D, means2D, opacities, shs, colors_precomp, features, scales, rotations, cov3D_precomp
    )
