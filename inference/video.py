"""Videos, render.py --video: pictures of a moving camera, with the mask of a sentence laid over.

Written as .mp4 if imageio-ffmpeg is installed, else as .gif.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from arguments import VideoParams
from gaussian_renderer import picture
from inference.camera_path import orbit, path_through, read_cameras
from inference.predict import Opened, Predictor
from inference.selection import Selection
from referring.decoding import to_mask
from scene.cameras import Camera
from scene.random_points import scene_bounds
from utils.errors import UserError
from utils.files import atomic_path
from utils.images import add_caption, overlay, scale_to_width

log = logging.getLogger("refersplat")

FRAMES = 120  # of an orbit and a path, by default
GIF_WIDTH = 480  # pixels; GIF compresses little
GIF_FPS = 50.0  # programs show frames of less than 2/100 s slowly
INSTALL = "pip install 'imageio-ffmpeg>=0.5'"


def write_videos(
    opened: Opened,
    sentences: dict[str, str],
    selections: dict[str, Selection],
    video: VideoParams,
    views: str,
    resolution: int,
    background: Tensor,
) -> None:
    """Write MODEL/video/iteration_N/<camera>-<sentence id>.mp4 (or .gif), one for each sentence.

    Args:
        opened: the model and its scene.
        sentences: by id; without any, one video of the colour alone is written.
        selections: the Gaussians of each sentence, by id, that an orbit goes around.
        video: the flags.
        views: "test", "train" or "all", whose cameras a path goes through.
        resolution: the flag `-r`, which also scales the cameras of a file.
        background: colour [3] behind the Gaussians.

    Raises:
        UserError: if there are no cameras, their file is damaged, or a video cannot be written.
    """
    folder = opened.trained.path / "video" / f"iteration_{opened.trained.iteration}"
    ending, kind = video_ending(), Path(video.video).stem
    fixed = None if video.video == "orbit" else _path_cameras(opened, video, views, resolution)
    opened.predictor.prepare(sentences.values())
    for number, (key, sentence) in enumerate(sentences.items() or [("colour", None)], start=1):
        cameras = fixed or _orbit_around(opened, selections.get(key), video.frames or FRAMES)
        path = folder / f"{kind}-{key.removeprefix('text-')}{ending}"
        with open_video(path, video.fps) as file:
            for camera in tqdm(cameras, desc=f"video {number}", unit="frame"):
                file.add(frame(opened.predictor, camera, sentence, background))
        print(f"{path}: {len(cameras)} frames, {path.stat().st_size / 1e6:.2f} MB")


def frame(predictor: Predictor, camera: Camera, sentence: str | None, background: Tensor) -> np.ndarray:
    """Render the model, with mask and caption of a sentence if given, uint8 RGB [H', W', 3]."""
    colour = picture(camera, predictor.gaussians, background)
    if sentence is None:
        return colour
    probability = predictor.probabilities(camera, [sentence], once=True)[0].numpy()  # [H, W]
    return add_caption(overlay(colour, to_mask(probability, predictor.threshold)), sentence)


def _path_cameras(opened: Opened, video: VideoParams, views: str, resolution: int) -> list[Camera]:
    """Return the cameras of a path through the scene's views, or of a file."""
    if video.video != "path":
        cameras = read_cameras(Path(video.video), resolution)
        return cameras if video.frames is None else path_through(cameras, video.frames)
    splits = ("test", "train") if views == "all" else (views,)
    found = sorted((view for split in splits for view in getattr(opened.scene, split)), key=lambda view: view.id)
    if not found:
        raise UserError(
            f"{opened.scene.path} has no view in --views {views} for a path (split: {opened.scene.split_rule}); choose "
            "other views, or --video orbit."
        )
    return path_through([view.camera for view in found], video.frames or FRAMES)


def _orbit_around(opened: Opened, selection: Selection | None, frames: int) -> list[Camera]:
    """Orbit around the Gaussians of a sentence (the median of their centres), or what the cameras look at."""
    cameras = [view.camera for view in opened.scene.train]
    centre = scene_bounds(cameras)[0]
    if selection is not None and selection.selected.any():
        centres = opened.predictor.gaussians.get_xyz[selection.selected]
        centre = centres.double().cpu().median(dim=0).values.numpy()
    elif selection is not None:
        log.warning('no Gaussian belongs to "%s": the orbit goes around what the cameras look at', selection.sentence)
    return orbit(cameras, centre, frames)


def ffmpeg() -> str | None:
    """Return the ffmpeg program of imageio-ffmpeg or of IMAGEIO_FFMPEG_EXE; None if there is none."""
    try:
        import imageio_ffmpeg

        return shutil.which(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError, OSError):
        return None


def video_ending() -> str:
    """Return ".mp4", or ".gif" with a message on how to get the former."""
    if ffmpeg() is not None:
        return ".mp4"
    wrong = os.environ.get("IMAGEIO_FFMPEG_EXE")
    reason = f"there is no program IMAGEIO_FFMPEG_EXE={wrong}" if wrong else f"imageio-ffmpeg is missing ({INSTALL})"
    log.warning("%s: videos become .gif, up to %d pixels wide", reason, GIF_WIDTH)
    return ".gif"


@contextmanager
def open_video(path: Path, fps: float) -> Iterator[_Mp4 | _Gif]:
    """Open a video to `add` frames to, uint8 RGB [H, W, 3] of one size; it appears at `path` if the block succeeds.

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
    """Pipes frames to ffmpeg."""

    def __init__(self, path: Path, fps: float):
        self._path, self._fps = path, fps
        self._process: subprocess.Popen | None = None
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`; a pipe could fill and stop ffmpeg)

    def add(self, frame: np.ndarray) -> None:
        height, width = (side - side % 2 for side in frame.shape[:2])  # yuv420p needs even sides
        if self._process is None:
            self._process = self._start(width, height)
        try:
            self._process.stdin.write(np.ascontiguousarray(frame[:height, :width]).data)
        except BrokenPipeError:
            self.finish()  # reports the error
            raise

    def _start(self, width: int, height: int) -> subprocess.Popen:
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{self._fps:g}", "-i", "-"]
        # x264 defaults except for the quality; players can stream a file whose index comes first
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
            errors = self._messages.read().decode(errors="replace").strip().splitlines()
            raise UserError(
                f"ffmpeg could not encode the video: {' '.join(errors[-3:]) or 'no message'}. Free some disk space, or "
                f"use another ffmpeg ({INSTALL}; or set IMAGEIO_FFMPEG_EXE); without any, videos become .gif."
            )

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._messages.close()


class _Gif:
    """Collects frames, each with its own palette."""

    def __init__(self, path: Path, fps: float):
        self._path, self._fps = path, min(fps, GIF_FPS)
        self._frames: list[Image.Image] = []

    def add(self, frame: np.ndarray) -> None:
        frame = scale_to_width(frame, min(frame.shape[1], GIF_WIDTH))
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
