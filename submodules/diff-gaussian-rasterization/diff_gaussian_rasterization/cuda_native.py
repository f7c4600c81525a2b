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
from .constants import TILE
from .inputs import (
    GaussianRasterizationSettings,
    View,
    check_float32,
    check_geometry,
    check_rasterization,
    view_of,
)
from .plan import CompiledPlan

MAX_PAIRS = 2**32  # of (tile, Gaussian) in one view: places in the lists are 32-bit numbers
MAX_PLAN_GAUSSIANS = 2**28  # rows of a packed entry, see DgrTiles


@dataclass
class Tiles:
    """Splats of one view and the lists of its tiles; see DgrTiles in csrc/dgr_cuda.h."""

    count: int  # N
    splats: Tensor  # [N or V, 8] float32
    starts: Tensor  # [tiles + 1] or, packed, [2 tiles + 1] int64
    entries: Tensor  # [P] int32 (uint32 for the kernels)
    packed: bool

    _by_gaussian: tuple[Tensor, Tensor] | None = None  # positions [P] int32, offsets [N + 1] int64

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.splats, self.starts, self.entries, *(self._by_gaussian or ())))

    def struct(self) -> abi.Tiles:
        """As a C structure."""
        addresses = (abi.address(t) for t in (self.splats, self.starts, self.entries))
        return abi.Tiles(len(self.entries), *addresses, self.packed)

    def sum_by_gaussian(self, gpu: abi.Gpu, width: int, name: str, *arguments) -> Tensor:
        """Sums [N, width] of the kernel `name`, whose last arguments are (by_entry, rows)."""
        device = self.splats.device
        sums = torch.zeros(self.count, width, device=device)
        if not torch.are_deterministic_algorithms_enabled():
            gpu.call(name, *arguments, 0, sums)
            return sums
        rows = torch.zeros(len(self.entries), width, device=device)
        gpu.call(name, *arguments, 1, rows)
        if self._by_gaussian is None:
            positions = torch.empty_like(self.entries)
            offsets = torch.empty(self.count + 1, dtype=torch.int64, device=device)
            gpu.call_with_scratch("dgr_cuda_transpose", (self.count, self.struct()), (positions, offsets))
            self._by_gaussian = positions, offsets
        gpu.call("dgr_cuda_reduce", self.count, width, *self._by_gaussian, rows, sums)
        return sums


def list_tiles(gpu: abi.Gpu, c_view: abi.CView, gaussians: abi.Gaussians, like: Tensor, radii: Tensor | None) -> Tiles:
    """Project, sort by depth and list the tiles; fills radii [N] int32 if given.

    Raises:
        ValueError: for more pairs than a list can hold.
    """
    n = gaussians.count
    splats = like.new_empty(n, abi.SPLAT_FLOATS)
    order = abi.Sorted()
    scratch = gpu.call_with_scratch("dgr_cuda_sort", (c_view, gaussians, splats, radii), (order,))
    if order.pair_count >= MAX_PAIRS:
        raise ValueError(
            f"{n:,} Gaussians meet {order.pair_count:,} tiles of a picture of {c_view.width} x {c_view.height}; "
            f"fewer than {MAX_PAIRS:,} are possible. Render a smaller picture (-r), or remove huge Gaussians."
        )
    entries = torch.empty(order.pair_count, dtype=torch.int32, device=like.device)
    starts = torch.empty(tile_count(c_view) + 1, dtype=torch.int64, device=like.device)
    gpu.call_with_scratch("dgr_cuda_lists", (c_view, n, splats, order), (entries, starts))
    del scratch  # held what `order` points to
    return Tiles(n, splats, starts, entries, packed=False)


def tile_count(c_view: abi.CView) -> int:
    """Number of tiles of a picture."""
    return -(-c_view.width // TILE) * -(-c_view.height // TILE)


def pack(gpu: abi.Gpu, c_view: abi.CView, tiles: Tiles) -> Tiles:
    """Only the entries that touch a pixel, in lists of half tiles, and their splats.

    Raises:
        ValueError: for more Gaussians than an entry can tell apart.
    """
    if tiles.count >= MAX_PLAN_GAUSSIANS:
        raise ValueError(f"A plan holds fewer than {MAX_PLAN_GAUSSIANS:,} Gaussians, got {tiles.count:,}.")
    trimmed = abi.Trimmed()
    scratch = gpu.call_with_scratch("dgr_cuda_trim", (c_view, tiles.count, tiles.struct()), (trimmed,))
    splats = tiles.splats.new_empty(trimmed.splat_count, abi.SPLAT_FLOATS)
    starts = tiles.starts.new_empty(2 * tile_count(c_view) + 1)
    entries = tiles.entries.new_empty(trimmed.entry_count)
    gpu.call("dgr_cuda_pack", c_view, tiles.count, tiles.struct(), trimmed, splats, entries, starts)
    del scratch  # held what `trimmed` points to
    return Tiles(tiles.count, splats, starts, entries, packed=True)


class CudaPlan(CompiledPlan):
    """Frozen geometry of one view on a GPU."""

    def __init__(self, view: View, c_view: abi.CView, tiles: Tiles, radii: Tensor):
        self._c_view, self._tiles = c_view, tiles
        self.radii, self.size = radii, (view.height, view.width)

    @property
    def nbytes(self) -> int:
        return self.radii.nbytes + self._tiles.nbytes

    def _blend(self, scores: Tensor) -> Tensor:
        channels = scores.shape[1]
        picture = scores.new_empty(channels, *self.size)
        gpu = abi.Gpu(scores.device)
        gpu.call("dgr_cuda_blend", self._c_view, self._tiles.struct(), channels, scores, 0, picture)
        return picture

    def _backproject(self, image: Tensor) -> Tensor:
        channels = len(image)
        arguments = (self._c_view, self._tiles.struct(), channels, image)
        return self._tiles.sum_by_gaussian(abi.Gpu(image.device), channels, "dgr_cuda_backproject", *arguments)


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.detach().contiguous() for t in tensors)


def _gaussians(means3D, opacities, scales, rotations, cov3D_precomp) -> abi.Gaussians:
    tensors = (means3D, opacities, scales, rotations, cov3D_precomp)
    return abi.Gaussians(len(means3D), *(abi.address(t) for t in tensors))


def _plan(packed: bool, means3D, opacities, settings, scales=None, rotations=None, cov3D_precomp=None) -> CudaPlan:
    view = view_of(settings)
    check_geometry(means3D, opacities, scales, rotations, cov3D_precomp)
    check_float32(means3D)
    inputs = _contiguous(means3D, opacities, scales, rotations, cov3D_precomp)
    gpu, c_view = abi.Gpu(means3D.device), abi.c_view(view)
    radii = torch.empty(len(means3D), dtype=torch.int32, device=means3D.device)
    tiles = list_tiles(gpu, c_view, _gaussians(*inputs), means3D, radii)
    return CudaPlan(view, c_view, pack(gpu, c_view, tiles) if packed else tiles, radii)


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
    return _plan(True, means3D, opacities, settings, scales, rotations, cov3D_precomp)


def rasterize_scores(scores: Tensor, *geometry, **named) -> Tensor:
    """Blend scores [N, K] into [K, H, W]: `prepare(...).render(scores)`, without the work that only reuse repays."""
    with torch.no_grad():
        plan = _plan(False, *geometry, **named)
    return plan.render(scores)


class _Rasterize(torch.autograd.Function):
    """Colour and extra channels, with all gradients."""

    @staticmethod
    def forward(ctx, view: View, means3D, means2D, opacities, shs, colors, features, scales, rotations, cov3D_precomp):
        inputs = _contiguous(means3D, opacities, shs, colors, features, scales, rotations, cov3D_precomp)
        means3D, opacities, shs, colors, features, *shape = inputs
        n, gpu = len(means3D), abi.Gpu(means3D.device)
        c_view = abi.c_view(view, 0 if shs is None else shs.shape[1])
        radii = torch.empty(n, dtype=torch.int32, device=means3D.device)
        tiles = list_tiles(gpu, c_view, _gaussians(means3D, opacities, *shape), means3D, radii)
        if shs is not None:
            colors = means3D.new_empty(n, 3)
            gpu.call("dgr_cuda_sh_colors", c_view, n, means3D, shs, radii, colors)
        values = colors if features is None else torch.cat((colors, features), dim=1)  # [N, C]
        channels = values.shape[1]
        picture = means3D.new_empty(channels, view.height, view.width)
        gpu.call("dgr_cuda_blend", c_view, tiles.struct(), channels, values, 1, picture)

        ctx.c_view, ctx.tiles, ctx.radii = c_view, tiles, radii
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
        n, channels = values.shape
        color_grad = color_grad.contiguous()
        picture_grad = color_grad if channels == 3 else torch.cat((color_grad, language_grad))
        arguments = (c_view, tiles.struct(), channels, values, picture, picture_grad)
        sums = tiles.sum_by_gaussian(gpu, abi.BACKWARD_SUMS, "dgr_cuda_blend_backward", *arguments)

        wanted = ctx.needs_input_grad[1:]
        features_grad = None
        if wanted[5]:
            arguments = (c_view, tiles.struct(), channels - 3, picture_grad[3:])
            features_grad = tiles.sum_by_gaussian(gpu, channels - 3, "dgr_cuda_backproject", *arguments)
        shapes = ((3,), (3,), (1,), (c_view.sh_stride, 3), (3,), (3,), (4,), (6,))
        rest = (*wanted[:5], *wanted[6:])
        grads = [means3D.new_empty(n, *s) if w else None for s, w in zip(shapes, rest, strict=True)]
        g_means, g_means2d, g_opacity, g_shs, g_colors, g_scales, g_rotations, g_cov3d = grads
        outputs = (g_means, g_means2d, g_opacity, g_scales, g_rotations, g_cov3d, g_shs, g_colors, None)
        gaussians = _gaussians(means3D, opacities, scales, rotations, cov3D)
        gradients = abi.Gradients(*(abi.address(t) for t in outputs))
        gpu.call("dgr_cuda_project_backward", c_view, gaussians, shs, sums, gradients)
        return None, *grads[:5], features_grad, *grads[5:]


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
