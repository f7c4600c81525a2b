"""The processes that torchrun started: which scene each takes, and what they know of each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

NEVER = timedelta(days=30)  # a process that is done waits for scenes that train for hours


def see_one_gpu() -> None:
    """Under torchrun, leave this process the GPU of its LOCAL_RANK only; before anything uses CUDA.

    Device numbers of libraries that do not ask PyTorch are then right, too.
    """
    local = os.environ.get("LOCAL_RANK")
    if local is None or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = local
    else:  # more processes than GPUs, or an empty list: none for this one, which `require_gpus` reports
        names = visible.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = names[int(local)] if int(local) < len(names) else ""


class Ranks:
    """A context manager around the work of all processes; alone, it is one process without any communication.

    Attributes:
        rank: of this process; 0 writes the tables.
        count: number of processes.
    """

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._store: Any = None
        self._taken = 0

    def __enter__(self) -> Ranks:
        if self.count > 1:
            import torch.distributed as dist

            self._store, _, _ = next(dist.rendezvous("env://"))
            # gloo: what goes between processes are names and messages, never a tensor of a GPU
            dist.init_process_group(
                "gloo",
                store=dist.PrefixStore("group", self._store),
                rank=self.rank,
                world_size=self.count,
                timeout=NEVER,
            )
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.count > 1 and kind is None:
            import torch.distributed as dist

            dist.destroy_process_group()

    def take_turns(self, items: list[Any]) -> Iterator[Any]:
        """The items that this process takes: the next free one whenever it is done with one."""
        if self._store is None:
            yield from items
            return
        self._taken += 1
        while (index := self._store.add(f"benchmark/{self._taken}", 1) - 1) < len(items):
            yield items[index]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of ranks; waits for all of them."""
        if self._store is None:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values
