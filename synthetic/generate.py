"""From flags to a scene on disk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from scene.cameras import Camera
from synthetic import dome, export, layout, lighting, overview, raycast
from synthetic.relations import Relations
from synthetic.sentences import Referring, compose
from synthetic.world import World
from utils.errors import UserError

THREADS = 4  # the same for all machines; the result does not depend on it
ATTEMPTS = 4000  # table tops tried before giving up
LIMITS = {
    "seed": (0, 2**31 - 1),
    "views": (2, 2000),
    "width": (48, 4096),
    "height": (36, 4096),
    "points": (100, 1_000_000),
}


@dataclass(frozen=True)
class Flags:
    """Values of the command line; checked on creation."""

    seed: int = 0
    views: int = 40
    width: int = 240
    height: int = 180
    objects: int = 0  # 0: between 6 and 10, by the seed
    points: int = 6000

    def __post_init__(self):
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"--{name} {value} is out of range; give a number from {low} to {high}.")
        if self.objects and not 6 <= self.objects <= 10:
            raise UserError(f"--objects {self.objects} is out of range; give 6 to 10, or 0 to let the seed choose.")
        if not 0.7 <= self.width / self.height <= 3:
            raise UserError(
                f"--width {self.width} --height {self.height} is too narrow or too wide for the table; "
                "give a width of 0.7 to 3 times the height."
            )


def object_count(flags: Flags) -> int:
    """The number of objects: the flag, or 6 to 10 by the seed."""
    return flags.objects or 6 + flags.seed * 7919 % 5


def find_world(flags: Flags, cameras: list[Camera]) -> tuple[World, list[list[Referring]]]:
    """Return the first table top of the seed on which all is visible and every object can be described."""
    count = object_count(flags)
    for attempt in range(ATTEMPTS):
        world = layout.place(count, flags.seed, attempt)
        if world is None or not layout.in_frame(world, cameras):
            continue
        sentences = compose(Relations(world, cameras), flags.seed)
        if sentences is not None and layout.all_visible(world, cameras):
            return world, sentences
    raise UserError(f"no good table top found for --seed {flags.seed} --objects {count}; try another seed.")


def generate(out: Path, flags: Flags) -> None:
    """Write the scene of `flags` to the folder `out`.

    Raises:
        UserError: if the folder holds something else or cannot be written.
    """
    former = export.claim(out)
    closeness = layout.closeness(object_count(flags))
    cameras = dome.cameras(flags.views, flags.width, flags.height, closeness, flags.seed)
    world, sentences = find_world(flags, cameras)
    with ThreadPoolExecutor(THREADS) as pool:
        baked = lighting.bake(world, flags.height, pool.map)
        pictures = list(pool.map(lambda camera: raycast.render(world, baked, camera), cameras))
    tests = dome.test_views(flags.views, flags.seed)
    files = export.scene_files(world, cameras, pictures, sentences, tests)
    files["overview.png"] = overview.sheet(world, cameras, pictures, sentences)
    train = [picture for index, picture in enumerate(pictures) if index not in tests]
    model = export.sparse_model(train, cameras, flags.points, flags.seed)
    export.write(out, files, model, asdict(flags), former)
