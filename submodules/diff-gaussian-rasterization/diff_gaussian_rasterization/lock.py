"""A lock file that does not outlive its holder for long.

The holder writes its host and process id into the file and touches it every few seconds. A waiter removes the lock at
once if that process is gone (same host), and after `STALE_AFTER` seconds without a touch otherwise (another host of a
shared file system, a container with its own process ids). Two holders at a time are therefore possible in theory; what
the lock guards is published by an atomic rename, so the cost is a second compilation and no more.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HEARTBEAT = 5.0  # seconds between two touches by the holder
STALE_AFTER = 60.0  # seconds without a touch after which the holder counts as dead
POLL = 0.05  # seconds between two attempts of a waiter


@contextmanager
def file_lock(path: Path, timeout: float = 1800.0) -> Iterator[None]:
    """Hold the lock file `path`; its folder must exist.

    Raises:
        TimeoutError: if a living process holds the lock for more than `timeout` seconds.
        OSError: if the folder cannot be written.
    """
    _acquire(path, timeout)
    is_done = threading.Event()

    def touch() -> None:
        while not is_done.wait(HEARTBEAT):
            with suppress(OSError):
                os.utime(path)

    heartbeat = threading.Thread(target=touch, daemon=True)
    heartbeat.start()
    try:
        yield
    finally:
        is_done.set()
        heartbeat.join()
        path.unlink(missing_ok=True)


def _acquire(path: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    last_touch, seen_at = None, time.monotonic()
    while True:
        try:
            with open(path, "x") as file:
                json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
            return
        except FileExistsError:
            pass
        except PermissionError:
            if os.name != "nt":  # Windows raises this while another process deletes the file
                raise
        now = time.monotonic()
        try:
            touch = path.stat().st_mtime_ns
        except OSError:
            touch = None  # released meanwhile
        if touch != last_touch:
            last_touch, seen_at = touch, now
        if touch is not None and (_holder_is_gone(path) or now - seen_at > STALE_AFTER):
            path.unlink(missing_ok=True)
        elif now > deadline:
            raise TimeoutError(f"{path} is held by another living process for {timeout:.0f} s; end it or wait")
        else:
            time.sleep(POLL)


def _holder_is_gone(path: Path) -> bool:
    """Whether the lock names a process of this host that no longer runs."""
    try:
        holder = json.loads(path.read_text())
        host, pid = holder["host"], int(holder["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # released, or not yet written: STALE_AFTER decides
    return host == socket.gethostname() and not _process_runs(pid)


def _process_runs(pid: int) -> bool:
    """Whether a process of this host runs."""
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        code = ctypes.c_ulong()
        kernel.GetExitCodeProcess(handle, ctypes.byref(code))  # leaves 0 for the handle of no process
        kernel.CloseHandle(handle)
        return code.value == 259  # STILL_ACTIVE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
