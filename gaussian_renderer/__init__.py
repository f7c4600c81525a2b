"""Pictures of a Gaussian model: colour with `render`, K per-Gaussian scalars with `ScoreRenderer`.

The rasteriser is the package `diff_gaussian_rasterization`, which picks CUDA, CPU or PyTorch by the tensors' device.
"""

from utils.submodules import use_own_packages

use_own_packages()

from gaussian_renderer.renderer import Rendering, ScoreRenderer, picture, raster_settings, render  # noqa: E402

__all__ = ["Rendering", "ScoreRenderer", "picture", "raster_settings", "render"]
