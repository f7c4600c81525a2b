"""Images on the training device: photos, their masks and colour transforms, the loss, and scores of the test views."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arguments import RGBParams
from diff_gaussian_rasterization import step_kernels
from gaussian_renderer import render
from scene.dataset import View
from scene.gaussian_model import GaussianModel
from training.gaussian_optimizer import log_linear
from utils.colour_metrics import ColourScores, colour_scores, ssim
from utils.device import memory_budget
from utils.files import write_json

GPU_SHARE = 0.1  # of the free memory of a GPU, for images
MAX_READERS = 16  # threads, each with an image in memory
BETAS, EPS = (0.9, 0.999), 1e-8  # Adam's, for exposures


class DeviceImages:
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
        """Read images in threads, with a loader for each key, and upload them until the memory budget is used up."""
        pending = [(key, load) for key, load in loaders.items() if key not in self._images]
        batch = min(MAX_READERS, os.cpu_count() or 1)
        fits = self._free_bytes > 0
        with ThreadPoolExecutor(batch) as readers:
            while pending and fits:
                (keys, loads), pending = zip(*pending[:batch], strict=True), pending[batch:]
                for key, image in zip(keys, readers.map(lambda load: load(), loads), strict=True):
                    self.get(key, partial(np.asarray, image))
                    fits = fits and key in self._images


class Photos:
    """Photos of views as tensors, and masks of the pixels that do not count; on a GPU their bytes stay there."""

    def __init__(self, device: torch.device, ignored: Mapping[str, Path]):
        self._cache, self._ignored = DeviceImages(device), ignored

    def bytes(self, view: View) -> Tensor:
        """Return the photo as uint8, [3, H, W]."""
        return self._cache.get(view.id, lambda: np.ascontiguousarray(view.image().transpose(2, 0, 1)))

    def photo(self, view: View) -> Tensor:
        """Return the photo as float32 in 0..1, [3, H, W]."""
        return self.bytes(view).float() / 255

    def ignored(self, view: View) -> Tensor | None:
        """Return the pixels that do not count, bool [H, W], or None if all count."""
        path = self._ignored.get(view.id)
        return None if path is None else self._cache.get((view.id, "ignored"), lambda: view.mask_at(path))


def photo_loss(
    image: Tensor, photo: Tensor, ignored: Tensor | None, lambda_dssim: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute (1 - lambda) L1 + lambda (1 - SSIM), Eq. 7 of Kerbl et al. 2023; differentiable in `image`.

    Args:
        image: rendering, [3, H, W].
        photo: uint8, [3, H, W].
        ignored: bool [H, W], pixels that do not count and are set to black in both; or None.
        lambda_dssim: lambda, 0..1.

    Returns:
        the loss, and detached L1 and SSIM.
    """
    if step_kernels.available(image.device):
        return step_kernels.photo_loss(image, photo, ignored, lambda_dssim)
    target = photo.to(image.dtype) / 255
    if ignored is not None:
        image, target = image.masked_fill(ignored, 0), target.masked_fill(ignored, 0)
    l1 = (image - target).abs().mean()
    similarity = ssim(image, target)
    return (1 - lambda_dssim) * l1 + lambda_dssim * (1 - similarity), l1.detach(), similarity.detach()


class Exposures:
    """A 3x4 matrix for each view, initially the identity, with its own Adam state.

    A shared Adam would keep moving a transform after its view was drawn. The mean of the transforms is kept at the
    identity; otherwise they could drift together with the colours of the Gaussians, and views without a transform
    would be rendered in wrong colours.

    Attributes:
        matrices: [V, 3, 4], by training view.
    """

    def __init__(self, views: list[View], params: RGBParams, device: torch.device):
        self._params, self._rows = params, {view.id: row for row, view in enumerate(views)}
        self._identity = torch.eye(3, 4, device=device)
        self.matrices = self._identity.repeat(len(views), 1, 1)
        self._first, self._second = torch.zeros_like(self.matrices), torch.zeros_like(self.matrices)  # Adam's moments
        self._steps = [0] * len(views)
        self._row, self._matrix = 0, self._identity

    def apply(self, view: View, image: Tensor) -> Tensor:
        """Apply the transform of a view to a rendering [3, H, W]."""
        self._row = self._rows[view.id]
        self._matrix = self.matrices[self._row].clone().requires_grad_()
        return (self._matrix[:, :3] @ image.flatten(1) + self._matrix[:, 3:]).view_as(image)

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Take an Adam step for the view of the last `apply`, after backward."""
        params, row = self._params, self._row
        rate = log_linear(params.exposure_lr_init, params.exposure_lr_final, iteration, params.rgb_iterations)
        gradient, first, second = self._matrix.grad, self._first[row], self._second[row]
        assert gradient is not None
        self._steps[row] += 1
        first.lerp_(gradient, 1 - BETAS[0])
        second.lerp_(gradient * gradient, 1 - BETAS[1])
        corrections = [1 - beta ** self._steps[row] for beta in BETAS]
        step = first / ((second / corrections[1]).sqrt() + EPS)
        self.matrices[row] -= step * (rate / corrections[0])
        self.matrices -= self.matrices.mean(dim=0) - self._identity

    def save(self, path: Path) -> None:
        """Write the matrices as JSON, by view id."""
        values = self.matrices.tolist()
        write_json(path, {view: values[row] for view, row in self._rows.items()})

    def state(self) -> dict[str, Any]:
        moments = {"first": self._first, "second": self._second}
        return {"matrices": self.matrices, **moments, "steps": list(self._steps)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.matrices, self._first, self._second = (
            state[name].to(self.matrices.device) for name in ("matrices", "first", "second")
        )
        self._steps = list(state["steps"])


@torch.no_grad()
def score_views(
    views: Iterable[View], gaussians: GaussianModel, background: Tensor, photos: Photos
) -> dict[str, ColourScores | None]:
    """Return PSNR and SSIM by view id; None where every pixel is ignored."""
    scores = {}
    for view in views:
        image = render(view.camera, gaussians, background).image
        scores[view.id] = colour_scores(image, photos.photo(view), photos.ignored(view))
    return scores


def mean_scores(scores: dict[str, ColourScores | None]) -> dict[str, float]:
    """Return the mean PSNR in dB and SSIM over the views with scores; empty if there are none."""
    scored = [score for score in scores.values() if score is not None]
    if not scored:
        return {}
    names = ColourScores._fields
    return {name: sum(getattr(score, name) for score in scored) / len(scored) for name in names}
