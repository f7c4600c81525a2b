"""Ray intersections of the procedural scene against closed forms, polynomial roots and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from synthetic import raycast
from synthetic.generate import Flags, dome_cameras
from synthetic.geometry import Lathe, Polyhedron, Torus, pixel_rays
from synthetic.world import SHAPES, Item, World


def random_rays(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rays from a sphere of radius 3 to points near the origin."""
    rng = np.random.default_rng(seed)
    origin = rng.normal(size=(count, 3))
    origin *= 3 / np.linalg.norm(origin, axis=1, keepdims=True)
    direction = rng.uniform(-1.2, 1.2, (count, 3)) - origin
    return origin, direction / np.linalg.norm(direction, axis=1, keepdims=True)


def test_cylinder_and_disc_against_closed_form():
    side, top = Lathe([(1.0, 0.0), (1.0, 0.7)]), Lathe([(1.0, 0.7), (0.0, 0.7)])
    origin, direction = random_rays(4000, 1)
    a = (direction[:, :2] ** 2).sum(1)
    b = (origin[:, :2] * direction[:, :2]).sum(1)
    c = (origin[:, :2] ** 2).sum(1) - 1
    with np.errstate(invalid="ignore"):
        roots = np.stack([(-b - np.sqrt(b * b - a * c)) / a, (-b + np.sqrt(b * b - a * c)) / a])
    z = origin[:, 2] + roots * direction[:, 2]
    wanted = np.where((roots > 0) & (z >= 0) & (z <= 0.7), roots, np.inf).min(0)
    np.testing.assert_allclose(side.intersect(origin, direction)[0], wanted, atol=1e-9)
    t = (0.7 - origin[:, 2]) / direction[:, 2]
    inside = np.hypot(*(origin + t[:, None] * direction)[:, :2].T) < 1
    wanted = np.where(inside & (t > 0), t, np.inf)
    found = top.intersect(origin, direction)[0]
    same = np.isfinite(found) == np.isfinite(wanted)
    assert same.mean() > 0.999  # rays through the rim, 1e-5 thick, may differ
    both = np.isfinite(found) & np.isfinite(wanted)
    error = np.abs(found[both] - wanted[both])
    assert error.max() < 1e-3
    assert np.median(error) < 2e-5


def test_torus_against_roots_of_the_quartic():
    major, minor = 0.8, 0.3
    torus = Torus(major, minor)
    origin, direction = random_rays(600, 2)
    found = torus.intersect(origin, direction)[0]
    wanted = np.full(len(origin), np.inf)
    for i, (o, d) in enumerate(zip(origin, direction, strict=True)):
        squared = np.poly1d([1.0, 2 * o @ d, o @ o + major**2 - minor**2])
        flat = np.poly1d([d[0] ** 2 + d[1] ** 2, 2 * (o[0] * d[0] + o[1] * d[1]), o[0] ** 2 + o[1] ** 2])
        roots = (squared * squared - 4 * major**2 * flat).roots
        real = roots[np.abs(roots.imag) < 1e-7].real
        if (real > 0).any():
            wanted[i] = real[real > 0].min()
    grazing = np.isfinite(found) != np.isfinite(wanted)
    assert grazing.mean() < 0.01  # thinner than a twentieth of the ray's way through the ring
    both = np.isfinite(found) & np.isfinite(wanted)
    assert both.sum() > 150
    assert (np.abs(found[both] - wanted[both]) < 1e-6).mean() > 0.99


def test_cube_against_slabs():
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
    cube = Polyhedron(np.vstack([np.eye(3), -np.eye(3)]), np.full(6, 0.6), 0.6 * signs)
    origin, direction = random_rays(3000, 3)
    sides = np.sort(np.stack([(-0.6 - origin) / direction, (0.6 - origin) / direction]), axis=0)
    first, last = sides[0].max(1), sides[1].min(1)
    wanted = np.where((first < last) & (first > 0), first, np.inf)
    np.testing.assert_allclose(cube.intersect(origin, direction)[0], wanted, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_charts_agree_with_rays(shape: str):
    """A ray shot at a texel from just outside hits that texel: place, normal and chart coordinates agree."""
    item = Item(shape, "red", "plain", "medium", (0.0, 0.0), 0.0, 0)
    for part in item.parts:
        solid = part.solid
        height, width = 10, 14
        point, normal = solid.texels(height, width)
        on_part = np.ones(point.shape[:3], dtype=bool)
        if isinstance(solid, Polyhedron):  # a chart is a rectangle around a face that may be a triangle
            on_part = (point @ solid.normals.T <= solid.heights + 1e-9).all(-1)
        layer, row, column = np.nonzero(on_part)
        p, n = point[on_part], normal[on_part]
        distance, piece = solid.intersect(p + 1e-3 * n, -n)
        assert np.abs(distance - 1e-3).max() < 1e-4
        surface = solid.surface(p + (1e-3 - distance)[:, None] * n, piece)
        assert ((surface.normal * n).sum(1) > 0.97).all()
        assert (surface.layer == layer).all()
        if not (isinstance(solid, Lathe) and solid.points[:, 0].min() == 0):  # the angle is undefined on the axis
            np.testing.assert_allclose(surface.u * width - 0.5, column, atol=0.02 * width)
        np.testing.assert_allclose(surface.v * height - 0.5, row, atol=0.2)


@pytest.mark.parametrize("shape", SHAPES)
def test_objects_stand_on_the_table_and_are_closed(shape: str):
    """Nothing is under the table, and no ray from outside and above meets the back of a surface first."""
    item = Item(shape, "red", "plain", "large", (0.1, -0.05), 0.7, 0)
    assert item.hull[:, 2].min() > -1e-4
    assert item.hull[:, 2].min() < 0.004
    rng = np.random.default_rng(4)
    origin = rng.normal(size=(3000, 3)) * [1, 1, 0.5]
    origin = item.centre + origin / np.linalg.norm(origin, axis=1, keepdims=True)
    origin[:, 2] = np.abs(origin[:, 2]) + 0.05
    direction = item.centre + rng.uniform(-1, 1, (3000, 3)) * item.bound * 0.6 - origin
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    distance, which, piece = item.intersect(origin, direction)
    point = origin + np.where(np.isfinite(distance), distance, 0)[:, None] * direction
    hit = np.isfinite(distance) & (point[:, 2] > 0.002)
    assert hit.sum() > 500
    backs = 0
    for number, part in enumerate(item.parts):
        rays = np.nonzero(hit & (which == number))[0]
        local = (item.to_object(point[rays]) - part.shift) @ part.turn
        normal = item.rotated(part.solid.surface(local, piece[rays]).normal, part)
        backs += ((normal * direction[rays]).sum(1) > 0.35).sum()
    assert backs / hit.sum() < 0.005


def test_ids_of_two_balls_against_closed_form():
    """Masks with occlusion: the nearer ball wins, and silhouettes are exact at pixel centres."""
    items = [
        Item("ball", "red", "plain", "large", (0.0, -0.08), 0.0, 0),
        Item("ball", "blue", "plain", "medium", (0.0, 0.07), 0.0, 1),
    ]
    camera = dome_cameras(Flags(seed=0, views=8, width=160, height=120, objects=10))[1]
    ids = raycast.item_ids(World(items, [], 0), camera)
    x, y = np.meshgrid(np.arange(160) + 0.5, np.arange(120) + 0.5)
    origin, direction = pixel_rays(camera, x.ravel(), y.ravel())
    distances = []
    for item in items:
        radius = 0.055 * item.scale
        offset = np.array([*item.position, radius]) - origin
        along = (offset * direction).sum(1)
        gap = radius**2 - (offset**2).sum(1) + along**2
        distances.append(np.where(gap > 0, along - np.sqrt(np.maximum(gap, 0)), np.inf))
    distances = np.array(distances)
    wanted = np.where(np.isinf(distances).all(0), -1, distances.argmin(0)).reshape(120, 160)
    occluded = (np.isfinite(distances).all(0)).sum()
    assert occluded > 20
    # The lathe's ball is a stack of 18 cones: its outline is up to 1 % inside the sphere.
    assert (ids != wanted).sum() < 0.03 * (wanted >= 0).sum()
