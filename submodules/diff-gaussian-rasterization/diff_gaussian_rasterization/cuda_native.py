"""The compiled rasteriser on NVIDIA GPUs: csrc/dgr_cuda.h behind `torch.autograd.Function`.

Gradients are summed by float atomics, whose order changes from run to run. Under
`torch.use_deterministic_algorithms(True)` each (tile, Gaussian) pair gets its own partial sum instead, and these are
added in a fixed order: the same bits in every run, for more time and memory.
"""

from __future__ import annotations

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


@dataclass
class Tiles:
    """Splats of one view and the lists of its tiles."""

    rows: int  # R, of values and sums: N, or V if they are by row
    lists: abi.Tiles  # with addresses in `memory`
    memory: tuple[Tensor, ...]  # bytes
    device: torch.device

    _by_gaussian: tuple[Tensor, Tensor] | None = None  # positions [P] int32, offsets [R + 1] int64

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.memory, *(self._by_gaussian or ())))

    def sums(self, gpu: abi.Gpu, width: int, name: str, *arguments) -> Tensor:
        """Sums [R, width] of the kernel `name`, whose last arguments are (by_entry, rows)."""
        sums = torch.zeros(self.rows, width, dtype=torch.float32, device=self.device)
        if not torch.are_deterministic_algorithms_enabled():
            gpu.call(name, *arguments, 0, sums)
            return sums
        entries = self.lists.entry_count
        rows = torch.zeros(entries, width, dtype=torch.float32, device=self.device)
        gpu.call(name, *arguments, 1, rows)
        if self._by_gaussian is None:
            positions = torch.empty(entries, dtype=torch.int32, device=self.device)
            offsets = torch.empty(self.rows + 1, dtype=torch.int64, device=self.device)
            gpu.call_with_memory("dgr_cuda_transpose", (self.rows, self.lists), (positions, offsets))
            self._by_gaussian = positions, offsets
        gpu.call("dgr_cuda_reduce", self.rows, width, *self._by_gaussian, rows, sums)
        return sums


def list_tiles(gpu: abi.Gpu, c_view: abi.CView, gaussians: abi.Gaussians, radii: Tensor) -> tuple[Tiles, Tensor]:
    """Project, sort by depth and list the tiles: (tiles, ids [V] int32 of the splats); fills radii [N] int32.

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
    ids = slots.pop(abi.SLOT_IDS).view(torch.int32)[: lists.splat_count]
    return Tiles(n, lists, tuple(slots.values()), radii.device), ids


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
    return Tiles(tiles.rows, lists, tuple(slots.values()), tiles.device)


class CudaPlan(CompiledPlan):
    """Frozen geometry of one view on a GPU."""

    def __init__(self, c_view: abi.CView, tiles: Tiles, radii: Tensor):
        self._c_view, self._tiles = c_view, tiles
        self.radii, self.size = radii, (c_view.height, c_view.width)

    @property
    def nbytes(self) -> int:
        return self.radii.nbytes + self._tiles.nbytes

    def _blend(self, scores: Tensor) -> Tensor:
        channels = scores.shape[1]
        picture = scores.new_empty(channels, *self.size)
        gpu = abi.Gpu(scores.device)
        gpu.call("dgr_cuda_blend", self._c_view, self._tiles.lists, channels, scores, 0, picture)
        return picture

    def _backproject(self, image: Tensor) -> Tensor:
        channels = len(image)
        arguments = (self._c_view, self._tiles.lists, channels, image)
        return self._tiles.sums(abi.Gpu(image.device), channels, "dgr_cuda_backproject", *arguments)


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.contiguous() for t in tensors)


def _gaussians(means3D, opacities, scales, rotations, cov3D_precomp) -> abi.Gaussians:
    tensors = (means3D, opacities, scales, rotations, cov3D_precomp)
    return abi.Gaussians(len(means3D), *(abi.address(t) for t in tensors))


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
    return CudaPlan(c_view, pack(gpu, c_view, tiles), radii)


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
    _, c_view, tiles, radii = _list_scores(means3D, opacities, settings, scales, rotations, cov3D_precomp)
    return CudaPlan(c_view, tiles, radii).render(scores)


@torch.no_grad()
def _list_scores(
    means3D, opacities, settings, scales, rotations, cov3D_precomp
) -> tuple[abi.Gpu, abi.CView, Tiles, Tensor]:
    """Check, and list the tiles without packing: (gpu, view, tiles, radii [N])."""
    view = view_of(settings)
    check_geometry(means3D, opacities, scales, rotations, cov3D_precomp)
    check_float32(means3D)
    inputs = _contiguous(means3D, opacities, scales, rotations, cov3D_precomp)
    gpu, c_view = abi.Gpu(means3D.device), abi.c_view(view)
    radii = torch.empty(len(means3D), dtype=torch.int32, device=means3D.device)
    tiles, _ = list_tiles(gpu, c_view, _gaussians(*inputs), radii)
    return gpu, c_view, tiles, radii


class _Rasterize(torch.autograd.Function):
    """Colour and extra channels, with all gradients."""

    @staticmethod
    def forward(ctx, view: View, means3D, means2D, opacities, shs, colors, features, scales, rotations, cov3D_precomp):
        inputs = _contiguous(means3D, opacities, shs, colors, features, scales, rotations, cov3D_precomp)
        means3D, opacities, shs, colors, features, *shape = inputs
        n, gpu = len(means3D), abi.Gpu(means3D.device)
        c_view = abi.c_view(view, 0 if shs is None else shs.shape[1])
        radii = torch.empty(n, dtype=torch.int32, device=means3D.device)
        tiles, ids = list_tiles(gpu, c_view, _gaussians(means3D, opacities, *shape), radii)
        tiles.lists.by_row, tiles.rows = 1, len(ids)  # values and sums of the drawn Gaussians only
        if shs is None:
            values = colors.index_select(0, ids)  # [V, 3]
        else:
            values = means3D.new_empty(len(ids), 3)
            gpu.call("dgr_cuda_sh_colors", c_view, len(ids), ids, means3D, shs, values)
        if features is not None:
            values = torch.cat((values, features.index_select(0, ids)), dim=1)  # [V, C]
        channels = values.shape[1]
        picture = means3D.new_empty(channels, view.height, view.width)
        gpu.call("dgr_cuda_blend", c_view, tiles.lists, channels, values, 1, picture)

        ctx.c_view, ctx.tiles, ctx.ids = c_view, tiles, ids
        ctx.save_for_backward(means3D, opacities, shs, *shape, values, picture)
        ctx.mark_non_differentiable(radii)
        if features is None:
            return picture, picture.new_empty(0, view.height, view.width), radii
        return picture[:3].clone(), picture[3:].clone(), radii

    @staticmethod
    @once_differentiable
    def backward(ctx, color_grad, language_grad, _):
        means3D, opacities, shs, scales, rotations, cov3D, values, picture = ctx.saved_tensors
        tiles, c_view, gpu = ctx.tiles, ctx.c_view, abi.Gpu(means3D.device)
        ids, channels = ctx.ids, values.shape[1]
        color_grad = color_grad.contiguous()
        picture_grad = color_grad if channels == 3 else torch.cat((color_grad, language_grad))
        arguments = (c_view, tiles.lists, channels, values, picture, picture_grad)
        sums = tiles.sums(gpu, abi.BACKWARD_SUMS, "dgr_cuda_blend_backward", *arguments)

        wanted = ctx.needs_input_grad[1:]
        shapes = ((3,), (3,), (1,), (c_view.sh_stride, 3), (3,), (channels - 3,), (3,), (4,), (6,))
        n = len(means3D)
        grads = [means3D.new_zeros(n, *s) if w else None for s, w in zip(shapes, wanted, strict=True)]
        g_means, g_means2d, g_opacity, g_shs, g_colors, g_features, g_scales, g_rotations, g_cov3d = grads
        if g_features is not None:
            arguments = (c_view, tiles.lists, channels - 3, picture_grad[3:])
            g_features.index_copy_(0, ids.long(), tiles.sums(gpu, channels - 3, "dgr_cuda_backproject", *arguments))
        outputs = (g_means, g_means2d, g_opacity, g_scales, g_rotations, g_cov3d, g_shs, g_colors, None)
        gpu.call(
            "dgr_cuda_project_backward",
            *(c_view, _gaussians(means3D, opacities, scales, rotations, cov3D), shs, len(ids), ids, sums),
            abi.Gradients(*(abi.address(t) for t in outputs)),
        )
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
