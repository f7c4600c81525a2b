"""From flags to a scene on disk: place objects apart and visible, describe them, take pictures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from scene.cameras import Camera
from synthetic import export, raycast
from synthetic.geometry import look_at, project
from synthetic.relations import Relations
from synthetic.sentences import Referring, compose
from synthetic.textures import COLOURS, FINISHES
from synthetic.world import CONFUSABLE, SHAPES, Decal, Item, World
from utils.errors import UserError

THREADS = 4  # the same for all machines; the result does not depend on it
ATTEMPTS = 4000  # table tops tried before giving up

REACH = (0.37, 0.27)  # half width and half depth of the area where ten objects stand, metres
FACING = (-200.0, 20.0)  # degrees of yaw; handles and spouts, which point along x, stay in sight
GAP = 0.018  # metres between two footprints
APART = 0.26  # metres between look-alikes, so that they have different neighbours
DECAL_HALF = {"napkin": (0.095, 0.075), "letter": (0.07, 0.095), "mat": (0.11, 0.08), "tile": (0.07, 0.07)}
AZIMUTH = 38.0  # degrees to either side; limited so that left, right, front and back mean the same in every view
ELEVATIONS = (27.0, 37.0, 47.0, 57.0)  # degrees above the table, one tier of views each
FIELD_OF_VIEW = 47.0  # degrees, horizontal, at 4:3; the vertical one is kept at other aspect ratios
MIN_VISIBLE = 0.35  # of an object's pixels, in most views


def _flag(default: int, low: int, high: int, text: str) -> Any:
    return field(default=default, metadata={"range": (low, high), "help": text})


@dataclass(frozen=True)
class Flags:
    """Values of the command line; checked on creation."""

    seed: int = _flag(0, 0, 2**31 - 1, "the same seed gives the same files, bit for bit")
    views: int = _flag(40, 2, 2000, "number of pictures, every fifth for the test")
    width: int = _flag(240, 48, 4096, "picture width in pixels")
    height: int = _flag(180, 36, 4096, "picture height in pixels")
    objects: int = _flag(0, 0, 10, "6 to 10; 0 lets the seed choose")
    points: int = _flag(6000, 100, 1_000_000, "sparse points of the COLMAP model")

    def __post_init__(self):
        if self.objects and not 6 <= self.objects <= 10:
            raise UserError(f"--objects {self.objects} is out of range; give 6 to 10, or 0 to let the seed choose.")
        for flag in fields(self):
            value, (low, high) = getattr(self, flag.name), flag.metadata["range"]
            if not low <= value <= high:
                raise UserError(f"--{flag.name} {value} is out of range; give a number from {low} to {high}.")
        if not 0.7 <= self.width / self.height <= 3:
            raise UserError(
                f"--width {self.width} --height {self.height} is too narrow or too wide for the table; "
                "give a width of 0.7 to 3 times the height."
            )


def object_count(flags: Flags) -> int:
    """The number of objects: the flag, or 6 to 10 by the seed."""
    return flags.objects or 6 + flags.seed * 7919 % 5


def closeness(count: int) -> float:
    """How much of the table `count` objects take up: fewer stand closer together and are seen from nearer by."""
    return 0.8 + 0.05 * (count - 6)


def dome_cameras(flags: Flags) -> list[Camera]:
    """Cameras on a part of a dome in front of the table, tier after tier in alternating direction, as if hand-held."""
    count, width, height = flags.views, flags.width, flags.height
    rng = np.random.default_rng([flags.seed, 11])
    tiers = np.array_split(np.arange(count), min(len(ELEVATIONS), count))
    focal = height * (4 / 3) / (2 * np.tan(np.radians(FIELD_OF_VIEW / 2)))
    result = []
    for tier, members in enumerate(tiers):
        share = ((np.arange(len(members)) + 0.5) / len(members))[:: -1 if tier % 2 else 1]
        for index, place in zip(members, share, strict=True):
            sway = rng.uniform(-1, 1, 6)
            azimuth = np.radians(np.clip((2 * place - 1) * AZIMUTH + 1.5 * sway[0], -AZIMUTH, AZIMUTH))
            elevation = np.radians(ELEVATIONS[tier] + 3 * sway[1])
            distance = closeness(object_count(flags)) * (1.13 + 0.05 * sway[2])
            target = np.array([0.015, 0.015, 0.01]) * sway[3:] + [0.0, -0.02, 0.03]
            level = np.cos(elevation)
            heading = np.array([np.sin(azimuth) * level, -np.cos(azimuth) * level, np.sin(elevation)])
            rotation, translation = look_at(target + distance * heading, target)
            name = f"frame_{index + 1:05d}.png"
            result.append(Camera(name, rotation, translation, focal, focal, width / 2, height / 2, width, height))
    return result


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
    for index, kind in enumerate(rng.choice(["texture", "size", "both"], group_count, p=[0.5, 0.2, 0.3])):
        members = 3 if count % 2 and index == 0 else 2
        # Black or white wood would look brown, which is no colour a sentence could name.
        possible = [t for t in FINISHES if t != "wooden" or colours[index] not in ("black", "white")]
        textures = [str(t) for t in rng.permutation(possible)[:members]]
        sizes = [str(s) for s in rng.permutation(["small", "large"])]
        if members == 3 or kind == "texture":
            sizes = ["medium"] * members
        elif kind == "size":
            textures = [textures[0]] * members
        look = {"shape": shapes[index], "colour": colours[index]}
        groups.append([{**look, "texture": t, "size": s} for t, s in zip(textures, sizes, strict=True)])
    return groups


def place(count: int, seed: int, attempt: int) -> World | None:
    """One try at a table top; None if the objects found no room."""
    rng = np.random.default_rng([seed, 31, attempt])
    groups = choose_groups(count, np.random.default_rng([seed, 32, attempt // 8]))
    near = closeness(count)
    decals = []
    for kind, (depth, side) in zip(rng.permutation(list(DECAL_HALF)), product((-1, 1), repeat=2), strict=True):
        x, y = side * rng.uniform(0.2, 0.27) * near, depth * rng.uniform(0.13, 0.19) * near
        decals.append(Decal(str(kind), (float(x), float(y)), DECAL_HALF[kind], float(rng.uniform(-0.25, 0.25))))

    looks = [look for members in groups for look in members]
    placed: dict[int, Item] = {}
    for index in sorted(range(count), key=lambda i: -Item(**looks[i], position=(0, 0), yaw=0, seed=0).radius):
        for _ in range(60):
            x, y = (float(rng.uniform(-reach, reach)) * near for reach in REACH)
            yaw = float(np.radians(rng.uniform(*FACING)))
            item = Item(**looks[index], position=(x, y), yaw=yaw, seed=seed * 97 + index)
            if _fits(item, list(placed.values()), decals):
                placed[index] = item
                break
        else:
            return None
    return World([placed[i] for i in range(count)], decals, seed)


def _fits(item: Item, placed: list[Item], decals: list[Decal]) -> bool:
    """Whether an item keeps its distances and stands either on a decal or clear of it."""
    for other in placed:
        distance = np.hypot(*np.subtract(item.position, other.position))
        if distance < item.radius + other.radius + GAP or (other.shape == item.shape and distance < APART):
            return False
    inside = [float(decal.inside(np.array([item.position]))[0]) for decal in decals]
    return all(depth > 0.02 or depth < -item.radius - 0.01 for depth in inside)


def in_frame(world: World, cameras: list[Camera]) -> bool:
    """Whether every item is inside every picture."""
    hull = np.concatenate([item.hull for item in world.items])
    pixels = np.concatenate([project(camera, hull)[:, :2] for camera in cameras])
    margin, size = 0.012 * cameras[0].width, np.array([cameras[0].width, cameras[0].height])
    return bool(((pixels >= margin) & (pixels <= size - margin)).all())


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


def find_world(flags: Flags, cameras: list[Camera]) -> tuple[World, list[list[Referring]]]:
    """Return the first table top of the seed on which all is visible and every object can be described."""
    count = object_count(flags)
    for attempt in range(ATTEMPTS):
        world = place(count, flags.seed, attempt)
        if world is None or not in_frame(world, cameras):
            continue
        sentences = compose(Relations(world, cameras), flags.seed)
        if sentences is not None and all_visible(world, cameras):
            return world, sentences
    raise UserError(f"no good table top found for --seed {flags.seed} --objects {count}; try another seed.")


def generate(out: Path, flags: Flags) -> None:
    """Write the scene of `flags` to the folder `out`.

    Raises:
        UserError: if the folder holds something else or cannot be written.
    """
    former = export.claim(out)
    cameras = dome_cameras(flags)
    world, sentences = find_world(flags, cameras)
    with ThreadPoolExecutor(THREADS) as pool:
        baked = raycast.bake(world, flags.height, pool)
        pictures = list(pool.map(lambda camera: raycast.render(world, baked, camera), cameras))
    first = int(np.random.default_rng([flags.seed, 12]).integers(min(5, flags.views)))
    tests = range(first, flags.views, 5)  # spread over all tiers of the dome
    files = export.scene_files(world, cameras, pictures, sentences, tests)
    files["overview.png"] = export.contact_sheet(world, cameras, pictures, sentences)
    train = [picture for index, picture in enumerate(pictures) if index not in tests]
    model = export.sparse_model(train, cameras, flags.points, flags.seed)
    export.write(out, files, model, asdict(flags), former)
