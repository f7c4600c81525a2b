"""The logic of referring: attributes and spatial relations with three answers, and who a sentence refers to.

A predicate is a JSON list: `["colour", "red"]` or `["left_of", landmark]`, where a landmark is `{"item": 3,
"predicates": [...]}` (an object, with the attributes that single it out), `{"decal": "napkin"}`, or the name of a
table edge. A relation answers 1 (holds in every view, by a margin), -1 (clearly holds in none) or 0 (a matter of
opinion, never used for or against a referent).
"""

from __future__ import annotations

import numpy as np

from scene.cameras import Camera
from synthetic.geometry import project
from synthetic.world import TABLE, World

ATTRIBUTES = ("shape", "colour", "texture", "size")
# The axis and side of the table in which a direction leads, seen from the landmark.
DIRECTIONS = {"left_of": (0, -1), "right_of": (0, 1), "in_front_of": (1, -1), "behind": (1, 1)}
SUPERLATIVES = ("closest_to", "farthest_from", "nearest_edge")  # compared among those with the same attributes
EDGES = {"front": (1, -1), "back": (1, 1), "left": (0, -1), "right": (0, 1)}  # axis and side of the table

IMAGE_MARGIN = 0.03  # share of the picture's width by which left and right must differ in every view
DEPTH_MARGIN = 0.03  # metres by which front and back must differ along every line of sight
NEXT_TO, NOT_NEXT_TO = 0.075, 0.15  # metres between outlines
RATIO = 0.8  # the closest is at most this share of the next one's distance
EDGE_MARGIN = 0.07  # metres


class Relations:
    """Answers for one world seen by a set of cameras."""

    def __init__(self, world: World, cameras: list[Camera]):
        self.world = world
        positions = [item.position for item in world.items] + [decal.position for decal in world.decals]
        self.place = np.array([(*p, 0.0) for p in positions])  # [items + decals, 3]
        self.decal_index = {decal.kind: len(world.items) + i for i, decal in enumerate(world.decals)}
        pixels = np.array([project(camera, self.place) for camera in cameras])
        self.pixel = pixels[..., :2] / cameras[0].width  # [views, places, 2]
        forward = np.array([camera.rotation[2] for camera in cameras])
        forward[:, 2] = 0  # depth is judged along the table
        forward /= np.linalg.norm(forward, axis=1, keepdims=True)
        self.depth = forward @ self.place.T  # [views, places]

    def index(self, landmark: dict) -> int:
        """Row of a landmark in `place`."""
        return landmark["item"] if "item" in landmark else self.decal_index[landmark["decal"]]

    def candidates(self, predicates: list) -> list[int]:
        """Items that have all attributes among `predicates`."""
        attributes = [p for p in predicates if p[0] in ATTRIBUTES]
        return [i for i, own in enumerate(self.world.items) if all(getattr(own, name) == v for name, v in attributes)]

    def answer(self, item: int, predicate: list, rivals: list[int]) -> int:
        """1, -1 or 0 for a relation of `item`; superlatives compare it with `rivals` (which may hold it)."""
        name, *landmarks = predicate
        if name in SUPERLATIVES:
            return self._superlative(name, landmarks[0], item, rivals)
        places = [self.index(landmark) for landmark in landmarks]
        if item in places:
            return -1
        if name in DIRECTIONS:
            return self._direction(name, item, places[0])
        if name == "between":
            return self._between(item, *places)
        gap = self._gap(item, places[0])
        if name == "on":
            return 1 if gap < -self.world.items[item].radius else (-1 if gap > 0 else 0)
        if gap < -0.01:
            return 0  # next to: it stands on the landmark, which one would say instead
        return 1 if gap < NEXT_TO else (-1 if gap > NOT_NEXT_TO else 0)

    def singles_out(self, predicates: list, item: int) -> bool:
        """Whether the predicates hold for `item` by a margin and clearly exclude everything else."""
        rivals = self.candidates(predicates)
        related = [p for p in predicates if p[0] not in ATTRIBUTES]
        possible = [i for i in rivals if all(self.answer(i, p, rivals) >= 0 for p in related)]
        return possible == [item] and all(self.answer(item, p, rivals) == 1 for p in related)

    def _gap(self, item: int, place: int) -> float:
        """Metres between the outlines of an item and of another place; negative if they overlap."""
        own = self.world.items[item].radius
        if place < len(self.world.items):
            distance = np.linalg.norm(self.place[item] - self.place[place])
            return float(distance - own - self.world.items[place].radius)
        decal = self.world.decals[place - len(self.world.items)]
        return float(-decal.inside(self.place[item : item + 1, :2])[0] - own)

    def _direction(self, name: str, item: int, place: int) -> int:
        axis, sign = DIRECTIONS[name]
        seen, margin = ((self.pixel[..., 0], IMAGE_MARGIN), (self.depth, DEPTH_MARGIN))[axis]
        lead = sign * (seen[:, item] - seen[:, place])
        offset = self.place[item] - self.place[place]
        if (lead > margin).all() and sign * offset[axis] > 0.8 * abs(offset[1 - axis]):
            return 1
        return -1 if (lead < 0).all() else 0

    def _between(self, item: int, first: int, second: int) -> int:
        ground = _along(self.place[item, :2], self.place[first, :2], self.place[second, :2])
        length = np.linalg.norm(self.place[first] - self.place[second])
        views = _along(self.pixel[:, item], self.pixel[:, first], self.pixel[:, second])
        if ground[0] < -0.1 or ground[0] > 1.1 or ground[1] > 0.6:
            return -1
        near = 0.2 < ground[0] < 0.8 and ground[1] < 0.3 and length < 0.65
        return int(near and (views[0] > 0.15).all() and (views[0] < 0.85).all() and (views[1] < 0.4).all())

    def _superlative(self, name: str, landmark: dict | str, item: int, rivals: list[int]) -> int:
        others = [i for i in rivals if i != item]
        if not others:
            return 0  # nothing to compare with: one would not say it
        if isinstance(landmark, str):  # of the table: "nearest_edge"
            axis, side = EDGES[landmark]
            distance = TABLE[axis] - side * self.place[:, axis]
            lead = distance[others].min() - distance[item]
            return 1 if lead > EDGE_MARGIN else (-1 if lead < -EDGE_MARGIN else 0)
        place = self.index(landmark)
        if place in rivals:
            return 0
        distance = np.linalg.norm(self.place - self.place[place], axis=1)
        small, large = distance[item], distance[others].min()
        if name == "farthest_from":
            small, large = distance[others].max(), distance[item]
        return 1 if small < RATIO * large else (-1 if large < RATIO * small else 0)


def _along(point: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(share of the way from first to second, distance from that line over its length) of points [..., 2]."""
    way = second - first
    squared = (way * way).sum(-1)
    offset = point - first
    share = (offset * way).sum(-1) / squared
    across = np.abs(offset[..., 0] * way[..., 1] - offset[..., 1] * way[..., 0]) / squared
    return share, across
