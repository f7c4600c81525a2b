"""Atomic file writing: a reader sees the old file or the complete new one. JSON with errors for users."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.errors import UserError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`.

    Creates missing parent folders. The temporary name keeps the suffix of `path`, by which writers such as
    `cv2.imwrite` choose the format. On failure the temporary file is removed and an existing `path` stays as it was.

    Raises:
        UserError: on an OSError (disk full, no permission, a file where a folder should be).
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        umask = os.umask(0)  # mkstemp creates private files; use the mode of a plain open()
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"could not write {path}: {error.strerror or error}. An older file of that name is untouched; "
            "free some space or write elsewhere (-m, or another name), then run again (train.py: with --resume)."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, on platforms that can open a folder."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write bytes atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_bytes(path: Path) -> bytes:
    """Read a file. Raises UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """Read a JSON file; `what` names its role in error messages.

    Raises:
        UserError: if the file is missing, not UTF-8 or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist.") from None
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number of 5000 digits
        raise UserError(f"{what} {path} is not valid JSON: {error}. Restore the file or remove it.") from None
