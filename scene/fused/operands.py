"""Matrices as the matrix units take them, packed by one kernel for all matrices of a call; the order is csrc/field.h's."""

from __future__ import annotations

import torch
from torch import Tensor

from scene.field_inputs import HIDDEN, Forms, Gaussians
from scene.fused.library import CMatrices, CMatrix, Library

TILE = 16  # words in a tile of word positions
GROUP_BYTES = 16  # of what a lane loads at a time, see csrc/pack.cu
ELEMENT_BYTES = 4  # of a matrix element: two numbers of 16 bits

Matrix = tuple[Tensor, bool]  # [B, K, N] of any strides; and whether it becomes float16, else bfloat16


def _pack(library: Library, matrices: list[Matrix], memory: Tensor, first: int = 0, step: int = 0) -> None:
    """Pack matrices into `memory`, for each of the batch B one behind the other.

    Args:
        first: bytes before the first.
        step: bytes from one of the batch to the next; what the matrices take, if it is 0.
    """
    step = step or sum(matrix[0].numel() for matrix, _ in matrices) * ELEMENT_BYTES
    packed, place = CMatrices(), memory.data_ptr() + first
    for i, (matrix, is_half) in enumerate(matrices):
        batch, rows, columns = matrix.shape
        steps = {"batch_step": matrix.stride(0), "row_step": matrix.stride(1), "column_step": matrix.stride(2)}
        packed.at[i] = CMatrix(
            source=matrix.data_ptr(), target=place, **steps, to_step=step // GROUP_BYTES, rows=rows, columns=columns,
            batch=batch, is_half=is_half,
        )  # fmt: skip
        place += rows * columns * ELEMENT_BYTES
    library.call(memory.device, "field_pack", packed, len(matrices))


def _memory(like: Tensor, elements: int) -> Tensor:
    return torch.empty(elements * ELEMENT_BYTES, dtype=torch.uint8, device=like.device)


def network_operands(library: Library, gaussians: Gaussians) -> Tensor:
    """The networks and the quadratic forms, in the order of `network`."""
    weight21, _, weight22, _, _, _, weight32, _ = gaussians.networks
    back = [(weight22, False), (weight21, False)]
    forward = [gaussians.square[0], weight21.T, weight22.T, weight32.T, gaussians.norm[0]]
    matrices = [*back, *((weight, True) for weight in forward), (weight32, False)]
    memory = _memory(weight21, sum(matrix.numel() for matrix, _ in matrices))
    _pack(library, [(matrix[None], is_half) for matrix, is_half in matrices], memory)
    return memory


def form_operands(library: Library, forms: Forms) -> Tensor:
    """The forms, in the order of `Sentence`."""
    back = [(forms.on_hidden, False), (forms.mixed, False)]
    forward = [forms.on_hidden.mT, forms.mixed.mT, forms.on_directions.mT, forms.gram]
    matrices = [*back, *((matrix, True) for matrix in forward), (forms.on_directions, False)]
    memory = _memory(forms.gram, sum(matrix.numel() for matrix, _ in matrices))
    _pack(library, matrices, memory)
    return memory


class PoolOperands:
    """Queries [W, HIDDEN] of word positions and, once they are known, gradients, in the order of `pool_tile`.

    Attributes:
        address: of the first tile.
    """

    _SIZE = TILE * HIDDEN * ELEMENT_BYTES  # of each of the four matrices of a tile

    def __init__(self, library: Library, queries: Tensor):
        self._memory = _memory(queries, 4 * queries.numel())
        self.address = self._memory.data_ptr()
        tiles = queries.view(-1, TILE, HIDDEN)
        _pack(library, [(tiles, False)], self._memory, step=4 * self._SIZE)
        _pack(library, [(tiles.mT, True)], self._memory, 2 * self._SIZE, 4 * self._SIZE)

    def add_gradients(self, library: Library, gradients: Tensor) -> None:
        """Those [W, HIDDEN + 1] of the weighted directions and scales; the scales stay out."""
        tiles = gradients.view(-1, TILE, HIDDEN + 1)[..., :HIDDEN]
        _pack(library, [(tiles.mT, False)], self._memory, self._SIZE, 4 * self._SIZE)
        _pack(library, [(tiles, False)], self._memory, 3 * self._SIZE, 4 * self._SIZE)
