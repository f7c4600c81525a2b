"""The field's part of a training step: forward, backward and the optimiser, replayed as CUDA graphs on a GPU.

`FieldStep` is what happens, operation by operation. On a GPU that is hundreds of kernels, most of them shorter than
their launch, and only numbers in tensors differ from view to view. So `FieldSteps` captures forward, backward and
update once for every number of sentences that a step can have, and replays these graphs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from referring.field import ReferringField, Words
from training.referrals import Referrals
from utils.cuda_graphs import capture, try_capture, warm_up

ContrastiveLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

MAX_GRAPHS = 8  # numbers of sentences with graphs, each of which holds [K, N] scores of its own


class FieldOutputs(NamedTuple):
    """Outputs of a forward pass for K sentences."""

    scores: Tensor  # [K, N]
    contrastive: Tensor | None  # [], mean over the sentences

    def detach(self) -> FieldOutputs:
        return FieldOutputs(self.scores.detach(), None if self.contrastive is None else self.contrastive.detach())


class FieldStep:
    """Forward, backward and update of the field.

    Args:
        xyz: positions [N, 3] of the field's Gaussians.
        referrals: of the training views.
        contrastive_loss: see referring/losses.py; not used where `referrals` has no contrast.
        weight: lambda, of the contrastive loss.
    """

    def __init__(
        self,
        field: ReferringField,
        xyz: Tensor,
        referrals: Referrals,
        contrastive_loss: ContrastiveLoss,
        weight: float,
        optimizer: torch.optim.Optimizer,
    ):
        self.field, self.optimizer = field, optimizer
        self._xyz, self._referrals, self._contrastive_loss = xyz, referrals, contrastive_loss
        self._weight = torch.tensor(weight, dtype=xyz.dtype, device=xyz.device)
        self._parameters = list(field.parameters())
        self._present = referrals.present[referrals.sentence]  # [R, L] bool

    @property
    def can_capture(self) -> bool:
        """Whether all of it can be part of a CUDA graph."""
        backend = self.field.backend.for_words(self._referrals.tokens.shape[1])
        return self._xyz.is_cuda and backend.capturable

    def padded_length(self, numbers: list[int]) -> int:
        """Return the padded word count: that of the longest of these referrals, or of all where graphs are captured."""
        table = self._referrals
        return table.tokens.shape[1] if self.can_capture else max(table.lengths[number] for number in numbers)

    def forward(self, numbers: Tensor, top_k: Tensor, length: int) -> FieldOutputs:
        """Return scores and contrastive loss, with autograd history.

        Args:
            numbers: [K] int64, referrals of one view.
            top_k: [K] int32, how many Gaussians with the highest scores enter the contrastive loss.
            length: padded word count.
        """
        field, table = self.field, self._referrals
        present = self._present[numbers, :length]
        if table.contrast is None:
            words = field.encode_words(table.tokens[table.sentence[numbers], :length], present)
            return FieldOutputs(field.score(self._xyz, words)[0], None)
        others = table.contrast.sentences[numbers[:1]][0]  # [C]
        words = field.encode_words(table.tokens[others], table.present[others])
        # a product picks rows whose gradient needs no atomics
        candidates = words.embeddings[:, :length]
        own = (table.contrast.own[numbers] @ candidates.flatten(1)).unflatten(1, candidates.shape[1:])
        scores, top_embeddings = field.score(self._xyz, Words(own, present), top_k)
        assert top_embeddings is not None
        positive, negative = table.contrast.positive[numbers], table.contrast.negative[numbers]
        return FieldOutputs(scores, self._contrastive_loss(top_embeddings, words.means(), positive, negative).mean())

    def backward(self, outputs: FieldOutputs, score_grads: Tensor) -> None:
        """Set the gradients of the parameters, from outputs with history and the gradients [K, N] of the scores."""
        values, grads = [outputs.scores], [score_grads]
        if outputs.contrastive is not None:
            values, grads = [*values, outputs.contrastive], [*grads, self._weight]
        parameter_grads = torch.autograd.grad(values, self._parameters, grads)
        for parameter, grad in zip(self._parameters, parameter_grads, strict=True):
            parameter.grad = grad.contiguous()

    def update(self) -> None:
        """Take an optimiser step, and drop the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad()


class StepGraphs:
    """A `FieldStep` as three CUDA graphs. Capturing changes neither the parameters nor the optimiser's state.

    Args:
        step: what to capture.
        numbers, top_k, score_grads: [K], [K] and [K, N], read by each replay.
        stream: captures.
        pool: memory pool of other graphs to share, as steps do not overlap; None for a new one.
    """

    def __init__(
        self, step: FieldStep, numbers: Tensor, top_k: Tensor, score_grads: Tensor, stream: torch.cuda.Stream, pool: Any
    ):
        self._score_grads = score_grads
        length = step.padded_length([])
        warm_up(lambda: step.backward(step.forward(numbers, top_k, length), score_grads), stream)
        self._forward, outputs = capture(lambda: step.forward(numbers, top_k, length), stream, pool)
        self.pool = self._forward.pool()
        self._backward, _ = capture(lambda: step.backward(outputs, score_grads), stream, self.pool)
        with _capturable(step.optimizer):
            self._update, _ = capture(step.update, stream, self.pool)
        self._outputs = outputs.detach()

    def forward(self) -> FieldOutputs:
        self._forward.replay()
        return self._outputs

    def backward(self, score_grads: Tensor) -> None:
        self._score_grads.copy_(score_grads)
        self._backward.replay()

    def update(self) -> None:
        self._update.replay()


class FieldSteps:
    """Runs `FieldStep`: as CUDA graphs where it can, else operation by operation.

    Args:
        num_referrals: R, of the training views.
        sizes: how many steps of an epoch have how many sentences; the most frequent ones become graphs.

    Attributes:
        graphs: those of the last step; None if it ran operation by operation.
    """

    def __init__(self, step: FieldStep, num_referrals: int, sizes: Counter[int]):
        self._step = step
        device, count = step.field.language_feature.device, len(step.field.language_feature)
        self._all_numbers = torch.arange(num_referrals, device=device).split(1)  # a slice takes as long as a launch
        self._numbers = torch.zeros(max(sizes), dtype=torch.int64, device=device)
        self._top_k = torch.ones(max(sizes), dtype=torch.int32, device=device)
        self._last_top_k = 1
        self._outputs: FieldOutputs | None = None
        self.graphs: StepGraphs | None = None
        self._captured: dict[int, StepGraphs] = {}
        self._to_capture = {size for size, _ in sizes.most_common(MAX_GRAPHS)} if step.can_capture else set()
        if self._to_capture:
            self._score_grads = torch.zeros(max(self._to_capture), count, device=device)
            self._stream = torch.cuda.Stream(device)

    def forward(self, numbers: list[int], top_k: int) -> FieldOutputs:
        """Return the outputs for some referrals of one view, without history; the next step may overwrite them.

        `top_k` Gaussians with the highest scores, from 1 to N, enter the contrastive loss.

        Raises:
            torch.OutOfMemoryError: if memory runs out; the call can be repeated.
        """
        self._outputs = None  # of a step that ran out of memory
        size = len(numbers)
        torch.cat([self._all_numbers[number] for number in numbers], out=self._numbers[:size])
        if top_k != self._last_top_k:
            self._top_k.fill_(top_k)
            self._last_top_k = top_k
        if size in self._to_capture and size not in self._captured:
            self._try_capture(size)
        self.graphs = self._captured.get(size)
        if self.graphs is not None:
            return self.graphs.forward()
        length = self._step.padded_length(numbers)
        self._outputs = self._step.forward(self._numbers[:size], self._top_k[:size], length)
        return self._outputs.detach()

    def backward(self, score_grads: Tensor) -> None:
        """Compute the parameters' gradients from those of the scores [K, N], and add those of the contrastive loss."""
        if self.graphs is not None:
            self.graphs.backward(score_grads)
            return
        assert self._outputs is not None  # `forward` comes first
        self._step.backward(self._outputs, score_grads)
        self._outputs = None

    def update(self) -> None:
        """Take an optimiser step."""
        (self.graphs or self._step).update()

    def reset(self) -> None:
        """Capture again, after the optimiser's state has moved to other tensors."""
        self._captured.clear()
        self.graphs = None

    def _try_capture(self, size: int) -> None:
        pool = next((graphs.pool for graphs in self._captured.values()), None)
        inputs = self._numbers[:size], self._top_k[:size], self._score_grads[:size]
        graphs = try_capture(lambda: StepGraphs(self._step, *inputs, self._stream, pool), "steps are slower")
        if graphs is None:
            self._to_capture = set()
        else:
            self._captured[size] = graphs


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Prepare Adam for capture: its state exists, so that the graph does not begin with zeros each time.

    Its kernels are the same with and without `capturable`, which would warn of steps that are not captured.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
        group["capturable"] = True
    try:
        yield
    finally:
        for group in optimizer.param_groups:
            group["capturable"] = False
