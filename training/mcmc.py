"""Densification of "3D Gaussian Splatting as Markov Chain Monte Carlo" (Kheradmand et al. 2024).

Gaussians are samples: noise moves those that are nearly transparent, dead ones are relocated to opaque ones, and their
number grows up to --cap_max. Nothing is cloned, split or pruned, and opacity is never reset.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from arguments import RGBParams
from diff_gaussian_rasterization import step_kernels
from gaussian_renderer import Rendering
from gaussian_renderer.renderer import raw_parameters
from training.densification import last_densification, max_gaussians, rotate
from training.gaussian_optimizer import GaussianOptimizer

MIN_OPACITY = 0.005  # Gaussians up to it are dead
GROWTH = 1.05  # factor of the number of Gaussians in a densification
MAX_COPIES = 51  # largest N in Eq. 9; more copies are treated as so many
NOISE_STEEPNESS = 100.0  # k in Eq. 8: noise fades out over a few hundredths of opacity above MIN_OPACITY


def relocate(logits: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Compute opacities and scales with which N Gaussians at one place render like one (Eq. 9).

    Opacities o' = 1 - (1 - o)^(1/N) keep the transmittance in the centre. The scale factor keeps the integral over the
    image; summing the binomials of Eq. 9 over i, it is o / sum_j=1..N C(N, j) (-1)^(j + 1) o'^j / sqrt(j).

    Args:
        logits: opacity logits, [S].
        count: N of each, int64 [S], at least 1 and clamped to `MAX_COPIES`.

    Returns:
        logits of o' and factors of the standard deviations, both float64 [S].
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
    """Relocates and adds Gaussians of an optimiser in place, and adds noise to their positions.

    `generator`, on the CPU, draws the Gaussians to copy.
    """

    def __init__(self, optimizer: GaussianOptimizer, params: RGBParams, generator: torch.Generator):
        self._optimizer, self._params, self._generator = optimizer, params, generator
        self._model = optimizer.model
        self._last_step, self._cap = last_densification(params), max_gaussians(params)
        # noise is drawn on the device, by a generator seeded from the other one
        seed = int(torch.randint(2**62, (), generator=generator))
        self._noise = torch.Generator(self._model.device).manual_seed(seed)

    def state(self) -> dict[str, Tensor]:
        return {"noise": self._noise.get_state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if len(state["noise"]) == len(self._noise.get_state()):  # else it was saved on another kind of device
            self._noise.set_state(state["noise"])

    def before_update(self, iteration: int, rendering: Rendering) -> None:
        """Do nothing; adaptive density control does its work here."""

    def after_update(self, iteration: int, position_lr: float) -> None:
        """Relocate and grow when due, and add noise scaled by the learning rate of positions (world units)."""
        params = self._params
        if params.densify_from_iter <= iteration <= self._last_step and iteration % params.densification_interval == 0:
            self.relocate_dead()
            self.grow()
        self.add_noise(position_lr)

    @torch.no_grad()
    def relocate_dead(self) -> None:
        """Move dead Gaussians onto live ones, sampled by opacity, keeping the rendered image."""
        opacity = self._model.get_opacity[:, 0].double().cpu()
        is_dead = opacity <= MIN_OPACITY
        dead = is_dead.nonzero()[:, 0]
        if 0 < len(dead) < len(opacity):
            copies = self._copy(sample(opacity.masked_fill(is_dead, 0), len(dead), self._generator))
            self._optimizer.overwrite(dead.to(self._model.device), copies)

    @torch.no_grad()
    def grow(self) -> None:
        """Add copies of Gaussians, sampled by opacity, keeping the rendered image."""
        count = len(self._model)
        added = min(self._cap, int(GROWTH * count)) - count
        if added > 0:
            opacity = self._model.get_opacity[:, 0].double().cpu()
            self._optimizer.append(self._copy(sample(opacity, added, self._generator)))

    def _copy(self, sources: Tensor) -> dict[str, Tensor]:
        """Return parameters of one copy of each Gaussian in `sources` [C], and dim the sources accordingly."""
        model, device = self._model, self._model.device
        originals, copies = sources.unique(return_counts=True)
        rows = originals.to(device)
        logits, shrink = relocate(model.opacity[rows, 0].cpu(), copies + 1)
        scaling = model.scaling[rows] + shrink.log().float().to(device)[:, None]
        self._optimizer.overwrite(rows, {"opacity": logits.float().to(device)[:, None], "scaling": scaling})
        return {name: tensor[sources.to(device)] for name, tensor in model.parameters().items()}

    @torch.no_grad()
    def add_noise(self, position_lr: float) -> None:
        """Add noise with the covariance of each Gaussian to the positions of nearly transparent ones (Eq. 8).

        It is sigmoid(-k (o - t)) R S^2 R^T n times the rates, n ~ N(0, 1). R^T n has the distribution of n.
        """
        model = self._model
        noise = torch.empty_like(model.xyz).normal_(generator=self._noise)
        rate = self._params.noise_lr * position_lr
        if step_kernels.available(model.device):
            step_kernels.add_noise(model.xyz, raw_parameters(model), noise, rate, NOISE_STEEPNESS, MIN_OPACITY)
            return
        strength = torch.sigmoid(NOISE_STEEPNESS * (MIN_OPACITY - model.get_opacity))  # [N, 1]
        offsets = rotate(model.get_rotation, torch.exp(2 * model.scaling) * noise * strength)
        model.xyz.add_(offsets, alpha=rate)


def sample(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Sample indices [count] with replacement in proportion to weights, float64 [N] on the CPU.

    On a GPU the cumulative sum would differ from run to run.
    """
    cumulative = weights.cumsum(0)
    drawn = torch.rand(count, dtype=torch.float64, generator=generator) * cumulative[-1]
    return torch.searchsorted(cumulative, drawn, right=True).clamp_max_(len(weights) - 1)
