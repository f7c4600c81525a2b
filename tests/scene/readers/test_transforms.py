"""transforms.json: same cameras, photos and points as the COLMAP scene; variants; bad input."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

import train as train_script
from arguments import RGBParams
from gaussian_renderer import render
from scene.cameras import Camera, scene_bounds
from scene.dataset import Scene
from scene.formats.ply import load_ply
from scene.gaussian_model import create_from_points
from scene.layouts import ref_lerf
from scene.readers.capture import open_capture
from scene.readers.colmap import ColmapCamera, find_model, read_model, write_model
from scene.readers.image_files import read_image
from scene.readers.transforms_json import read_points
from scene.readers.undistort import undistorted
from tests.rigs.small_run import FAST, call
from tests.rigs.splat_scenes import one_thread
from tests.rigs.tiny_scene import HEIGHT, WIDTH, picture, write_mask, write_picture
from training.rgb import initial_gaussians
from utils.errors import UserError


def camera_to_world(rotation: np.ndarray, translation: np.ndarray) -> list[list[float]]:
    """Convert a COLMAP pose to OpenGL's transform_matrix: the inverse pose, with the camera's y and z axes negated."""
    matrix = np.linalg.inv(np.vstack([np.column_stack([rotation, translation]), [0, 0, 0, 1]]))
    matrix[:, 1:3] *= -1
    return matrix.tolist()


def write_points(path: Path, xyz: np.ndarray, rgb: np.ndarray | None) -> None:
    columns = [(axis, "<f4") for axis in "xyz"]
    columns += [(name, "u1") for name in ("red", "green", "blue")] if rgb is not None else []
    rows = np.zeros(len(xyz), columns)
    for i, axis in enumerate("xyz"):
        rows[axis] = xyz[:, i]
    for i, name in enumerate(("red", "green", "blue") if rgb is not None else ()):
        rows[name] = rgb[:, i]
    PlyData([PlyElement.describe(rows, "vertex")]).write(path)


def to_transforms(colmap_scene: Path, folder: Path, **extra: Any) -> Path:
    """Copy a scene with transforms.json and points3d.ply in place of the COLMAP model."""
    shutil.copytree(colmap_scene, folder, ignore=shutil.ignore_patterns("sparse"))
    model = read_model(find_model(colmap_scene))
    (camera,) = model.cameras.values()
    fx, fy, cx, cy = camera.focal_and_center
    content: dict[str, Any] = {"w": camera.width, "h": camera.height, "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy}
    content["frames"] = [
        {"file_path": f"./images/{image.name}", "transform_matrix": camera_to_world(image.rotation, image.tvec)}
        for image in model.images
    ]
    write_points(folder / "cloud.ply", model.xyz, model.rgb)
    content |= {"ply_file_path": "cloud.ply"} | extra
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def change(folder: Path, name: str = "transforms.json", **values: Any) -> None:
    """Set keys of the file; None removes a key."""
    content = json.loads((folder / name).read_text()) | values
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def assert_same_camera(one: Camera, other: Camera) -> None:
    assert (one.name, one.width, one.height) == (other.name, other.width, other.height)
    np.testing.assert_allclose(one.rotation, other.rotation, atol=1e-9)
    np.testing.assert_allclose(one.translation, other.translation, atol=1e-9)
    numbers = [[camera.fx, camera.fy, camera.cx, camera.cy] for camera in (one, other)]
    np.testing.assert_allclose(*numbers, rtol=1e-9)


def assert_same_scene(one: Scene, other: Scene) -> None:
    for split in ("train", "test"):
        views, others = getattr(one, split), getattr(other, split)
        assert [view.id for view in views] == [view.id for view in others]
        for view, same in zip(views, others, strict=True):
            assert_same_camera(view.camera, same.camera)
            np.testing.assert_array_equal(view.image(), same.image())
            assert [r.sentence_id for r in view.referrals] == [r.sentence_id for r in same.referrals]


@pytest.mark.parametrize("flags", [{}, {"resolution": 2}])
def test_the_same_scene_as_colmap(scene: Path, tmp_path: Path, flags: dict) -> None:
    """Cameras, photos, sentences, points and the initial Gaussians."""
    expected = ref_lerf.load(scene, **flags)
    found = ref_lerf.load(to_transforms(scene, tmp_path / "scene"), **flags)
    assert len(found.train) > 3
    assert len(found.test) > 0
    assert_same_scene(found, expected)
    assert found.split_rule == expected.split_rule
    assert found.extent == pytest.approx(expected.extent)
    np.testing.assert_array_equal(found.xyz, expected.xyz)
    np.testing.assert_array_equal(found.rgb, expected.rgb)
    pictures = []
    for loaded in (found, expected):
        model = create_from_points(loaded.xyz, loaded.rgb, 0, loaded.extent)
        with torch.no_grad(), one_thread():
            pictures.append(render(loaded.test[0].camera, model, torch.zeros(3)).image)
    assert pictures[1].std() > 0.02
    torch.testing.assert_close(*pictures, atol=1e-4, rtol=0)


def test_colmap_is_preferred(scene: Path, tmp_path: Path) -> None:
    folder = to_transforms(scene, tmp_path / "scene")
    write_model(folder / "sparse/0", read_model(find_model(scene)))
    assert open_capture(folder, "images").kind == "the COLMAP model"


def test_every_8th_and_listed_test_views(scene: Path, tmp_path: Path) -> None:
    folder = to_transforms(scene, tmp_path / "scene")
    shutil.rmtree(folder / "json")
    assert not ref_lerf.load(folder).test
    assert len(ref_lerf.load(folder, eval=True).test) == 2
    names = [frame["file_path"] for frame in json.loads((folder / "transforms.json").read_text())["frames"]]
    change(folder, test_filenames=names[2:4])
    loaded = ref_lerf.load(folder)
    assert [f"./images/{view.camera.name}" for view in loaded.test] == names[2:4]
    assert loaded.split_rule == "the transforms files"


def test_smaller_copies_of_the_photos(scene: Path, tmp_path: Path) -> None:
    """-i names another image folder, and intrinsics scale with its photos."""
    folder = to_transforms(scene, tmp_path / "scene")
    for path in (folder / "images").iterdir():
        write_picture(folder / "images_2" / path.name, cv2.resize(read_image(path), (40, 30)))
    camera = ref_lerf.load(folder, images="images_2").train[0].camera
    full = ref_lerf.load(folder).train[0].camera
    assert (camera.width, camera.height) == (40, 30)
    assert camera.fx == pytest.approx(full.fx / 2)
    with pytest.raises(UserError, match="images_9.*-i"):
        ref_lerf.load(folder, images="images_9")

    change(folder, w=None, h=None)  # fl_x is in pixels of the photos that file_path names
    unsized = ref_lerf.load(folder, images="images_2").train[0].camera
    assert_same_camera(unsized, camera)
    shutil.rmtree(folder / "images")
    with pytest.raises(UserError, match="w and h"):
        ref_lerf.load(folder, images="images_2")
    change(folder, fl_x=None, fl_y=None, cx=None, cy=None, camera_angle_x=2 * math.atan(40 / full.fx))
    assert ref_lerf.load(folder, images="images_2").train[0].camera.fx == pytest.approx(full.fx / 2)


def test_photos_of_different_sizes_get_their_own_cameras(scene: Path, tmp_path: Path) -> None:
    """Without w and h, the angle of view applies to photos of any size."""
    folder = to_transforms(scene, tmp_path / "scene")
    change(folder, w=None, h=None, fl_x=None, fl_y=None, cx=None, cy=None, camera_angle_x=1.0)
    path = sorted((folder / "images").iterdir())[3]
    write_picture(path, cv2.resize(read_image(path), (50, 50)))
    capture = open_capture(folder, "images")
    sizes = {image.name: capture.cameras[image.camera_id] for image in capture.images}
    assert (sizes[path.name].width, sizes[path.name].height) == (50, 50)
    assert len(capture.cameras) == 2


@pytest.mark.parametrize(
    ("values", "model", "params"),
    [
        ({"k1": -0.05, "k2": 0.01, "p1": 1e-3, "p2": -1e-3}, "OPENCV", [-0.05, 0.01, 1e-3, -1e-3]),
        ({"k1": -0.05, "k3": 0.02}, "FULL_OPENCV", [-0.05, 0, 0, 0, 0.02, 0, 0, 0]),
        ({"k1": 0.02, "k2": 0.01, "k3": 0.003, "k4": 0.001, "is_fisheye": True}, "OPENCV_FISHEYE", None),
        ({"k1": 0.02, "k4": 0.001, "camera_model": "OPENCV_FISHEYE"}, "OPENCV_FISHEYE", [0.02, 0, 0, 0.001]),
        ({"k1": 0.0, "k2": 0.0, "camera_model": "OPENCV"}, "PINHOLE", []),
    ],
)
def test_distortion_matches_colmap(scene: Path, tmp_path: Path, values: dict, model: str, params: list) -> None:
    folder = to_transforms(scene, tmp_path / "scene", **values)
    (camera,) = open_capture(folder, "images").cameras.values()
    assert camera.model == model
    params = params if params is not None else [0.02, 0.01, 0.003, 0.001]
    assert camera.params[4:].tolist() == params
    same = ColmapCamera(1, model, 80, 60, np.array([*camera.params[:4], *params]))
    view = ref_lerf.load(folder).train[0]
    expected = undistorted(same)
    assert (view.camera.fx, view.camera.fy) == (expected.fx, expected.fy)
    plain = read_image(view.image_path)
    np.testing.assert_array_equal(view.image(), expected.remap(plain) if expected.remap else plain)
    assert (expected.remap is None) == (model == "PINHOLE")


def test_frames_can_have_their_own_cameras(scene: Path, tmp_path: Path) -> None:
    folder = to_transforms(scene, tmp_path / "scene")
    content = json.loads((folder / "transforms.json").read_text())
    content["frames"][1] |= {"fl_x": 99.0, "fl_y": 98.0}
    change(folder, frames=content["frames"])
    capture = open_capture(folder, "images")
    assert len(capture.cameras) == 2
    assert capture.cameras[capture.images[1].camera_id].focal_and_center[:2] == (99, 98)


@pytest.fixture
def blender(tmp_path: Path) -> Path:
    """A scene like NeRF-synthetic: RGBA photos in two folders, cameras on a circle around the origin, no points."""
    folder = tmp_path / "lego"
    for split, count in (("train", 6), ("test", 2), ("val", 1)):
        frames = []
        for index in range(count):
            angle = index + len(split)
            eye = 4.0 * np.array([math.cos(angle), math.sin(angle), 0.5])
            back = eye / np.linalg.norm(eye)  # OpenGL looks along -z
            right = np.cross((0, 0, 1.0), back)
            right /= np.linalg.norm(right)
            matrix = np.eye(4)
            matrix[:3] = np.stack([right, np.cross(back, right), back, eye], axis=1)
            frames.append({"file_path": f"./{split}/r_{index}", "rotation": 0.1, "transform_matrix": matrix.tolist()})
            rgba = np.dstack(
                [picture(index)[..., ::-1], np.tile(np.linspace(0, 255, WIDTH, dtype=np.uint8), (HEIGHT, 1))]
            )
            path = folder / split / f"r_{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), rgba)
            write_mask(path.with_name(f"r_{index}_depth_0001.png"))
        content = {"camera_angle_x": 0.6911, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(content))
    return folder


def test_blender_scene(blender: Path) -> None:
    loaded = ref_lerf.load(blender)
    assert [view.id for view in loaded.train] == [f"train/r_{i}" for i in range(6)]
    assert [view.id for view in loaded.test] == ["test/r_0", "test/r_1"]
    camera = loaded.train[3].camera
    assert (camera.width, camera.height, camera.cx, camera.cy) == (WIDTH, HEIGHT, WIDTH / 2, HEIGHT / 2)
    assert camera.fx == camera.fy == pytest.approx(0.5 * WIDTH / math.tan(0.6911 / 2))
    in_camera = camera.rotation @ np.zeros(3) + camera.translation
    np.testing.assert_allclose(in_camera, [0, 0, 4 * math.sqrt(1.25)], atol=1e-9)  # straight ahead
    above = camera.rotation @ np.array([0, 0, 0.5]) + camera.translation
    assert above[1] < 0  # up in the world is up in the picture, where y points down
    center, half_side = scene_bounds([view.camera for view in loaded.train])
    np.testing.assert_allclose(center, 0, atol=1e-9)
    assert half_side == pytest.approx(4 * math.sqrt(1.25) * math.tan(0.6911 / 2) * HEIGHT / WIDTH)


@pytest.mark.parametrize("white", [False, True])
def test_transparent_photos_are_composited_over_the_background(blender: Path, white: bool) -> None:
    found = ref_lerf.load(blender, white_background=white).train[2].image()
    alpha = np.linspace(0, 255, WIDTH, dtype=np.uint8)[None, :, None] / 255
    expected = picture(2) * alpha + (255 if white else 0) * (1 - alpha)
    assert np.abs(found - expected).max() <= 0.51
    assert (found[:, 0] == (255 if white else 0)).all()


def test_random_points(blender: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = ref_lerf.load(blender)
    assert not loaded.has_points
    xyz, rgb = loaded.random_points(500, seed=3)
    assert (xyz.shape, xyz.dtype, rgb.shape, rgb.dtype) == ((500, 3), np.float32, (500, 3), np.uint8)
    _, half_side = scene_bounds([view.camera for view in loaded.train])
    assert 0.9 * half_side < np.abs(xyz).max() <= half_side
    np.testing.assert_array_equal(loaded.random_points(500, seed=3)[0], xyz)
    assert (loaded.random_points(500, seed=4)[0] != xyz).any()
    params = RGBParams(init_points=300)
    with caplog.at_level("INFO", logger="refersplat"):
        model = initial_gaussians(loaded, params, 0, 3, torch.device("cpu"))
    assert "300 random points" in caplog.text
    np.testing.assert_array_equal(model.xyz, loaded.random_points(300, seed=3)[0])
    asked = initial_gaussians(loaded, RGBParams(init="random", init_points=300), 0, 3, torch.device("cpu"))
    assert torch.equal(asked.xyz, model.xyz)
    assert torch.equal(asked.features_dc, model.features_dc)
    with pytest.raises(UserError, match="--init random"):
        _ = loaded.xyz
    write_points(blender / "points3d.ply", np.eye(3), None)
    again = ref_lerf.load(blender)
    np.testing.assert_array_equal(again.xyz, np.eye(3))
    assert set(again.rgb.ravel()) == {128}


def test_bounds_of_outward_and_parallel_cameras() -> None:
    def camera(eye: np.ndarray, forward: np.ndarray) -> Camera:
        right = np.cross((0, 1.0, 0), forward)
        rotation = np.stack([right, np.cross(forward, right), forward])
        return Camera("c", rotation, -rotation @ eye, 50, 50, 40, 30, 80, 60)

    around = [np.array([math.sin(a), 0, math.cos(a)]) for a in np.linspace(0, 6, 12)]
    for cameras in ([camera(d, d) for d in around], [camera(d, np.array([0, 0, 1.0])) for d in around]):
        center, half_side = scene_bounds(cameras)
        np.testing.assert_allclose(center, np.mean([c.center for c in cameras], axis=0))
        assert half_side == pytest.approx(3 * max(np.linalg.norm(c.center - center) for c in cameras))


@pytest.mark.slow
def test_training_runs(scene: Path, blender: Path, tmp_path: Path) -> None:
    """Both stages from points and sentences of transforms.json; the RGB stage of a Blender scene without points."""
    folder = to_transforms(scene, tmp_path / "scene")
    assert call(train_script, "-s", folder, "-m", tmp_path / "m", *FAST) == 0
    assert (tmp_path / "m/referring/iteration_8.safetensors").is_file()
    flags = ["--device", "cpu", "--rgb_iterations", "3", "--iterations", "0", "--sh_degree", "0", "-w"]
    flags += ["--init_points", "5000"]
    assert call(train_script, "-s", blender, "-m", tmp_path / "lego_model", *flags) == 0
    model = load_ply(tmp_path / "lego_model/point_cloud/iteration_3/point_cloud.ply")
    assert len(model) == 5000


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"frames": []}, "frames"),
        ({"frames": [{"file_path": "images/a.png"}]}, "transform_matrix"),
        ({"frames": [{"transform_matrix": np.eye(4).tolist()}]}, "file_path"),
        ({"frames": [{"file_path": "../a.png", "transform_matrix": np.eye(4).tolist()}]}, r"\.\./a.png"),
        ({"frames": [{"file_path": "/a.png", "transform_matrix": np.eye(4).tolist()}]}, "/a.png"),
        ({"frames": [{"file_path": "images/a.png", "transform_matrix": (2 * np.eye(4)).tolist()}]}, "scaled"),
        (
            {"frames": [{"file_path": "images/a.png", "transform_matrix": np.diag([1.0, 1, -1, 1]).tolist()}]},
            "mirrored",
        ),
        ({"frames": [{"file_path": "images/a.png", "transform_matrix": [[math.nan] * 4] * 4}]}, "finite"),
        ({"frames": [{"file_path": "images/a.png", "transform_matrix": "x"}]}, "transform_matrix"),
        ({"frames": [{"file_path": "images/none.png", "transform_matrix": np.eye(4).tolist()}]}, "none.png"),
        ({"fl_x": None, "fl_y": None}, "camera_angle_x"),
        ({"fl_x": "wide"}, "fl_x"),
        ({"fl_x": -3.0}, "focal"),
        ({"w": 0}, "pixels"),
        ({"w": 77}, "another shape"),
        ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR"),
        ({"k4": 0.1}, "k4"),
        ({"ply_file_path": "../cloud.ply"}, "ply_file_path"),
        ({"ply_file_path": "missing.ply"}, "missing.ply"),
    ],
)
def test_bad_files_are_refused(scene: Path, tmp_path: Path, values: dict, match: str) -> None:
    folder = to_transforms(scene, tmp_path / "scene")
    change(folder, **values)
    with pytest.raises(UserError, match=match):
        ref_lerf.load(folder)


def test_bad_points_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n")
    with pytest.raises(UserError, match="x, y and z"):
        read_points(tmp_path / "a.ply")
    write_points(tmp_path / "b.ply", np.array([[0, math.inf, 0]]), None)
    with pytest.raises(UserError, match="finite"):
        read_points(tmp_path / "b.ply")
