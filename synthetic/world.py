"""The objects of one table top, the parts they are built of, and what a ray meets among them.

All shapes stand on z = 0. A unit object is about 0.12 m high; `size` scales it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from synthetic.geometry import Lathe, Polyhedron, Solid, Torus, dot

TABLE = (0.52, 0.40)  # half width (x) and half depth (y) of the table top, metres
TABLE_THICKNESS = 0.035
FLOOR = -0.72  # height of the floor, metres
SIZES = {"small": 0.78, "medium": 1.0, "large": 1.24}


@dataclass(frozen=True)
class Part:
    """A solid placed in its object: object point = turn @ local point + shift."""

    solid: Solid
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn: np.ndarray = field(default_factory=lambda: np.eye(3))  # [3, 3] rotation
    colour: str | None = None  # overrides the object's colour and makes the part plain


Profile = list[tuple[float, float]]  # radius and height


def _lathes(*profiles: Profile, colour: str | None = None) -> list[Part]:
    return [Part(Lathe(profile), colour=colour) for profile in profiles]


def _arc(centre: tuple[float, float], radius: float, start: float, end: float, steps: int) -> Profile:
    """Profile points on a circle, angles in degrees from the outward direction."""
    angles = np.radians(np.linspace(start, end, steps))
    return [(max(centre[0] + radius * np.cos(a), 0.0), centre[1] + radius * np.sin(a)) for a in angles]


def _curve(points: Profile, steps: int) -> Profile:
    """Catmull-Rom curve through profile points, `steps` pieces between neighbours."""
    p = np.array([points[0], *points, points[-1]])
    t = np.arange(steps)[:, None] / steps
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return [(max(float(r), 0.0), float(z)) for r, z in np.concatenate([*pieces, p[-1:]])]


def _cube() -> Polyhedron:
    half, height = 0.046, 0.092
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (0, 1)], dtype=np.float64)
    normals = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    return Polyhedron(normals, np.array([half] * 4 + [height, 0]), signs * [half, half, height])


def _pyramid() -> Polyhedron:
    half, height = 0.058, 0.105
    corners = [[x * half, y * half, 0.0] for x in (-1, 1) for y in (-1, 1)]
    slant = np.hypot(half, height)
    sides = np.array([[height, 0, half], [-height, 0, half], [0, height, half], [0, -height, half]]) / slant
    normals = np.vstack([sides, [[0, 0, -1.0]]])
    heights = np.array([half * height / slant] * 4 + [0.0])
    return Polyhedron(normals, heights, np.array([*corners, [0, 0, height]]))


def _handle(radius: float, thickness: float, reach: float, x: float, z: float) -> Part:
    """An arc of a torus whose ring lies in the xz plane, open towards -x; `reach` degrees to either side."""
    upright = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
    return Part(Torus(radius, thickness, (np.radians(-reach), np.radians(reach))), (x, 0, z), upright)


def _spout() -> list[Part]:
    c, s = np.cos(np.radians(-48)), np.sin(np.radians(-48))
    placing = (-0.042, 0.0, 0.032), np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    wall, opening = [(0.015, 0.0), (0.010, 0.035), (0.0075, 0.052), (0.005, 0.053)], [(0.005, 0.053), (0.0, 0.048)]
    return [Part(Lathe(wall), *placing), Part(Lathe(opening), *placing, "black")]


SHAPES: dict[str, list[Part]] = {
    "mug": _lathes(
        [(0.041, 0.0), (0.0445, 0.004), (0.045, 0.03), (0.045, 0.07), *_arc((0.0420, 0.108), 0.003, 0, 180, 5)],
        [(0.039, 0.108), (0.039, 0.02), (0.034, 0.012)],
        [(0.034, 0.012), (0.0, 0.012)],
    )
    + [_handle(0.029, 0.0068, 105, 0.050, 0.056)],
    "ball": _lathes(_arc((0, 0.055), 0.055, -90, 90, 19)),
    "cube": [Part(_cube())],
    "pyramid": [Part(_pyramid())],
    "can": _lathes(
        [(0.038, 0.0), (0.040, 0.004), (0.040, 0.112), (0.038, 0.116)],
        [(0.038, 0.116), (0.035, 0.116), (0.034, 0.113), (0.0, 0.113)],
    ),
    "cone": _lathes([(0.054, 0.0), (0.055, 0.002), (0.004, 0.126), *_arc((0, 0.1255), 0.004, 25, 90, 4)]),
    "ring": [Part(Torus(0.043, 0.021), (0, 0, 0.021))],
    "bowl": _lathes(
        [(0.028, 0.0), (0.030, 0.006), *_curve([(0.032, 0.008), (0.056, 0.026), (0.068, 0.056)], 4)]
        + _arc((0.0660, 0.057), 0.002, 0, 180, 5),
        _curve([(0.064, 0.057), (0.052, 0.029), (0.027, 0.013), (0.0, 0.010)], 4),
    ),
    "bottle": _lathes(
        [(0.032, 0.0), (0.035, 0.004), (0.036, 0.03), (0.036, 0.074)]
        + _curve([(0.036, 0.078), (0.030, 0.098), (0.0145, 0.115), (0.013, 0.138)], 4)[1:]
    )
    + _lathes([(0.016, 0.138), (0.0165, 0.140), (0.0165, 0.153), (0.015, 0.155), (0.0, 0.155)], colour="black"),
    "vase": _lathes(
        [(0.030, 0.0), *_curve([(0.031, 0.002), (0.050, 0.046), (0.034, 0.093), (0.022, 0.112), (0.033, 0.136)], 4)]
        + [(0.032, 0.1375), (0.031, 0.137)],
        _curve([(0.031, 0.137), (0.019, 0.112), (0.030, 0.093), (0.044, 0.046), (0.0, 0.010)], 3),
    ),
    "goblet": _lathes(
        _curve([(0.034, 0.0), (0.033, 0.005), (0.010, 0.012), (0.0065, 0.030), (0.0075, 0.052)], 3)
        + _curve([(0.0075, 0.052), (0.026, 0.062), (0.040, 0.086), (0.039, 0.124)], 4)[1:]
        + [(0.0375, 0.1255), (0.0365, 0.1245)],
        _curve([(0.0365, 0.1245), (0.037, 0.088), (0.024, 0.068), (0.0, 0.062)], 3),
    ),
    "pawn": _lathes(
        [(0.038, 0.0), (0.040, 0.004), (0.040, 0.010), (0.036, 0.015)]
        + _curve([(0.031, 0.018), (0.024, 0.030), (0.0135, 0.058), (0.012, 0.076)], 4),
        [(0.012, 0.076), (0.023, 0.080), (0.023, 0.084), (0.012, 0.087)],
        _arc((0, 0.106), 0.0235, -60, 90, 11),
    ),
    "teapot": _lathes(
        _curve([(0.034, 0.0), (0.052, 0.020), (0.057, 0.042), (0.046, 0.068), (0.026, 0.079)], 4),
        _curve([(0.027, 0.079), (0.024, 0.085), (0.008, 0.091), (0.006, 0.094)], 3),
        _arc((0, 0.101), 0.0095, -50, 90, 7),
    )
    + [*_spout(), _handle(0.030, 0.0062, 110, 0.052, 0.046)],
    "mushroom": _lathes(
        _curve([(0.022, 0.0), (0.0185, 0.012), (0.016, 0.034), (0.017, 0.058)], 3),
        [(0.016, 0.056), (0.050, 0.050), (0.0555, 0.053)],
        colour="white",
    )
    + _lathes(_curve([(0.0555, 0.053), (0.057, 0.060), (0.046, 0.086), (0.024, 0.102), (0.0, 0.106)], 4)),
}

# Shapes that a person may mix up from some directions: at most one of each set stands on a table.
CONFUSABLE = [{"mug", "goblet", "can"}, {"vase", "bottle"}, {"cone", "pyramid"}]


@dataclass(frozen=True)
class Item:
    """One object: what it is, and where it stands."""

    shape: str
    colour: str
    texture: str
    size: str  # a key of SIZES; only "small" and "large" are ever put into words
    position: tuple[float, float]  # on the table top, metres
    yaw: float  # radians
    seed: int  # of its noise

    @property
    def parts(self) -> list[Part]:
        """Solids in the frame of the unit object."""
        return SHAPES[self.shape]

    @property
    def scale(self) -> float:
        """Metres per unit of the unit object."""
        return SIZES[self.size]

    @cached_property
    def hull(self) -> np.ndarray:
        """[P, 3] points on the surface that its extent depends on, world frame."""
        points = [part.solid.outline() @ part.turn.T + part.shift for part in self.parts]
        return self.to_world(np.concatenate(points))

    @cached_property
    def radius(self) -> float:
        """Radius of the footprint around `position`, metres."""
        return float(np.hypot(*(self.hull[:, :2] - self.position).T).max())

    @cached_property
    def height(self) -> float:
        """Metres."""
        return float(self.hull[:, 2].max())

    @cached_property
    def centre(self) -> np.ndarray:
        """[3] middle of the object."""
        return np.array([*self.position, self.height / 2])

    @cached_property
    def bound(self) -> float:
        """Radius of a sphere around `centre` that holds the object."""
        return float(np.linalg.norm(self.hull - self.centre, axis=1).max()) * 1.02

    @cached_property
    def _turn(self) -> np.ndarray:
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])

    def to_world(self, point: np.ndarray) -> np.ndarray:
        """Unit object to world, [N, 3]."""
        return self.scale * point @ self._turn.T + [*self.position, 0.0]

    def to_object(self, point: np.ndarray) -> np.ndarray:
        """World to unit object, [N, 3]."""
        return (point - [*self.position, 0.0]) @ self._turn / self.scale

    def rotated(self, vector: np.ndarray, part: Part) -> np.ndarray:
        """Directions [N, 3] of a part's frame in the world."""
        return vector @ part.turn.T @ self._turn.T

    def intersect(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(distance [N], part [N], piece [N]) of the first hits of rays in the world; inf where they miss."""
        best = np.full(len(origin), np.inf)
        which, piece = np.zeros(len(origin), dtype=np.int16), np.zeros(len(origin), dtype=np.int16)
        start, heading = self.to_object(origin), direction @ self._turn
        for i, part in enumerate(self.parts):
            distance, hit = part.solid.intersect((start - part.shift) @ part.turn, heading @ part.turn)
            nearer = distance * self.scale < best
            best[nearer], which[nearer], piece[nearer] = distance[nearer] * self.scale, i, hit[nearer]
        return best, which, piece


@dataclass(frozen=True)
class Decal:
    """Something flat on the table that sentences use as a landmark."""

    kind: str  # a key of generate.DECAL_HALF
    position: tuple[float, float]  # of its middle, metres
    half: tuple[float, float]  # half width and half depth, metres
    yaw: float  # radians

    def local(self, point: np.ndarray) -> np.ndarray:
        """Table points [N, 2] in the decal's frame; it covers |x| <= half[0], |y| <= half[1]."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return (point - self.position) @ np.array([[c, -s], [s, c]])

    def inside(self, point: np.ndarray) -> np.ndarray:
        """How far table points [N, 2] are inside the outline, metres; negative outside."""
        return (np.array(self.half) - np.abs(self.local(point))).min(axis=1)


@dataclass(frozen=True)
class Hits:
    """First hits of N rays among the items."""

    distance: np.ndarray  # [N], inf where nothing is hit
    item: np.ndarray  # [N] index or -1
    part: np.ndarray  # [N]
    piece: np.ndarray  # [N]


@dataclass(frozen=True)
class World:
    """A table top."""

    items: list[Item]
    decals: list[Decal]
    seed: int

    def cast(self, origin: np.ndarray, direction: np.ndarray, reach: np.ndarray | float = np.inf) -> Hits:
        """First hits nearer than `reach` of rays with unit directions, [N, 3] each."""
        count = len(origin)
        best = np.broadcast_to(np.asarray(reach, dtype=np.float64), count).copy()
        item = np.full(count, -1, dtype=np.int16)
        part, piece = np.zeros(count, dtype=np.int16), np.zeros(count, dtype=np.int16)
        for i, candidate in enumerate(self.items):
            offset = candidate.centre - origin
            along = dot(offset, direction)
            beside = dot(offset, offset) - along * along
            rays = np.nonzero((beside < candidate.bound**2) & (along > -candidate.bound))[0]
            if not len(rays):
                continue
            distance, which, where = candidate.intersect(origin[rays], direction[rays])
            nearer = distance < best[rays]
            rays = rays[nearer]
            best[rays], item[rays] = distance[nearer], i
            part[rays], piece[rays] = which[nearer], where[nearer]
        return Hits(np.where(item < 0, np.inf, best), item, part, piece)
