"""Views and scenes: picture formats, sizes, names, the cache."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from scene.dataset import sentence_id
from scene.layouts import ref_lerf
from scene.readers.capture import view_ids
from scene.readers.colmap import ColmapCamera
from scene.readers.image_files import ImageCache, image_size, is_transparent, read_image, read_mask
from scene.readers.undistort import undistorted
from tests.rigs.tiny_scene import (
    HEIGHT,
    WIDTH,
    frame,
    picture,
    write_mask,
    write_picture,
    write_referring_scene,
    write_scene,
)
from utils.errors import UserError


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("shape", [(24, 32), (24, 32, 3), (24, 32, 4), (7, 300, 3)])
def test_image_size_agrees_with_the_decoder(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    if len(shape) == 3 and shape[2] == 4 and suffix in (".jpg", ".bmp"):
        pytest.skip("no alpha in this format")
    path = tmp_path / f"é{suffix}"
    cv2.imencode(suffix, np.full(shape, 100, np.uint8))[1].tofile(path)
    assert image_size(path) == (shape[1], shape[0])
    assert read_image(path).shape == (*shape[:2], 3)


def test_jpeg_orientation_is_ignored_like_colmap_does(tmp_path: Path) -> None:
    """An EXIF segment that turns the picture by 90 degrees, before the start of frame."""
    coded = cv2.imencode(".jpg", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    path = tmp_path / "turned.jpg"
    path.write_bytes(coded[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + coded[2:])
    assert cv2.imread(str(path)).shape[:2] == (32, 24)  # the tag is really there
    assert image_size(path) == (32, 24)
    assert read_image(path).shape == (24, 32, 3)


def test_grey_and_transparent_pictures(tmp_path: Path) -> None:
    rgb = picture(3)
    grey, rgba = tmp_path / "grey.png", tmp_path / "rgba.png"
    cv2.imwrite(str(grey), rgb[..., 0])
    cv2.imwrite(str(rgba), np.dstack([rgb[..., ::-1], np.full(rgb.shape[:2], 7, np.uint8)]))
    np.testing.assert_array_equal(read_image(grey), np.repeat(rgb[..., :1], 3, axis=2))
    np.testing.assert_array_equal(read_image(rgba), rgb)


def test_mask_values_and_channels(tmp_path: Path) -> None:
    truth = np.zeros((24, 32), bool)
    truth[5:9, 6:20] = True
    one = truth.astype(np.uint8)  # the value 1, not 255
    three = np.dstack([one * 0, one * 0, one])
    opaque = np.dstack([one * 9] * 3 + [np.full_like(one, 255)])
    cut_out = np.dstack([np.full_like(one, 255)] * 3 + [one * 255])
    for index, mask in enumerate([one, three, opaque, cut_out, one.astype(np.uint16) * 256]):
        path = tmp_path / f"{index}.png"
        assert cv2.imwrite(str(path), mask)
        np.testing.assert_array_equal(read_mask(path), truth)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\0\1"])
def test_unreadable_pictures_name_the_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    for read in (image_size, read_image, read_mask):
        with pytest.raises(UserError, match=r"broken\.png is no picture .*again, or remove it"):
            read(path)
    with pytest.raises(UserError, match=r"gone\.png cannot be read"):
        image_size(tmp_path / "gone.png")


def test_long_comment_in_a_png_is_no_error(tmp_path: Path) -> None:
    """Pillow refuses compressed comments that are longer than a megabyte."""
    comments = PngInfo()
    comments.add_text("Comment", "a" * (2 << 20), zip=True)
    Image.new("RGB", (8, 6)).save(tmp_path / "photo.png", pnginfo=comments)
    assert image_size(tmp_path / "photo.png") == (8, 6)
    assert not is_transparent(tmp_path / "photo.png")


@pytest.mark.parametrize("suffix", [".bmp", ".webp"])
def test_truncated_pictures_are_refused_by_their_size_already(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=path.name):
        image_size(path)


def test_pictures_and_cameras_at_lower_resolution(tmp_path: Path) -> None:
    write_referring_scene(tmp_path, [1, 2])
    full, half = (ref_lerf.load(tmp_path, resolution=r).train[1] for r in (-1, 2))
    np.testing.assert_array_equal(full.image(), picture(1))
    mean_of_four = picture(1).astype(float).reshape(12, 2, 16, 2, 3).mean(axis=(1, 3))
    assert np.abs(half.image() - mean_of_four).max() <= 1
    assert (half.camera.width, half.camera.height) == (16, 12)
    camera = full.camera
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (30, 31, 16.5, 11.5)
    assert (half.camera.fx, half.camera.fy, half.camera.cx, half.camera.cy) == (15, 15.5, 8.25, 5.75)
    np.testing.assert_array_equal(camera.center, [1, 0, 0])
    mask = full.mask(full.referrals[0])
    assert mask.dtype == bool
    np.testing.assert_array_equal(np.flatnonzero(mask.all(axis=0)), range(4, 12))
    np.testing.assert_array_equal(np.flatnonzero(half.mask(half.referrals[0]).all(axis=0)), range(2, 6))


def test_masks_shrink_by_nearest_neighbour(tmp_path: Path) -> None:
    """8 columns from an odd one: interpolation would make 3 or 5 of them, not 4."""
    write_referring_scene(tmp_path, [1])
    write_mask(tmp_path / f"gt_mask/{frame(1)}/red cup.png", left=5)
    view = ref_lerf.load(tmp_path, resolution=2).train[0]
    assert view.mask(view.referrals[0]).all(axis=0).sum() == 4


def test_smaller_copies_of_the_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """images_2 of 3DGS: 33x25 becomes 16x12, within a pixel of the aspect ratio."""
    write_scene(tmp_path, ["a.png", "b.png"], ColmapCamera(1, "PINHOLE", 33, 25, np.array([30, 30, 16.5, 12.5])))
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / "images_2" / name, picture(0, 16, 12))
    view = ref_lerf.load(tmp_path, images="images_2").train[0]
    assert view.image().shape == (12, 16, 3)
    assert (view.camera.cx, view.camera.cy) == pytest.approx((8, 6))
    assert (
        "images of another size than their COLMAP camera, intrinsics scaled with them: 2 (a.png, b.png)" in caplog.text
    )


def test_pictures_of_another_shape_are_refused(tmp_path: Path) -> None:
    write_scene(tmp_path, ["a.png"])
    write_picture(tmp_path / "images/a.png", picture(0, 24, 32))
    with pytest.raises(UserError, match=r"a\.png is 24x32, but its COLMAP camera 1 is 32x24.*resized without cropping"):
        ref_lerf.load(tmp_path)


def test_a_picture_that_changes_during_the_run(tmp_path: Path) -> None:
    write_scene(tmp_path, ["a.png"])
    view = ref_lerf.load(tmp_path).train[0]
    write_picture(tmp_path / "images/a.png", picture(0, 64, 48))
    with pytest.raises(UserError, match=r"a\.png is 64x48, but was 32x24"):
        view.image()


def test_distorted_pictures_and_masks_go_through_the_same_remap(tmp_path: Path) -> None:
    camera = ColmapCamera(1, "SIMPLE_RADIAL", WIDTH, HEIGHT, np.array([20.0, 16, 12, 0.3]))
    write_referring_scene(tmp_path, [1])
    write_scene(tmp_path, [f"{frame(1)}.png"], camera)
    write_mask(tmp_path / f"gt_mask/{frame(1)}/red cup.png", width=2 * WIDTH, height=2 * HEIGHT)
    view = ref_lerf.load(tmp_path).train[0]
    pinhole = undistorted(camera)
    assert view.camera.fx == pinhole.fx
    np.testing.assert_array_equal(view.image(), pinhole.remap(picture(0)))
    stripe = np.zeros((HEIGHT, WIDTH), np.uint8)
    stripe[:, 4:12] = 1
    np.testing.assert_array_equal(view.mask(view.referrals[0]), pinhole.remap(stripe, nearest=True) > 0)


def test_unsupported_lens_names_the_exact_command(tmp_path: Path) -> None:
    write_scene(tmp_path, ["a.png"], ColmapCamera(1, "FOV", WIDTH, HEIGHT, np.array([20.0, 20, 16, 12, 0.3])))
    command = (
        rf"FOV[\s\S]*colmap image_undistorter --image_path {tmp_path}/images --input_path {tmp_path}/sparse/0 "
        rf"--output_path {tmp_path}_undistorted --output_type COLMAP"
    )
    with pytest.raises(UserError, match=command):
        ref_lerf.load(tmp_path)


def test_nested_folders_and_other_suffixes(tmp_path: Path) -> None:
    names = ["left/f.jpg", "right/f.jpg", "c.JPG", "d.x.png"]
    write_scene(tmp_path, names, pictures=False)
    for seed, name in enumerate(["left/f.png", "right/f.jpg.png", "right/f.jpeg", "c.jpg", "d.x.png", "d.x.jpg"]):
        write_picture(tmp_path / "images" / name, picture(seed))
    scene = ref_lerf.load(tmp_path)
    found = {view.id: view.image_path.relative_to(tmp_path / "images").as_posix() for view in scene.train}
    assert found == {"left/f": "left/f.png", "right/f": "right/f.jpeg", "c": "c.jpg", "d.x": "d.x.png"}
    assert [view.camera.name for view in scene.train] == sorted(names)


def test_view_ids_that_would_clash() -> None:
    assert view_ids(["a.jpg", "b/a.jpg", "b.jpg"]) == {"a.jpg": "a", "b/a.jpg": "b/a", "b.jpg": "b"}
    assert view_ids(["a.jpg", "a.png"]) == {"a.jpg": "a.jpg", "a.png": "a.png"}
    assert view_ids(["x:1.jpg", "dots./y .jpg"]) == {"x:1.jpg": "x_1", "dots./y .jpg": "dots_/y_"}


@given(st.lists(st.text("aA.:_/", min_size=1, max_size=6).map(lambda s: f"x{s}x.png"), unique=True, max_size=8))
def test_view_ids_are_unique_on_any_file_system(names: list[str]) -> None:
    ids = list(view_ids(names).values())
    assert len({view_id.casefold() for view_id in ids}) == len(names)
    assert not any(character in view_id for view_id in ids for character in '<>:"|?*\\')


@given(st.text(), st.text(), st.text())
def test_sentence_ids(category: str, sentence: str, other: str) -> None:
    identity = sentence_id(category, sentence)
    assert identity.isascii()
    assert len(identity) <= 57
    assert not set(identity) & set('/\\. <>:"|?*\0')
    assert (sentence_id(category, other) == identity) == (other == sentence)


def test_sentence_ids_never_change() -> None:
    """They are in the names of prediction files. printf 'red cup\\0the cup' | sha1sum."""
    assert sentence_id("red cup", "the cup") == "red_cup-2008c512"


def test_missing_pictures_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{frame(i)}.png" for i in range(1, 9)]
    write_scene(tmp_path, names)
    for name in names[:7]:
        (tmp_path / "images" / name).unlink()
    scene = ref_lerf.load(tmp_path)
    assert [view.id for view in scene.train] == [frame(8)]
    assert f"images of the COLMAP model without a file in {tmp_path / 'images'}: 7 ({names[0]}, " in caplog.text
    assert f"{names[4]} and 2 more" in caplog.text
    (tmp_path / "images" / names[7]).unlink()
    with pytest.raises(UserError, match=r"none of the 8 images .* has a file in .* and 3 more.*-i"):
        ref_lerf.load(tmp_path)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist.*-s"):
        ref_lerf.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no COLMAP model in"):
        ref_lerf.load(tmp_path)
    write_scene(tmp_path, ["a.png"])
    with pytest.raises(UserError, match=r"images_4 does not exist; name it with -i \(found in .*: images, sparse\)"):
        ref_lerf.load(tmp_path, images="images_4")


def test_points_are_read_on_first_use(tmp_path: Path) -> None:
    write_scene(tmp_path, ["a.png", "b.png", "c.png"])
    scene = ref_lerf.load(tmp_path)
    assert scene.xyz.shape == (20, 3)
    assert scene.xyz.dtype == np.float32
    assert (scene.rgb == 200).all()
    assert scene.extent == pytest.approx(1.1)  # centres at 0, 1, 2
    (tmp_path / "sparse/0/points3D.bin").unlink()
    with pytest.raises(UserError, match="points3D"):
        _ = ref_lerf.load(tmp_path).xyz


def test_cache_is_bounded_and_hands_out_copies() -> None:
    cache, loads = ImageCache(max_bytes=300), []

    def load(key: int) -> np.ndarray:
        loads.append(key)
        return np.full(100, key, np.uint8)

    for key in (1, 2, 3, 1, 4, 1, 2):  # 2 was used longest ago when 4 comes
        cache.get(key, lambda key=key: load(key))[:] = 99
        assert cache.nbytes <= 300
    assert loads == [1, 2, 3, 4, 2]
    assert (cache.get(2, lambda: load(2)) == 2).all()
    cache.get("large", lambda: np.zeros(301, np.uint8))
    assert cache.nbytes == 300
    assert cache.get(2, lambda: load(2))[0] == 2
    assert loads == [1, 2, 3, 4, 2]


def test_images_are_decoded_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "refersplat")
    write_scene(tmp_path, ["a.png"])
    view = ref_lerf.load(tmp_path).train[0]
    first = view.image()
    (tmp_path / "images/a.png").unlink()
    np.testing.assert_array_equal(view.image(), first)
    assert "1 training and 0 test views (split by no rule" in caplog.text
