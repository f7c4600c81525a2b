"""The kernels as autograd functions, with the interface of `referring.kernels.plain`.

No call synchronises with the GPU, all sizes are known beforehand, and sums have a fixed order: CUDA graphs can capture
the calls, and every run gives the same bits.
"""

from __future__ import annotations

import ctypes
import logging
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from referring.kernels import top_k as top_k_kernels
from referring.kernels.algebra import FEATURE_DIM, HIDDEN, GaussianInputs, SentenceCoefficients
from referring.kernels.library import (
    ROWS,
    WORDS,
    CForms,
    CGaussians,
    CLayer,
    CPool,
    CScoreGrads,
    Library,
    load,
    shared_memory_kb,
    usable,
)
from referring.kernels.operands import TILE, CoefficientOperands, PoolOperands, pack_networks
from referring.kernels.plain import PlainField

log = logging.getLogger("refersplat")

ALIGNMENT = 16  # bytes
POOL_TILES = 1, 2, 4  # tiles of words that a thread block can take
FORM = (HIDDEN, HIDDEN), (HIDDEN,), (1,)
# Summed gradients: of mlp2.fc1, mlp2.fc2 and the quadratic form of the squares; of mlp3.fc1 (x, y, z, 1, padding),
# mlp3.fc2 and the quadratic form of the norms.
FEATURE_SHAPES = (32, FEATURE_DIM), (32,), (HIDDEN, 32), (HIDDEN,), *FORM
PLACE_SHAPES = (16, 16), (HIDDEN, 16), (HIDDEN,), *FORM


class PendingScores(NamedTuple):
    """The backward pass of S scores, up to where `_Pool` continues."""

    forms: ctypes.Structure
    score_grads: ctypes.Structure
    kept: tuple[Any, ...]  # keeps the addresses in both valid


class PackedGaussians:
    """Inputs, without their autograd history, as the kernels take them.

    Attributes:
        scales: 1 / |U k + c| [N]; `_Pool` computes their gradient.
        pending: the backward pass of `_Score`, which `_Pool` continues.
    """

    def __init__(self, library: Library, gaussians: GaussianInputs):
        self.library, self.device = library, gaussians.features.device
        self.count = len(gaussians.features)
        # keeps the addresses in `struct` valid
        flat = [_align(tensor.detach()) for tensor in _flatten(gaussians)]
        norm, square = (flat[10], flat[11], flat[12]), (flat[13], flat[14], flat[15])
        self.gaussians = GaussianInputs(flat[0], flat[1], tuple(flat[2:10]), norm, square)
        self.operands = pack_networks(library, self.gaussians)
        self.scales = self.empty(self.count)
        self.pending: PendingScores | None = None
        weights = self.gaussians.networks
        self._growth = self.empty(4, 2)
        layers = [
            CLayer(weight=weight.data_ptr(), bias=bias.data_ptr(), outputs=len(weight), inputs=weight.shape[1])
            for weight, bias in zip(weights[::2], weights[1::2], strict=True)
        ]
        self.call("field_growth", (CLayer * 4)(*layers), self._growth)
        named = {
            "features": self.gaussians.features, "xyz": self.gaussians.xyz, "bias21": weights[1], "bias22": weights[3],
            "weight31": weights[4], "bias31": weights[5], "bias32": weights[7], "growth": self._growth,
            "scales": self.scales,
            "norm_vector": self.gaussians.norm[1], "norm_constant": self.gaussians.norm[2],
            "square_vector": self.gaussians.square[1], "square_constant": self.gaussians.square[2],
        }  # fmt: skip
        self.struct = CGaussians(
            **{name: tensor.data_ptr() for name, tensor in named.items()},
            operands=self.operands.data_ptr(), count=self.count,
        )  # fmt: skip
        self.call("field_scales", self.struct, self.blocks(is_light=True))

    def call(self, name: str, *arguments: Any) -> None:
        self.library.call(self.device, name, *arguments)

    def blocks(self, others: int = 1, is_light: bool = False, is_large: bool = False) -> int:
        """Return how many thread blocks share the Gaussians, where each of `others` needs its own.

        `is_light` and `is_large` are those of csrc/field.h.
        """
        cuda = self.device.type == "cuda"
        processors = torch.cuda.get_device_properties(self.device).multi_processor_count if cuda else 2
        warps = self.library.warps[is_large]
        most = processors * self.library.warps_per_sm[is_light] // (warps * others)
        return max(1, min(math.ceil(self.count / (ROWS * warps)), most))

    def sum(self, parts: Tensor) -> Tensor:
        """Sum over the first dimension."""
        total = self.empty(*parts.shape[1:])
        self.call("field_sum_rows", parts, len(parts), total.numel(), total)
        return total

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)


def _align(tensor: Tensor) -> Tensor:
    """Return the tensor contiguous and aligned for vector loads."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def _flatten(gaussians: GaussianInputs) -> tuple[Tensor, ...]:
    return gaussians.features, gaussians.xyz, *gaussians.networks, *gaussians.norm, *gaussians.square


def _unpack(sums: Tensor, shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    """Split the last dimension of `sums` into tensors of these shapes; leading dimensions stay."""
    parts = sums.split([math.prod(shape) for shape in shapes], dim=-1)
    return [part.reshape(*sums.shape[:-1], *shape) for part, shape in zip(parts, shapes, strict=True)]


class FusedField:
    """Computes scores with GPU kernels; same interface as `referring.kernels.plain.PlainField`.

    Args:
        precision: one of `referring.kernels.backend.PRECISIONS`.
        graph_bytes: of the `PlainField` for sentences with more words than the kernels take.
        words: padded word count, one of WORDS.
        device: where kernels for other word counts are tested before use; None skips the test.
    """

    capturable = True

    def __init__(
        self,
        precision: str = "fp32",
        graph_bytes: int | None = None,
        words: int = WORDS[0],
        device: torch.device | None = None,
    ):
        self._precision, self._graph_bytes, self._words, self._device = precision, graph_bytes, words, device
        self._others: dict[int, FusedField | PlainField] = {words: self}

    def for_words(self, words: int) -> FusedField | PlainField:
        size = next((size for size in WORDS if size >= words), 0)
        if size not in self._others:
            reason = f"longer than the {WORDS[-1]} that the GPU kernels take"
            if size and self._device is not None:
                library, reason = usable(size, self._precision, self._device)
                size = size if library is not None else 0
            if size:
                self._others[size] = FusedField(self._precision, self._graph_bytes, size, self._device)
            elif 0 not in self._others:
                log.warning(
                    "a sentence of %d tokens, and what is computed together with it, runs in plain PyTorch, several "
                    "times slower: %s",
                    words, reason,
                )  # fmt: skip
                self._others[0] = PlainField(self._graph_bytes)
        return self._others[size]

    def padded(self, _words: int) -> int:
        return self._words

    def encode(self, gaussians: GaussianInputs) -> PackedGaussians:
        device = gaussians.features.device
        if gaussians.features.dtype != torch.float32:
            raise ValueError(f"the kernels take float32, not {gaussians.features.dtype}")
        library = load(self._words, self._precision, device.type, shared_memory_kb(device))
        with torch.cuda.device_of(gaussians.features):  # autograd sets the device in a backward pass
            return PackedGaussians(library, gaussians)

    def pool(self, gaussians: GaussianInputs, packed: PackedGaussians, queries: Tensor) -> Tensor:
        words = queries.shape[0] * queries.shape[1]
        flat, most = queries.reshape(words, HIDDEN), POOL_TILES[-1] * TILE
        if words > most:  # as many as fit into registers share the work on the Gaussians
            flat = F.pad(flat, (0, 0, 0, -words % most))
        with torch.cuda.device_of(queries):
            pooled = _Pool.apply(packed, flat, *_flatten(gaussians))
        return pooled[:words].view(*queries.shape[:2], HIDDEN + 1)

    def score(
        self, packed: PackedGaussians, coefficients: SentenceCoefficients, eps: float, top_k: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """See `PlainField.score`. Gradients of the Gaussians flow through `pool`, whose result must be used."""
        with torch.cuda.device_of(packed.scales):
            results = _Score.apply(packed, eps, top_k, *coefficients)
        return (results[0], None, None) if top_k is None else results


def _pool_blocks(packed: PackedGaussians, words: int) -> int:
    """Return how many thread blocks share the Gaussians, for each group of words in csrc/pool.cu."""
    tiles = max(tiles for tiles in POOL_TILES if words % (tiles * TILE) == 0)
    return packed.blocks(words // (tiles * TILE), is_light=tiles < POOL_TILES[-1])


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: PackedGaussians, queries: Tensor, *_: Tensor) -> Tensor:
        queries = queries.contiguous()
        words = len(queries)
        operands = PoolOperands(packed.library, queries)
        pool = CPool(operands=operands.memory.data_ptr(), words=words)
        blocks = _pool_blocks(packed, words)
        maxima, totals = packed.empty(blocks, words), packed.empty(blocks, words)
        sums = packed.empty(blocks, words, HIDDEN + 1)
        packed.call("field_pool", packed.struct, pool, maxima, totals, sums, blocks)
        pooled, level = packed.empty(words, HIDDEN + 1), packed.empty(words)
        packed.call("field_finish_pool", blocks, words, maxima, totals, sums, pooled, level)
        ctx.save_for_backward(level, pooled)
        ctx.packed, ctx.operands = packed, operands
        return pooled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
        level, pooled = ctx.saved_tensors
        packed, operands = ctx.packed, ctx.operands
        gradients, words = gradients.contiguous(), len(pooled)
        operands.add_gradients(packed.library, level, gradients, (gradients * pooled).sum(dim=1))
        pool = CPool(operands=operands.memory.data_ptr(), words=words)
        pending, packed.pending = packed.pending, None
        forms, score_grads = (CForms(), CScoreGrads()) if pending is None else (pending.forms, pending.score_grads)
        blocks = packed.blocks(is_large=True)
        feature_grads, query_grads = packed.empty(packed.count, FEATURE_DIM), packed.empty(blocks, TILE, HIDDEN)
        mlp2_grads = packed.empty(blocks, sum(map(math.prod, FEATURE_SHAPES)))
        inputs = packed.struct, pool, forms, score_grads
        packed.call("field_features_backward", *inputs, feature_grads, query_grads, mlp2_grads, blocks)
        if words != TILE:
            others = _pool_blocks(packed, words)
            query_grads = packed.empty(others, words, HIDDEN)
            packed.call("field_queries_backward", packed.struct, pool, query_grads, others)
        mlp3_grads = packed.empty(blocks, sum(map(math.prod, PLACE_SHAPES)))
        packed.call("field_positions_backward", *inputs, mlp3_grads, blocks)
        *mlp2, square, square_linear, square_constant = _unpack(packed.sum(mlp2_grads), FEATURE_SHAPES)
        place, *mlp3, norm, norm_linear, norm_constant = _unpack(packed.sum(mlp3_grads), PLACE_SHAPES)
        networks = *mlp2, place[:, :3], place[:, 3], *mlp3
        quadratic_forms = norm, norm_linear, norm_constant[0], square, square_linear, square_constant[0]
        return None, packed.sum(query_grads), feature_grads, None, *networks, *quadratic_forms


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, packed: PackedGaussians, eps: float, top_k: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        coefficients = SentenceCoefficients(*map(_align, tensors))
        sentences, words = coefficients.constants.shape
        count, library = packed.count, packed.library
        squares, scores = packed.empty(count), packed.empty(sentences, count)
        operands = CoefficientOperands(library, coefficients)
        struct = CForms(
            along_constant=coefficients.along_constant.data_ptr(), offset=coefficients.offset.data_ptr(),
            squares=squares.data_ptr(), scores=scores.data_ptr(), operands=operands.memory.data_ptr(),
            sentences=sentences, eps=eps,
        )  # fmt: skip
        packed.call("field_score", packed.struct, struct, packed.blocks(is_light=True))
        if top_k is None:
            thresholds = torch.full((sentences,), math.inf, device=packed.device)
            counts, sums = torch.zeros(sentences, dtype=torch.int32, device=packed.device), None
        else:
            thresholds = top_k_kernels.thresholds(library, scores, top_k.to(torch.int32))
            tops, counts = top_k_kernels.list_tops(library, scores, thresholds)
            blocks = packed.blocks(sentences)
            parts = packed.empty(blocks, sentences, HIDDEN + words + 1)
            packed.call("field_top", packed.struct, struct, tops, counts, parts, blocks)
            sums = packed.sum(parts)
        ctx.save_for_backward(squares, scores, thresholds, *coefficients)
        ctx.packed, ctx.operands, ctx.struct = packed, operands, struct
        ctx.mark_non_differentiable(counts)
        ctx.set_materialize_grads(False)
        return scores, sums, counts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradients: Tensor | None, top_grads: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        _, scores, thresholds, *coefficients = ctx.saved_tensors
        packed, struct, sentences = ctx.packed, ctx.struct, len(scores)
        width = HIDDEN + coefficients[0].shape[1] + 1
        gradients = torch.zeros_like(scores) if gradients is None else gradients.contiguous()
        top_grads = torch.zeros(sentences, width, device=packed.device) if top_grads is None else top_grads.contiguous()
        ctx.operands.add_tops(packed.library, top_grads)
        order, active = top_k_kernels.order_active(packed.library, scores, thresholds, gradients)
        kept = gradients, thresholds, top_grads[:, -1], order, active
        score_grads = CScoreGrads(*(tensor.data_ptr() for tensor in kept))
        shapes = tuple(tuple(tensor.shape[1:]) for tensor in coefficients[:-1])
        blocks = packed.blocks(sentences)
        coefficient_grads = packed.empty(blocks, sentences, sum(map(math.prod, shapes)))
        packed.call("field_forms_backward", packed.struct, struct, score_grads, coefficient_grads, blocks)
        if packed.pending is not None:
            raise RuntimeError("another backward pass of these Gaussians has not continued through `pool`")
        packed.pending = PendingScores(struct, score_grads, (*kept, *ctx.saved_tensors, ctx.operands))
        return None, None, None, *_unpack(packed.sum(coefficient_grads), shapes), gradients.sum(dim=1)
