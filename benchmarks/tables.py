"""Tables of benchmarks/run.py: our runs and baselines beside the published numbers, as Markdown, HTML and JSON."""

from __future__ import annotations

import html
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.published import PUBLISHED, SCENES, SOURCES
from benchmarks.scene_runs import BASELINES, SceneRun
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
SHORT = {OURS: NAMES[OURS], LIFT: "baseline: lift", MASKS: "baseline: pseudo masks"}
MARK = " †"
ON_TRAINING = f"{MARK} none of test views; measured on training views against clean masks, not on the test views"
DETAILS = ("mIoU", "overall_iou", "acc@0.25", "acc@0.5", "boundary_iou", "mAcc", "localisation", "coverage")
DETAIL_NAMES = ("mIoU", "overall IoU", "Acc@0.25", "Acc@0.5", "boundary IoU", "mAcc", "localisation", "coverage")
TIMES = ("train_seconds", "eval_seconds", "baseline_seconds")
COST_HEADER = ["scene", "seed", "machine", "training, s", "evaluation, s", "baselines, s", "peak GPU memory, GB", ""]


@dataclass
class Scored:
    """All runs of one method on one scene: results and pairs of each seed, and the page of the first."""

    results: list[dict[str, Any]] = field(default_factory=list)
    outcomes: list[list[Outcome]] = field(default_factory=list)
    report: Path | None = None

    def values(self, key: str) -> list[float]:
        """A number of each seed that has it."""
        return [result[key] for result in self.results if result.get(key) is not None]

    @property
    def mark(self) -> str:
        """A mark for numbers of other pictures than the rest of the table."""
        return MARK if self.results[0].get("views") == "training" else ""

    def interval(self) -> list[float] | None:
        """95 % bootstrap interval of mIoU, of pairs averaged over seeds."""
        if not self.outcomes:
            return None
        ious: dict[tuple[str, str], list[float]] = {}
        for outcome in (outcome for outcomes in self.outcomes for outcome in outcomes):
            ious.setdefault((outcome.view, outcome.sentence_id), []).append(outcome.score.iou)
        mean = [o._replace(score=Score(statistics.fmean(ious[o.view, o.sentence_id]))) for o in self.outcomes[0]]
        return confidence_interval(PROTOCOLS[self.results[0]["protocol_name"]], mean)


@dataclass
class Collected:
    """The content of the model folders of a benchmark."""

    scenes: list[str]  # requested
    seeds: int  # requested
    methods: dict[str, dict[str, Scored]]  # method -> scene -> its runs
    notes: list[str]  # why a baseline has no number
    cost: list[list[str]]  # rows about time and memory

    def add(self, method: str, scene: str, results: dict[str, Any], folder: Path) -> Scored:
        """Add one run, with the pairs in its folder."""
        scored = self.methods.setdefault(method, {}).setdefault(scene, Scored())
        scored.results.append(results)
        scored.outcomes.append(list(read_csv(folder)))
        return scored

    def each(self) -> list[tuple[str, str, Scored]]:
        """(scene, method, runs) in the order of the tables."""
        runs = ((scene, method, self.methods.get(method, {}).get(scene)) for scene in self.scenes for method in NAMES)
        return [(scene, method, scored) for scene, method, scored in runs if scored is not None]


@dataclass
class Table:
    """A table with its heading and notes; cells are plain text."""

    heading: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    links: dict[int, Path] = field(default_factory=dict)  # of the first cells, by row


def collect(scenes: list[list[SceneRun]]) -> Collected:
    """Read the finished runs."""
    found = Collected([runs[0].scene.name for runs in scenes], len(scenes[0]), {}, [], [])
    remarks: dict[tuple[str, str], list[str]] = {}  # scenes by baseline and remark
    for run in (run for runs in scenes for run in runs if run.is_done()):
        name, state = run.scene.name, run.state()
        results = read_json(run.model / "results.json", "results")
        ours = found.add(OURS, name, results, run.model)
        ours.report = ours.report or run.model / "report.html"
        for baseline, numbers in read_json(run.model / BASELINES, "results of the baselines").items():
            if isinstance(numbers, str):
                remarks.setdefault((baseline, numbers), []).append(name)
                continue
            numbers |= {"protocol_name": results["protocol_name"], "dataset": results["dataset"]}
            if found.add(baseline, name, numbers, run.model / "baselines" / baseline).mark:
                remarks.setdefault((baseline, ON_TRAINING), []).append(name)
        memory = state.get("peak_gigabytes")
        row = [name, str(run.seed), state.get("machine", ""), *(f"{state[key]:.1f}" for key in TIMES)]
        row += ["–" if memory is None else f"{memory:.2f}"]
        found.cost.append([*row, "resumed, so not the whole time" if state.get("resumed") else ""])
    for (baseline, remark), names in remarks.items():
        found.notes.append(f"{NAMES[baseline]}; {', '.join(dict.fromkeys(names))}: {remark}.")
    return found


def write_tables(out: Path, found: Collected, failures: list[str], passed: list[str]) -> str:
    """Write table.md, table.html and table.json; return the Markdown."""
    results = [result for scored in found.methods.get(OURS, {}).values() for result in scored.results]
    dataset = results[0]["dataset"] if results else "ref-lerf"
    protocols = sorted({result["protocol_name"] for result in results})
    revisions = ", ".join(sorted({result["git_revision"] for result in results})) or "unknown"
    facts = [
        f"Scenes: {', '.join(found.scenes)}; {found.seeds} {'seed' if found.seeds == 1 else 'seeds'} each. "
        f"Flags for train.py: {' '.join(passed) or 'none'}. Revision {revisions}.",
        *sorted({result["protocol"] + "." for result in results}),
        *(f"**Not the protocol**: {d}." for d in sorted({d for result in results for d in result["deviations"]})),
    ]
    cost = Table("Cost", COST_HEADER, found.cost, ["Training: all of train.py, with loading and checkpoints."])
    tables = [t for t in (main_table(found, dataset), detail_table(found, out), other_table(found), cost) if t.rows]
    title = f"Benchmark: {dataset}, protocol {', '.join(protocols) or 'none, as nothing is finished'}"
    markdown = _markdown(title, facts, tables, failures)
    write_text(out / "table.md", markdown)
    write_text(out / "table.html", _html(title, facts, tables, failures))
    methods = {m: {name: scored.results for name, scored in scenes.items()} for m, scenes in found.methods.items()}
    content = {"dataset": dataset, "protocols": protocols, "failures": failures, "methods": methods}
    write_json(out / "table.json", content)
    return markdown


def main_table(found: Collected, dataset: str) -> Table:
    """mIoU of published methods, of ours and of the baselines, a column a scene."""
    own = {canonical_name(Path(name)): name for name in found.scenes}
    columns = [*SCENES[dataset], *(name for name in own if name not in SCENES[dataset])]
    shown = [p for p in PUBLISHED[dataset] if p.mean is not None or p.scenes.keys() & own.keys()]
    rows = [[p.method, *(percent(p.scenes.get(c)) for c in columns), percent(p.mean), p.source] for p in shown]
    for method in (name for name in NAMES if name in found.methods):
        runs = found.methods[method]
        scored = [runs.get(own.get(name)) for name in columns]
        cells = ["–" if s is None else _cell(s.values("mIoU")) + s.mark for s in scored]
        rows.append([NAMES[method], *cells, _mean_cell(runs, found.scenes), "measured"])
    used = {p.source for p in shown}
    notes = [f"{mark} {text}." for mark, text in SOURCES.items() if mark in used]
    notes.append(
        "Published numbers are as printed there; which of the protocols they follow is not always said. Ours: mean "
        "over seeds ± sample standard deviation. The mean over scenes is given where every scene asked for is "
        f"finished: {', '.join(found.scenes)}."
    )
    return Table("mIoU", ["method", *columns, "mean", "source"], rows, [*notes, *found.notes])


def _cell(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def _mean_cell(runs: dict[str, Scored], scenes: list[str]) -> str:
    """Mean over scenes of each seed, then over seeds; a dash where a scene is missing."""
    values = [runs[name].values("mIoU") if name in runs else [] for name in scenes]
    if len(set(map(len, values))) != 1 or not values[0]:
        return "–"
    return _cell(list(map(statistics.fmean, zip(*values, strict=True)))) + max(runs[name].mark for name in scenes)


def detail_table(found: Collected, out: Path) -> Table:
    """Every figure of every scene and method."""
    rows, links = [], {}
    for name, method, scored in found.each():
        interval = scored.interval()
        absent = [r["absent"]["false_positive_rate"] for r in scored.results if r.get("absent")]
        cells = [_cell(scored.values(key)) for key in DETAILS]
        cells.insert(1, "–" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}")
        pairs = str(scored.results[0]["pairs"]) + scored.mark
        rows.append([name, SHORT[method], pairs, *cells, _cell([rate for rate in absent if rate is not None])])
        if scored.report:
            links[len(rows) - 1] = Path(os.path.relpath(scored.report, out))
    header = ["scene", "method", "pairs", "mIoU", "95 % interval", *DETAIL_NAMES[1:], "FP on absent"]
    notes = [
        "Mean over seeds ± sample standard deviation, in per cent; definitions: docs/EVALUATION.md. The interval of "
        "mIoU is a bootstrap over sentences, of IoUs averaged over seeds. FP on absent: share of absent objects for "
        "which anything is predicted."
    ]
    return Table("All figures", header, rows, notes, links)


def other_table(found: Collected) -> Table:
    """mIoU under the other protocols of the dataset, and share of objects that the lift takes rightly."""
    rows = []
    for name, method, scored in found.each():
        for other in scored.results[0]["other_protocols"]:
            values = [r["other_protocols"][other] for r in scored.results]
            rows.append([name, SHORT[method], other, _cell([v for v in values if v is not None])])
        if right := scored.values("objects_right"):
            rows.append([name, SHORT[method], "right objects", _cell(right)])
    notes = ["Right objects: share of test sentences whose nearest training sentence is one of the same object."]
    return Table("The same masks, counted otherwise", ["scene", "method", "number", "per cent"], rows, notes)


def _markdown(title: str, facts: list[str], tables: list[Table], failures: list[str]) -> str:
    paragraphs = [f"# {title}", *facts, *(f"**Failed**: {_one_line(message)}" for message in failures)]
    for table in tables:
        lines = [list(map(_escaped, table.header)), ["---"] + ["---:"] * (len(table.header) - 1)]
        for number, row in enumerate(table.rows):
            cells = list(map(_escaped, row))
            if link := table.links.get(number):
                cells[0] = f"[{cells[0]}]({link.as_posix().replace(' ', '%20')})"
            lines.append(cells)
        paragraphs += [f"## {table.heading}", "\n".join(f"| {' | '.join(cells)} |" for cells in lines), *table.notes]
    return "\n\n".join(paragraphs) + "\n"


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
            first, *rest = map(html.escape, row)
            if link := table.links.get(number):
                first = f'<a href="{html.escape(link.as_posix(), quote=True)}">{first}</a>'
            strong = ' class="iou"' if NAMES[OURS] in row[:2] else ""
            cells = "".join(f'<td class="right number">{cell}</td>' for cell in rest)
            rows.append(f"<tr{strong}><td>{first}</td>{cells}</tr>")
        parts.append(
            f'<h2>{html.escape(table.heading)}</h2><div class="card scroll"><table><tr>{head}</tr>{"".join(rows)}'
            f"</table></div>{''.join(f'<p class=soft>{html.escape(note)}</p>' for note in table.notes)}"
        )
    return "".join([*parts, "</main></body></html>\n"])
