"""Rays of cameras, and their analytic intersections with the three kinds of parts that objects are made of.

Each part lives in its own local frame and offers

    intersect(origin [N, 3], direction [N, 3]) -> (distance [N], piece [N])      inf where the ray misses
    surface(point [N, 3], piece [N])           -> Surface                        at points on the part
    texels(height, width)                      -> (point, normal) [layers, height, width, 3] of the chart's texels
    outline()                                  -> [P, 3] points of the part that its extent depends on

The chart (layer, u, v) addresses baked light; the texture coordinates (turn, along) address patterns: `turn` in
[0, 1) goes once around, `along` is an arc length in metres, `circumference` says how long a turn is there and
`girth` how long it is on the average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scene.cameras import Camera

EPSILON = 1e-5  # metres; a hit nearer to the ray's origin than this is the surface it started from


@dataclass
class Surface:
    """What is known about N points on a part."""

    normal: np.ndarray  # [N, 3] unit, local frame
    layer: np.ndarray  # [N] int
    u: np.ndarray  # [N] in [0, 1)
    v: np.ndarray  # [N] in [0, 1]
    turn: np.ndarray  # [N]
    along: np.ndarray  # [N] metres


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., 3] scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Scalar products [N] of vectors [N, 3]; columns are much faster than a sum over a short axis."""
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def _quadratic(a: np.ndarray, half_b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both roots of a t^2 + 2 half_b t + c without cancellation; NaN where there are none."""
    a = np.where(np.abs(a) < 1e-12, 1e-12, a)
    discriminant = half_b * half_b - a * c
    root = np.sqrt(np.where(discriminant < 0, np.nan, discriminant))
    q = -(half_b + np.where(half_b < 0, -root, root))
    q = np.where(q == 0, 1e-30, q)
    return q / a, c / q


class Lathe:
    """A smooth profile turned around the z axis: a stack of cone frusta with interpolated normals.

    The profile is traversed so that the outside is on its right: upwards on an outer wall, inwards on a top.
    """

    layers, wraps = 1, True

    def __init__(self, profile: list[tuple[float, float]]):
        points = np.array(profile, dtype=np.float64)  # [S + 1, 2] radius and height
        step = np.diff(points, axis=0)
        flat = np.abs(step[:, 1]) < 1e-5  # a flat ring is a very blunt cone: one code path for both
        for i in np.nonzero(flat)[0]:
            points[i + 1 :, 1] += 1e-5 if step[i, 0] < 0 else -1e-5
        step = np.diff(points, axis=0)
        self.points, self.step = points, step
        self.length = np.linalg.norm(step, axis=1)  # [S]
        self.start = np.concatenate([[0.0], np.cumsum(self.length)])  # [S + 1]
        normal = np.stack([step[:, 1], -step[:, 0]], axis=1) / self.length[:, None]
        self.normals = unit(np.concatenate([normal[:1], normal[:-1] + normal[1:], normal[-1:]]))  # [S + 1, 2]
        self.slope = step[:, 0] / step[:, 1]
        self.radius = points[:, 0].max()
        self.girth = 2 * np.pi * float((points[:-1, 0] + points[1:, 0]) @ self.length / 2 / self.start[-1])

    def circumference(self, along: np.ndarray) -> np.ndarray:
        return 2 * np.pi * np.maximum(np.interp(along, self.start, self.points[:, 0]), 1e-4)

    def intersect(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        best, piece = np.full(len(origin), np.inf), np.zeros(len(origin), dtype=np.int16)
        squared = direction[:, 0] ** 2 + direction[:, 1] ** 2
        product = origin[:, 0] * direction[:, 0] + origin[:, 1] * direction[:, 1]
        beside = origin[:, 0] ** 2 + origin[:, 1] ** 2
        meets = product * product - np.maximum(squared, 1e-12) * (beside - self.radius**2) >= 0  # the outer cylinder
        near = np.nonzero(meets)[0]
        squared, product, beside = squared[near], product[near], beside[near]
        start, rise = origin[near, 2], direction[near, 2]
        distance, hit = np.full(len(near), np.inf), np.zeros(len(near), dtype=np.int16)
        for i, slope in enumerate(self.slope):
            (r0, z0), (_, z1) = self.points[i], self.points[i + 1]
            bottom, top = min(z0, z1), max(z0, z1)
            offset = r0 + slope * (start - z0)  # cone radius at the ray's origin
            lean = slope * rise
            with np.errstate(invalid="ignore"):
                for t in _quadratic(squared - lean * lean, product - offset * lean, beside - offset * offset):
                    z = start + t * rise
                    better = (t > EPSILON) & (t < distance) & (z >= bottom) & (z <= top)
                    distance[better], hit[better] = t[better], i
        best[near], piece[near] = distance, hit
        return best, piece

    def surface(self, point: np.ndarray, piece: np.ndarray) -> Surface:
        radius = np.hypot(point[:, 0], point[:, 1])
        offset = np.stack([radius, point[:, 2]], axis=1) - self.points[piece]
        share = np.clip((offset * self.step[piece]).sum(1) / self.length[piece] ** 2, 0, 1)
        flat = self.normals[piece] * (1 - share)[:, None] + self.normals[piece + 1] * share[:, None]
        angle = np.arctan2(point[:, 1], point[:, 0])
        normal = unit(np.stack([flat[:, 0] * np.cos(angle), flat[:, 0] * np.sin(angle), flat[:, 1]], axis=1))
        turn = (angle / (2 * np.pi)) % 1.0
        along = self.start[piece] + share * self.length[piece]
        return Surface(normal, np.zeros(len(point), np.int64), turn, along / self.start[-1], turn, along)

    def texels(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        along = (np.arange(height) + 0.5) / height * self.start[-1]
        angle = (np.arange(width) + 0.5) / width * 2 * np.pi
        radius, z, n_r, n_z = (
            np.interp(along, self.start, values)[:, None] + 0 * angle for values in (*self.points.T, *self.normals.T)
        )
        cos, sin = np.cos(angle), np.sin(angle)
        point = np.stack([radius * cos, radius * sin, z], axis=-1)
        return point[None], unit(np.stack([n_r * cos, n_r * sin, n_z], axis=-1))[None]

    def outline(self) -> np.ndarray:
        angle = np.arange(72)[:, None] / 72 * 2 * np.pi
        radius, z = self.points.T
        return np.stack([radius * np.cos(angle), radius * np.sin(angle), z + 0 * angle], axis=-1).reshape(-1, 3)


class Torus:
    """A torus around the z axis, or the arc of it between two angles (its open ends must be inside other parts)."""

    layers = 1

    def __init__(self, major: float, minor: float, arc: tuple[float, float] = (-np.pi, np.pi)):
        self.major, self.minor, self.arc = major, minor, arc
        self.span = arc[1] - arc[0]
        self.wraps = self.span > 6.28
        self.girth = 2 * np.pi * major

    def circumference(self, along: np.ndarray) -> np.ndarray:
        return np.full(len(along), self.girth)

    def _value(self, p: np.ndarray) -> np.ndarray:
        return np.hypot(np.sqrt(p[..., 0] ** 2 + p[..., 1] ** 2) - self.major, p[..., 2]) - self.minor

    def intersect(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first two entries along the ray are bracketed on 20 samples and then bisected."""
        best, piece = np.full(len(origin), np.inf), np.zeros(len(origin), dtype=np.int16)
        middle = -dot(origin, direction)
        gap = (self.major + self.minor) ** 2 - dot(origin, origin) + middle * middle
        near = np.nonzero((gap > 0) & (middle + np.sqrt(np.maximum(gap, 0)) > EPSILON))[0]
        o, d = origin[near], direction[near]
        half = np.sqrt(gap[near])
        rise = np.where(np.abs(d[:, 2]) < 1e-9, 1e-9, d[:, 2])
        thick = 1.02 * self.minor  # a little more, so that the samples start outside
        slab = np.sort(np.stack([(-thick - o[:, 2]) / rise, (thick - o[:, 2]) / rise]), axis=0)
        start = np.maximum(np.maximum(middle[near] - half, slab[0]), EPSILON)
        end = np.minimum(middle[near] + half, slab[1])
        inside = start < end
        near, o, d, start, end = (x[inside] for x in (near, o, d, start, end))
        steps = start[:, None] + (end - start)[:, None] * np.linspace(0, 1, 20)  # [N, 20]
        value = self._value(o[:, None] + steps[..., None] * d[:, None])
        entering = (value[:, :-1] > 0) & (value[:, 1:] <= 0)
        result = np.full(len(near), np.inf)
        for _ in range(2):
            rays = np.nonzero(entering.any(1) & np.isinf(result))[0]
            first = entering[rays].argmax(1)
            low, high = steps[rays, first], steps[rays, first + 1]
            for _ in range(22):
                centre = (low + high) / 2
                outside = self._value(o[rays] + centre[:, None] * d[rays]) > 0
                low, high = np.where(outside, centre, low), np.where(outside, high, centre)
            hit = o[rays] + high[:, None] * d[rays]
            angle = np.arctan2(hit[:, 1], hit[:, 0])
            kept = (angle - self.arc[0]) % (2 * np.pi) <= self.span
            result[rays[kept]] = high[kept]
            entering[rays, first] = False
        best[near] = result
        return best, piece

    def surface(self, point: np.ndarray, piece: np.ndarray) -> Surface:
        angle = np.arctan2(point[:, 1], point[:, 0])
        ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1) * self.major
        normal = unit(point - ring)
        outward = np.hypot(point[:, 0], point[:, 1]) - self.major
        tube = np.arctan2(point[:, 2], outward)
        u, v = ((angle - self.arc[0]) % (2 * np.pi)) / self.span, tube / (2 * np.pi) + 0.5
        along = (tube + np.pi) * self.minor
        return Surface(normal, np.zeros(len(point), np.int64), u, v, (angle / (2 * np.pi)) % 1.0, along)

    def texels(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        angle = self.arc[0] + (np.arange(width) + 0.5)[None] / width * self.span
        tube = ((np.arange(height) + 0.5)[:, None] / height - 0.5) * 2 * np.pi
        x, y, z = np.cos(tube) * np.cos(angle), np.cos(tube) * np.sin(angle), np.sin(tube) + 0 * angle
        normal = np.stack([x, y, z], axis=-1)
        ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=-1) * self.major
        return (ring + self.minor * normal)[None], normal[None]

    def outline(self) -> np.ndarray:
        return self.texels(48, 72)[0].reshape(-1, 3)


class Polyhedron:
    """A convex polyhedron given by its face planes; each face has a rectangular chart layer of its own."""

    wraps = False

    def __init__(self, normals: np.ndarray, heights: np.ndarray, vertices: np.ndarray):
        self.normals = unit(np.asarray(normals, dtype=np.float64))  # [F, 3]
        self.heights = np.asarray(heights, dtype=np.float64)  # [F]: inside is normal . x <= height
        self.layers = len(self.normals)
        self.vertices = np.asarray(vertices, dtype=np.float64)  # [V, 3]
        upright = np.abs(self.normals[:, 2:]) > 0.99
        self.across = unit(np.where(upright, [1.0, 0.0, 0.0], np.cross([0.0, 0.0, 1.0], self.normals)))  # [F, 3]
        self.up = np.cross(self.normals, self.across)
        on_face = np.abs(vertices @ self.normals.T - self.heights) < 1e-6  # [V, F]
        corners = [np.where(on_face, vertices @ axis.T, np.nan) for axis in (self.across, self.up)]
        self.low = np.stack([np.nanmin(corner, 0) for corner in corners], axis=1)  # [F, 2]
        self.size = np.stack([np.nanmax(corner, 0) for corner in corners], axis=1) - self.low
        self.girth = 1.0

    def circumference(self, along: np.ndarray) -> np.ndarray:  # faces are flat: one metre is one turn
        return np.ones(len(along))

    def intersect(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        speed = direction @ self.normals.T  # [N, F]
        speed = np.where(np.abs(speed) < 1e-12, 1e-12, speed)
        t = (self.heights - origin @ self.normals.T) / speed
        enter = np.where(speed < 0, t, -np.inf)
        leave = np.where(speed > 0, t, np.inf).min(1)
        first = enter.max(1)
        return np.where((first < leave) & (first > EPSILON), first, np.inf), enter.argmax(1).astype(np.int16)

    def surface(self, point: np.ndarray, piece: np.ndarray) -> Surface:
        x = (point * self.across[piece]).sum(1) - self.low[piece, 0]
        y = (point * self.up[piece]).sum(1) - self.low[piece, 1]
        u, v = np.clip(x / self.size[piece, 0], 0, 1), np.clip(y / self.size[piece, 1], 0, 1)
        # Patterns are centred on the face, so that opposite sides of it look alike.
        turn = 0.5 + x - self.size[piece, 0] / 2
        return Surface(self.normals[piece], piece.astype(np.int64), u, v, turn, y)

    def texels(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        u = ((np.arange(width) + 0.5) / width)[None, None, :, None]
        v = ((np.arange(height) + 0.5) / height)[None, :, None, None]
        low, size = self.low[:, None, None], self.size[:, None, None]
        x, y = low[..., :1] + u * size[..., :1], low[..., 1:] + v * size[..., 1:]
        face = (slice(None), None, None)
        point = x * self.across[face] + y * self.up[face] + (self.normals * self.heights[:, None])[face]
        return point, np.broadcast_to(self.normals[face], point.shape)

    def outline(self) -> np.ndarray:
        return self.vertices


Solid = Lathe | Torus | Polyhedron


def look_at(centre: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rotation [3, 3], translation [3]) of a camera at `centre` that looks at `target`, with z upright."""
    forward = (target - centre) / np.linalg.norm(target - centre)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return rotation, -rotation @ centre


def project(camera: Camera, point: np.ndarray) -> np.ndarray:
    """Pixel coordinates and depth [N, 3] of world points [N, 3] (COLMAP pixel convention)."""
    p = point @ camera.rotation.T + camera.translation
    x = camera.fx * p[:, 0] / p[:, 2] + camera.cx
    y = camera.fy * p[:, 1] / p[:, 2] + camera.cy
    return np.stack([x, y, p[:, 2]], axis=1)


def pixel_rays(camera: Camera, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(origin [N, 3], unit direction [N, 3]) of the rays through pixel coordinates x, y [N]."""
    local = np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones(len(x))], axis=1)
    direction = local @ camera.rotation
    direction /= np.sqrt(dot(direction, direction))[:, None]
    return np.broadcast_to(camera.center, direction.shape), direction
