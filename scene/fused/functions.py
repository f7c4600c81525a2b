"""The kernels as differentiable functions of PyTorch, with the interface of `scene.plain_field`.

No call waits for the GPU, every size is known beforehand, and sums have a fixed order: the calls can be recorded in a
CUDA graph, and give the same bits in every run.
"""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from scene.field_inputs import HIDDEN, NORM_FLOOR, Forms, Gaussians
from scene.fused import pool as pool_kernels
from scene.fused import score as score_kernels
from scene.fused.select import compact, thresholds
from scene.fused.shared import FEATURE_SHAPES, FEATURE_SUMS, PLACE_SHAPES, PLACE_SUMS, unpack
from scene.plain_field import PlainField

log = logging.getLogger("refersplat")

MAX_WORDS = 64  # of a sentence, and in one tile of `pool`
NEVER = math.inf  # the threshold of a sentence without a top share
MODES = {"fp32": "split", "tf32": "tf32", "bf16": "bf16", "ieee": "ieee"}
GAUSSIAN_TENSORS = 16  # of Gaussians, one by one


class Launch(NamedTuple):
    """How a kernel is launched: Gaussians in a block, warps, and programs on a multiprocessor of a GPU."""

    block: int
    warps: int
    each: int


# What was fastest on an H100 of the sizes tried.
LAUNCHES = {
    "scales": Launch(64, 4, 2),
    "pool": Launch(64, 4, 2),
    "pool_queries": Launch(64, 4, 2),
    "pool_features": Launch(64, 4, 2),
    "pool_places": Launch(64, 4, 2),
    "score": Launch(128, 4, 2),
    "top": Launch(128, 4, 2),
    "forms": Launch(64, 4, 2),
    "features": Launch(64, 4, 2),
    "places": Launch(64, 4, 2),
}


class _Call:
    """The kernels of one call over the same Gaussians."""

    def __init__(self, count: int, device: torch.device, mode: str, **constants: int):
        self.count, self.device, self.mode, self.constants = count, device, mode, constants

    def _shape(self, name: str) -> Launch:
        launch = LAUNCHES[name]
        # tiles of the longest sentences would not fit into the shared memory of smaller GPUs
        return launch._replace(block=32) if self.constants.get("L") == MAX_WORDS else launch

    def programs(self, name: str, others: int = 1) -> int:
        """How many programs of a kernel share the blocks of Gaussians, where each of `others` needs its own."""
        block, _, each = self._shape(name)
        processors = (
            torch.cuda.get_device_properties(self.device).multi_processor_count if self.device.type == "cuda" else 2
        )
        return max(1, min(triton.cdiv(self.count, block), processors * each // others))

    def launch(self, name: str, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: int) -> None:
        block, warps, _ = self._shape(name)
        # One stage: loads ahead of time cost registers that the tiles need.
        kernel[grid](
            *arguments, BLOCK=block, MODE=self.mode, num_warps=warps, num_stages=1, **self.constants, **constants
        )

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, device=self.device)


def probe(device: torch.device) -> None:
    """Compile and run a small kernel; raises whatever Triton raises where it cannot."""
    with torch.cuda.device(device):
        compact(torch.ones(1, 1, dtype=torch.bool, device=device))


def _flat(gaussians: Gaussians) -> tuple[Tensor, ...]:
    return gaussians.features, gaussians.xyz, *gaussians.networks, *gaussians.norm, *gaussians.square


def _gaussians(flat: tuple[Tensor, ...]) -> Gaussians:
    flat = tuple(tensor.contiguous() for tensor in flat)
    return Gaussians(flat[0], flat[1], flat[2:10], flat[10:13], flat[13:16])


class FusedField:
    """Scores of Gaussians by GPU kernels, with the functions of `scene.plain_field.PlainField`.

    Args:
        precision: one of `scene.field_backends.PRECISIONS`, or "ieee" for float32 without matrix units.
        graph_bytes: of the `PlainField` that computes sentences of more than MAX_WORDS words.
    """

    capturable = True

    def __init__(self, precision: str = "fp32", graph_bytes: int | None = None):
        self._mode, self._graph_bytes = MODES[precision], graph_bytes
        self._for_long: PlainField | None = None

    def for_words(self, words: int) -> FusedField | PlainField:
        if words <= MAX_WORDS:
            return self
        if self._for_long is None:
            log.warning(
                "a sentence of %d tokens is longer than the %d that the GPU kernels take: it, and what is computed "
                "together with it, runs in plain PyTorch, several times slower",
                words, MAX_WORDS,
            )  # fmt: skip
            self._for_long = PlainField(self._graph_bytes)
        return self._for_long

    def padded(self, words: int) -> int:
        return max(16, triton.next_power_of_2(words))  # no product takes fewer columns

    @torch.no_grad()
    def encode(self, gaussians: Gaussians) -> Tensor:
        """Scales 1 / |U k + c| [N]; their gradient is part of those of `pool` and `score`."""
        gaussians = _gaussians(_flat(gaussians))
        call = _Call(len(gaussians.features), gaussians.features.device, self._mode)
        scales = call.empty(call.count)
        with torch.cuda.device_of(scales):  # Triton takes the current device; autograd sets it in a backward pass
            call.launch(
                "scales", pool_kernels.scales_kernel, (call.programs("scales"),), gaussians.xyz, call.count,
                gaussians.networks, gaussians.norm, NORM_FLOOR, scales,
            )  # fmt: skip
        return scales

    def pool(self, gaussians: Gaussians, scales: Tensor, queries: Tensor) -> Tensor:
        sentences, words, _ = queries.shape
        queries = queries.reshape(sentences * words, HIDDEN)
        with torch.cuda.device_of(scales):
            pooled = _Pool.apply(self._mode, scales, queries, *_flat(gaussians))
        return pooled.view(sentences, words, HIDDEN + 1)

    def score(
        self, gaussians: Gaussians, scales: Tensor, forms: Forms, eps: float, top: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        with torch.cuda.device_of(scales):
            results = _Score.apply(self._mode, eps, top, scales, *_flat(gaussians), *forms)
        return (results[0], None, None) if top is None else results


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mode: str, scales: Tensor, queries: Tensor, *flat: Tensor) -> Tensor:
        gaussians, queries = _gaussians(flat), queries.contiguous()
        words = len(queries)
        tile = min(MAX_WORDS, words & -words)  # a power of two that divides the number of words
        call = _Call(len(scales), scales.device, mode, WORDS=tile)
        grid = (call.programs("pool", words // tile), words // tile)
        maxima, totals = call.empty(grid[0], words), call.empty(grid[0], words)
        sums = call.empty(grid[0], words, HIDDEN + 1)
        call.launch(
            "pool", pool_kernels.pool_kernel, grid, gaussians.features, gaussians.xyz, scales, call.count,
            gaussians.networks, queries, words, maxima, totals, sums,
        )  # fmt: skip
        maximum = maxima.amax(dim=0)
        shares = torch.exp(maxima - maximum)  # [programs, W]
        total = (shares * totals).sum(dim=0)
        pooled = ((shares / total)[..., None] * sums).sum(dim=0)
        ctx.save_for_backward(scales, queries, maximum + total.log(), pooled, *_flat(gaussians))
        ctx.mode, ctx.tile = mode, tile
        return pooled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
        scales, queries, level, pooled, *flat = ctx.saved_tensors
        gaussians, gradients = _gaussians(tuple(flat)), gradients.contiguous()
        words, tile = len(queries), ctx.tile
        call = _Call(len(scales), scales.device, ctx.mode, WORDS=tile)
        inputs = gaussians.features, gaussians.xyz, scales, call.count, gaussians.networks
        cotangents = level, gradients, (gradients * pooled).sum(dim=1)
        grid = (call.programs("pool_queries", words // tile), words // tile)
        of_queries = call.empty(grid[0], words, HIDDEN)
        call.launch(
            "pool_queries", pool_kernels.pull_queries_kernel, grid, *inputs, queries, words, *cotangents, of_queries
        )
        of_features = torch.empty_like(gaussians.features)
        grid = (call.programs("pool_features"),)
        for_mlp2 = call.empty(grid[0], FEATURE_SUMS)
        call.launch(
            "pool_features", pool_kernels.pull_features_kernel, grid, *inputs, queries, words, *cotangents, of_features,
            for_mlp2, SUMS=FEATURE_SUMS,
        )  # fmt: skip
        grid = (call.programs("pool_places"),)
        for_mlp3 = call.empty(grid[0], PLACE_SUMS)
        call.launch(
            "pool_places", pool_kernels.pull_places_kernel, grid, *inputs, gaussians.norm, queries, words,
            *cotangents[:2], for_mlp3, SUMS=PLACE_SUMS,
        )  # fmt: skip
        of_gaussians = _gaussian_gradients(of_features, for_mlp2, for_mlp3)
        return None, None, of_queries.sum(dim=0), *of_gaussians[:-3], None, None, None  # the squares are not used


def _gaussian_gradients(of_features: Tensor, for_mlp2: Tensor, for_mlp3: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the tensors of Gaussians, one by one, from the sums of the programs."""
    *mlp2, square, square_linear, square_constant = unpack(for_mlp2.sum(dim=0), FEATURE_SHAPES)
    place, *mlp3, norm, norm_linear, norm_constant = unpack(for_mlp3.sum(dim=0), PLACE_SHAPES)
    networks = *mlp2, place[:, :3], place[:, 3], *mlp3
    forms = norm, norm_linear, norm_constant[0], square, square_linear, square_constant[0]
    return of_features, None, *networks, *forms


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mode: str, eps: float, top: Tensor | None, scales: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        gaussians, forms = (
            _gaussians(tensors[:GAUSSIAN_TENSORS]),
            tuple(t.contiguous() for t in tensors[GAUSSIAN_TENSORS:]),
        )
        sentences, words, _ = forms[0].shape
        call = _Call(len(scales), scales.device, mode, L=words)
        squares, scores = call.empty(call.count), call.empty(sentences, call.count)
        grid = (call.programs("score"),)
        call.launch(
            "score", score_kernels.score_kernel, grid, gaussians.features, gaussians.xyz, scales, call.count,
            gaussians.networks, gaussians.square, forms, sentences, eps, squares, scores,
        )  # fmt: skip
        if top is None:
            lowest = torch.full((sentences,), NEVER, device=call.device)
            top_counts = torch.zeros(sentences, dtype=torch.int32, device=call.device)
            sums = torch.zeros(sentences, HIDDEN + words + 1, device=call.device)
        else:
            lowest = thresholds(scores, top)
            tops, top_counts = compact(scores >= lowest[:, None])
            grid = (call.programs("top"), sentences)
            parts = call.empty(*grid, HIDDEN + words + 1)
            call.launch(
                "top", score_kernels.top_kernel, grid, gaussians.features, gaussians.xyz, scales, squares, call.count,
                gaussians.networks, forms, eps, tops, top_counts, parts,
            )  # fmt: skip
            sums = parts.sum(dim=0)
        ctx.save_for_backward(scales, squares, scores, lowest, *_flat(gaussians), *forms)
        ctx.mode, ctx.eps = mode, eps
        ctx.mark_non_differentiable(top_counts)
        return scores, sums, top_counts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradients: Tensor, top_gradients: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scales, squares, scores, lowest, *tensors = ctx.saved_tensors
        gaussians, forms = (
            _gaussians(tuple(tensors[:GAUSSIAN_TENSORS])),
            tuple(t.contiguous() for t in tensors[GAUSSIAN_TENSORS:]),
        )
        gradients, top_gradients = gradients.contiguous(), top_gradients.contiguous()
        sentences, words, _ = forms[0].shape
        call = _Call(len(scales), scales.device, ctx.mode, L=words)
        inputs = gaussians.features, gaussians.xyz, scales, squares, call.count, gaussians.networks
        # the others, which no pixel and no sum looks at, add nothing
        active, active_count = compact(((gradients != 0) | (scores >= lowest[:, None])).any(dim=0, keepdim=True))
        cotangents = ctx.eps, scores, gradients, lowest, top_gradients, active, active_count
        shapes = tuple(tuple(form.shape[1:]) for form in forms[:-1])
        size = sum(math.prod(shape) for shape in shapes)
        grid = (call.programs("forms", sentences), sentences)
        for_forms = call.empty(*grid, size)
        call.launch("forms", score_kernels.pull_forms_kernel, grid, *inputs, forms, *cotangents, for_forms, SUMS=size)
        of_features = torch.zeros_like(gaussians.features)
        grid = (call.programs("features"),)
        for_mlp2 = call.empty(grid[0], FEATURE_SUMS)
        call.launch(
            "features", score_kernels.pull_features_kernel, grid, *inputs, gaussians.square, forms, sentences,
            *cotangents, of_features, for_mlp2, SUMS=FEATURE_SUMS,
        )  # fmt: skip
        grid = (call.programs("places"),)
        for_mlp3 = call.empty(grid[0], PLACE_SUMS)
        call.launch(
            "places", score_kernels.pull_places_kernel, grid, *inputs, gaussians.norm, forms, sentences, *cotangents,
            for_mlp3, SUMS=PLACE_SUMS,
        )  # fmt: skip
        of_forms = *unpack(for_forms.sum(dim=0), shapes), gradients.sum(dim=1)
        return (None,) * 4 + _gaussian_gradients(of_features, for_mlp2, for_mlp3) + of_forms
