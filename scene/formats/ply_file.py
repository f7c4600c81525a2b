"""PLY files of any content, read with plyfile behind checks of the header."""

from __future__ import annotations

import re
from pathlib import Path

from plyfile import PlyData, PlyParseError

from utils.errors import UserError

MAX_HEADER_BYTES = 64 * 1024


def read_ply(path: Path, expected: str, lists: bool = False) -> PlyData:
    """Read a .ply (binary or ASCII); binary elements without lists are memory-mapped.

    Args:
        path: the file.
        expected: what the file should be and which flag names it, for the messages.
        lists: whether it may hold lists, as the faces of a mesh are.

    Raises:
        UserError: if the file is missing, damaged, no .ply, or holds lists where it may not.
    """
    _check_header(path, expected, lists)
    try:
        return PlyData.read(path)
    except (PlyParseError, ValueError, OverflowError, OSError, KeyError, MemoryError) as error:
        raise UserError(f"{path} cannot be read as a .ply: {error}. Copy it or make it again.") from None


def _check_header(path: Path, expected: str, lists: bool) -> None:
    """Refuse what is no .ply, and counts that the file cannot hold, before anything of that size is allocated."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(MAX_HEADER_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected {expected}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    end = re.search(rb"(?:^|\n)end_header\r?\n", head)
    if not head.startswith(b"ply") or end is None:
        raise UserError(
            f"{path} is not a .ply file: no header between 'ply' and 'end_header' in its first "
            f"{min(size, MAX_HEADER_BYTES)} bytes. Expected {expected}."
        )
    is_ascii = b"format ascii" in head[: end.start()]
    needed, properties, count = end.end(), 0, 0
    for line in [*head[: end.start()].split(b"\n"), b"element"]:
        words = line.split()
        if words[:1] == [b"element"]:
            needed += count * properties
            properties = 0
            count = int(words[2]) if len(words) == 3 and re.fullmatch(rb"\d{1,18}", words[2]) else 0
        elif words[:1] == [b"property"]:
            if words[1:2] == [b"list"] and not lists:
                raise UserError(f"{path} holds a mesh or lists, not points: {line.decode(errors='replace')!r}.")
            properties += 2 if is_ascii else 1  # bytes that one value takes at least
    if needed > size + 1:
        raise UserError(
            f"{path} is truncated or damaged: its header announces at least {needed} bytes, the file has {size}. "
            "Copy or make it again."
        )
