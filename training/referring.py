"""The referring stage: BCE of splatted scores against masks plus the Gaussian-text contrastive loss (Section 3.4)."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from arguments import ReferringParams
from gaussian_renderer import ScoreRenderer
from referring.field import ReferringField
from referring.losses import contrastive_paper, contrastive_released, top_count
from scene.checkpoints import save_checkpoint
from scene.dataset import Scene, View
from scene.gaussian_model import GaussianModel
from scene.model_folder import save_field
from training.field_steps import FieldStep, FieldSteps
from training.referrals import TestViews, ViewMasks, step_sizes, tabulate
from training.session import draw_without_replacement, require_same_views, view_fingerprint
from utils.adam import Adam

ADAM_EPS = 1e-15
RELEASED_LAMBDA, PAPER_LAMBDA = 0.1, 0.02
RELEASED_TAU_FLOOR = 0.005


def tau_at(iteration: int, params: ReferringParams) -> float:
    """Return tau, the share of top Gaussians in the contrastive loss, at a 1-based step (Section 3.4)."""
    if params.tau_schedule == "paper":
        return max(0.1 * 0.6 ** (iteration / 1000), params.tau_floor or 0.0)
    floor = RELEASED_TAU_FLOOR if params.tau_floor is None else params.tau_floor
    return max(0.1 * 0.6 ** (iteration // 2000), floor)


def drop_untrusted_masks(views: list[View]) -> list[View]:
    """Return the views with only the referrals whose mask confidence is above 0, and without views that have none."""
    kept = [replace(view, referrals=tuple(r for r in view.referrals if r.confidence > 0)) for view in views]
    return [view for view in kept if view.referrals]


def bce_with_grads(logits: Tensor, masks: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the binary cross entropy, mean over sentences and pixels, and its gradient [K, H, W].

    Args:
        logits: [K, H, W].
        masks: [K, H, W] bool.
        weights: [K, 1, 1], of each sentence's loss; None weighs all the same.
    """
    targets = masks.to(logits.dtype)
    grads = logits.sigmoid().sub_(targets).div_(logits.numel())
    if weights is not None:
        grads.mul_(weights)
    return F.binary_cross_entropy_with_logits(logits, targets, weights), grads


def _mask_weights(views: list[View], device: torch.device) -> dict[str, tuple[Tensor, ...]]:
    """Return the mask confidences of each view's referrals, [1] each, by view id; empty where all are 1."""
    if all(r.confidence == 1 for view in views for r in view.referrals):
        return {}
    return {v.id: torch.tensor([r.confidence for r in v.referrals], device=device).split(1) for v in views}


class ReferringStage:
    """Trains the referring field on frozen Gaussians.

    Args:
        folder: model folder.
        scene: views with referrals.
        gaussians: the frozen model, and `renderer`, which splats scores of it.
        field: the field to train, on the same device.
        tokens: word tokens [L, T] of every training and test sentence.
        params: flags of this stage.
        seed: decides the order of views and sentences.
        rgb_iteration: iteration of the point cloud that belongs to the field.
        export: also write a 17-item checkpoint with each saved iteration.
    """

    name = "referring"

    def __init__(
        self,
        folder: Path,
        scene: Scene,
        gaussians: GaussianModel,
        field: ReferringField,
        tokens: dict[str, Tensor],
        params: ReferringParams,
        renderer: ScoreRenderer,
        seed: int,
        rgb_iteration: int,
        export: bool = False,
    ):
        self._folder, self._params, self._renderer = folder, params, renderer
        self._gaussians, self.field = gaussians, field
        self._rgb_iteration, self._export = rgb_iteration, export
        views = drop_untrusted_masks(scene.train) if params.mask_confidence else scene.train
        self._views = [view for view in views if view.referrals]
        tested = [view for view in scene.test if view.referrals]
        self._masks = ViewMasks([*self._views, *tested], gaussians.device)
        self._weights = _mask_weights(self._views, gaussians.device) if params.mask_confidence else {}
        self._tests = TestViews(tested, tokens, self._masks, gaussians.device)
        self._generator = torch.Generator().manual_seed(seed)
        self._view_order: list[int] = []
        self._sentence_order: list[int] = []
        self._view, self.view = 0, ""
        groups = [
            {"params": [field.language_feature], "lr": params.language_feature_lr},
            {"params": [p for net in field.networks().values() for p in net.parameters()], "lr": params.mlp_lr},
        ]
        # fused: its kernels can be part of a CUDA graph
        self._optimizer = Adam(groups, eps=ADAM_EPS, fused=gaussians.device.type == "cuda" or None)
        is_paper = params.contrastive == "paper"
        default = PAPER_LAMBDA if is_paper else RELEASED_LAMBDA
        self._lambda = default if params.lambda_contrastive is None else params.lambda_contrastive
        self._first = [0, *accumulate(len(view.referrals) for view in self._views)]  # first referral of each view
        referrals = tabulate(self._views, tokens, params.contrastive, gaussians.device)
        loss = contrastive_paper if is_paper else contrastive_released
        step = FieldStep(field, gaussians.xyz, referrals, loss, self._lambda, self._optimizer)
        self._steps = FieldSteps(step, self._first[-1], step_sizes(self._views, params.sentences_per_step))

    def step(self, iteration: int) -> dict[str, Tensor | float]:
        """Run one training step on one view and return its losses, which the next step may overwrite."""
        view, indices = self._sample()  # K referrals of the view
        referrals, numbers = [view.referrals[i] for i in indices], [self._first[self._view] + i for i in indices]
        weights = torch.cat([self._weights[view.id][i] for i in indices])[:, None, None] if self._weights else None
        top_k = top_count(tau_at(iteration, self._params), len(self._gaussians))
        plans, hits = self._renderer.plans, self._renderer.plans.hits

        def forward_backward() -> tuple[Tensor, Tensor | None]:
            scores, contrastive = self._steps.forward(numbers, top_k)  # [K, N], []
            plan = self._renderer.plan(view.camera)
            logits = plan.render(scores.T.contiguous())  # [K, H, W]
            bce, logit_grads = bce_with_grads(logits, self._masks.get(view, referrals), weights)
            self._steps.backward(plan.backproject(logit_grads).T)  # the view is linear in the scores: W^T G
            return bce, contrastive

        # if GPU memory runs out, cached plans are evicted and the step starts again
        bce, contrastive = plans.retry_after_eviction(forward_backward)
        self._steps.update()
        losses = {"loss": bce, "bce": bce}
        if contrastive is not None:
            losses |= {"loss": torch.add(bce, contrastive, alpha=self._lambda), "contrastive": contrastive}
        return {**losses, "plan_hit_rate": float(plans.hits > hits), "plan_gigabytes": plans.nbytes / 1e9}

    def _sample(self) -> tuple[View, list[int]]:
        """Return the view of this step and the indices of its referrals.

        Views are drawn without replacement; all sentences of a view come in random order before the next view.
        """
        if not self._sentence_order:
            self._view = draw_without_replacement(self._view_order, len(self._views), self._generator)
        view = self._views[self._view]
        self.view, count = view.id, len(view.referrals)
        if self._params.sentences_per_step == "all":
            return view, list(range(count))
        indices = [draw_without_replacement(self._sentence_order, count, self._generator)]
        while self._sentence_order and len(indices) < int(self._params.sentences_per_step):
            indices.append(self._sentence_order.pop())
        return view, indices

    def evaluate(self) -> dict[str, float]:
        """Return the test mIoU (0..100) for the training curve; eval.py gives the number to report."""
        renderer = self._renderer
        return renderer.plans.retry_after_eviction(lambda: self._tests.miou(self.field, self._gaussians.xyz, renderer))

    def save(self, iteration: int) -> None:
        tensors = self.field.state_dict()
        save_field(self._folder, tensors, iteration, self._rgb_iteration, self._params.text_encoder)
        if self._export:
            save_checkpoint(self._folder / f"chkpnt{iteration}.pth", self._gaussians, tensors, iteration)

    def state(self) -> dict[str, Any]:
        return {
            "field": self.field.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "view_order": list(self._view_order),
            "sentence_order": list(self._sentence_order),
            "view": self._view,
            "views": view_fingerprint(self._views),
            "rgb_iteration": self._rgb_iteration,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        require_same_views(state["views"], self._views)
        self.field.load_state_dict(state["field"])
        groups = [
            {**group, "fused": own["fused"]}  # the saved run may have used another device
            for group, own in zip(state["optimizer"]["param_groups"], self._optimizer.param_groups, strict=True)
        ]
        self._optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
        self._steps.reset()
        self._generator.set_state(state["generator"])
        self._view_order = list(state["view_order"])
        self._sentence_order = list(state["sentence_order"])
        self._view = state["view"]
