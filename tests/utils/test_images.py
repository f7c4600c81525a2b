"""Pictures: files, heat maps, overlays and captions."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest

from scene.readers.image_files import is_transparent, read_mask
from utils import images
from utils.errors import UserError
from utils.images import (
    CYAN,
    add_caption,
    contact_sheet,
    data_uri,
    draw_heat_map,
    enlarge,
    overlay,
    transliterate,
    write_image,
)

RANDOM = np.random.default_rng(0)


def test_png_keeps_colours_and_leaves_no_temporary_file(tmp_path):
    picture = RANDOM.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    write_image(tmp_path / "deep" / "a.png", picture)
    assert np.array_equal(cv2.imread(str(tmp_path / "deep" / "a.png"))[..., ::-1], picture)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.png"]


def test_an_image_that_cannot_be_written_is_a_user_error_and_the_old_one_stays(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    before = (tmp_path / "a.png").read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(UserError, match="No space left"):
        write_image(tmp_path / "a.png", np.ones((9, 9), np.uint8))
    assert (tmp_path / "a.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_mask_files_round_trip_and_any_value_above_zero_is_foreground(tmp_path):
    mask = RANDOM.random((6, 5)) > 0.5
    write_image(tmp_path / "mask.png", mask.astype(np.uint8) * 255)
    assert np.array_equal(read_mask(tmp_path / "mask.png"), mask)
    stored = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert stored.ndim == 2
    assert set(np.unique(stored)) == {0, 255}
    cv2.imwrite(str(tmp_path / "one.png"), mask.astype(np.uint8))
    assert np.array_equal(read_mask(tmp_path / "one.png"), mask)


def test_heat_map_gets_lighter_with_probability_and_survives_nan():
    values = np.concatenate([np.linspace(0, 1, 50), [np.nan, -3, 7]])[None]
    light = draw_heat_map(values)[0].astype(int).sum(axis=1)
    assert (np.diff(light[:50]) >= -6).all()  # Inferno is monotone in lightness, nearly so in the sum of RGB
    assert light[0] < 40
    assert light[49] > 550
    assert (light[50], light[51], light[52]) == (light[0], light[0], light[49])


def test_overlay_tints_inside_dims_outside_and_outlines():
    photo = np.full((400, 480, 3), 128, np.uint8)
    mask = np.zeros((400, 480), bool)
    mask[120:240, 160:320] = True
    picture = overlay(photo, mask)
    assert picture.shape == photo.shape
    inside = picture[mask].astype(int)
    assert (inside == inside[0]).all()
    assert inside[0][2] > inside[0][0]  # cyan has blue, no red
    assert tuple(picture[119, 240]) == tuple(picture[240, 240]) == CYAN
    rim = np.flatnonzero((picture[:120, 240] == 0).all(axis=1))
    assert len(rim) >= 1
    assert rim.min() > 110
    assert (picture[:100] < 128).all()
    assert (overlay(photo, np.zeros_like(mask)) < 128).all()


@pytest.mark.parametrize(("width", "factor"), [(120, 4), (240, 2), (479, 2), (480, 1), (1600, 1)])
def test_small_overlays_are_enlarged_with_their_mask(width, factor):
    mask = np.zeros((60, width), bool)
    mask[:, : width // 2] = True
    photo = np.full((60, width, 3), 100, np.uint8)
    picture = overlay(photo, mask)
    assert picture.shape == enlarge(photo).shape == (60 * factor, width * factor, 3)
    edge = np.flatnonzero((picture[30] == CYAN).all(axis=1)).min()
    assert edge == width // 2 * factor


@pytest.mark.parametrize("width", [240, 645, 1600])
@pytest.mark.parametrize("unicode", [True, False])
def test_caption_fits_the_width_and_the_letters_are_high_enough(monkeypatch, width, unicode):
    monkeypatch.setattr(images, "DRAWS_UNICODE", unicode and images.DRAWS_UNICODE)
    photo = np.zeros((50, width, 3), np.uint8)
    sentence = "the grün mug that stands to the left of the keyboard, closest to the silver kettle " * 2
    picture = add_caption(photo, sentence)
    assert picture.shape[1] == width
    strip = picture[50:].max(axis=2) > 100
    assert strip.any()
    assert not strip[:, :3].any()
    assert not strip[:, -3:].any()
    rows = np.flatnonzero(np.diff(np.concatenate([[0], strip.any(axis=1), [0]]).astype(int)))
    heights = rows[1::2] - rows[::2]
    assert heights.max() >= 9
    assert len(heights) >= 2


def test_caption_of_one_endless_word_and_of_a_page_of_text_stay_small():
    photo = np.zeros((10, 240, 3), np.uint8)
    for text in ("w" * 5000, "word " * 5000, "", "\n\t", "字" * 300):
        assert add_caption(photo, text).shape[0] < 250


def test_transliteration():
    assert transliterate("“Grün – café…”") == '"Grun - cafe..."'
    assert transliterate("кружка 杯子") == "?????? ??"
    assert transliterate("plain ASCII?") == "plain ASCII?"


def test_what_cannot_be_drawn_is_said(monkeypatch):
    monkeypatch.setattr(images, "DRAWS_UNICODE", False)
    photo = np.zeros((10, 400, 3), np.uint8)
    assert add_caption(photo, "кружка").shape[0] > add_caption(photo, "kruzhka").shape[0]
    assert add_caption(photo, "a mug?").shape == add_caption(photo, "a mug").shape


def test_contact_sheet_places_every_picture():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    red, green, blue = (np.full((30, 40, 3), c, np.uint8) for c in colours)
    sheet = contact_sheet([[red, green], [blue]], cell_width=80, gap=4)
    assert sheet.shape == (4 + 2 * (60 + 4), 4 + 2 * (80 + 4), 3)
    assert (sheet[30, 40] == red[0, 0]).all()
    assert (sheet[30, 124] == green[0, 0]).all()
    assert (sheet[94, 40] == blue[0, 0]).all()


def test_data_uri_is_a_jpeg_of_bounded_width():
    picture = np.full((100, 500, 3), (250, 10, 10), np.uint8)
    head, data = data_uri(picture, 200).split(",")
    assert head == "data:image/jpeg;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (40, 200, 3)
    assert np.allclose(decoded[20, 100, ::-1], (250, 10, 10), atol=4)


@pytest.mark.parametrize(
    ("suffix", "channels", "alpha", "expected"),
    [
        (".png", 4, 255, False),
        (".png", 4, 254, True),
        (".png", 3, None, False),
        (".png", 1, None, False),
        (".jpg", 3, None, False),
        (".webp", 4, 0, True),
        (".tif", 3, None, False),
    ],
)
def test_transparency(tmp_path: Path, suffix: str, channels: int, alpha: int | None, expected: bool) -> None:
    picture = np.full((6, 8, channels), 255, np.uint8)
    if alpha is not None:
        picture[2:4, 3:5, 3] = alpha
    path = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(path), picture)
    assert is_transparent(path) == expected
