"""Recorded numbers of the reference programs: every case of GOLDEN_DIR (default ../shared/golden).

A rasteriser case is an .npz with a camera, inputs `in_*`, outputs, cotangents `grad_color` and `grad_language`, and the
gradient `grad_*` of every input. Which inputs there are (spherical harmonics or colours, scales and rotations or
covariances, the number of extra channels) is read from the file.

A field case is X_checkpoint.pth, a released checkpoint, with X_expected.pt: tokens, and the scores, embeddings, losses
and gradients of one sentence.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diff_gaussian_rasterization import GaussianRasterizationSettings, GaussianRasterizer
from referring import reference
from referring.field import ReferringField, Words, pad_tokens
from referring.kernels.backend import choose_backend
from referring.losses import contrastive_released, top_count
from scene.checkpoints import load_checkpoint
from tests.rigs.paths import GOLDEN
from tests.rigs.splat_scenes import one_thread, relative_l2

GOLDEN_DIR = GOLDEN
CASES = sorted(GOLDEN_DIR.glob("*.npz"))
FIELD_CASES = sorted(GOLDEN_DIR.glob("*_checkpoint.pth"))

PICTURE_TOLERANCE = 1e-4  # for 99.9 % of the pixels; the others sit on an alpha or transmittance threshold
GRADIENT_TOLERANCE = 1e-3  # relative L2
FIELD_TOLERANCE = 1e-4  # relative L2 of scores, embeddings, logits and losses
# Some gradients of the field are zero in exact arithmetic (a bias of the keys moves all words' logits alike) or tiny;
# what was recorded of them is float32 rounding of the terms that cancel, 5e-9 where other gradients have norm 70.
ROUNDING = 2e-10  # of the largest gradient of the case; the recorded ones are 1e-10 of it away from float64 themselves
DEVICES = {"cpu": "cpu", "cuda": "cuda", "reference": "cpu"}  # of each backend


def rasterizer_case(path: Path, device: str) -> tuple[GaussianRasterizationSettings, dict, dict]:
    """(settings, inputs by argument name, everything recorded) as tensors on a device."""
    with np.load(path) as file:
        recorded = {key: torch.from_numpy(file[key]).to(device) for key in file.files}
    names = GaussianRasterizationSettings._fields
    numbers = {key: recorded[key].item() for key in names if key in recorded and recorded[key].dim() == 0}
    arrays = {key: recorded[key].float() for key in names if key in recorded and recorded[key].dim() > 0}
    settings = GaussianRasterizationSettings(**numbers, **arrays)
    inputs = {key.removeprefix("in_"): recorded[key] for key in recorded if key.startswith("in_")}
    inputs.setdefault("means2D", torch.zeros_like(inputs["means3D"]))
    return settings, {key: value.clone().requires_grad_() for key, value in inputs.items()}, recorded


def share_outside(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Share of the pixels in which any channel is further than the tolerance."""
    return ((found - expected).abs().amax(0) > PICTURE_TOLERANCE).double().mean().item()


@pytest.mark.skipif(not CASES, reason=f"no *.npz in {GOLDEN_DIR}; set GOLDEN_DIR")
@pytest.mark.parametrize("backend", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu), "reference"])
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_rasterizer(path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGR_BACKEND", backend)
    settings, inputs, recorded = rasterizer_case(path, DEVICES[backend])
    with one_thread():  # reference.py's operations are too small for more
        color, language, radii = GaussianRasterizer(settings, backend)(**inputs)
        outputs = {"color": color, "language": language}
        outputs = {key: value for key, value in outputs.items() if f"grad_{key}" in recorded}
        torch.autograd.backward(list(outputs.values()), [recorded[f"grad_{key}"] for key in outputs])

    for key, value in outputs.items():
        assert value.shape == recorded[key].shape
        assert share_outside(value, recorded[key]) <= 1e-3, key
    apart = (radii - recorded["radii"]).abs()
    assert apart.max() <= 1  # a ceil() may fall to either side
    assert (apart > 0).double().mean() <= 1e-3
    compared = [name for name in inputs if f"grad_{name}" in recorded]
    assert compared
    for name in compared:
        assert relative_l2(inputs[name].grad, recorded[f"grad_{name}"]) <= GRADIENT_TOLERANCE, name


@pytest.mark.skipif(not FIELD_CASES, reason=f"no *_checkpoint.pth in {GOLDEN_DIR}; set GOLDEN_DIR")
@pytest.mark.parametrize("path", FIELD_CASES, ids=lambda path: path.stem)
def test_field(path: Path, device: str) -> None:
    expected = torch.load(
        path.with_name(path.name.replace("_checkpoint.pth", "_expected.pt")), map_location=device, weights_only=True
    )
    gaussians, tensors, _ = load_checkpoint(path)
    gaussians, field = gaussians.to(device), ReferringField.from_tensors(tensors, path).to(device)
    tokens, index = expected["tokens"], int(expected["sentence_index"])
    field.backend = choose_backend(torch.device(device))
    words = field.encode_words(*pad_tokens(list(tokens)))
    count = torch.tensor([top_count(expected["ratio"], len(gaussians))], dtype=torch.int32, device=device)
    scores, tops = field.score(gaussians.xyz, Words(*(part[index : index + 1] for part in words)), count)
    scores, top, sentences = scores[0], tops[0], words.means()
    temperature = expected["temperature"]
    logits = F.cosine_similarity(top[None], sentences, dim=1) / temperature
    positive = expected["category"] == expected["category"][index]
    contrastive = contrastive_released(top, sentences, positive, ~positive, temperature)
    target = expected["target"][:, 0]
    loss = F.binary_cross_entropy_with_logits(scores, target) + expected["contrastive_weight"] * contrastive
    results = {
        "scores": scores,
        "positive_mean": top,
        "contrastive_logits": logits,
        "contrastive_loss": contrastive,
        "loss": loss,
    }
    for name, value in results.items():
        assert relative(value.detach(), expected[name].reshape(value.shape)) < FIELD_TOLERANCE, name

    loss.backward()
    gradients = {name: parameter.grad for name, parameter in field.named_parameters()}
    assert gradients.keys() == expected["grads"].keys()
    rounding = ROUNDING * max(float(gradient.norm()) for gradient in expected["grads"].values())
    for name, gradient in expected["grads"].items():
        difference = float((gradients[name] - gradient).norm())
        assert difference <= GRADIENT_TOLERANCE * float(gradient.norm()) + rounding, name


@pytest.mark.skipif(not FIELD_CASES, reason=f"no *_checkpoint.pth in {GOLDEN_DIR}; set GOLDEN_DIR")
@pytest.mark.parametrize("path", FIELD_CASES, ids=lambda path: path.stem)
def test_reference(path: Path) -> None:
    """referring/reference.py, the oracle of other tests, gives the recorded numbers, too."""
    expected = torch.load(path.with_name(path.name.replace("_checkpoint.pth", "_expected.pt")), weights_only=True)
    gaussians, net, _ = load_checkpoint(path)
    tokens, index = expected["tokens"], int(expected["sentence_index"])
    scores, embeddings = reference.score(net, gaussians.xyz, tokens[index])
    top = reference.top_embedding(scores, embeddings, expected["ratio"])
    sentences = torch.stack([reference.embed_sentence(reference.embed_words(net, one)) for one in tokens])
    positive = expected["category"] == expected["category"][index]
    contrastive = reference.contrastive_released(top, sentences, positive, ~positive)
    loss = reference.mask_loss(scores, expected["target"][:, 0])
    loss = reference.total_loss(loss, contrastive, expected["contrastive_weight"])
    results = {"scores": scores, "positive_mean": top, "contrastive_loss": contrastive, "loss": loss}
    for name, value in results.items():
        assert relative(value, expected[name].reshape(value.shape)) < FIELD_TOLERANCE, name


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 difference."""
    return float((value - expected).norm() / expected.norm())
