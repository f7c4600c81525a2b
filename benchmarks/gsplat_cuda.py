"""gsplat's CUDA kernels on a `Workload`, in its fastest settings: not packed, 16-pixel tiles, no extra outputs."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.workload import Workload

TILE = 16
SETTINGS = {"near_plane": 0.2, "eps2d": 0.3, "packed": False, "tile_size": TILE, "render_mode": "RGB"}


class Gsplat:
    """Renders one workload. The first one made in an environment compiles gsplat, which takes minutes.

    Raises:
        Exception: whatever gsplat raises where it is not installed, or cannot be compiled.
    """

    def __init__(self, work: Workload):
        import gsplat

        self.version = gsplat.__version__
        self._gsplat, self._camera = gsplat, work.camera
        device = work.means.device
        camera = work.camera
        intrinsics = [[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]]
        self._view = torch.from_numpy(camera.world_to_camera()).float().to(device)[None]  # [1, 4, 4]
        self._intrinsics = torch.tensor(intrinsics, dtype=torch.float32, device=device)[None]  # [1, 3, 3]
        self.geometry = {
            "means": work.means,
            "quats": work.rotations,
            "scales": work.scales,
            "opacities": work.opacities[:, 0].contiguous(),  # [N]
        }
        self.scores(torch.ones(len(work.means), 1, device=device))

    def scores(self, scores: Tensor, chunk: int = 32, geometry: dict[str, Tensor] | None = None) -> Tensor:
        """Scores [N, K] blended to [1, H, W, K], `chunk` channels a pass."""
        picture, _, _ = self._rasterization(geometry, colors=scores, channel_chunk=chunk)
        return picture

    def colour(self, shs: Tensor, sh_degree: int, geometry: dict[str, Tensor] | None = None) -> Tensor:
        """Spherical harmonics [N, M, 3] as a picture [1, H, W, 3] on black."""
        picture, _, _ = self._rasterization(geometry, colors=shs, sh_degree=sh_degree)
        return picture

    def _rasterization(self, geometry: dict[str, Tensor] | None, **more):
        size = {"width": self._camera.width, "height": self._camera.height}
        where = {"viewmats": self._view, "Ks": self._intrinsics, **size}
        return self._gsplat.rasterization(**(geometry or self.geometry), **where, **SETTINGS, **more)

    @torch.no_grad()
    def lists(self) -> dict[str, Tensor]:
        """Projection and sorted tile lists, what `prepare` is to us; gsplat's documented lower-level functions."""
        width, height = self._camera.width, self._camera.height
        geometry = self.geometry
        radii, means2d, depths, conics, _ = self._gsplat.fully_fused_projection(
            *(geometry["means"], None, geometry["quats"], geometry["scales"]),
            *(self._view, self._intrinsics, width, height),
            eps2d=SETTINGS["eps2d"],
            near_plane=SETTINGS["near_plane"],
            packed=False,
            opacities=geometry["opacities"],
        )
        columns, rows = -(-width // TILE), -(-height // TILE)
        _, keys, ids = self._gsplat.isect_tiles(means2d, radii, depths, TILE, columns, rows)
        offsets = self._gsplat.isect_offset_encode(keys, 1, columns, rows)  # [1, rows, columns]
        return {"means2d": means2d, "conics": conics, "isect_offsets": offsets, "flatten_ids": ids}

    def blend(self, lists: dict[str, Tensor], scores: Tensor, chunk: int = 32) -> Tensor:
        """Scores [N, K] blended to [1, H, W, K] with kept lists: what a user of gsplat can do for frozen geometry."""
        blend = partial(
            self._gsplat.rasterize_to_pixels,
            opacities=self.geometry["opacities"][None],
            image_width=self._camera.width,
            image_height=self._camera.height,
            tile_size=TILE,
            **lists,
        )
        parts = [blend(colors=part)[0] for part in scores[None].split(chunk, dim=-1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
