"""Scores of sentences without gradients, replayed as CUDA graphs on a GPU, where launches would take longer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from referring.field import ReferringField
from utils.cuda_graphs import record, try_to_record, warm_up

MAX_GRAPHS = 8  # each holds [S, N] scores of its own


class Recording(NamedTuple):
    """A graph for S sentences of up to L words, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    tokens: Tensor  # [S, L, T]; values behind the words of a sentence do not matter
    lengths: Tensor  # [S, 1] int64
    scores: Tensor  # [S, N]


class Scorer:
    """`ReferringField.scores` at fixed positions.

    For each number of sentences and padded words the first call is a plain one, the second records a graph, and later
    ones replay it. Graphs read the parameters in place, so they see changed values; moved tensors or another backend
    are recorded again. Calls must not overlap on several streams.

    Args:
        field: of N Gaussians.
        xyz: their positions, [N, 3].
    """

    def __init__(self, field: ReferringField, xyz: Tensor):
        self._field, self._xyz = field, xyz
        self._recorded_from: tuple[Any, ...] | None = None
        self._recordings: dict[tuple[int, int], Recording | None] = {}  # None after the first call
        self._can_record = xyz.is_cuda
        self._stream = torch.cuda.Stream(xyz.device) if xyz.is_cuda else None

    @torch.no_grad()
    def scores(self, tokens: list[Tensor]) -> Tensor:
        """Return scores [S, N] of all Gaussians, in new memory, for S sentences with tokens [L_s, T] on any device."""
        recording = self._recording(tokens) if self._can_record else None
        if recording is None:
            return self._field.scores(self._xyz, [words.to(self._xyz.device) for words in tokens])
        for target, length, words in zip(recording.tokens, recording.lengths, tokens, strict=True):
            target[: len(words)].copy_(words, non_blocking=True)
            length.fill_(len(words))
        recording.graph.replay()
        return recording.scores.clone()

    def _recording(self, tokens: list[Tensor]) -> Recording | None:
        """Return the graph for these sentences, recorded at their second call; None without a graph."""
        words = max(map(len, tokens))
        backend = self._field.backend.for_words(words)
        if not backend.capturable:
            return None
        inputs = self._xyz, *self._field.parameters()
        source = self._field.backend, *(tensor.data_ptr() for tensor in inputs)
        if source != self._recorded_from:
            self._recorded_from = source
            self._recordings.clear()
        key = len(tokens), backend.padded(words)
        if key not in self._recordings:
            if len(self._recordings) < MAX_GRAPHS:
                self._recordings[key] = None
        elif self._recordings[key] is None:
            self._recordings[key] = self._try_to_record(*key)
        return self._recordings.get(key)

    def _try_to_record(self, sentences: int, words: int) -> Recording | None:
        try:
            recording = try_to_record(lambda: self._record(sentences, words), "queries are slower")
        except torch.OutOfMemoryError:  # a plain call may need less
            recording = None
        self._can_record = recording is not None
        return recording

    def _record(self, sentences: int, words: int) -> Recording:
        field, device = self._field, self._xyz.device
        tokens = torch.zeros(sentences, words, field.text_dim, device=device)
        lengths = torch.full((sentences, 1), words, device=device)

        def work() -> Tensor:
            present = torch.arange(words, device=device) < lengths
            return field.score(self._xyz, field.encode_words(tokens, present))[0]

        warm_up(work, self._stream)
        # Graphs run one at a time, and their results are copied: they can share memory.
        pool = next((kept.graph.pool() for kept in self._recordings.values() if kept is not None), None)
        graph, scores = record(work, self._stream, pool)
        return Recording(graph, tokens, lengths, scores)
