"""report.html of eval.py: one file without external resources, for a browser without a network."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.curves import Series, draw_chart
from evaluation.pairs import Pair

STYLE = "\n" + Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
# `default-src 'none'` makes the browser enforce that the page is self-contained.
HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'\">"
)


@dataclass(frozen=True)
class Example:
    """A pair with pictures as `data:` addresses; no picture without a prediction."""

    pair: Pair
    photo: str
    truth: str
    prediction: str | None


def build_report(
    results: dict[str, Any], pairs: list[Pair], groups: dict[str, list[Example]], curves: list[Series]
) -> str:
    """Build the whole page from the content of results.json, all pairs, examples by heading, and training curves."""
    scene = html.escape(str(results["scene"]))
    return "".join(
        [
            f"{HEAD}<title>{scene}: evaluation</title><style>{STYLE}</style></head><body><main>",
            f'<p class="soft">ReferSplat evaluation</p><h1>{scene}</h1>',
            _tiles(results),
            _notes(results),
            '<h2>By category</h2><div class="grid split">',
            _categories(results["per_category"]),
            _histogram([pair.score.iou for pair in pairs if not math.isnan(pair.score.iou)]),
            "</div>",
            _further(results),
            *[_group(heading, examples) for heading, examples in groups.items() if examples],
            _training(curves),
            _all_pairs(pairs),
            _footer(results),
            "</main></body></html>\n",
        ]
    )


FURTHER = {
    "overall_iou": "overall IoU",
    "boundary_iou": "boundary IoU",
    "mAcc": "pixel accuracy",
    "localisation": "localisation",
    "coverage": "coverage",
    "pixel_coverage": "pixels covered",
    "absent": "false positives on absent objects",
    "argmax": "mIoU where each pixel goes to one sentence",
    "confidence_interval": "95 % interval of mIoU",
    "other_protocols": "mIoU by another protocol",
}  # keys of results.json and their names in reports


def format_figure(results: dict[str, Any], key: str) -> str:
    """Format a figure of `FURTHER`; empty if there is none."""
    value = results.get(key)
    if value is None:
        return ""
    if key == "absent":
        share = value["false_positive_rate"]
        return "" if share is None else f"{percent(share)} of {value['pairs']} pairs"
    if key == "argmax":
        return percent(value["mIoU"])
    if key == "confidence_interval":
        return f"{percent(value[0])} to {percent(value[1])}"
    if key == "other_protocols":
        return ", ".join(f"{percent(number)} ({name})" for name, number in value.items())
    return percent(value)


def percent(value: float | None) -> str:
    """Format a percentage with one decimal; a dash for None."""
    return "–" if value is None else f"{value:.1f}"


def _tiles(results: dict[str, Any]) -> str:
    tiles = [
        ("mIoU", percent(results["mIoU"])),
        ("Acc@0.25", percent(results["acc@0.25"])),
        ("Acc@0.5", percent(results["acc@0.5"])),
        ("pairs (view, sentence)", str(results["pairs"])),
    ]
    cards = [f'<div class="card tile"><b class="number">{value}</b>{name}</div>' for name, value in tiles]
    return f'<div class="grid tiles">{"".join(cards)}</div>'


def _notes(results: dict[str, Any]) -> str:
    notes = []
    missing = results["missing_predictions"]
    if missing:
        items = "".join(f"<li>{html.escape(name)}</li>" for name in missing[:20])
        more = f"<li>and {len(missing) - 20} more, in results.json</li>" if len(missing) > 20 else ""
        notes.append(f"Missing predictions, which count as IoU 0: {len(missing)}<ul>{items}{more}</ul>")
    empty = results["empty_ground_truth"]
    if empty["pairs"]:
        share = percent(empty["false_positive_percent"])
        notes.append(
            f"Pairs with empty ground truth, which stay out of the mean: {empty['pairs']}. Something was predicted in "
            f"{empty['with_foreground']} of them, on average {share} % of the picture."
        )
    notes += [f"Not the protocol {results['protocol_name']}: {html.escape(d)}." for d in results.get("deviations", [])]
    return "".join(f'<div class="card note">{note}</div>' for note in notes)


def _categories(per_category: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name, values in per_category.items():
        width = values["mIoU"] or 0
        numbers = [*(percent(values[key]) for key in ("mIoU", "acc@0.25", "acc@0.5")), values["pairs"]]
        lines.append(
            f'<tr><td>{html.escape(name)}</td><td class="bar"><i><i style="width:{width:.1f}%"></i></i></td>'
            + "".join(f'<td class="right number">{number}</td>' for number in numbers)
            + "</tr>"
        )
    head = "".join(f'<th class="right">{name}</th>' for name in ("mIoU", "Acc@0.25", "Acc@0.5", "pairs"))
    return _table([f"<tr><th>category</th><th></th>{head}</tr>", *lines])


def _table(rows: list[str]) -> str:
    return f'<div class="card scroll"><table>{"".join(rows)}</table></div>'


def _further(results: dict[str, Any]) -> str:
    """List the further figures, and plot mIoU at other thresholds."""
    lines = [
        f'<tr><td>{name}</td><td class="right number">{html.escape(text)}</td></tr>'
        for key, name in FURTHER.items()
        if (text := format_figure(results, key))
    ]
    parts = [_table(lines)]
    curve = [(point["threshold"], point["mIoU"]) for point in results.get("threshold_curve") or []]
    if curve and all(value is not None for _, value in curve):
        drawn = draw_chart(Series("mIoU", "by threshold", curve))
        parts.append(
            f'<div class="card plot"><b>mIoU by threshold</b>{drawn}<p class="soft">The threshold of every reported '
            "number is the one named at the end of the page; the curve shows how much depends on it.</p></div>"
        )
    return f'<h2>Further figures</h2><div class="grid split">{"".join(parts)}</div>'


def _histogram(values: list[float], bins: int = 10) -> str:
    """Draw the number of pairs in each tenth of IoU as inline SVG."""
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int(value * bins))] += 1
    bars = []
    for k, count in enumerate(counts):
        x, height = 14 + k * 39, 120 * count / max(1, *counts)
        bars.append(f'<rect x="{x}" y="{146 - height:.1f}" width="33" height="{height:.1f}" rx="2"/>')
        if count:
            place = f'x="{x + 16.5}" y="{140 - height:.1f}"'
            bars.append(f'<text class="value" {place} text-anchor="middle">{count}</text>')
        bars.append(f'<text x="{x - 3}" y="162" text-anchor="middle">{k / bins:g}</text>')
    bars.append('<text x="401" y="162" text-anchor="middle">1</text>')
    return (
        '<div class="card plot"><b>Pairs by IoU</b><svg class="chart" viewBox="0 0 415 170" role="img" '
        f'aria-label="histogram of IoU">{"".join(bars)}</svg></div>'
    )


def _iou(pair: Pair) -> str:
    iou = pair.score.iou
    if math.isnan(iou):
        return '<span class="iou soft">empty truth</span>'
    level = "good" if iou >= 0.5 else "fair" if iou >= 0.25 else "poor"
    return f'<span class="iou number {level}">IoU {100 * iou:.1f}</span>'


def _names(pair: Pair) -> list[str]:
    """Return sentence, category and view as HTML."""
    return [html.escape(name) for name in (pair.referral.sentence, pair.referral.category, pair.view.id)]


def _group(heading: str, examples: list[Example]) -> str:
    cards = []
    for example in examples:
        sentence, category, view = _names(example.pair)
        pictures = [("photo", example.photo), ("ground truth", example.truth), ("prediction", example.prediction)]
        figures = [
            f"<figure><figcaption>{name}</figcaption>"
            + (f'<img alt="{name}" src="{uri}"></figure>' if uri else '<div class="none">missing</div></figure>')
            for name, uri in pictures
        ]
        cards.append(
            f'<article class="card pair"><div class="pictures">{"".join(figures)}</div><div class="text">'
            f'<p>{sentence}</p><div class="facts">{_iou(example.pair)}<span>{category}</span>'
            f"<span>{view}</span></div></div></article>"
        )
    return f'<h2>{html.escape(heading)}</h2><div class="grid pairs">{"".join(cards)}</div>'


def _training(curves: list[Series]) -> str:
    if not curves:
        return ""
    parts = ["<h2>Training</h2>"]
    for stage in dict.fromkeys(series.stage for series in curves):
        drawn = [(html.escape(series.name), draw_chart(series)) for series in curves if series.stage == stage]
        plots = "".join(f'<div class="card plot"><b>{name}</b>{svg}</div>' for name, svg in drawn)
        parts.append(f'<h3>{html.escape(stage)} stage</h3><div class="grid charts">{plots}</div>')
    parts.append('<p class="soft">By iteration; the band spans the values that were averaged into a point.</p>')
    return "".join(parts)


def _all_pairs(pairs: list[Pair]) -> str:
    lines = []
    for pair in pairs:
        sentence, category, view = _names(pair)
        missing = "missing, " if pair.score.missing else ""
        lines.append(
            f"<tr><td>{view}</td><td>{category}</td><td>{sentence}</td>"
            f'<td class="right">{missing}{_iou(pair)}</td></tr>'
        )
    head = '<tr><th>view</th><th>category</th><th>sentence</th><th class="right">IoU</th></tr>'
    return f"<h2>Every pair</h2><details><summary>{len(pairs)} pairs</summary>{_table([head, *lines])}</details>"


def _footer(results: dict[str, Any]) -> str:
    names = ("dataset", "protocol", "deviations", "iteration", "threshold", "seed", "text_encoder", "git_revision")
    facts = "".join(
        f"<dt>{name.replace('_', ' ')}</dt><dd>{html.escape(str(results.get(name)))}</dd>" for name in names
    )
    return f"<footer><dl>{facts}</dl></footer>"
