"""What is rendered: Gaussians and cameras, from a trained model, from a scene generator, or made here."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gaussian_renderer import raster_settings  # also puts our packages on the path
from scene.cameras import Camera
from scene.formats.ply import load_ply
from scene.gaussian_model import GaussianModel
from scene.issues import IssueLog
from scene.readers.capture import open_photos
from utils.errors import UserError

import diff_gaussian_rasterization as ours  # isort: skip

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
PLY = SHARED / "scenes/redkitchen_3dgs/point_cloud/iteration_10000/point_cloud.ply"
SOURCE = SHARED / "scenes/redkitchen"
SCENE_GEN = SHARED / "bench/scene_gen.py"


@dataclass
class Workload:
    """Activated Gaussians and one camera."""

    means: Tensor  # [N, 3]
    opacities: Tensor  # [N, 1]
    scales: Tensor  # [N, 3]
    rotations: Tensor  # [N, 4]
    shs: Tensor  # [N, M, 3]
    camera: Camera
    sh_degree: int

    def geometry(self) -> dict[str, Tensor]:
        """Arguments of `prepare`."""
        return {
            "means3D": self.means,
            "opacities": self.opacities,
            "scales": self.scales,
            "rotations": self.rotations,
        }

    def every(self, count: int) -> dict[str, Tensor]:
        """Arguments of `prepare` for `count` Gaussians spread over all."""
        ids = torch.linspace(0, len(self.means) - 1, count).long().to(self.means.device)
        return {name: tensor[ids] for name, tensor in self.geometry().items()}

    def settings(self) -> ours.GaussianRasterizationSettings:
        """Settings with extra channels."""
        return raster_settings(self.camera, torch.zeros(3), self.sh_degree)._replace(include_feature=True)


def load_workload(ply: Path | None, source: Path | None) -> tuple[Workload, str]:
    """The Gaussians and a view of them, with a line that says what they are."""
    missing = [str(path) for path in (PLY, SOURCE) if not path.exists()]
    if missing and ply is None and source is None:
        model, camera = procedural_scene(100_000)
        note = f"procedural scene, because {' and '.join(missing)} is not there"
    else:
        ply, source = ply or PLY, source or SOURCE
        model = load_ply(ply)
        photos, _ = open_photos(source, "images", -1, IssueLog())
        camera, note = photos[0].camera, f"{ply}, view {photos[0].id}"
    tensors = (model.get_xyz, model.get_opacity, model.get_scaling, model.get_rotation, model.get_features)
    workload = Workload(*(t.detach().contiguous() for t in tensors), camera, model.active_sh_degree)
    return workload, note


def procedural_scene(n: int) -> tuple[GaussianModel, Camera]:
    """A floor with spheres on it, and a camera above."""
    g = torch.Generator().manual_seed(0)
    floor = torch.cat((torch.rand(n // 2, 2, generator=g) * 6 - 3, torch.zeros(n // 2, 1)), dim=1)
    which = torch.randint(0, 30, (n - n // 2,), generator=g)
    middles = torch.rand(30, 3, generator=g) * torch.tensor([4.0, 4.0, 0.3]) - torch.tensor([2.0, 2.0, 0.0])
    surface = torch.nn.functional.normalize(torch.randn(n - n // 2, 3, generator=g), dim=1)
    radii = 0.1 + 0.3 * torch.rand(30, 1, generator=g)
    model = GaussianModel(
        xyz=torch.cat((floor, middles[which] + radii[which] * surface)),
        features_dc=torch.randn(n, 1, 3, generator=g),
        features_rest=0.1 * torch.randn(n, 15, 3, generator=g),
        scaling=torch.randn(n, 3, generator=g) * 0.6 - 4.6,
        rotation=torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=1),
        opacity=torch.randn(n, 1, generator=g) * 2,
        active_sh_degree=3,
    )
    down = torch.tensor([[1.0, 0.0, 0.0], [0.0, -0.6, -0.8], [0.0, 0.8, -0.6]], dtype=torch.float64).numpy()
    return model, Camera(
        "procedural", down, torch.tensor([0.0, 0.0, 4.0]).double().numpy(), 550, 550, 322.5, 240.5, 645, 481
    )


class SceneGenerator:
    """A Python file with `make_scene(n, device=)` and `make_cam(theta=, device=)`, used where it lies.

    Args:
        path: the file; None for the environment variable SCENE_GEN, and without that ../shared/bench/scene_gen.py.

    Raises:
        UserError: if the file or one of its two functions is not there.
    """

    def __init__(self, path: Path | None):
        self.path = path or Path(os.environ.get("SCENE_GEN") or SCENE_GEN)
        spec = importlib.util.spec_from_file_location("scene_gen", self.path)
        if spec is None or not self.path.is_file():
            raise UserError(
                f"The generator of the benchmark scene, {self.path}, is not there. Name a Python file that has "
                "make_scene and make_cam with --scene_gen FILE or in the environment variable SCENE_GEN."
            )
        self._module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._module)
        for name in ("make_scene", "make_cam"):
            if not hasattr(self._module, name):
                raise UserError(f"{self.path} has no function {name}; expected make_scene and make_cam.")

    def model(self, n: int, device: torch.device) -> GaussianModel:
        """`n` Gaussians."""
        xyz, log_scales, rotations, logits, shs = self._module.make_scene(n, device=device)
        return GaussianModel(xyz, shs[:, :1], shs[:, 1:], log_scales, rotations, logits, active_sh_degree=3)

    def orbit(self, angles: Iterable[float]) -> list[Camera]:
        """The generator's views at these angles, in radians."""
        return [_camera(f"orbit/{a:.4f}", self._module.make_cam(theta=a, device="cpu")) for a in angles]

    def workload(self, n: int, device: torch.device) -> Workload:
        """`n` Gaussians and the generator's first view of them."""
        xyz, log_scales, rotations, logits, shs = self._module.make_scene(n, device=device)
        camera = _camera("orbit", self._module.make_cam(device="cpu"))
        return Workload(xyz, logits.sigmoid(), log_scales.exp(), rotations, shs, camera, sh_degree=3)


def evenly(count: int, first: float) -> list[float]:
    """`count` angles around the circle, in radians."""
    return [first + 2 * math.pi * i / count for i in range(count)]


def _camera(name: str, cam: Any) -> Camera:
    width, height = cam.image_width, cam.image_height
    pose = cam.W2C.double().numpy()  # [4, 4]
    return Camera(name, pose[:3, :3], pose[:3, 3], *(cam.fx, cam.fx, width / 2, height / 2), width=width, height=height)
