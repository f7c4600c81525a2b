"""The GPU comparison as Markdown, from the JSON of benchmarks/rasterizer.py:

python benchmarks/gpu_report.py bench.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

MEMORY_TARGET = 0.7  # of gsplat's peak
NOT_RUN = {"ms": None, "single_ms": None, "peak_bytes": None}

# case, our way, gsplat's way, largest wanted ratio of the times (None: for information)
PAIRS = (
    ("scores forward", "ours", "gsplat", 0.7),
    ("scores forward", "ours, plan", "gsplat", 0.35),
    ("scores forward", "ours, plan", "gsplat, kept lists", None),
    ("scores forward + backward", "ours", "gsplat", None),
    ("scores forward + backward", "ours, plan", "gsplat", 0.35),
    ("scores forward + backward", "ours, plan, deterministic", "gsplat", None),
    ("scores forward + backward", "ours, plan", "gsplat, kept lists", None),
    ("scores forward + backward", "ours, plan", "gsplat, all gradients", None),
    ("colour forward", "ours", "gsplat", None),
    ("colour forward + backward", "ours", "gsplat", 0.8),
    ("colour forward + backward", "ours, deterministic", "gsplat", None),
    ("prepare", "ours", "gsplat", None),
)


def markdown(report: dict) -> str:
    """All tables of a report."""
    width, height = report["picture"]
    rival = f"gsplat {report['gsplat']}"
    if report["gsplat_missing"]:
        rival = f"gsplat not possible here: {report['gsplat_missing']}"
    lines = [
        f"{report['machine']}; {rival}; commit {report['git_revision']}; "
        f"{width}x{height}, medians of {report['repeats']} repetitions."
    ]
    for n in sorted({timing["n"] for timing in report["timings"]}):
        lines += ["", f"### {n:,} Gaussians", "", *_comparison(report, n)]
    lines += ["", "### Plans", "", *_plans(report)]
    lines += ["", "### Distance of the frozen forward pass to the memory bandwidth", "", *_floors(report)]
    if report["agreement"]:
        lines += ["", "### Absolute difference of the pictures from gsplat's", "", *_agreement(report)]
    lines += ["", "### simple_knn", "", *_knn(report)]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns also line up in a terminal."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    padded = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    rule = "|".join("-" * (width + 2) for width in widths)
    return [f"| {padded[0]} |", f"|{rule}|", *(f"| {row} |" for row in padded[1:])]


def _comparison(report: dict, n: int) -> list[str]:
    found = {(t["case"], t["channels"], t["who"]): t for t in report["timings"] if t["n"] == n}
    channels_of = {case: sorted({key[1] for key in found if key[0] == case}) for case, *_ in PAIRS}
    rows = []
    for case, mine, theirs, target in PAIRS:
        for channels in channels_of[case]:
            one = found.get((case, channels, mine), NOT_RUN)
            other = found.get((case, channels, theirs), NOT_RUN)
            if other is NOT_RUN and theirs != "gsplat":
                continue  # without gsplat one line of ours is enough
            rows.append(
                (
                    *(case, str(channels or "-"), mine, theirs, milliseconds(one["ms"]), milliseconds(other["ms"])),
                    _judged(one["ms"], other["ms"], target),
                    _judged(one["single_ms"], other["single_ms"], None),
                    *(_mebibytes(one["peak_bytes"]), _mebibytes(other["peak_bytes"])),
                    _judged(one["peak_bytes"], other["peak_bytes"], None if target is None else MEMORY_TARGET),
                )
            )
    notes = [f"- {t['case']}, K={t['channels']}, {t['who']}: {t['note']}" for t in found.values() if t["note"]]
    head = ("case", "K", "ours", "against", "ms", "their ms", "ratio", "one call", "MiB", "their MiB", "ratio")
    return [*table(head, rows), *([""] if notes else []), *notes]


def _plans(report: dict) -> list[str]:
    rows = [
        (f"{p['n']:,}", f"{p['contributing_gaussians']:,}", _mebibytes(p["nbytes"]), _mebibytes(p["allocated_bytes"]))
        for p in report["plans"]
    ]
    return table(("Gaussians", "of these contribute", "plan, MiB", "allocated, MiB"), rows)


def _floors(report: dict) -> list[str]:
    measured = {
        (t["n"], t["channels"]): t["ms"]
        for t in report["timings"]
        if t["case"] == "scores forward" and t["who"] == "ours, plan"
    }
    speed = report["copy_bytes_per_second"]
    rows = []
    for plan in report["plans"]:
        for channels, size in plan["floor_bytes"].items():
            ms = measured.get((plan["n"], int(channels)))
            if ms is None:
                continue
            floor_ms = 1e3 * size / speed
            rows.append(
                (
                    *(f"{plan['n']:,}", channels, _mebibytes(size), milliseconds(floor_ms), milliseconds(ms)),
                    f"{ms / floor_ms:.1f}x",
                )
            )
    note = f"A copy of 1 GiB reads and writes {speed / 1e9:,.0f} GB/s."
    return [note, "", *table(("Gaussians", "K", "MiB to move", "floor, ms", "measured, ms", "ratio"), rows)]


def _agreement(report: dict) -> list[str]:
    rows = [(f"{a['n']:,}", a["what"], f"{a['percentile_99.9']:.1e}", f"{a['max']:.1e}") for a in report["agreement"]]
    return table(("Gaussians", "picture", "99.9 % of the values within", "largest"), rows)


def _knn(report: dict) -> list[str]:
    rows = []
    for row in report["knn"]:
        apart = row.get("largest_relative_difference")
        rows.append(
            (
                *(f"{row['n']:,}", milliseconds(row.get("ms")), milliseconds(row.get("scipy_ms"))),
                *("-" if apart is None else f"{apart:.1e}", row.get("note", "")),
            )
        )
    return table(("points", "ms", "SciPy on the CPU, ms", "largest relative difference", "note"), rows)


def milliseconds(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.3f}" if ms < 10 else f"{ms:.1f}"


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.1f}"


def _judged(one: float | None, other: float | None, target: float | None) -> str:
    """The ratio, with the target and whether it is met."""
    if one is None or not other:
        return "-"
    ratio = one / other
    if target is None:
        return f"{ratio:.2f}x"
    return f"{ratio:.2f}x, {'meets' if ratio <= target else 'misses'} {target}"


def print_saved(markdown: Callable[[dict], str], description: str) -> None:
    """Print the tables of the JSON file that the command line names."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    print(markdown(json.loads(parser.parse_args().json.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    print_saved(markdown, __doc__)
