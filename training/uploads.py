"""Pictures of a scene on the device that trains on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from utils.device import memory_budget

UPLOADS_SHARE = 0.1  # of the free memory of a GPU
MOST_READERS = 16  # threads, each with a picture in memory


class Uploads:
    """Pictures by key, uploaded to a GPU once: every upload waits for all work that is still running there.

    What no longer fits is uploaded at every use. Nothing is kept on the CPU, where `View` keeps pictures itself.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._room = memory_budget(device, UPLOADS_SHARE, on_cpu=0)
        self._kept: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, load: Callable[[], np.ndarray]) -> Tensor:
        """The picture of `key` on the device, read by `load` if it is not there yet."""
        if key in self._kept:
            return self._kept[key]
        picture = torch.from_numpy(load()).to(self._device)
        if picture.nbytes <= self._room:
            self._room -= picture.nbytes
            self._kept[key] = picture
        return picture

    def prepare(self, pictures: dict[Hashable, Callable[[], np.ndarray]]) -> None:
        """Upload pictures as far as they fit, read by threads, before work that would wait for each.

        Args:
            pictures: what reads each of them, by key.
        """
        wanted = [(key, load) for key, load in pictures.items() if key not in self._kept]
        most = min(MOST_READERS, os.cpu_count() or 1)
        fits = self._room > 0
        with ThreadPoolExecutor(most) as readers:
            while wanted and fits:
                (keys, loads), wanted = zip(*wanted[:most], strict=True), wanted[most:]
                for key, picture in zip(keys, readers.map(lambda load: load(), loads), strict=True):
                    self.get(key, lambda picture=picture: picture)
                    fits = fits and key in self._kept
