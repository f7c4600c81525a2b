"""Videos, render.py --video: pictures of a moving camera, with the mask of a sentence laid over.

Written as .mp4 if imageio-ffmpeg is installed, else as .gif.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from arguments import VideoParams
from gaussian_renderer import render_uint8
from inference.camera_path import orbit, path_through, read_cameras
from inference.predict import Opened, Predictor
from inference.selection import Selection
from referring.decoding import to_mask
from scene.cameras import Camera, scene_bounds
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
        sentences: by id; without any, one video of the colour alone is written.
        selections: the Gaussians of each sentence, by id, that an orbit goes around.
        views: "test", "train" or "all", whose cameras a path goes through.
        resolution: the flag `-r`, which also scales the cameras of a file.
        background: colour [3] behind the Gaussians.

    Raises:
        UserError: if there are no cameras, their file is damaged, or a video cannot be written.
    """
    assert video.video is not None
    folder = opened.trained.path / "video" / f"iteration_{opened.trained.iteration}"
    ending, kind = video_ending(), Path(video.video).stem
    fixed = None if video.video == "orbit" else _path_cameras(opened, video.video, video.frames, views, resolution)
    opened.predictor.prepare(sentences.values())
    for number, (key, sentence) in enumerate(sentences.items() or [("colour", None)], start=1):
        cameras = fixed or _orbit_around(opened, selections.get(key), video.frames or FRAMES)
        path = folder / f"{kind}-{key.removeprefix('text-')}{ending}"
        progress = tqdm(cameras, desc=f"video {number}", unit="frame")
        frames = (render_frame(opened.predictor, camera, sentence, background) for camera in progress)
        write_video(path, frames, video.fps)
        print(f"{path}: {len(cameras)} frames, {path.stat().st_size / 1e6:.2f} MB")


def render_frame(predictor: Predictor, camera: Camera, sentence: str | None, background: Tensor) -> np.ndarray:
    """Render the model, with mask and caption of a sentence if given, uint8 RGB [H', W', 3]."""
    colour = render_uint8(camera, predictor.gaussians, background)
    if sentence is None:
        return colour
    probability = predictor.probabilities(camera, [sentence], once=True)[0].numpy()  # [H, W]
    return add_caption(overlay(colour, to_mask(probability, predictor.threshold)), sentence)


def _path_cameras(opened: Opened, source: str, frames: int | None, views: str, resolution: int) -> list[Camera]:
    """Return the cameras of a path through the scene's views (source is "path"), or of a file."""
    if source != "path":
        cameras = read_cameras(Path(source), resolution)
        return cameras if frames is None else path_through(cameras, frames)
    splits = ("test", "train") if views == "all" else (views,)
    found = sorted((view for split in splits for view in getattr(opened.scene, split)), key=lambda view: view.id)
    if not found:
        raise UserError(
            f"{opened.scene.path} has no view in --views {views} for a path (split: {opened.scene.split_rule}); choose "
            "other views, or --video orbit."
        )
    return path_through([view.camera for view in found], frames or FRAMES)


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


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write frames, uint8 RGB [H, W, 3] of one size; on any failure `path` stays as it was.

    Args:
        path: ends in .mp4 (H.264; an odd last row or column is cut off) or .gif (up to `GIF_WIDTH` pixels wide).
        frames: one or more.
        fps: frames a second; of a GIF at most `GIF_FPS`, in steps of 1/100 s that are right on average.

    Raises:
        UserError: if the file cannot be written or ffmpeg fails.
    """
    with atomic_path(path) as temporary:
        (_write_mp4 if path.suffix == ".mp4" else _write_gif)(temporary, frames, fps)


def _write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    frames = iter(frames)
    first = next(frames)
    height, width = (side - side % 2 for side in first.shape[:2])  # yuv420p needs even sides
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-"]
    # x264 defaults except for the quality; players can stream a file whose index comes first
    target = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4"]
    program, pipe, null = ffmpeg(), subprocess.PIPE, subprocess.DEVNULL
    assert program is not None
    command = [program, "-y", "-v", "error", *source, *target, str(path)]
    with (
        tempfile.TemporaryFile() as messages,  # a pipe could fill and stop ffmpeg
        subprocess.Popen(command, stdin=pipe, stdout=null, stderr=messages, start_new_session=True) as process,
    ):
        assert process.stdin is not None
        try:
            for frame in chain([first], frames):
                try:
                    process.stdin.write(np.ascontiguousarray(frame[:height, :width]).data)
                except BrokenPipeError:  # ffmpeg failed; its messages are reported below
                    break
            with suppress(BrokenPipeError):
                process.stdin.close()
        except BaseException:
            process.kill()
            raise
        if process.wait() != 0:
            messages.seek(0)
            errors = messages.read().decode(errors="replace").strip().splitlines()
            raise UserError(
                f"ffmpeg could not encode the video: {' '.join(errors[-3:]) or 'no message'}. Free some disk space, or "
                f"use another ffmpeg ({INSTALL}; or set IMAGEIO_FFMPEG_EXE); without any, videos become .gif."
            )


def _write_gif(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    scaled = (scale_to_width(frame, min(frame.shape[1], GIF_WIDTH)) for frame in frames)
    first, *others = [Image.fromarray(frame).quantize(256, Image.Quantize.FASTOCTREE) for frame in scaled]
    ends = np.round(np.arange(len(others) + 2) * 100 / min(fps, GIF_FPS))  # 1/100 s
    durations = (10 * np.diff(ends)).astype(int).tolist()  # ms
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, optimize=False)
