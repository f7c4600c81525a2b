"""The referring workload, on the Gaussians of a scene generator, and trainings of it.

8 views evenly around the generator's orbit; in each the same 20 sentences of 16 words, for 5 objects. A word is a token
of 1,024 random numbers, as wide as those of BERT-large. The mask of an object is the outline of a ball around one of
the Gaussians in the middle of the scene, whatever stands in front of it. Features begin as random numbers, because with
zeros, as training begins, all Gaussians are alike.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from arguments import ReferringParams
from benchmarks.referring_report import OURS, PLAIN
from benchmarks.workload import SceneGenerator, evenly
from gaussian_renderer import ScoreRenderer
from referring.field import ReferringField
from referring.kernels.backend import Backend, choose_backend
from referring.kernels.plain import PlainField
from scene.cameras import Camera
from scene.dataset import Referral, Scene
from train import GRAPH_BYTES, GRAPH_SHARE
from training.referring import ReferringStage
from utils.device import memory_budget, plan_bytes

VIEWS, OBJECTS, SENTENCES, WORDS, TEXT_DIM = 8, 5, 20, 16, 1024
FIRST_ANGLE = 0.3  # of the orbit, radians
BALL = 0.3  # radius, in units of the generator's scene, which is 10 wide
FEATURE_SPREAD = 0.1  # standard deviation of the features
PREPARED = 5  # steps after which everything is compiled, recorded and allocated
EARLY, LATE = 1, 45_000  # steps at which the share of top Gaussians is 0.1, and at its floor 0.005


@dataclass(frozen=True)
class OrbitView:
    """What training uses of a `scene.dataset.View`, without files."""

    id: str
    camera: Camera
    referrals: tuple[Referral, ...]
    masks: dict[Path, np.ndarray]

    def mask(self, referral: Referral) -> np.ndarray:
        """[H, W] bool."""
        return self.masks[referral.mask_path]


class ReferringWork:
    """The workload at `n` Gaussians, on the CPU.

    Attributes:
        gaussians: the frozen model.
        cameras: of the views.
        tokens: [WORDS, TEXT_DIM] of each sentence.
        scene: the views, all for training.
    """

    def __init__(self, generator: SceneGenerator, n: int):
        self.gaussians = generator.model(n, torch.device("cpu"))
        self.cameras = generator.orbit(evenly(VIEWS, FIRST_ANGLE))
        random = torch.Generator().manual_seed(0)
        self.tokens = {f"sentence {i}": torch.randn(WORDS, TEXT_DIM, generator=random) for i in range(SENTENCES)}
        centres = _centres(self.gaussians.xyz, random)
        files = [Path(f"object_{i}.png") for i in range(OBJECTS)]
        referrals = tuple(
            Referral(sentence, f"object {i % OBJECTS}", sentence, files[i % OBJECTS])
            for i, sentence in enumerate(self.tokens)
        )
        views = []
        for camera in self.cameras:
            masks = {file: outline(camera, centre, BALL) for file, centre in zip(files, centres, strict=True)}
            views.append(OrbitView(camera.name, camera, referrals, masks))
        self.scene = Scene("orbit", generator.path, views, [], "no view is held out", None)


def _centres(xyz: Tensor, random: torch.Generator) -> np.ndarray:
    """OBJECTS of the tenth of the points nearest to their median, which all views see, [OBJECTS, 3]."""
    distances = (xyz - xyz.median(dim=0).values).norm(dim=1)
    inner = distances.argsort()[: max(1, len(xyz) // 10)]
    return xyz[inner[torch.randint(len(inner), (OBJECTS,), generator=random)]].double().numpy()


def outline(camera: Camera, centre: np.ndarray, radius: float) -> np.ndarray:
    """Pixels whose rays meet a ball in front of the camera, [H, W] bool."""
    x = (np.arange(camera.width) + 0.5 - camera.cx) / camera.fx
    y = ((np.arange(camera.height) + 0.5 - camera.cy) / camera.fy)[:, None]
    middle = camera.rotation @ centre + camera.translation
    along = (middle[0] * x + middle[1] * y + middle[2]) / np.sqrt(x**2 + y**2 + 1)  # [H, W], to where a ray is nearest
    return (along > 0) & (middle @ middle - along**2 < radius**2)


class Trainer:
    """A training as train.py has it, with all that it holds on a device.

    Args:
        work: the workload.
        sentences_per_step: as the flag.
        backend: of the field.

    Attributes:
        gaussians, renderer, field: what it trains with, and what it trains.
    """

    def __init__(self, work: ReferringWork, sentences_per_step: str, backend: Backend, device: torch.device):
        self.gaussians = work.gaussians.to(device)
        self.renderer = ScoreRenderer(self.gaussians, plan_bytes(None, device))
        self.field = random_field(len(self.gaussians)).to(device)
        self.field.backend = backend
        params = ReferringParams(sentences_per_step=sentences_per_step)
        self._stage = ReferringStage(
            Path(), work.scene, self.gaussians, self.field, work.tokens, params, self.renderer, seed=0, rgb_iteration=0
        )
        for camera in work.cameras:
            self.renderer.plan(camera)

    def step(self, iteration: int = EARLY) -> dict[str, Tensor | float]:
        """Take one step; the number decides on the share of top Gaussians."""
        return self._stage.step(iteration)


def random_field(n: int) -> ReferringField:
    """A field of `n` Gaussians whose features are not zero, the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        field = ReferringField(n, TEXT_DIM)
        torch.nn.init.normal_(field.language_feature, std=FEATURE_SPREAD)
    return field


def backends(device: torch.device, precision: str) -> dict[str, Backend]:
    """Who computes the field: what train.py takes on this device, and plain PyTorch, which on a CPU is the same."""
    graph_bytes = memory_budget(device, GRAPH_SHARE, GRAPH_BYTES)
    found = {OURS: choose_backend(device, precision, graph_bytes)}
    return found if device.type == "cpu" else found | {PLAIN: PlainField(graph_bytes)}


def with_backend(field: ReferringField, backend: Backend) -> ReferringField:
    """The same field, its parameters shared, computed by another backend."""
    twin = copy.copy(field)
    twin.backend = backend
    return twin


@dataclass
class Memory:
    """Bytes of a training: the most that PyTorch's allocator handed out."""

    peak: int


def started(make: Callable[[], Trainer], device: torch.device) -> tuple[Trainer, Memory | None]:
    """A training after its first steps, and its memory with all its plans; None on a CPU."""
    if device.type == "cpu":
        return _stepped(make()), None
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    trainer = _stepped(make())
    torch.cuda.synchronize(device)
    return trainer, Memory(torch.cuda.max_memory_allocated(device) - held)


def _stepped(trainer: Trainer) -> Trainer:
    for _ in range(PREPARED):
        trainer.step()
    return trainer
