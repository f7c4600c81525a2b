"""Run every CUDA kernel on small scenes and check the results against the CPU kernels.

For compute-sanitizer, from the root of the repository, a few seconds each:

    export PYTORCH_NO_CUDA_MEMORY_CACHING=1   # one allocation per tensor, so that accesses out of bounds are seen
    compute-sanitizer --error-exitcode 9 --tool memcheck python tests/rigs/cuda_sanitizer_scene.py
    compute-sanitizer --error-exitcode 9 --tool racecheck python tests/rigs/cuda_sanitizer_scene.py
    compute-sanitizer --error-exitcode 9 --tool initcheck python tests/rigs/cuda_sanitizer_scene.py
    compute-sanitizer --error-exitcode 9 --tool synccheck python tests/rigs/cuda_sanitizer_scene.py

Exit code: 1 for wrong results, 9 if the sanitizer found something.
"""

# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script's path holds its own folder only

from utils.submodules import use_own_packages

use_own_packages()

import torch
from torch import Tensor

from diff_gaussian_rasterization import GaussianRasterizer, backend_for, prepare, rasterize_scores
from simple_knn._C import distCUDA2
from tests.rigs.splat_scenes import Splats, looking_down_z, random_splats, relative_l2, view_settings

TOLERANCE = 1e-3  # relative L2; a pixel on a threshold weighs more in scenes this small
CHANNELS = (1, 2, 3, 4, 8, 16, 17, 32, 33)  # of scores: every compiled number, and the loops for the others
SIZE = (67, 41)  # no multiple of a tile


def full_path(splats: Splats, sh_degree: int, device: str) -> dict[str, Tensor]:
    """Outputs and gradients, with spherical harmonics and with precomputed colours and covariances."""
    settings = view_settings(looking_down_z(*SIZE), sh_degree=sh_degree)
    results = {}
    for kind, leaves in (("sh", splats.leaves), ("precomputed", splats.precomputed_leaves)):
        inputs = leaves(device=device)
        color, language, radii = GaussianRasterizer(settings)(**inputs)
        torch.autograd.backward([color, language], [color.detach().cos(), language.detach().cos()])
        results |= {f"{kind} color": color, f"{kind} language": language, f"{kind} radii": radii}
        results |= {f"{kind} gradient of {name}": leaf.grad for name, leaf in inputs.items()}
    return results


def scores_path(splats: Splats, device: str) -> dict[str, Tensor]:
    """Scores with and without a plan, their gradients, and the other methods of a plan."""
    splats = splats.to(device)
    settings = view_settings(looking_down_z(*SIZE))
    plan = prepare(settings=settings, **splats.geometry())
    planned, direct = (splats.language_feature_precomp.clone().requires_grad_() for _ in range(2))
    pictures = [plan.render(planned), rasterize_scores(direct, settings=settings, **splats.geometry())]
    for picture in pictures:
        picture.backward(picture.detach().cos())
    with torch.no_grad():
        inference = rasterize_scores(splats.language_feature_precomp, settings=settings, **splats.geometry())
    return {
        "plan": pictures[0],
        "no plan": pictures[1],
        "inference": inference,
        "gradient with plan": planned.grad,
        "gradient without plan": direct.grad,
        "backproject": plan.backproject(pictures[0].detach().sin()),
        "transmittance": plan.transmittance(),
    }


def all_results(device: str) -> dict[str, Tensor]:
    """All results, by name."""
    results = {}
    scenes = {"some": 300, "one": 1, "none": 0}
    for scene, n in scenes.items():
        for degree in (0, 3) if scene == "some" else (0,):
            splats = random_splats(n + degree, n, 3, sh_degree=degree)
            results |= {f"{scene}, degree {degree}: {k}": v for k, v in full_path(splats, degree, device).items()}
        for channels in CHANNELS if scene == "some" else (1,):
            splats = random_splats(n + channels, n, channels, size=0.05)
            results |= {f"{scene}, {channels} scores: {k}": v for k, v in scores_path(splats, device).items()}
    pile = random_splats(7, 1500, 2)  # a list of more than one batch in one tile
    pile.means3D = torch.tensor([[0.03, -0.02, 2.0]]).repeat(1500, 1)  # on the axis, gradients of the centre cancel
    pile.opacities = pile.opacities * 0.01
    results |= {f"pile: {k}": v for k, v in {**full_path(pile, 0, device), **scores_path(pile, device)}.items()}
    for n in (1, 3, 4, 2000):
        points = torch.randn(n, 3, generator=torch.Generator().manual_seed(n))
        results[f"kNN of {n}"] = distCUDA2(torch.cat((points, points[: n // 4])).to(device))
    return results


def main() -> int:
    """Compare the devices; return 0 if they agree."""
    if backend_for("cuda") != "cuda":
        print("no CUDA kernels here; `python -m diff_gaussian_rasterization` says why")
        return 1
    expected = all_results("cpu")
    wrong = 0
    for mode in (False, True):
        torch.use_deterministic_algorithms(mode)
        found = all_results("cuda")
        for name, value in expected.items():
            error = relative_l2(found[name], value)
            if not error <= TOLERANCE:  # NaN is wrong too
                wrong += 1
                print(f"wrong{' in deterministic mode' * mode}: {name}, relative L2 {error:.2e}")
    print(f"{len(expected)} results, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
