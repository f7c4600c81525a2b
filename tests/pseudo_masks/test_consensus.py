"""Multi-view consensus on a scene of two balls whose masks are known exactly, and its command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import pseudo_mask
from gaussian_renderer import ScoreRenderer
from pseudo_masks import consensus as script
from pseudo_masks.consensus import consensus, soft_iou, without_specks
from pseudo_masks.mask_votes import MaskedView, vote
from scene.cameras import Camera
from scene.layouts.mask_confidence import read_confidences, write_confidences
from scene.layouts.ref_lerf import load, mask_names
from scene.model_folder import load_start
from scene.readers.image_files import read_mask
from tests.rigs.ball_scene import NAMES, balls, circle, true_masks, write_ball_scene
from tests.rigs.paths import SHARED
from tests.rigs.small_run import call, hashes
from utils.errors import UserError
from utils.metrics import iou, resized_mask

REDKITCHEN = SHARED / "scenes/redkitchen"
VIEWS = 12


@pytest.fixture(scope="module")
def truth() -> tuple[list[Camera], Tensor]:
    model, owner = balls()
    cameras = circle(VIEWS)
    return cameras, true_masks(model, owner, cameras)


def consensus_masks(cameras: list[Camera], masks: Tensor, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Return the masks of the consensus [V, 2, H, W] and the agreement [V, 2]."""
    renderer = ScoreRenderer(balls()[0].to(device), 1 << 30)
    masks = masks.to(device)
    views = [MaskedView(c, [0, 1], lambda m=m: m) for c, m in zip(cameras, masks, strict=True)]
    votes = vote(renderer, views, 2)
    pictures = torch.stack([renderer.render_scores(camera, votes.votes) for camera in cameras])
    return (pictures > votes.thresholds[:, None, None]).cpu(), votes.agreement.cpu()


def ious(found: Tensor, truth: Tensor) -> Tensor:
    return (found & truth).sum(dim=(2, 3)) / (found | truth).sum(dim=(2, 3)).clamp_min(1)


def test_true_masks_come_back(truth, device):
    cameras, masks = truth
    found, agreement = consensus_masks(cameras, masks, device)
    assert ious(found, masks).mean() > 0.95
    assert ious(found, masks).min() > 0.88
    assert agreement.min() > 0.7


def test_an_outlier_is_found_and_repaired(truth):
    cameras, masks = truth
    damaged = masks.clone()
    damaged[3, 0], damaged[7, 0] = masks[3, 1], False  # the other ball; a corner of the table
    damaged[7, 0, -12:, :12] = True
    damaged[9, 1, :, : masks.shape[3] // 2] = True  # merged with half of the picture
    found, agreement = consensus_masks(cameras, damaged)
    assert ious(found, masks).min() > 0.85
    wrong = torch.zeros_like(agreement, dtype=torch.bool)
    wrong[[3, 7], [0, 0]] = True
    assert agreement[wrong].max() < 0.2
    assert agreement[9, 1] < 0.5
    wrong[9, 1] = True
    assert agreement[~wrong].min() > 0.65


def test_a_block_of_wrong_views_is_outvoted(truth):
    """A third of the masks show the other ball, in neighbouring views, and agree with each other."""
    cameras, masks = truth
    damaged = masks.clone()
    damaged[4:8, 0] = masks[4:8, 1]
    found, agreement = consensus_masks(cameras, damaged)
    assert ious(found, masks).min() > 0.85
    assert agreement[4:8, 0].max() < 0.3
    assert agreement[[0, 1, 2, 3, 8, 9, 10, 11], 0].min() > 0.65


def test_a_side_that_few_views_see_is_no_outlier(truth):
    """Nine cameras stand close together in front, three behind, where they see other Gaussians of the balls."""
    cameras = [*circle(9, turn=0.5), *circle(12)[5:8]]
    model, owner = balls()
    masks = true_masks(model, owner, cameras)
    found, agreement = consensus_masks(cameras, masks)
    assert agreement[9:].min() > 0.5
    assert ious(found, masks)[9:].min() > 0.85


def test_a_single_mask_is_trusted(truth):
    cameras, masks = truth
    renderer = ScoreRenderer(balls()[0], 1 << 30)
    votes = vote(renderer, [MaskedView(cameras[0], [1], lambda: masks[0, 1:])], 2)
    assert votes.agreement[0, 1] == 0.5
    assert votes.agreement[0, 0].isnan()
    picture = renderer.render_scores(cameras[0], votes.votes[:, 1:])[0]
    assert iou((picture > votes.thresholds[1]).numpy(), masks[0, 1].numpy()) > 0.9
    assert not votes.votes[:, 0].any()


class TestFolder:
    """The folder that `pseudo_masks.consensus` writes."""

    @pytest.fixture
    def given(self, truth, tmp_path: Path) -> Path:
        """View 2 lacks the mask of one ball, view 5 has the mask of the other ball."""
        cameras, masks = truth
        damaged = masks.clone()
        damaged[5, 0] = masks[5, 1]
        return write_ball_scene(tmp_path / "scene", damaged, cameras, missing=frozenset({(2, 1)}))

    def run(self, scene: Path, *flags: object) -> int:
        model = ["--start_checkpoint", scene / "model.ply"]
        return call(
            script, "-s", scene, *model, "--mask_dir", "given", "--out_dir", "agreed", "--device", "cpu", *flags
        )

    def test_masks_confidences_and_summary(self, given: Path, truth, capsys: pytest.CaptureFixture) -> None:
        assert self.run(given) == 0
        assert "1 added where there was none, 0 left out" in capsys.readouterr().out
        entries = json.loads((given / "agreed/confidence.json").read_text())["masks"]
        assert len(entries) == 2 * VIEWS
        for row, view_masks in enumerate(truth[1]):
            for name, mask in zip(NAMES, view_masks, strict=True):
                found = read_mask(given / f"agreed/frame_{row:05d}/{name}.png")
                assert iou(found, mask.numpy()) > 0.85
        assert entries["frame_00005/ball.png"]["source"] == "consensus"
        assert entries["frame_00005/ball.png"]["agreement"] < 0.2
        assert entries["frame_00002/cube.png"]["agreement"] is None
        kept = [name for name, entry in entries.items() if entry["source"] == "kept"]
        assert len(kept) > VIEWS
        for name in kept:
            assert np.array_equal(read_mask(given / "agreed" / name), read_mask(given / "given" / name))
        assert all(0.6 < entry["confidence"] <= 1 for entry in entries.values())
        scene = load(given, mask_dir="agreed")
        assert {r.confidence for v in scene.train for r in v.referrals} == {e["confidence"] for e in entries.values()}

    def test_wrong_masks_that_are_kept_have_the_lowest_confidence(self, given: Path) -> None:
        assert self.run(given, "--keep", 0) == 0
        confidences = read_confidences(given / "agreed")
        assert min(confidences, key=confidences.get) == "frame_00005/ball.png"
        assert confidences.pop("frame_00005/ball.png") < 0.1
        assert min(confidences.values()) > 0.6

    def test_a_hidden_object_gets_no_mask(self, given: Path, truth, capsys: pytest.CaptureFixture) -> None:
        """The JSON of a view names balls outside of its picture; their masks show something else."""
        cameras, masks = truth
        away = Camera(
            "frame_00099.png", cameras[0].rotation, cameras[0].translation + [9.0, 0, 0], 70, 70, 40, 30, 80, 60
        )
        other = given.parent / "hidden"
        wrong = torch.cat((masks, masks[:1]))
        write_ball_scene(other, wrong, [*cameras, away])
        assert self.run(other) == 0
        assert "2 left out as the object is hidden" in capsys.readouterr().out
        assert not (other / "agreed/frame_00099").exists()
        assert not any(name.startswith("frame_00099") for name in read_confidences(other / "agreed"))

    def test_a_second_run_replaces_the_first(self, given: Path) -> None:
        assert self.run(given) == 0
        first = hashes(given / "agreed")
        (given / "agreed/frame_00003/ball.png").unlink()
        assert self.run(given) == 0
        assert hashes(given / "agreed") == first
        assert not list(given.glob(".*"))

    def test_corrected_masks_are_not_replaced_and_have_full_weight(
        self, given: Path, capsys: pytest.CaptureFixture
    ) -> None:
        """A folder with added masks, or confidences of another program, is not replaced either."""
        assert self.run(given) == 0
        corrected, added = given / "agreed/frame_00005/ball.png", given / "agreed/frame_00005/more.png"
        confidences = read_confidences(given / "agreed")
        shutil.copy(given / "given/frame_00005/ball.png", corrected)
        assert read_confidences(given / "agreed").keys() == confidences.keys() - {"frame_00005/ball.png"}
        before = hashes(given)
        capsys.readouterr()
        assert self.run(given) == 2
        assert "frame_00005/ball.png" in capsys.readouterr().err
        assert hashes(given) == before
        corrected.rename(added)
        before = hashes(given)
        assert self.run(given) == 2
        assert "frame_00005/more.png" in capsys.readouterr().err
        added.unlink()
        write_confidences(given / "agreed", {name: {"confidence": 1} for name in confidences})
        before = hashes(given)
        assert self.run(given) == 2
        assert hashes(given) == before

    def test_smaller_pictures(self, given: Path, truth) -> None:
        assert self.run(given, "-r", "2", "--keep", "1") == 0
        for row, view_masks in enumerate(truth[1]):
            found = read_mask(given / f"agreed/frame_{row:05d}/ball.png")
            assert found.shape == view_masks[0].shape
            assert iou(found, view_masks[0].numpy()) > 0.5  # of a ball that is mostly hidden

    def test_as_a_function(self, given: Path, tmp_path: Path) -> None:
        written = consensus(load(given, mask_dir="given"), balls()[0], "given", tmp_path / "elsewhere")
        assert len(written) == 2 * VIEWS
        assert {w.pair.category for w in written} == set(NAMES)
        assert read_confidences(tmp_path / "elsewhere").keys() == {n for w in written for n in w.pair.files}

    def test_failure_leaves_the_old_result(self, given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.run(given) == 0
        before = hashes(given)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(script, "encode", full)
            assert self.run(given) == 2
        assert hashes(given) == before
        rename = Path.rename

        def refused(path: Path, target: Path) -> Path:
            return full() if path.name == "new" else rename(path, target)

        monkeypatch.setattr(Path, "rename", refused)
        assert self.run(given) == 2
        assert hashes(given) == before

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--mask_dir", "nowhere"], ["nowhere", "--mask_dir"]),
            (["--out_dir", "given"], ["--out_dir", "given"]),
            (["--out_dir", "images"], ["--out_dir", "images", "not written by"]),
            (["--out_dir", "."], ["--out_dir"]),
            (["--out_dir", "given/inside"], ["--out_dir"]),
            (["--start_checkpoint", "no.ply"], ["no.ply"]),
        ],
    )
    def test_bad_flags(self, given: Path, capsys: pytest.CaptureFixture, flags: list[str], words: list[str]) -> None:
        before = hashes(given)
        assert self.run(given, *flags) == 2
        errors = capsys.readouterr().err
        assert all(word in errors for word in words), errors
        assert "Traceback" not in errors
        assert hashes(given) == before

    @pytest.mark.parametrize("flag", ["-s", "--start_checkpoint", "--out_dir"])
    def test_missing_flags(self, given: Path, capsys: pytest.CaptureFixture, flag: str) -> None:
        flags = {"-s": given, "--start_checkpoint": given / "model.ply", "--out_dir": "agreed"}
        del flags[flag]
        assert call(script, *(word for pair in flags.items() for word in pair), "--mask_dir", "given") == 2
        assert f"{flag} is missing" in capsys.readouterr().err

    def test_no_mask_at_all(self, given: Path, capsys: pytest.CaptureFixture) -> None:
        for path in (given / "given").rglob("*.png"):
            path.unlink()
        assert self.run(given) == 2
        assert "given" in capsys.readouterr().err

    def test_unreadable_mask(self, given: Path, capsys: pytest.CaptureFixture) -> None:
        (given / "given/frame_00004/ball.png").write_bytes(b"\x89PNG")
        assert self.run(given) == 2
        assert "frame_00004/ball.png" in capsys.readouterr().err


class TestConfidences:
    @pytest.mark.parametrize("content", ["[]", '{"masks": []}', '{"masks": {"a.png": 1}}', "{", "1e999",
                                         '{"masks": {"a.png": {"confidence": 1.5}}}',
                                         '{"masks": {"a.png": {"confidence": NaN}}}',
                                         '{"masks": {"a.png": {"confidence": true}}}'])  # fmt: skip
    def test_damaged_files_are_named(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "confidence.json").write_text(content)
        with pytest.raises(UserError, match=r"confidence\.json"):
            read_confidences(tmp_path)

    def test_round_trip(self, tmp_path: Path) -> None:
        assert read_confidences(tmp_path) == {}
        write_confidences(tmp_path, {"a/b c.png": {"confidence": 0.25, "source": "kept"}})
        assert read_confidences(tmp_path) == {"a/b c.png": 0.25}


def test_specks_go_and_parts_stay():
    mask = np.zeros((40, 40), bool)
    mask[5:25, 5:15] = mask[5:15, 20:30] = True  # 200 and 100 pixels
    clean = mask.copy()
    mask[35:37, 35:37] = True
    assert np.array_equal(without_specks(mask), clean)
    assert not without_specks(np.zeros((4, 4), bool)).any()


def test_soft_iou_of_hard_votes_is_iou():
    generator = np.random.default_rng(0)
    first, second = generator.random((2, 9, 9)) > 0.5
    assert soft_iou(first.astype(np.float32), second) == pytest.approx(iou(first, second))


def test_mask_names_lists_what_has_no_file(truth, tmp_path: Path):
    cameras, masks = truth
    scene = write_ball_scene(tmp_path, masks, cameras, missing=frozenset({(0, 0)}))
    named = mask_names(scene, load(scene, mask_dir="given").train)
    assert list(named) == [f"frame_{row:05d}" for row in range(VIEWS)]
    assert named["frame_00000"] == {name: [f"frame_00000/{name}.png"] for name in NAMES}


def replace_blocks(masks: dict[tuple[str, str], Path]) -> dict[tuple[str, str], Path]:
    """Replace 30 % of each object's masks, by (frame, object), by those of one other object in neighbouring views."""
    replaced = dict(masks)
    for category in {category for _, category in masks}:
        frames = [frame for frame, owner in masks if owner == category]
        count = round(0.3 * len(frames))
        blocks = [frames[first : first + count] for first in range(len(frames) - count + 1)]
        others = sorted({other for _, other in masks} - {category})
        choices = [
            [(frame, other) for frame in block if (frame, other) in masks] for block in blocks for other in others
        ]
        for frame, other in max(choices, key=len):
            replaced[frame, category] = masks[frame, other]
    return replaced


@pytest.mark.slow
@pytest.mark.skipif(not REDKITCHEN.is_dir(), reason=f"{REDKITCHEN} is not there; set SHARED_DIR")
def test_real_scene(tmp_path: Path):
    """Noisy masks, and those with wrong blocks. A quarter of the size: the figures of docs/DATA.md are of full size."""
    scene = load(REDKITCHEN, resolution=4, mask_dir="gt_mask_noisy")
    gaussians = load_start(SHARED / "scenes/redkitchen_3dgs/point_cloud/iteration_10000/point_cloud.ply")[0]
    names = {
        (frame, category): files[0]
        for frame, objects in mask_names(REDKITCHEN, scene.train).items()
        for category, files in objects.items()
        if all((REDKITCHEN / folder / files[0]).is_file() for folder in ("gt_mask", "gt_mask_noisy"))
    }
    noisy = {key: REDKITCHEN / "gt_mask_noisy" / name for key, name in names.items()}
    truths = {key: read_mask(REDKITCHEN / "gt_mask" / name) for key, name in names.items()}
    for case, masks in (("noisy", noisy), ("wrong blocks", replace_blocks(noisy))):
        given, found = tmp_path / case, tmp_path / f"{case} consensus"
        for key, path in masks.items():
            (given / names[key]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, given / names[key])
        consensus(scene, gaussians, given, found)
        means = []
        for folder in (given, found):
            missing = [key for key in names if not (folder / names[key]).is_file()]
            pairs = [(read_mask(folder / names[key]), truths[key]) for key in names if key not in missing]
            values = [iou(resized_mask(mask, truth.shape), truth) for mask, truth in pairs if truth.any()]
            means.append(sum(values) / (len(values) + sum(truths[key].any() for key in missing)))
        assert means[0] < 0.6
        assert means[1] > 0.83


def test_consensus_of_pseudo_masks(truth, tmp_path: Path, capsys: pytest.CaptureFixture):
    """pseudo_mask.py --consensus, on imported masks of which one shows the wrong ball."""
    cameras, masks = truth
    given = masks.clone()
    given[3, 0] = masks[3, 1]
    scene = write_ball_scene(tmp_path / "scene", given, cameras)
    flags = ["-s", scene, "--import", scene / "given", "--mask_dir", "made", "--device", "cpu", "--consensus"]
    assert call(pseudo_mask, *flags, tmp_path / "nowhere.ply") == 2
    assert "nowhere.ply does not exist" in capsys.readouterr().err
    assert not (scene / "made").exists()
    assert call(pseudo_mask, *flags, scene / "model.ply") == 0
    repaired = read_mask(scene / "made_consensus/frame_00003/ball.png")
    assert iou(repaired, masks[3, 0].numpy()) > 0.85
    assert np.array_equal(read_mask(scene / "made/frame_00003/ball.png"), masks[3, 1].numpy())
    shutil.copy(scene / "made/frame_00003/ball.png", scene / "made_consensus/frame_00003/ball.png")
    shutil.rmtree(scene / "made")
    assert call(pseudo_mask, *flags, scene / "model.ply") == 2  # before masks are made
    assert "made_consensus" in capsys.readouterr().err
    assert not (scene / "made").exists()
