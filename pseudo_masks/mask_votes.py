"""Votes of masks on Gaussians: objects in 3D from the masks of many views, most of which are right.

With frozen Gaussians the picture of per-Gaussian votes x in view v is W_v x, with W = alpha T. The votes that masks
give a Gaussian are therefore a weighted mean in closed form (`ScoreRenderer.lift`). Three steps find the weights of
the masks:

1. Each mask is lifted alone, and joined by those that agree with it, again and again (on the Gaussians, without
   pictures). Of these sets of views, one for each mask to start from, the largest is taken.
2. Each mask is compared with the votes of the others, rendered into its view; its weight is the square of the agreement
   (IoU), up to a bound. A mask has no vote on itself. Repeated, the weights converge.
3. With these weights the votes are fitted to the masks by a few steps of weighted least squares, because means alone
   smear over the border of the object. The threshold of each object is the one that fits its masks best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gaussian_renderer import ScoreRenderer
from scene.cameras import Camera

GROWTH, ROUNDS, STEPS = 5, 3, 4  # repetitions in the three steps above
FULL_WEIGHT = 0.75  # IoU from which a mask has weight 1; well above that of an object with two of its size
UNKNOWN = 0.5  # agreement of a mask that no other view can judge
UNSEEN = 0.1  # share of a mask, a Gaussian or the views; where the others see less, they do not judge
THRESHOLDS = tuple(t / 20 for t in range(3, 14))  # 0.15 to 0.65


@dataclass(frozen=True)
class MaskedView:
    """A view with the masks of some of K objects."""

    camera: Camera
    objects: list[int]  # numbers 0..K-1 of the objects with a mask, ascending
    masks: Callable[[], Tensor]  # returns bool [len(objects), H, W] on the device of the model; called once a pass


class Votes(NamedTuple):
    """The consensus of the views."""

    votes: Tensor  # [N, K] in 0..1, how far each Gaussian belongs to each object
    thresholds: Tensor  # [K]; pixels whose rendered votes exceed it belong to the object
    agreement: Tensor  # [V, K] in 0..1, IoU of each mask with the votes of the other views; NaN without a mask


class LiftedMasks(NamedTuple):
    """The masks of a view on the Gaussians."""

    root_weight: Tensor  # [N] float16, square root of the weight of each Gaussian in the picture
    touched: list[Tensor]  # for each mask, the Gaussians visible in it
    sums: list[Tensor]  # for each of them, its weight inside the mask

    @property
    def weight(self) -> Tensor:
        """[N] float32, pixels."""
        return self.root_weight.float().square_()


def mask_weights(agreement: Tensor) -> Tensor:
    """Return the weights of masks from their agreement (IoU) with the others, both of any shape."""
    return (agreement / FULL_WEIGHT).clamp(max=1).square()


@torch.no_grad()
def vote(renderer: ScoreRenderer, views: list[MaskedView], count: int) -> Votes:
    """Find K = `count` objects in 3D by their masks in many views, some of which are wrong.

    Each view has at least one mask; the renderer is that of the frozen Gaussians.
    """
    lifted = [_lift(renderer, view) for view in views]
    agreement = torch.zeros(len(views), count, device=lifted[0].root_weight.device)  # [V, K]
    for number in range(count):
        rows = [row for row, view in enumerate(views) if number in view.objects]
        if rows:
            masks = [views[row].objects.index(number) for row in rows]
            agreement[rows, number] = _first_agreement([lifted[row] for row in rows], masks)
    for _ in range(ROUNDS):
        agreement = _rate_masks(renderer, views, lifted, mask_weights(agreement))
    weights = mask_weights(agreement)
    votes = _refine(renderer, views, weights, *_sum_weights(views, lifted, weights))
    given = torch.zeros_like(agreement, dtype=torch.bool)
    for row, view in enumerate(views):
        given[row, view.objects] = True
    agreement.masked_fill_(~given, torch.nan)
    return Votes(votes, _fit_thresholds(renderer, views, weights, votes), agreement)


def _lift(renderer: ScoreRenderer, view: MaskedView) -> LiftedMasks:
    plan = renderer.plan(view.camera)
    masks = view.masks().to(plan.dtype)
    sums = plan.backproject(torch.cat((masks, masks.new_ones(1, *masks.shape[1:])))).float()  # [N, k + 1]
    touched = [torch.nonzero(column)[:, 0] for column in sums[:, :-1].T]
    inside = [column[rows] for column, rows in zip(sums[:, :-1].T, touched, strict=True)]
    return LiftedMasks(sums[:, -1].sqrt().half(), touched, inside)


def _first_agreement(lifted: list[LiftedMasks], masks: list[int]) -> Tensor:
    """Return the first agreement [V] of the masks of one object, numbered `masks` in their views.

    On the Gaussians that any of the masks touches, IoU is sum min / sum max. Matrix products give the variant
    x.f / (x.x + f.f - x.f) (Tanimoto; the same where shares are 0 or 1), weighted as view v sees each Gaussian.
    """
    support = torch.cat([view.touched[mask] for view, mask in zip(lifted, masks, strict=True)]).unique()
    marked = torch.zeros(len(lifted), len(support), device=support.device)  # [V, S] weights inside of the masks
    for row, (view, mask) in enumerate(zip(lifted, masks, strict=True)):
        marked[row, torch.searchsorted(support, view.touched[mask])] = view.sums[mask]
    seen = torch.stack([view.root_weight[support].float().square_() for view in lifted])  # [V, S]
    largest = seen.amax(dim=0)
    squares = marked.square() / seen.clamp_min(1e-6)  # f.f of each Gaussian
    weights = torch.eye(len(lifted), device=support.device)  # [U, V], a row for each start
    for _ in range(GROWTH):
        total = weights @ seen  # [U, S]
        known = total > UNSEEN * largest  # else views of little weight would decide what no other view sees
        votes = torch.where(known, (weights @ marked) / total.clamp_min(1e-6), 0)
        both = votes @ marked.T
        alone = votes.square() @ seen.T
        agreement = both / (alone + squares.sum(dim=1) - both).clamp_min(1e-6)  # [U, V]
        weights = mask_weights(agreement)
    best = weights.sum(dim=1).argmax()
    # A view of another side of the object than the largest set sees is neither for nor against it.
    judged, whole = squares @ known[best].float(), squares.sum(dim=1)
    prior = UNSEEN * whole
    return (both[best] + UNKNOWN * prior) / (alone[best] + judged - both[best] + prior).clamp_min(1e-6)


def _sum_weights(views: list[MaskedView], lifted: list[LiftedMasks], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the weights of Gaussians inside the masks, and everywhere, over the weighted views; both [N, K]."""
    inside = weights.new_zeros(len(lifted[0].root_weight), weights.shape[1])
    total = torch.zeros_like(inside)
    for view, lift, view_weights in zip(views, lifted, weights, strict=True):
        total[:, view.objects] += lift.weight[:, None] * view_weights[view.objects]
        for mask, number in enumerate(view.objects):
            inside[lift.touched[mask], number] += view_weights[number] * lift.sums[mask]
    return inside, total


def _rate_masks(renderer: ScoreRenderer, views: list[MaskedView], lifted: list[LiftedMasks], weights: Tensor) -> Tensor:
    """Return the IoU [V, K] of each mask with the weighted votes of the other views."""
    inside, total = _sum_weights(views, lifted, weights)
    overlap = weights.new_zeros(len(THRESHOLDS), *weights.shape)  # [T, V, K]
    for row, (view, lift) in enumerate(zip(views, lifted, strict=True)):
        others, known = inside[:, view.objects], total[:, view.objects]
        own = weights[row, view.objects]
        for mask in range(len(view.objects)):
            others[lift.touched[mask], mask] -= own[mask] * lift.sums[mask]
        known -= lift.weight[:, None] * own
        judged = known > UNSEEN * lift.weight[:, None]  # else rounding errors decide
        others = torch.where(judged, others / known, 0).clamp_(0, 1)
        known = judged.to(others.dtype)
        votes, seen = renderer.plan(view.camera).render(torch.cat((others, known), dim=1)).chunk(2)  # [k, H, W] each
        overlap[:, row, view.objects] = _threshold_ious(votes, seen, view.masks())
    best = (overlap * weights).sum(dim=1).argmax(dim=0)  # [K]
    return overlap[best, :, torch.arange(len(best), device=best.device)].T


def _threshold_ious(votes: Tensor, seen: Tensor, masks: Tensor) -> Tensor:
    """Return the IoU [T, K] of masks [K, H, W] with the votes above each threshold, where `seen` exceeds 0.5."""
    judged = masks & (seen > 0.5)
    prior = UNSEEN * masks.sum(dim=(1, 2))
    found = []
    for threshold in THRESHOLDS:
        chosen = votes > threshold
        both = (chosen & judged).sum(dim=(1, 2))
        union = (chosen | judged).sum(dim=(1, 2))
        found.append((both + UNKNOWN * prior) / (union + prior).clamp_min(1e-6))
    return torch.stack(found)


def _refine(renderer: ScoreRenderer, views: list[MaskedView], weights: Tensor, inside: Tensor, total: Tensor) -> Tensor:
    """Return votes [N, K] that minimise the weighted squared error to the masks: SIRT from the weighted mean."""
    total = total.clamp_min(1e-6)
    votes = (inside / total).clamp_(0, 1)
    for _ in range(STEPS):
        change = torch.zeros_like(votes)
        for view, view_weights in zip(views, weights, strict=True):
            plan = renderer.plan(view.camera)
            error = plan.render(votes[:, view.objects]).neg_().add_(view.masks())
            change[:, view.objects] += plan.backproject(error.mul_(view_weights[view.objects, None, None]))
        votes = votes.add_(change / total).clamp_(0, 1)
    return votes


def _fit_thresholds(renderer: ScoreRenderer, views: list[MaskedView], weights: Tensor, votes: Tensor) -> Tensor:
    """Return the threshold [K] of each object at which its rendered votes fit its masks best."""
    fit = votes.new_zeros(len(THRESHOLDS), votes.shape[1])
    for view, view_weights in zip(views, weights, strict=True):
        picture, masks = renderer.render_scores(view.camera, votes[:, view.objects]), view.masks()
        for row, threshold in enumerate(THRESHOLDS):
            found = picture > threshold
            overlap = (found & masks).sum(dim=(1, 2)) / (found | masks).sum(dim=(1, 2)).clamp_min(1)
            fit[row, view.objects] += view_weights[view.objects] * overlap
    return torch.tensor(THRESHOLDS, device=votes.device)[fit.argmax(dim=0)]
