"""The settings of a view, and the checks before a kernel gets a pointer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .constants import MAX_SH_DEGREE


class GaussianRasterizationSettings(NamedTuple):
    """One view. Matrices are transposed as in 3DGS: `[x 1] @ viewmatrix` is a camera point.

    The principal point is part of `projmatrix`; `tanfovx` and `tanfovy` are half the width and height over the focal
    lengths. `prefiltered` and `debug` exist for compatibility and change nothing.
    """

    image_height: int
    image_width: int
    tanfovx: float
    tanfovy: float
    bg: Tensor  # [3]
    scale_modifier: float
    viewmatrix: Tensor  # [4, 4]
    projmatrix: Tensor  # [4, 4], viewmatrix times the transposed projection
    sh_degree: int
    campos: Tensor  # [3]
    prefiltered: bool = False
    debug: bool = False
    include_feature: bool = True


class View(NamedTuple):
    """A view in plain numbers for the kernels."""

    width: int
    height: int
    tan_x: float
    tan_y: float
    center_x: float  # x/z in the middle of the picture: 0 for a central principal point
    center_y: float
    scale_modifier: float
    sh_degree: int
    viewmatrix: tuple[float, ...]  # [4, 4] transposed, row by row
    projmatrix: tuple[float, ...]  # [4, 4] transposed, row by row
    campos: tuple[float, ...]  # [3]
    bg: tuple[float, ...]  # [3]


def make_view(settings: GaussianRasterizationSettings) -> View:
    """Check the settings and find the middle of the frustum.

    Raises:
        ValueError: for a size, angle, matrix or degree that cannot be rendered.
    """
    width, height = int(settings.image_width), int(settings.image_height)
    if width < 1 or height < 1:
        raise ValueError(f"image_width and image_height must be at least 1, got {width} x {height}.")
    tan_x, tan_y = float(settings.tanfovx), float(settings.tanfovy)
    if not (0 < tan_x < float("inf") and 0 < tan_y < float("inf")):
        raise ValueError(f"tanfovx and tanfovy must be positive and finite, got {tan_x} and {tan_y}.")
    degree = int(settings.sh_degree)
    if not 0 <= degree <= MAX_SH_DEGREE:
        raise ValueError(f"sh_degree must be 0 to {MAX_SH_DEGREE}, got {settings.sh_degree}.")
    viewmatrix, projmatrix, campos, bg = _to_host(settings)
    forward = _project_forward_axis(viewmatrix, projmatrix)
    center = -forward[0] * tan_x, -forward[1] * tan_y
    scale_modifier = float(settings.scale_modifier)
    return View(width, height, tan_x, tan_y, *center, scale_modifier, degree, viewmatrix, projmatrix, campos, bg)


def _project_forward_axis(viewmatrix: tuple[float, ...], projmatrix: tuple[float, ...]) -> tuple[float, float]:
    """Clip x and y of the camera's viewing direction (0, 0, 1, 0): row 2 of inverse(viewmatrix) projmatrix."""
    a, b, c, _, d, e, f, _, g, h, i, *_ = viewmatrix
    row = (d * h - e * g, b * g - a * h, a * e - b * d)  # of the inverse of the rotation, times its determinant
    determinant = c * row[0] + f * row[1] + i * row[2]
    if not abs(determinant) > 0:
        raise ValueError("viewmatrix is singular, so it is not the view matrix of a camera.")
    last = viewmatrix[3::4]
    if max(abs(last[0]), abs(last[1]), abs(last[2]), abs(last[3] - 1)) > 1e-6:
        raise ValueError(f"The last column of viewmatrix must be 0, 0, 0, 1 (it is transposed), got {list(last)}.")
    x, y, z = row
    p = projmatrix
    return (x * p[0] + y * p[4] + z * p[8]) / determinant, (x * p[1] + y * p[5] + z * p[9]) / determinant


def _to_host(settings: GaussianRasterizationSettings) -> list[tuple[float, ...]]:
    """Read viewmatrix, projmatrix, campos and bg in one transfer, since each transfer waits for the GPU."""
    tensors = []
    for name, shape in {"viewmatrix": (4, 4), "projmatrix": (4, 4), "campos": (3,), "bg": (3,)}.items():
        tensor = torch.as_tensor(getattr(settings, name))
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}.")
        tensors.append(tensor.flatten())
    first = tensors[0]
    if first.is_cuda and all(t.device == first.device and t.dtype == first.dtype for t in tensors):
        tensors = torch.cat(tensors).cpu().split([len(t) for t in tensors])
    return [tuple(t.tolist()) for t in tensors]


def check_tensor(
    name: str, tensor: Tensor | None, like: Tensor, shape: tuple[int | None, ...], like_name: str = "means3D"
) -> None:
    """Check a tensor against another one and a shape, in which None stands for any size.

    Raises:
        ValueError: for another type, dtype, device or shape.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}.")
    if tensor.shape == shape and tensor.dtype == like.dtype and tensor.device == like.device:
        return  # the common case first: a call takes a fraction of a millisecond
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, {like_name} on {like.device}; move them to one device.")
    if tensor.dtype != like.dtype:
        raise ValueError(f"{name} is {tensor.dtype}, {like_name} is {like.dtype}; use one dtype, normally float32.")
    if tensor.dim() != len(shape) or any(w not in (None, s) for w, s in zip(shape, tensor.shape, strict=True)):
        expected = "[" + ", ".join("any" if w is None else str(w) for w in shape) + "]"
        count = f" for {shape[0]} Gaussians" if shape[0] is not None else ""
        raise ValueError(f"{name} must have shape {expected}{count}, got {list(tensor.shape)}.")


def check_geometry(
    means3D: Tensor, opacities: Tensor, scales: Tensor | None, rotations: Tensor | None, cov3D_precomp: Tensor | None
) -> None:
    """Check the tensors of position, opacity and shape.

    Raises:
        ValueError: for a wrong shape, dtype or device, or unless exactly one form of covariance is given.
    """
    if not isinstance(means3D, Tensor) or means3D.dim() != 2 or means3D.shape[1] != 3:
        found = list(means3D.shape) if isinstance(means3D, Tensor) else type(means3D).__name__
        raise ValueError(f"means3D must be a tensor of shape [N, 3], got {found}.")
    if means3D.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f'means3D is {means3D.dtype}; the rasteriser needs float32 (or float64 with backend="reference"). '
            "Under autocast, call .float() on its inputs."
        )
    n = means3D.shape[0]
    check_tensor("opacities", opacities, means3D, (n, 1))
    if (scales is None) != (rotations is None) or (scales is None) == (cov3D_precomp is None):
        tensors = {"scales": scales, "rotations": rotations, "cov3D_precomp": cov3D_precomp}
        given = ", ".join(name for name, tensor in tensors.items() if tensor is not None) or "none"
        raise ValueError(f"Give exactly one of scales + rotations or cov3D_precomp, got {given}.")
    if scales is not None:
        check_tensor("scales", scales, means3D, (n, 3))
        check_tensor("rotations", rotations, means3D, (n, 4))
    else:
        check_tensor("cov3D_precomp", cov3D_precomp, means3D, (n, 6))


def check_colors(means3D: Tensor, shs: Tensor | None, colors_precomp: Tensor | None, sh_degree: int) -> None:
    """Check the colour tensors.

    Raises:
        ValueError: unless exactly one is given, with enough coefficients for `sh_degree`.
    """
    if (shs is None) == (colors_precomp is None):
        raise ValueError("Give exactly one of shs or colors_precomp, got " + ("none." if shs is None else "both."))
    if colors_precomp is not None:
        check_tensor("colors_precomp", colors_precomp, means3D, (len(means3D), 3))
        return
    check_tensor("shs", shs, means3D, (len(means3D), None, 3))
    needed = (sh_degree + 1) ** 2
    if shs is not None and shs.shape[1] < needed:
        raise ValueError(f"sh_degree {sh_degree} needs {needed} coefficients in shs, got {shs.shape[1]}.")
