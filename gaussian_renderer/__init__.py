"""Render Gaussian models: colour with `render`, per-Gaussian scores of a frozen model with `ScoreRenderer`.

`renderer` holds both, `plan_cache` the raster plans of views, `antialiasing` the 2D filter of Mip-Splatting. The
rasteriser itself is the package diff_gaussian_rasterization under submodules/, which selects CUDA, CPU or PyTorch by
the tensors' device. Nothing here knows sentences, trains or reads files.
"""

from utils.submodules import use_own_packages

use_own_packages()

from gaussian_renderer.renderer import (  # noqa: E402
    Rendering,
    ScoreRenderer,
    background_color,
    raster_settings,
    render,
    render_uint8,
)

__all__ = ["Rendering", "ScoreRenderer", "background_color", "raster_settings", "render", "render_uint8"]
