"""The rasteriser in plain PyTorch: the definition of the picture, and the oracle of the tests.

Works in float32 and float64 on any device, with autograd gradients. Tiles are blended one after the other, and their
intermediate results are recomputed in the backward pass, so memory is bounded by the fullest tile.

Conventions, those of 3DGS:
- Visible: camera depth over NEAR_PLANE, and the 3-sigma square touches a tile. `radii` is 0 for the others.
- A Gaussian contributes to all pixels of the tiles that its square touches, and to no others. Gaussians are sorted by
  float32 camera depth, ties by index.
- An alpha under ALPHA_FLOOR is skipped. A contribution that would bring the transmittance under TRANSMITTANCE_STOP is
  left out and ends the pixel.
- The remaining transmittance shows the background colour; the extra channels have no background.
- Gradients pass straight through ALPHA_CAP, are zero where a harmonic colour is clamped at 0, and hold the clamped
  x or y of the Jacobian fixed outside the frustum margin. Quaternions are used as given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .constants import (
    ALPHA_CAP,
    ALPHA_FLOOR,
    FRUSTUM_MARGIN,
    LOW_PASS,
    NEAR_PLANE,
    RADICAND_FLOOR,
    RADIUS_SIGMAS,
    TILE,
    TRANSMITTANCE_STOP,
    W_EPSILON,
)
from .inputs import View
from .plan import RasterPlan


@dataclass(frozen=True)
class Projected:
    """Projected Gaussians."""

    centers: Tensor  # [N, 2] pixels
    conics: Tensor  # [N, 3] xx, xy, yy of the inverse 2D covariance
    depths: Tensor  # [N] camera z
    radii: Tensor  # [N] int32, 0 where invisible
    tile_min: Tensor  # [N, 2] int64, first tile column and row
    tile_max: Tensor  # [N, 2] int64, one past the last


@dataclass(frozen=True)
class TileLists:
    """Which Gaussians each tile blends, front to back."""

    gaussians: Tensor  # [P] int64, tile after tile
    counts: list[int]  # per tile, row by row


def rotation_matrices(rotations: Tensor) -> Tensor:
    """Matrices [N, 3, 3] of quaternions [N, 4] (w, x, y, z), which are used as given, not normalised."""
    w, x, y, z = rotations.unbind(-1)
    entries = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(entries, dim=-1).reshape(-1, 3, 3)


def covariances(scales: Tensor, rotations: Tensor, scale_modifier: float = 1.0) -> Tensor:
    """Upper triangles [N, 6] (xx, xy, xz, yy, yz, zz) of R S S^T R^T with S = scale_modifier * diag(scales)."""
    axes = rotation_matrices(rotations) * (scale_modifier * scales)[:, None, :]  # [N, 3, 3]
    full = axes @ axes.transpose(1, 2)
    rows, columns = torch.triu_indices(3, 3)
    return full[:, rows, columns]


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics (Condon-Shortley phase) of unit vectors [N, 3]: [N, (degree + 1)^2]."""
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    pi = math.pi
    basis = [torch.full_like(x, 0.5 / math.sqrt(pi))]
    if degree >= 1:
        c = math.sqrt(3 / (4 * pi))
        basis += [-c * y, c * z, -c * x]
    if degree >= 2:
        c = math.sqrt(15 / pi) / 2
        basis += [c * x * y, -c * y * z, math.sqrt(5 / pi) / 4 * (2 * zz - xx - yy), -c * x * z, c / 2 * (xx - yy)]
    if degree >= 3:
        c1, c3 = math.sqrt(21 / (2 * pi)) / 4, math.sqrt(35 / (2 * pi)) / 4
        c2 = math.sqrt(105 / pi) / 4
        basis += [
            -c3 * y * (3 * xx - yy),
            2 * c2 * x * y * z,
            -c1 * y * (4 * zz - xx - yy),
            math.sqrt(7 / pi) / 4 * z * (2 * zz - 3 * xx - 3 * yy),
            -c1 * x * (4 * zz - xx - yy),
            c2 * z * (xx - yy),
            -c3 * x * (xx - 3 * yy),
        ]
    return torch.stack(basis, dim=-1)


def sh_colors(means3D: Tensor, shs: Tensor, view: View) -> Tensor:
    """Colours [N, 3] seen from the camera: max(0, harmonics + 0.5)."""
    directions = nn.functional.normalize(means3D - means3D.new_tensor(view.campos), dim=-1)
    basis = sh_basis(directions, view.sh_degree)
    return torch.relu((basis[:, :, None] * shs[:, : basis.shape[1]]).sum(1) + 0.5)


def project(means3D: Tensor, cov3D: Tensor, view: View, means2D: Tensor | None = None) -> Projected:
    """Project centres and covariances; `means2D` [N, 3] only receives the gradient of the NDC position.

    Where a centre lies outside the frustum margin, the clamped camera x (or y) of the Jacobian is a constant.
    """
    viewmatrix, projmatrix = (means3D.new_tensor(m).view(4, 4) for m in (view.viewmatrix, view.projmatrix))
    camera = means3D @ viewmatrix[:3, :3] + viewmatrix[3, :3]  # [N, 3]
    clip = means3D @ projmatrix[:3] + projmatrix[3]  # [N, 4]
    ndc = clip[:, :2] / (clip[:, 3:] + W_EPSILON)
    if means2D is not None:
        ndc = ndc + (means2D - means2D.detach())[:, :2]
    size = torch.tensor([view.width, view.height], device=means3D.device)
    centers = ((ndc + 1) * size - 1) / 2

    x, y, z = camera.unbind(-1)
    held = []
    for value, t, m in ((x, view.tan_x, view.center_x), (y, view.tan_y, view.center_y)):
        limited = (value / z).clamp(m - FRUSTUM_MARGIN * t, m + FRUSTUM_MARGIN * t) * z
        outside = ((value / z) - m).abs() > FRUSTUM_MARGIN * t
        held.append(torch.where(outside, limited.detach(), value))
    fx, fy = view.width / (2 * view.tan_x), view.height / (2 * view.tan_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        (fx / z, zero, -fx * held[0] / (z * z), zero, fy / z, -fy * held[1] / (z * z)), dim=-1
    ).reshape(-1, 2, 3)
    to_picture = jacobian @ viewmatrix[:3, :3].T  # [N, 2, 3]
    full = cov3D[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
    cov2D = to_picture @ full @ to_picture.transpose(1, 2)
    a, b, c = cov2D[:, 0, 0] + LOW_PASS, cov2D[:, 0, 1], cov2D[:, 1, 1] + LOW_PASS
    det = a * c - b * b
    conics = torch.stack((c, -b, a), dim=-1) / det[:, None]

    with torch.no_grad():
        mid = (a + c) / 2
        radii = (RADIUS_SIGMAS * (mid + (mid * mid - det).clamp_min(RADICAND_FLOOR).sqrt()).sqrt()).ceil()
        # A valid covariance plus the low-pass has a positive determinant; NaN fails every comparison.
        visible = (z > NEAR_PLANE) & (det > 0) & (a > 0) & radii.isfinite() & centers.isfinite().all(-1)
        radii = torch.where(visible, radii, torch.zeros_like(radii))
        grid = torch.tensor([-(-view.width // TILE), -(-view.height // TILE)], device=means3D.device)
        positions = torch.where(visible[:, None], centers, torch.zeros_like(centers))
        low = ((positions - radii[:, None]) / TILE).floor().clamp_min(0)
        high = ((positions + radii[:, None] + TILE - 1) / TILE).floor().clamp_min(0)
        tile_min, tile_max = torch.minimum(low, grid).long(), torch.minimum(high, grid).long()
        visible &= (tile_max > tile_min).all(-1)
        radii = torch.where(visible, radii, torch.zeros_like(radii)).clamp_max(2**31 - 1).int()
    return Projected(centers, conics, z, radii, tile_min, tile_max)


def tile_lists(projected: Projected, view: View) -> TileLists:
    """Lists of the tiles that each Gaussian's 3-sigma square touches, in the order of float32 camera depth."""
    columns, rows = -(-view.width // TILE), -(-view.height // TILE)
    order = projected.depths.detach().float().argsort(stable=True)
    order = order[projected.radii[order] > 0]
    low, high = projected.tile_min[order], projected.tile_max[order]
    widths, heights = (high - low).unbind(-1)
    counts = widths * heights
    pair = torch.repeat_interleave(torch.arange(len(order), device=order.device), counts)  # [P]
    rank = torch.arange(len(pair), device=order.device) - (counts.cumsum(0) - counts)[pair]
    tile_x = low[pair, 0] + rank % widths[pair]
    tile_y = low[pair, 1] + rank // widths[pair]
    tiles, by_tile = (tile_y * columns + tile_x).sort(stable=True)
    return TileLists(order[pair[by_tile]], torch.bincount(tiles, minlength=columns * rows).tolist())


def _blend_tile(splats: Tensor, xs: Tensor, ys: Tensor) -> tuple[Tensor, Tensor]:
    """Blend [L, 6 + C] (centre, conic, opacity, values) front to back: ([C, pixels], transmittance [pixels])."""
    dx, dy = splats[:, 0, None] - xs, splats[:, 1, None] - ys  # [L, pixels]
    xx, xy, yy, opacity = (splats[:, i, None] for i in (2, 3, 4, 5))
    unlimited = opacity * torch.exp(-0.5 * (xx * dx * dx + yy * dy * dy) - xy * dx * dy)
    alpha = unlimited + (unlimited.clamp_max(ALPHA_CAP) - unlimited).detach()
    with torch.no_grad():
        counted = alpha >= ALPHA_FLOOR
        kept = counted & (torch.cumprod(1 - alpha * counted, 0) >= TRANSMITTANCE_STOP)
    alpha = torch.where(kept, alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, 0)
    before = torch.cat((torch.ones_like(after[:1]), after[:-1]))
    return splats[:, 6:].T @ (alpha * before), after[-1]


def blend(splats: Tensor, lists: TileLists, view: View) -> tuple[Tensor, Tensor]:
    """Blend every tile: values [C, H, W] without background, and the remaining transmittance [H, W].

    Args:
        splats: [N, 6 + C], see `_blend_tile`.
    """
    channels = splats.shape[1] - 6
    columns = -(-view.width // TILE)
    pixels = torch.arange(max(view.width, view.height), device=splats.device, dtype=splats.dtype)
    bands, band = [], []
    for tile, rows in enumerate(splats[lists.gaussians].split(lists.counts)):
        left, top = tile % columns * TILE, tile // columns * TILE
        width, height = min(TILE, view.width - left), min(TILE, view.height - top)
        if len(rows) == 0:
            values, rest = splats.new_zeros(channels, height * width), splats.new_ones(height * width)
        else:
            ys, xs = torch.meshgrid(pixels[top : top + height], pixels[left : left + width], indexing="ij")
            # The backward pass recomputes each tile, so that only one is in memory at a time.
            values, rest = checkpoint(
                _blend_tile, rows, xs.flatten(), ys.flatten(), use_reentrant=False, preserve_rng_state=False
            )
        band.append(torch.cat((values, rest[None])).reshape(channels + 1, height, width))
        if len(band) == columns:
            bands.append(torch.cat(band, dim=2))
            band = []
    picture = torch.cat(bands, dim=1)
    if len(splats) == 0:
        picture = picture + splats.sum()  # 0, but part of the graph: backward() works with nothing in view
    return picture[:-1], picture[-1]


def _visible_geometry(
    view: View, means3D: Tensor, opacities: Tensor, *shape: Tensor | None, means2D: Tensor | None = None
) -> tuple[Tensor, Projected, Tensor, Tensor]:
    """Project: (ids of the visible Gaussians [V], their Projected, geometry columns [V, 6], radii [N]).

    Invisible Gaussians are dropped before anything is differentiated: a division by a depth of zero among them would
    turn the gradients of all into NaN.
    """

    def run(keep: Tensor | slice) -> Projected:
        scales, rotations, cov3D, ndc = (None if t is None else t[keep] for t in (*shape, means2D))
        if scales is not None and rotations is not None:
            cov3D = covariances(scales, rotations, view.scale_modifier)
        assert cov3D is not None
        return project(means3D[keep], cov3D, view, ndc)

    with torch.no_grad():
        radii = run(slice(None)).radii
    ids = radii.nonzero().squeeze(1)
    projected = run(ids)
    return ids, projected, torch.cat((projected.centers, projected.conics, opacities[ids]), dim=1), radii


def rasterize(
    view: View, means3D: Tensor, means2D: Tensor, opacities: Tensor, shs, colors, features, *shape: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Render colour and extra channels: (color [3, H, W], language [K, H, W], radii [N] int32).

    Arguments as in `GaussianRasterizer.forward`.
    """
    features = means3D.new_zeros(len(means3D), 0) if features is None else features
    ids, projected, geometry, radii = _visible_geometry(view, means3D, opacities, *shape, means2D=means2D)
    colors = sh_colors(means3D[ids], shs[ids], view) if colors is None else colors[ids]
    splats = torch.cat((geometry, colors, features[ids]), dim=1)
    values, rest = blend(splats, tile_lists(projected, view), view)
    color = values[:3] + rest * means3D.new_tensor(view.bg)[:, None, None]
    return color, values[3:], radii


class ReferencePlan(RasterPlan):
    """Frozen geometry of one view."""

    _uses_autograd = True

    def __init__(self, geometry: Tensor, ids: Tensor, lists: TileLists, view: View, radii: Tensor):
        self._geometry, self._ids, self._lists, self._view = geometry, ids, lists, view
        self.radii, self.size, self.dtype = radii, (view.height, view.width), geometry.dtype

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self._geometry, self._ids, self._lists.gaussians, self.radii))

    def _blend(self, scores: Tensor) -> Tensor:
        splats = torch.cat((self._geometry, scores[self._ids]), dim=1)
        return blend(splats, self._lists, self._view)[0]

    def _backproject(self, image: Tensor) -> Tensor:
        with torch.enable_grad():
            scores = image.new_zeros(len(self.radii), len(image), requires_grad=True)
            return torch.autograd.grad(self._blend(scores), scores, image.detach())[0]


@torch.no_grad()
def prepare(view: View, means3D: Tensor, opacities: Tensor, *shape: Tensor | None) -> ReferencePlan:
    """Project and sort the Gaussians of one view; see `inputs.check_geometry` for the tensors."""
    ids, projected, columns, radii = _visible_geometry(view, means3D, opacities, *shape)
    return ReferencePlan(columns, ids, tile_lists(projected, view), view, radii)
