"""The 2D filter of Mip-Splatting: opacity factors against their definition, and the effect on renderings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gaussian_renderer import ScoreRenderer, render
from gaussian_renderer.antialiasing import opacity_compensation
from scene.cameras import Camera
from scene.gaussian_model import GaussianModel
from tests.rigs.splat_scenes import looking_down_z


def model(count: int = 60, size: float = 0.02) -> GaussianModel:
    """Make Gaussians 1 to 4 units in front of a camera in the origin, some outside its image."""
    generator = torch.Generator().manual_seed(0)
    xyz = torch.rand(count, 3, generator=generator) * torch.tensor([4.0, 3.0, 3.0]) + torch.tensor([-2.0, -1.5, 1.0])
    return GaussianModel(
        xyz=xyz,
        features_dc=torch.randn(count, 1, 3, generator=generator),
        features_rest=torch.zeros(count, 0, 3),
        scaling=math.log(size) + 0.7 * torch.randn(count, 3, generator=generator),
        rotation=torch.randn(count, 4, generator=generator),
        opacity=torch.randn(count, 1, generator=generator),
        active_sh_degree=0,
    )


def turned_camera() -> Camera:
    """Make a camera with an off-centre principal point, two focal lengths and a pose."""
    cos, sin = math.cos(0.2), math.sin(0.2)
    rotation = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    return Camera("turned", rotation, np.array([0.1, -0.2, 0.3]), 90.0, 110.0, 40.0, 55.0, 96, 96)


def expected_factors(camera: Camera, gaussians: GaussianModel) -> np.ndarray:
    """Compute sqrt(det(cov) / det(cov + 0.3 I)) in NumPy from covariance and Jacobian; [N]."""
    factors = []
    for xyz, scale, (w, x, y, z) in zip(
        gaussians.xyz.double().numpy(),
        gaussians.get_scaling.double().numpy(),
        gaussians.get_rotation.double().numpy(),
        strict=True,
    ):
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        rotation = np.eye(3) + 2 * w * cross + 2 * cross @ cross  # Rodrigues
        covariance = rotation @ np.diag(scale**2) @ rotation.T
        a, b, depth = camera.rotation @ xyz + camera.translation
        middle = ((camera.width / 2 - camera.cx) / camera.fx, (camera.height / 2 - camera.cy) / camera.fy)
        reach = [1.3 * tan for tan in camera.tan_half_fov]
        u, v = (np.clip(s, m - r, m + r) for s, m, r in zip((a / depth, b / depth), middle, reach, strict=True))
        jacobian = np.array([[camera.fx, 0, -camera.fx * u], [0, camera.fy, -camera.fy * v]]) / depth
        flat = jacobian @ camera.rotation @ covariance @ camera.rotation.T @ jacobian.T
        factors.append(math.sqrt(np.linalg.det(flat) / np.linalg.det(flat + 0.3 * np.eye(2))))
    return np.array(factors)


@pytest.mark.parametrize("camera", [looking_down_z(64, 48), turned_camera()], ids=["plain", "turned"])
def test_compensation_matches_its_definition(camera: Camera) -> None:
    gaussians = model()
    found = opacity_compensation(camera, gaussians.xyz, gaussians.get_scaling, gaussians.get_rotation)
    expected = expected_factors(camera, gaussians)
    assert expected.min() < 0.2 < 0.8 < expected.max()  # both small and large Gaussians
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-4)


def test_gradients_match_finite_differences() -> None:
    gaussians, camera = model(6), turned_camera()
    inputs = [t.double().requires_grad_() for t in (gaussians.xyz, gaussians.get_scaling, gaussians.get_rotation)]
    assert torch.autograd.gradcheck(lambda *tensors: opacity_compensation(camera, *tensors), inputs)


def test_gaussians_of_size_zero_have_finite_gradients() -> None:
    gaussians = model(3)
    scales = torch.zeros(3, 3, requires_grad=True)
    factors = opacity_compensation(looking_down_z(64, 48), gaussians.xyz, scales, gaussians.get_rotation)
    factors.sum().backward()
    assert not factors.any()
    assert torch.isfinite(scales.grad).all()


def test_distant_points_become_fainter() -> None:
    """At twice the distance a point has a quarter of the light; without the filter it stays as bright."""

    def light(depth: float, antialiasing: bool) -> float:
        point = model(1)
        point.xyz = torch.tensor([[0.0, 0.0, depth]])
        point.scaling, point.opacity = torch.full((1, 3), math.log(0.005)), torch.full((1, 1), 6.0)
        point.features_dc = torch.full((1, 1, 3), 1.0)
        point.antialiasing = antialiasing
        camera = Camera("", np.eye(3), np.zeros(3), 50.0, 50.0, 16.5, 16.5, 33, 33)
        return render(camera, point, torch.zeros(3)).image.sum().item()

    assert light(2, True) / light(1, True) == pytest.approx(0.25, rel=0.15)
    assert light(2, False) / light(1, False) > 0.8


def test_scores_are_rendered_with_the_same_opacities() -> None:
    """A constant score of 1, the colour 1 over black, and the coverage are equal."""
    gaussians, camera = model(200, size=0.01), looking_down_z(64, 48)
    gaussians.features_dc[:] = 0.5 / 0.28209479177387814  # colour 1
    pictures = {}
    for antialiasing in (False, True):
        gaussians.antialiasing = antialiasing
        renderer, ones = ScoreRenderer(gaussians, 10**9), torch.ones(200, 1)
        colour = render(camera, gaussians, torch.zeros(3)).image[0]
        for picture in (
            renderer.render_scores(camera, ones, once=True)[0],
            renderer.render_scores(camera, ones)[0],
            1 - renderer.plan(camera).transmittance(),
        ):
            torch.testing.assert_close(picture, colour, atol=1e-5, rtol=1e-4)
        pictures[antialiasing] = colour
    assert pictures[True].sum() < 0.8 * pictures[False].sum()
