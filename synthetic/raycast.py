"""Pictures of a world: first hits of five rays a pixel, textured, lit by baked light, with highlights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scene.cameras import Camera
from synthetic import dome, lighting, textures
from synthetic.catalogue import Part
from synthetic.geometry import dot, unit
from synthetic.lighting import Baked
from synthetic.textures import FINISHES, Finish, albedo, encoded, smoothstep
from synthetic.world import FLOOR, TABLE, TABLE_THICKNESS, Hits, Item, World

# The pixel's centre, which decides the mask, and a rotated grid around it for antialiasing.
OFFSETS = np.array([[0.5, 0.5], [0.375, 0.125], [0.875, 0.375], [0.625, 0.875], [0.125, 0.625]])
TABLE_FINISH = Finish(0.04, 0.35)
PATTERN = 0.03  # metres, period of patterns on an object of medium size


@dataclass(frozen=True)
class Picture:
    """One rendered view."""

    rgb: np.ndarray  # [H, W, 3] uint8
    ids: np.ndarray  # [H, W] index of the item under the pixel's centre, -1 for table and background
    point: np.ndarray  # [H, W, 3] what the ray through the pixel's centre hits


def item_ids(world: World, camera: Camera) -> np.ndarray:
    """[H, W] item index under every pixel centre, or -1."""
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    hits = world.cast(*dome.rays(camera, x.ravel(), y.ravel()))
    return hits.item.reshape(camera.height, camera.width)


def render(world: World, baked: Baked, camera: Camera) -> Picture:
    """Take the picture of one camera."""
    height, width = camera.height, camera.width
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    x = (x.ravel() + OFFSETS[:, :1]).ravel()
    y = (y.ravel() + OFFSETS[:, 1:]).ravel()
    origin, direction = dome.rays(camera, x, y)
    hits = world.cast(origin, direction)
    colour, distance = _surroundings(baked, origin, direction, hits)
    for index, item in enumerate(world.items):
        for number, part in enumerate(item.parts):
            rays = np.nonzero((hits.item == index) & (hits.part == number))[0]
            if len(rays):
                point = origin[rays] + distance[rays, None] * direction[rays]
                chart = baked.charts[index][number]
                colour[rays] = _shade_part(baked, item, part, chart, hits.piece[rays], point, direction[rays])
    rgb = encoded(colour).reshape(len(OFFSETS), height, width, 3)
    centre = slice(0, height * width)
    point = origin[centre] + distance[centre, None] * direction[centre]
    mean = np.round(rgb.astype(np.float64).mean(axis=0)).astype(np.uint8)
    return Picture(mean, hits.item[centre].reshape(height, width), point.reshape(height, width, 3))


def _surroundings(baked: Baked, origin: np.ndarray, direction: np.ndarray, hits: Hits) -> tuple[np.ndarray, np.ndarray]:
    """(colour [N, 3], distance [N]) of table and floor; rays that hit items keep their distance and stay black."""
    colour = np.zeros((len(origin), 3))
    distance = hits.distance.copy()
    free = np.nonzero(hits.item < 0)[0]
    down = np.minimum(direction[free, 2], -1e-6)
    top = -origin[free, 2] / down
    point = origin[free] + top[:, None] * direction[free]
    on_top = (np.abs(point[:, :2]) <= TABLE).all(1)
    rays = free[on_top]
    distance[rays] = top[on_top]
    light = textures.sample_table(baked.table_light, point[on_top, :2])
    wood = textures.sample_table(baked.table_colour, point[on_top, :2])
    normal = np.broadcast_to([0.0, 0.0, 1.0], (len(rays), 3))
    open_sky = np.clip(light[:, :3].mean(1) / 1.2, 0.2, 1)
    shine = _shine(TABLE_FINISH, baked, point[on_top], normal, direction[rays], light[:, 3], open_sky)
    colour[rays] = wood * light[:, :3] + shine

    rays, down = free[~on_top], down[~on_top]
    # The table's edge is a box under the table top; of its sides only those that face the camera can be hit first.
    edge = np.full(len(rays), np.inf)
    bright = np.zeros(len(rays))
    for axis, side, light_on_side in ((1, -1, 0.75), (0, -1, 1.0), (0, 1, 0.45)):
        speed = direction[rays, axis]
        t = (side * TABLE[axis] - origin[rays, axis]) / np.where(np.abs(speed) < 1e-9, 1e-9, speed)
        place = origin[rays] + t[:, None] * direction[rays]
        hit = (speed * side < 0) & (np.abs(place[:, 1 - axis]) <= TABLE[1 - axis])
        hit &= (place[:, 2] <= 0) & (place[:, 2] >= -TABLE_THICKNESS) & (t < edge)
        edge, bright = np.where(hit, t, edge), np.where(hit, light_on_side, bright)
    on_edge = np.isfinite(edge)
    t = np.where(on_edge, edge, (FLOOR - origin[rays, 2]) / down)
    place = origin[rays] + t[:, None] * direction[rays]
    wood = textures.sample_table(baked.table_colour, place[:, :2]) * bright[:, None] * 0.9
    # The floor lies in the table's broad shadow, which falls away from the window, and fades to a bright room far away.
    shade = np.ones(len(place))
    for axis, shift in ((0, 0.35), (1, 0.12)):
        shade = shade * (1 - smoothstep(TABLE[axis] * 0.55, TABLE[axis] * 1.7, np.abs(place[:, axis] - shift)))
    far = smoothstep(1.0, 6.0, np.hypot(place[:, 0], place[:, 1]))[:, None]
    near = baked.floor * (1.0 - 0.62 * shade)[:, None]
    colour[rays] = np.where(on_edge[:, None], wood, near * (1 - far) + far * (0.35 * baked.floor + 0.5))
    distance[rays] = t
    return colour, distance


def _shade_part(baked: Baked, item: Item, part: Part, chart, piece, point, direction) -> np.ndarray:
    """Colour [N, 3] of points on one part of one item."""
    on_object = item.to_object(point)
    surface = part.solid.surface((on_object - part.shift) @ part.turn, piece)
    texture, colour = ("plain", part.colour) if part.colour else (item.texture, item.colour)
    finish = FINISHES[texture]
    base = albedo(texture, colour, surface, on_object, part.solid, PATTERN, item.seed)
    light = lighting.look_up(chart, surface.layer, surface.u, surface.v, part.solid.wraps)
    normal = item.rotated(surface.normal, part)
    diffuse = base * light[:, :3] * (0.12 if finish.metal else 1.0)
    shine = _shine(finish, baked, point, normal, direction, light[:, 3], light[:, 4])
    return diffuse + shine * (base + 0.08 if finish.metal else 1.0)


def _shine(finish: Finish, baked: Baked, point, normal, direction, window, open_sky) -> np.ndarray:
    """Mirrored light [N, 3]: the window where it is visible, the sky, and the table top below."""
    cosine = dot(direction, normal)
    facing = np.clip(-cosine, 0, 1)
    mirrored = unit(direction - 2 * cosine[:, None] * normal)
    share = finish.reflectance + (1 - finish.reflectance) * (1 - facing) ** 5 * (1 - finish.roughness)
    upward = mirrored[:, 2] > 0
    seen = lighting.sky(mirrored)
    if finish.metal:  # dark walls under a bright ceiling: the contrast is what makes metal look like metal
        seen = seen * (0.25 + 2.6 * smoothstep(0.25, 0.75, mirrored[:, 2]))[:, None]
    seen = np.where(upward[:, None], seen, 0.5 * baked.floor)
    below = np.nonzero(~upward)[0]
    reach = -point[below, 2] / np.minimum(mirrored[below, 2], -1e-6)
    place = point[below, :2] + reach[:, None] * mirrored[below, :2]
    on_table = (np.abs(place) < TABLE).all(1)
    spot = place[on_table]
    wood = textures.sample_table(baked.table_colour, spot)
    if finish.metal:  # brushed: it blurs what it mirrors
        wood = 0.4 * wood + 0.6 * baked.table_colour.mean((0, 1))
    seen[below[on_table]] = textures.sample_table(baked.table_light, spot)[:, :3] * wood
    occlusion = np.where(upward, open_sky, 0.4 + 0.6 * open_sky)[:, None]
    blur = finish.roughness * 0.55
    pane = lighting.window_radiance(point, mirrored, blur) * window
    strength = 9.0 / (1 + 14 * finish.roughness**2)
    return share[:, None] * (seen * occlusion + pane[:, None] * strength * np.array([1.0, 0.95, 0.86]))
