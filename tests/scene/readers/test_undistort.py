"""Undistortion compared with COLMAP's formulas, through pictures of dots."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from scene.readers.colmap import ColmapCamera
from scene.readers.undistort import Undistorted, undistorted
from utils.errors import UserError

WIDTH, HEIGHT = 320, 240
CAMERAS = {
    "SIMPLE_RADIAL": [250, 163, 118, -0.12],
    "RADIAL": [250, 160, 120, 0.15, -0.05],
    "OPENCV": [250, 256, 157, 124, -0.2, 0.06, 2e-3, -3e-3],
    "FULL_OPENCV": [250, 256, 157, 124, -0.2, 0.06, 2e-3, -3e-3, 0.01, 0.02, -0.01, 0.005],
    "OPENCV_FISHEYE": [150, 154, 157, 124, 0.03, -0.01, 0.004, -0.001],
}


def colmap_camera(model: str) -> ColmapCamera:
    return ColmapCamera(1, model, WIDTH, HEIGHT, np.array(CAMERAS[model], dtype=np.float64))


def distorted_pixels(model: str, points: np.ndarray) -> np.ndarray:
    """COLMAP's projection of camera points [N, 3] (models.h), first pixel centre at 0.5."""
    params = list(CAMERAS[model])
    if model in ("SIMPLE_RADIAL", "RADIAL"):
        params = [params[0], *params]
    fx, fy, cx, cy, *k = params
    x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
    r2 = x * x + y * y
    if model == "OPENCV_FISHEYE":
        r = np.sqrt(r2)
        theta = np.arctan(r)
        scale = theta * (1 + k[0] * theta**2 + k[1] * theta**4 + k[2] * theta**6 + k[3] * theta**8) / r
        u, v = x * scale, y * scale
    else:
        k1, k2, p1, p2, k3, k4, k5, k6 = k + [0.0] * (8 - len(k))
        scale = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
        u = x * scale + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        v = y * scale + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)
    return np.stack([fx * u + cx, fy * v + cy], axis=1)


def pinhole_pixels(pinhole: Undistorted, points: np.ndarray) -> np.ndarray:
    x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
    return np.stack([pinhole.fx * x + pinhole.cx, pinhole.fy * y + pinhole.cy], axis=1)


def pixel_rays(pinhole: Undistorted) -> np.ndarray:
    """Camera points at depth 1 behind every pixel centre of the pinhole picture, [H * W, 3]."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    rays = (np.stack([x.ravel(), y.ravel()], axis=1) - (pinhole.cx, pinhole.cy)) / (pinhole.fx, pinhole.fy)
    return np.concatenate([rays, np.ones((len(rays), 1))], axis=1)


def visible_points(pinhole: Undistorted) -> np.ndarray:
    """Camera points at random depths that fall on a jittered grid of the pinhole picture, far apart."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(15, WIDTH - 15, 9), np.linspace(15, HEIGHT - 15, 7))
    pixels = np.stack([x.ravel(), y.ravel()], axis=1) + rng.uniform(-3, 3, (63, 2))
    rays = (pixels - (pinhole.cx, pinhole.cy)) / (pinhole.fx, pinhole.fy)
    return np.concatenate([rays, np.ones((63, 1))], axis=1) * rng.uniform(0.5, 4, (63, 1))


def dots(centers: np.ndarray) -> np.ndarray:
    """Gaussian dots at COLMAP pixel positions, [H, W] float32."""
    columns, rows = np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5
    picture = np.zeros((HEIGHT, WIDTH))
    for x, y in centers:
        picture += np.exp(-((rows[:, None] - y) ** 2 + (columns - x) ** 2) / (2 * 1.5**2))
    return picture.astype(np.float32)


def centroid(picture: np.ndarray, near: np.ndarray) -> np.ndarray:
    left, top = (np.floor(near) - 7).astype(int)
    window = picture[top : top + 15, left : left + 15]
    x = (window.sum(axis=0) * (np.arange(left, left + 15) + 0.5)).sum() / window.sum()
    y = (window.sum(axis=1) * (np.arange(top, top + 15) + 0.5)).sum() / window.sum()
    return np.array([x, y])


@pytest.mark.parametrize("model", list(CAMERAS))
def test_dots_land_where_the_pinhole_projects_them(model: str) -> None:
    pinhole = undistorted(colmap_camera(model))
    points = visible_points(pinhole)
    there = distorted_pixels(model, points)
    expected = pinhole_pixels(pinhole, points)
    assert np.abs(there - expected).max() > 2  # the case is no trivial one
    picture = pinhole.remap(dots(there))
    found = np.array([centroid(picture, pixel) for pixel in expected])
    # The warp's curvature moves the centroid of a dot by up to 0.15 pixels at the corners, not on the average.
    assert np.abs(found - expected).max() < 0.2
    assert np.abs((found - expected).mean(axis=0)).max() < 0.02


@pytest.mark.parametrize("model", list(CAMERAS))
def test_every_pixel_is_sampled_along_its_ray(model: str) -> None:
    """Linear interpolation keeps ramps exactly, so each pixel shows where it was sampled."""
    pinhole = undistorted(colmap_camera(model))
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    sampled = np.stack([pinhole.remap(ramp.astype(np.float32)) for ramp in (x, y)], axis=-1).reshape(-1, 2)
    expected = distorted_pixels(model, pixel_rays(pinhole))
    assert np.abs(sampled - expected).max() < 0.02  # cv2 interpolates at 1/32 pixel; the border is clamped


@pytest.mark.parametrize("model", list(CAMERAS))
def test_no_blank_border_and_no_lost_pixels(model: str) -> None:
    """Each pixel of the new picture comes from inside the old one, and one of them from its edge."""
    pinhole = undistorted(colmap_camera(model))
    pixels = distorted_pixels(model, pixel_rays(pinhole))
    slack = np.concatenate([pixels.min(axis=0) - 0.5, (WIDTH - 0.5, HEIGHT - 0.5) - pixels.max(axis=0)])
    assert -0.02 < slack.min() < 0.1
    camera = colmap_camera(model)
    fx, fy, cx, cy = camera.focal_and_center
    assert (pinhole.cx, pinhole.cy, pinhole.remap.width, pinhole.remap.height) == (cx, cy, WIDTH, HEIGHT)
    assert pinhole.fx / pinhole.fy == pytest.approx(fx / fy)


def test_masks_stay_binary() -> None:
    """Nearest neighbour: no third value, and the same region as thresholding a smooth remap."""
    pinhole = undistorted(colmap_camera("OPENCV"))
    mask = cv2.circle(np.zeros((HEIGHT, WIDTH), np.uint8), (70, 60), 40, 1, -1)
    found = pinhole.remap(mask, nearest=True)
    assert set(np.unique(found)) == {0, 1}
    smooth = pinhole.remap(mask.astype(np.float32)) > 0.5
    differing = found.astype(bool) ^ smooth
    edge = cv2.dilate(found, np.ones((3, 3), np.uint8)) != cv2.erode(found, np.ones((3, 3), np.uint8))
    assert not (differing & ~edge).any()
    assert differing.sum() < 0.3 * edge.sum()


@pytest.mark.parametrize(
    ("model", "params"),
    [("PINHOLE", [200, 201, 80, 60]), ("SIMPLE_PINHOLE", [200, 80, 60]), ("OPENCV", [200, 201, 80, 60, 0, 0, 0, 0])],
)
def test_pinholes_are_not_changed(model: str, params: list[float]) -> None:
    pinhole = undistorted(ColmapCamera(1, model, 160, 120, np.array(params, dtype=np.float64)))
    fy = 200 if model == "SIMPLE_PINHOLE" else 201
    assert pinhole == (200, fy, 80, 60, None)


def test_another_picture_size_scales_intrinsics() -> None:
    half = undistorted(colmap_camera("RADIAL"), (WIDTH // 2, HEIGHT // 2))
    full = undistorted(colmap_camera("RADIAL"))
    assert half.fx == pytest.approx(full.fx / 2, rel=0.01)  # the outermost pixel centres differ a little
    assert (half.cx, half.cy, half.remap.width, half.remap.height) == (
        full.cx / 2,
        full.cy / 2,
        WIDTH // 2,
        HEIGHT // 2,
    )


@pytest.mark.parametrize(
    ("model", "count"),
    [("FOV", 5), ("SIMPLE_RADIAL_FISHEYE", 4), ("RADIAL_FISHEYE", 5), ("THIN_PRISM_FISHEYE", 12)],
)
def test_unsupported_models_are_refused_by_name(model: str, count: int) -> None:
    camera = ColmapCamera(4, model, WIDTH, HEIGHT, np.full(count, 100.0))
    with pytest.raises(UserError, match=rf"camera 4 has the lens model {model},[\s\S]*colmap undo this"):
        undistorted(camera, command="colmap undo this")


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("SIMPLE_RADIAL", [250, 160, 120, -1e10]),
        ("RADIAL", [250, 160, 120, 1e15, -1e15]),
        ("OPENCV_FISHEYE", [1e-9, 250, 160, 120, 0, 0, 0, 0]),
        ("SIMPLE_RADIAL", [250, 5000, 120, -0.1]),
    ],
)
def test_folding_distortion_is_an_error(model: str, params: list[float]) -> None:
    with pytest.raises(UserError, match="folds the picture"):
        undistorted(ColmapCamera(1, model, WIDTH, HEIGHT, np.array(params, dtype=np.float64)))


@pytest.mark.parametrize("model", CAMERAS)
def test_distort_inverts_undistortion(model: str) -> None:
    """For a smooth picture, away from the border, of which the pinhole camera sees less."""
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    photo = (0.5 + 0.5 * np.sin(columns / 15) * np.cos(rows / 12)).astype(np.float32)
    remap = undistorted(colmap_camera(model)).remap
    back = remap.distort(remap(photo))
    seen = remap.distort(np.ones((HEIGHT, WIDTH), np.float32)) == 1
    assert seen.mean() > 0.6
    assert np.abs(back - photo)[seen].max() < 0.02
