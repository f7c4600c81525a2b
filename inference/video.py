"""render.py --video: a moving camera's pictures of the model, with the mask of a sentence laid over."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from arguments import VideoParams
from gaussian_renderer import picture
from inference.camera_path import orbit, read_cameras, through
from inference.predict import Opened, Predictor
from inference.selection import Selected
from referring.decoding import to_mask
from scene.cameras import Camera
from scene.random_points import scene_bounds
from utils.errors import UserError
from utils.images import captioned, overlay
from utils.video import video_ending, writing

log = logging.getLogger("refersplat")

FRAMES = 120  # of an orbit and a path, by default


def write_videos(
    opened: Opened,
    sentences: dict[str, str],
    selected: dict[str, Selected],
    video: VideoParams,
    views: str,
    resolution: int,
    background: Tensor,
) -> None:
    """Write MODEL/video/iteration_N/<camera>-<sentence id>.mp4 (or .gif), one for each sentence.

    Args:
        opened: the model and its scene.
        sentences: by id; without any, one video of the colour alone is written.
        selected: the Gaussians of each sentence, by id, that an orbit goes around.
        video: the flags; a file of cameras is read here.
        views: "test", "train" or "all", whose cameras a path goes through.
        resolution: the flag `-r`, which cameras of a file follow as well.
        background: colour [3] behind the Gaussians.

    Raises:
        UserError: if there are no cameras to go by, their file is damaged, or a video cannot be written.
    """
    folder = opened.trained.path / "video" / f"iteration_{opened.trained.iteration}"
    ending, kind = video_ending(), Path(video.video).stem
    fixed = None if video.video == "orbit" else _given_cameras(opened, video, views, resolution)
    opened.predictor.prepare(sentences.values())
    for number, (key, sentence) in enumerate(sentences.items() or [("colour", None)], start=1):
        cameras = fixed or _around(opened, selected.get(key), video.frames or FRAMES)
        path = folder / f"{kind}-{key.removeprefix('text-')}{ending}"
        with writing(path, video.fps) as file:
            for camera in tqdm(cameras, desc=f"video {number}", unit="frame"):
                file.add(frame(opened.predictor, camera, sentence, background))
        print(f"{path}: {len(cameras)} frames, {path.stat().st_size / 1e6:.2f} MB")


def frame(predictor: Predictor, camera: Camera, sentence: str | None, background: Tensor) -> np.ndarray:
    """A picture of the model, with mask and caption of a sentence where there is one, uint8 RGB [H', W', 3]."""
    colour = picture(camera, predictor.gaussians, background)
    if sentence is None:
        return colour
    probability = predictor.probabilities(camera, [sentence], once=True)[0].numpy()  # [H, W]
    return captioned(overlay(colour, to_mask(probability, predictor.threshold)), sentence)


def _given_cameras(opened: Opened, video: VideoParams, views: str, resolution: int) -> list[Camera]:
    """Cameras of a path through the scene's views, or of a file."""
    if video.video != "path":
        cameras = read_cameras(Path(video.video), resolution)
        return cameras if video.frames is None else through(cameras, video.frames)
    splits = ("test", "train") if views == "all" else (views,)
    found = sorted((view for split in splits for view in getattr(opened.scene, split)), key=lambda view: view.id)
    if not found:
        raise UserError(
            f"{opened.scene.path} has no view in --views {views} for a path (split: {opened.scene.split_rule}); choose "
            "other views, or --video orbit."
        )
    return through([view.camera for view in found], video.frames or FRAMES)


def _around(opened: Opened, selected: Selected | None, frames: int) -> list[Camera]:
    """An orbit around the Gaussians of a sentence (the median of their centres), or what the cameras look at."""
    cameras = [view.camera for view in opened.scene.train]
    centre = scene_bounds(cameras)[0]
    if selected is not None and selected.chosen.any():
        centre = opened.predictor.gaussians.get_xyz[selected.chosen].double().cpu().median(dim=0).values.numpy()
    elif selected is not None:
        log.warning('no Gaussian belongs to "%s": the orbit goes around what the cameras look at', selected.sentence)
    return orbit(cameras, centre, frames)
