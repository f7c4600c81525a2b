"""COLMAP files: compared with bytes written by hand from COLMAP's documentation, and damaged in every way."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from scene.readers.colmap import (
    ColmapCamera,
    ColmapImage,
    ColmapModel,
    find_model,
    read_model,
    read_points,
    write_model,
)
from utils.errors import UserError

SECONDS, BYTES = 1.0, 200e6  # bounds for any damaged file; processor time does not depend on other programs
FUZZ = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def cameras_bin() -> bytes:
    pinhole = struct.pack("<IiQQ4d", 1, 1, 640, 480, 500.0, 510.0, 320.0, 240.0)
    radial = struct.pack("<IiQQ4d", 7, 2, 100, 80, 90.0, 50.0, 40.0, -0.1)
    return struct.pack("<Q", 2) + pinhole + radial


def images_bin() -> bytes:
    """Three images; the second has no 2D points."""
    content = struct.pack("<Q", 3)
    for index, (name, points) in enumerate([("a.jpg", 2), ("left/b c.png", 0), ("é.jpg", 1)]):
        content += struct.pack("<I4d3dI", index + 5, 2.0, 0.0, 0.0, 2.0 * index, 0.1, 0.2, index, (1, 7, 1)[index])
        content += name.encode() + b"\0" + struct.pack("<Q", points)
        content += struct.pack("<ddq", 1.5, 2.5, -1) * points
    return content


def points_bin() -> bytes:
    content = struct.pack("<Q", 4)
    for index, track in enumerate([2, 0, 3, 1]):
        content += struct.pack("<Q3d3Bd", index + 10, index, -1.5, 1e3, 255, index, 0, 0.7)
        content += struct.pack("<Q", track) + struct.pack("<II", 5, 1) * track
    return content


CAMERAS_TXT = b"# a comment\n1 PINHOLE 640 480 500 510 320 240\n7 SIMPLE_RADIAL 100 80 90 50 40 -0.1\n"
IMAGES_TXT = (
    "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n"
    "5 2 0 0 0 0.1 0.2 0 1 a.jpg\n1.5 2.5 -1 1.5 2.5 -1\n"
    "6 2 0 0 2 0.1 0.2 1 7 left/b c.png\n\n"
    "7 2 0 0 4 0.1 0.2 2 1 é.jpg\n1.5 2.5 -1"
).encode()
POINTS_TXT = (
    b"# POINT3D_ID\n10 0 -1.5 1000 255 0 0 0.7 5 1 5 1\n11 1 -1.5 1000 255 1 0 0.7\n"
    b"12 2 -1.5 1000 255 2 0 0.7 5 1 5 1 5 1\n13 3 -1.5 1000 255 3 0 0.7 5 1\n"
)
FILES = {
    "cameras.bin": cameras_bin(),
    "images.bin": images_bin(),
    "points3D.bin": points_bin(),
    "cameras.txt": CAMERAS_TXT,
    "images.txt": IMAGES_TXT,
    "points3D.txt": POINTS_TXT,
}


def write_files(folder: Path, suffix: str, **replaced: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        if name.endswith(suffix):
            (folder / name).write_bytes(replaced.get(name.partition(".")[0], content))
    return folder


@pytest.mark.parametrize("suffix", [".bin", ".txt"])
def test_reads_the_documented_format(tmp_path: Path, suffix: str) -> None:
    model = read_model(write_files(tmp_path, suffix))
    assert {key: camera.model for key, camera in model.cameras.items()} == {1: "PINHOLE", 7: "SIMPLE_RADIAL"}
    assert model.cameras[1].focal_and_center == (500, 510, 320, 240)
    assert model.cameras[7].focal_and_center == (90, 90, 50, 40)
    assert (model.cameras[7].width, model.cameras[7].height) == (100, 80)
    assert [image.name for image in model.images] == ["a.jpg", "left/b c.png", "é.jpg"]
    assert [image.camera_id for image in model.images] == [1, 7, 1]
    for index, image in enumerate(model.images):
        expected = Rotation.from_quat([0, 0, index, 1]).as_matrix()  # scipy's order is x y z w
        np.testing.assert_allclose(image.rotation, expected, atol=1e-12)
        np.testing.assert_array_equal(image.tvec, [0.1, 0.2, index])
    np.testing.assert_array_equal(model.xyz, [[i, -1.5, 1000] for i in range(4)])
    np.testing.assert_array_equal(model.rgb, [[255, i, 0] for i in range(4)])
    assert model.rgb.dtype == np.uint8


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), points=st.integers(0, 30))
def test_round_trip_is_exact(tmp_path: Path, seed: int, points: int) -> None:
    rng = np.random.default_rng(seed)
    cameras = {3: ColmapCamera(3, "OPENCV", 64, 48, rng.uniform(0.1, 50, 8))}
    images = [ColmapImage(i, f"d/{i}.png", rng.normal(size=4), rng.normal(size=3) * 10.0**i, 3) for i in range(1, 5)]
    xyz = rng.normal(size=(points, 3)) * 1e3
    write_model(tmp_path, ColmapModel(cameras, images, xyz, rng.integers(0, 256, (points, 3)).astype(np.uint8)))
    again = read_model(tmp_path)
    np.testing.assert_array_equal(again.cameras[3].params, cameras[3].params)
    np.testing.assert_array_equal(again.xyz, xyz)
    for read, written in zip(again.images, images, strict=True):
        np.testing.assert_allclose(read.qvec, written.qvec / np.linalg.norm(written.qvec), rtol=1e-15)
        np.testing.assert_array_equal(read.tvec, written.tvec)
        assert (read.id, read.name, read.camera_id) == (written.id, written.name, written.camera_id)


def test_folders_and_order_of_preference(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sparse/0 and .*sparse\. "):
        find_model(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        find_model(tmp_path / "nowhere")
    write_files(tmp_path / "sparse", ".txt")
    assert find_model(tmp_path) == tmp_path / "sparse"
    write_files(tmp_path / "sparse/0", ".txt", cameras=b"1 PINHOLE 640 480 500 510 320 240\n7 PINHOLE 1 1 1 1 0 0")
    assert find_model(tmp_path) == tmp_path / "sparse/0"
    write_files(tmp_path / "sparse/0", ".bin")
    assert read_model(tmp_path / "sparse/0").cameras[7].model == "SIMPLE_RADIAL"  # from .bin
    (tmp_path / "sparse/0/images.bin").unlink()
    assert read_model(tmp_path / "sparse/0").cameras[7].model == "PINHOLE"  # from .txt


def test_points_are_optional(tmp_path: Path) -> None:
    write_files(tmp_path, ".bin")
    (tmp_path / "points3D.bin").unlink()
    assert len(read_model(tmp_path, points=False).images) == 3
    with pytest.raises(UserError, match=r"neither points3D\.bin nor points3D\.txt.*--start_checkpoint"):
        read_model(tmp_path)


def test_a_million_points_in_seconds(tmp_path: Path) -> None:
    """Tracks of different lengths, so that no fixed stride fits."""
    count = 1_000_000
    tracks = np.arange(count) % 4
    record = np.zeros(count, [("id", "<u8"), ("xyz", "<f8", 3), ("rest", "u1", 11), ("track", "<u8")])
    record["id"], record["xyz"], record["track"] = np.arange(count), np.arange(count)[:, None], tracks
    used = np.arange(51 + 3 * 8)[None] < 51 + 8 * tracks[:, None]
    padded = np.zeros(used.shape, np.uint8)
    padded[:, :51] = record.view(np.uint8).reshape(count, 51)
    (tmp_path / "points3D.bin").write_bytes(struct.pack("<Q", count) + padded[used].tobytes())
    start = time.process_time()
    xyz, _ = read_points(tmp_path)
    assert time.process_time() - start < 5
    np.testing.assert_array_equal(xyz, np.repeat(np.arange(count)[:, None], 3, axis=1))


def bounded_read(folder: Path) -> str | None:
    """Read a model within the bounds on time and memory, and return the message if it is refused."""
    tracemalloc.start()
    start = time.process_time()
    message = None
    try:
        model = read_model(folder)
    except UserError as error:
        message = str(error)
    else:
        assert np.isfinite(model.xyz).all()
        assert len(model.xyz) == len(model.rgb)
        for image in model.images:
            assert image.camera_id in model.cameras
            np.testing.assert_allclose(image.rotation @ image.rotation.T, np.eye(3), atol=1e-9)
            assert np.isfinite(image.tvec).all()
            assert not image.name.startswith("/")
            assert ".." not in Path(image.name).parts
        for camera in model.cameras.values():
            assert min(camera.width, camera.height, *camera.focal_and_center[:2]) > 0
            assert np.isfinite(camera.params).all()
    seconds = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < SECONDS
    assert peak < BYTES
    return message


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_every_truncation_is_refused(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, ".bin")
    for length in range(len(FILES[name])):
        (tmp_path / name).write_bytes(FILES[name][:length])
        message = bounded_read(tmp_path)
        assert message is not None, f"{name} cut to {length} bytes was accepted"
        assert f"{tmp_path / name}, byte " in message
        assert "colmap model_converter" in message
        assert "cut short" in message or "closing NUL" in message


@pytest.mark.parametrize("name", list(FILES))
@FUZZ
@given(data=st.data())
def test_flipped_bits(tmp_path: Path, name: str, data: st.DataObject) -> None:
    content = bytearray(FILES[name])
    for bit in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=6)):
        content[bit // 8] ^= 1 << bit % 8
    write_files(tmp_path, Path(name).suffix, **{Path(name).stem: bytes(content)})
    message = bounded_read(tmp_path)
    assert message is None or str(tmp_path) in message


@pytest.mark.parametrize("name", list(FILES))
@FUZZ
@given(data=st.data())
def test_inserted_and_removed_bytes(tmp_path: Path, name: str, data: st.DataObject) -> None:
    content = FILES[name]
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, len(content)))
    piece = data.draw(st.binary(max_size=40) | st.sampled_from([b"nan", b"1e999", b"9" * 5000, b"-1", b"\n\n"]))
    write_files(tmp_path, Path(name).suffix, **{Path(name).stem: content[:start] + piece + content[stop:]})
    message = bounded_read(tmp_path)
    assert message is None or str(tmp_path) in message


@pytest.mark.parametrize("count", [5, 10**4, 2**31, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_huge_counts(tmp_path: Path, name: str, count: int) -> None:
    """The count of the file itself, and those of 2D points and of a track."""
    write_files(tmp_path, ".bin")
    places = {"cameras.bin": [0], "images.bin": [0, 8 + 64 + 6], "points3D.bin": [0, 8 + 43]}[name]
    for place in places:
        content = bytearray(FILES[name])
        content[place : place + 8] = struct.pack("<Q", count)
        (tmp_path / name).write_bytes(bytes(content))
        message = bounded_read(tmp_path)
        assert message is not None
        assert f"{tmp_path / name}, byte " in message


def test_a_large_file_of_zeros(tmp_path: Path) -> None:
    for name in ("cameras", "images", "points3D"):
        write_files(tmp_path, ".bin", **{name: struct.pack("<Q", 2**20) + bytes(50_000_000)})
        message = bounded_read(tmp_path)
        assert message is not None
        assert f"{name}.bin" in message


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("content", [b"1 " * 10_000_000, b"1 2 3 4 5 6 7 8 9 10\n" + b"1 " * 10_000_000])
def test_endless_lines(tmp_path: Path, name: str, content: bytes) -> None:
    write_files(tmp_path, ".txt", **{name: content})
    message = bounded_read(tmp_path)
    assert message is not None
    assert f"{name}.txt, line " in message


def changed(name: str, old: bytes, new: bytes) -> dict[str, bytes]:
    content = FILES[name]
    assert old in content
    return {Path(name).stem: content.replace(old, new, 1)}


BAD_TEXT = {
    "unknown model": (changed("cameras.txt", b"PINHOLE", b"POLAROID"), "line 2: .*'POLAROID'.*image_undistorter"),
    "no size": (changed("cameras.txt", b"640", b"0"), r"line 2: found camera 1 of 0 x 480"),
    "negative focal": (changed("cameras.txt", b"500", b"-500"), "line 2: .*focal lengths above 0"),
    "nan focal": (changed("cameras.txt", b"500", b"nan"), "line 2: .*finite"),
    "few parameters": (changed("cameras.txt", b" 240", b""), "line 2: found 3 parameters of PINHOLE"),
    "camera twice": (changed("cameras.txt", b"\n7 ", b"\n1 "), "line 3: found camera 1 twice"),
    "no cameras": ({"cameras": b"# nothing\n"}, "with camera 1, expected one of the 0"),
    "no images": ({"images": b""}, "no image at all"),
    "zero quaternion": (changed("images.txt", b"5 2 0 0 0", b"5 0 0 0 0"), "line 2: .*quaternion"),
    "infinite pose": (changed("images.txt", b"0.1", b"inf"), "line 2: .*finite"),
    "image id twice": (changed("images.txt", b"\n6 ", b"\n5 "), "image 5 .* twice"),
    "image name twice": (changed("images.txt", b"left/b c.png", b"./a.jpg"), r"\('a.jpg'\) twice"),
    "absolute name": (changed("images.txt", b"a.jpg", b"/etc/passwd"), "line 2: .*'/etc/passwd'"),
    "climbing name": (changed("images.txt", b"a.jpg", b"x/../../a.jpg"), "line 2: .*without '..'"),
    "windows climb": (changed("images.txt", b"a.jpg", b"..\\a.jpg"), "line 2: .*without '..'"),
    "drive": (changed("images.txt", b"a.jpg", b"C:/a.jpg"), "line 2: .*relative"),
    "not utf-8": (changed("images.txt", b"a.jpg", b"\xff.jpg"), "line 2: .*UTF-8"),
    "unknown camera": (changed("images.txt", b" 1 a.jpg", b" 9 a.jpg"), "'a.jpg' with camera 9"),
    "odd 2D points": (changed("images.txt", b"1.5 2.5 -1", b"1.5 2.5"), "line 3: .*triples"),
    "colour": (changed("points3D.txt", b" 255 0 0", b" 256 0 0"), "line 2: .*R G B"),
    "nan point": (changed("points3D.txt", b"-1.5", b"nan"), "points3D.txt: .*number 1 .*finite"),
    "point id twice": (changed("points3D.txt", b"\n11", b"\n10"), "1 points with an id used before"),
    "word": (changed("points3D.txt", b"-1.5", b"x"), "line 2: "),
}


@pytest.mark.parametrize("case", list(BAD_TEXT))
def test_bad_text(tmp_path: Path, case: str) -> None:
    replaced, message = BAD_TEXT[case]
    write_files(tmp_path, ".txt", **replaced)
    with pytest.raises(UserError, match=message):
        read_model(tmp_path)


BAD_BINARY = {
    "unknown model": (
        changed("cameras.bin", struct.pack("<Ii", 1, 1), struct.pack("<Ii", 1, 99)),
        "byte 8: .*number 99",
    ),
    "zero quaternion": (changed("images.bin", struct.pack("<4d", 2, 0, 0, 0), bytes(32)), "byte 8: .*quaternion"),
    "climbing name": (changed("images.bin", b"a.jpg", b"../ab"), "byte 8: .*without '..'"),
    "newline in a name": (changed("images.bin", b"a.jpg", b"a\njpg"), "control"),
    "nan point": (changed("points3D.bin", struct.pack("<d", -1.5), struct.pack("<d", np.nan)), "number 1 .*finite"),
    "point id twice": (changed("points3D.bin", struct.pack("<Q", 11), struct.pack("<Q", 10)), "1 points with an id"),
    "left over": ({"points3D": FILES["points3D.bin"] + b"\0"}, "1 bytes after the last of 4 points"),
}


@pytest.mark.parametrize("case", list(BAD_BINARY))
def test_bad_binary(tmp_path: Path, case: str) -> None:
    replaced, message = BAD_BINARY[case]
    write_files(tmp_path, ".bin", **replaced)
    with pytest.raises(UserError, match=message):
        read_model(tmp_path)
