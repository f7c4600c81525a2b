"""Mask confidences in training, and `train.py --two_stage` end to end, interrupted and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import eval as eval_script
import train as train_script
from arguments import ReferringParams, parse
from gaussian_renderer import ScoreRenderer
from inference import predict, training_masks
from inference.predict import Predictor
from inference.trained_model import load_trained
from inference.training_masks import write_training_masks
from referring.field import ReferringField
from referring.text_encoder import TextEncoder
from scene.dataset import Scene
from scene.formats.ply import load_ply, save_ply
from scene.layouts.mask_confidence import write_confidences
from scene.layouts.ref_lerf import load
from scene.model_folder import load_config, trained_with_antialiasing
from scene.readers.image_files import read_mask, read_mask_values
from tests.rigs.ball_scene import NAMES, balls, circle, true_masks, write_ball_scene
from tests.rigs.small_run import FAST, MODEL_FILES, call, hashes
from training.preflight import StartModel
from training.referring import ReferringStage, bce_with_grads, drop_untrusted_masks

FIELD = MODEL_FILES[1]
STEPS = 60
QUICK = [
    *("--text_encoder", "embedded", "--device", "cpu", "--iterations", STEPS, "--mask_dir", "given"),
    *("--language_feature_lr", "0.02", "--mlp_lr", "0.002"),
]
FIELDS = [f"referring/iteration_{STEPS}.safetensors", f"stage_a/referring/iteration_{STEPS}.safetensors"]
CLOUD = "point_cloud/iteration_0/point_cloud.ply"


def with_confidences(scene: Path, confidences: dict[str, float]) -> None:
    write_confidences(scene / "gt_mask", {name: {"confidence": value} for name, value in confidences.items()})


def mask_names(scene: Path) -> list[str]:
    """List all training masks."""
    masks = {r.mask_path for view in load(scene).train for r in view.referrals}
    return sorted(path.relative_to(scene / "gt_mask").as_posix() for path in masks)


def trained_field(scene: Path, model: Path, folder: Path, *flags: str) -> bytes:
    """Return the field after a few steps on the Gaussians of `model`."""
    start = ["--start_checkpoint", model / MODEL_FILES[0]]
    assert call(train_script, "-s", scene, "-m", folder, *start, *FAST, *flags) == 0
    return (folder / FIELD).read_bytes()


class TestConfidenceInTraining:
    def test_weight_0_equals_leaving_out(self, copied_scene: Path, model: Path, tmp_path: Path) -> None:
        view = sorted(mask_names(copied_scene))[0].split("/")[0]
        names = mask_names(copied_scene)
        without = [name for name in names if name.startswith(view)]
        with_confidences(copied_scene, dict.fromkeys(without, 0.0))
        weighted = trained_field(copied_scene, model, tmp_path / "weighted")
        plain = trained_field(copied_scene, model, tmp_path / "plain", "--no-mask_confidence")
        for name in without:
            (copied_scene / "gt_mask" / name).unlink()
        left_out = trained_field(copied_scene, model, tmp_path / "left out")
        assert weighted == left_out != plain

    def test_confidence_1_changes_no_bits(self, copied_scene: Path, model: Path, tmp_path: Path) -> None:
        with_confidences(copied_scene, dict.fromkeys(mask_names(copied_scene), 1.0))
        weighted = trained_field(copied_scene, model, tmp_path / "weighted")
        assert weighted == trained_field(copied_scene, model, tmp_path / "plain", "--no-mask_confidence")

    def test_all_masks_of_confidence_0(self, copied_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        with_confidences(copied_scene, dict.fromkeys(mask_names(copied_scene), 0.0))
        assert call(train_script, "-s", copied_scene, "-m", tmp_path / "m", *FAST) == 2
        assert "--no-mask_confidence" in capsys.readouterr().err

    def test_colour_alone_needs_no_confidence(self, copied_scene: Path, tmp_path: Path) -> None:
        with_confidences(copied_scene, dict.fromkeys(mask_names(copied_scene), 0.0))
        flags = ["--rgb_iterations", 2, "--iterations", 0, "--device", "cpu"]
        assert call(train_script, "-s", copied_scene, "-m", tmp_path / "m", *flags) == 0

    @pytest.mark.parametrize("sentences", ["1", "all"])
    def test_loss_and_gradient_are_weighted(self, copied_scene: Path, model: Path, sentences: str) -> None:
        """Against the mean of weight times BCE, differentiated by autograd."""
        names = mask_names(copied_scene)
        values = torch.linspace(0.1, 1, len(names)).tolist()
        with_confidences(copied_scene, dict(zip(names, values, strict=True)))
        scene = load(copied_scene)
        gaussians = load_ply(model / MODEL_FILES[0])
        params = ReferringParams(contrastive="none", sentences_per_step=sentences)
        stage = make_stage(scene, gaussians, params)
        view = scene.train[0]
        weights = torch.tensor([r.confidence for r in view.referrals])
        assert len(set(weights.tolist())) > 1
        masks = torch.stack([torch.from_numpy(view.mask(r)) for r in view.referrals])
        logits = torch.randn(masks.shape).requires_grad_()
        bce, grads = bce_with_grads(logits.detach(), masks, weights[:, None, None])
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, masks.float(), reduction="none")
        expected = (weights * each.mean(dim=(1, 2))).mean()
        torch.testing.assert_close(bce, expected)
        torch.testing.assert_close(grads, torch.autograd.grad(expected, logits)[0], rtol=1e-4, atol=1e-8)
        plain = make_stage(scene, gaussians, replace(params, mask_confidence=False))
        losses = [float(s.step(1)["loss"]) for s in (stage, plain)]  # the same step of the same field
        drawn = next(v for v in scene.train if v.id == stage.view)
        lowest, highest = (f(r.confidence for r in drawn.referrals) for f in (min, max))
        assert lowest - 1e-5 < losses[0] / losses[1] < highest + 1e-5 < 1


def make_stage(scene: Scene, gaussians, params: ReferringParams) -> ReferringStage:
    sentences = scene.sentences([*scene.train, *scene.test])
    tokens = {s: torch.randn(3, 8, generator=torch.Generator().manual_seed(i)) for i, s in enumerate(sentences)}
    torch.manual_seed(0)
    field = ReferringField(len(gaussians), 8)
    renderer = ScoreRenderer(gaussians, 1 << 30)
    return ReferringStage(Path("unused"), scene, gaussians, field, tokens, params, renderer, 0, 40)


def test_drop_untrusted_masks_drops_what_weighs_nothing(copied_scene: Path) -> None:
    names = mask_names(copied_scene)
    with_confidences(copied_scene, {names[0]: 0.0, names[1]: 0.5})
    scene = load(copied_scene)
    kept = [r for view in drop_untrusted_masks(scene.train) for r in view.referrals]
    everything = [r for view in scene.train for r in view.referrals]
    lost = [r for r in everything if r not in kept]
    assert {r.mask_path for r in lost} == {copied_scene / "gt_mask" / names[0]}
    assert all(r.confidence == 1 for view in scene.test for r in view.referrals)


@pytest.fixture(scope="module")
def ball_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two balls and their masks; tests leave it as it is."""
    cameras = circle(6)
    masks = true_masks(*balls(), cameras)
    return write_ball_scene(tmp_path_factory.mktemp("balls") / "scene", masks, cameras)


@pytest.fixture(scope="module")
def both(ball_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of two stages; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("two") / "model"
    assert train_twice(ball_scene, folder) == 0
    return folder


def train_twice(scene: Path, folder: Path, *flags: object) -> int:
    start = ["--start_checkpoint", scene / "model.ply"]
    return call(train_script, "-s", scene, "-m", folder, *start, *QUICK, "--two_stage", *flags)


class TestTwoStage:
    """The option `--two_stage`."""

    def test_both_models_are_kept(self, both: Path, ball_scene: Path) -> None:
        first, second = both / "stage_a", both
        assert (first / CLOUD).read_bytes() == (second / CLOUD).read_bytes()
        assert (second / FIELDS[0]).read_bytes() != (second / FIELDS[1]).read_bytes()
        written = [path.relative_to(first / "masks").as_posix() for path in (first / "masks").rglob("*.png")]
        given = [path.relative_to(ball_scene / "given").as_posix() for path in (ball_scene / "given").rglob("*.png")]
        assert sorted(written) == sorted(given)
        for folder in (first, second):
            assert call(eval_script, "-m", folder, "--device", "cpu") == 0

    @pytest.mark.parametrize("stage", ["a", "b"])
    def test_each_is_what_one_stage_gives(self, both: Path, ball_scene: Path, tmp_path: Path, stage: str) -> None:
        masks = {"a": "given", "b": str(both / "stage_a/masks")}[stage]
        flags = ["--start_checkpoint", ball_scene / "model.ply", *QUICK, "--mask_dir", masks]
        assert call(train_script, "-s", ball_scene, "-m", tmp_path / "m", *flags) == 0
        own = both / FIELDS["ba".index(stage)]
        assert (tmp_path / "m" / FIELDS[0]).read_bytes() == own.read_bytes()

    def test_masks_are_the_mean_over_the_sentences(self, both: Path, ball_scene: Path) -> None:
        """The given mask stays where A sees nothing."""
        trained = load_trained(both / "stage_a")
        predictor = Predictor(trained.gaussians, trained.field, TextEncoder("embedded").encode, 0.5, max_bytes=1 << 30)
        kept = json.loads((both / "stage_a/masks/masks.json").read_text())["given"]
        rendered = 0
        for view in load(ball_scene, mask_dir="given").train:
            for name in NAMES:
                sentences = [r.sentence for r in view.referrals if r.category == name]
                mask = (predictor.probabilities(view.camera, sentences).mean(dim=0) > 0.5).numpy()
                file = f"{view.id}/{name}.png"
                assert (file in kept) == (not mask.any())
                expected = mask if mask.any() else read_mask(ball_scene / "given" / file)
                assert (read_mask(both / "stage_a/masks" / file) == expected).all()
                rendered += mask.any()
        assert rendered > 0

    @pytest.mark.parametrize("stop", [1, 2])
    def test_interrupted_in_either_stage(
        self, both: Path, ball_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture, stop: int,
    ) -> None:  # fmt: skip
        """Ctrl-C in model A or in model B; the files equal those of the uninterrupted run."""
        steps, original = [], ReferringStage.step

        def step(self: ReferringStage, iteration: int) -> dict:
            steps.append(iteration)
            if steps.count(5) == stop and iteration == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return original(self, iteration)

        monkeypatch.setattr(ReferringStage, "step", step)
        folder = tmp_path / "m"
        assert train_twice(ball_scene, folder) == 130
        assert f"train.py -m {folder} --resume" in capsys.readouterr().err
        assert not (folder / FIELDS[0]).exists()
        monkeypatch.undo()
        assert call(train_script, "-m", folder, "--resume") == 0
        for name in (CLOUD, *FIELDS):
            assert (folder / name).read_bytes() == (both / name).read_bytes()

    def test_interrupted_while_masks_are_written(
        self, both: Path, ball_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stopped(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(training_masks, "write_bytes", stopped)
            assert train_twice(ball_scene, tmp_path / "m") == 130
        assert call(train_script, "-m", tmp_path / "m", "--resume") == 0
        assert (tmp_path / "m" / FIELDS[0]).read_bytes() == (both / FIELDS[0]).read_bytes()

    def test_a_second_run_is_refused_and_a_resumed_one_changes_nothing(
        self, both: Path, ball_scene: Path, capsys: pytest.CaptureFixture
    ) -> None:
        before = {name: (both / name).read_bytes() for name in FIELDS}
        assert train_twice(ball_scene, both) == 2
        assert "--resume" in capsys.readouterr().err
        assert call(train_script, "-m", both, "--resume") == 0
        assert {name: (both / name).read_bytes() for name in before} == before

    def test_a_folder_with_a_first_stage_is_not_overwritten(
        self, both: Path, ball_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        (tmp_path / "m").mkdir()
        (tmp_path / "m/stage_a").symlink_to(both / "stage_a")
        before = hashes(both)
        assert train_twice(ball_scene, tmp_path / "m") == 2
        assert "already holds" in capsys.readouterr().err
        assert hashes(both) == before

    def test_nothing_to_train_twice(self, ball_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        assert train_twice(ball_scene, tmp_path / "m", "--iterations", 0) == 2
        assert "--two_stage" in capsys.readouterr().err
        assert not (tmp_path / "m").exists()

    def test_colour_is_trained_once(self, ball_scene: Path, tmp_path: Path) -> None:
        flags = ["--rgb_iterations", 4, "--iterations", 2, "--text_encoder", "embedded", "--device", "cpu"]
        command = ["-s", ball_scene, "-m", tmp_path / "m", "--mask_dir", "given", "--two_stage", *flags]
        assert call(train_script, *command) == 0
        clouds = [tmp_path / "m" / folder / "point_cloud/iteration_4/point_cloud.ply" for folder in ("", "stage_a")]
        assert clouds[0].read_bytes() == clouds[1].read_bytes()
        stages = [
            {json.loads(line)["stage"] for line in (tmp_path / "m" / folder / "log.jsonl").read_text().splitlines()}
            for folder in ("", "stage_a")
        ]
        assert stages == [{"referring"}, {"rgb", "referring"}]

    def test_antialiasing_of_the_start_model_survives_an_interruption(
        self, ball_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def start(_: Path) -> StartModel:  # as a file .spz can say, for which a package is needed
            gaussians = balls()[0]
            gaussians.antialiasing = True
            return StartModel(gaussians, None, 0)

        def stopped(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(train_script, "load_start_model", start)
            patched.setattr(training_masks, "write_bytes", stopped)
            assert train_twice(ball_scene, tmp_path / "m") == 130
        assert call(train_script, "-m", tmp_path / "m", "--resume") == 0
        for folder in (tmp_path / "m/stage_a", tmp_path / "m"):
            assert trained_with_antialiasing(load_config(folder))

    def test_other_gaussians_in_the_folder_are_refused_before_model_a(
        self, ball_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        gaussians = balls()[0]
        gaussians.xyz = gaussians.xyz + 1
        save_ply(tmp_path / "m" / CLOUD, gaussians)
        assert train_twice(ball_scene, tmp_path / "m") == 2
        assert "holds other Gaussians" in capsys.readouterr().err
        assert not (tmp_path / "m/stage_a").exists()

    @pytest.mark.parametrize("flag", ["--mask_confidence", "--no-mask_confidence"])
    def test_given_masks_that_stay_keep_their_confidence(self, both: Path, ball_scene: Path, tmp_path: Path, flag: str):
        """An untrained model A sees nothing; one of the masks of confidence 0 is damaged."""
        scene = Path(shutil.copytree(ball_scene, tmp_path / "scene"))
        names = ["frame_00000/ball.png", "frame_00000/cube.png", "frame_00001/ball.png"]
        write_confidences(scene / "given", dict(zip(names, ({"confidence": c} for c in (0, 0, 0.5)), strict=True)))
        uses_confidence = flag == "--mask_confidence"
        if uses_confidence:
            damaged = scene / "given" / names[1]
            damaged.write_bytes(damaged.read_bytes()[:60])
        flags = make_flags(scene, tmp_path / "m", flag)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(predict, "load_trained", lambda *_, **__: load_trained(both / "stage_a"))
            patched.setattr(Predictor, "probabilities", lambda _, c, s, once: torch.zeros(len(s), c.height, c.width))
            write_training_masks(flags)
        found = load(scene, mask_dir=str(tmp_path / "m/masks"))
        confidences = {
            f"{view.id}/{r.category}.png": r.confidence for view in found.train for r in view.referrals
        }  # fmt: skip
        assert len(confidences) == (10 if uses_confidence else 12)
        assert confidences.get(names[0]) == (None if uses_confidence else 0)
        assert confidences[names[2]] == 0.5
        assert confidences["frame_00001/cube.png"] == 1

    def test_layout_without_json(self, ball_scene: Path, tmp_path: Path) -> None:
        """3D-OVS, whose training masks are named by their files."""
        scene = Path(shutil.copytree(ball_scene, tmp_path / "scene"))
        shutil.rmtree(scene / "json")
        (scene / "segmentations").mkdir()
        (scene / "segmentations/classes.txt").write_text("\n".join(NAMES))
        shutil.copytree(scene / "gt_mask/tested", scene / "segmentations/tested")
        assert train_twice(scene, tmp_path / "m", "--iterations", 2, "--dataset", "3d-ovs") == 0
        assert len(list((tmp_path / "m/stage_a/masks").glob("frame_*/*.png"))) == 12

    def test_masks_named_as_jpeg_stay_sharp_and_test_masks_stay(self, ball_scene: Path, tmp_path: Path) -> None:
        """In a scene with all masks in one folder of another name than gt_mask."""
        scene = Path(shutil.copytree(ball_scene, tmp_path / "scene"))
        (scene / "gt_mask/tested").rename(scene / "given/tested")
        shutil.rmtree(scene / "gt_mask")
        for path in (scene / "given").rglob("*.png"):
            path.rename(path.with_suffix(".jpg"))
        for path in (scene / "json").rglob("*.json"):
            path.write_text(path.read_text().replace(".png", ".jpg"))
        assert train_twice(scene, tmp_path / "m") == 0
        masks = tmp_path / "m/stage_a/masks"
        assert len(list(masks.rglob("*.jpg"))) == 14
        assert {v for path in masks.rglob("*.jpg") for v in read_mask_values(path).ravel().tolist()} == {0, 255}
        lines = [json.loads(line) for line in (tmp_path / "m/log.jsonl").read_text().splitlines()]
        assert any("test_miou" in line for line in lines)


def make_flags(scene: Path, folder: Path, *flags: str):
    """Return the flags of a run of model A in a folder."""
    words = ["-s", scene, "-m", folder, *QUICK, *flags]
    return parse("test", train_script.GROUPS, [str(word) for word in words])
