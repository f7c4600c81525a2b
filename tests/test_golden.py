"""Recorded numbers of the reference programs: every rasteriser case of GOLDEN_DIR (default ../shared/golden).

A case is an .npz with a camera, inputs `in_*`, outputs, cotangents `grad_color` and `grad_language`, and the gradient
`grad_*` of every input. Which inputs there are (spherical harmonics or colours, scales and rotations or covariances,
the number of extra channels) is read from the file. tests/test_golden_field.py checks the cases of the field.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from splat_scenes import one_thread

import diff_gaussian_rasterization as compiled
from diff_gaussian_rasterization import GaussianRasterizationSettings, reference

GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).resolve().parents[2] / "shared" / "golden")
CASES = sorted(GOLDEN_DIR.glob("*.npz"))

PICTURE_TOLERANCE = 1e-4  # for 99.9 % of the pixels; the others sit on an alpha or transmittance threshold
GRADIENT_TOLERANCE = 1e-3  # relative L2
BACKENDS = {"cpu": compiled.GaussianRasterizer, "reference": reference.GaussianRasterizer}


def rasterizer_case(path: Path) -> tuple[GaussianRasterizationSettings, dict, dict]:
    """(settings, inputs by argument name, everything recorded) as tensors."""
    with np.load(path) as file:
        recorded = {key: torch.from_numpy(file[key]) for key in file.files}
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


def relative_l2(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 distance."""
    return ((found - expected).double().norm() / expected.double().norm().clamp_min(1e-12)).item()


@pytest.mark.skipif(not CASES, reason=f"no *.npz in {GOLDEN_DIR}; set GOLDEN_DIR")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_rasterizer(path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGR_BACKEND", backend)
    settings, inputs, recorded = rasterizer_case(path)
    with one_thread():  # reference.py's operations are too small for more
        color, language, radii = BACKENDS[backend](settings)(**inputs)
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
