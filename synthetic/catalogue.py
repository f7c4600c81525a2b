"""The objects of the table top: which parts each shape is built of, for an object of unit size.

All shapes stand on z = 0. A unit object is about 0.12 m high; `size` scales it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from synthetic.geometry import Lathe, Polyhedron, Solid, Torus


@dataclass(frozen=True)
class Part:
    """A solid placed in its object: object point = turn @ local point + shift."""

    solid: Solid
    turn: np.ndarray  # [3, 3] rotation
    shift: np.ndarray  # [3]
    colour: str | None = None  # overrides the object's colour and makes the part plain


def _part(solid: Solid, shift=(0.0, 0.0, 0.0), turn=None, colour: str | None = None) -> Part:
    return Part(solid, np.eye(3) if turn is None else turn, np.array(shift, dtype=np.float64), colour)


def _about_y(angle: float) -> np.ndarray:
    """Rotation that turns z towards x by `angle` radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


# A torus stands around z; its ring must lie in the xz plane to be a handle that opens sideways.
_HANDLE = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])


def _arc(centre, radius: float, start: float, end: float, steps: int) -> list[tuple[float, float]]:
    """Profile points on a circle (radius, height), angles in degrees from the outward direction."""
    angles = np.radians(np.linspace(start, end, steps))
    return [(max(centre[0] + radius * np.cos(a), 0.0), centre[1] + radius * np.sin(a)) for a in angles]


def _curve(points: list[tuple[float, float]], steps: int) -> list[tuple[float, float]]:
    """Catmull-Rom curve through profile points, `steps` pieces between neighbours."""
    p = np.array([points[0], *points, points[-1]])
    curve = []
    for i in range(1, len(p) - 2):
        for t in np.arange(steps) / steps:
            a, b, c, d = p[i - 1 : i + 3]
            curve.append(
                0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
            )
    curve.append(p[-1])
    return [(max(float(r), 0.0), float(z)) for r, z in curve]


def _mug() -> list[Part]:
    lip = _arc((0.0420, 0.108), 0.003, 0, 180, 5)
    outer = [(0.041, 0.0), (0.0445, 0.004), (0.045, 0.03), (0.045, 0.07), *lip]
    inner = [(0.039, 0.108), (0.039, 0.02), (0.034, 0.012)]
    bottom = [(0.034, 0.012), (0.0, 0.012)]
    handle = Torus(0.029, 0.0068, (np.radians(-105), np.radians(105)))
    return [_part(Lathe(outer)), _part(Lathe(inner)), _part(Lathe(bottom)), _part(handle, (0.050, 0, 0.056), _HANDLE)]


def _ball() -> list[Part]:
    return [_part(Lathe(_arc((0, 0.055), 0.055, -90, 90, 19)))]


def _cube() -> list[Part]:
    half, height = 0.046, 0.092
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (0, 1)], dtype=np.float64)
    normals = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    return [_part(Polyhedron(normals, np.array([half] * 4 + [height, 0]), signs * [half, half, height]))]


def _pyramid() -> list[Part]:
    half, height = 0.058, 0.105
    corners = [[x * half, y * half, 0.0] for x in (-1, 1) for y in (-1, 1)]
    slant = np.hypot(half, height)
    sides = np.array([[height, 0, half], [-height, 0, half], [0, height, half], [0, -height, half]]) / slant
    normals = np.vstack([sides, [[0, 0, -1.0]]])
    heights = np.array([half * height / slant] * 4 + [0.0])
    return [_part(Polyhedron(normals, heights, np.array([*corners, [0, 0, height]])))]


def _can() -> list[Part]:
    side = [(0.038, 0.0), (0.040, 0.004), (0.040, 0.112), (0.038, 0.116)]
    return [_part(Lathe(side)), _part(Lathe([(0.038, 0.116), (0.035, 0.116), (0.034, 0.113), (0.0, 0.113)]))]


def _cone() -> list[Part]:
    return [_part(Lathe([(0.054, 0.0), (0.055, 0.002), (0.004, 0.126), *_arc((0, 0.1255), 0.004, 25, 90, 4)]))]


def _ring() -> list[Part]:
    return [_part(Torus(0.043, 0.021), (0, 0, 0.021))]


def _bowl() -> list[Part]:
    outer = [(0.028, 0.0), (0.030, 0.006), *_curve([(0.032, 0.008), (0.056, 0.026), (0.068, 0.056)], 4)]
    lip = _arc((0.0660, 0.057), 0.002, 0, 180, 5)
    inner = _curve([(0.064, 0.057), (0.052, 0.029), (0.027, 0.013), (0.0, 0.010)], 4)
    return [_part(Lathe(outer + lip)), _part(Lathe(inner))]


def _bottle() -> list[Part]:
    body = [(0.032, 0.0), (0.035, 0.004), (0.036, 0.03), (0.036, 0.074)]
    neck = _curve([(0.036, 0.078), (0.030, 0.098), (0.0145, 0.115), (0.013, 0.138)], 4)
    cap = [(0.016, 0.138), (0.0165, 0.140), (0.0165, 0.153), (0.015, 0.155), (0.0, 0.155)]
    return [_part(Lathe(body + neck[1:])), _part(Lathe(cap), colour="black")]


def _vase() -> list[Part]:
    outer = [(0.030, 0.0), *_curve([(0.031, 0.002), (0.050, 0.046), (0.034, 0.093), (0.022, 0.112), (0.033, 0.136)], 4)]
    inner = _curve([(0.031, 0.137), (0.019, 0.112), (0.030, 0.093), (0.044, 0.046), (0.0, 0.010)], 3)
    return [_part(Lathe([*outer, (0.032, 0.1375), (0.031, 0.137)])), _part(Lathe(inner))]


def _goblet() -> list[Part]:
    foot = _curve([(0.034, 0.0), (0.033, 0.005), (0.010, 0.012), (0.0065, 0.030), (0.0075, 0.052)], 3)
    cup = _curve([(0.0075, 0.052), (0.026, 0.062), (0.040, 0.086), (0.039, 0.124)], 4)
    inner = _curve([(0.0365, 0.1245), (0.037, 0.088), (0.024, 0.068), (0.0, 0.062)], 3)
    return [_part(Lathe(foot + cup[1:] + [(0.0375, 0.1255), (0.0365, 0.1245)])), _part(Lathe(inner))]


def _pawn() -> list[Part]:
    base = [(0.038, 0.0), (0.040, 0.004), (0.040, 0.010), (0.036, 0.015)]
    body = _curve([(0.031, 0.018), (0.024, 0.030), (0.0135, 0.058), (0.012, 0.076)], 4)
    collar = [(0.023, 0.080), (0.023, 0.084), (0.012, 0.087)]
    head = _arc((0, 0.106), 0.0235, -60, 90, 11)
    return [_part(Lathe(base + body)), _part(Lathe([(0.012, 0.076), *collar])), _part(Lathe(head))]


def _teapot() -> list[Part]:
    body = _curve([(0.034, 0.0), (0.052, 0.020), (0.057, 0.042), (0.046, 0.068), (0.026, 0.079)], 4)
    lid = _curve([(0.027, 0.079), (0.024, 0.085), (0.008, 0.091), (0.006, 0.094)], 3)
    knob = _arc((0, 0.101), 0.0095, -50, 90, 7)
    spout = [(0.015, 0.0), (0.010, 0.035), (0.0075, 0.052), (0.005, 0.053)]
    handle = Torus(0.030, 0.0062, (np.radians(-110), np.radians(110)))
    return [
        _part(Lathe(body)),
        _part(Lathe(lid)),
        _part(Lathe(knob)),
        _part(Lathe(spout), (-0.042, 0, 0.032), _about_y(np.radians(-48))),
        _part(Lathe([(0.005, 0.053), (0.0, 0.048)]), (-0.042, 0, 0.032), _about_y(np.radians(-48)), "black"),
        _part(handle, (0.052, 0, 0.046), _HANDLE),
    ]


def _mushroom() -> list[Part]:
    stem = _curve([(0.022, 0.0), (0.0185, 0.012), (0.016, 0.034), (0.017, 0.058)], 3)
    under = [(0.016, 0.056), (0.050, 0.050), (0.0555, 0.053)]
    cap = _curve([(0.0555, 0.053), (0.057, 0.060), (0.046, 0.086), (0.024, 0.102), (0.0, 0.106)], 4)
    return [_part(Lathe(stem), colour="white"), _part(Lathe(under), colour="white"), _part(Lathe(cap))]


_MAKERS = (_mug, _ball, _cube, _pyramid, _can, _cone, _ring, _bowl, _bottle, _vase, _goblet, _pawn, _teapot, _mushroom)
SHAPES: dict[str, Callable[[], list[Part]]] = {make.__name__[1:]: make for make in _MAKERS}

# Shapes that a person may mix up from some directions: at most one of each set stands on a table.
CONFUSABLE = [{"mug", "goblet", "can"}, {"vase", "bottle"}, {"cone", "pyramid"}]
