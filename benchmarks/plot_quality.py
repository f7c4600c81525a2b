"""Draw test mIoU against seconds of training, from one or more reports of benchmarks/quality.py:

pip install -e '.[benchmark]'
python benchmarks/plot_quality.py quality.json [more.json ...] [--out docs/quality.png]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parent.parent / "docs" / "quality.png"
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7")  # told apart also with colour-blind eyes
RELEASED = 343, 28.7  # seconds and mIoU of the released algorithm; see quality.py
CAPTION = (
    "Seconds count from the first step, with checkpoints and the earlier measurements of the test views, "
    "without the start of the process."
)


def draw(reports: list[dict], out: Path) -> None:
    """A line of the means over the seeds for each number of sentences a step, and a band from lowest to highest."""
    runs = [run for report in reports for run in report["runs"] if run["curve"] and not run["note"]]
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    steps = reports[0]["test_interval"]
    settings = dict.fromkeys(run["sentences_per_step"] for run in runs)
    for setting, colour in zip(settings, COLOURS, strict=False):
        curves = [run["curve"] for run in runs if run["sentences_per_step"] == setting]
        points = list(zip(*curves, strict=False))  # of the same step in every run
        seconds = [mean(p["seconds"] for p in point) for point in points]
        values = [[p["test_miou"] for p in point] for point in points]
        plural = "" if setting == "1" else "s"
        label = f"{setting} sentence{plural} a step, {len(points):,} x {steps:,} steps, seeds: {len(curves)}"
        axes.plot(seconds, list(map(mean, values)), color=colour, marker="o", markersize=3, label=label)
        axes.fill_between(seconds, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.2, linewidth=0)
    seconds, miou = RELEASED
    axes.axhline(miou, color="grey", linestyle="--", label=f"released algorithm: {miou} after {seconds} s (recorded)")
    axes.set(xlabel="seconds of training", ylabel="test mIoU, %", xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title(f"{reports[0]['machine'].split(',')[0]} (bands: lowest to highest seed)")
    figure.supxlabel(CAPTION, fontsize="x-small", color="dimgrey")
    figure.savefig(out, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=OUT)
    flags = parser.parse_args()
    draw([json.loads(path.read_text(encoding="utf-8")) for path in flags.json], flags.out)
    print(flags.out)


if __name__ == "__main__":
    main()
