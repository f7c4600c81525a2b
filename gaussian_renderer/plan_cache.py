"""Cache of the raster plans of views, bounded in bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

from diff_gaussian_rasterization import RasterPlan

Result = TypeVar("Result")


class PlanCache:
    """Raster plans by key, on the device they were made on.

    Eviction is most recently used first: training draws views without replacement, so the latest view is needed again
    after all others, and evicting the least recently used one would nearly always miss.

    Args:
        max_bytes: bound of the cached bytes. The newest plan is always cached: its view may have more sentences.

    Attributes:
        hits, misses: number of uses with and without a cached plan.
        nbytes: cached bytes.
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
        """Return the plan of `key`, and make it if it is not cached."""
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
            last_used = list(self._plans)[-2]  # except the one just used
            del self._plans[last_used]
            self.nbytes -= self._sizes.pop(last_used)
        return plan

    def _measure(self, key: Hashable) -> None:
        """Update the size of a plan, which in deterministic mode grows with its first backward pass on a GPU."""
        size = self._plans[key].nbytes
        self.nbytes += size - self._sizes.get(key, 0)
        self._sizes[key] = size

    def retry_after_eviction(self, work: Callable[[], Result]) -> Result:
        """Run `work`; if memory runs out, evict all plans, halve `max_bytes` and run it again from the start.

        Raises:
            torch.OutOfMemoryError, MemoryError: if memory runs out in a run that started with an empty cache.
        """
        while True:
            can_evict = bool(self._plans)
            try:
                return work()
            except (torch.OutOfMemoryError, MemoryError):
                if not can_evict:
                    raise
            # outside `except`, as the exception keeps the tensors of the failed run alive
            self.max_bytes = min(self.max_bytes, self.nbytes) // 2
            self._plans.clear()
            self._sizes.clear()
            self.nbytes = 0
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # CUDA itself may be out of memory

    def __str__(self) -> str:
        """Summarise the cache in a line for the log."""
        uses = self.hits + self.misses
        return (
            f"raster plans: {self.hits} of {uses} uses from the cache ({self.hits / max(uses, 1):.0%}), "
            f"{len(self)} views in {self.nbytes / 1e9:.2f} GB of at most {self.max_bytes / 1e9:.2f} (--plan_memory)"
        )
