"""Densification of "3D Gaussian Splatting as Markov Chain Monte Carlo" (Kheradmand et al. 2024).

Gaussians are samples: noise moves those that are nearly transparent, dead ones go where others are opaque, and their
number grows to a bound. Nothing is cloned, split or pruned, and opacity is never reset.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from arguments import RGBParams
from diff_gaussian_rasterization import step_kernels
from gaussian_renderer import Rendering
from gaussian_renderer.activation import raw_gaussians
from training.rgb_schedule import last_densification, most_gaussians
from training.trained_gaussians import TrainedGaussians
from utils.quaternions import rotate

MIN_OPACITY = 0.005  # up to it a Gaussian is dead
GROWTH = 1.05  # of the number of Gaussians, in a densification
MAX_COPIES = 51  # Gaussians that one can become at a time; more fall together
NOISE_STEEPNESS = 100.0  # k of the noise: it fades out over a few hundredths of opacity above MIN_OPACITY


def share(logits: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity logits and sizes with which `count` Gaussians at one place show what one showed there (Eq. 9).

    Opacities o' = 1 - (1 - o)^(1/N) let the same light through in the centre. The size makes the integral over the
    picture the same: with C(N, j) from summing the binomials of Eq. 9 over i,
    o / sum over j = 1..N of C(N, j) (-1)^(j + 1) o'^j / sqrt(j).

    Args:
        logits: opacity logits [S].
        count: N for each, [S] int64, at least 1; more than `MAX_COPIES` count as so many.

    Returns:
        logits of o' [S], and factors of the standard deviations [S], float64.
    """
    logits, count = logits.double(), count.clamp_max(MAX_COPIES)
    depth = F.softplus(logits) / count  # -log(1 - o'), without the rounding of 1 - o
    opacity = -torch.expm1(-depth)
    powers = opacity[:, None] ** torch.arange(1, MAX_COPIES + 1)  # [S, 51]
    integral = (powers * _SIGNED_BINOMIALS[count]).sum(dim=1)
    return opacity.log() + depth, torch.sigmoid(logits) / integral


_SIGNED_BINOMIALS = torch.tensor(  # C(N, j) (-1)^(j + 1) / sqrt(j) for N = 0..51 and j = 1..51
    [
        [math.comb(n, j) * (-1) ** (j + 1) / math.sqrt(j) for j in range(1, MAX_COPIES + 1)]
        for n in range(MAX_COPIES + 1)
    ],
    dtype=torch.float64,
)


class MarkovChain:
    """Relocates, adds and shakes Gaussians.

    Args:
        trained: the Gaussians, changed in place.
        params: flags of the RGB stage.
        generator: of the choice of Gaussians, on the CPU.
    """

    def __init__(self, trained: TrainedGaussians, params: RGBParams, generator: torch.Generator):
        self._trained, self._params, self._generator = trained, params, generator
        self._model = trained.model
        self._last, self._cap = last_densification(params), most_gaussians(params)
        # drawn on the device in every step; from the other, so that one seed gives both
        seed = int(torch.randint(2**62, (), generator=generator))
        self._noise = torch.Generator(self._model.device).manual_seed(seed)

    def state(self) -> dict[str, Tensor]:
        return {"noise": self._noise.get_state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if len(state["noise"]) == len(self._noise.get_state()):  # else of another kind of device
            self._noise.set_state(state["noise"])

    def before_update(self, iteration: int, rendering: Rendering) -> None:
        """Nothing is observed in the gradients."""

    def after_update(self, iteration: int, position_rate: float) -> None:
        """What comes after Adam, which moved positions at the rate `position_rate` (world units)."""
        params = self._params
        if params.densify_from_iter <= iteration <= self._last and iteration % params.densification_interval == 0:
            self.relocate_dead()
            self.grow()
        self.shake(position_rate)

    @torch.no_grad()
    def relocate_dead(self) -> None:
        """Move dead Gaussians onto live ones, drawn by opacity, without changing what they show together."""
        opacity = self._model.get_opacity[:, 0].double().cpu()
        is_dead = opacity <= MIN_OPACITY
        dead = is_dead.nonzero()[:, 0]
        if 0 < len(dead) < len(opacity):
            copies = self._copies(self._draw(opacity.masked_fill(is_dead, 0), len(dead)))
            self._trained.overwrite(dead.to(self._model.device), copies)

    @torch.no_grad()
    def grow(self) -> None:
        """Add Gaussians onto others, drawn by opacity, without changing what they show together."""
        count = len(self._model)
        added = min(self._cap, int(GROWTH * count)) - count
        if added > 0:
            opacity = self._model.get_opacity[:, 0].double().cpu()
            self._trained.append(self._copies(self._draw(opacity, added)))

    def _copies(self, sources: Tensor) -> dict[str, Tensor]:
        """Parameters of a copy of each of the Gaussians `sources` [C], which share what they show with their copies."""
        model, device = self._model, self._model.device
        shared, copies = sources.unique(return_counts=True)
        logits, shrink = share(model.opacity[shared.to(device), 0].cpu(), copies + 1)
        rows = shared.to(device)
        scaling = model.scaling[rows] + shrink.log().float().to(device)[:, None]
        self._trained.overwrite(rows, {"opacity": logits.float().to(device)[:, None], "scaling": scaling})
        return {name: tensor[sources.to(device)] for name, tensor in model.parameters().items()}

    def _draw(self, weights: Tensor, count: int) -> Tensor:
        """Indices [count] drawn with replacement in proportion to weights [N], float64, on the CPU.

        Not on a GPU, where the sum over all weights would differ from run to run.
        """
        cumulative = weights.cumsum(0)
        drawn = torch.rand(count, dtype=torch.float64, generator=self._generator) * cumulative[-1]
        return torch.searchsorted(cumulative, drawn, right=True).clamp_max_(len(weights) - 1)

    @torch.no_grad()
    def shake(self, position_rate: float) -> None:
        """Noise on the positions of nearly transparent Gaussians, in the shape of each (Eq. 8).

        sigmoid(-k (o - t)) R S^2 R^T n times the rates, with n from the normal distribution. R^T n is distributed as n.
        """
        model = self._model
        noise = torch.empty_like(model.xyz).normal_(generator=self._noise)
        rate = self._params.noise_lr * position_rate
        if step_kernels.available(model.device):
            step_kernels.add_noise(model.xyz, raw_gaussians(model), noise, rate, NOISE_STEEPNESS, MIN_OPACITY)
            return
        strength = torch.sigmoid(NOISE_STEEPNESS * (MIN_OPACITY - model.get_opacity))  # [N, 1]
        offsets = rotate(model.get_rotation, torch.exp(2 * model.scaling) * noise * strength)
        model.xyz.add_(offsets, alpha=rate)
