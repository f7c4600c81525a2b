"""Pictures of a world: first hits of five rays a pixel, textured, lit by baked light, with highlights.

A window is the area light under a soft sky. Diffuse light does not depend on the camera, so it is baked once on the
charts of all parts and of the table (direct light with soft shadows from the window, then one bounce and ambient
occlusion over the hemisphere): all views agree, and a picture needs no shadow rays.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np

from scene.cameras import Camera
from synthetic import textures
from synthetic.geometry import Solid, dot, pixel_rays, unit
from synthetic.textures import COLOURS, FINISHES, Finish, albedo, encoded, linear, smoothstep
from synthetic.world import FLOOR, TABLE, TABLE_THICKNESS, Hits, Item, Part, World

# The pixel's centre, which decides the mask, and a rotated grid around it for antialiasing.
OFFSETS = np.array([[0.5, 0.5], [0.375, 0.125], [0.875, 0.375], [0.625, 0.875], [0.125, 0.625]])
TABLE_FINISH = Finish(0.04, 0.35)
PATTERN = 0.03  # metres, period of patterns on an object of medium size
WINDOW = np.array([-0.95, -0.35, 1.35])  # centre of the area light, metres
WINDOW_HALF = 0.30  # half its side
WINDOW_COLOUR = np.array([1.0, 0.95, 0.88]) * 1.85  # irradiance it gives a facing surface at the table's centre
FACING = unit(-WINDOW)
ACROSS = unit(np.cross([0.0, 0.0, 1.0], FACING))
UPRIGHT = np.cross(FACING, ACROSS)
BOUNCE = np.array([0.42, 0.42, 0.44])  # irradiance assumed on objects that bounce light
# Texels of baked light in metres, for pictures 180 pixels high.
DIRECT_TEXEL, AMBIENT_TEXEL, CHART_TEXEL = 0.004, 0.008, 0.0055
CHUNK = 12000  # texels a task


def sky(direction: np.ndarray) -> np.ndarray:
    """Radiance [N, 3] from upward unit directions."""
    height = np.clip(direction[:, 2:], 0, 1)
    rim = smoothstep(0.2, 0.95, direction @ unit(np.array([0.75, 0.6, 0.35])))[:, None]
    horizon, zenith = np.array([0.50, 0.48, 0.46]), np.array([0.58, 0.66, 0.78])
    return horizon * (1 - height) + zenith * height + rim * np.array([0.55, 0.5, 0.45])


def window_radiance(origin: np.ndarray, direction: np.ndarray, blur: float) -> np.ndarray:
    """Brightness [N] of the window seen along reflected rays; `blur` metres soften its outline."""
    speed = direction @ FACING
    distance = ((WINDOW - origin) @ FACING) / np.where(np.abs(speed) < 1e-6, 1e-6, speed)
    place = origin + distance[:, None] * direction - WINDOW
    shape = np.ones(len(place))
    for axis in (ACROSS, UPRIGHT):
        shape = shape * (1 - smoothstep(WINDOW_HALF - blur, WINDOW_HALF + blur, np.abs(place @ axis)))
    pane = 1 - 0.8 * (1 - smoothstep(0.012, 0.03 + blur, np.abs(place @ ACROSS)))  # the bar between two panes
    return np.where((speed < 0) & (distance > 0), shape * pane, 0.0)


@dataclass
class Baked:
    """Baked light of a world."""

    table_colour: np.ndarray  # [H, W, 3] linear RGB
    table_light: np.ndarray  # [h, w, 4] irradiance over pi, share of the window that is visible
    charts: list[list[np.ndarray]]  # an item, a part: [layers, h, w, 5] the same and the share of open sky
    floor: np.ndarray  # [3] linear RGB


def direct(world: World, point: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """[N, 4] irradiance of the window and its visible share at surface points."""
    total, origin = np.zeros((len(point), 4)), point + 1e-3 * normal
    rng = np.random.default_rng(3)
    rows, columns = np.divmod(np.arange(24), 6)  # a jittered grid on the window
    u = (columns + rng.uniform(0.2, 0.8, 24)) / 6 * 2 - 1
    v = (rows + rng.uniform(0.2, 0.8, 24)) / 4 * 2 - 1
    for target in WINDOW + WINDOW_HALF * (u[:, None] * ACROSS + v[:, None] * UPRIGHT):
        offset = target - origin
        distance = np.sqrt(dot(offset, offset))
        heading = offset / distance[:, None]
        facing = dot(heading, normal)
        lit = np.nonzero(facing > 0)[0]
        lit = lit[world.cast(origin[lit], heading[lit], distance[lit]).item < 0]
        fall = (np.linalg.norm(WINDOW) / distance[lit]) ** 2 * -(heading[lit] @ FACING)
        total[lit, :3] += (facing[lit] * fall)[:, None] * WINDOW_COLOUR
        total[lit, 3] += 1
    return total / 24


def ambient(world: World, point: np.ndarray, normal: np.ndarray, table: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """[N, 4] irradiance from sky, table and other objects, and the share of rays that see the sky.

    `table` [h, w, 3] and `floor` [3] are the light that leaves the table top and the floor.
    """
    total, origin = np.zeros((len(point), 4)), point + 1e-3 * normal
    helper = np.where(np.abs(normal[:, 2:]) > 0.9, [1.0, 0, 0], [0, 0, 1.0])
    tangent = unit(np.cross(helper, normal))
    bitangent = np.cross(normal, tangent)
    glow = np.array([linear(COLOURS[item.colour]) for item in world.items]) * BOUNCE
    index = np.arange(56) + 0.5  # cosine-distributed directions around the normal
    radius, angle = np.sqrt(index / 56), index * 2.399963
    for x, y, z in zip(radius * np.cos(angle), radius * np.sin(angle), np.sqrt(1 - radius**2), strict=True):
        heading = x * tangent + y * bitangent + z * normal
        upward = heading[:, 2] > 1e-6
        reach = np.where(upward, np.inf, -origin[:, 2] / np.minimum(heading[:, 2], -1e-6))
        hits = world.cast(origin, heading, reach)
        blocked = hits.item >= 0
        light = np.where(upward[:, None], sky(heading), floor)
        down = np.nonzero(~upward & ~blocked)[0]
        place = origin[down] + reach[down, None] * heading[down]
        on_table = (np.abs(place[:, :2]) < TABLE).all(1)
        light[down[on_table]] = textures.sample_table(table, place[on_table, :2])
        light[blocked] = glow[hits.item[blocked]]
        total[:, :3] += light
        total[:, 3] += upward & ~blocked
    return total / 56


def _gather(function: Callable, pool: Executor, point: np.ndarray, normal: np.ndarray, *more) -> np.ndarray:
    """`function` over chunks of points, in parallel."""
    starts = range(0, len(point), CHUNK)
    parts = pool.map(lambda s: function(point[s : s + CHUNK], normal[s : s + CHUNK], *more), starts)
    return np.concatenate(list(parts))


def _chart_size(solid: Solid, scale: float, texel: float) -> tuple[int, int]:
    """(height, width) of a part's chart for texels of about `texel` metres."""
    point, _ = solid.texels(8, 16)
    along = np.linalg.norm(np.diff(point, axis=1), axis=-1).sum(1).max() * scale * 8 / 7
    around = np.linalg.norm(np.diff(point, axis=2), axis=-1).sum(2).max() * scale * 16 / 15
    return int(np.clip(round(along / texel), 3, 64)), int(np.clip(round(around / texel), 6, 112))


def bake(world: World, height: int, pool: Executor) -> Baked:
    """Gather light on the table and on all items, as finely as pictures of `height` pixels show it."""
    fineness = float(np.clip(height / 180, 0.4, 2))
    colour, (_, _, floor) = textures.paint_table(world), textures.palette(world)
    fine, coarse = textures.table_grid(DIRECT_TEXEL / fineness), textures.table_grid(AMBIENT_TEXEL / fineness)

    def on_table(place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # points and normals of a grid
        point = np.pad(place.reshape(-1, 2), ((0, 0), (0, 1)))
        return point, np.broadcast_to([0.0, 0.0, 1.0], point.shape)

    def enlarged(image: np.ndarray) -> np.ndarray:  # on the fine grid
        return textures.sample_table(image, fine.reshape(-1, 2)).reshape(*fine.shape[:2], -1)

    lit, shaded = partial(direct, world), partial(ambient, world, floor=floor * 0.5)
    table_light = _gather(lit, pool, *on_table(fine)).reshape(*fine.shape[:2], 4)
    shade = _gather(shaded, pool, *on_table(coarse), np.zeros((2, 2, 3))).reshape(*coarse.shape[:2], 4)
    table_light[..., :3] += enlarged(shade)[..., :3]
    leaving = table_light[..., :3] * enlarged(colour)

    points, normals, sizes = [], [], []
    for item in world.items:
        for part in item.parts:
            size = _chart_size(part.solid, item.scale, CHART_TEXEL / fineness)
            point, normal = part.solid.texels(*size)
            sizes.append((part.solid.layers, *size))
            points.append(item.to_world(point.reshape(-1, 3) @ part.turn.T + part.shift))
            normals.append(item.rotated(normal.reshape(-1, 3), part))
    point, normal = np.concatenate(points), np.concatenate(normals)
    point[:, 2] = np.maximum(point[:, 2], 1e-3)
    light = _gather(lit, pool, point, normal)
    shade = _gather(shaded, pool, point, normal, leaving)
    light = np.concatenate([light[:, :3] + shade[:, :3], light[:, 3:], shade[:, 3:]], axis=1)
    pieces = np.split(light, np.cumsum([np.prod(size) for size in sizes])[:-1])
    flat = iter([piece.reshape(*size, 5) for piece, size in zip(pieces, sizes, strict=True)])
    charts = [[next(flat) for _ in item.parts] for item in world.items]
    return Baked(colour, table_light, charts, floor)


def look_up(chart: np.ndarray, layer: np.ndarray, u: np.ndarray, v: np.ndarray, wraps: bool) -> np.ndarray:
    """Bilinear look-up [N, C] in a chart [layers, h, w, C]; u wraps around where the chart does."""
    _, height, width, channels = chart.shape
    x, y = u * width - 0.5, np.clip(v * height - 0.5, 0, height - 1)
    if not wraps:
        x = np.clip(x, 0, width - 1)
    column, row = np.floor(x).astype(np.int64), np.minimum(y.astype(np.int64), height - 2)
    after = (column + 1) % width if wraps else np.minimum(column + 1, width - 1)
    rows = layer * height + row  # of the layers below each other
    columns = column % width, after
    return textures.interpolate(chart.reshape(-1, width, channels), (rows, rows + 1), columns, y - row, x - column)


@dataclass(frozen=True)
class Picture:
    """One rendered view."""

    rgb: np.ndarray  # [H, W, 3] uint8
    ids: np.ndarray  # [H, W] index of the item under the pixel's centre, -1 for table and background
    point: np.ndarray  # [H, W, 3] what the ray through the pixel's centre hits


def item_ids(world: World, camera: Camera) -> np.ndarray:
    """[H, W] item index under every pixel centre, or -1."""
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    hits = world.cast(*pixel_rays(camera, x.ravel(), y.ravel()))
    return hits.item.reshape(camera.height, camera.width)


def render(world: World, baked: Baked, camera: Camera) -> Picture:
    """Take the picture of one camera."""
    height, width = camera.height, camera.width
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    x = (x.ravel() + OFFSETS[:, :1]).ravel()
    y = (y.ravel() + OFFSETS[:, 1:]).ravel()
    origin, direction = pixel_rays(camera, x, y)
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
    light = look_up(chart, surface.layer, surface.u, surface.v, part.solid.wraps)
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
    seen = sky(mirrored)
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
    pane = window_radiance(point, mirrored, 0.55 * finish.roughness) * window
    strength = 9.0 / (1 + 14 * finish.roughness**2)
    return share[:, None] * (seen * occlusion + pane[:, None] * strength * np.array([1.0, 0.95, 0.86]))
