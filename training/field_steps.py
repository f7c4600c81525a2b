"""The referring field in a training step: forward, back from a gradient of the scores, and the optimiser.

On a GPU this is hundreds of kernels, most of them shorter than their launch. Nothing in them depends on the view but
numbers in tensors, so each of the three parts is recorded once as a CUDA graph, for every number of sentences a step
can have, and replayed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from referring.field import ReferringField, Words
from training.referrals import Referrals
from utils.cuda_graphs import record, try_to_record, warm_up

ContrastiveLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

MOST_RECORDED = 8  # numbers of sentences with graphs, each of which holds [K, N] scores of its own


class Outputs(NamedTuple):
    """What a step computes of the field, without history.

    Attributes:
        scores: [K, N].
        contrastive: mean contrastive loss of the K sentences, []; None where there is none.
    """

    scores: Tensor
    contrastive: Tensor | None


class Step(Protocol):
    """A training step of the field for the sentences that `FieldSteps.of` was given."""

    def forward(self) -> Outputs:
        """Scores and contrastive loss; the next step may write into their memory."""

    def backward(self, gradient: Tensor) -> None:
        """Compute gradients of the parameters from one of the scores [K, N]; that of the contrastive loss is added."""

    def update(self) -> None:
        """Let the optimiser take a step."""


class Work:
    """What is done in a step, kernel by kernel.

    Args:
        field, xyz: the field and the positions [N, 3] of its Gaussians.
        referrals: of the training views.
        loss: form of the contrastive loss, see referring.losses; not used where `referrals` has no contrast.
        weight: of the contrastive loss.
        optimizer: of the field's parameters.
    """

    def __init__(
        self,
        field: ReferringField,
        xyz: Tensor,
        referrals: Referrals,
        loss: ContrastiveLoss,
        weight: float,
        optimizer: torch.optim.Optimizer,
    ):
        self.field, self.optimizer = field, optimizer
        self._xyz, self._referrals, self._loss = xyz, referrals, loss
        self._weight = torch.tensor(weight, dtype=xyz.dtype, device=xyz.device)
        self._parameters = list(field.parameters())
        self._present = referrals.present[referrals.sentence]  # [R, L] bool

    @property
    def recordable(self) -> bool:
        """Whether all of it can be part of a CUDA graph."""
        backend = self.field.backend.for_words(self._referrals.tokens.shape[1])
        return self._xyz.is_cuda and backend.capturable

    def length(self, chosen: list[int]) -> int:
        """Words that are looked at of sentences: of the longest of these or, where steps can be recorded, of all."""
        table = self._referrals
        return table.tokens.shape[1] if self.recordable else max(table.lengths[number] for number in chosen)

    def forward(self, chosen: Tensor, top: Tensor, length: int) -> Outputs:
        """Outputs, with history.

        Args:
            chosen: numbers of K referrals of one view.
            top: [K], numbers of top Gaussians.
            length: see `length`.
        """
        field, table = self.field, self._referrals
        present = self._present[chosen, :length]
        if table.contrast is None:
            words = field.encode_words(table.tokens[table.sentence[chosen], :length], present)
            return Outputs(field.score(self._xyz, words)[0], None)
        others = table.contrast.sentences[chosen[:1]][0]  # [C]
        words = field.encode_words(table.tokens[others], table.present[others])
        # a product picks rows whose gradient needs no atomics
        candidates = words.embeddings[:, :length]
        own = (table.contrast.own[chosen] @ candidates.flatten(1)).unflatten(1, candidates.shape[1:])
        scores, tops = field.score(self._xyz, Words(own, present), top)
        positive, negative = table.contrast.positive[chosen], table.contrast.negative[chosen]
        return Outputs(scores, self._loss(tops, words.means(), positive, negative).mean())

    def backward(self, outputs: Outputs, gradient: Tensor) -> None:
        """Set the gradients of the parameters, from outputs with history."""
        values, gradients = [outputs.scores], [gradient]
        if outputs.contrastive is not None:
            values, gradients = [*values, outputs.contrastive], [*gradients, self._weight]
        found = torch.autograd.grad(values, self._parameters, gradients)
        for parameter, value in zip(self._parameters, found, strict=True):
            parameter.grad = value.contiguous()

    def update(self) -> None:
        """Let the optimiser take a step, and drop the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad()


class Launched:
    """A step kernel by kernel."""

    def __init__(self, work: Work, chosen: Tensor, top: Tensor, length: int):
        self._work, self._chosen, self._top, self._length = work, chosen, top, length
        self._outputs: Outputs | None = None

    def forward(self) -> Outputs:
        self._outputs = self._work.forward(self._chosen, self._top, self._length)
        return _detached(self._outputs)

    def backward(self, gradient: Tensor) -> None:
        outputs, self._outputs = self._outputs, None
        self._work.backward(outputs, gradient)

    def update(self) -> None:
        self._work.update()


class Recorded:
    """A step as three CUDA graphs. Recording changes neither parameters nor the optimiser's state.

    Args:
        work: to record.
        chosen, top: [K], read by the graphs whenever they run.
        gradient: [K, N], the same.
        stream: on which to record.
        pool: memory of graphs recorded before, which this one may use too, as steps do not overlap; None for its own.

    Attributes:
        pool: memory of the graphs.
    """

    def __init__(self, work: Work, chosen: Tensor, top: Tensor, gradient: Tensor, stream: torch.cuda.Stream, pool: Any):
        self._gradient = gradient
        length = work.length([])
        warm_up(lambda: work.backward(work.forward(chosen, top, length), gradient), stream)
        self._forward, outputs = record(lambda: work.forward(chosen, top, length), stream, pool)
        self.pool = self._forward.pool()
        self._backward, _ = record(lambda: work.backward(outputs, gradient), stream, self.pool)
        with _recordable(work.optimizer):
            self._update, _ = record(work.update, stream, self.pool)
        self._outputs = _detached(outputs)

    def forward(self) -> Outputs:
        self._forward.replay()
        return self._outputs

    def backward(self, gradient: Tensor) -> None:
        self._gradient.copy_(gradient)
        self._backward.replay()

    def update(self) -> None:
        self._update.replay()


class FieldSteps:
    """Steps of the field: recorded where a GPU can, else launched kernel by kernel.

    Args:
        work: what a step does.
        referrals: how many referrals there are.
        sizes: how many steps of an epoch have how many sentences; the most frequent are recorded.
    """

    def __init__(self, work: Work, referrals: int, sizes: Counter[int]):
        self._work = work
        device, count = work.field.language_feature.device, len(work.field.language_feature)
        self._numbers = torch.arange(referrals, device=device).split(1)  # a slice takes as long as a launch
        self._chosen = torch.zeros(max(sizes), dtype=torch.int64, device=device)
        self._top = torch.ones(max(sizes), dtype=torch.int32, device=device)
        self._top_now = 1
        self._steps: dict[int, Recorded] = {}
        self._recorded = {size for size, _ in sizes.most_common(MOST_RECORDED)} if work.recordable else set()
        if self._recorded:
            self._gradient = torch.zeros(max(self._recorded), count, device=device)
            self._stream = torch.cuda.Stream(device)

    def of(self, chosen: list[int], top: int) -> Step:
        """The step for some referrals of one view.

        Args:
            chosen: their numbers.
            top: how many Gaussians with the highest scores enter the contrastive loss, from 1 to N.

        Raises:
            torch.OutOfMemoryError: if it cannot be recorded for lack of memory; it can be tried again.
        """
        size = len(chosen)
        torch.cat([self._numbers[number] for number in chosen], out=self._chosen[:size])
        if top != self._top_now:
            self._top.fill_(top)
            self._top_now = top
        if size not in self._steps and size in self._recorded:
            self._try_to_record(size)
        if size in self._steps:
            return self._steps[size]
        return Launched(self._work, self._chosen[:size], self._top[:size], self._work.length(chosen))

    def forget(self) -> None:
        """Record anew, after the optimiser's state has moved to other tensors."""
        self._steps.clear()

    def _try_to_record(self, size: int) -> None:
        pool = next((step.pool for step in self._steps.values()), None)
        inputs = self._chosen[:size], self._top[:size], self._gradient[:size]
        step = try_to_record(lambda: Recorded(self._work, *inputs, self._stream, pool), "steps are slower")
        if step is None:
            self._recorded = set()
        else:
            self._steps[size] = step


def _detached(outputs: Outputs) -> Outputs:
    return Outputs(*(None if value is None else value.detach() for value in outputs))


@contextmanager
def _recordable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Make Adam ready to be recorded: its state exists, so that the graph does not begin with zeros each time.

    Its kernels are the same with and without `capturable`, which would have it warn of steps that are not recorded.
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
