"""Draw the cost of a picture of scores against the number of Gaussians and of channels:

pip install -e '.[benchmark]'
python benchmarks/rasterizer.py --device cuda --json bench.json
python benchmarks/plot_rasterizer.py bench.json [--out docs/rasterizer_cuda.png]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

OUT = Path(__file__).resolve().parent.parent / "docs" / "rasterizer_cuda.png"

# who in the report, label, colour (told apart also with colour-blind eyes), marker
LINES = (
    ("gsplat", "gsplat", "#d55e00", "s"),
    ("gsplat, kept lists", "gsplat, its lists kept by hand", "#e69f00", "D"),
    ("ours", "ours, without plan", "#56b4e9", "^"),
    ("ours, plan", "ours, with plan", "#0072b2", "o"),
)


def draw(report: dict, out: Path) -> None:
    """Two panels: one channel over N, and the largest scene that was measured in full over K."""
    forward = [t for t in report["timings"] if t["case"] == "scores forward" and t["ms"] is not None]
    largest = max(report["sizes"])
    width, height = report["picture"]
    figure, (over_n, over_k) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    _panel(over_n, [t for t in forward if t["channels"] == 1], "n")
    over_n.set(title="One channel", xlabel="Gaussians")
    over_n.xaxis.set_major_formatter(FuncFormatter(_count))
    _panel(over_k, [t for t in forward if t["n"] == largest], "channels")
    over_k.set(title=f"{_count(largest)} Gaussians", xlabel="channels K")
    over_k.xaxis.set_major_formatter(FuncFormatter(_count))
    over_n.legend(frameon=False)
    device = report["machine"].split(",")[0]
    figure.suptitle(f"Forward pass of scores, {width} x {height}, {device}, median (bars: quartiles)")
    figure.savefig(out, dpi=150)


def _panel(axes: Axes, timings: list[dict], key: str) -> None:
    """Time over `key`, a line each way."""
    for who, label, colour, marker in LINES:
        points = sorted((t[key], t["ms"], *t["quartiles_ms"]) for t in timings if t["who"] == who)
        if not points:
            continue
        xs, ms, low, high = zip(*points, strict=True)
        below = [max(0.0, m - q) for m, q in zip(ms, low, strict=True)]
        above = [max(0.0, q - m) for m, q in zip(ms, high, strict=True)]
        axes.errorbar(xs, ms, yerr=(below, above), label=label, color=colour, marker=marker, markersize=5, capsize=2)
    axes.set_xscale("log", base=2 if key == "channels" else 10)
    axes.set_yscale("log")
    axes.set_xticks(sorted({t[key] for t in timings}))
    axes.minorticks_off()
    axes.yaxis.set_major_locator(plt.LogLocator(base=10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
    axes.set_ylabel("milliseconds")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _count(value: float, _position: int = 0) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    flags = parser.parse_args()
    draw(json.loads(flags.json.read_text(encoding="utf-8")), flags.out)
    print(flags.out)


if __name__ == "__main__":
    main()
