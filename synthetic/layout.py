"""Choosing objects and placing them: look-alikes apart, nothing intersecting, everything visible."""

from __future__ import annotations

import numpy as np

from scene.cameras import Camera
from synthetic import dome, raycast
from synthetic.catalogue import CONFUSABLE, SHAPES
from synthetic.tabletop import DECALS
from synthetic.textures import COLOURS, FINISHES
from synthetic.world import Decal, Item, World

REACH = (0.37, 0.27)  # half width and half depth of the area where ten objects stand, metres
FACING = (-200.0, 20.0)  # degrees of yaw; handles and spouts, which point along x, stay in sight
GAP = 0.018  # metres between two footprints
APART = 0.26  # metres between look-alikes, so that they have different neighbours
DECAL_HALF = {"napkin": (0.095, 0.075), "letter": (0.07, 0.095), "mat": (0.11, 0.08), "tile": (0.07, 0.07)}
MIN_VISIBLE = 0.35  # of an object's pixels, in most views


def closeness(count: int) -> float:
    """How much of the table `count` objects take up: fewer stand closer together and are seen from nearer by."""
    return 0.8 + 0.05 * (count - 6)


def choose_groups(count: int, rng: np.random.Generator) -> list[list[dict]]:
    """Look-alikes: groups of two (one of three if `count` is odd) that share shape and colour.

    The members of a group differ in texture, size or both.
    """
    group_count = count // 2
    shapes: list[str] = []
    for shape in rng.permutation(list(SHAPES)):
        if not any(shape in pair and pair & set(shapes) for pair in CONFUSABLE):
            shapes.append(str(shape))
    colours = [str(c) for c in rng.permutation(list(COLOURS))[:group_count]]
    if group_count > 3 and rng.random() < 0.4:
        colours[-1] = colours[0]  # two kinds of things in one colour: neither word alone is enough
    groups = []
    for index, kind in enumerate(
        str(k) for k in rng.choice(["texture", "size", "both"], group_count, p=[0.5, 0.2, 0.3])
    ):
        members = 3 if count % 2 and index == 0 else 2
        # Black or white wood would look brown, which is no colour a sentence could name.
        possible = [t for t in FINISHES if t != "wooden" or colours[index] not in ("black", "white")]
        textures = [str(t) for t in rng.permutation(possible)[:members]]
        sizes = [str(s) for s in rng.permutation(["small", "large"])]
        if members == 3 or kind == "texture":
            sizes = ["medium"] * members
        elif kind == "size":
            textures = [textures[0]] * members
        groups.append(
            [
                {"shape": shapes[index], "colour": colours[index], "texture": texture, "size": size}
                for texture, size in zip(textures, sizes, strict=True)
            ]
        )
    return groups


def place(count: int, seed: int, attempt: int) -> World | None:
    """One try at a table top; None if the objects found no room."""
    rng = np.random.default_rng([seed, 31, attempt])
    groups = choose_groups(count, np.random.default_rng([seed, 32, attempt // 8]))
    kinds = [str(k) for k in rng.permutation(list(DECALS))]
    decals = []
    for kind, (side, depth) in zip(kinds, ((-1, -1), (1, -1), (-1, 1), (1, 1)), strict=True):
        middle = (side * rng.uniform(0.2, 0.27) * closeness(count), depth * rng.uniform(0.13, 0.19) * closeness(count))
        turn = float(rng.uniform(-0.25, 0.25))
        decals.append(Decal(kind, (float(middle[0]), float(middle[1])), DECAL_HALF[kind], turn))

    wanted = [(group, look) for group, members in enumerate(groups) for look in members]
    placed: dict[int, Item] = {}
    order = sorted(range(len(wanted)), key=lambda i: -Item(**wanted[i][1], position=(0, 0), yaw=0, seed=0).radius)
    for index in order:
        group, look = wanted[index]
        for _ in range(60):
            x, y = (float(rng.uniform(-reach, reach)) * closeness(count) for reach in REACH)
            item = Item(**look, position=(x, y), yaw=float(np.radians(rng.uniform(*FACING))), seed=seed * 97 + index)
            if _fits(item, group, placed, wanted, decals):
                placed[index] = item
                break
        else:
            return None
    return World([placed[i] for i in range(len(wanted))], decals, seed)


def _fits(item: Item, group: int, placed: dict[int, Item], wanted: list, decals: list[Decal]) -> bool:
    """Whether an item keeps its distances and stands either on a decal or clear of it."""
    for index, other in placed.items():
        distance = np.hypot(*np.subtract(item.position, other.position))
        if distance < item.radius + other.radius + GAP or (wanted[index][0] == group and distance < APART):
            return False
    inside = [float(decal.inside(np.array([item.position]))[0]) for decal in decals]
    return all(depth > 0.02 or depth < -item.radius - 0.01 for depth in inside)


def in_frame(world: World, cameras: list[Camera]) -> bool:
    """Whether every item is inside every picture."""
    hull = np.concatenate([item.hull for item in world.items])
    for camera in cameras:
        pixel = dome.project(camera, hull)[:, :2]
        margin = 0.012 * camera.width
        if (pixel < margin).any() or (pixel > np.array([camera.width, camera.height]) - margin).any():
            return False
    return True


def all_visible(world: World, cameras: list[Camera]) -> bool:
    """Whether hardly any item is ever mostly hidden, judged on eight of the views."""
    rows = []
    for camera in cameras[:: max(1, len(cameras) // 8)]:
        small = camera.resized(96, round(96 * camera.height / camera.width))
        together = raycast.item_ids(world, small)
        alone = [(raycast.item_ids(World([item], [], world.seed), small) == 0).sum() for item in world.items]
        rows.append([(together == i).sum() / max(full, 1) for i, full in enumerate(alone)])
    shares = np.array(rows)  # [views, items]
    return bool(((shares > MIN_VISIBLE).mean(0) >= 0.8).all() and (shares > 0.12).all())
