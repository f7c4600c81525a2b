"""Properties that a rasteriser of Gaussians has whatever the scene."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diff_gaussian_rasterization import GaussianRasterizer, abi, constants, prepare, rasterize_scores, reference
from scene.cameras import Camera
from tests.rigs.splat_scenes import (
    Splats,
    axis_angle,
    cropped,
    looking_down_z,
    quaternion_product,
    random_splats,
    view_settings,
)

pytestmark = pytest.mark.usefixtures("compiled_backend")
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 70)
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Rounding moves a Gaussian by about 1e-5 pixels; a pixel on a threshold may then take another side of it.
PICTURE_TOLERANCE = 1e-3
THRESHOLD_SHARE = 5e-3


def assert_same_picture(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for rounding, and for a few pixels on a threshold."""
    assert found.shape == expected.shape
    apart = ((found - expected).abs() > PICTURE_TOLERANCE).any(0).sum().item()
    assert apart <= max(1, THRESHOLD_SHARE * expected[0].numel())


def render_scores(splats: Splats, camera: Camera, device: str) -> torch.Tensor:
    """Language features [K, H, W] by the scores path."""
    splats = splats.to(device)
    return rasterize_scores(splats.language_feature_precomp, settings=view_settings(camera), **splats.geometry())


@quick
@given(seeds, sizes, sizes, st.floats(0.1, 3.0))
def test_three_ways_to_pass_the_covariance_agree(
    device: str, seed: int, width: int, height: int, modifier: float
) -> None:
    splats = random_splats(seed, 60, 2).to(device)
    scores, camera = splats.language_feature_precomp, looking_down_z(width, height)
    by_modifier = rasterize_scores(scores, settings=view_settings(camera, scale_modifier=modifier), **splats.geometry())
    cov3d = reference.covariances(splats.scales, splats.rotations, modifier)
    by_covariance = rasterize_scores(
        scores, splats.means3D, splats.opacities, view_settings(camera, scale_modifier=7.0), cov3D_precomp=cov3d
    )
    splats.scales = splats.scales * modifier
    by_scales = rasterize_scores(scores, settings=view_settings(camera), **splats.geometry())
    assert_same_picture(by_modifier, by_scales)
    assert_same_picture(by_covariance, by_scales)


@quick
@given(seeds, sizes, sizes, st.floats(-3, 3), st.floats(-3, 3))
def test_rendering_is_linear_in_the_scores(device: str, seed: int, width: int, height: int, a: float, b: float) -> None:
    splats = random_splats(seed, 60, 6).to(device)
    plan = prepare(settings=view_settings(looking_down_z(width, height)), **splats.geometry())
    first, second = splats.language_feature_precomp.split(3, dim=1)
    together = plan.render(a * first + b * second)
    assert torch.allclose(together, a * plan.render(first) + b * plan.render(second), atol=1e-4)


@quick
@given(seeds, sizes, sizes)
def test_backward_is_the_transpose_of_forward(device: str, seed: int, width: int, height: int) -> None:
    splats = random_splats(seed, 60, 3).to(device)
    plan = prepare(settings=view_settings(looking_down_z(width, height)), **splats.geometry())
    scores = splats.language_feature_precomp.requires_grad_()
    picture = plan.render(scores)
    cotangent = torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed)).to(device)
    picture.backward(cotangent)
    assert torch.allclose((picture * cotangent).sum(), (scores * scores.grad).sum(), rtol=1e-3, atol=1e-2)


@quick
@given(
    seeds, st.lists(st.floats(-1, 1), min_size=3, max_size=3).filter(lambda v: np.linalg.norm(v) > 0.1), st.floats(0, 6)
)
def test_rigid_motion_of_scene_and_camera_changes_nothing(
    device: str, seed: int, axis: list[float], angle: float
) -> None:
    splats = random_splats(seed, 60, 2)
    camera = looking_down_z(60, 45)
    still = render_scores(splats, camera, device)

    quaternion, shift = axis_angle(axis, angle), torch.tensor(axis, dtype=torch.float64)
    rotation = reference.rotation_matrices(quaternion[None])[0]
    splats.means3D = (splats.means3D.double() @ rotation.T + shift).float()
    splats.rotations = quaternion_product(quaternion, splats.rotations.double()).float()
    moved_camera = type(camera)(
        **{**vars(camera), "rotation": rotation.T.numpy(), "translation": -(rotation.T @ shift).numpy()}
    )
    assert_same_picture(render_scores(splats, moved_camera, device), still)


@quick
@given(
    seeds,
    *(st.integers(0, 6), st.integers(0, 4)),
    *(st.integers(20, 90), st.integers(20, 70)),
)
def test_crop_equals_the_crop_of_the_full_picture(
    device: str, seed: int, column: int, row: int, width: int, height: int
) -> None:
    """Offsets are whole tiles, because a Gaussian acts in whole tiles.

    Centres lie within the margin of both frustums: beyond it the Jacobian is clamped, differently in either.
    """
    full = looking_down_z(200, 150)
    left, top = 16 * column, 16 * row
    crop = cropped(full, left, top, width, height)
    splats = random_splats(seed, 80, 2)
    g = torch.Generator().manual_seed(seed)
    depths = splats.means3D[:, 2].abs() + 1
    reach = 1.25  # half fields of view
    middle = torch.tensor([left + width / 2 - full.cx, top + height / 2 - full.cy])
    half = torch.tensor([width / 2, height / 2])
    pixels = middle + reach * half * (2 * torch.rand(80, 2, generator=g) - 1)  # from the principal point
    pixels = pixels.clamp(min=torch.tensor([-120.0, -90.0]), max=torch.tensor([120.0, 90.0]))
    splats.means3D = torch.cat((pixels / full.fx * depths[:, None], depths[:, None]), dim=1)
    whole, found = render_scores(splats, full, device), render_scores(splats, crop, device)
    right, bottom = min(left + width, full.width), min(top + height, full.height)
    assert_same_picture(found[:, : bottom - top, : right - left], whole[:, top:bottom, left:right])


@quick
@given(seeds, sizes, sizes)
def test_weights_sum_to_the_coverage(device: str, seed: int, width: int, height: int) -> None:
    """The score 1 of every Gaussian gives 1 - transmittance, which a white background shows on black Gaussians."""
    splats = random_splats(seed, 60).to(device)
    camera = looking_down_z(width, height)
    coverage = rasterize_scores(torch.ones(60, 1, device=device), settings=view_settings(camera), **splats.geometry())
    color, _, _ = GaussianRasterizer(view_settings(camera, bg=torch.ones(3)))(
        **splats.geometry(), means2D=torch.zeros(60, 3, device=device), colors_precomp=torch.zeros(60, 3, device=device)
    )
    assert coverage.min() >= 0
    assert coverage.max() <= 1 + 1e-5
    assert torch.allclose(color[0], 1 - coverage[0], atol=1e-5)


def test_constants_agree_in_cpp_and_python(device: str) -> None:
    names = (
        *("TILE", "NEAR_PLANE", "ALPHA_FLOOR", "ALPHA_CAP", "TRANSMITTANCE_STOP", "LOW_PASS", "FRUSTUM_MARGIN"),
        *("RADIUS_SIGMAS", "RADICAND_FLOOR", "W_EPSILON", "MAX_SH_DEGREE"),
    )
    values = (ctypes.c_double * 64)()
    assert abi.library(device).dgr_constants(values, 64) == len(names)
    assert dict(zip(names, values, strict=False)) == {name: getattr(constants, name) for name in names}
    public = {name for name in vars(constants) if name.isupper()}
    assert public == {*names, "VERSION", "ABI_VERSION"}


def test_layouts_agree_in_cpp_and_python(device: str) -> None:
    """Structures are passed by address: their sizes on either side must be the same."""
    structures = (abi.Exec, abi.CView, abi.Gaussians, abi.Lists, abi.Tiles, abi.Gradients)
    expected = [*map(ctypes.sizeof, structures), abi.SPLAT_FLOATS, abi.MOMENTS, abi.BIN_BLOCKS, abi.BACKWARD_SUMS]
    expected += map(ctypes.sizeof, (abi.Photo, abi.Raw, abi.Activated, abi.RawGradients, abi.AdamTensor))
    expected += [abi.LOSS_TILE, abi.ACTIVATE_BLOCK, abi.MAX_ADAM_TENSORS]
    found = (ctypes.c_int64 * len(expected))()
    assert abi.library(device).dgr_layout(found, len(expected)) == len(expected)
    assert list(found) == expected
