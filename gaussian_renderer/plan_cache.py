"""The cache of sorted splats: as many views as fit into a number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

from diff_gaussian_rasterization import RasterPlan

Result = TypeVar("Result")


class PlanCache:
    """Plans by key, on the device they were made on.

    When it is full, the view used last goes first. Training draws views without replacement, so that one is needed
    again later than all others; dropping the one used longest ago would miss nearly always.

    Args:
        max_bytes: bound of what is kept. The newest plan is kept in any case: its view may have further sentences.

    Attributes:
        hits, misses: how often a plan was there, and had to be made.
        nbytes: bytes held now.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.hits = self.misses = self.nbytes = 0
        self._plans: dict[Hashable, RasterPlan] = {}  # in order of use
        self._sizes: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._plans)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._plans

    def get(self, key: Hashable, make: Callable[[], RasterPlan]) -> RasterPlan:
        """The plan of `key`, made by `make` if it is not held."""
        if self._plans:
            self._measure(next(reversed(self._plans)))
        plan = self._plans.pop(key, None)
        if plan is None:
            self.misses += 1
            plan = self.retry_after_eviction(make)
        else:
            self.hits += 1
        self._plans[key] = plan
        self._measure(key)
        while self.nbytes > self.max_bytes and len(self._plans) > 1:
            last_used = list(self._plans)[-2]  # before the one just asked for
            del self._plans[last_used]
            self.nbytes -= self._sizes.pop(last_used)
        return plan

    def _measure(self, key: Hashable) -> None:
        """Count a plan's bytes anew: on a GPU in deterministic mode it grows with its first backward pass."""
        size = self._plans[key].nbytes
        self.nbytes += size - self._sizes.get(key, 0)
        self._sizes[key] = size

    def retry_after_eviction(self, work: Callable[[], Result]) -> Result:
        """Run `work`; if GPU memory runs out, drop all plans, halve the bound and run it again from its start.

        Raises:
            torch.OutOfMemoryError, MemoryError: if memory runs out in a run that began with no plan held.
        """
        while True:
            held = bool(self._plans)
            try:
                return work()
            except (torch.OutOfMemoryError, MemoryError):
                if not held:
                    raise
            # outside of the `except`, where the exception no longer holds the tensors of what failed
            self.max_bytes = min(self.max_bytes, self.nbytes) // 2
            self._plans.clear()
            self._sizes.clear()
            self.nbytes = 0
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # CUDA itself may have been the one without memory

    def __str__(self) -> str:
        """One line for the log."""
        uses = self.hits + self.misses
        return (
            f"sorted splats: {self.hits} of {uses} uses from the cache ({self.hits / max(uses, 1):.0%}), "
            f"{len(self)} views in {self.nbytes / 1e9:.2f} GB of at most {self.max_bytes / 1e9:.2f} (--plan_memory)"
        )
