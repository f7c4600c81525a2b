"""python pseudo_mask.py -s SCENE: a training mask for every training view and object, by Grounded-SAM.

    python pseudo_mask.py -s data/ramen                                    # sentences from the scene's JSON files
    python pseudo_mask.py -s data/desk --sentences desk.json               # new scene: writes json/train_json, too
    python pseudo_mask.py -s data/desk --import masks_made_elsewhere       # no models: files matched by name
    python pseudo_mask.py -s data/desk --consensus output/desk             # then masks that agree across views
    python pseudo_mask.py -s data/desk --check                             # list views and objects without a mask

Masks go to SCENE/<mask_dir>/<frame>/<object>.png with a JSON beside each, contact sheets to SCENE/<mask_dir>_sheets.
Existing masks stay, so an interrupted run continues where it stopped. Test views are skipped: their masks are ground
truth. See docs/DATA.md.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from arguments import ConsensusParams, PhotoParams, PipelineParams, PseudoMaskParams, parse
from pseudo_masks.consensus import find_consensus, refuse_other_files
from pseudo_masks.grounded_sam import GroundedSam
from pseudo_masks.imported import ImportedMasks
from pseudo_masks.mask_files import is_finished, write_mask
from pseudo_masks.review import find_problems, summarize, write_sheets
from pseudo_masks.worklist import Job, list_jobs, write_annotations
from scene.issues import first_five
from scene.model_folder import model_file
from scene.readers.image_files import read_image
from utils.device import torch_device
from utils.errors import UserError, run
from utils.scripts import setup_logging

log = logging.getLogger("refersplat")


def main() -> int:
    setup_logging()
    scene, flags = parse(__doc__.split("\n")[0], [PhotoParams, PseudoMaskParams])
    consensus_dir = f"{flags.mask_dir}_consensus"
    check_flags(scene, flags, consensus_dir)
    jobs, photos = list_jobs(scene.source_path, scene.images, flags.mask_dir, scene.eval, flags.sentences)
    if flags.check:
        problems = find_problems(jobs)
        print(summarize(jobs, problems))
        return 1 if problems else 0
    imported = ImportedMasks(flags.import_dir, jobs, photos) if flags.import_dir else None
    unfinished = find_unfinished(jobs, flags.redo, imported)
    if flags.sentences:  # views whose masks exist, but not their annotation: an earlier run was interrupted
        waiting = {job.photo.name for job in unfinished}
        for job in jobs:
            if job.photo.name not in waiting:
                write_annotations(scene.source_path, job)
    failures = make_masks(unfinished, jobs, scene, flags, imported) if unfinished else []
    masks, sheets = scene.source_path / flags.mask_dir, scene.source_path / f"{flags.mask_dir}_sheets"
    report(jobs, unfinished, masks, imported)
    write_sheets(sheets, jobs)
    log.info("look at the masks in %s", sheets)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(unfinished)} views failed, the others are done: {' '.join(failures[:5])} "
            "Repair or remove these files and run again; only missing masks will be made."
        )
    if flags.consensus:
        consensus = ConsensusParams(
            scene.source_path, scene.images, start_checkpoint=flags.consensus, mask_dir=flags.mask_dir,
            out_dir=consensus_dir,
        )  # fmt: skip
        find_consensus(consensus, PipelineParams(device=flags.device))
    return 0


def check_flags(scene: PhotoParams, flags: PseudoMaskParams, consensus_dir: str) -> None:
    """Raise UserError for flags that would fail later, after hours of work."""
    if scene.source_path is None:
        raise UserError("-s is missing: give the scene folder, with images/ and sparse/0/ in it.")
    if flags.check and (flags.sentences or flags.import_dir or flags.consensus):
        raise UserError("--check only looks; leave --sentences, --import and --consensus away.")
    if flags.consensus and not model_file(flags.consensus, -1).is_file():
        raise UserError(
            f"--consensus {flags.consensus} does not exist; name the Gaussians of the scene (.ply, .pth ...) or a "
            "model folder."
        )
    if flags.consensus:
        refuse_other_files(scene.source_path / consensus_dir)


def find_unfinished(jobs: list[Job], redo: str, imported: ImportedMasks | None) -> list[Job]:
    """Return the views with masks to make, with these targets only."""
    unfinished = []
    for job in jobs:
        targets = [t for t in job.targets if not is_finished(t, redo) and (not imported or imported.has(t))]
        if targets:
            unfinished.append(replace(job, targets=tuple(targets)))
    return unfinished


def make_masks(
    unfinished: list[Job], jobs: list[Job], scene: PhotoParams, flags: PseudoMaskParams, imported: ImportedMasks | None
) -> list[str]:
    """Make and write the masks of one view after the other; returns a message for each view that failed.

    `unfinished` holds the targets to make, `jobs` all targets, for the annotations; `imported` replaces the models.
    """
    assert scene.source_path is not None
    device = torch_device(flags.device)
    source = imported or GroundedSam(flags, device)
    if not imported:
        log.info("%s and %s on %s", flags.detector, flags.segmenter, device)
    failures, complete = [], {job.photo.name: job for job in jobs}
    for job in tqdm(unfinished, desc="pseudo masks", unit="view"):
        try:
            photo = read_image(job.photo.path, 255 if scene.white_background else 0)
            made = source.make_masks(photo, list(job.targets))
        except KeyboardInterrupt:
            log.info("finished masks stay; the same command continues with %s", job.photo.frame)
            raise
        except UserError as error:
            failures.append(str(error))
            log.warning("%s is left out: %s", job.photo.frame, error)
            continue
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU has too little memory for {job.photo.frame}: {str(error).splitlines()[0]} Lower --batch or "
                "--max_boxes, free the GPU of other programs, or take --device cpu. Finished masks stay."
            ) from None
        for target, mask in zip(job.targets, made, strict=True):
            write_mask(target, mask, (photo.shape[1], photo.shape[0]))
        if flags.sentences:
            write_annotations(scene.source_path, complete[job.photo.name])
    return failures


def report(jobs: list[Job], unfinished: list[Job], masks: Path, imported: ImportedMasks | None) -> None:
    """Log what was done and what is missing."""
    if not unfinished:
        log.info("nothing to do: the masks in %s stay (--redo, or another --mask_dir)", masks)
    targets = [target for job in jobs for target in job.targets]
    missing = [target.name for target in targets if not target.mask.is_file()]
    done = len(targets) - len(missing)
    log.info("%d of %d pairs of a view and an object have a mask in %s", done, len(targets), masks)
    if missing:
        log.warning("without a mask: %d (%s); --check tells why", len(missing), first_five(missing))
    if imported and imported.test_masks:
        log.info("masks of test views, left alone: %d", len(imported.test_masks))
    if imported and imported.unused:
        names = [str(path) for path in imported.unused]
        log.warning("files that belong to no view and object: %d (%s)", len(names), first_five(names))


if __name__ == "__main__":
    run(main)
