"""Predictions of a trained model: its masks in memory, and as files that render.py writes and eval.py reads.

Each (view, sentence) pair has a picture of each kind:
`<model>/<split>/iteration_N/{masks,heat,overlay}/<view id>/<sentence id>.png`. A `manifest.json` beside the three
folders lists those made with the present model, threshold and cameras; others count as missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from arguments import ModelParams, PipelineParams, ReferringParams
from gaussian_renderer import ScoreRenderer
from inference.captured_scores import Scorer
from inference.trained_model import TrainedModel, load_trained
from referring.decoding import hide_uncovered, to_mask, to_probabilities
from referring.field import ReferringField
from referring.kernels.backend import choose_backend
from referring.text_encoder import TextEncoder
from scene.cameras import Camera
from scene.dataset import Scene, View
from scene.gaussian_model import GaussianModel
from scene.layouts.loader import load
from scene.model_folder import check_scene, saved_flags
from utils.device import choose_device, memory_budget, plan_bytes, to_cpu
from utils.errors import UserError
from utils.files import write_json
from utils.images import add_caption, draw_heat_map, overlay, write_image

KINDS = ("masks", "heat", "overlay")
CHANNELS = 16  # of one splat, which bounds the memory of a view with hundreds of sentences
SCORES_SHARE = 0.1  # of the free memory of a GPU, for the scores of all sentences; more are kept on the CPU

Decode = Callable[[Tensor, Tensor], Tensor]  # logits [K, H, W] and covered pixels [H, W] -> pictures [K, H, W]


@dataclass(frozen=True)
class Request:
    """Sentences to render in one view, by sentence id."""

    view: View
    sentences: dict[str, str]


class PredictionFolder:
    """Predictions of one split and iteration of a model folder, with their manifest.

    Args:
        root: `<model>/<split>/iteration_N`.
        origin: everything that all predictions depend on (model, threshold ...), as JSON values. Predictions of another
            origin are stale.
    """

    def __init__(self, root: Path, origin: dict[str, Any]):
        self.root, self.origin = root, origin
        self._views = self._read_views()

    def path(self, kind: str, view_id: str, sentence_id: str) -> Path:
        """Return the path of a picture; `kind` is one of `KINDS`."""
        return self.root / kind / view_id / f"{sentence_id}.png"

    def is_current(self, view: View, sentence_id: str) -> bool:
        """Return whether all three pictures exist and were made for this model, threshold and camera."""
        entry = self._views.get(view.id)
        if entry is None or entry["camera"] != camera_hash(view.camera) or sentence_id not in entry["sentences"]:
            return False
        return all(self.path(kind, view.id, sentence_id).is_file() for kind in KINDS)

    def mark_stale(self, requests: list[Request]) -> None:
        """Remove pictures from the manifest, before any of them is overwritten."""
        for request in requests:
            if entry := self._views.get(request.view.id):
                entry["sentences"] = {k: s for k, s in entry["sentences"].items() if k not in request.sentences}
        self._save()

    def mark_current(self, view: View, sentences: dict[str, str]) -> None:
        """Add the pictures of these sentences to the manifest."""
        camera = camera_hash(view.camera)
        entry = self._views.get(view.id)
        known = entry["sentences"] if entry is not None and entry["camera"] == camera else {}
        self._views[view.id] = {"camera": camera, "sentences": known | sentences}
        self._save()

    def _save(self) -> None:
        write_json(self.root / "manifest.json", self.origin | {"views": self._views})

    def _read_views(self) -> dict[str, dict[str, Any]]:
        """Return the views of the manifest; none if it is missing, damaged or of another origin."""
        try:
            manifest = json.loads((self.root / "manifest.json").read_text(encoding="utf-8"))
            views = dict(manifest.pop("views"))
            usable = all(isinstance(v["sentences"], dict) and v["camera"] for v in views.values())
            return views if usable and manifest == self.origin else {}
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return {}


def camera_hash(camera: Camera) -> str:
    """Return a short hash of size, intrinsics and pose."""
    numbers = [camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height]
    pose = np.concatenate([camera.rotation.ravel(), camera.translation.ravel(), numbers])
    return hashlib.sha256(np.round(pose, 6).astype("<f8").tobytes()).hexdigest()[:16]


def model_hash(gaussians: GaussianModel, field: ReferringField) -> str:
    """Return a hash of everything that a mask depends on: geometry and the referring field."""
    geometry = [gaussians.xyz, gaussians.scaling, gaussians.rotation, gaussians.opacity]
    digest = hashlib.sha256()
    for tensor in [*geometry, *field.state_dict().values()]:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class Predictor:
    """Renders sentences of a trained model.

    Args:
        gaussians, field: the trained model (`inference.trained_model.load_trained`).
        encode: sentences -> {sentence: tokens [L, T]}; called once for each new sentence.
        threshold: foreground is where the probability exceeds it, 0..1.
        max_bytes: memory for raster plans (`ScoreRenderer`).
    """

    def __init__(
        self,
        gaussians: GaussianModel,
        field: ReferringField,
        encode: Callable[[list[str]], dict[str, Tensor]],
        threshold: float,
        max_bytes: int,
    ):
        if not 0 <= threshold <= 1:
            raise UserError(f"--threshold {threshold} is not a probability; give a number from 0 to 1, such as 0.5.")
        self.gaussians, self.field, self.encode, self.threshold = gaussians, field, encode, threshold
        self._renderer = ScoreRenderer(gaussians, max_bytes)
        self._scorer = Scorer(field, gaussians.get_xyz)
        self._scores: dict[str, Tensor] = {}  # sentence -> [N]
        self._ones = torch.ones_like(gaussians.get_xyz[:, 0])  # blended, they are the coverage of a pixel
        self._scores_room = memory_budget(gaussians.get_xyz.device, SCORES_SHARE, on_cpu=0)

    def origin(self, text_encoder: str) -> dict[str, Any]:
        """Return the origin of the predictions, see `PredictionFolder`."""
        model = model_hash(self.gaussians, self.field)
        return {"model": model, "text_encoder": text_encoder, "threshold": self.threshold}

    @torch.no_grad()
    def prepare(self, sentences: Iterable[str]) -> None:
        """Compute the scores of new sentences, which do not depend on the camera."""
        new = [s for s in dict.fromkeys(sentences) if s not in self._scores]
        if not new:
            return
        tokens = self.encode(new)
        width = tokens[new[0]].shape[1]
        if width != self.field.text_dim:
            raise UserError(
                f"the text encoder gives {width} numbers a word, but the model was trained on {self.field.text_dim}; "
                "the encoder that config.json of the model folder names has been replaced by another."
            )
        for start in range(0, len(new), CHANNELS):
            group = new[start : start + CHANNELS]
            compute = partial(self._scorer.scores, [tokens[s] for s in group])
            scores = self._renderer.plans.retry_after_eviction(compute)  # [K, N]
            fits = scores.nbytes <= self._scores_room
            self._scores_room -= scores.nbytes if fits else 0
            self._scores |= zip(group, scores if fits else scores.cpu(), strict=True)

    @torch.no_grad()
    def score_probabilities(self, sentences: list[str]) -> Tensor:
        """Return the sigmoid of each Gaussian's own score, [K, N] on the CPU."""
        self.prepare(sentences)
        return torch.stack([self._scores[s].sigmoid().cpu() for s in sentences])

    @torch.no_grad()
    def view_probabilities(self, cameras: list[Camera], sentences: list[str]) -> Tensor:
        """Return the mean of `probabilities` over all pixels, weighted with each Gaussian's share: [K, N] on the CPU.

        A Gaussian that no camera sees has 0.
        """
        self.prepare(sentences)
        groups = [sentences[start : start + CHANNELS - 1] for start in range(0, len(sentences), CHANNELS - 1)]
        plans = self._renderer.plans
        return torch.cat([plans.retry_after_eviction(partial(self._lift, cameras, group)) for group in groups])

    def _lift(self, cameras: list[Camera], sentences: list[str]) -> Tensor:
        progress = tqdm(cameras, desc="Gaussians in training views", unit="view")
        weights, sums = self._renderer.lift(cameras, (self.probabilities(camera, sentences) for camera in progress))
        return to_cpu(sums / weights.clamp_min(torch.finfo(weights.dtype).tiny)[:, None]).T

    @torch.no_grad()
    def probabilities(self, camera: Camera, sentences: list[str], once: bool = False) -> Tensor:
        """Return the probability of each pixel, [K, H, W] on the CPU (`referring.decoding.to_probabilities`).

        With `once`, the plan of the view is not kept, see `ScoreRenderer.render_scores`.
        """
        return self._render(camera, sentences, once, to_probabilities)

    @torch.no_grad()
    def logits(self, camera: Camera, sentences: list[str], once: bool = False) -> Tensor:
        """Return the blended logits, [K, H, W] on the CPU, -inf where no Gaussian covers the pixel."""
        return self._render(camera, sentences, once, hide_uncovered)

    def _render(self, camera: Camera, sentences: list[str], once: bool, decode: Decode) -> Tensor:
        self.prepare(sentences)
        once = once and len(sentences) < CHANNELS  # more take several splats of the view
        return self._renderer.plans.retry_after_eviction(lambda: self._render_groups(camera, sentences, once, decode))

    def _render_groups(self, camera: Camera, sentences: list[str], once: bool, decode: Decode) -> Tensor:
        pictures = []
        for start in range(0, len(sentences), CHANNELS - 1):
            group = [self._scores[s].to(self._ones.device) for s in sentences[start : start + CHANNELS - 1]]
            scores = torch.stack([*group, self._ones], dim=1)  # [N, K + 1]
            blended = self._renderer.render_scores(camera, scores, once)  # [K + 1, H, W]
            pictures.append(to_cpu(decode(blended[:-1], blended[-1] > 0)))
        return pictures[0] if len(pictures) == 1 else torch.cat(pictures)

    def write(self, folder: PredictionFolder, requests: list[Request], rerender: bool = False) -> int:
        """Write masks (0/255), heat maps and overlays that are missing or stale; returns the number of pairs."""
        stale = []
        for request in requests:
            view = request.view
            sentences = {k: s for k, s in request.sentences.items() if rerender or not folder.is_current(view, k)}
            if sentences:
                stale.append(Request(view, sentences))
        if stale:
            self.prepare(sentence for request in stale for sentence in request.sentences.values())
            folder.mark_stale(stale)
            for request in tqdm(stale, desc=f"rendering {folder.root.parent.name} views", unit="view"):
                self._write_view(folder, request)
        return sum(len(request.sentences) for request in stale)

    def _write_view(self, folder: PredictionFolder, request: Request) -> None:
        view, photo = request.view, request.view.image()
        probabilities = self.probabilities(view.camera, list(request.sentences.values()), once=True).numpy()
        for (key, sentence), probability in zip(request.sentences.items(), probabilities, strict=True):
            mask = to_mask(probability, self.threshold)  # [H, W]
            write_image(folder.path("masks", view.id, key), mask.astype(np.uint8) * 255)
            write_image(folder.path("heat", view.id, key), draw_heat_map(probability))
            write_image(folder.path("overlay", view.id, key), add_caption(overlay(photo, mask), sentence))
        folder.mark_current(view, request.sentences)


@dataclass(frozen=True)
class Opened:
    """A trained model with its scene, ready to render."""

    trained: TrainedModel
    scene: Scene
    text_encoder: str  # name of the encoder that it was trained with
    predictor: Predictor

    def predictions(self, split: str) -> PredictionFolder:
        """Return the predictions of "test" or "train" views."""
        root = self.trained.path / split / f"iteration_{self.trained.iteration}"
        return PredictionFolder(root, self.predictor.origin(self.text_encoder))


def saved_model_flags(flags: Any) -> dict[str, Any]:
    """Return the scene flags that the model was trained with; for `arguments.parse(saved=...)`.

    Raises:
        UserError: if there is no -m, or it names no model folder.
    """
    if flags.model_path is None:
        raise UserError("which model? Give the folder that train.py wrote with -m.")
    return saved_flags(flags.model_path, [ModelParams]) | {"model_path": flags.model_path}


def open_trained(
    model: ModelParams, pipeline: PipelineParams, iteration: int, threshold: float, deterministic: bool = False
) -> Opened:
    """Load a model folder and its scene; the text encoder is loaded with the first sentence to encode.

    Raises:
        UserError: if one of them is missing or damaged, or the model was trained on another scene.
    """
    if model.source_path is None:
        raise UserError(f"{model.model_path} does not say which scene it was trained on; give the scene with -s.")
    assert model.model_path is not None  # `saved_model_flags` requires it
    device = choose_device(pipeline.device, deterministic)
    trained = load_trained(model.model_path, iteration, device)
    trained.field.backend = choose_backend(device)
    scene = load(model)
    check_scene(trained.path, scene)
    name = trained.config.get("ReferringParams", {}).get("text_encoder", ReferringParams().text_encoder)

    def encode(sentences: list[str]) -> dict[str, Tensor]:
        return TextEncoder(name, device=device).encode(sentences)

    max_bytes = plan_bytes(pipeline.plan_memory, device)
    predictor = Predictor(trained.gaussians, trained.field, encode, threshold, max_bytes)
    return Opened(trained, scene, name, predictor)


def scene_requests(views: list[View]) -> list[Request]:
    """Request the scene's own sentences in each view; views without any are left out."""
    return [Request(v, {r.sentence_id: r.sentence for r in v.referrals}) for v in views if v.referrals]
