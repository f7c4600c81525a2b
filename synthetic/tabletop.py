"""The table top as a picture: planks of wood and the flat landmarks that lie on them."""

from __future__ import annotations

import numpy as np

from synthetic.textures import linear, noise, smoothstep, wood
from synthetic.world import TABLE, Decal, World

TEXEL = 0.002  # metres a texel of the table's colour
PLANK = 0.1  # metres, width of a plank

# Wood of the table (dark and bright grain) with the floor that suits it, sRGB.
PALETTES = [
    ((84, 64, 48), (148, 116, 88), (150, 160, 164)),  # walnut, blue-grey floor
    ((140, 108, 78), (198, 166, 128), (128, 148, 142)),  # oak, sage floor
    ((112, 96, 84), (176, 160, 142), (140, 150, 164)),  # ash, slate floor
    ((106, 68, 46), (174, 122, 84), (172, 166, 152)),  # cherry, sand floor
]


def palette(world: World) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear RGB of (dark grain, bright grain, floor)."""
    dark, bright, floor = PALETTES[int(np.random.default_rng([world.seed, 21]).integers(len(PALETTES)))]
    return linear(dark), linear(bright), linear(floor)


def grid(texel: float) -> np.ndarray:
    """[height, width, 2] table points of texel centres, x along the width and y along the height."""
    width, height = (round(2 * half / texel) for half in TABLE)
    x = (np.arange(width) + 0.5) / width * 2 * TABLE[0] - TABLE[0]
    y = (np.arange(height) + 0.5) / height * 2 * TABLE[1] - TABLE[1]
    return np.stack(np.meshgrid(x, y), axis=-1)


def sample(image: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Bilinear look-up of a table image [height, width, C] at table points [N, 2]."""
    height, width = image.shape[:2]
    x = (point[:, 0] / TABLE[0] + 1) / 2 * width - 0.5
    y = (point[:, 1] / TABLE[1] + 1) / 2 * height - 0.5
    x, y = np.clip(x, 0, width - 1.001), np.clip(y, 0, height - 1.001)
    column, row = x.astype(np.int64), y.astype(np.int64)
    fx, fy = (x - column)[:, None], (y - row)[:, None]
    top = image[row, column] * (1 - fx) + image[row, column + 1] * fx
    bottom = image[row + 1, column] * (1 - fx) + image[row + 1, column + 1] * fx
    return top * (1 - fy) + bottom * fy


def paint(world: World) -> np.ndarray:
    """Linear RGB [height, width, 3] of the table top with its decals."""
    place = grid(TEXEL)
    shape = place.shape[:2]
    point = np.concatenate([place.reshape(-1, 2), np.zeros((shape[0] * shape[1], 1))], axis=1)
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
        colour = colour * (1 - cover) + cover * DECALS[decal.kind](decal, decal.local(point[:, :2]), point)
    return colour.reshape(*shape, 3)


def _napkin(decal: Decal, place: np.ndarray, point: np.ndarray) -> np.ndarray:
    inside = (np.array(decal.half) - np.abs(place)).min(axis=1)
    cloth, hem = linear((226, 218, 200)), linear((172, 62, 58))
    band = smoothstep(0.012, 0.014, inside) * (1 - smoothstep(0.02, 0.022, inside))
    thread = 0.9 + 0.2 * noise(point * [500, 500, 1], 5)
    return (cloth + (hem - cloth) * band[:, None]) * thread[:, None]


def _letter(decal: Decal, place: np.ndarray, point: np.ndarray) -> np.ndarray:
    paper, ink = linear((238, 236, 228)), linear((92, 94, 104))
    inside = (np.array(decal.half) - np.abs(place)).min(axis=1)
    line = np.floor(place[:, 1] / 0.011)
    word = noise(np.stack([place[:, 0] * 90, line * 7.3, 0 * line], axis=1), 9) > 0.36
    written = (np.abs(place[:, 1] / 0.011 - line - 0.5) < 0.22) & word & (inside > 0.014)
    return np.where(written[:, None], ink, paper)


def _mat(decal: Decal, place: np.ndarray, point: np.ndarray) -> np.ndarray:
    first, second = linear((74, 100, 122)), linear((128, 150, 162))
    weave = 0.5 + 0.5 * np.sin(place[:, 0] * 700) * np.sin(place[:, 1] * 700)
    bands = ((place[:, 0] / 0.024) % 1.0 < 0.5) * 0.5 + 0.3
    return first + (second - first) * (0.6 * bands + 0.4 * weave)[:, None]


def _tile(decal: Decal, place: np.ndarray, point: np.ndarray) -> np.ndarray:
    glaze, blue = linear((226, 230, 228)), linear((42, 74, 140))
    cell = 2 * np.array(decal.half) / 2
    star = np.abs((place / cell) % 1.0 - 0.5)
    flower = np.hypot(star[:, 0], star[:, 1]) + 0.1 * np.cos(8 * np.arctan2(star[:, 1], star[:, 0]))
    border = (np.array(decal.half) - np.abs(place)).min(axis=1) < 0.007
    share = np.where(border, 1.0, (1 - smoothstep(0.3, 0.34, flower)) * smoothstep(0.1, 0.14, flower))
    return glaze + (blue - glaze) * share[:, None]


DECALS = {"napkin": _napkin, "letter": _letter, "mat": _mat, "tile": _tile}
