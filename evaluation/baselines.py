"""Baselines on the model and the masks of a run: what can be had without training a referring field.

lift    each training object's masks are carried over to the Gaussians in closed form (`ScoreRenderer.lift`); a test
        sentence takes the object of the training sentence whose text embedding is nearest. Needs no training.
masks   the pseudo masks themselves, view by view, without any 3D model, each for the right sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.pairs import evaluate, write_csv
from evaluation.protocols import Protocol
from evaluation.responses import look, probability
from evaluation.results import numbers
from gaussian_renderer import ScoreRenderer
from inference.predict import Opened
from referring.decoding import THRESHOLD, hide_uncovered, to_mask
from referring.text_encoder import TextEncoder
from scene.cameras import Camera
from scene.dataset import Referral, Scene, View
from scene.layouts.annotations import frames_of
from utils.images import write_image

LIFT, MASKS = "lift", "masks"
CHANNELS = 16  # objects that are lifted together: bounds memory


@dataclass(frozen=True)
class Lifted:
    """Scores of the training objects, and which object a sentence takes; renders like `Predictor`.

    Attributes:
        renderer: of the Gaussians.
        scores: [N, K], 0..1: weighted share of its pixels in which a Gaussian belongs to the object.
        objects: column of `scores` by sentence.
        threshold: foreground is where the blended score exceeds it.
    """

    renderer: ScoreRenderer
    scores: Tensor
    objects: dict[str, int]
    threshold: float = THRESHOLD

    @torch.no_grad()
    def responses(self, camera: Camera, sentences: list[str], once: bool = False) -> Tensor:
        """Logits of the blended scores, [K, H, W] on the CPU, -inf where no Gaussian covers the pixel."""
        columns = [self.scores[:, self.objects[sentence]] for sentence in sentences]
        weighted = torch.stack([*columns, torch.ones_like(columns[0])], dim=1)
        blended = self.renderer.render_scores(camera, weighted, once)
        logits = blended[:-1].clamp(1e-6, 1 - 1e-6).logit()
        return hide_uncovered(logits, blended[-1] > 0).cpu()


def lift_objects(renderer: ScoreRenderer, views: list[View]) -> tuple[list[str], Tensor]:
    """W^T mask / W^T 1 of every training object, each over the views that have a mask of it.

    Args:
        renderer: of N Gaussians.
        views: training views.

    Returns:
        names of the K objects, and scores [N, K], 0 where no view with the object shows a Gaussian.
    """
    masks = [{r.category: r for r in view.referrals} for view in views]
    names = sorted({name for of_view in masks for name in of_view})
    scores = []
    for start in range(0, len(names), CHANNELS):
        group = names[start : start + CHANNELS]
        shown = [(view, of_view) for view, of_view in zip(views, masks, strict=True) if of_view.keys() & set(group)]
        images = (_channels(view, of_view, group) for view, of_view in shown)
        _, sums = renderer.lift([view.camera for view, _ in shown], images)
        inside, weights = sums[:, : len(group)], sums[:, len(group) :]
        scores.append(torch.where(weights > 0, inside / weights.clamp_min(1e-12), 0))
    return names, torch.cat(scores, dim=1)


def _channels(view: View, masks: dict[str, Referral], names: list[str]) -> Tensor:
    """[2 K, H, W]: the masks of K objects, and ones where the view has a mask of the object."""
    empty = np.zeros((view.camera.height, view.camera.width), bool)
    of_objects = [view.mask(masks[name]) if name in masks else empty for name in names]
    known = [~empty if name in masks else empty for name in names]
    return torch.from_numpy(np.stack(of_objects + known))


def nearest_objects(tokens: dict[str, Tensor], training: list[tuple[str, str]], sentences: list[str]) -> dict[str, str]:
    """The object of the nearest training sentence, for each sentence.

    Args:
        tokens: word tokens [L, T] of all sentences; the embedding of a sentence is their mean.
        training: (object, sentence) pairs.
        sentences: those that look for an object.

    Returns:
        the object by sentence: that of the highest cosine, of equal ones the first.
    """
    known = torch.stack([_embedding(tokens[sentence]) for _, sentence in training])  # [S, T]
    return {s: training[int((known @ _embedding(tokens[s])).argmax())][0] for s in sentences}


def _embedding(tokens: Tensor) -> Tensor:
    return torch.nn.functional.normalize(tokens.double().mean(dim=0), dim=0)


def lift(opened: Opened, protocol: Protocol, out: Path, max_bytes: int) -> dict[str, Any]:
    """Numbers of the closed-form lift, its masks in `out`."""
    train = [view for view in opened.scene.train if view.referrals]
    test = [view for view in opened.scene.test if view.referrals]
    training = list(dict.fromkeys((r.category, r.sentence) for view in train for r in view.referrals))
    sentences = Scene.sentences(test)
    gaussians = opened.trained.gaussians
    tokens = TextEncoder(opened.text_encoder, device=gaussians.device).encode(
        list(dict.fromkeys([*(sentence for _, sentence in training), *sentences]))
    )
    renderer = ScoreRenderer(gaussians, max_bytes)
    names, scores = renderer.plans.giving_way(lambda: lift_objects(renderer, train))
    takes = nearest_objects(tokens, training, sentences)
    lifted = Lifted(renderer, scores, {sentence: names.index(takes[sentence]) for sentence in sentences})
    for view in test:
        logits = lifted.responses(view.camera, [r.sentence for r in view.referrals], once=True).numpy()
        for referral, response in zip(view.referrals, logits, strict=True):
            mask = to_mask(probability(response))
            write_image(out / view.id / f"{referral.sentence_id}.png", mask.astype(np.uint8) * 255)
    pairs = evaluate(test, out)
    write_csv(out, pairs, opened.scene.path)
    right = [takes[r.sentence] == r.category for r in {r.sentence: r for v in test for r in v.referrals}.values()]
    return numbers(pairs, protocol, look(lifted, test)) | {"objects_right": 100 * sum(right) / len(right)}


def masks(scene: Scene, mask_dir: str, protocol: Protocol, out: Path) -> dict[str, Any] | str:
    """Numbers of the pseudo masks on test views, else on training views, or why there are none; masks in `out`."""
    for split, views in (("test", scene.test), ("training", scene.train)):
        found = [
            view for view in (_judged(scene, mask_dir, view, split == "test") for view in views) if view[0].referrals
        ]
        if not found:
            continue
        for view, pseudo in found:
            for referral in view.referrals:
                mask = view.mask_at(pseudo[referral.sentence_id])
                write_image(out / view.id / f"{referral.sentence_id}.png", mask.astype(np.uint8) * 255)
        pairs = evaluate([view for view, _ in found], out)
        write_csv(out, pairs, scene.path)
        return numbers(pairs, protocol) | {"views": split}
    return f"no view has both a pseudo mask in {mask_dir} and another file as ground truth"


def _judged(scene: Scene, mask_dir: str, view: View, is_test: bool) -> tuple[View, dict[str, Path]]:
    """The view with the sentences whose object has a pseudo mask and another file as ground truth.

    Of a training view, whose sentences have pseudo masks, one sentence an object counts, against gt_mask or mask.

    Returns:
        the view, and the pseudo mask by sentence id.
    """
    folder = scene.path / mask_dir
    truths = [scene.path / name for name in ("gt_mask", "mask")] if scene.dataset == "ref-lerf" else []
    frame = next((name for name in frames_of(view) if (folder / name).is_dir()), view.id)
    judged: dict[object, tuple[Referral, Path]] = {}
    for referral in view.referrals:
        path = referral.mask_path
        name = next((path.relative_to(f) for f in [*truths, folder] if path.is_relative_to(f)), None)
        name = name or Path(frame, f"{referral.category}.png")
        truth = path if is_test else next((f / name for f in truths if (f / name).is_file()), None)
        if truth is not None and truth != folder / name and (folder / name).is_file():
            key = referral.sentence_id if is_test else name
            judged.setdefault(key, (replace(referral, mask_path=truth), folder / name))
    pseudo = {referral.sentence_id: path for referral, path in judged.values()}
    return replace(view, referrals=tuple(referral for referral, _ in judged.values())), pseudo
