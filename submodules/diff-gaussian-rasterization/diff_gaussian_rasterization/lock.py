"""A lock file that cannot outlive its holder for long.

The holder writes host and process id into the file and touches it every few seconds. A waiter removes the lock at
once when the process is gone (same host), and after `SILENCE` seconds without a touch otherwise (another host of
a shared file system, a container with its own process ids). Two holders at a time are therefore possible in
theory; what the lock guards is published by an atomic rename, so the price is a second compilation and no more.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEARTBEAT = 5.0  # seconds between two touches by the holder
SILENCE = 60.0  # seconds without a touch after which the holder counts as dead
POLL = 0.05  # seconds between two looks of a waiter


@contextmanager
def file_lock(path: Path, timeout: float = 1800.0) -> Iterator[None]:
    """Hold the lock file `path`; its folder must exist.

    Raises:
        TimeoutError: if a living holder keeps the lock for more than `timeout` seconds.
        OSError: if the folder cannot be written.
    """
    _acquire(path, timeout)
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, done), daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()
        path.unlink(missing_ok=True)


def _acquire(path: Path, timeout: float) -> None:
    content = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    deadline = time.monotonic() + timeout
    seen, seen_at = None, time.monotonic()
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            pass
        except PermissionError:
            if os.name != "nt":  # Windows answers so while another process is deleting the file
                raise
        else:
            with os.fdopen(descriptor, "w") as file:
                file.write(content)
            return
        now = time.monotonic()
        state = _state(path)
        if state != seen:
            seen, seen_at = state, now
        if state is not None and (_holder_is_gone(path) or now - seen_at > SILENCE):
            path.unlink(missing_ok=True)
        elif now > deadline:
            raise TimeoutError(f"{path} is held by another living process for {timeout:.0f} s; end it or wait")
        else:
            time.sleep(POLL)


def _state(path: Path) -> int | None:
    """What changes with every touch; None when the lock was released meanwhile."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _holder_is_gone(path: Path) -> bool:
    """Whether the lock names a process of this host that no longer runs."""
    try:
        holder = json.loads(path.read_text())
        host, pid = holder["host"], int(holder["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # released, or not yet written: SILENCE decides
    return host == socket.gethostname() and not process_runs(pid)


def process_runs(pid: int) -> bool:
    """Whether a process of this host with id `pid` runs."""
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        if not handle:
            return False
        code = ctypes.c_ulong()
        kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return code.value == 259  # STILL_ACTIVE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT):
        try:
            os.utime(path)
        except OSError:
            return
