"""Scores of sentences without gradients, replayed as CUDA graphs on a GPU, where launches would take longer."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from referring.field import ReferringField
from utils.cuda_graphs import capture, try_capture, warm_up

MAX_GRAPHS = 8  # each holds [S, N] scores of its own


class ScoreGraph(NamedTuple):
    """A graph for S sentences of up to L words, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    tokens: Tensor  # [S, L, T]; values behind the words of a sentence do not matter
    lengths: Tensor  # [S, 1] int64
    scores: Tensor  # [S, N]


class Scorer:
    """`ReferringField.scores` at fixed positions.

    For each number of sentences and padded words the first call is a plain one, the second captures a graph, and later
    ones replay it. Graphs read the parameters in place, so they see changed values; moved tensors or another backend
    are captured again. Calls must not overlap on several streams.

    Args:
        field: of N Gaussians.
        xyz: their positions, [N, 3].
    """

    def __init__(self, field: ReferringField, xyz: Tensor):
        self._field, self._xyz = field, xyz
        self._captured_from: tuple[Any, ...] | None = None
        self._graphs: dict[tuple[int, int], ScoreGraph | None] = {}  # None after the first call
        self._can_capture = xyz.is_cuda
        self._stream = torch.cuda.Stream(xyz.device) if xyz.is_cuda else None

    @torch.no_grad()
    def scores(self, tokens: list[Tensor]) -> Tensor:
        """Return scores [S, N] of all Gaussians, in new memory, for S sentences with tokens [L_s, T] on any device."""
        captured = self._graph_for(tokens) if self._can_capture else None
        if captured is None:
            return self._field.scores(self._xyz, [words.to(self._xyz.device) for words in tokens])
        for target, length, words in zip(captured.tokens, captured.lengths, tokens, strict=True):
            target[: len(words)].copy_(words, non_blocking=True)
            length.fill_(len(words))
        captured.graph.replay()
        return captured.scores.clone()

    def _graph_for(self, tokens: list[Tensor]) -> ScoreGraph | None:
        """Return the graph for these sentences, captured at their second call; None without a graph."""
        words = max(map(len, tokens))
        backend = self._field.backend.for_words(words)
        if not backend.capturable:
            return None
        inputs = self._xyz, *self._field.parameters()
        source = self._field.backend, *(tensor.data_ptr() for tensor in inputs)
        if source != self._captured_from:
            self._captured_from = source
            self._graphs.clear()
        key = len(tokens), backend.padded(words)
        if key not in self._graphs:
            if len(self._graphs) < MAX_GRAPHS:
                self._graphs[key] = None
        elif self._graphs[key] is None:
            with suppress(torch.OutOfMemoryError):  # a plain call may need less
                self._graphs[key] = try_capture(lambda: self._capture(*key), "queries are slower")
            self._can_capture = self._graphs[key] is not None
        return self._graphs.get(key)

    def _capture(self, sentences: int, words: int) -> ScoreGraph:
        field, device, stream = self._field, self._xyz.device, self._stream
        assert stream is not None
        tokens = torch.zeros(sentences, words, field.text_dim, device=device)
        lengths = torch.full((sentences, 1), words, device=device)

        def work() -> Tensor:
            present = torch.arange(words, device=device) < lengths
            return field.score(self._xyz, field.encode_words(tokens, present))[0]

        warm_up(work, stream)
        # Graphs run one at a time, and their results are copied: they can share memory.
        pool = next((kept.graph.pool() for kept in self._graphs.values() if kept is not None), None)
        graph, scores = capture(work, stream, pool)
        return ScoreGraph(graph, tokens, lengths, scores)
