"""The kernels as autograd functions, with the interface of `referring.kernels.plain`.

No call synchronises with the GPU, all sizes are known beforehand, and sums have a fixed order: CUDA graphs can capture
the calls, and every run gives the same bits.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from referring.kernels import top_k as top_k_kernels
from referring.kernels.algebra import FEATURE_DIM, HIDDEN, GaussianInputs, SentenceCoefficients
from referring.kernels.library import (
    WORDS,
    CForms,
    CGaussians,
    CLayer,
    CPool,
    CScoreGrads,
    Library,
    load,
    shared_kb_of,
    usable,
)
from referring.kernels.operands import TILE, FormOperands, PoolOperands, network_operands
from referring.kernels.plain import PlainField

log = logging.getLogger("refersplat")

ALIGNMENT = 16  # bytes
POOL_TILES = 1, 2, 4  # tiles of words that a thread block can take
FORM = (HIDDEN, HIDDEN), (HIDDEN,), (1,)
# Summed gradients: of mlp2.fc1, mlp2.fc2 and the quadratic form of the squares; of mlp3.fc1 (x, y, z, 1, padding),
# mlp3.fc2 and the quadratic form of the norms.
FEATURE_SHAPES = (32, FEATURE_DIM), (32,), (HIDDEN, 32), (HIDDEN,), *FORM
PLACE_SHAPES = (16, 16), (HIDDEN, 16), (HIDDEN,), *FORM


class Encoded:
    """Inputs packed for the kernels.

    Args:
        library: the kernels.
        gaussians: detached on the way in.

    Attributes:
        scales: 1 / |U k + c| [N]; `_Pool` computes their gradient.
        pending: the backward pass of `_Score`, which `_Pool` continues.
    """

    def __init__(self, library: Library, gaussians: GaussianInputs):
        self.library, self.device = library, gaussians.features.device
        self.count = len(gaussians.features)
        # keeps the addresses in `struct` valid
        self.gaussians = _unflat(tuple(_aligned(tensor.detach()) for tensor in _flat(gaussians)))
        self.operands = network_operands(library, self.gaussians)
        self.scales = self.empty(self.count)
        self.pending: Pending | None = None
        weights = self.gaussians.networks
        growth = self.empty(4, 2)
        layers = [
            CLayer(weight=weight.data_ptr(), bias=bias.data_ptr(), outputs=len(weight), inputs=weight.shape[1])
            for weight, bias in zip(weights[::2], weights[1::2], strict=True)
        ]
        self.call("field_growth", (CLayer * 4)(*layers), growth)
        self._growth = growth
        named = {
            "features": self.gaussians.features, "xyz": self.gaussians.xyz, "bias21": weights[1], "bias22": weights[3],
            "weight31": weights[4], "bias31": weights[5], "bias32": weights[7], "growth": growth,
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
        return self.library.blocks(self.count, self.device, others, is_light, is_large)

    def sum(self, parts: Tensor) -> Tensor:
        """Sum over the first dimension."""
        total = self.empty(*parts.shape[1:])
        self.call("field_sum_rows", parts, len(parts), total.numel(), total)
        return total

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)


class Pending:
    """The backward pass of S scores, up to where `_Pool` continues.

    Attributes:
        forms, back: for the kernels.
    """

    def __init__(self, forms: CForms, back: CScoreGrads, kept: tuple[Any, ...]):
        self.forms, self.back, self._kept = forms, back, kept


def _aligned(tensor: Tensor) -> Tensor:
    """Return the tensor contiguous and aligned for vector loads."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def _flat(gaussians: GaussianInputs) -> tuple[Tensor, ...]:
    return gaussians.features, gaussians.xyz, *gaussians.networks, *gaussians.norm, *gaussians.square


def _unflat(flat: tuple[Tensor, ...]) -> GaussianInputs:
    return GaussianInputs(flat[0], flat[1], flat[2:10], flat[10:13], flat[13:16])


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

    def encode(self, gaussians: GaussianInputs) -> Encoded:
        device = gaussians.features.device
        if gaussians.features.dtype != torch.float32:
            raise ValueError(f"the kernels take float32, not {gaussians.features.dtype}")
        library = load(self._words, self._precision, device.type, shared_kb_of(device))
        with torch.cuda.device_of(gaussians.features):  # autograd sets the device in a backward pass
            return Encoded(library, gaussians)

    def pool(self, gaussians: GaussianInputs, encoded: Encoded, queries: Tensor) -> Tensor:
        words = queries.shape[0] * queries.shape[1]
        flat, most = queries.reshape(words, HIDDEN), POOL_TILES[-1] * TILE
        if words > most:  # as many as fit into registers share the work on the Gaussians
            flat = F.pad(flat, (0, 0, 0, -words % most))
        with torch.cuda.device_of(queries):
            pooled = _Pool.apply(encoded, flat, *_flat(gaussians))
        return pooled[:words].view(*queries.shape[:2], HIDDEN + 1)

    def score(
        self, encoded: Encoded, forms: SentenceCoefficients, eps: float, top: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """See `PlainField.score`. Gradients of the Gaussians flow through `pool`, whose result must be used."""
        with torch.cuda.device_of(encoded.scales):
            results = _Score.apply(encoded, eps, top, *forms)
        return (results[0], None, None) if top is None else results


def _pool_blocks(encoded: Encoded, words: int) -> int:
    """Return how many thread blocks share the Gaussians, for each group of words in csrc/pool.cu."""
    tiles = max(tiles for tiles in POOL_TILES if words % (tiles * TILE) == 0)
    return encoded.blocks(words // (tiles * TILE), is_light=tiles < POOL_TILES[-1])


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, encoded: Encoded, queries: Tensor, *_: Tensor) -> Tensor:
        queries = queries.contiguous()
        words = len(queries)
        operands = PoolOperands(encoded.library, queries)
        pool = CPool(operands=operands.memory.data_ptr(), words=words)
        blocks = _pool_blocks(encoded, words)
        maxima, totals = encoded.empty(blocks, words), encoded.empty(blocks, words)
        sums = encoded.empty(blocks, words, HIDDEN + 1)
        encoded.call("field_pool", encoded.struct, pool, maxima, totals, sums, blocks)
        pooled, level = encoded.empty(words, HIDDEN + 1), encoded.empty(words)
        encoded.call("field_finish_pool", blocks, words, maxima, totals, sums, pooled, level)
        ctx.save_for_backward(level, pooled)
        ctx.encoded, ctx.operands = encoded, operands
        return pooled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
        level, pooled = ctx.saved_tensors
        encoded, operands = ctx.encoded, ctx.operands
        gradients, words = gradients.contiguous(), len(pooled)
        operands.add_gradients(encoded.library, level, gradients, (gradients * pooled).sum(dim=1))
        pool = CPool(operands=operands.memory.data_ptr(), words=words)
        pending, encoded.pending = encoded.pending, None
        forms, back = (CForms(), CScoreGrads()) if pending is None else (pending.forms, pending.back)
        blocks = encoded.blocks(is_large=True)
        of_features, of_queries = encoded.empty(encoded.count, FEATURE_DIM), encoded.empty(blocks, TILE, HIDDEN)
        for_mlp2 = encoded.empty(blocks, sum(map(math.prod, FEATURE_SHAPES)))
        inputs = encoded.struct, pool, forms, back
        encoded.call("field_features_backward", *inputs, of_features, of_queries, for_mlp2, blocks)
        if words != TILE:
            others = _pool_blocks(encoded, words)
            of_queries = encoded.empty(others, words, HIDDEN)
            encoded.call("field_queries_backward", encoded.struct, pool, of_queries, others)
        for_mlp3 = encoded.empty(blocks, sum(map(math.prod, PLACE_SHAPES)))
        encoded.call("field_positions_backward", *inputs, for_mlp3, blocks)
        mlp2, mlp3 = encoded.sum(for_mlp2), encoded.sum(for_mlp3)
        return None, encoded.sum(of_queries), *_gaussian_gradients(of_features, mlp2, mlp3)


def _gaussian_gradients(of_features: Tensor, for_mlp2: Tensor, for_mlp3: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of each tensor of the Gaussians from the kernels' sums."""
    *mlp2, square, square_linear, square_constant = _unpack(for_mlp2, FEATURE_SHAPES)
    place, *mlp3, norm, norm_linear, norm_constant = _unpack(for_mlp3, PLACE_SHAPES)
    networks = *mlp2, place[:, :3], place[:, 3], *mlp3
    forms = norm, norm_linear, norm_constant[0], square, square_linear, square_constant[0]
    return of_features, None, *networks, *forms


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, encoded: Encoded, eps: float, top: Tensor | None, *forms: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        forms = SentenceCoefficients(*map(_aligned, forms))
        sentences, words = forms.constants.shape
        count, library = encoded.count, encoded.library
        squares, scores = encoded.empty(count), encoded.empty(sentences, count)
        operands = FormOperands(library, forms)
        struct = CForms(
            along_constant=forms.along_constant.data_ptr(), offset=forms.offset.data_ptr(), squares=squares.data_ptr(),
            scores=scores.data_ptr(), operands=operands.memory.data_ptr(), sentences=sentences, eps=eps,
        )  # fmt: skip
        encoded.call("field_score", encoded.struct, struct, encoded.blocks(is_light=True))
        if top is None:
            thresholds = torch.full((sentences,), math.inf, device=encoded.device)
            counts, sums = torch.zeros(sentences, dtype=torch.int32, device=encoded.device), None
        else:
            thresholds = top_k_kernels.thresholds(library, scores, top.to(torch.int32))
            tops, counts = top_k_kernels.list_tops(library, scores, thresholds)
            blocks = encoded.blocks(sentences)
            parts = encoded.empty(blocks, sentences, HIDDEN + words + 1)
            encoded.call("field_top", encoded.struct, struct, tops, counts, parts, blocks)
            sums = encoded.sum(parts)
        ctx.save_for_backward(squares, scores, thresholds, *forms)
        ctx.encoded, ctx.operands, ctx.struct = encoded, operands, struct
        ctx.mark_non_differentiable(counts)
        ctx.set_materialize_grads(False)
        return scores, sums, counts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradients: Tensor | None, of_tops: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        _, scores, thresholds, *forms = ctx.saved_tensors
        encoded, struct, sentences = ctx.encoded, ctx.struct, len(scores)
        words = forms[0].shape[1]
        width = HIDDEN + words + 1
        gradients = torch.zeros_like(scores) if gradients is None else gradients.contiguous()
        of_tops = torch.zeros(sentences, width, device=encoded.device) if of_tops is None else of_tops.contiguous()
        ctx.operands.add_tops(encoded.library, of_tops)
        order, active = top_k_kernels.order_active(encoded.library, scores, thresholds, gradients)
        kept = gradients, thresholds, of_tops[:, -1], order, active
        back = CScoreGrads(*(tensor.data_ptr() for tensor in kept))
        shapes = tuple(tuple(form.shape[1:]) for form in forms[:-1])
        blocks = encoded.blocks(sentences)
        of_forms = encoded.empty(blocks, sentences, sum(map(math.prod, shapes)))
        encoded.call("field_forms_backward", encoded.struct, struct, back, of_forms, blocks)
        if encoded.pending is not None:
            raise RuntimeError("another backward pass of these Gaussians has not continued through `pool`")
        encoded.pending = Pending(struct, back, (*kept, *ctx.saved_tensors, ctx.operands))
        return None, None, None, *_unpack(encoded.sum(of_forms), shapes), gradients.sum(dim=1)
