"""`.spz` files of Niantic, through gaussforge, which contains Niantic's own code (github.com/nianticlabs/spz).

Versions 1 to 3 are one gzip stream with a header of 16 bytes; version 4 is a header of 32 bytes and one zstd stream per
attribute. All hold 24-bit fixed-point positions in steps of 1/4096, log scales in steps of 1/16, opacity and colour in
bytes, and SH coefficients in -1..1 with 5 bits (degree 1) or 4 bits.

The library keeps the axes of the file, which are x right, y up, z back (RUB), while those of a .ply are x right, y
down, z forward (RDF). So models are turned by 180 degrees about x on the way in and out.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from plyfile import PlyData, PlyParseError

from scene.formats.ply import model_from_ply, ply_from_model
from scene.formats.splat import finite_logits
from scene.gaussian_model import GaussianModel
from utils.errors import UserError
from utils.files import read_bytes, write_bytes

INSTALL = "pip install 'gaussforge>=0.6'"
VERSION = 3  # what viewers support; 4 can be read, too
MAX_POSITION = 2**23 / 4096  # 24-bit fixed point with 12 fractional bits
MAX_STRAYS = 0.01  # fraction of the Gaussians that may lie further out
MAX_GROWTH = 64  # Gaussians per byte of the file; even equal ones take more than 1/64 byte
MAX_BYTES, SPARE = 9 + 1 + 3 + 3 + 4 + 45, 1 << 20  # per unpacked Gaussian, and for data that other programs append
_MAGIC = b"NGSP"
_HEADER = 16
_FLAGS, _ANTIALIASED = 14, 1  # byte of the header, and its bit: trained with the 2D filter of Mip-Splatting
# Signs of the 15 SH coefficients of degrees 1 to 3 under (x, y, z) -> (x, -y, -z), as in Niantic's splat-types.h:
# -1 where the polynomial is odd in (y, z).
_SH_SIGNS = (-1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1)


def load_spz(path: Path) -> GaussianModel:
    """Read a .spz of version 1 to 4. Raises UserError if it is damaged, or gaussforge is not installed."""
    content = read_bytes(path)
    count, antialiased = _checked_header(path, content)
    converted = _convert(content, "spz", "ply", f"{path} cannot be read as a .spz")
    try:
        vertices = PlyData.read(io.BytesIO(converted))
    except (PlyParseError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read as a .spz: {error}. Copy or export it again.") from None
    model = model_from_ply(vertices, str(path), finite=False)
    if len(model) != count:
        raise UserError(f"{path} announces {count} Gaussians and holds {len(model)}; it is damaged. Export it again.")
    model.opacity = finite_logits(model.opacity)
    model = half_turn(model)
    model.antialiasing = antialiased
    model.check(str(path))
    return model


def save_spz(path: Path, model: GaussianModel) -> list[str]:
    """Write a .spz of version 3 atomically, in the order of the Gaussians, and return what is lost, in words.

    Stray Gaussians beyond the range of the format are left out.

    Raises:
        UserError: if gaussforge is not installed, or more than MAX_STRAYS of the Gaussians lie that far out.
    """
    frozen = model.to("cpu")
    near = (frozen.xyz.abs() < MAX_POSITION - 1).all(dim=1)
    far, lost = int((~near).sum()), []
    if far > MAX_STRAYS * len(model):
        raise UserError(
            f"{path} cannot hold {far} of {len(model)} Gaussians: .spz ends at {MAX_POSITION:g} units from the origin "
            f"and the furthest coordinate is {float(frozen.xyz.abs().max()):g}. Write .compressed.ply or .splat."
        )
    if far:
        frozen = frozen.subset(near)
        lost.append(f"{far} of {len(model)} Gaussians, further than {MAX_POSITION:g} units from the origin, left out")
    buffer = io.BytesIO()
    ply_from_model(half_turn(frozen)).write(buffer)
    content = _convert(buffer.getvalue(), "ply", "spz", f"{path} could not be written", spz_version=VERSION)
    if model.antialiasing:
        unpacked = bytearray(gzip.decompress(content))
        unpacked[_FLAGS] |= _ANTIALIASED
        content = gzip.compress(unpacked, mtime=0)
    write_bytes(path, content)
    for what, value, least, most in (
        ("SH coefficients", frozen.features_rest, -1, 1),
        ("SH coefficients of degree 0", frozen.features_dc, -0.5 / 0.15, 0.5 / 0.15),
        ("log scales", frozen.scaling, -10, 255 / 16 - 10),
    ):
        if outside := int(((value < least) | (value > most)).flatten(1).any(dim=1).sum()):
            lost.append(f"{what} outside {least:.3g}..{most:.3g}, clamped in {outside} of {len(model)} Gaussians")
    return lost


def half_turn(model: GaussianModel) -> GaussianModel:
    """Turn a model by 180 degrees about the x axis of the world; its own inverse."""
    signs = torch.tensor([1.0, -1.0, -1.0], device=model.device)
    sh_signs = torch.tensor(_SH_SIGNS[: model.features_rest.shape[1]], dtype=torch.float32, device=model.device)
    return replace(
        model,
        xyz=model.xyz * signs,
        features_rest=model.features_rest * sh_signs[:, None],
        # F R F with F = diag(1, -1, -1): F only flips a Gaussian's own axes, so its covariance becomes F C F
        rotation=model.rotation * torch.cat((torch.ones(1, device=model.device), signs)),
    )


def _checked_header(path: Path, content: bytes) -> tuple[int, bool]:
    """Check the header before the library allocates memory: (number of Gaussians, whether antialiased)."""
    header, stream = content[:_HEADER], None
    if header[:2] == b"\x1f\x8b":
        stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
        header = _inflate(path, stream, content, _HEADER)
    if len(header) < _HEADER or header[:4] != _MAGIC:
        raise UserError(f"{path} is not a .spz file: no {_MAGIC.decode()} at its start. Export it again.")
    version, count = int.from_bytes(header[4:8], "little"), int.from_bytes(header[8:12], "little")
    if not 1 <= version <= 4:
        raise UserError(f"{path} is a .spz of version {version}; known are 1 to 4. Export it in one of them.")
    if header[12] > 3:
        raise UserError(f"{path} has spherical harmonics of degree {header[12]}; this project goes up to 3.")
    if not 0 < count <= MAX_GROWTH * len(content):
        raise UserError(
            f"{path} announces {count} Gaussians in {len(content)} bytes; it is damaged or empty. Export it again."
        )
    if stream and len(_inflate(path, stream, stream.unconsumed_tail, longest := MAX_BYTES * count + SPARE)) == longest:
        raise UserError(f"{path} unpacks to far more than its {count} Gaussians need; do not trust where it came from.")
    return count, bool(header[_FLAGS] & _ANTIALIASED)


def _inflate(path: Path, stream: Any, content: bytes, most: int) -> bytes:
    """Inflate the next bytes of a gzip stream, at most `most` of them."""
    try:
        return stream.decompress(content, most)
    except zlib.error as error:
        raise UserError(f"{path} is damaged: {error}. Copy or export it again.") from None


def _convert(content: bytes, source: str, target: str, failure: str, **options: int) -> bytes:
    """Convert the content of a file to another format with gaussforge."""
    try:
        from gaussforge import GaussForge
    except ImportError:
        raise UserError(f".spz files need the package gaussforge, which is not installed: {INSTALL}") from None
    result, words = _capture_stdout(lambda: GaussForge().convert(content, source, target, **options))
    data = bytes(result.get("data") or b"")
    if not data:  # some failures are an empty result and a line on stdout
        reason = result.get("error") or (words.splitlines() or ["nothing came out"])[-1]
        raise UserError(f"{failure}: {reason}. Copy or export it again.")
    return data


def _capture_stdout(work: Callable[[], Any]) -> tuple[Any, str]:
    """Call `work`, and return its result and what its C++ code printed to stdout."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no stdout
        return work(), ""
    with tempfile.TemporaryFile() as printed:
        try:
            os.dup2(printed.fileno(), 1)
            result = work()
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        printed.seek(0)
        return result, printed.read().decode(errors="replace").strip()
