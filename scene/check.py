"""python -m scene.check -s DIR: report which layout a scene folder has and everything that is missing in it.

    python -m scene.check -s data/ramen
    python -m scene.check -s data/ramen --mask_dir pseudo_masks     # other masks of training views
    python -m scene.check -s data/bed --dataset 3d-ovs

Reads every annotation, photo and mask and the points; loads no model. Exit code 0: complete; 1: usable, and the list
says what is missing; 2: train.py refuses it, and the list says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from arguments import parse
from arguments.groups import CheckParams
from scene.dataset import Scene
from scene.gaussian_model import MIN_POINTS
from scene.issues import IssueLog
from scene.layouts.loader import detect_layout, expected_mask_files
from scene.readers.colmap import require_folder
from scene.readers.image_files import read_image
from utils.errors import UserError, run
from utils.scripts import setup_logging

NO_POINTS = "points that the RGB stage starts from, but with --init random or --start_checkpoint"
NO_PAIRS = "nothing to train on, but colour with --iterations 0"


@dataclass(frozen=True)
class CheckResult:
    """Result of the check."""

    layout: str  # its name, and why it was chosen
    issues: IssueLog  # what is missing, damaged or unusual
    summary: list[str] = field(default_factory=list)  # counts and rules, one per line

    @property
    def exit_code(self) -> int:
        """0 if the scene is complete, 1 if it is usable, 2 if train.py refuses it."""
        if self.issues.refusal or self.issues.fatal:
            return 2
        return int(bool(self.issues.items.keys() - self.issues.harmless))

    def __str__(self) -> str:
        """The report, with every item on a line of its own."""
        issues = self.issues
        lines = [f"layout: {self.layout}", *self.summary]
        marks = dict.fromkeys(issues.items, "missing") | dict.fromkeys(issues.harmless, "note")
        marks |= dict.fromkeys(issues.fatal, "train.py refuses")
        for mark in ("note", "missing", "train.py refuses"):
            for kind, items in issues.items.items():
                if marks[kind] == mark:
                    lines += [f"{mark}: {kind}: {len(items)}", *(f"  {item}" for item in items)]
        if issues.refusal:
            lines.append(f"cannot be used: {issues.refusal}")
        elif self.exit_code == 0:
            lines.append("complete: nothing is missing")
        return "\n".join(lines)


def check(flags: CheckParams) -> CheckResult:
    """Check all that loading, training and evaluation will read. Raises UserError if the folder does not exist."""
    source = flags.source_path
    if source is None:
        raise UserError("-s is missing: give the scene folder.")
    require_folder(source)
    layout = detect_layout(source, flags.dataset)
    reason = "its annotations are there" if layout.has_annotations(source) else "no annotation of any layout was found"
    issues = IssueLog(strict=False)
    result = CheckResult(f"{layout.NAME} ({'--dataset' if flags.dataset != 'auto' else reason})", issues)
    try:
        scene = layout.load(source, images=flags.images, mask_dir=flags.mask_dir, eval=flags.eval, issues=issues)
    except UserError as error:
        issues.refuse(str(error))
        return result
    assert scene.capture is not None
    result.summary.extend(_summarize(scene, scene.capture.kind))
    if scene.has_points:
        with issues.collect_errors(NO_POINTS):
            if len(scene.xyz) < MIN_POINTS:
                item = f"{scene.capture.place} has {len(scene.xyz)}, expected at least {MIN_POINTS}"
                issues.add(NO_POINTS, item, fatal=True)
    _check_pictures(scene, issues)
    if not any(view.referrals for view in scene.train):
        item = f"no training view has a sentence and a mask; expected are {expected_mask_files(scene, flags.mask_dir)}"
        issues.add(NO_PAIRS, item, fatal=True)
    elif not any(r.confidence for view in scene.train for r in view.referrals):
        item = f"all masks in {flags.mask_dir} have confidence 0 (confidence.json)"
        issues.add("nothing to train on, but with --no-mask_confidence", item, fatal=True)
    if not any(view.referrals for view in scene.test):
        issues.add("nothing to evaluate", "no test view has a sentence and a mask")
    _check_sentences(scene, issues)
    return result


def _summarize(scene: Scene, cameras: str) -> list[str]:
    lines = [
        f"{len(scene.train) + len(scene.test)} photos with cameras of {cameras}",
        f"test views by {scene.split_rule}",
    ]
    for split, views in (("training", scene.train), ("test", scene.test)):
        pairs = sum(len(view.referrals) for view in views)
        objects = len({r.category for view in views for r in view.referrals})
        with_any = sum(bool(view.referrals) for view in views)
        lines.append(
            f"{len(views)} {split} views, {with_any} with sentences: {objects} objects, "
            f"{len(Scene.sentences(views))} sentences, {pairs} pairs of view and sentence"
        )
    return lines


def _check_pictures(scene: Scene, issues: IssueLog) -> None:
    """Decode every photo and every mask once, and report damaged ones and masks without foreground."""
    views = [*((view, False) for view in scene.train), *((view, True) for view in scene.test)]
    for view, is_test in tqdm(views, desc="photos and masks", unit="view", delay=1):
        with issues.collect_errors():
            read_image(view.image_path)
        for referral in {r.mask_key: r for r in view.referrals}.values():
            is_read = is_test or referral.confidence > 0
            kind = "damaged files" if is_read else "damaged masks of confidence 0, not read in training"
            with issues.collect_errors(kind, fatal=is_read):
                if not view.mask(referral).any():
                    empty = f"{'test' if is_test else 'training'} masks without foreground"
                    issues.add(empty, f"{view.id} ({referral.category})", harmless=is_test)


def _check_sentences(scene: Scene, issues: IssueLog) -> None:
    """Report test objects that are never trained, and for Ref-LERF test sentences that are trained."""
    trained = {r.category for view in scene.train for r in view.referrals}
    for category in sorted({r.category for view in scene.test for r in view.referrals} - trained):
        if trained:
            issues.add("objects of the test without a mask in any training view", category)
    if scene.dataset == "ref-lerf":
        for sentence in sorted(set(Scene.sentences(scene.train)) & set(Scene.sentences(scene.test))):
            issues.add("test sentences that are training sentences too", sentence, harmless=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Check a scene folder; the module docstring lists the exit codes."""
    setup_logging()
    result = check(*parse(__doc__.split("\n")[0], [CheckParams], argv))
    print(result)
    return result.exit_code


if __name__ == "__main__":
    run(main)
