"""Two balls on a table as Gaussians, seen from a circle of cameras: a scene whose masks are known exactly."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from gaussian_renderer import ScoreRenderer
from scene.cameras import Camera
from scene.formats.ply import save_ply
from scene.gaussian_model import GaussianModel
from scene.readers.colmap import ColmapCamera, ColmapImage, ColmapModel, write_model
from tests.rigs.tiny_scene import entry, picture, write_json, write_picture

WIDTH, HEIGHT, FOCAL = 80, 60, 70.0
NAMES = ("ball", "cube")  # categories; both are balls, as it happens
RADIUS = 0.5


def looking_at_middle(name: str, angle: float) -> Camera:
    """A camera on a circle of radius 4, a little above the balls; y points down."""
    centre = np.array([4 * np.sin(angle), -1.5, -4 * np.cos(angle)])
    forward = -centre / np.linalg.norm(centre)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return Camera(name, rotation, -rotation @ centre, FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT)


def circle(count: int, turn: float = 2 * np.pi) -> list[Camera]:
    """Cameras on a part of the circle."""
    return [looking_at_middle(f"frame_{i:05d}.png", turn * i / count) for i in range(count)]


def balls() -> tuple[GaussianModel, Tensor]:
    """The model, and whether each Gaussian belongs to the first or second ball, [N, 2] float."""
    generator = torch.Generator().manual_seed(0)
    points, owner = [], []
    for number, centre in enumerate(([-0.6, 0.0, 0.0], [0.6, 0.0, 0.0])):
        directions = torch.nn.functional.normalize(torch.randn(700, 3, generator=generator), dim=1)
        points.append(RADIUS * directions + torch.tensor(centre))
        owner += [number] * 700
    table = torch.rand(1500, 3, generator=generator) * torch.tensor([4.0, 0, 4.0]) + torch.tensor([-2, RADIUS, -2])
    points.append(table)
    owner += [2] * len(table)
    xyz = torch.cat(points)
    count = len(xyz)
    rotation = torch.zeros(count, 4)
    rotation[:, 0] = 1
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [0, 0, 0]])[torch.tensor(owner)]
    model = GaussianModel(
        xyz=xyz,
        features_dc=colours[:, None],
        features_rest=torch.zeros(count, 0, 3),
        scaling=torch.full((count, 3), 0.05).log(),
        rotation=rotation,
        opacity=torch.full((count, 1), 3.0),
        active_sh_degree=0,
    )
    return model, torch.nn.functional.one_hot(torch.tensor(owner), 3)[:, :2].float()


def true_masks(model: GaussianModel, owner: Tensor, cameras: list[Camera]) -> Tensor:
    """Masks [V, 2, H, W] bool of both balls."""
    renderer = ScoreRenderer(model, 1 << 30)
    return torch.stack([renderer.render_scores(camera, owner) > 0.5 for camera in cameras])


def write_ball_scene(
    folder: Path, masks: Tensor, cameras: list[Camera], missing: frozenset[tuple[int, int]] = frozenset()
) -> Path:
    """A Ref-LERF scene with the Gaussians in model.ply, and one more view, for testing.

    Args:
        folder: to write into; the masks go to the folder `given` in it.
        masks: [V, 2, H, W] bool.
        cameras: of the V training views.
        missing: (view, ball) of masks without a file.
    """
    model, owner = balls()
    tested = looking_at_middle("tested.png", 0.4)
    for name, mask in zip(NAMES, true_masks(model, owner, [tested])[0], strict=True):
        write_png(folder / f"gt_mask/tested/{name}.png", mask)
    write_json(folder / "json/test_json/tested.json", *(entry("tested", name, [f"some {name}"]) for name in NAMES))
    write_picture(folder / "images/tested.png", picture(99, WIDTH, HEIGHT))
    camera = ColmapCamera(1, "PINHOLE", WIDTH, HEIGHT, np.array([FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2]))
    images = [
        ColmapImage(i + 1, c.name, quaternion(c.rotation), c.translation, 1) for i, c in enumerate([*cameras, tested])
    ]
    xyz = model.xyz[:20].double().numpy()
    write_model(folder / "sparse/0", ColmapModel({1: camera}, images, xyz, np.full((20, 3), 200, np.uint8)))
    save_ply(folder / "model.ply", model)
    for row, of_view in enumerate(masks):
        frame = cameras[row].name[:-4]
        write_picture(folder / "images" / cameras[row].name, picture(row, WIDTH, HEIGHT))
        write_json(
            folder / f"json/train_json/{frame}.json",
            *(entry(frame, name, [f"the {name}", f"a round {name}"]) for name in NAMES),
        )
        for number, mask in enumerate(of_view):
            if (row, number) not in missing:
                write_png(folder / f"given/{frame}/{NAMES[number]}.png", mask)
    return folder


def write_png(path: Path, mask: Tensor) -> None:
    """Write a mask [H, W] bool, 255 inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), mask.numpy().astype(np.uint8) * 255)


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """w x y z of a rotation matrix."""
    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    return np.array([w, x, y, z])
