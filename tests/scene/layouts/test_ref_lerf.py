"""The Ref-LERF layout: every variant in circulation, every bad input, and the real scene beside the checkout."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scene.dataset import Scene
from scene.layouts import ref_lerf
from tests.rigs.paths import SHARED
from tests.rigs.tiny_scene import entry, frame, write_json, write_mask, write_referring_scene, write_scene
from utils.errors import UserError


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "refersplat")


def pairs(views: list) -> int:
    return sum(len(view.referrals) for view in views)


def ids(views: list) -> list[str]:
    return [view.id for view in views]


def test_split_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """json/test_json decides, regardless of the folder name and --eval."""
    folder = write_referring_scene(tmp_path / "ramen", [1, 2, 6], [3, 4])
    scene = ref_lerf.load(folder, eval=True)
    assert ids(scene.train) == [frame(1), frame(2), frame(6)]
    assert ids(scene.test) == [frame(3), frame(4)]
    assert (pairs(scene.train), pairs(scene.test)) == (6, 2)
    assert Scene.sentences(scene.train) == ["the cup", "red"]
    assert Scene.sentences(scene.test) == ["a new one"]
    assert scene.split_rule == "json/test_json"
    assert "3 training and 2 test views (split by json/test_json), 6 training and 2 test pairs" in caplog.text
    assert scene.name == "ramen"


@pytest.mark.parametrize(
    ("name", "test"),
    [
        ("ramen", [6, 24]),
        ("figurines", [83]),
        ("teatime", [2, 25]),
        ("Waldo_Kitchen", [19]),
        ("waldo", [19]),
        ("kitchen", [19]),
    ],
)
def test_flat_json_and_the_published_frames(tmp_path: Path, name: str, test: list[int]) -> None:
    numbers = [2, 6, 19, 24, 25, 83, 84]
    folder = write_referring_scene(tmp_path / name, numbers)
    for number in numbers:
        shutil.move(folder / f"json/train_json/{frame(number)}.json", folder / "json")
    (folder / "json/train_json").rmdir()
    scene = ref_lerf.load(folder)
    assert ids(scene.test) == [frame(number) for number in test]
    assert pairs(scene.test) == 2 * len(test)
    assert len(scene.train) == 7 - len(test)
    assert "published test frames" in scene.split_rule


def test_every_8th_view(tmp_path: Path) -> None:
    folder = write_referring_scene(tmp_path / "desk", range(1, 18))
    scene = ref_lerf.load(folder)
    assert ids(scene.test) == ids(ref_lerf.load(folder, eval=True).test) == [frame(1), frame(9), frame(17)]
    assert pairs(scene.test) == 6
    assert "8th" in scene.split_rule
    renamed = write_referring_scene(tmp_path / "kitchen", range(1, 5))  # none of the published frames
    assert "8th" in ref_lerf.load(renamed, eval=True).split_rule


def test_held_out_views_without_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A scene as pseudo_mask.py --sentences writes it: every 8th view is held out from the RGB stage, too."""
    folder = write_referring_scene(tmp_path / "desk", range(1, 11))
    for number in (1, 2, 9):
        (folder / f"json/train_json/{frame(number)}.json").unlink()
    assert ids(ref_lerf.load(folder).test) == [frame(1), frame(9)]
    held_out = f"held out but without a sentence to evaluate: 2 ({frame(1)}, {frame(9)})"
    assert f"test views without a JSON file, {held_out}" in caplog.text
    assert f"views without a JSON file, used by the RGB stage only: 1 ({frame(2)})" in caplog.text


def test_a_scene_without_sentences(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = ref_lerf.load(write_scene(tmp_path, [f"{i}.png" for i in range(10)]), eval=True)
    assert (len(scene.train), len(scene.test)) == (8, 2)
    assert pairs(scene.train + scene.test) == 0
    assert "no JSON" not in caplog.text


def test_mask_folders(tmp_path: Path) -> None:
    """Training masks come from mask_dir only, test masks from gt_mask or mask, whatever --mask_dir."""
    write_referring_scene(tmp_path, [1, 2], [3, 4, 5])
    for number in (1, 3, 4, 5):
        write_mask(tmp_path / f"pseudo/{frame(number)}/red cup.png", left=16)
    for number in (4, 5):
        (tmp_path / f"gt_mask/{frame(number)}/red cup.png").unlink()
    write_mask(tmp_path / f"mask/{frame(4)}/red cup.png", left=20)

    def folders(views: list) -> list[str]:
        return [r.mask_path.relative_to(tmp_path).parts[0] for view in views for r in view.referrals]

    clean = ref_lerf.load(tmp_path)
    assert folders(clean.train) == ["gt_mask"] * 4
    assert folders(clean.test) == ["gt_mask", "mask"]
    pseudo = ref_lerf.load(tmp_path, mask_dir="pseudo")
    assert folders(pseudo.train) == ["pseudo"] * 2  # frame 2 has no pseudo mask, and does not fall back
    assert folders(pseudo.test) == ["gt_mask", "mask"]
    for view, left in zip(pseudo.test[:2], (4, 20), strict=True):
        columns = np.flatnonzero(view.mask(view.referrals[0]).any(axis=0))
        np.testing.assert_array_equal(columns, range(left, left + 8))
    for name in ("gt_mask", "mask"):  # all masks of the scene are somewhere else
        (tmp_path / name).rename(tmp_path / f"no_{name}")
    assert folders(ref_lerf.load(tmp_path, mask_dir="pseudo").test) == ["pseudo"] * 3


def test_issues_are_counted_and_the_rest_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_referring_scene(tmp_path, range(1, 11), [11, 12])
    for number in range(1, 7):
        (tmp_path / f"gt_mask/{frame(number)}/red cup.png").unlink()
    (tmp_path / f"json/train_json/{frame(7)}.json").unlink()
    (tmp_path / f"images/{frame(12)}.png").unlink()
    repeated = ["the cup", " the cup\n", "", "  ", "other"]
    write_json(tmp_path / f"json/train_json/{frame(8)}.json", entry(frame(8), sentences=repeated), entry(frame(8)))
    write_json(tmp_path / f"json/train_json/{frame(11)}.json", entry(frame(11), sentences=["leak"]))
    (tmp_path / f"json/train_json/._{frame(9)}.json").write_bytes(b"\0\5\26\7")
    write_mask(tmp_path / f"gt_mask/{frame(9)}/red cup.png", width=64, height=48)
    write_mask(tmp_path / f"gt_mask/{frame(10)}/red cup.png", width=64, height=48)

    scene = ref_lerf.load(tmp_path)
    by_id = {view.id: [r.sentence for r in view.referrals] for view in scene.train + scene.test}
    assert by_id == {frame(n): [] for n in range(1, 8)} | {
        frame(8): ["the cup", "other"],
        frame(9): ["the cup", "red"],
        frame(10): ["the cup", "red"],
        frame(11): ["a new one"],
    }
    assert ids(scene.test) == [frame(11)]
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    expected = [
        f"objects left out, as their mask is not in gt_mask: 6 ({frame(1)}/red cup.png, {frame(2)}",
        f"views without a JSON file, used by the RGB stage only: 1 ({frame(7)})",
        f"images of the COLMAP model without a file in {tmp_path / 'images'}: 1 ({frame(12)}.png)",
        f"JSON files that belong to no view: 1 (json/test_json/{frame(12)}.json)",
        f"JSON files left out, as their frame has one already: 1 (json/train_json/{frame(11)}.json)",
        "empty sentences, left out: 2 (",
        "sentences repeated in their frame, counted once: 2 (",
        "masks of another size than their image, resized: 2 (",
    ]
    for text in expected:
        assert sum(line.startswith(text) for line in lines) == 1, (text, lines)
    assert len(lines) == len(expected)
    assert next(line for line in lines if "mask is not in" in line).endswith("and 1 more)")
    large = next(view for view in scene.train if view.id == frame(9))
    np.testing.assert_array_equal(np.flatnonzero(large.mask(large.referrals[0]).all(axis=0)), range(4, 12))


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    folder = write_referring_scene(tmp_path / "a", [1, 2], [3])
    shutil.rmtree(folder / "gt_mask")
    with pytest.raises(UserError, match=r"no object of the JSON files has a mask in gt_mask.*--mask_dir"):
        ref_lerf.load(folder)
    with pytest.raises(UserError, match="every view is a test view"):
        ref_lerf.load(write_referring_scene(tmp_path / "b", [], [1, 2]))


def test_views_list_annotated_objects_without_a_mask(tmp_path: Path) -> None:
    """Their sentences are left out, but the objects do not count as absent."""
    write_referring_scene(tmp_path, [1], [3, 4])
    both = [entry(frame(3)), entry(frame(3), "blue box", ["the box"])]
    write_json(tmp_path / f"json/test_json/{frame(3)}.json", *both)
    test = ref_lerf.load(tmp_path).test
    assert [view.unmasked for view in test] == [{"blue box"}, set()]
    assert [r.category for r in test[0].referrals] == ["red cup"]


def test_test_masks_alone_are_enough_to_evaluate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model can be evaluated without its pseudo masks; train.py refuses a scene without training pairs."""
    write_referring_scene(tmp_path, [1, 2], [3])
    scene = ref_lerf.load(tmp_path, mask_dir="elsewhere")
    assert (pairs(scene.train), pairs(scene.test)) == (0, 1)
    assert "objects left out, as their mask is not in elsewhere: 2 (" in caplog.text


def test_nested_frames(tmp_path: Path) -> None:
    """A JSON file matches the relative path, or the base name where that is unique."""
    write_scene(tmp_path, ["left/f1.png", "right/f1.png", "right/f2.png"])
    write_json(tmp_path / "json/train_json/left/f1.json", entry("left/f1"))
    write_json(tmp_path / "json/train_json/f2.json", entry("f2"))
    write_json(tmp_path / "json/train_json/f1.json", entry("f1"))  # which f1?
    for name in ("left/f1", "f2", "f1"):
        write_mask(tmp_path / f"gt_mask/{name}/red cup.png")
    scene = ref_lerf.load(tmp_path)
    assert {view.id: len(view.referrals) for view in scene.train} == {"left/f1": 1, "right/f1": 0, "right/f2": 1}


def test_two_objects_may_share_a_sentence(tmp_path: Path) -> None:
    write_referring_scene(tmp_path, [1])
    write_mask(tmp_path / f"gt_mask/{frame(1)}/blue_cup, small.png", left=16)
    two = [entry(frame(1)), entry(frame(1), "blue_cup, small")]
    write_json(tmp_path / f"json/train_json/{frame(1)}.json", *two)
    view = ref_lerf.load(tmp_path).train[0]
    assert [(r.category, r.sentence) for r in view.referrals] == [
        ("red cup", "the cup"),
        ("blue_cup, small", "the cup"),
    ]
    assert len({r.sentence_id for r in view.referrals}) == 2


GOOD = entry(frame(1))
CLIMBING = ["../x.png", "a/../../x.png", "/etc/passwd", "..\\x.png", "C:\\x.png", "c:x.png", "a\0.png", "a\n.png"]
BAD_JSON: dict[str, tuple[Any, str]] = {
    "a list": ([GOOD], "no list under the key 'object'"),
    "objects": ({"objects": [GOOD]}, "no list under the key 'object'"),
    "object is a dict": ({"object": GOOD}, "no list under the key 'object'"),
    "entry is text": ({"object": [GOOD, "x"]}, r"object\[1\] is 'x'"),
    "no category": ({"object": [GOOD | {"category": None}]}, r"object\[0\] has no text under the key 'category'.*None"),
    "no segmentation": (
        {"object": [{"category": "a", "sentence": ["b"]}]},
        r"key 'segmentation': found only the keys 'category', 'sentence'",
    ),
    "blank segmentation": ({"object": [GOOD | {"segmentation": " "}]}, "key 'segmentation'"),
    "number": ({"object": [GOOD | {"segmentation": 3}]}, "key 'segmentation': found 3"),
    "sentence is text": ({"object": [GOOD | {"sentence": "the cup"}]}, "key 'sentence': found 'the cup'"),
    "sentence of numbers": ({"object": [GOOD | {"sentence": [1]}]}, "key 'sentence'"),
    "no sentence": ({"object": [{k: v for k, v in GOOD.items() if k != "sentence"}]}, "key 'sentence': found only the"),
    "lone surrogate": ({"object": [GOOD | {"sentence": ["\ud800"]}]}, "key 'sentence'"),
    **{f"segmentation {c!r}": ({"object": [GOOD | {"segmentation": c}]}, "segmentation is .*out of") for c in CLIMBING},
    **{f"category {c!r}": ({"object": [GOOD | {"category": c}]}, "category is .* leads out of") for c in CLIMBING},
    "..": ({"object": [GOOD | {"category": ".."}]}, "category is"),
}


@pytest.mark.parametrize("case", list(BAD_JSON))
def test_bad_json(tmp_path: Path, case: str) -> None:
    write_referring_scene(tmp_path, [1, 2])
    content, message = BAD_JSON[case]
    path = tmp_path / f"json/train_json/{frame(1)}.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        ref_lerf.load(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000])
def test_files_that_are_not_json(tmp_path: Path, content: bytes) -> None:
    write_referring_scene(tmp_path, [1, 2])
    path = tmp_path / f"json/train_json/{frame(2)}.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        ref_lerf.load(tmp_path)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_referring_scene(tmp_path_factory.mktemp("fuzzed"), [1, 2])


ANYTHING = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(st.characters()) | st.just("x" * 5000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PATHS = st.text(st.sampled_from("a./\\:\0é\ud800 "), max_size=8) | st.just("x" * 5000)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=ANYTHING
    | st.fixed_dictionaries(
        {
            "object": ANYTHING
            | st.lists(
                st.fixed_dictionaries(
                    {
                        "category": PATHS | ANYTHING,
                        "segmentation": PATHS | ANYTHING,
                        "sentence": st.lists(PATHS) | ANYTHING,
                    }
                ),
                max_size=3,
            )
        }
    )
)
def test_any_json_loads_or_is_refused(fuzzed: Path, content: Any) -> None:
    path = fuzzed / f"json/train_json/{frame(1)}.json"
    path.write_text(json.dumps(content))
    try:
        scene = ref_lerf.load(fuzzed)
    except UserError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert str(path) in refusal
        return
    for referral in scene.train[0].referrals:
        assert referral.mask_path.resolve().is_relative_to(fuzzed)


def test_unreadable_mask_and_truncated_picture(tmp_path: Path) -> None:
    write_referring_scene(tmp_path, [1, 2])
    mask = tmp_path / f"gt_mask/{frame(1)}/red cup.png"
    whole = mask.read_bytes()
    mask.write_bytes(b"")
    with pytest.raises(UserError, match=r"red cup\.png is no picture"):
        ref_lerf.load(tmp_path)
    mask.write_bytes(whole[:60])  # the header is fine
    view = ref_lerf.load(tmp_path).train[0]
    with pytest.raises(UserError, match=r"red cup\.png is no picture"):
        view.mask(view.referrals[0])
    view.image_path.write_bytes(view.image_path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"frame_00001\.png is no picture"):
        view.image()


def test_redkitchen() -> None:
    """The real scene, with the counts of its files."""
    folder = SHARED / "scenes/redkitchen"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set SHARED_DIR")
    scene = ref_lerf.load(folder, resolution=2)
    views = scene.train + scene.test
    assert len(views) == 104
    assert sum(bool(view.referrals) for view in scene.train) == 78
    assert (len(scene.test), sum(bool(view.referrals) for view in scene.test)) == (15, 15)
    assert (pairs(scene.train), pairs(scene.test)) == (1544, 89)
    assert len(Scene.sentences(scene.train)) == 36
    assert not set(Scene.sentences(scene.train)) & set(Scene.sentences(scene.test))
    assert scene.xyz.shape == (14708, 3)
    for view in scene.test[:3]:
        assert view.image().shape == (240, 322, 3)
        assert all(0 < view.mask(referral).mean() < 0.5 for referral in view.referrals)
    noisy = ref_lerf.load(folder, mask_dir="gt_mask_noisy")
    assert (pairs(noisy.train), pairs(noisy.test)) == (1544, 89)
    assert {r.mask_path.parts[-3] for view in noisy.train for r in view.referrals} == {"gt_mask_noisy"}
    assert {r.mask_path.parts[-3] for view in noisy.test for r in view.referrals} == {"gt_mask"}
    # The points project into the pictures they were triangulated from: pose and intrinsics fit together.
    camera = views[0].camera
    seen = scene.xyz @ camera.rotation.T + camera.translation
    seen = seen[seen[:, 2] > 0.2]
    x = seen[:, 0] / seen[:, 2] * camera.fx + camera.cx
    y = seen[:, 1] / seen[:, 2] * camera.fy + camera.cy
    assert ((x > 0) & (x < camera.width) & (y > 0) & (y < camera.height)).mean() > 0.3
