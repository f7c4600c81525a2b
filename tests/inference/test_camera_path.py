"""Camera paths of videos against geometry that does not depend on the code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from inference.camera_path import orbit, path_through, read_cameras, up_direction
from scene.cameras import Camera
from synthetic.geometry import look_at, project
from utils.errors import UserError

TURN = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()  # any world, not only one with z up


def looking(centre: np.ndarray, target: np.ndarray, focal: float = 50.0) -> Camera:
    """Return a level camera in a world rotated by `TURN`; both points are given before the rotation."""
    rotation, translation = look_at(np.asarray(centre, float), np.asarray(target, float))
    return Camera("x", rotation @ TURN.T, translation, focal, focal, 32.0, 24.0, 64, 48)


def ring(degrees: np.ndarray, target: np.ndarray, radius: float = 2.0, height: float = 1.0) -> list[Camera]:
    angles = np.radians(degrees)
    places = np.stack([radius * np.cos(angles), radius * np.sin(angles), np.full(len(angles), height)], axis=1)
    return [looking(target + place, target) for place in places]


TARGET = np.array([0.4, -0.2, 0.3])


@pytest.mark.parametrize("degrees", [np.arange(0, 360, 20), np.arange(-40, 41, 10), np.array([0.0, 60.0])])
def test_up_is_that_of_level_cameras(degrees: np.ndarray) -> None:
    """Also if all look down from one side, where the mean of their upward axes leans."""
    assert up_direction(ring(degrees, TARGET)) == pytest.approx(TURN @ [0, 0, 1], abs=1e-9)


def test_up_of_cameras_side_by_side_is_the_mean() -> None:
    cameras = [looking([x, -2, 0], [x, 0, 0]) for x in (0.0, 1.0, 2.0)]
    assert up_direction(cameras) == pytest.approx(TURN @ [0, 0, 1], abs=1e-9)
    assert up_direction(cameras[:1]) == pytest.approx(TURN @ [0, 0, 1], abs=1e-9)


class TestOrbit:
    def check(self, frames: list[Camera], distance: float) -> np.ndarray:
        """Check that frames are level with the target in the middle at one distance; returns azimuths in degrees."""
        centre = TURN @ TARGET
        offsets = np.stack([camera.center - centre for camera in frames])
        assert np.linalg.norm(offsets, axis=1) == pytest.approx(distance)
        for camera in frames:
            x, y, depth = project(camera, centre[None])[0]
            assert (x, y, depth) == pytest.approx((32, 24, distance))
            assert camera.rotation @ camera.rotation.T == pytest.approx(np.eye(3), abs=1e-9)
            assert np.linalg.det(camera.rotation) > 0
            assert camera.rotation[0] @ TURN @ [0, 0, 1] == pytest.approx(0, abs=1e-9)
            assert camera.rotation[1] @ TURN @ [0, 0, 1] < 0  # the picture's y points down
        local = offsets @ TURN
        assert local[:, 2] == pytest.approx(1.0)  # the height from which the target was photographed
        return np.degrees(np.arctan2(local[:, 1], local[:, 0]))

    def test_full_circle_if_cameras_are_all_around(self) -> None:
        azimuths = self.check(orbit(ring(np.arange(0, 360, 30), TARGET), TURN @ TARGET, 36), np.sqrt(5))
        steps = np.mod(np.diff(azimuths, append=azimuths[0]), 360)
        assert steps == pytest.approx(10.0)

    def test_swings_if_cameras_are_on_one_side(self) -> None:
        azimuths = self.check(orbit(ring(np.arange(-50, 51, 10), TARGET), TURN @ TARGET, 40), np.sqrt(5))
        assert azimuths.min() == pytest.approx(-40)
        assert azimuths.max() == pytest.approx(40)
        steps = np.abs(np.diff(azimuths, append=azimuths[0]))
        assert steps.max() < 7  # from the last to the first, too

    def test_cameras_without_the_centre_are_ignored(self) -> None:
        away = [looking([9.0, 9, 1 + i], [20, 20, i]) for i in range(30)]
        self.check(orbit([*ring(np.arange(0, 360, 30), TARGET), *away], TURN @ TARGET, 5), np.sqrt(5))

    @pytest.mark.parametrize("cameras", ["above", "one", "inside"])
    def test_degenerate_cameras(self, cameras: str) -> None:
        chosen = {
            "above": [Camera("x", np.diag([1.0, -1, -1]), np.array([0, 0, 3.0]), 50, 50, 32, 24, 64, 48)] * 2,
            "one": ring(np.array([10.0]), TARGET),
            "inside": [looking([0.0, 0, 0], [1, 0, 0]), looking([0.0, 0, 0], [0, 1, 0])],
        }[cameras]
        frames = orbit(chosen, np.zeros(3), 4)
        for camera in frames:
            assert np.isfinite([*camera.rotation.ravel(), *camera.translation]).all()
            assert camera.rotation @ camera.rotation.T == pytest.approx(np.eye(3), abs=1e-9)


class TestThrough:
    def test_passes_through_the_cameras(self) -> None:
        cameras = ring(np.array([0.0, 30, 60, 90]), TARGET)
        frames = path_through(cameras, 31)  # every tenth is one of them, as they are equally far apart
        for camera, frame in zip(cameras, frames[::10], strict=True):
            assert frame.center == pytest.approx(camera.center, abs=1e-6)
            assert frame.rotation == pytest.approx(camera.rotation, abs=1e-6)
        steps = np.linalg.norm(np.diff([frame.center for frame in frames], axis=0), axis=1)
        assert steps.max() < 1.6 * steps.min()
        turns = [frame.rotation @ before.rotation.T for before, frame in zip(frames, frames[1:], strict=False)]
        angles = np.degrees(Rotation.from_matrix(turns).magnitude())
        assert angles.max() < 1.3 * angles.min()
        assert angles.sum() == pytest.approx(90, abs=15)

    def test_halfway_between_two_is_the_mean(self) -> None:
        first, second = looking([0.0, -2, 0], [0, 0, 0]), looking([1.0, -2, 0], [9, -2, 0], focal=80.0)
        middle = path_through([first, second], 3)[1]
        assert middle.center == pytest.approx((first.center + second.center) / 2)
        assert middle.fx == pytest.approx(65)
        between = Rotation.from_matrix(middle.rotation @ first.rotation.T).magnitude()
        assert np.degrees(between) == pytest.approx(45)

    def test_cameras_of_several_sizes_share_the_first_one(self) -> None:
        large = looking([0.0, -2, 0], [0, 0, 0]).resized(128, 96)
        frames = path_through([looking([1.0, -2, 0], [0, 0, 0]), large], 5)
        assert {(frame.width, frame.height) for frame in frames} == {(64, 48)}
        assert frames[-1].fx == pytest.approx(50)

    def test_repeated_and_turning_cameras(self) -> None:
        one, turned = looking([0.0, -2, 0], [0, 0, 0]), looking([0.0, -2, 0], [1, -1, 0])
        still = path_through([one, one, one], 4)
        assert len(still) == 4
        assert all(frame.center == pytest.approx(one.center) for frame in still)
        turning = path_through([one, one, turned], 3)
        halfway = Rotation.from_matrix(turning[1].rotation @ one.rotation.T).magnitude()
        assert np.degrees(halfway) == pytest.approx(22.5)
        assert len(path_through([one], 7)) == 7


ENTRY = {"width": 64, "height": 48, "fx": 50.0, "fy": 51.0, "position": [1.0, 2, 3], "rotation": TURN.T.tolist()}


class TestFile:
    def write(self, folder: Path, content: object) -> Path:
        path = folder / "cameras.json"
        path.write_text(json.dumps(content))
        return path

    def test_cameras_of_a_model_folder(self, tmp_path: Path) -> None:
        (camera,) = read_cameras(self.write(tmp_path, [ENTRY]), 2)
        assert camera.center == pytest.approx([1, 2, 3])
        assert camera.rotation == pytest.approx(TURN)  # the file holds camera to world
        assert (camera.width, camera.height, camera.fx, camera.cx, camera.cy) == (32, 24, 25, 16, 12)
        (camera,) = read_cameras(self.write(tmp_path, [ENTRY | {"cx": 30, "cy": 20}]), 1)
        assert (camera.cx, camera.cy) == (30, 20)

    @pytest.mark.parametrize(
        "content",
        [
            *([], {}, [1], [ENTRY, {}], [ENTRY | {"position": [1, 2]}], [ENTRY | {"fx": "wide"}]),
            *(
                [ENTRY | {"fx": -1}],
                [ENTRY | {"fx": float("nan")}],
                [ENTRY | {"width": 10**9}],
                [ENTRY | {"height": 0}],
            ),
            *([ENTRY | {"rotation": np.diag([1, 1, -1]).tolist()}], [ENTRY | {"rotation": np.ones((3, 3)).tolist()}]),
            [ENTRY | {"position": [1, 2, float("inf")]}],
        ],
    )
    def test_bad_content(self, tmp_path: Path, content: object) -> None:
        with pytest.raises(UserError, match="cameras.json"):
            read_cameras(self.write(tmp_path, content), -1)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="orbt.*does not exist") as caught:
            read_cameras(tmp_path / "orbt", -1)
        assert "orbit" in str(caught.value)
