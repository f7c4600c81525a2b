"""Matrices as the matrix units take them, packed by one kernel for all matrices of a call.

Their order and places are those of csrc/operands.h: of the networks (`network`), of each sentence (`Sentence`), and of
each 16 words whose positions are asked for (`pool_tile`).
"""

from __future__ import annotations

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


def _pack(library: Library, pieces: list[Piece], memory: Tensor, step: int) -> None:
    """Pack pieces into `memory`, for each of the batch B one behind the other.

    Args:
        step: numbers from one of the batch to the next.
    """
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


def network_operands(library: Library, gaussians: GaussianInputs) -> Tensor:
    """The networks and the quadratic forms."""
    weight21, _, weight22, _, _, _, weight32, _ = gaussians.networks
    back = [(weight22, BFLOAT16), (weight21, BFLOAT16)]
    forward = [gaussians.square[0], weight21.T, weight22.T, weight32.T, gaussians.norm[0]]
    pieces = [(matrix[None], kind) for matrix, kind in (*back, *((m, FLOAT16) for m in forward), (weight32, BFLOAT16))]
    memory = weight21.new_empty(sum(piece.numel() for piece, _ in pieces))
    _pack(library, pieces, memory, len(memory))
    return memory


class FormOperands:
    """The forms of S sentences and, once they are known, gradients of their top sums.

    Attributes:
        memory: of the first sentence, and then of the others.
    """

    def __init__(self, library: Library, forms: SentenceCoefficients):
        transposed = forms.on_hidden.mT, forms.mixed.mT, forms.on_directions.mT, forms.gram
        matrices = [(forms.on_hidden, BFLOAT16), (forms.mixed, BFLOAT16), *((m, FLOAT16) for m in transposed)]
        vectors = [forms.on_scales, forms.constants, forms.mixed_constants, forms.along_words, forms.along_hidden]
        pieces = [*matrices, *((vector[:, None], FLOAT32) for vector in vectors)]
        back = forms.on_directions
        (sentences, words), numbers = forms.constants.shape, [piece[0].numel() for piece, _ in pieces]
        self._top = sum(numbers)  # where the gradients of the top sums of h and attention begin
        self._step = self._top + HIDDEN + words + back[0].numel()
        self.memory = forms.gram.new_empty(sentences * self._step)
        _pack(library, [*pieces, HIDDEN + words, (back, BFLOAT16)], self.memory, self._step)

    def add_tops(self, library: Library, gradients: Tensor) -> None:
        """Those of the top sums [S, HIDDEN + L + 1], of which the last number stays out."""
        _pack(library, [self._top, (gradients[:, None, :-1], FLOAT32)], self.memory, self._step)


class PoolOperands:
    """Queries [W, HIDDEN] of word positions and, once they are known, what comes back to them.

    Attributes:
        memory: of the first tile, and then of the others.
    """

    _MATRIX = TILE * HIDDEN  # numbers of each of the four matrices of a tile
    _STEP = 4 * _MATRIX + TILE_VECTORS * TILE

    def __init__(self, library: Library, queries: Tensor):
        tiles = queries.view(-1, TILE, HIDDEN)
        self.memory = queries.new_empty(len(tiles) * self._STEP)
        _pack(library, [2 * self._MATRIX, (tiles.mT, FLOAT16)], self.memory, self._STEP)
        self._queries = tiles

    def add_gradients(self, library: Library, level: Tensor, gradients: Tensor, centres: Tensor) -> None:
        """Add what the way back needs.

        Args:
            level: logarithm of the softmax's denominator [W].
            gradients: of the weighted directions and, behind them, of the weighted scales [W, HIDDEN + 1].
            centres: products of the gradients with what was pooled [W].
        """
        directions = gradients.view(-1, TILE, HIDDEN + 1)[..., :HIDDEN]
        vectors = [(vector.view(-1, 1, TILE), FLOAT32) for vector in (level, gradients[:, HIDDEN], centres)]
        matrices = (self._queries, BFLOAT16), (directions.mT, BFLOAT16)
        pieces = [*matrices, self._MATRIX, *vectors, (directions, BFLOAT16)]  # the forward queries stay where they are
        _pack(library, pieces, self.memory, self._STEP)
