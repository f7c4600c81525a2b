"""Random Gaussians and cameras for the tests of the rasteriser."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from diff_gaussian_rasterization import GaussianRasterizationSettings, GaussianRasterizer, reference
from scene.cameras import Camera

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]  # of the fixture `device`


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch and the kernels on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def looking_down_z(width: int, height: int, focal: float | None = None) -> Camera:
    """A camera in the origin with a field of view of about 60 degrees."""
    focal = focal or 0.85 * max(width, height)
    return Camera("", np.eye(3), np.zeros(3), focal, focal, width / 2, height / 2, width, height)


def cropped(camera: Camera, left: int, top: int, width: int, height: int) -> Camera:
    """The camera that sees a pixel rectangle of the picture, off-centre principal point included."""
    return replace(camera, cx=camera.cx - left, cy=camera.cy - top, width=width, height=height)


def view_settings(camera: Camera, sh_degree: int = 0, **changes) -> GaussianRasterizationSettings:
    """Rasteriser settings of a camera; `changes` replace fields."""
    view, full, center = camera.matrices()
    tan_x, tan_y = camera.tan_half_fov
    settings = GaussianRasterizationSettings(
        image_height=camera.height,
        image_width=camera.width,
        tanfovx=tan_x,
        tanfovy=tan_y,
        bg=torch.tensor([0.1, 0.6, 0.3]),
        scale_modifier=1.0,
        viewmatrix=view,
        projmatrix=full,
        sh_degree=sh_degree,
        campos=center,
    )
    return settings._replace(**changes)


@dataclass
class Splats:
    """Inputs of the rasteriser, by argument name."""

    means3D: Tensor  # noqa: N815, the argument's name
    opacities: Tensor
    scales: Tensor
    rotations: Tensor
    shs: Tensor
    language_feature_precomp: Tensor

    def to(self, device: torch.device | str) -> Splats:
        """Copy to another device."""
        return Splats(**{name: t.to(device) for name, t in vars(self).items()})

    def geometry(self) -> dict[str, Tensor]:
        """Arguments of `prepare`."""
        names = ("means3D", "opacities", "scales", "rotations")
        return {name: getattr(self, name) for name in names}

    def leaves(self, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> dict[str, Tensor]:
        """Arguments of the full rasteriser as leaves that require gradients."""
        tensors = {**vars(self), "means2D": torch.zeros_like(self.means3D)}
        return {name: t.to(device, dtype, copy=True).requires_grad_() for name, t in tensors.items()}

    def precomputed_leaves(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> dict[str, Tensor]:
        """`leaves` of the same picture with colors_precomp and cov3D_precomp; the spherical harmonics have degree 0."""
        tensors = {name: t.detach() for name, t in self.leaves(torch.float64).items()}
        tensors["cov3D_precomp"] = reference.covariances(tensors.pop("scales"), tensors.pop("rotations"))
        tensors["colors_precomp"] = torch.relu(tensors.pop("shs")[:, 0] / math.sqrt(4 * math.pi) + 0.5)
        return {name: t.to(device, dtype, copy=True).requires_grad_() for name, t in tensors.items()}


def random_splats(seed: int, n: int, channels: int = 1, sh_degree: int = 0, size: float = 0.1) -> Splats:
    """Random Gaussians in front of `looking_down_z`, some outside the picture, some behind the camera."""
    g = torch.Generator().manual_seed(seed)
    depths = torch.rand(n, 1, generator=g) * 5 - 0.5
    sides = (torch.rand(n, 2, generator=g) * 2 - 1) * depths.abs().clamp_min(0.3) * 1.2
    return Splats(
        means3D=torch.cat((sides, depths), dim=1),
        opacities=torch.rand(n, 1, generator=g) ** 0.5,
        scales=size * torch.exp(0.7 * torch.randn(n, 3, generator=g)),
        rotations=torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=1),
        shs=0.5 * torch.randn(n, (sh_degree + 1) ** 2, 3, generator=g),
        language_feature_precomp=torch.randn(n, channels, generator=g),
    )


# Degenerate scenes, as changes of `random_splats`.
DEGENERATE = {
    "no Gaussians": lambda s: {name: t[:0] for name, t in vars(s).items()},
    "one Gaussian": lambda s: {name: t[:1] for name, t in vars(s).items()},
    "nothing visible": lambda s: {"means3D": s.means3D - torch.tensor([0.0, 0.0, 20.0])},
    "zero scale": lambda s: {"scales": torch.zeros_like(s.scales)},
    "opacity 0": lambda s: {"opacities": torch.zeros_like(s.opacities)},
    "opacity 1": lambda s: {"opacities": torch.ones_like(s.opacities)},
    "opacity just under and over the floor": lambda s: {
        "opacities": torch.where(s.opacities > 0.7, 0.0039, 0.00395).float()
    },
    "one depth": lambda s: {"means3D": torch.cat((s.means3D[:, :2], torch.full_like(s.means3D[:, 2:], 2.0)), 1)},
    "one Gaussian covers all": lambda s: {
        **{name: t[:1] for name, t in vars(s).items()},
        "means3D": torch.tensor([[0.0, 0.0, 2.0]]),
        "scales": s.scales[:1] * 1000,
    },
    "huge": lambda s: {"scales": s.scales * 1000},
    "unnormalised rotations": lambda s: {"rotations": s.rotations * 1.7},
}


def threshold_band(splats: Splats, settings: GaussianRasterizationSettings, monkeypatch) -> Tensor:
    """[H, W] bool, on the CPU: pixels whose value depends on rounding at the alpha floor or the transmittance stop.

    They change when a threshold moves by a relative 1e-4.
    """
    inputs = {name: t.detach() for name, t in splats.leaves(torch.float64, "cpu").items()}

    def render(factor: float) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(reference, "ALPHA_FLOOR", reference.ALPHA_FLOOR * factor)
            patch.setattr(reference, "TRANSMITTANCE_STOP", reference.TRANSMITTANCE_STOP * factor)
            color, language, _ = GaussianRasterizer(settings, backend="reference")(**inputs)
        return torch.cat((color, language))

    return ((render(1 + 1e-4) - render(1 - 1e-4)).abs() > 1e-9).any(0)


def relative_l2(found: Tensor, expected: Tensor) -> float:
    """Relative L2 distance, on the CPU in double precision; absolute where nothing is expected."""
    found, expected = (t.detach().to("cpu", torch.float64) for t in (found, expected))
    return ((found - expected).norm() / expected.norm().clamp_min(1e-6)).item()


def quaternion_product(a: Tensor, b: Tensor) -> Tensor:
    """a b for quaternions [..., 4] (w, x, y, z)."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        (
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ),
        dim=-1,
    )


def axis_angle(axis: list[float], angle: float) -> Tensor:
    """Unit quaternion [4], float64, of a rotation about an axis."""
    unit = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    return torch.cat((torch.tensor([math.cos(angle / 2)], dtype=torch.float64), math.sin(angle / 2) * unit))
