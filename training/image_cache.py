"""Images of a scene on the training device."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from utils.device import memory_budget

GPU_SHARE = 0.1  # of the free memory of a GPU
MAX_READERS = 16  # threads, each with an image in memory


class ImageCache:
    """Images by key, uploaded to a GPU once, because every upload waits for all running work there.

    Images beyond the memory budget are uploaded at every use. On the CPU nothing is cached: `View` caches images.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._free_bytes = memory_budget(device, GPU_SHARE, on_cpu=0)
        self._images: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, load: Callable[[], np.ndarray]) -> Tensor:
        """Return the image of `key` on the device; `load` reads it if it is not cached."""
        if key in self._images:
            return self._images[key]
        image = torch.from_numpy(load()).to(self._device)
        if image.nbytes <= self._free_bytes:
            self._free_bytes -= image.nbytes
            self._images[key] = image
        return image

    def prepare(self, loaders: dict[Hashable, Callable[[], np.ndarray]]) -> None:
        """Read images in threads and upload them until the memory budget is used up.

        Args:
            loaders: by key, what reads each image.
        """
        pending = [(key, load) for key, load in loaders.items() if key not in self._images]
        batch = min(MAX_READERS, os.cpu_count() or 1)
        fits = self._free_bytes > 0
        with ThreadPoolExecutor(batch) as readers:
            while pending and fits:
                (keys, loads), pending = zip(*pending[:batch], strict=True), pending[batch:]
                for key, image in zip(keys, readers.map(lambda load: load(), loads), strict=True):
                    self.get(key, lambda image=image: image)
                    fits = fits and key in self._images
