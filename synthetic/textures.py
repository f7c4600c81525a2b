"""Colours and procedural patterns of the objects, and the table top: wood with flat landmarks (decals) on it.

All colours are linear RGB; the picture is encoded as sRGB at the very end.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from synthetic.geometry import Solid, Surface
from synthetic.world import TABLE, Decal, World

# Reflectance of the named colours as sRGB triples.
COLOURS = {
    "red": (196, 38, 42),
    "blue": (38, 84, 178),
    "green": (46, 136, 72),
    "yellow": (236, 190, 44),
    "orange": (232, 118, 32),
    "purple": (116, 62, 156),
    "pink": (232, 128, 164),
    "turquoise": (38, 170, 172),
    "white": (232, 230, 222),
    "black": (44, 44, 50),
}
LIGHT_INK, DARK_INK = (240, 234, 218), (62, 52, 58)  # second colour of patterns on dark and on bright objects

TEXEL = 0.002  # metres a texel of the table's colour
PLANK = 0.1  # metres, width of a plank

# Wood of the table (dark and bright grain) with the floor that suits it, sRGB.
PALETTES = [
    ((84, 64, 48), (148, 116, 88), (150, 160, 164)),  # walnut, blue-grey floor
    ((140, 108, 78), (198, 166, 128), (128, 148, 142)),  # oak, sage floor
    ((112, 96, 84), (176, 160, 142), (140, 150, 164)),  # ash, slate floor
    ((106, 68, 46), (174, 122, 84), (172, 166, 152)),  # cherry, sand floor
]


@dataclass(frozen=True)
class Finish:
    """How a texture reflects: its gloss and whether it mirrors the room as metal does."""

    reflectance: float  # at normal incidence
    roughness: float  # 0 mirror .. 1 matt
    metal: bool = False


# The textures an object can have, by the name that sentences use for them.
FINISHES = {
    "plain": Finish(0.04, 0.16),
    "striped": Finish(0.04, 0.2),
    "spotted": Finish(0.04, 0.2),
    "checkered": Finish(0.04, 0.3),
    "marbled": Finish(0.05, 0.12),
    "wooden": Finish(0.03, 0.5),
    "metallic": Finish(0.75, 0.12, True),
}


def linear(srgb: tuple[int, int, int] | np.ndarray) -> np.ndarray:
    """sRGB 0..255 to linear 0..1, [..., 3]."""
    value = np.asarray(srgb, dtype=np.float64) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def encoded(value: np.ndarray) -> np.ndarray:
    """Linear to sRGB uint8 after a soft shoulder that keeps highlights from clipping hard."""
    value = np.maximum(value, 0)
    value = np.where(value < 0.6, value, 0.6 + 0.4 * (1 - np.exp(-(value - 0.6) / 0.4)))
    srgb = np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)
    return np.clip(np.round(srgb * 255), 0, 255).astype(np.uint8)


def _lattice(x: np.ndarray, y: np.ndarray, z: np.ndarray, seed: int) -> np.ndarray:
    """Hash of integer lattice points to [0, 1)."""
    with np.errstate(over="ignore"):
        h = x.astype(np.uint32) * np.uint32(374761393) + y.astype(np.uint32) * np.uint32(668265263)
        h = h + z.astype(np.uint32) * np.uint32(2147483647) + np.uint32(seed * 974711 % 2**32)
        h = (h ^ (h >> np.uint32(13))) * np.uint32(1274126177)
        h = h ^ (h >> np.uint32(16))
    return h.astype(np.float64) / 2**32


def noise(point: np.ndarray, seed: int, octaves: int = 1) -> np.ndarray:
    """Smooth value noise in [0, 1] at points [N, 3]; its lattice has spacing 1."""
    total, weight, scale = np.zeros(len(point)), 0.0, 1.0
    for octave in range(octaves):
        p = point * scale
        cell = np.floor(p).astype(np.int64)
        f = p - cell
        f = f * f * (3 - 2 * f)
        value = np.zeros(len(point))
        for steps in product((0, 1), repeat=3):
            x, y, z = (f[:, axis] if step else 1 - f[:, axis] for axis, step in enumerate(steps))
            column, row, layer = (cell + steps).T
            value = value + x * y * z * _lattice(column, row, layer, seed + 7 * octave)
        total, weight, scale = total + value / 2**octave, weight + 1 / 2**octave, scale * 2
    return total / weight


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    share = np.clip((value - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)


def wood(point: np.ndarray, seed: int, rings: float) -> np.ndarray:
    """Grain in [0, 1] at points [N, 3] of a trunk along x: `rings` year rings a metre."""
    bent = point + 0.02 * (noise(point * [3, 14, 14], seed, 2)[:, None] - 0.5)
    radius = np.hypot(bent[:, 1] + 0.11, bent[:, 2] * 1.3 + 0.07)
    ring = (radius * rings + 0.6 * noise(point * [2, 9, 9], seed + 1)) % 1.0
    fibre = noise(point * [9, 260, 260], seed + 2)
    return np.clip(0.75 * smoothstep(0, 0.85, ring) * (1 - smoothstep(0.88, 1.0, ring)) + 0.3 * fibre, 0, 1)


def albedo(
    texture: str, colour: str, surface: Surface, point: np.ndarray, solid: Solid, spacing: float, seed: int
) -> np.ndarray:
    """Linear RGB [N, 3] of a pattern at points [N, 3] of the object's frame; `spacing` is its period in metres."""
    base = linear(COLOURS[colour])
    second = linear(DARK_INK if colour in ("white", "yellow", "pink") else LIGHT_INK)
    if texture in ("plain", "metallic"):
        shade = 0.94 + 0.12 * noise(point * 30, seed, 2)
        return base * shade[:, None]
    if texture == "wooden":
        grain = wood(point[:, [2, 0, 1]] + 0.1 * (seed % 7), seed, 75.0)[:, None]
        warm = base * 0.88 + linear((166, 120, 72)) * 0.12  # stained: any more of the wood and blue turns purple
        return warm * (0.38 + 0.85 * grain)
    if texture == "marbled":
        bent = point * 22 + 2.2 * noise(point * 16, seed, 3)[:, None]
        vein = np.abs(np.sin(np.pi * (bent @ np.array([0.8, 0.45, 0.6]))))
        share = (1 - smoothstep(0.0, 0.42, vein)) * (0.45 + 0.55 * noise(point * 40, seed + 3))
        cloud = 0.8 + 0.4 * noise(point * 18, seed + 5, 2)
        return base * cloud[:, None] * (1 - share)[:, None] + second * share[:, None]
    if texture == "striped":
        inked = (surface.along / spacing) % 1.0 < 0.42
        return np.where(inked[:, None], second, base)
    row = np.floor(surface.along / spacing)
    length = solid.circumference((row + 0.5) * spacing)
    if texture == "spotted":
        cells = np.maximum(np.round(length / spacing), 1)
        place = surface.turn * cells + 0.5 * (row % 2)
        across = (place - np.floor(place) - 0.5) * length / cells
        inked = np.hypot(across, surface.along - (row + 0.5) * spacing) < 0.31 * spacing
        return np.where(inked[:, None], second, base)
    columns = 2 * max(round(solid.girth / spacing / 2), 1)
    odd = (np.floor(surface.turn * columns) + row) % 2 < 1
    return np.where(odd[:, None], second, base)


def palette(world: World) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear RGB of (dark grain, bright grain, floor)."""
    dark, bright, floor = PALETTES[int(np.random.default_rng([world.seed, 21]).integers(len(PALETTES)))]
    return linear(dark), linear(bright), linear(floor)


def table_grid(texel: float) -> np.ndarray:
    """[height, width, 2] table points of texel centres, x along the width and y along the height."""
    sizes = [round(2 * half / texel) for half in TABLE]
    axes = [(np.arange(n) + 0.5) / n * 2 * half - half for n, half in zip(sizes, TABLE, strict=True)]
    return np.stack(np.meshgrid(*axes), axis=-1)


def sample_table(image: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Bilinear look-up of a table image [height, width, C] at table points [N, 2]."""
    size = np.array(image.shape[1::-1])
    x, y = np.clip((point / TABLE + 1) / 2 * size - 0.5, 0, size - 1.001).T
    column, row = x.astype(np.int64), y.astype(np.int64)
    return interpolate(image, (row, row + 1), (column, column + 1), y - row, x - column)


def interpolate(image: np.ndarray, rows, columns, y_share: np.ndarray, x_share: np.ndarray) -> np.ndarray:
    """Bilinear interpolation [N, C] between two rows and two columns ([N] indices each) of an image [H, W, C]."""
    x, y = x_share[:, None], y_share[:, None]
    top, bottom = (image[row, columns[0]] * (1 - x) + image[row, columns[1]] * x for row in rows)
    return top * (1 - y) + bottom * y


def paint_table(world: World) -> np.ndarray:
    """Linear RGB [height, width, 3] of the table top with its decals."""
    place = table_grid(TEXEL)
    point = np.pad(place.reshape(-1, 2), ((0, 0), (0, 1)))
    plank = np.floor((point[:, 1] + TABLE[1]) / PLANK)
    across = (point[:, 1] + TABLE[1]) / PLANK - plank
    rng = np.random.default_rng([world.seed, 22])
    shift, tone = rng.uniform(-3, 3, (64, 3)), rng.uniform(0.82, 1.12, 64)
    index = plank.astype(np.int64) % 64
    trunk = np.stack([point[:, 0], point[:, 1] * 0.6, 0 * point[:, 0]], axis=1)
    grain = wood(trunk + shift[index] * [1, 0.05, 0.05], world.seed, 42.0)
    dark, bright, _ = palette(world)
    colour = (dark + (bright - dark) * (0.25 + 0.75 * grain)[:, None]) * tone[index][:, None]
    seam = smoothstep(0.0, 0.025, np.minimum(across, 1 - across))
    colour *= (0.45 + 0.55 * seam)[:, None]
    for decal in world.decals:
        cover = smoothstep(-TEXEL, TEXEL, decal.inside(point[:, :2]))[:, None]
        colour = colour * (1 - cover) + cover * _paint_decal(decal, point)
    return colour.reshape(*place.shape[:2], 3)


def _paint_decal(decal: Decal, point: np.ndarray) -> np.ndarray:
    """Linear RGB [N, 3] of a decal at table points [N, 3]."""
    place, inside = decal.local(point[:, :2]), decal.inside(point[:, :2])
    if decal.kind == "napkin":
        cloth, hem = linear((226, 218, 200)), linear((172, 62, 58))
        band = smoothstep(0.012, 0.014, inside) * (1 - smoothstep(0.02, 0.022, inside))
        thread = 0.9 + 0.2 * noise(point * [500, 500, 1], 5)
        return (cloth + (hem - cloth) * band[:, None]) * thread[:, None]
    if decal.kind == "letter":
        paper, ink = linear((238, 236, 228)), linear((92, 94, 104))
        line = np.floor(place[:, 1] / 0.011)
        word = noise(np.stack([place[:, 0] * 90, line * 7.3, 0 * line], axis=1), 9) > 0.36
        written = (np.abs(place[:, 1] / 0.011 - line - 0.5) < 0.22) & word & (inside > 0.014)
        return np.where(written[:, None], ink, paper)
    if decal.kind == "mat":
        first, second = linear((74, 100, 122)), linear((128, 150, 162))
        weave = 0.5 + 0.5 * np.sin(place[:, 0] * 700) * np.sin(place[:, 1] * 700)
        bands = ((place[:, 0] / 0.024) % 1.0 < 0.5) * 0.5 + 0.3
        return first + (second - first) * (0.6 * bands + 0.4 * weave)[:, None]
    glaze, blue = linear((226, 230, 228)), linear((42, 74, 140))  # a tile
    star = np.abs((place / decal.half) % 1.0 - 0.5)
    flower = np.hypot(star[:, 0], star[:, 1]) + 0.1 * np.cos(8 * np.arctan2(star[:, 1], star[:, 0]))
    share = np.where(inside < 0.007, 1.0, (1 - smoothstep(0.3, 0.34, flower)) * smoothstep(0.1, 0.14, flower))
    return glaze + (blue - glaze) * share[:, None]
