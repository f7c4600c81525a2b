"""Baselines against closed forms: a scene of known Gaussians, sentences of known embeddings, masks of known overlap."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from arguments import ModelParams, PipelineParams
from benchmarks.run import BenchmarkParams, find_scenes
from evaluation import baselines
from evaluation.baselines import LiftedObjects, lift_objects, nearest_objects
from evaluation.pairs import evaluate
from evaluation.protocols import PROTOCOLS
from gaussian_renderer import ScoreRenderer
from inference.predict import open_trained
from referring.text_encoder import TextEncoder
from scene.formats.ply import load_ply
from scene.layouts import ref_lerf
from scene.layouts.loader import load
from scene.model_folder import saved_flags
from tests.rigs.layout_fixtures import LAYOUTS
from tests.rigs.paths import SHARED
from tests.rigs.tiny_scene import entry, frame, write_json, write_mask, write_referring_scene


def test_nearest_sentence_is_that_of_the_highest_cosine() -> None:
    tokens = {
        "long cup": torch.tensor([[9.0, 0, 0], [9, 1, 0]]),  # length does not matter
        "box": torch.tensor([[0.0, 1, 0]]),
        "box again": torch.tensor([[0.0, 0.9, 0.1]]),
        "a": torch.tensor([[0.4, 0.1, 0], [0.4, 0.1, 0]]),
        "b": torch.tensor([[0.1, 0.5, 0.2]]),
    }
    training = [("cup", "long cup"), ("box", "box"), ("box", "box again")]
    assert nearest_objects(tokens, training, ["a", "b", "box"]) == {"a": "cup", "b": "box", "box": "box"}


def test_lifted_scores_are_weighted_shares_of_mask_pixels(model: Path, scene: Path) -> None:
    """Against W itself, made of pictures of single Gaussians; objects count in views that have a mask of them."""
    loaded = ref_lerf.load(scene, resolution=4)
    gaussians = load_ply(model / "point_cloud/iteration_40/point_cloud.ply")
    renderer = ScoreRenderer(gaussians, 0)
    views = [view for view in loaded.train if view.referrals][:3]
    views[1] = views[1].__class__(**{**vars(views[1]), "referrals": views[1].referrals[4:]})  # one object fewer
    names, scores = lift_objects(renderer, views)
    count = 24
    chosen = torch.linspace(0, len(gaussians) - 1, count).long()
    one_hot = torch.zeros(len(gaussians), count)
    one_hot[chosen, torch.arange(count)] = 1
    inside, total = torch.zeros(count, len(names)), torch.zeros(count, len(names))
    for view in views:
        weights = renderer.render_scores(view.camera, one_hot)  # [count, H, W]
        for column, name in enumerate(names):
            mask = next((view.mask(r) for r in view.referrals if r.category == name), None)
            if mask is not None:
                inside[:, column] += weights[:, torch.from_numpy(mask)].sum(dim=1)
                total[:, column] += weights.sum(dim=(1, 2))
    expected = torch.where(total > 0, inside / total.clamp_min(1e-12), 0)
    seen = total > 1e-3
    assert seen.any()
    assert expected.max() > 0.5
    torch.testing.assert_close(scores[chosen][seen], expected[seen], atol=1e-4, rtol=1e-3)
    assert scores.min() >= 0
    assert scores.max() <= 1 + 1e-5


def test_logits_of_the_lift_are_those_of_the_blended_scores(model: Path, scene: Path) -> None:
    view = ref_lerf.load(scene, resolution=4).test[0]
    gaussians = load_ply(model / "point_cloud/iteration_40/point_cloud.ply")
    renderer = ScoreRenderer(gaussians, 0)
    scores = torch.rand(len(gaussians), 2, generator=torch.Generator().manual_seed(0))
    lifted = LiftedObjects(renderer, scores, {"a": 1, "b": 0, "c": 1})
    logits = lifted.logits(view.camera, ["a", "b", "c"])
    blended = renderer.render_scores(view.camera, scores)
    uncovered = renderer.plan(view.camera).transmittance() >= 1
    assert torch.equal(logits[0], logits[2])
    assert (logits[:, uncovered] == -torch.inf).all()
    torch.testing.assert_close(logits[:2].sigmoid(), blended.flip(0).clamp(1e-6, 1 - 1e-6), atol=2e-6, rtol=1e-4)


def write_pseudo(folder: Path, number: int, left: int, category: str = "red cup") -> None:
    write_mask(folder / f"pseudo/{frame(number)}/{category}.png", left=left)


def test_pseudo_masks_of_test_views_against_the_ground_truth(tmp_path: Path) -> None:
    """Masks of 8 columns from 4 on; pseudo masks from 8 and 4 on: IoU 4 / 12 and 1; every sentence counts."""
    folder = write_referring_scene(tmp_path / "scene", [1, 2], [3, 4])
    two = entry(frame(4), sentences=["a new one", "another"])
    write_json(folder / f"json/test_json/{frame(4)}.json", two)
    write_pseudo(folder, 1, 4)
    write_pseudo(folder, 3, 8)
    write_pseudo(folder, 4, 4)
    scene = ref_lerf.load(folder, mask_dir="pseudo")
    found = baselines.evaluate_masks(scene, "pseudo", PROTOCOLS["ref-lerf"], tmp_path / "out")
    assert found["views"] == "test"
    assert found["pairs"] == 3
    assert found["mIoU"] == pytest.approx(100 * (1 / 3 + 1 + 1) / 3)
    assert found["missing_predictions"] == []
    assert [pair.score.iou for pair in evaluate(scene.test, tmp_path / "out")] == [pytest.approx(1 / 3), 1, 1]


def test_pseudo_masks_of_training_views_where_test_views_have_none(tmp_path: Path) -> None:
    """Frame 1 is shifted by half, frame 2 right; frame 5 has no clean mask; one pair an object."""
    folder = write_referring_scene(tmp_path / "scene", [1, 2, 5], [3])
    (folder / f"gt_mask/{frame(5)}/red cup.png").unlink()
    for number, left in ((1, 8), (2, 4), (5, 4)):
        write_pseudo(folder, number, left)
    scene = ref_lerf.load(folder, mask_dir="pseudo")
    found = baselines.evaluate_masks(scene, "pseudo", PROTOCOLS["ref-lerf"], tmp_path / "out")
    assert (found["views"], found["pairs"]) == ("training", 2)
    assert found["mIoU"] == pytest.approx(100 * (1 / 3 + 1) / 2)
    clean = ref_lerf.load(folder)
    reason = baselines.evaluate_masks(clean, "gt_mask", PROTOCOLS["ref-lerf"], tmp_path / "none")
    assert "no view has both" in reason
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("layout", ["lerf-ovs", "3d-ovs"])
def test_pseudo_masks_of_names(scene: Path, tmp_path: Path, layout: str) -> None:
    """One test view gets the true masks of two objects as pseudo masks."""
    folder = LAYOUTS[layout](scene, tmp_path / "root")
    model = ModelParams(source_path=folder)
    assert "no view has both" in baselines.evaluate_masks(load(model), "gt_mask", PROTOCOLS[layout], tmp_path / "none")
    frame_id = load(model).test[0].id
    masks = sorted((scene / f"gt_mask/{frame_id}").glob("*.png"))[:2]
    for mask in masks:
        (folder / f"gt_mask/{frame_id}").mkdir(exist_ok=True)
        shutil.copy(mask, folder / f"gt_mask/{frame_id}/{mask.name}")
    found = baselines.evaluate_masks(load(model), "gt_mask", PROTOCOLS[layout], tmp_path / "out")
    assert (found["views"], found["pairs"]) == ("test", 2)
    assert found["per_category"].keys() == {mask.stem for mask in masks}
    assert found["mIoU"] == pytest.approx(100) if layout == "3d-ovs" else found["mIoU"] > 85  # holes are filled
    params = BenchmarkParams(root=folder.parent, out=tmp_path)
    assert [path.name for path in find_scenes(params)] == [folder.name]  # not the folder of labels


def test_pseudo_masks_of_a_real_scene(tmp_path: Path) -> None:
    """redkitchen's damaged masks have 57.7 mIoU against the clean ones, by the record of who damaged them."""
    folder = SHARED / "scenes/redkitchen"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set SHARED_DIR")
    scene = ref_lerf.load(folder, mask_dir="gt_mask_noisy")
    found = baselines.evaluate_masks(scene, "gt_mask_noisy", PROTOCOLS["ref-lerf"], tmp_path)
    assert found["views"] == "training"
    assert found["mIoU"] == pytest.approx(57.7, abs=0.05)


def test_the_lift_of_a_whole_model(copied: Path, tmp_path: Path) -> None:
    """The written masks give the reported numbers."""
    model = ModelParams(**(saved_flags(copied, [ModelParams]) | {"model_path": copied}))
    opened = open_trained(model, PipelineParams(device="cpu"), -1, 0.5)
    found = baselines.evaluate_lift(opened, PROTOCOLS["ref-lerf"], tmp_path / "lift", 10**8)
    pairs = evaluate(opened.scene.test, tmp_path / "lift")
    assert found["mIoU"] == pytest.approx(100 * np.mean([pair.score.iou for pair in pairs]))
    middle = next(point for point in found["threshold_curve"] if point["threshold"] == 0.5)
    assert middle["mIoU"] == pytest.approx(found["mIoU"], abs=1e-9)
    sentences = [r.sentence for view in opened.scene.test for r in view.referrals]
    training = [(r.category, r.sentence) for view in opened.scene.train for r in view.referrals]
    tokens = TextEncoder("embedded").encode([s for _, s in training] + sentences)
    matches = nearest_objects(tokens, training, sentences)
    right = [matches[pair.referral.sentence] == pair.referral.category for pair in pairs]
    assert found["objects_right"] == pytest.approx(100 * np.mean(right))  # each object is in both test views
