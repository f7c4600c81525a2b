"""Tables of a benchmark: our runs and baselines beside the published numbers, as Markdown and HTML."""

from __future__ import annotations

import html
import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.published import PUBLISHED, SCENES, SOURCES, Published
from benchmarks.units import BASELINES, Unit
from evaluation.baselines import LIFT, MASKS
from evaluation.pairs import read_csv
from evaluation.protocols import PROTOCOLS, Outcome, confidence_interval
from evaluation.report import HEAD, STYLE, percent
from scene.layouts.annotations import canonical_name
from utils.files import read_json, write_json, write_text
from utils.metrics import Score

OURS = "this project"
NAMES = {
    OURS: "ReferSplat, this project",
    LIFT: "baseline: closed-form lift + nearest training sentence (training-free)",
    MASKS: "baseline: the pseudo masks themselves (2D)",
}
MARK = " †"
ON_TRAINING = f"{MARK} none of test views; measured on training views against clean masks, not on the test views"
SHORT = {OURS: NAMES[OURS], LIFT: "baseline: lift", MASKS: "baseline: pseudo masks"}
DETAILS = {
    "mIoU": "mIoU",
    "overall_iou": "overall IoU",
    "acc@0.25": "Acc@0.25",
    "acc@0.5": "Acc@0.5",
    "boundary_iou": "boundary IoU",
    "mAcc": "mAcc",
    "localisation": "localisation",
    "coverage": "coverage",
}


@dataclass
class Scored:
    """All runs of one method on one scene.

    Attributes:
        results: of each seed.
        outcomes: pairs of each seed.
        report: relative path of a page about it; None if there is none.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    outcomes: list[list[Outcome]] = field(default_factory=list)
    report: Path | None = None

    def values(self, key: str) -> list[float]:
        """A number of each seed that has it."""
        return [result[key] for result in self.results if result.get(key) is not None]

    def interval(self) -> list[float] | None:
        """95 % bootstrap interval of mIoU, of pairs averaged over seeds."""
        if not self.outcomes:
            return None
        of_seeds: dict[tuple[str, str], list[float]] = {}
        for outcomes in self.outcomes:
            for outcome in outcomes:
                of_seeds.setdefault((outcome.view, outcome.sentence_id), []).append(outcome.score.iou)
        mean = [o._replace(score=Score(statistics.fmean(of_seeds[o.view, o.sentence_id]))) for o in self.outcomes[0]]
        return confidence_interval(PROTOCOLS[self.results[0]["protocol_name"]], mean)


@dataclass
class Collected:
    """What the model folders of a benchmark hold.

    Attributes:
        scenes: names of the scenes that were asked for.
        seeds: number of runs asked for.
        methods: method -> scene -> its runs.
        notes: why a baseline has no number, by method and scene.
        cost: rows about time and memory.
    """

    scenes: list[str]
    seeds: int
    methods: dict[str, dict[str, Scored]]
    notes: list[str]
    cost: list[list[str]]


@dataclass
class Table:
    """A table with its heading and notes; cells are plain text."""

    heading: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    links: dict[int, Path] = field(default_factory=dict)  # of the first cells, by row


def collect(scenes: list[list[Unit]]) -> Collected:
    """Read what is finished."""
    found = Collected([units[0].scene.name for units in scenes], len(scenes[0]), {}, [], [])
    without: dict[tuple[str, str], list[str]] = {}  # scenes by baseline and remark
    for unit in (unit for units in scenes for unit in units):
        if not unit.is_done():
            continue
        name, state = unit.scene.name, unit.state()
        results = read_json(unit.model / "results.json", "results")
        _add(found, OURS, name, results, unit.model)
        if found.methods[OURS][name].report is None:
            found.methods[OURS][name].report = unit.model / "report.html"
        for baseline, numbers in read_json(unit.model / BASELINES, "results of the baselines").items():
            if isinstance(numbers, str):
                without.setdefault((baseline, numbers), []).append(name)
                continue
            numbers |= {"protocol_name": results["protocol_name"], "dataset": results["dataset"]}
            _add(found, baseline, name, numbers, unit.model / "baselines" / baseline)
            if numbers.get("views") == "training":
                without.setdefault((baseline, ON_TRAINING), []).append(name)
        memory = state.get("peak_gigabytes")
        found.cost.append(
            [
                *(name, str(unit.seed), state.get("machine", "")),
                *(f"{state[key]:.1f}" for key in ("train_seconds", "eval_seconds", "baseline_seconds")),
                "–" if memory is None else f"{memory:.2f}",
                "resumed, so not the whole time" if state.get("resumed") else "",
            ]
        )
    for (baseline, reason), names in without.items():
        found.notes.append(f"{NAMES[baseline]}; {', '.join(dict.fromkeys(names))}: {reason}.")
    return found


def _add(found: Collected, method: str, scene: str, results: dict[str, Any], folder: Path) -> None:
    scored = found.methods.setdefault(method, {}).setdefault(scene, Scored())
    scored.results.append(results)
    scored.outcomes.append(list(read_csv(folder)))


def write_tables(out: Path, found: Collected, failures: list[str], passed: list[str]) -> str:
    """Write table.md, table.html and table.json; returns the Markdown."""
    ours = found.methods.get(OURS, {})
    results = [result for scored in ours.values() for result in scored.results]
    dataset = results[0]["dataset"] if results else "ref-lerf"
    protocols = sorted({result["protocol_name"] for result in results})
    revisions = ", ".join(sorted({result["git_revision"] for result in results})) or "unknown"
    facts = [
        f"Scenes: {', '.join(found.scenes)}; {found.seeds} {'seed' if found.seeds == 1 else 'seeds'} each. "
        f"Flags for train.py: {' '.join(passed) or 'none'}. Revision {revisions}.",
        *sorted({result["protocol"] + "." for result in results}),
        *(f"**Not the protocol**: {d}." for d in sorted({d for result in results for d in result["deviations"]})),
    ]
    tables = [main_table(found, dataset), detail_table(found, out), other_table(found), cost_table(found)]
    tables = [table for table in tables if table.rows]
    title = f"Benchmark: {dataset}, protocol {', '.join(protocols) or 'none, as nothing is finished'}"
    markdown = _markdown(title, facts, tables, failures)
    write_text(out / "table.md", markdown)
    write_text(out / "table.html", _html(title, facts, tables, failures))
    content = {
        "dataset": dataset,
        "protocols": protocols,
        "failures": failures,
        "methods": {
            method: {scene: scored.results for scene, scored in of.items()} for method, of in found.methods.items()
        },
    }
    write_json(out / "table.json", content)
    return markdown


def main_table(found: Collected, dataset: str) -> Table:
    """mIoU of published methods, of ours and of the baselines, a column a scene."""
    own = {canonical_name(Path(name)): name for name in found.scenes}
    columns = [*SCENES[dataset], *(name for name in own if name not in SCENES[dataset])]
    shown = [p for p in PUBLISHED[dataset] if p.mean is not None or p.scenes.keys() & own.keys()]
    rows = [_published_row(p, columns) for p in shown]
    for method, scored in sorted(found.methods.items(), key=lambda item: list(NAMES).index(item[0])):
        cells = [_marked_cell(scored[own[name]]) if own.get(name) in scored else "–" for name in columns]
        rows.append([NAMES[method], *cells, _mean_cell(scored, found.scenes), "measured"])
    used = {p.source for p in shown}
    notes = [f"{mark} {text}." for mark, text in SOURCES.items() if mark in used]
    notes.append(
        "Published numbers are as printed there; which of the protocols they follow is not always said. Ours: mean "
        "over seeds ± sample standard deviation. The mean over scenes is given where every scene asked for is "
        f"finished: {', '.join(found.scenes)}."
    )
    return Table("mIoU", ["method", *columns, "mean", "source"], rows, [*notes, *found.notes])


def _published_row(published: Published, columns: list[str]) -> list[str]:
    cells = [percent(published.scenes.get(name)) for name in columns]
    return [published.method, *cells, percent(published.mean), published.source]


def _cell(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def _marked_cell(scored: Scored) -> str:
    """mIoU, with a mark if it is of other pictures than the rest of the table."""
    return _cell(scored.values("mIoU")) + (MARK if scored.results[0].get("views") == "training" else "")


def _mean_cell(scored: dict[str, Scored], scenes: list[str]) -> str:
    """Mean over scenes of each seed, then over seeds; a dash where a scene is missing."""
    of_scenes = [scored[name].values("mIoU") if name in scored else [] for name in scenes]
    if len({len(values) for values in of_scenes}) != 1 or not of_scenes[0]:
        return "–"
    marked = any(scored[name].results[0].get("views") == "training" for name in scenes)
    return _cell([statistics.fmean(of_seed) for of_seed in zip(*of_scenes, strict=True)]) + (MARK if marked else "")


def detail_table(found: Collected, out: Path) -> Table:
    """Every figure of every scene and method."""
    rows, links = [], {}
    for name in found.scenes:
        for method in NAMES:
            scored = found.methods.get(method, {}).get(name)
            if scored is None:
                continue
            interval = scored.interval()
            absent = [r["absent"]["false_positive_rate"] for r in scored.results if r.get("absent")]
            absent = [value for value in absent if value is not None]
            cells = [_cell(scored.values(key)) for key in DETAILS]
            cells.insert(1, "–" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}")
            rows.append([name, SHORT[method], str(scored.results[0]["pairs"]), *cells, _cell(absent)])
            if scored.results[0].get("views") == "training":
                rows[-1][2] += MARK
            if scored.report:
                links[len(rows) - 1] = Path(os.path.relpath(scored.report, out))
    header = ["scene", "method", "pairs", *DETAILS.values(), "FP on absent"]
    header.insert(4, "95 % interval")
    notes = [
        "Mean over seeds ± sample standard deviation, in per cent; definitions: docs/EVALUATION.md. The interval of "
        "mIoU is a bootstrap over sentences, of IoUs averaged over seeds. FP on absent: share of absent objects for "
        "which anything is predicted."
    ]
    return Table("All figures", header, rows, notes, links)


def other_table(found: Collected) -> Table:
    """mIoU under the other protocols of the dataset, and share of objects that the lift takes rightly."""
    rows = []
    for name in found.scenes:
        for method in NAMES:
            scored = found.methods.get(method, {}).get(name)
            for other in scored.results[0]["other_protocols"] if scored else ():
                values = [r["other_protocols"][other] for r in scored.results]
                rows.append([name, SHORT[method], other, _cell([v for v in values if v is not None])])
            if scored and scored.values("objects_right"):
                rows.append([name, SHORT[method], "right objects", _cell(scored.values("objects_right"))])
    notes = ["Right objects: share of test sentences whose nearest training sentence is one of the same object."]
    return Table("The same masks, counted otherwise", ["scene", "method", "number", "per cent"], rows, notes)


def cost_table(found: Collected) -> Table:
    """Time and memory of every run."""
    header = ["scene", "seed", "machine", "training, s", "evaluation, s", "baselines, s", "peak GPU memory, GB", ""]
    return Table("Cost", header, found.cost, ["Training: all of train.py, with loading and checkpoints."])


def _markdown(title: str, facts: list[str], tables: list[Table], failures: list[str]) -> str:
    lines = [f"# {title}", ""]
    for fact in facts:
        lines += [fact, ""]
    for message in failures:
        lines += [f"**Failed**: {_one_line(message)}", ""]
    for table in tables:
        lines += [f"## {table.heading}", ""]
        lines.append(_row(map(_escaped, table.header)))
        lines.append(_row(["---"] + ["---:"] * (len(table.header) - 1)))
        for number, row in enumerate(table.rows):
            link = table.links.get(number)
            first = f"[{_escaped(row[0])}]({link.as_posix().replace(' ', '%20')})" if link else _escaped(row[0])
            lines.append(f"| {first} | {' | '.join(map(_escaped, row[1:]))} |")
        lines += ["", *(line for note in table.notes for line in (note, ""))]
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _html(title: str, facts: list[str], tables: list[Table], failures: list[str]) -> str:
    parts = [f"{HEAD}<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>"]
    parts.append(f"<h1>{html.escape(title)}</h1>")
    parts += [f'<p class="soft">{html.escape(fact.replace("**", ""))}</p>' for fact in facts]
    parts += [f'<div class="card note">Failed: {html.escape(message)}</div>' for message in failures]
    for table in tables:
        head = "".join(f'<th class="{"right" if k else ""}">{html.escape(c)}</th>' for k, c in enumerate(table.header))
        rows = []
        for number, row in enumerate(table.rows):
            link, first = table.links.get(number), html.escape(row[0])
            if link:
                first = f'<a href="{html.escape(link.as_posix(), quote=True)}">{first}</a>'
            strong = ' class="iou"' if NAMES[OURS] in row[:2] else ""
            cells = "".join(f'<td class="right number">{html.escape(cell)}</td>' for cell in row[1:])
            rows.append(f"<tr{strong}><td>{first}</td>{cells}</tr>")
        parts.append(
            f'<h2>{html.escape(table.heading)}</h2><div class="card scroll"><table><tr>{head}</tr>{"".join(rows)}'
            f"</table></div>{''.join(f'<p class=soft>{html.escape(note)}</p>' for note in table.notes)}"
        )
    return "".join([*parts, "</main></body></html>\n"])
