"""Gaussians and cameras of a scene generator, and the referring workload on them.

8 views evenly around the generator's orbit; in each the same 20 sentences of 16 words, for 5 objects. A word is 1,024
random numbers, as wide as a token of BERT-large. The mask of an object is the outline of a ball around a Gaussian in
the middle of the scene, whatever stands in front. Features are random: with zeros all Gaussians would be alike.
"""

from __future__ import annotations

import copy
import gc
import importlib.util
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from arguments import ReferringParams
from benchmarks.measure import SHARED, peak_bytes
from gaussian_renderer import ScoreRenderer
from referring.field import ReferringField
from referring.kernels.backend import Backend, choose_backend
from referring.kernels.plain import PlainField
from scene.cameras import Camera
from scene.dataset import Referral, Scene
from scene.gaussian_model import GaussianModel
from train import GRAPH_BYTES, GRAPH_SHARE
from training.referring import ReferringStage
from utils.device import memory_budget, plan_bytes
from utils.errors import UserError

OURS, PLAIN = "ours", "plain PyTorch"
VIEWS, OBJECTS, SENTENCES, WORDS, TEXT_DIM = 8, 5, 20, 16, 1024
FIRST_ANGLE = 0.3  # of the orbit, radians
BALL = 0.3  # radius, in units of the generator's scene, which is 10 wide
FEATURE_SPREAD = 0.1  # standard deviation of the features
PREPARED = 5  # steps after which everything is compiled, recorded and allocated
EARLY, LATE = 1, 45_000  # steps at which the share of top Gaussians is 0.1, and at its floor 0.005


class SceneGenerator:
    """A Python file with two functions.

    `make_scene(n, device=)` returns centres [N, 3], log-scales [N, 3], quaternions [N, 4], opacity logits [N, 1] and
    SH coefficients [N, 16, 3]; `make_cam(theta=, device=)` an object with image_width, image_height, fx, W2C [4, 4].
    """

    def __init__(self, path: Path | None):
        self.path = path or Path(os.environ.get("SCENE_GEN") or SHARED / "bench/scene_gen.py")
        spec = importlib.util.spec_from_file_location("scene_gen", self.path)
        if spec is None or not self.path.is_file():
            raise UserError(
                f"The generator of the benchmark scene, {self.path}, does not exist. Name a Python file that has "
                "make_scene and make_cam with --scene_gen FILE or in the environment variable SCENE_GEN."
            )
        self._module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._module)
        if missing := [name for name in ("make_scene", "make_cam") if not hasattr(self._module, name)]:
            raise UserError(f"{self.path} has no function {missing[0]}; expected make_scene and make_cam.")

    def model(self, n: int, device: torch.device) -> GaussianModel:
        """Make `n` Gaussians of SH degree 3."""
        xyz, log_scales, rotations, logits, shs = self._module.make_scene(n, device=device)
        return GaussianModel(xyz, shs[:, :1], shs[:, 1:], log_scales, rotations, logits, active_sh_degree=3)

    def orbit(self, angles: Iterable[float]) -> list[Camera]:
        """Cameras of the generator at these angles, in radians."""
        cameras = []
        for angle in angles:
            cam = self._module.make_cam(theta=angle, device="cpu")
            pose, width, height = cam.W2C.double().numpy(), cam.image_width, cam.image_height
            intrinsics = cam.fx, cam.fx, width / 2, height / 2, width, height
            cameras.append(Camera(f"orbit/{angle:.4f}", pose[:3, :3], pose[:3, 3], *intrinsics))
        return cameras


@dataclass(frozen=True)
class OrbitView:
    """The part of a `scene.dataset.View` that training uses, without files; masks are bool [H, W]."""

    id: str
    camera: Camera
    referrals: tuple[Referral, ...]
    masks: dict[Path, np.ndarray]

    def mask(self, referral: Referral) -> np.ndarray:
        return self.masks[referral.mask_path]


class ReferringWorkload:
    """The workload at `n` Gaussians, on the CPU: the frozen model, views, and tokens [WORDS, TEXT_DIM] by sentence."""

    def __init__(self, generator: SceneGenerator, n: int):
        self.gaussians = generator.model(n, torch.device("cpu"))
        self.cameras = generator.orbit(FIRST_ANGLE + 2 * math.pi * i / VIEWS for i in range(VIEWS))
        random = torch.Generator().manual_seed(0)
        self.tokens = {f"sentence {i}": torch.randn(WORDS, TEXT_DIM, generator=random) for i in range(SENTENCES)}
        xyz = self.gaussians.xyz
        distances = (xyz - xyz.median(dim=0).values).norm(dim=1)
        inner = distances.argsort()[: max(1, len(xyz) // 10)]  # all views see these
        centres = xyz[inner[torch.randint(len(inner), (OBJECTS,), generator=random)]].double().numpy()  # [OBJECTS, 3]
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


def outline(camera: Camera, centre: np.ndarray, radius: float) -> np.ndarray:
    """Pixels whose rays meet a ball in front of the camera, [H, W] bool."""
    x = (np.arange(camera.width) + 0.5 - camera.cx) / camera.fx
    y = ((np.arange(camera.height) + 0.5 - camera.cy) / camera.fy)[:, None]
    middle = camera.rotation @ centre + camera.translation
    along = (middle[0] * x + middle[1] * y + middle[2]) / np.sqrt(x**2 + y**2 + 1)  # [H, W], to where a ray is nearest
    return (along > 0) & (middle @ middle - along**2 < radius**2)


def start(
    work: ReferringWorkload, sentences_per_step: str, backend: Backend, device: torch.device
) -> tuple[ReferringStage, int | None]:
    """Start a training as train.py has it; also return its peak memory with the plans of all views, None on a CPU."""
    stages: list[ReferringStage] = []

    def make() -> None:
        gaussians = work.gaussians.to(device)
        renderer = ScoreRenderer(gaussians, plan_bytes(None, device))
        field = with_backend(random_field(len(gaussians)).to(device), backend)
        params = ReferringParams(sentences_per_step=sentences_per_step)
        parts = work.scene, gaussians, field, work.tokens, params, renderer
        stages.append(ReferringStage(Path(), *parts, seed=0, rgb_iteration=0))
        for camera in work.cameras:
            renderer.plan(camera)
        for _ in range(PREPARED):
            stages[0].step(EARLY)

    if device.type == "cpu":
        make()
        return stages[0], None
    gc.collect()
    torch.cuda.empty_cache()
    peak = peak_bytes(make, device)
    return stages[0], peak


def random_field(n: int) -> ReferringField:
    """A field of `n` Gaussians whose features are not zero, the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        field = ReferringField(n, TEXT_DIM)
        torch.nn.init.normal_(field.language_feature, std=FEATURE_SPREAD)
    return field


def choose_backends(device: torch.device, precision: str) -> dict[str, Backend]:
    """The backend that train.py takes on this device, and plain PyTorch, which on a CPU is the same."""
    graph_bytes = memory_budget(device, GRAPH_SHARE, GRAPH_BYTES)
    backends = {OURS: choose_backend(device, precision, graph_bytes)}
    return backends if device.type == "cpu" else backends | {PLAIN: PlainField(graph_bytes)}


def with_backend(field: ReferringField, backend: Backend) -> ReferringField:
    """The same field, its parameters shared, computed by another backend."""
    twin = copy.copy(field)
    twin.backend = backend
    return twin
