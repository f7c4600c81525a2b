"""Videos: files read back with OpenCV, and render.py --video on a hand-made model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import render as render_script
from inference import video
from inference.video import GIF_WIDTH, ffmpeg, video_ending, write_video
from tests.inference.test_camera_path import ENTRY
from tests.rigs.hand_made_model import SENTENCES, write_hand_made
from tests.rigs.small_run import call
from utils.errors import UserError
from utils.images import CYAN

needs_ffmpeg = pytest.mark.skipif(ffmpeg() is None, reason=f"no ffmpeg: {video.INSTALL}")
ENDINGS = [pytest.param(".mp4", marks=needs_ffmpeg), ".gif"]


@pytest.fixture
def no_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # its import fails


@pytest.fixture(scope="module")
def made(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hand_made(tmp_path_factory.mktemp("made") / "model", scene)


def frame(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Draw a white bar on blue that moves to the right."""
    picture = np.full((height, width, 3), (10, 20, 200), np.uint8)
    picture[:, 4 * number : 4 * number + 8] = 255
    return picture


def read(path: Path) -> tuple[np.ndarray, float]:
    """Return the frames, uint8 RGB [F, H, W, 3], and frames a second."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (found := capture.read())[0]:
        frames.append(found[1][..., ::-1])
    return np.stack(frames), capture.get(cv2.CAP_PROP_FPS)


class TestWriting:
    @pytest.mark.parametrize("ending", ENDINGS)
    def test_frames_come_back(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"new/video{ending}"
        write_video(path, map(frame, range(10)), 25)
        frames, fps = read(path)
        assert frames.shape == (10, 48, 64, 3)
        assert fps == pytest.approx(25)
        for number, found in enumerate(frames):
            assert np.abs(found.astype(int) - frame(number)).mean() < 6  # colour is stored at half the resolution
        assert [p.name for p in path.parent.iterdir()] == [path.name]

    @needs_ffmpeg
    def test_odd_sizes_lose_a_row_and_a_column(self, tmp_path: Path) -> None:
        write_video(tmp_path / "odd.mp4", (frame(number, 65, 49) for number in range(3)), 30)
        assert read(tmp_path / "odd.mp4")[0].shape == (3, 48, 64, 3)

    def test_wide_gifs_shrink(self, tmp_path: Path) -> None:
        write_video(tmp_path / "wide.gif", (frame(number, 1001, 601) for number in range(2)), 30)
        assert read(tmp_path / "wide.gif")[0].shape == (2, 288, GIF_WIDTH, 3)

    def test_gif_has_the_right_length(self, tmp_path: Path) -> None:
        """30 frames a second are 3 or 4 hundredths each, one second in all; 60 become 50."""
        from PIL import Image

        for fps, seconds in ((30, 1.0), (60, 0.6)):
            write_video(tmp_path / "v.gif", (frame(number, 200) for number in range(30)), fps)
            with Image.open(tmp_path / "v.gif") as gif:
                durations = []
                for index in range(gif.n_frames):
                    gif.seek(index)
                    durations.append(gif.info["duration"])
            assert sum(durations) == pytest.approx(1000 * seconds)
            assert min(durations) >= 20

    @pytest.mark.parametrize("ending", ENDINGS)
    def test_failure_leaves_the_old_file(self, tmp_path: Path, ending: str) -> None:
        def interrupted() -> Iterator[np.ndarray]:
            yield frame(0)
            raise KeyboardInterrupt

        path = tmp_path / f"old{ending}"
        path.write_bytes(b"precious")
        with pytest.raises(KeyboardInterrupt):
            write_video(path, interrupted(), 30)
        assert path.read_bytes() == b"precious"
        assert [p.name for p in tmp_path.iterdir()] == [path.name]

    @needs_ffmpeg
    def test_messages_of_ffmpeg_are_reported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = tmp_path / "ffmpeg.sh"
        program.write_text("#!/bin/sh\necho 'Unknown encoder libx264' >&2\nexit 3\n")
        program.chmod(0o755)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
        more_than_a_pipe_holds = (frame(number % 10) for number in range(300))
        with pytest.raises(UserError, match="Unknown encoder libx264"):
            write_video(tmp_path / "v.mp4", more_than_a_pipe_holds, 30)
        assert not (tmp_path / "v.mp4").exists()

    def test_without_imageio_ffmpeg(self, no_ffmpeg: None, caplog: pytest.LogCaptureFixture) -> None:
        assert video_ending() == ".gif"
        assert "imageio-ffmpeg" in caplog.text

    def test_without_the_program(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
        assert ffmpeg() is None
        assert video_ending() == ".gif"
        assert "IMAGEIO_FFMPEG_EXE=/nowhere/ffmpeg" in caplog.text


def render(folder: Path, *flags: object) -> int:
    return call(render_script, "-m", folder, "--device", "cpu", *flags)


def videos(folder: Path, pattern: str) -> list[Path]:
    return sorted((folder / "video/iteration_1").glob(pattern))


class TestRender:
    @needs_ffmpeg
    def test_orbit_keeps_the_object_in_the_middle(self, made: Path) -> None:
        """The tinted red ball is where the orbit looks, in every frame, under it the sentence."""
        assert render(made, "--text", SENTENCES[0], "--video", "orbit", "--frames", 7, "--fps", 10) == 0
        (path,) = videos(made, "orbit-the_red_ball-*.mp4")
        frames, fps = read(path)
        assert fps == pytest.approx(10)
        assert len(frames) == 7
        assert frames.shape[2] == 480  # enlarged from 80, as overlays are
        for picture in frames[:, :360]:
            red = (picture[..., 0] > 100) & (picture[..., 1] < 110) & (picture[..., 2] < 130)
            assert red.sum() > 200
            y, x = np.argwhere(red).mean(axis=0)
            assert abs(y - 180) < 25
            assert abs(x - 240) < 25
            outline = np.abs(picture.astype(int) - CYAN).sum(axis=-1) < 120
            assert outline.sum() > 50
        assert (frames[:, 360:] > 150).any()  # the caption

    def test_path_without_imageio_ffmpeg(self, made: Path, no_ffmpeg: None, capsys: pytest.CaptureFixture) -> None:
        flags = ("--video", "path", "--frames", 5, "--views", "all")
        assert render(made, "--text", SENTENCES[1], SENTENCES[2], *flags) == 0
        found = videos(made, "path-*.gif")
        assert len(found) == 2
        for path in found:
            assert len(read(path)[0]) == 5
        assert "imageio-ffmpeg" in capsys.readouterr().err

    def test_cameras_of_a_file(self, made: Path, tmp_path: Path, no_ffmpeg: None) -> None:
        """The two cameras as they are, and a path through them; the colour alone without a sentence."""
        entries = [ENTRY | {"position": [x, -1.0, 0.05], "rotation": LEVEL} for x in (-0.2, 0.2)]
        (tmp_path / "mine.json").write_text(json.dumps(entries))
        assert render(made, "--video", tmp_path / "mine.json") == 0
        (path,) = videos(made, "mine-colour.gif")
        frames, _ = read(path)
        assert frames.shape == (2, 48, 64, 3)
        balls = [np.argwhere(picture[..., 0] > 2 * picture[..., 1].astype(int) + 40).mean(axis=0) for picture in frames]
        assert balls[0][1] == pytest.approx(32 - 50 * 0.02, abs=2)  # the red ball at x = -0.22, a metre away
        assert balls[1][1] == pytest.approx(32 - 50 * 0.42, abs=2)
        assert render(made, "--video", tmp_path / "mine.json", "--frames", 4) == 0
        assert len(read(path)[0]) == 4

    def test_orbit_without_a_gaussian(self, made: Path, no_ffmpeg: None, capsys: pytest.CaptureFixture) -> None:
        flags = ("--video", "orbit", "--frames", 2, "--score_threshold", 1)
        assert render(made, "--text", SENTENCES[0], *flags) == 0
        assert "what the cameras look at" in capsys.readouterr().err

    def test_refusals(self, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        for flags, word in (
            (("--video", "obit"), "obit does not exist"),
            (("--video", made / "config.json"), "no list of cameras"),
            (("--video", "orbit", "--frames", "0"), "--frames"),
            (("--video", "orbit", "--fps", "nan"), "--fps"),
            (("--video", "orbit", "--text", " "), "empty sentence"),
        ):
            assert render(made, *flags) == 2
            assert word in capsys.readouterr().err

    def test_interrupted(self, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = videos(made, "*")
        drawn, whole = [], video.render_frame

        def frame_or_interrupt(*arguments: object) -> np.ndarray:
            drawn.append(1)
            if len(drawn) == 3:
                raise KeyboardInterrupt
            return whole(*arguments)

        monkeypatch.setattr(video, "render_frame", frame_or_interrupt)
        assert render(made, "--text", "a new sentence", "--video", "path", "--frames", 9) == 130
        assert videos(made, "*") == before


LEVEL = [[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]  # camera to world: looks along y, z up
