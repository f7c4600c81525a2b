"""The processes that torchrun started: which scene each takes, and how they exchange messages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any


def see_one_gpu() -> None:
    """Under torchrun, leave this process the GPU of its LOCAL_RANK only; call it before anything uses CUDA."""
    local, visible = os.environ.get("LOCAL_RANK"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if local is None or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    if visible is not None:  # more processes than GPUs, or an empty list: none for this one; `require_gpus` reports it
        names = visible.split(",")
        local = names[int(local)] if int(local) < len(names) else ""
    os.environ["CUDA_VISIBLE_DEVICES"] = local


class Ranks:
    """A context manager around the work of all processes; rank 0 writes the tables. A single one needs no messages."""

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._store: Any = None

    def __enter__(self) -> Ranks:
        if self.count > 1:
            import torch.distributed as dist

            self._dist = dist
            self._store, _, _ = next(dist.rendezvous("env://"))
            group = dist.PrefixStore("group", self._store)
            timeout = timedelta(days=30)  # a process that is done waits for scenes that train for hours
            # gloo: names and messages go between processes, never a tensor of a GPU
            dist.init_process_group("gloo", store=group, rank=self.rank, world_size=self.count, timeout=timeout)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.count > 1 and kind is None:
            self._dist.destroy_process_group()

    def take_turns(self, items: list[Any]) -> Iterator[Any]:
        """Yield the items for this process: the next free one whenever it is done with one."""
        if self._store is None:
            yield from items
            return
        while (index := self._store.add("benchmark", 1) - 1) < len(items):
            yield items[index]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of ranks; waits for all of them."""
        if self._store is None:
            return [value]
        values: list[Any] = [None] * self.count
        self._dist.all_gather_object(values, value)
        return values
