"""render.py --export, --remove and --labels on a model whose sentences are known Gaussian by Gaussian."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import render as render_script
from gaussian_renderer import render_uint8
from inference.predict import Predictor
from referring.kernels.plain import PlainField
from scene.formats.files import load_gaussians
from scene.formats.ply import load_ply, save_ply
from scene.layouts.ref_lerf import load
from tests.inference.test_selection import at, write_points
from tests.rigs.hand_made_model import EACH, OTHERS, SENTENCES, make_gaussians, members, write_hand_made
from tests.rigs.small_run import call, hashes
from tests.rigs.splat_scenes import looking_down_z

TOTAL = 3 * EACH + OTHERS


@pytest.fixture(scope="module")
def made(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; tests only add masks and videos to it."""
    return write_hand_made(tmp_path_factory.mktemp("made") / "model", scene)


def render(folder: Path, *flags: object) -> int:
    return call(render_script, "-m", folder, "--device", "cpu", *flags)


def read_members(path: Path) -> torch.Tensor:
    """Return which of the hand-made Gaussians a file holds, bool [N]."""
    found = load_gaussians(path)
    where = {tuple(row): i for i, row in enumerate(make_gaussians().xyz.tolist())}
    rows = torch.zeros(TOTAL, dtype=torch.bool)
    rows[[where[tuple(row)] for row in found.xyz.tolist()]] = True
    assert int(rows.sum()) == len(found)
    return rows


class Stub:
    """A field with given scores, [1, N]."""

    text_dim = 1
    backend = PlainField()  # not captured as CUDA graphs

    def __init__(self, scores: list[float]):
        self._scores = torch.tensor([scores])

    def scores(self, xyz: torch.Tensor, tokens: list[torch.Tensor]) -> torch.Tensor:
        return self._scores.to(xyz.device).expand(len(tokens), -1)


def test_hidden_gaussians_take_the_probability_of_the_occluder(device: str) -> None:
    """Two on the axis, the first opaque; then one alone, one behind the camera, one out of the picture.

    In the pictures, the hidden one shows the score of the first.
    """
    places = [[0.0, 0, 2], [0, 0, 2.2], [1, 0, 3], [0, 0, -2], [90, 0, 2]]
    gaussians = at(places, size=0.1)
    gaussians.opacity[:] = 9.0
    gaussians.scaling[1] -= 1  # so that the first one covers its fringe, too
    scores = [-6.0, 5.0, 5.0, 5.0, 5.0]
    predictor = Predictor(
        gaussians.to(device), Stub(scores), lambda sentences: dict.fromkeys(sentences, torch.zeros(1, 1)), 0.5, 10**8
    )
    cameras = [looking_down_z(64, 48), looking_down_z(48, 64)]
    own = predictor.score_probabilities(["a"]).cpu()
    assert torch.allclose(own, torch.tensor([scores]).sigmoid())
    sentences = [f"sentence {number}" for number in range(20)]  # more than one splat takes
    seen = predictor.view_probabilities(cameras, sentences).cpu()
    assert seen.shape == (20, 5)
    first, hidden, alone, behind, outside = seen[0].tolist()
    assert first < 0.3
    assert hidden < 0.3 < 0.9 < own[0, 1]
    assert 0.8 < alone < 1
    assert (behind, outside) == (0, 0)
    assert torch.allclose(seen, seen[:1].expand(20, 5), atol=1e-5)


@pytest.mark.parametrize("choose", ["views", "score"])
def test_export_and_remove_partition_the_gaussians(made: Path, tmp_path: Path, choose: str) -> None:
    before = hashes(made / "point_cloud")
    for number, sentence in enumerate(SENTENCES):
        files = tmp_path / f"{number}.ply", tmp_path / f"without{number}.ply"
        flags = ("--text", sentence, "--export", files[0], "--remove", files[1], "--choose", choose)
        assert render(made, *flags) == 0
        chosen, rest = map(read_members, files)
        assert torch.equal(chosen, members(number))
        assert torch.equal(rest, ~chosen)
        whole, part = make_gaussians(), load_ply(files[0])
        for name, tensor in part.parameters().items():
            assert torch.equal(tensor, whole.parameters()[name][chosen]), name
    assert hashes(made / "point_cloud") == before


def test_exported_objects_render_alone(made: Path, scene: Path, tmp_path: Path) -> None:
    """Black outside of the object's mask (and three pixels, over which a splat fades), its own colour inside."""
    assert render(made, "--text", *SENTENCES) == 0
    assert render(made, "--text", *SENTENCES, "--export", tmp_path / "object.ply") == 0
    report = json.loads((tmp_path / "object.selection.json").read_text())
    assert report["gaussians"] == TOTAL
    masks = made / "test/iteration_1/masks"
    views = load(scene, "images", -1, "gt_mask", False, False).test
    assert views
    for channel, entry in enumerate(report["sentences"]):
        assert entry["sentence"] == SENTENCES[channel]
        alone = load_ply(Path(entry["file"]))
        assert entry["gaussians"] == len(alone) == EACH
        assert entry["centre"] == pytest.approx(alone.xyz.median(dim=0).values.tolist())
        assert np.allclose(entry["box"], [alone.xyz.amin(dim=0).tolist(), alone.xyz.amax(dim=0).tolist()])
        for view in views:
            (path,) = masks.glob(f"{view.id}/text-{Path(entry['file']).stem.removeprefix('object-')}.png")
            mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            assert (mask > 0).sum() > 10
            drawn = render_uint8(view.camera, alone, torch.zeros(3))
            around = cv2.dilate(mask, np.ones((7, 7), np.uint8)) > 0
            assert not drawn[~around].any()
            core = cv2.erode(mask, np.ones((3, 3), np.uint8)) > 0
            assert (drawn[core].argmax(axis=1) == channel).all()
            assert drawn[core, channel].mean() > 180
            assert not np.delete(drawn, channel, axis=2).any()  # nothing of the other balls or the grey wall


def test_several_sentences(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A file each, and one scene without all of them."""
    flags = ("--text", SENTENCES[0], SENTENCES[2], "--export", tmp_path / "o.ply", "--remove", tmp_path / "rest.ply")
    assert render(made, *flags) == 0
    first, second = sorted(tmp_path.glob("o-*.ply"), key=lambda path: "blue" in path.name)
    assert torch.equal(read_members(first), members(0))
    assert torch.equal(read_members(second), members(2))
    assert torch.equal(read_members(tmp_path / "rest.ply"), ~(members(0) | members(2)))
    assert f'{EACH} of {TOTAL} Gaussians: "{SENTENCES[0]}"' in capsys.readouterr().out
    report = json.loads((tmp_path / "o.selection.json").read_text())
    assert report["without"] == {"file": str(tmp_path / "rest.ply"), "gaussians": TOTAL - 2 * EACH}
    assert not (made / "video").exists()


@pytest.mark.parametrize("ending", [".splat", ".compressed.ply", ".spz"])
def test_other_formats(made: Path, tmp_path: Path, ending: str) -> None:
    if ending == ".spz":
        pytest.importorskip("gaussforge")
    assert render(made, "--text", SENTENCES[1], "--export", tmp_path / f"object{ending}") == 0
    found = load_gaussians(tmp_path / f"object{ending}")
    assert len(found) == EACH
    assert torch.allclose(found.xyz.mean(dim=0), make_gaussians().xyz[members(1)].mean(dim=0), atol=1e-3)
    assert (tmp_path / "object.selection.json").is_file()


class TestLabels:
    def ious(self, report: Path) -> list[float]:
        return [entry["labels"]["iou"] for entry in json.loads(report.read_text())["sentences"]]

    def test_of_each_gaussian(self, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        """20 of the first ball and 10 of the wall carry the first label: 20 / (60 + 10). The second ball fits."""
        labels = torch.zeros(TOTAL, dtype=torch.int64)
        labels[:20] = 5
        labels[-10:] = 5
        labels[members(1)] = 8
        np.save(tmp_path / "labels.npy", labels.numpy())
        flags = ("--export", tmp_path / "o.ply", "--labels", tmp_path / "labels.npy", "--label", 5, 8)
        assert render(made, "--text", *SENTENCES[:2], *flags) == 0
        assert self.ious(tmp_path / "o.selection.json") == [20 / 70, 1.0]
        assert "3D IoU 0.2857 with label 5 (precision 0.3333, recall 0.6667" in capsys.readouterr().out

    def test_of_points(self, made: Path, tmp_path: Path) -> None:
        """Points where the balls are; the wall is farther than the limit from all of them and does not count."""
        gaussians = make_gaussians()
        ball = members(0) | members(1)
        labels = torch.where(members(0), 3, 0)[ball].int().numpy()
        cloud = write_points(tmp_path / "cloud.ply", gaussians.xyz[ball].double().numpy(), labels, faces=True)
        flags = ("--remove", tmp_path / "rest.ply", "--labels", cloud, "--label_distance", 0.001)
        assert render(made, "--text", SENTENCES[0], *flags) == 0
        (entry,) = json.loads((tmp_path / "rest.selection.json").read_text())["sentences"]
        assert entry["labels"] | {"label": 3} == {
            "label": 3,
            "iou": 1.0,
            "precision": 1.0,
            "recall": 1.0,
            "both": EACH,
            "chosen": EACH,
            "labelled": EACH,
            "unlabelled": TOTAL - 2 * EACH,
        }


class TestRefusals:
    @pytest.fixture(autouse=True)
    def _no_output(self, capsys: pytest.CaptureFixture) -> None:
        self.capsys = capsys

    def refused(self, folder: Path, *flags: object, words: tuple[str, ...]) -> None:
        assert render(folder, *flags) == 2
        errors = self.capsys.readouterr().err
        (final,) = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in errors
        for word in words:
            assert word in final

    def test_flags(self, made: Path, tmp_path: Path) -> None:
        text, out = ("--text", SENTENCES[0]), tmp_path / "o.ply"
        own = made / "point_cloud/iteration_0/point_cloud.ply"
        before = hashes(made)
        for flags, words in (
            (("--export", out), ("--text",)),
            ((*text, "--export", tmp_path / "o.obj"), ("o.obj", ".splat")),
            ((*text, "--export", out, "--remove", out), ("--export and --remove",)),
            ((*text, "--remove", own), ("point_cloud.ply", "another file")),
            ((*text, "--export", made / "point_cloud.ply" / ".."), ("no known format",)),
            ((*text, "--labels", out), ("--export",)),
            ((*text, "--export", out, "--label", "3"), ("--labels",)),
            ((*text, "--export", out, "--labels", out), ("o.ply", "another file")),
            ((*text, "--export", out, "--labels", own, "--label", "-1"), ("--label -1", "below 0")),
            (("--text", "a", "b", "--export", out, "--labels", own), ("0 labels for 2 sentences",)),
            ((*text, "--export", out, "--labels", tmp_path / "l.npy"), ("l.npy", "does not exist")),
        ):
            self.refused(made, *flags, words=words)
            assert not list(tmp_path.iterdir()), flags
        assert hashes(made) == before

    def test_no_gaussian(self, made: Path, tmp_path: Path) -> None:
        out = tmp_path / "o.ply"
        out.write_bytes(b"precious")
        flags = ("--text", SENTENCES[0], "--export", out, "--score_threshold", "1")
        self.refused(made, *flags, words=("none of the 280 Gaussians", "--score_threshold"))
        assert [path.name for path in tmp_path.iterdir()] == ["o.ply"]
        assert out.read_bytes() == b"precious"

    def test_a_sentence_without_gaussians_beside_one_with(self, made: Path, tmp_path: Path) -> None:
        labels = tmp_path / "labels.npy"
        np.save(labels, members(0).numpy())
        folder = Path(shutil.copytree(made, tmp_path / "model"))
        cloud = folder / "point_cloud/iteration_0/point_cloud.ply"
        gaussians = load_ply(cloud)
        gaussians.opacity[members(1)] = -9.0  # 1e-4: less than any pixel notices, so that no view shows them
        save_ply(cloud, gaussians)
        assert render(folder, "--text", *SENTENCES[:2], "--export", tmp_path / "o.ply") == 0
        assert f'"{SENTENCES[1]}" (highest probability' in self.capsys.readouterr().err
        assert len(list(tmp_path.glob("o-*.ply"))) == 1
        entries = json.loads((tmp_path / "o.selection.json").read_text())["sentences"]
        assert [entry["gaussians"] for entry in entries] == [EACH, 0]
        assert entries[1]["file"] is None

    def test_everything_removed(self, made: Path, tmp_path: Path) -> None:
        flags = ("--text", SENTENCES[0], "--remove", tmp_path / "o.ply", "--choose", "score", "--score_threshold", "0")
        self.refused(made, *flags, words=("would be empty",))
        assert not list(tmp_path.iterdir())
