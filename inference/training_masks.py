"""The masks of a trained model in its training views, on which `train.py --two_stage` trains a second model.

The model predicts a mask for each sentence, but a training mask belongs to an object: the probabilities of the object's
sentences are averaged. Where the model sees nothing of an object, the mask it was trained on stays with its confidence,
or is dropped if that is 0.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from inference.predict import open_trained
from referring.decoding import THRESHOLD, to_mask
from scene.dataset import Referral
from scene.issues import first_five
from scene.layouts.mask_confidence import write_confidences
from training.two_stage import Flags, masks_done
from utils.files import write_bytes, write_json
from utils.images import encode

log = logging.getLogger("refersplat")


@torch.no_grad()
def write_training_masks(flags: Flags) -> None:
    """Render the masks of the model that was trained with `flags`, into the folder `masks` of its model folder.

    They have the names of the given masks. True masks of test views in the given folder are copied, as they may exist
    nowhere else.
    """
    model, pipeline, training, _, referring = flags
    assert model.model_path is not None
    opened = open_trained(model, pipeline, -1, THRESHOLD, training.deterministic)
    scene, predictor = opened.scene, opened.predictor
    target, given = model.model_path / "masks", scene.path / model.mask_dir
    kept: dict[str, float] = {}  # given masks that stay, and their confidences
    dropped = 0
    for view in tqdm([view for view in scene.train if view.referrals], desc="masks of stage A", unit="view"):
        sentences = list(dict.fromkeys(r.sentence for r in view.referrals))
        probabilities = dict(zip(sentences, predictor.probabilities(view.camera, sentences, once=True), strict=True))
        by_mask: dict[Path, list[Referral]] = {}
        for referral in view.referrals:
            by_mask.setdefault(referral.mask_path, []).append(referral)
        for path, referrals in by_mask.items():
            mean = torch.stack([probabilities[r.sentence] for r in referrals]).mean(dim=0).numpy()  # [H, W]
            mask = to_mask(view.as_photo(mean))
            name = Path(os.path.relpath(path, given))
            if not mask.any():
                confidence = referrals[0].confidence
                if referring.mask_confidence and not confidence:
                    dropped += 1
                    continue
                kept[name.as_posix()] = confidence
                mask = view.as_photo(view.mask_at(path)) > 0.5
            # PNG whatever the name says: a lossy format would blur the border.
            write_bytes(target / name, encode(mask.astype(np.uint8) * 255, ".png"))
    for path in {r.mask_path for view in scene.test for r in view.referrals}:
        if path.is_relative_to(given):
            write_bytes(target / path.relative_to(given), path.read_bytes())
    if kept:
        log.warning("model A sees nothing in %d of its masks; the given ones stay (%s)", len(kept), first_five([*kept]))
    if dropped:
        log.warning("masks of confidence 0 in which model A sees nothing, left out: %d", dropped)
    if any(confidence < 1 for confidence in kept.values()):
        write_confidences(target, {name: {"confidence": confidence} for name, confidence in kept.items()})
    write_json(masks_done(model.model_path), {"iteration": opened.trained.iteration, "given": [*kept]})
