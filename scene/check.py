"""python -m scene.check -s DIR: which layout a scene folder has, and a list of everything that is missing in it.

    python -m scene.check -s data/ramen
    python -m scene.check -s data/ramen --mask_dir pseudo_masks     # other masks of training views
    python -m scene.check -s data/bed --dataset 3d-ovs

Reads every annotation, photo and mask and the points, loads no model. Exit code 0: complete; 1: it can be used, and the
list says what is missing; 2: train.py refuses it, and the list says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from arguments import parse
from arguments.groups import CheckParams
from scene.dataset import Findings, Scene, View, open_views
from scene.gaussian_model import LEAST_POINTS
from scene.layouts.annotations import Annotations, Folder, split
from scene.layouts.loader import layout_of
from scene.readers.capture import Capture
from scene.readers.image_files import read_image
from utils.errors import UserError, run
from utils.scripts import setup_logging

NO_POINTS = "points that the RGB stage starts from, but with --init random or --start_checkpoint"
NO_PAIRS = "nothing to train on, but colour with --iterations 0"


@dataclass(frozen=True)
class Checked:
    """What the check found.

    Attributes:
        layout: name of the layout, and why it was taken.
        summary: counts and rules, a line each.
        missing: what is missing or damaged, by kind; `train.py` goes on without it.
        refused: what is missing or damaged, by kind, so that `train.py` refuses the scene.
        notes: what is unusual but no fault, by kind.
        refusal: why the scene cannot be used at all; None if it can.
    """

    layout: str
    summary: list[str]
    missing: dict[str, list[str]]
    refused: dict[str, list[str]]
    notes: dict[str, list[str]]
    refusal: str | None


def check(flags: CheckParams) -> Checked:
    """Look at everything that loading, training and evaluation will read.

    Raises:
        UserError: if there is no such folder.
    """
    source = flags.source_path
    if source is None:
        raise UserError("-s is missing: give the scene folder.")
    if not source.is_dir():
        found = "is a file" if source.exists() else "does not exist"
        raise UserError(f"the scene folder {source} {found}. Give the folder of a scene with -s.")
    layout = layout_of(source, flags.dataset)
    here = "its annotations are there" if layout.is_here(source) else "no annotation of any layout was found"
    name = f"{layout.NAME} ({'--dataset' if flags.dataset != 'auto' else here})"
    findings, summary = Findings(strict=False), []
    refusal = None
    try:
        views, capture = open_views(source, flags.images, -1, findings)
        summary.append(f"{len(views)} photos with cameras of {capture.kind}")
        found = layout.annotate(Folder(source, flags.mask_dir, flags.eval), views, capture, findings)
    except UserError as error:
        refusal = str(error)
    else:
        refusal = found.refusal
        train, test = split(views, found)
        summary += _counts(train, test, found)
        _look_at_points(capture, findings)
        _look_at_pictures(train, test, findings)
        expected = layout.TRAINING_MASKS.format(mask_dir=flags.mask_dir)
        if not any(view.referrals for view in train):
            item = f"no training view has a sentence and a mask; expected are {expected}"
            findings.add(NO_PAIRS, item, fatal=True)
        elif not any(r.confidence for view in train for r in view.referrals):
            item = f"all masks in {flags.mask_dir} have confidence 0 (confidence.json)"
            findings.add("nothing to train on, but with --no-mask_confidence", item, fatal=True)
        if not any(view.referrals for view in test):
            findings.add("nothing to evaluate", "no test view has a sentence and a mask")
        if not train:
            refusal = refusal or "every view is a test view, nothing is left to train on."
        _look_at_sentences(train, test, layout.NAME, findings)
    parts: list[dict[str, list[str]]] = [{}, {}, {}]
    for kind, items in findings.items.items():
        parts[1 if kind in findings.fatal else 2 if kind in findings.harmless else 0][kind] = items
    return Checked(name, summary, *parts, refusal)


def _counts(train: list[View], test: list[View], found: Annotations) -> list[str]:
    lines = [f"test views by {found.split_rule}"]
    for split_name, views in (("training", train), ("test", test)):
        pairs = sum(len(view.referrals) for view in views)
        objects = len({r.category for view in views for r in view.referrals})
        sentences = len(Scene.sentences(views))
        with_any = sum(bool(view.referrals) for view in views)
        lines.append(
            f"{len(views)} {split_name} views, {with_any} with sentences: {objects} objects, {sentences} sentences, "
            f"{pairs} pairs of view and sentence"
        )
    return lines


def _look_at_points(capture: Capture, findings: Findings) -> None:
    """Read the points, if the layout has any: a missing or damaged file, or too few."""
    if capture.read_points is None:
        return
    with findings.attempt(NO_POINTS):
        count = len(capture.read_points()[0])
        if count < LEAST_POINTS:
            findings.add(NO_POINTS, f"{capture.place} has {count}, expected at least {LEAST_POINTS}", fatal=True)


def _look_at_pictures(train: list[View], test: list[View], findings: Findings) -> None:
    """Decode every photo and every mask once: damaged ones, and masks without foreground."""
    views = [*((view, False) for view in train), *((view, True) for view in test)]
    for view, is_test in tqdm(views, desc="photos and masks", unit="view", delay=1):
        with findings.attempt():
            read_image(view.image_path)
        for referral in {r.mask_key: r for r in view.referrals}.values():
            is_read = is_test or referral.confidence > 0
            kind = "damaged files" if is_read else "damaged masks of confidence 0, not read in training"
            with findings.attempt(kind, fatal=is_read):
                if not view.mask(referral).any():
                    kind = f"{'test' if is_test else 'training'} masks without foreground"
                    findings.add(kind, f"{view.id} ({referral.category})", harmless=is_test)


def _look_at_sentences(train: list[View], test: list[View], layout: str, findings: Findings) -> None:
    """Objects of the test that are never trained, and in Ref-LERF test sentences that are trained."""
    trained = {r.category for view in train for r in view.referrals}
    for category in sorted({r.category for view in test for r in view.referrals} - trained):
        if trained:
            findings.add("objects of the test without a mask in any training view", category)
    if layout == "ref-lerf":
        for sentence in sorted(set(Scene.sentences(train)) & set(Scene.sentences(test))):
            findings.add("test sentences that are training sentences too", sentence, harmless=True)


def text(checked: Checked) -> str:
    """The check in words, every item on a line of its own."""
    lines = [f"layout: {checked.layout}", *checked.summary]
    marked = ((checked.notes, "note: "), (checked.missing, "missing: "), (checked.refused, "train.py refuses: "))
    for kinds, mark in marked:
        for kind, items in kinds.items():
            lines += [f"{mark}{kind}: {len(items)}", *(f"  {item}" for item in items)]
    if checked.refusal:
        lines.append(f"cannot be used: {checked.refusal}")
    elif not checked.missing and not checked.refused:
        lines.append("complete: nothing is missing")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Check a scene folder; see the module for exit codes."""
    setup_logging()
    checked = check(*parse(__doc__.split("\n")[0], [CheckParams], argv))
    print(text(checked))
    return 2 if checked.refusal or checked.refused else 1 if checked.missing else 0


if __name__ == "__main__":
    run(main)
