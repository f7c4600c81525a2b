"""The three dataset layouts, made from the procedural scene: splits, masks, broken files, scene.check, scripts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import eval as eval_script
import render as render_script
import train as train_script
from arguments import ModelParams
from scene import check
from scene.dataset import Scene
from scene.layouts import loader as layouts
from scene.layouts.mask_confidence import write_confidences
from scene.readers import colmap
from tests.rigs.layout_fixtures import LAYOUTS, write_all
from tests.rigs.small_run import FAST, call
from utils.errors import UserError
from utils.files import read_json

TEST = ["frame_00002", "frame_00007"]


@pytest.fixture(scope="module")
def folders(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The procedural scene in every layout, shared and not to be changed."""
    return write_all(scene, tmp_path_factory.mktemp("layouts"))


@pytest.fixture
def copies(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copies a layout for a test that breaks it, and returns the scene folder."""

    def copy(layout: str) -> Path:
        folder = folders[layout]
        root = Path(shutil.copytree(folder.parent, tmp_path / layout))
        return root / folder.name

    return copy


def load(folder: Path, **flags: object) -> Scene:
    return layouts.load(ModelParams(source_path=folder, **flags))


def checked(folder: Path, capsys: pytest.CaptureFixture, *flags: str) -> tuple[int, str]:
    """Run scene.check and return its exit code and output."""
    capsys.readouterr()
    code = check.main(["-s", str(folder), *flags])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "ref-lerf-flat"])
def test_all_layouts_hold_the_same_scene(folders: dict[str, Path], layout: str) -> None:
    """The same split and the same ground truth, drawn from polygons in LERF-OVS."""
    reference, scene = load(folders["ref-lerf"]), load(folders[layout])
    assert scene.dataset == layout
    assert [view.id for view in scene.test] == TEST
    assert [view.id for view in scene.train] == [view.id for view in reference.train]
    for split in ("train", "test"):
        for expected, view in zip(getattr(reference, split), getattr(scene, split), strict=True):
            truths = {r.category: expected.mask(r) for r in expected.referrals}
            found = {r.category: view.mask(r) for r in view.referrals}
            assert found.keys() == truths.keys()
            for category, truth in truths.items():
                if layout == "lerf-ovs" and split == "test":
                    filled = np.zeros(truth.shape, np.uint8)
                    outlines, _ = cv2.findContours(truth.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
                    truth = cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED) > 0
                np.testing.assert_array_equal(found[category], truth)
            if layout != "ref-lerf":
                assert all(r.sentence == r.category for r in view.referrals)


def test_the_first_release_splits_by_published_frames(folders: dict[str, Path]) -> None:
    scene = load(folders["ref-lerf-flat"])
    assert [view.id for view in scene.test] == ["frame_00006"]
    assert scene.split_rule == "the published test frames of ramen"


def test_published_frames_of_lerf_ovs_are_never_trained_on(copies: Callable) -> None:
    """A scene called ramen: frame 6 is held out although it has no label."""
    folder = copies("lerf-ovs")
    ramen = folder.rename(folder.with_name("ramen"))
    (folder.parent / "label/desk").rename(folder.parent / "label/ramen")
    scene = load(ramen)
    assert [view.id for view in scene.test] == [TEST[0], "frame_00006", TEST[1]]
    assert not scene.test[1].referrals


def test_labels_under_an_alias_of_the_scene(copies: Callable) -> None:
    folder = copies("lerf-ovs")
    (folder.parent / "label/desk").rename(folder.parent / "label/waldo_kitchen")
    assert load(folder.rename(folder.with_name("kitchen"))).dataset == "lerf-ovs"


def test_a_label_of_another_size_is_scaled(copies: Callable) -> None:
    folder = copies("lerf-ovs")
    path = folder.parent / f"label/desk/{TEST[0]}.json"
    before = load(folder).test[0]
    expected = {r.category: before.mask(r) for r in before.referrals}
    content = {"info": {"width": 3 * 80, "height": 3 * 60}, "objects": []}
    for category, truth in expected.items():
        large = truth.repeat(3, axis=0).repeat(3, axis=1).astype(np.uint8)
        for outline in cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
            content["objects"].append({"category": category, "segmentation": outline[:, 0].tolist()})
    path.write_text(json.dumps(content))
    view = load(folder).test[0]
    for referral in view.referrals:
        np.testing.assert_array_equal(view.mask(referral), expected[referral.category])


def test_the_folder_decides_and_dataset_overrules(copies: Callable, capsys: pytest.CaptureFixture) -> None:
    """A Ref-LERF scene beside LERF-OVS labels has both layouts."""
    folder, other = copies("ref-lerf"), copies("lerf-ovs")
    shutil.copytree(other.parent / "label/desk", folder.parent / "label" / folder.name)
    assert load(folder).dataset == "ref-lerf"
    chosen = load(folder, dataset="lerf-ovs")
    assert chosen.dataset == "lerf-ovs"
    assert {r.sentence for r in chosen.test[0].referrals} == {r.category for r in chosen.test[0].referrals}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_train_render_eval(folders: dict[str, Path], model: Path, tmp_path: Path, layout: str) -> None:
    """Every layout through the three scripts, from the Gaussians of the procedural scene."""
    start = model / "point_cloud/iteration_40/point_cloud.ply"
    folder = tmp_path / "model"
    assert call(train_script, "-s", folders[layout], "-m", folder, "--start_checkpoint", start, *FAST) == 0
    assert call(render_script, "-m", folder, "--device", "cpu") == 0
    assert call(eval_script, "-m", folder, "--device", "cpu") == 0
    results = read_json(folder / "results.json", "results")
    name = layout.removesuffix("-flat")
    assert (results["dataset"], results["protocol_name"], results["deviations"]) == (name, name, [])
    assert results["protocol"].startswith(f"{name}: ")
    pairs = {"ref-lerf": 12, "ref-lerf-flat": 24, "lerf-ovs": 12, "3d-ovs": 12}[layout]
    assert results["pairs"] == len(list((folder / "test/iteration_8/masks").rglob("*.png"))) == pairs
    middle = next(point for point in results["threshold_curve"] if point["threshold"] == 0.5)
    assert middle["mIoU"] == pytest.approx(results["mIoU"], abs=1e-9)
    for key in ("overall_iou", "boundary_iou", "mAcc", "coverage", "localisation", "pixel_coverage"):
        assert 0 <= results[key] <= 100
    if layout != "lerf-ovs":
        return
    assert call(eval_script, "-m", folder, "--device", "cpu", "--protocol", "released", "--threshold", "0.4") == 0
    results = read_json(folder / "results.json", "results")
    assert results["protocol_name"] == "released"
    assert results["deviations"][0] == "threshold 0.4 instead of 0.5"
    assert results["deviations"][1] == "a scene of the layout lerf-ovs instead of ref-lerf"
    assert "Not the protocol released" in (folder / "report.html").read_text(encoding="utf-8")


def test_check_of_complete_scenes(folders: dict[str, Path], capsys: pytest.CaptureFixture) -> None:
    for layout in ("ref-lerf", "lerf-ovs", "3d-ovs"):
        code, out = checked(folders[layout], capsys)
        assert code == 0, out
        assert out.startswith(f"layout: {layout} (its annotations are there)\n10 photos with cameras of the COLMAP")
        assert out.endswith("complete: nothing is missing\n")
        assert "2 test views, 2 with sentences: 6 objects, 6 sentences, 12 pairs" in out


REFUSED = "train.py refuses"


def listed(out: str, kind: str, mark: str = "missing") -> list[str]:
    """Return the items that scene.check prints below a kind."""
    match = re.search(rf"^{mark}: {re.escape(kind)}: (\d+)\n((?:  .*\n)*)", out, re.MULTILINE)
    assert match, out
    items = [line.strip() for line in match[2].splitlines()]
    assert len(items) == int(match[1])
    return items


def test_check_lists_every_missing_mask_of_ref_lerf(copies: Callable, capsys: pytest.CaptureFixture) -> None:
    folder = copies("ref-lerf")
    gone = sorted((folder / "gt_mask").glob("frame_0000[1345]/*.png"))
    assert len(gone) > 5
    for path in gone:
        path.unlink()
    broken = folder / "json/train_json/frame_00008.json"
    broken.write_text("{")
    mask = next((folder / "gt_mask/frame_00009").glob("*.png"))
    mask.write_bytes(mask.read_bytes()[:40])
    (folder / "images/frame_00010.png").unlink()
    (folder / "json/test_json/frame_00007.json").unlink()
    code, out = checked(folder, capsys)
    assert code == 2, out  # as train.py, for the damaged files
    lost = listed(out, "objects left out, as their mask is not in gt_mask")
    assert sorted(lost) == [path.relative_to(folder / "gt_mask").as_posix() for path in gone]
    damaged = listed(out, "damaged files", REFUSED)
    assert len(damaged) == 2
    assert str(broken) in damaged[0]
    assert str(mask) in damaged[1]
    photos = f"images of the COLMAP model without a file in {folder / 'images'}"
    assert listed(out, photos) == ["frame_00010.png"]
    assert listed(out, "JSON files that belong to no view") == ["json/train_json/frame_00010.json"]
    assert "note: views without a JSON file, used by the RGB stage only: 1\n  frame_00007" in out


@pytest.mark.parametrize("layout", ["ref-lerf", "lerf-ovs", "3d-ovs"])
def test_check_finds_every_damaged_picture(copies: Callable, capsys: pytest.CaptureFixture, layout: str) -> None:
    """Photos of training and test views and two masks of one view; some also lack their header."""
    folder = copies(layout)
    masks = sorted((folder / "gt_mask/frame_00001").glob("*.png"))[:2]
    damaged = [folder / f"images/{name}.png" for name in ("frame_00003", "frame_00004", TEST[0])] + masks
    for number, path in enumerate(damaged):
        path.write_bytes(path.read_bytes()[: 0 if number in (1, 3) else 60])
    code, out = checked(folder, capsys)
    found = listed(out, "damaged files", REFUSED)
    assert code == 2
    assert sorted(line.split(" is no picture")[0] for line in found) == sorted(map(str, damaged))
    assert "complete" not in out


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def few(path: Path) -> None:
    model = colmap.read_model(path.parent)
    colmap.write_model(path.parent, replace(model, xyz=model.xyz[:3], rgb=model.rgb[:3]))


@pytest.mark.parametrize(
    ("change", "message"), [(cut, "points3D.bin"), (Path.unlink, "holds neither"), (few, "has 3, expected at least 4")]
)
def test_check_reads_the_points(
    copies: Callable, capsys: pytest.CaptureFixture, change: Callable[[Path], object], message: str
) -> None:
    folder = copies("ref-lerf")
    change(folder / "sparse/0/points3D.bin")
    code, out = checked(folder, capsys)
    assert code == 2
    assert message in listed(out, check.NO_POINTS, REFUSED)[0]
    assert call(train_script, "-s", folder, "-m", folder.parent / "m", *FAST) == 2


def test_masks_of_confidence_0_may_be_damaged(copies: Callable, capsys: pytest.CaptureFixture) -> None:
    """Training skips them, and is refused if there is no other mask."""
    folder = copies("ref-lerf")
    mask = next((folder / "gt_mask/frame_00001").glob("*.png"))
    mask.write_bytes(mask.read_bytes()[:60])
    masks = folder / "gt_mask"
    names = [path.relative_to(masks).as_posix() for path in masks.glob("*/*.png")]
    write_confidences(masks, {mask.relative_to(masks).as_posix(): {"confidence": 0}})
    code, out = checked(folder, capsys)
    assert code == 1
    assert str(mask) in listed(out, "damaged masks of confidence 0, not read in training")[0]
    write_confidences(masks, {name: {"confidence": 0} for name in names})
    code, out = checked(folder, capsys)
    assert code == 2
    assert "confidence.json" in listed(out, "nothing to train on, but with --no-mask_confidence", REFUSED)[0]


def test_check_lists_what_lerf_ovs_lacks(copies: Callable, capsys: pytest.CaptureFixture) -> None:
    folder = copies("lerf-ovs")
    label = folder.parent / "label/desk"
    content = read_json(label / f"{TEST[0]}.json", "label")
    content["objects"].append({"category": "unknown thing", "group": 1, "segmentation": [[1, 1], [5, 1], [5, 5]]})
    content["objects"].append({"category": "line", "group": 1, "segmentation": [[1, 1], [5, 1]]})
    (label / f"{TEST[0]}.json").write_text(json.dumps(content))
    (label / f"{TEST[1]}.json").write_text('{"objects": 3}')
    (label / "frame_00099.json").write_text('{"objects": []}')
    shutil.rmtree(folder / "gt_mask/frame_00001")
    code, out = checked(folder, capsys)
    assert code == 2
    assert listed(out, "label files that belong to no view") == ["desk/frame_00099.json"]
    assert listed(out, "polygons of fewer than three corners, left out") == [f"{TEST[0]}.json (line)"]
    assert "no list under the key 'objects'" in listed(out, "damaged files", REFUSED)[0]
    assert listed(out, "objects of the test without a mask in any training view") == ["unknown thing"]
    assert "note: training views without pseudo masks in gt_mask, used by the RGB stage only: 1\n  frame_00001" in out
    code, out = checked(folder, capsys, "--mask_dir", "elsewhere")
    assert code == 2
    expected = "pseudo masks of training views in elsewhere/<frame>/<category>.png"
    assert expected in listed(out, check.NO_PAIRS, REFUSED)[0]


def test_check_lists_what_3d_ovs_lacks(copies: Callable, capsys: pytest.CaptureFixture) -> None:
    folder = copies("3d-ovs")
    place = folder / "segmentations"
    gone, odd = sorted((place / TEST[0]).glob("*.png"))[:2]
    gone.unlink()
    odd.rename(odd.with_name("odd one.png"))
    (place / "frame_00050").mkdir()
    code, out = checked(folder, capsys)
    assert code == 1
    assert listed(out, "classes without a mask in a test view, left out there") == [
        f"{TEST[0]}/{path.name}" for path in (gone, odd)
    ]
    assert listed(out, "masks of classes that classes.txt does not name, left out") == [f"{TEST[0]}/odd one.png"]
    assert listed(out, "folders of segmentations/ that belong to no view") == ["frame_00050"]


def break_label(content: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder.parent / f"label/desk/{TEST[0]}.json").write_text(json.dumps(content))

    return change


def polygon(points: object) -> dict:
    return {"objects": [{"category": "a", "segmentation": points}]}


BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "label is a list": ("lerf-ovs", break_label([]), "no list under the key 'objects'"),
    "object is text": ("lerf-ovs", break_label({"objects": ["x"]}), r"objects\[0\] is 'x'"),
    "no category": ("lerf-ovs", break_label({"objects": [{"segmentation": []}]}), "no text under the key 'category'"),
    "category climbs": ("lerf-ovs", break_label({"objects": [{"category": "../x"}]}), "leads out of its folder"),
    "no polygon": ("lerf-ovs", break_label({"objects": [{"category": "a"}]}), "no polygon"),
    "polygon of text": ("lerf-ovs", break_label(polygon([["1", "2"]])), "no polygon"),
    "polygon of triples": ("lerf-ovs", break_label(polygon([[1, 2, 3]])), "no polygon"),
    "polygon is infinite": ("lerf-ovs", break_label(polygon([[1e300, 2], [1, 1], [2, 2]])), "no polygon"),
    "polygon of booleans": ("lerf-ovs", break_label(polygon([[True, 2], [1, 1], [2, 2]])), "no polygon"),
    "size is negative": (
        "lerf-ovs",
        break_label(polygon([]) | {"info": {"width": -1, "height": 5}}),
        "width and heigh",
    ),
    "no list of classes": ("3d-ovs", lambda f: (f / "segmentations/classes.txt").unlink(), r"classes\.txt cannot be"),
    "empty list": ("3d-ovs", lambda f: (f / "segmentations/classes.txt").write_text("\n \n"), "names no class"),
    "binary list": ("3d-ovs", lambda f: (f / "segmentations/classes.txt").write_bytes(b"\xff\0"), "cannot be read"),
    "class climbs": ("3d-ovs", lambda f: (f / "segmentations/classes.txt").write_text("../../x"), "leads out of"),
    "mask is no picture": (
        "3d-ovs",
        lambda f: next((f / f"segmentations/{TEST[0]}").glob("*.png")).write_bytes(b"x"),
        "is no picture",
    ),
    "pseudo mask is no picture": (
        "lerf-ovs",
        lambda f: next((f / "gt_mask/frame_00001").glob("*.png")).write_bytes(b""),
        "is no picture",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_layouts_are_refused_with_the_path(copies: Callable, case: str, capsys: pytest.CaptureFixture) -> None:
    layout, change, message = BROKEN[case]
    folder = copies(layout)
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert str(folder.parent) in str(caught.value)
    code, out = checked(folder, capsys)
    assert code == 2, out
    assert re.search(message, out)


def test_without_training_masks_train_names_what_is_missing(copies: Callable, capsys: pytest.CaptureFixture) -> None:
    for layout, files in (("lerf-ovs", "<frame>/<category>"), ("3d-ovs", "<image>/<class>")):
        folder = copies(layout)
        shutil.rmtree(folder / "gt_mask")
        assert call(train_script, "-s", folder, "-m", folder.parent / "m", *FAST) == 2
        message = capsys.readouterr().err
        assert f"pseudo masks of training views in gt_mask/{files}.png" in message
        assert "scene.check" in message
        assert not (folder.parent / "m").exists()


def test_dataset_that_does_not_match_the_folder(copies: Callable, capsys: pytest.CaptureFixture) -> None:
    folder = copies("ref-lerf")
    for layout, missing in (("lerf-ovs", "no label files"), ("3d-ovs", "classes.txt")):
        with pytest.raises(UserError, match=f"(?s){missing}.*--dataset"):
            load(folder, dataset=layout)
        code, out = checked(folder, capsys, "--dataset", layout)
        assert code == 2
        assert "cannot be used: " in out


def test_check_without_a_scene(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match="does not exist"):
        check.main(["-s", str(tmp_path / "nowhere")])
    (tmp_path / "README.md").write_text("no folder")
    with pytest.raises(UserError, match=r"README\.md is a file"):
        check.main(["-s", str(tmp_path / "README.md")])
    with pytest.raises(UserError, match="-s is missing"):
        check.main([])
    code, out = checked(tmp_path, capsys)
    assert code == 2
    assert "no annotation of any layout was found" in out


@pytest.mark.parametrize("layout", ["lerf-ovs", "3d-ovs"])
def test_annotations_of_pseudo_masks_do_not_change_the_dataset(copies: Callable, folders: dict, layout: str) -> None:
    folder = copies(layout)
    shutil.copytree(folders["ref-lerf"] / "json/train_json", folder / "json/train_json")
    assert load(folder).dataset == layout
    shutil.copytree(folders["ref-lerf"] / "json/test_json", folder / "json/test_json")
    assert load(folder).dataset == "ref-lerf"
