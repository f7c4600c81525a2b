"""python pseudo_mask.py -s SCENE: a training mask for every training view and object, by Grounded-SAM.

    python pseudo_mask.py -s data/ramen                                    # sentences from the scene's JSON files
    python pseudo_mask.py -s data/desk --sentences desk.json               # new scene: writes json/train_json, too
    python pseudo_mask.py -s data/desk --import masks_made_elsewhere       # no models: files found by their names
    python pseudo_mask.py -s data/desk --consensus output/desk             # afterwards, what the views agree on
    python pseudo_mask.py -s data/desk --check                             # which view and object lacks what

Masks go to SCENE/<mask_dir>/<frame>/<object>.png with a JSON beside each, contact sheets to SCENE/<mask_dir>_sheets.
Masks that are there stay, so that an interrupted run goes on where it was; test views are left alone, since their masks
are ground truth. docs/DATA.md walks through it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from tqdm import tqdm

from arguments import ConsensusParams, PhotoParams, PipelineParams, PseudoMaskParams, parse
from pseudo_masks.check import lacks, summary
from pseudo_masks.consensus import find_consensus, refuse_other_files
from pseudo_masks.grounded_sam import GroundedSam
from pseudo_masks.imported import ImportedMasks
from pseudo_masks.plan import Job, jobs, write_annotations
from pseudo_masks.records import is_finished, write
from pseudo_masks.sheets import write_sheets
from scene.dataset import first_five
from scene.model_folder import model_file
from scene.readers.image_files import read_image
from utils.device import torch_device
from utils.errors import UserError, run
from utils.log import setup_logging

log = logging.getLogger("refersplat")


def main() -> int:
    setup_logging()
    scene, flags = parse(__doc__.split("\n")[0], [PhotoParams, PseudoMaskParams])
    if scene.source_path is None:
        raise UserError("-s is missing: give the scene folder, with images/ and sparse/0/ in it.")
    if flags.check and (flags.sentences or flags.import_dir or flags.consensus):
        raise UserError("--check only looks; leave --sentences, --import and --consensus away.")
    if flags.consensus and not model_file(flags.consensus, -1).is_file():  # told now, not after hours
        raise UserError(
            f"--consensus {flags.consensus} does not exist; name the Gaussians of the scene (.ply, .pth ...) or a "
            "model folder."
        )
    consensus_dir = f"{flags.mask_dir}_consensus"
    if flags.consensus:
        refuse_other_files(scene.source_path / consensus_dir)
    everything, photos = jobs(scene.source_path, scene.images, flags.mask_dir, scene.eval, flags.sentences)
    if flags.check:
        found = lacks(everything)
        print(summary(everything, found))
        return 1 if found else 0
    imported = ImportedMasks(flags.import_dir, everything, photos) if flags.import_dir else None
    todo = unfinished(everything, flags.redo, imported)
    if flags.sentences:
        waiting = {job.photo.name for job in todo}  # annotated when their masks are made, not before
        for job in everything:  # of an earlier run that ended between a mask and its annotation
            if job.photo.name not in waiting:
                write_annotations(scene.source_path, job)
    failures = make(todo, everything, scene, flags, imported) if todo else []
    masks, sheets = scene.source_path / flags.mask_dir, scene.source_path / f"{flags.mask_dir}_sheets"
    report(everything, todo, masks, imported)
    write_sheets(sheets, everything)
    log.info("look at the masks in %s", sheets)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(todo)} views could not be done, the others are: {' '.join(failures[:5])} "
            "Mend or remove these files and run again; only what is missing will be made."
        )
    if flags.consensus:
        find_consensus(
            ConsensusParams(
                scene.source_path, scene.images, start_checkpoint=flags.consensus, mask_dir=flags.mask_dir,
                out_dir=consensus_dir,
            ),
            PipelineParams(device=flags.device),
        )  # fmt: skip
    return 0


def unfinished(everything: list[Job], redo: str, imported: ImportedMasks | None) -> list[Job]:
    """The views that have pairs to be made, with these pairs only."""
    todo = []
    for job in everything:
        pairs = [pair for pair in job.pairs if not is_finished(pair, redo) and (not imported or imported.has(pair))]
        if pairs:
            todo.append(Job(job.photo, tuple(pairs)))
    return todo


def make(
    todo: list[Job], everything: list[Job], scene: PhotoParams, flags: PseudoMaskParams, imported: ImportedMasks | None
) -> list[str]:
    """Make and write the masks of views, one view after the other.

    Args:
        todo: views with the pairs to be made.
        everything: views with all their pairs, for the annotations.
        scene, flags: as the user gave them.
        imported: where masks come from; None asks the models.

    Returns:
        What kept a view from being done, one message a view.
    """
    device = torch_device(flags.device)
    source = imported or GroundedSam(flags, device)
    if not imported:
        log.info("%s and %s on %s", flags.detector, flags.segmenter, device)
    failures, whole = [], {job.photo.name: job for job in everything}
    for job in tqdm(todo, desc="pseudo masks", unit="view"):
        try:
            photo = read_image(job.photo.path, 255 if scene.white_background else 0)
            outcomes = source.outcomes(photo, list(job.pairs))
        except KeyboardInterrupt:
            log.info("what is done stays; the same command goes on with %s", job.photo.frame)
            raise
        except UserError as error:
            failures.append(str(error))
            log.warning("%s is left out: %s", job.photo.frame, error)
            continue
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU has too little memory for {job.photo.frame}: {str(error).splitlines()[0]} Lower --batch or "
                "--max_boxes, free the GPU of other programs, or take --device cpu. What is done stays done."
            ) from None
        for pair, outcome in zip(job.pairs, outcomes, strict=True):
            write(pair, outcome, (photo.shape[1], photo.shape[0]))
        if flags.sentences:
            write_annotations(scene.source_path, whole[job.photo.name])
    return failures


def report(everything: list[Job], todo: list[Job], masks: Path, imported: ImportedMasks | None) -> None:
    """Say what was done and what is missing."""
    if not todo:
        log.info("nothing to do: what is in %s stays (--redo, or another --mask_dir)", masks)
    pairs = [pair for job in everything for pair in job.pairs]
    missing = [pair.name for pair in pairs if not pair.mask.is_file()]
    log.info("%d of %d pairs of a view and an object have a mask in %s", len(pairs) - len(missing), len(pairs), masks)
    if missing:
        log.warning("without a mask: %d (%s); --check tells why", len(missing), first_five(missing))
    if imported and imported.of_test:
        log.info("masks of test views, left alone: %d", len(imported.of_test))
    if imported and imported.unused:
        names = [str(path) for path in imported.unused]
        log.warning("files that belong to no view and object: %d (%s)", len(names), first_five(names))


if __name__ == "__main__":
    run(main)
