"""The referring stage: BCE of splatted scores against masks plus the Gaussian-text contrastive loss (Section 3.4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from arguments import ReferringParams
from gaussian_renderer import ScoreRenderer
from scene.checkpoints import save_checkpoint
from scene.dataset import Referral, Scene, View
from scene.gaussian_model import GaussianModel
from scene.model_folder import save_field
from scene.referring_field import EMBEDDING_DIM, EncodedGaussians, ReferringField
from training.session import drawn_without_replacement, require_same_views, view_fingerprint
from training.uploads import Uploads
from utils.device import gpu_share
from utils.losses import contrastive_paper, contrastive_released, top_share
from utils.metrics import iou

ADAM_EPS = 1e-15
RELEASED_LAMBDA, PAPER_LAMBDA = 0.1, 0.02
RELEASED_TAU_FLOOR = 0.005
# Above it, a sentence's graph is computed again in the backward pass instead of kept: on the CPU, and share of a GPU.
GRAPH_BYTES, GRAPH_SHARE = 2 << 30, 0.25
GRAPH_TENSORS, TOP_TENSORS = 6, 4  # that the graph of a sentence holds: of size N x L, and of the top Gaussians x D


def tau_at(iteration: int, params: ReferringParams) -> float:
    """Share of top Gaussians for the contrastive loss at a 1-based step (Section 3.4; docs/FIDELITY.md)."""
    if params.tau_schedule == "paper":
        return max(0.1 * 0.6 ** (iteration / 1000), params.tau_floor or 0.0)
    floor = RELEASED_TAU_FLOOR if params.tau_floor is None else params.tau_floor
    return max(0.1 * 0.6 ** (iteration // 2000), floor)


class ReferringStage:
    """Trains the referring field; the Gaussians' geometry and colour stay as they are.

    Args:
        folder: model folder.
        scene: views with referrals.
        gaussians: the frozen model.
        field: the field to train, on the same device.
        tokens: word tokens [L, T] of every training and test sentence.
        params: flags of this stage.
        renderer: splats scores of `gaussians`.
        seed: of the order of views and sentences.
        rgb_iteration: names the point cloud that belongs to the field.
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
        self._views = [view for view in scene.train if view.referrals]
        self._test_views = [view for view in scene.test if view.referrals]
        self._tokens = {sentence: value.to(gaussians.device) for sentence, value in tokens.items()}
        self._scene_sentences = sorted({(r.category, r.sentence) for view in self._views for r in view.referrals})
        self._generator = torch.Generator().manual_seed(seed)
        self._view_order: list[int] = []
        self._sentence_order: list[int] = []
        self._view = 0
        self._uploads = Uploads(gaussians.device)
        self._positives: dict[tuple[str, str], Tensor] = {}
        self._graph_bytes = gpu_share(gaussians.device, GRAPH_SHARE, GRAPH_BYTES)
        self._optimizer = torch.optim.Adam(
            [
                {"params": [field.language_feature], "lr": params.language_feature_lr},
                {"params": [p for net in field.networks().values() for p in net.parameters()], "lr": params.mlp_lr},
            ],
            eps=ADAM_EPS,
        )
        default = PAPER_LAMBDA if params.contrastive == "paper" else RELEASED_LAMBDA
        self._lambda = default if params.lambda_contrastive is None else params.lambda_contrastive

    def step(self, iteration: int) -> dict[str, Tensor | float]:
        view, chosen = self._draw()
        hits = self._renderer.plans.hits

        def gradients() -> dict[str, Tensor]:
            self._optimizer.zero_grad(set_to_none=True)
            terms = self._losses(view, chosen, tau_at(iteration, self._params))
            terms["loss"].backward()
            return terms

        terms = self._renderer.plans.giving_way(gradients)
        self._optimizer.step()
        found, held = float(self._renderer.plans.hits > hits), self._renderer.plans.nbytes / 1e9
        return {**terms, "plan_hit_rate": found, "plan_gigabytes": held}

    def _draw(self) -> tuple[View, list[int]]:
        """The next view and the indices of its referrals for this step.

        Views are drawn without replacement; all sentences of a view come in random order before the next view.
        """
        if not self._sentence_order:
            self._view = drawn_without_replacement(self._view_order, len(self._views), self._generator)
        view = self._views[self._view]
        count = len(view.referrals)
        if self._params.sentences_per_step == "all":
            return view, list(range(count))
        return view, [drawn_without_replacement(self._sentence_order, count, self._generator)]

    def _losses(self, view: View, chosen: list[int], tau: float) -> dict[str, Tensor]:
        """Loss terms of one view for the chosen referrals, each a mean over them."""
        field = self.field
        others = self._contrasted(view)
        sentences = [view.referrals[i].sentence for i in chosen]
        texts = list(dict.fromkeys(sentences + [sentence for _, sentence in others]))
        words = dict(zip(texts, field.encode_words([self._tokens[text] for text in texts]), strict=True))
        gaussians = field.encode_gaussians(self._gaussians.xyz)
        scores, tops = self._scores(gaussians, [words[sentence] for sentence in sentences], tau)
        picture = self._renderer.render_scores(view.camera, scores)  # [K, H, W]
        masks = torch.stack([self._mask(view, view.referrals[i]) for i in chosen]).to(picture.dtype)
        bce = F.binary_cross_entropy_with_logits(picture, masks)
        if self._params.contrastive == "none":
            return {"loss": bce, "bce": bce}
        form = contrastive_paper if self._params.contrastive == "paper" else contrastive_released
        embeddings = torch.stack([words[sentence].mean(dim=0) for _, sentence in others])  # e_s
        losses = []
        for i, top in zip(chosen, tops, strict=True):
            losses.append(form(top, embeddings, self._positive(view, view.referrals[i].category, others)))
        contrastive = torch.stack(losses).mean()
        return {"loss": bce + self._lambda * contrastive, "bce": bce, "contrastive": contrastive}

    def _mask(self, view: View, referral: Referral) -> Tensor:
        """[H, W] bool on the device."""
        return self._uploads.get((view.id, referral.mask_path), lambda: view.mask(referral))

    def _positive(self, view: View, category: str, others: list[tuple[str, str]]) -> Tensor:
        """[S] bool on the device: which of the view's contrasted sentences speak of this object."""
        key = view.id, category
        if key not in self._positives:
            same = [category == other for other, _ in others]
            self._positives[key] = torch.tensor(same, device=self._gaussians.device)
        return self._positives[key]

    def _contrasted(self, view: View) -> list[tuple[str, str]]:
        """(category, sentence) pairs of the contrastive loss: those of the view, in the paper's form of the scene."""
        if self._params.contrastive == "none":
            return []
        if self._params.contrastive == "paper":
            return self._scene_sentences
        return [(referral.category, referral.sentence) for referral in view.referrals]

    def _scores(self, gaussians: EncodedGaussians, words: list[Tensor], tau: float) -> tuple[Tensor, list[Tensor]]:
        """Scores [N, K] of K sentences, and f_g [D] of each: the mean embedding of its highest Gaussians."""
        field = self.field

        def one_sentence(*inputs: Tensor) -> tuple[Tensor, Tensor]:
            encoded, sentence = EncodedGaussians(*inputs[:-1]), inputs[-1]
            scores, attention = field.score(encoded, sentence)
            top = top_share(scores.detach(), tau)
            return scores, field.embed(encoded, attention, sentence, top).mean(dim=0)

        inputs = (gaussians.hidden, gaussians.directions, gaussians.scales, gaussians.squares)
        kept = sum(GRAPH_TENSORS * len(w) + tau * TOP_TENSORS * EMBEDDING_DIM for w in words) * len(self._gaussians) * 4
        if kept > self._graph_bytes:
            again = {"use_reentrant": False, "preserve_rng_state": False}  # there is nothing random in it
            results = [checkpoint(one_sentence, *inputs, sentence, **again) for sentence in words]
        else:
            results = [one_sentence(*inputs, sentence) for sentence in words]
        return torch.stack([scores for scores, _ in results], dim=1), [top for _, top in results]

    def evaluate(self) -> dict[str, float]:
        """Mean IoU (0..100) over the test pairs, for the training curve; eval.py gives the number to report."""
        return self._renderer.plans.giving_way(self._test_miou)

    @torch.no_grad()
    def _test_miou(self) -> dict[str, float]:
        referrals: list[tuple[View, Referral]] = [(view, r) for view in self._test_views for r in view.referrals]
        if not referrals:
            return {}
        sentences = list(dict.fromkeys(r.sentence for _, r in referrals))
        scores = self.field.scores(self._gaussians.xyz, [self._tokens[sentence] for sentence in sentences])
        values = []
        for view in self._test_views:
            columns = [sentences.index(r.sentence) for r in view.referrals]
            picture = self._renderer.render_scores(view.camera, scores[:, columns].contiguous())
            masks = [(view.mask(r), predicted) for r, predicted in zip(view.referrals, picture > 0, strict=True)]
            values += [iou(predicted.cpu().numpy(), mask) for mask, predicted in masks if mask.any()]
        return {"test_miou": 100 * sum(values) / max(len(values), 1)}

    def save(self, iteration: int) -> None:
        save_field(self._folder, self.field, iteration, self._rgb_iteration, self._params.text_encoder)
        if self._export:
            save_checkpoint(self._folder / f"chkpnt{iteration}.pth", self._gaussians, self.field, iteration)

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
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self._view_order = list(state["view_order"])
        self._sentence_order = list(state["sentence_order"])
        self._view = state["view"]
