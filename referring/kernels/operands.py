"""Matrices as the matrix units take them, packed by one kernel for all matrices of a call.

Their order and places are those of csrc/operands.h: of the networks (`network`), of each sentence (`Sentence`), and of
each 16 words whose positions are asked for (`pool_tile`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from referring.kernels.algebra import HIDDEN, GaussianInputs, SentenceCoefficients
from referring.kernels.library import BFLOAT16, FLOAT16, FLOAT32, CMatrices, CMatrix, Library

TILE = 16  # words in a tile of word positions
TILE_VECTORS = 3  # of TILE numbers, that belong to a tile
GROUP_BYTES = 16  # of what a lane loads at a time, see csrc/pack.cu
NUMBER_BYTES = 4  # of an element: a float32, or two numbers of 16 bits

# [B, K, N] of any strides and FLOAT16 or BFLOAT16; or [B, 1, N] and FLOAT32, which is copied; or how many numbers to
# leave out
Piece = tuple[Tensor, int] | int


def _pack(library: Library, pieces: Sequence[Piece], memory: Tensor, step: int) -> None:
    """Pack pieces into `memory`, each item of the batch B `step` numbers behind the one before."""
    packed, count, place = CMatrices(), 0, memory.data_ptr()
    for one in pieces:
        if isinstance(one, int):
            place += one * NUMBER_BYTES
            continue
        piece, kind = one
        batch, rows, columns = piece.shape
        steps = {"batch_step": piece.stride(0), "row_step": piece.stride(1), "column_step": piece.stride(2)}
        packed.at[count] = CMatrix(
            source=piece.data_ptr(), target=place, **steps, target_step=step * NUMBER_BYTES // GROUP_BYTES, rows=rows,
            columns=columns, batch=batch, type=kind,
        )  # fmt: skip
        place += rows * columns * NUMBER_BYTES
        count += 1
    library.call(memory.device, "field_pack", packed, count)


def pack_networks(library: Library, gaussians: GaussianInputs) -> Tensor:
    """Return the networks and the quadratic forms, packed."""
    weight21, _, weight22, _, _, _, weight32, _ = gaussians.networks
    back = [(weight22, BFLOAT16), (weight21, BFLOAT16)]
    forward = [gaussians.square[0], weight21.T, weight22.T, weight32.T, gaussians.norm[0]]
    pieces = [(matrix[None], kind) for matrix, kind in (*back, *((m, FLOAT16) for m in forward), (weight32, BFLOAT16))]
    memory = weight21.new_empty(sum(piece.numel() for piece, _ in pieces))
    _pack(library, pieces, memory, len(memory))
    return memory


class CoefficientOperands:
    """Packed coefficients of S sentences and, once they are known, gradients of their top sums: `memory`."""

    def __init__(self, library: Library, coefficients: SentenceCoefficients):
        c = coefficients
        transposed = c.on_hidden.mT, c.mixed.mT, c.on_directions.mT, c.gram
        matrices = [(c.on_hidden, BFLOAT16), (c.mixed, BFLOAT16), *((matrix, FLOAT16) for matrix in transposed)]
        vectors = [c.on_scales, c.constants, c.mixed_constants, c.along_words, c.along_hidden]
        pieces = [*matrices, *((vector[:, None], FLOAT32) for vector in vectors)]
        back = c.on_directions
        (sentences, words), numbers = c.constants.shape, [piece[0].numel() for piece, _ in pieces]
        self._top = sum(numbers)  # where the gradients of the top sums of h and attention begin
        self._step = self._top + HIDDEN + words + back[0].numel()
        self.memory = c.gram.new_empty(sentences * self._step)
        _pack(library, [*pieces, HIDDEN + words, (back, BFLOAT16)], self.memory, self._step)

    def add_tops(self, library: Library, gradients: Tensor) -> None:
        """Add the gradients of the top sums [S, HIDDEN + L + 1] but for the last number."""
        _pack(library, [self._top, (gradients[:, None, :-1], FLOAT32)], self.memory, self._step)


class PoolOperands:
    """Packed queries [W, HIDDEN] of word positions and, once they are known, the inputs of their backward pass."""

    _MATRIX = TILE * HIDDEN  # numbers of each of the four matrices of a tile
    _STEP = 4 * _MATRIX + TILE_VECTORS * TILE

    def __init__(self, library: Library, queries: Tensor):
        tiles = queries.view(-1, TILE, HIDDEN)
        self.memory = queries.new_empty(len(tiles) * self._STEP)
        _pack(library, [2 * self._MATRIX, (tiles.mT, FLOAT16)], self.memory, self._STEP)
        self._queries = tiles

    def add_gradients(self, library: Library, level: Tensor, gradients: Tensor, centres: Tensor) -> None:
        """Add the inputs of the backward pass.

        Args:
            level: logarithm of the softmax's denominator [W].
            gradients: of the weighted directions and, behind them, of the weighted scales [W, HIDDEN + 1].
            centres: products of the gradients with what was pooled [W].
        """
        directions = gradients.view(-1, TILE, HIDDEN + 1)[..., :HIDDEN]
        vectors = [(vector.view(-1, 1, TILE), FLOAT32) for vector in (level, gradients[:, HIDDEN], centres)]
        matrices = (self._queries, BFLOAT16), (directions.mT, BFLOAT16)
        # the forward queries stay where they are
        pieces: list[Piece] = [*matrices, self._MATRIX, *vectors, (directions, BFLOAT16)]
        _pack(library, pieces, self.memory, self._STEP)
