"""The objects of one table top and what a ray meets among them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from synthetic.catalogue import SHAPES, Part
from synthetic.geometry import dot

TABLE = (0.52, 0.40)  # half width (x) and half depth (y) of the table top, metres
TABLE_THICKNESS = 0.035
FLOOR = -0.72  # height of the floor, metres
SIZES = {"small": 0.78, "medium": 1.0, "large": 1.24}


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

    @cached_property
    def parts(self) -> list[Part]:
        """Solids in the frame of the unit object."""
        return SHAPES[self.shape]()

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
            best = np.where(nearer, distance * self.scale, best)
            which = np.where(nearer, np.int16(i), which)
            piece = np.where(nearer, hit, piece)
        return best, which, piece


@dataclass(frozen=True)
class Decal:
    """Something flat on the table that sentences use as a landmark."""

    kind: str  # a key of lighting.DECALS
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
