"""Videos from frames, uint8 RGB [H, W, 3]: .mp4 where imageio-ffmpeg is installed, else .gif."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from utils.errors import UserError
from utils.files import atomic_path

log = logging.getLogger("refersplat")

GIF_WIDTH = 480  # pixels; GIF compresses little
GIF_FPS = 50.0  # programs show frames of less than 2/100 s slowly
INSTALL = "pip install 'imageio-ffmpeg>=0.5'"


class Video(Protocol):
    """A video that is being written."""

    def add(self, frame: np.ndarray) -> None:
        """Append a frame, uint8 RGB [H, W, 3], all of one size."""


def ffmpeg() -> str | None:
    """The program ffmpeg that imageio-ffmpeg has or finds (IMAGEIO_FFMPEG_EXE); None if there is none."""
    try:
        import imageio_ffmpeg

        return shutil.which(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError, OSError):
        return None


def video_ending() -> str:
    """ ".mp4" or ".gif", with a message on what would give the former."""
    if ffmpeg() is not None:
        return ".mp4"
    wrong = os.environ.get("IMAGEIO_FFMPEG_EXE")
    reason = f"there is no program IMAGEIO_FFMPEG_EXE={wrong}" if wrong else f"imageio-ffmpeg is missing ({INSTALL})"
    log.warning("%s: videos become .gif, up to %d pixels wide", reason, GIF_WIDTH)
    return ".gif"


@contextmanager
def writing(path: Path, fps: float) -> Iterator[Video]:
    """A video that is at `path` when the block ends well, and not at all if it fails.

    Args:
        path: ends in .mp4 (H.264; an odd last row or column is cut off) or .gif (up to `GIF_WIDTH` pixels wide).
        fps: frames a second; of a GIF at most `GIF_FPS`, in steps of 1/100 s that are right in the mean.

    Raises:
        UserError: if the file cannot be written or ffmpeg fails.
    """
    with atomic_path(path) as temporary:
        video = _Mp4(temporary, fps) if path.suffix == ".mp4" else _Gif(temporary, fps)
        try:
            yield video
            video.finish()
        finally:
            video.close()


class _Mp4:
    """Pipes frames into ffmpeg."""

    def __init__(self, path: Path, fps: float):
        self._path, self._fps = path, fps
        self._process: subprocess.Popen | None = None
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`; a pipe could fill and stop ffmpeg)

    def add(self, frame: np.ndarray) -> None:
        height, width = (side - side % 2 for side in frame.shape[:2])  # as yuv420p needs it
        if self._process is None:
            self._process = self._started(width, height)
        try:
            self._process.stdin.write(np.ascontiguousarray(frame[:height, :width]).data)
        except BrokenPipeError:
            self.finish()  # says why
            raise

    def _started(self, width: int, height: int) -> subprocess.Popen:
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{self._fps:g}", "-i", "-"]
        # the defaults of x264 but for the quality; players stream a file whose index comes first
        target = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4"]
        command = [ffmpeg(), "-y", "-v", "error", *source, *target, str(self._path)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._messages, start_new_session=True
        )

    def finish(self) -> None:
        if self._process is None:
            raise ValueError("a video needs a frame")
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._process.wait() != 0:
            self._messages.seek(0)
            said = self._messages.read().decode(errors="replace").strip().splitlines()
            raise UserError(
                f"ffmpeg could not encode the video: {' '.join(said[-3:]) or 'no message'}. Free some disk space, or "
                f"take another ffmpeg ({INSTALL}; IMAGEIO_FFMPEG_EXE names one); without any, videos become .gif."
            )

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._messages.close()


class _Gif:
    """Keeps frames, each with a palette of its own, until the end."""

    def __init__(self, path: Path, fps: float):
        self._path, self._fps = path, min(fps, GIF_FPS)
        self._frames: list[Image.Image] = []

    def add(self, frame: np.ndarray) -> None:
        height, width = frame.shape[:2]
        if width > GIF_WIDTH:
            size = GIF_WIDTH, max(1, round(height * GIF_WIDTH / width))
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        self._frames.append(Image.fromarray(frame).quantize(256, Image.Quantize.FASTOCTREE))

    def finish(self) -> None:
        if not self._frames:
            raise ValueError("a video needs a frame")
        ends = np.round(np.arange(len(self._frames) + 1) * 100 / self._fps)  # 1/100 s
        durations = (10 * np.diff(ends)).astype(int).tolist()  # ms
        first, *others = self._frames
        first.save(self._path, save_all=True, append_images=others, duration=durations, loop=0, optimize=False)

    def close(self) -> None:
        self._frames.clear()
