"""A lock file between processes: the operating system's lock on it ends with the process that holds it.

Where a file system has no locks, two processes may build at a time; the first result stays.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # by another process; other errors mean that there are no locks


@contextmanager
def file_lock(path: Path, timeout: float = 1800.0) -> Iterator[None]:
    """Hold the lock file `path`; its folder must exist.

    Raises:
        TimeoutError: if another process holds the lock for more than `timeout` seconds.
        OSError: if the folder cannot be written.
    """
    deadline = time.monotonic() + timeout
    while (file := _try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} is held by another living process for {timeout:.0f} s; end it or wait")
        time.sleep(0.05)
    with file:
        try:
            yield
        finally:
            with suppress(OSError):  # Windows does not delete an open file; an empty one stays
                path.unlink()


def _try_lock(path: Path) -> IO[str] | None:
    """Return the open, locked file, or None if another process holds it."""
    try:
        file = open(path, "a")  # noqa: SIM115, the caller closes it
    except PermissionError:
        if not path.exists():
            raise
        file = open(path)  # noqa: SIM115, another user's file, which can be locked all the same
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            file.close()
            return None
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    file.close()  # its last holder has deleted it meanwhile
    return None
