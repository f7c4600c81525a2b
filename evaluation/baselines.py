"""Baselines without a referring field, on the Gaussians and the masks of a run.

lift    the masks of each training object are lifted onto the Gaussians in closed form (`ScoreRenderer.lift`); a test
        sentence takes the object of the training sentence with the nearest text embedding. Needs no training.
masks   the pseudo masks themselves, view by view, without any 3D model, each for the right sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.pairs import evaluate, summarize_pairs, write_csv
from evaluation.protocols import Protocol
from evaluation.responses import measure_responses, sigmoid
from gaussian_renderer import ScoreRenderer
from inference.predict import Opened
from referring.decoding import THRESHOLD, hide_uncovered, to_mask
from referring.text_encoder import TextEncoder
from scene.cameras import Camera
from scene.dataset import Referral, Scene, View
from scene.layouts.annotations import frame_names
from utils.images import write_image

LIFT, MASKS = "lift", "masks"
CHANNELS = 16  # objects lifted together, which bounds memory


@dataclass(frozen=True)
class LiftedObjects:
    """Scores of the training objects and the object of each sentence; a `LogitRenderer`."""

    renderer: ScoreRenderer
    scores: Tensor  # [N, K], 0..1: blending-weighted share of a Gaussian's pixels that the object's masks cover
    objects: dict[str, int]  # column of `scores` by sentence
    threshold: float = THRESHOLD

    @torch.no_grad()
    def logits(self, camera: Camera, sentences: list[str], once: bool = False) -> Tensor:
        """Return the logits of the blended scores, [K, H, W] on the CPU, -inf where no Gaussian covers the pixel."""
        columns = [self.scores[:, self.objects[sentence]] for sentence in sentences]
        weighted = torch.stack([*columns, torch.ones_like(columns[0])], dim=1)
        blended = self.renderer.render_scores(camera, weighted, once)
        logits = blended[:-1].clamp(1e-6, 1 - 1e-6).logit()
        return hide_uncovered(logits, blended[-1] > 0).cpu()


def lift_objects(renderer: ScoreRenderer, views: list[View]) -> tuple[list[str], Tensor]:
    """Compute W^T mask / W^T 1 of every training object, over the views that have a mask of it.

    Returns:
        Names of the K objects, and scores [N, K], 0 where no view with the object shows a Gaussian.
    """
    referrals = [(view, {r.category: r for r in view.referrals}) for view in views]
    names = sorted({name for _, by_name in referrals for name in by_name})
    scores = []
    for start in range(0, len(names), CHANNELS):
        group = names[start : start + CHANNELS]
        shown = [(view, by_name) for view, by_name in referrals if by_name.keys() & set(group)]
        images = (_channels(view, by_name, group) for view, by_name in shown)
        _, sums = renderer.lift([view.camera for view, _ in shown], images)
        inside, weights = sums[:, : len(group)], sums[:, len(group) :]
        scores.append(torch.where(weights > 0, inside / weights.clamp_min(1e-12), 0))
    return names, torch.cat(scores, dim=1)


def _channels(view: View, by_name: dict[str, Referral], names: list[str]) -> Tensor:
    """Return the masks of K objects, and ones where the view has a mask of the object: [2 K, H, W]."""
    empty = np.zeros((view.camera.height, view.camera.width), bool)
    masks = [view.mask(by_name[name]) if name in by_name else empty for name in names]
    known = [~empty if name in by_name else empty for name in names]
    return torch.from_numpy(np.stack(masks + known))


def nearest_objects(tokens: dict[str, Tensor], training: list[tuple[str, str]], sentences: list[str]) -> dict[str, str]:
    """Return the object of the (object, sentence) pair with the highest cosine, by sentence; the first of equal ones.

    The embedding of a sentence is the mean of its word tokens [L, T].
    """
    known = torch.stack([_embedding(tokens[sentence]) for _, sentence in training])  # [S, T]
    return {s: training[int((known @ _embedding(tokens[s])).argmax())][0] for s in sentences}


def _embedding(tokens: Tensor) -> Tensor:
    return torch.nn.functional.normalize(tokens.double().mean(dim=0), dim=0)


def evaluate_lift(opened: Opened, protocol: Protocol, out: Path, max_bytes: int) -> dict[str, Any]:
    """Return the numbers of the closed-form lift, and write its masks to `out`."""
    train = [view for view in opened.scene.train if view.referrals]
    test = [view for view in opened.scene.test if view.referrals]
    training = list(dict.fromkeys((r.category, r.sentence) for view in train for r in view.referrals))
    sentences = Scene.sentences(test)
    gaussians = opened.trained.gaussians
    encoder = TextEncoder(opened.text_encoder, device=gaussians.device)
    tokens = encoder.encode(list(dict.fromkeys([*(sentence for _, sentence in training), *sentences])))
    renderer = ScoreRenderer(gaussians, max_bytes)
    names, scores = renderer.plans.retry_after_eviction(lambda: lift_objects(renderer, train))
    matches = nearest_objects(tokens, training, sentences)
    lifted = LiftedObjects(renderer, scores, {sentence: names.index(matches[sentence]) for sentence in sentences})
    for view in test:
        logits = lifted.logits(view.camera, [r.sentence for r in view.referrals], once=True).numpy()
        for referral, response in zip(view.referrals, logits, strict=True):
            mask = to_mask(sigmoid(response))
            write_image(out / view.id / f"{referral.sentence_id}.png", mask.astype(np.uint8) * 255)
    pairs = evaluate(test, out)
    write_csv(out, pairs, opened.scene.path)
    right = [matches[r.sentence] == r.category for r in {r.sentence: r for v in test for r in v.referrals}.values()]
    figures = summarize_pairs(pairs, protocol, measure_responses(lifted, test))
    return figures | {"objects_right": 100 * sum(right) / len(right)}


def evaluate_masks(scene: Scene, mask_dir: str, protocol: Protocol, out: Path) -> dict[str, Any] | str:
    """Return the numbers of the pseudo masks on test views, else on training views, or why there are none.

    The masks are written to `out`.
    """
    for split, views in (("test", scene.test), ("training", scene.train)):
        matched = [_match_masks(scene, mask_dir, view, split == "test") for view in views]
        found = [(view, pseudo) for view, pseudo in matched if view.referrals]
        if not found:
            continue
        for view, pseudo in found:
            for key, path in pseudo.items():
                write_image(out / view.id / f"{key}.png", view.mask_at(path).astype(np.uint8) * 255)
        pairs = evaluate([view for view, _ in found], out)
        write_csv(out, pairs, scene.path)
        return summarize_pairs(pairs, protocol) | {"views": split}
    return f"no view has both a pseudo mask in {mask_dir} and another file as ground truth"


def _match_masks(scene: Scene, mask_dir: str, view: View, is_test: bool) -> tuple[View, dict[str, Path]]:
    """Keep the sentences of a view whose object has a pseudo mask and another file as ground truth.

    In a training view, whose sentences have pseudo masks, one sentence an object counts, against gt_mask or mask.

    Returns:
        The view, and the pseudo mask by sentence id.
    """
    folder = scene.path / mask_dir
    truths = [scene.path / name for name in ("gt_mask", "mask")] if scene.dataset == "ref-lerf" else []
    frame = next((name for name in frame_names(view.camera.name) if (folder / name).is_dir()), view.id)
    matched: dict[object, tuple[Referral, Path]] = {}
    for referral in view.referrals:
        path = referral.mask_path
        name = next((path.relative_to(f) for f in [*truths, folder] if path.is_relative_to(f)), None)
        name = name or Path(frame, f"{referral.category}.png")
        truth = path if is_test else next((f / name for f in truths if (f / name).is_file()), None)
        if truth is not None and truth != folder / name and (folder / name).is_file():
            key = referral.sentence_id if is_test else name
            matched.setdefault(key, (replace(referral, mask_path=truth), folder / name))
    pseudo = {referral.sentence_id: path for referral, path in matched.values()}
    return replace(view, referrals=tuple(referral for referral, _ in matched.values())), pseudo
