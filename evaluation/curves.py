"""Training curves of report.html: log.jsonl -> series -> inline SVG."""

from __future__ import annotations

import html
import json
import math
from dataclasses import dataclass
from pathlib import Path

MAX_POINTS = 160  # of a curve; more steps are averaged in equal groups
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 190, 46, 12, 10, 24  # of a chart, in SVG units
NOT_CURVES = {"iteration", "seconds", "stage", "plan_hit_rate", "plan_gigabytes"}


@dataclass(frozen=True)
class Series:
    """A logged scalar of a stage: `points` are (iteration, value) in order, finite, at least one."""

    stage: str
    name: str
    points: list[tuple[int, float]]


def read_log(path: str | Path) -> list[Series]:
    """Read the series of a log.jsonl in order of first appearance; empty without the file.

    Lines that are not a JSON object with an iteration are skipped: the last one may be torn where training was
    killed. A later line for the same iteration replaces the earlier one (training was resumed).
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: dict[tuple[str, str], dict[int, float]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("iteration"), int):
            continue
        for name, value in entry.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name not in NOT_CURVES and is_number and math.isfinite(value):
                found.setdefault((str(entry.get("stage", "")), name), {})[entry["iteration"]] = float(value)
    return [Series(stage, name, sorted(points.items())) for (stage, name), points in found.items()]


def thin_out(points: list[tuple[int, float]], limit: int = MAX_POINTS) -> list[tuple[float, float, float, float]]:
    """Average neighbouring points into at most `limit` groups (mean iteration, mean, lowest, highest value)."""
    size = math.ceil(len(points) / limit)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    result = []
    for group in groups:
        values = [value for _, value in group]
        iteration = sum(i for i, _ in group) / len(group)
        result.append((iteration, sum(values) / len(values), min(values), max(values)))
    return result


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers within low..high."""
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= max(m for m in (1, 2, 5) if m * step <= (high - low) / 3)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _label(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value / 1e6:g}M"
    return f"{value:.3g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}"


def _range(low: float, high: float) -> tuple[float, float]:
    """Return low..high, widened if it has no extent."""
    if high - low > 1e-9 * max(abs(low), abs(high), 1e-3):
        return low, high
    pad = max(abs(high) * 0.1, 1e-3)
    return low - pad, high + pad


def draw_chart(series: Series) -> str:
    """Draw an inline SVG: the curve, a band from the lowest to the highest value of averaged steps, axes."""
    groups = thin_out(series.points)
    x_low, x_high = _range(groups[0][0], groups[-1][0])
    y_low, y_high = _range(min(g[2] for g in groups), max(g[3] for g in groups))

    def x(value: float) -> float:
        return round(LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    grid = []
    for value in _ticks(y_low, y_high):
        grid.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value)}" y2="{y(value)}"/>')
        grid.append(f'<text x="{LEFT - 6}" y="{y(value) + 3.5}" text-anchor="end">{_label(value)}</text>')
    for value in _ticks(x_low, x_high):
        grid.append(f'<text x="{x(value)}" y="{HEIGHT - 7}" text-anchor="middle">{_label(value)}</text>')
    upper = [f"{x(i)},{y(high)}" for i, _, _, high in groups]
    lower = [f"{x(i)},{y(low)}" for i, _, low, _ in reversed(groups)]
    line = " ".join(f"{x(i)},{y(mean)}" for i, mean, _, _ in groups)
    mark = f'<circle cx="{x(groups[0][0])}" cy="{y(groups[0][1])}" r="3"/>' if len(groups) == 1 else ""
    title = html.escape(f"{series.stage} {series.name}, {len(series.points)} logged values")
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
        f'<title>{title}</title><g class="grid">{"".join(grid)}</g>'
        f'<polygon class="band" points="{" ".join(upper + lower)}"/>'
        f'<polyline class="curve" points="{line}"/>{mark}</svg>'
    )
