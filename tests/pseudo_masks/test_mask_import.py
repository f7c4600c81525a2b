"""pseudo_mask.py --import and --check: masks made elsewhere, and masks that are missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import pseudo_mask
from pseudo_masks.imported import binarize
from scene.readers.image_files import read_mask
from tests.rigs.small_run import call
from tests.rigs.tiny_scene import HEIGHT, WIDTH, entry, frame, write_json, write_mask, write_picture, write_scene

SQUARE = np.zeros((HEIGHT, WIDTH), bool)
SQUARE[5:15, 4:20] = True


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Two training views of two objects, without masks."""
    folder = write_scene(tmp_path / "desk", [f"{frame(number)}.png" for number in (1, 2)])
    for number in (1, 2):
        write_json(
            folder / f"json/train_json/{frame(number)}.json", entry(frame(number)), entry(frame(number), "blue box 2")
        )
    return folder


def put(folder: Path, name: str, mask: np.ndarray = SQUARE, value: int = 255) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), mask.astype(np.uint8) * value)
    return path


def mask_path(desk: Path, number: int, category: str = "red cup") -> Path:
    return desk / f"gt_mask/{frame(number)}/{category}.png"


@pytest.mark.parametrize(
    "name",
    [
        "frame_00001/red cup.png",
        "frame_00001/red_cup.bmp",
        "frame_00001.png/Red-Cup.png",
        "red cup/frame_00001.png",
        "red_cup/frame_00001.png.png",
        "frame_00001_red_cup.png",
        "Red cup - frame_00001.png",
        "masks/../frame_00001__red cup.tif",
    ],
)
def test_names(desk: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "in/masks").mkdir(parents=True)
    put(tmp_path / "in", name)
    put(tmp_path / "in", "frame_00002_blue_box_2.png", value=1)
    assert call(pseudo_mask, "-s", desk, "--import", tmp_path / "in") == 0
    assert np.array_equal(read_mask(mask_path(desk, 1)), SQUARE)
    assert set(np.unique(cv2.imread(str(mask_path(desk, 2, "blue box 2")), cv2.IMREAD_UNCHANGED))) == {0, 255}
    assert not mask_path(desk, 2).exists()
    sidecar = json.loads(mask_path(desk, 1).with_suffix(".json").read_text())
    assert (sidecar["winner"], sidecar["size"]) == (0, [WIDTH, HEIGHT])
    assert Path(sidecar["imported_from"]).is_file()


def test_frames_alone_where_there_is_one_object(tmp_path: Path) -> None:
    desk = write_scene(tmp_path / "desk", [f"left/{frame(1)}.png", f"right/{frame(1)}.png"])
    (tmp_path / "objects.json").write_text(json.dumps({"object": [{"category": "cup", "sentence": ["the cup"]}]}))
    put(tmp_path / "in", f"right/{frame(1)}.png")
    put(tmp_path / "in", f"{frame(1)}.png")  # of which camera?
    flags = ["--import", tmp_path / "in", "--sentences", tmp_path / "objects.json"]
    assert call(pseudo_mask, "-s", desk, *flags) == 0
    assert [path.relative_to(desk).as_posix() for path in desk.glob("gt_mask/**/*.png")] == [
        f"gt_mask/right/{frame(1)}/cup.png"
    ]
    assert [path.relative_to(desk).as_posix() for path in desk.glob("json/**/*.json")] == [
        f"json/train_json/right/{frame(1)}.json"
    ]


def test_other_sizes(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another scale is resized, another shape is refused, and the other view is done."""
    put(tmp_path / "in", f"{frame(1)}/red cup.png", SQUARE.repeat(2, 0).repeat(2, 1))
    wrong = put(tmp_path / "in", f"{frame(2)}/red cup.png", SQUARE[:, :20])
    assert call(pseudo_mask, "-s", desk, "--import", tmp_path / "in") == 2
    assert np.array_equal(read_mask(mask_path(desk, 1)), SQUARE)
    assert f"{wrong} is 20x24, but the photo is 32x24" in capsys.readouterr().err
    assert not mask_path(desk, 2).exists()


def test_empty_masks_mean_a_hidden_object(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "in", f"{frame(1)}/red cup.png", SQUARE & False)
    assert call(pseudo_mask, "-s", desk, "--import", tmp_path / "in") == 0
    assert not mask_path(desk, 1).exists()
    assert call(pseudo_mask, "-s", desk, "--check") == 1
    assert f"{frame(1)} (red cup): the imported mask is empty" in capsys.readouterr().out


def test_own_masks_stay(desk: Path, tmp_path: Path) -> None:
    write_mask(mask_path(desk, 1))
    before = mask_path(desk, 1).read_bytes()
    put(tmp_path / "in", f"{frame(1)}/red cup.png")
    put(tmp_path / "in", f"{frame(2)}/red cup.png")
    assert call(pseudo_mask, "-s", desk, "--import", tmp_path / "in", "--redo", "all") == 0
    assert mask_path(desk, 1).read_bytes() == before
    assert np.array_equal(read_mask(mask_path(desk, 2)), SQUARE)


def test_folders_that_do_not_fit(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error() -> str:
        assert call(pseudo_mask, "-s", desk, "--import", tmp_path / "in") == 2
        return capsys.readouterr().err

    assert "is not a folder" in error()
    (tmp_path / "in").mkdir()
    assert "holds no picture" in error()
    put(tmp_path / "in", "mask 1.png")
    assert "none of mask 1.png is named after a view and an object" in error()
    put(tmp_path / "in", "frame_00001/red cup.png")
    put(tmp_path / "in", "red cup/frame_00001.png")
    assert "2 files could be the mask of frame_00001 (red cup)" in error()
    shutil.rmtree(tmp_path / "in/red cup")
    assert call(pseudo_mask, "-s", desk, "--import", tmp_path / "in") == 0
    assert "files that belong to no view and object: 1" in capsys.readouterr().err


def test_a_copy_of_all_masks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Masks of test views differ from files of no view; frame_00001_1 does not belong to frame_00001."""
    caplog.set_level("INFO", "refersplat")
    names = [frame(1), f"{frame(1)}_1", frame(3)]
    desk = write_scene(tmp_path / "desk", [f"{name}.png" for name in names])
    write_json(desk / f"json/test_json/{names[0]}.json", entry(names[0]), entry(names[0], "blue box 2"))
    for name in names[1:]:
        write_json(desk / f"json/train_json/{name}.json", entry(name))
    for name in (*names, "frame_00011"):
        put(tmp_path / "in", f"{name}/red cup.png")
    put(tmp_path / "in", f"blue_box_2-{names[0]}.png")
    put(tmp_path / "in", f"{names[1]}/lamp.png")
    assert call(pseudo_mask, "-s", desk, "--import", tmp_path / "in") == 0
    assert "masks of test views, left alone: 2\n" in caplog.text
    unknown = f"{tmp_path}/in/frame_00001_1/lamp.png, {tmp_path}/in/frame_00011/red cup.png"
    assert f"files that belong to no view and object: 2 ({unknown})" in caplog.text
    assert not (desk / f"gt_mask/{names[0]}").exists()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1], [False, True]),
        ([0, 255], [False, True]),
        ([0, 38], [False, True]),  # a label
        ([0, 0], [False, False]),
        ([255, 255], [True, True]),
        ([0, 3, 127, 128, 255], [False, False, False, True, True]),  # JPEG or soft edges
    ],
)
def test_binarize(values: list[int], expected: list[bool]) -> None:
    assert binarize(np.array([values], np.uint8)).tolist() == [expected]
    high = np.array([[0, 30_000, 40_000]], np.uint16)
    assert binarize(high).tolist() == [[False, False, True]]
    assert binarize(np.array([[0.0, 0.4, 0.6]], np.float32)).tolist() == [[False, False, True]]


def test_check(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One pair with each kind of problem; then none."""
    write_mask(mask_path(desk, 1))
    put(desk, f"gt_mask/{frame(1)}/blue box 2.png", SQUARE & False)
    put(desk, f"gt_mask/{frame(2)}/blue box 2.png", SQUARE[:, :20])
    assert call(pseudo_mask, "-s", desk, "--check") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "frame_00001 (blue box 2): the mask is empty",
        "frame_00002 (red cup): no mask yet",
        "frame_00002 (blue box 2): the mask is 20x24, another shape than the photo (32x24)",
        "",
        "red cup     1 of 2 views",
        "blue box 2  0 of 2 views  (none: training cannot use it)",
        "1 of 4 pairs of a training view and an object have a mask",
    ]
    mask_path(desk, 2).write_bytes(b"no picture")
    assert call(pseudo_mask, "-s", desk, "--check") == 1
    assert "frame_00002 (red cup): damaged mask:" in capsys.readouterr().out
    for number in (1, 2):
        for category in ("red cup", "blue box 2"):
            write_mask(mask_path(desk, number, category))
    assert call(pseudo_mask, "-s", desk, "--check") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 of 4 pairs of a training view and an object have a mask"
    write_picture(desk / f"images/{frame(1)}.png", np.zeros((3, 3, 3), np.uint8))
    (desk / f"images/{frame(2)}.png").write_bytes(b"")
    assert call(pseudo_mask, "-s", desk, "--check") == 1
    assert "frame_00002 (red cup): the photo:" in capsys.readouterr().out
