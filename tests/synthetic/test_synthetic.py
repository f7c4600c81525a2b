"""The procedural scene: files, masks and sentences, checked from what it wrote and not by the code that wrote it."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from scene.layouts import ref_lerf
from scene.readers.colmap import read_model
from synthetic import generate as generator
from synthetic.__main__ import parse
from synthetic.export import claim
from synthetic.generate import Flags, generate
from tests.rigs.paths import ROOT
from utils.errors import UserError

ATTRIBUTES = {"shape", "colour", "texture", "size"}
SMALL = {"views": 8, "width": 120, "height": 90}
# A word that must be in a sentence for the predicate to be in it.
KEYWORDS = {
    "left_of": "left",
    "right_of": "right",
    "in_front_of": "front|nearer to the viewer",
    "behind": "behind|further back",
    "next_to": "next to|beside|close to",
    "on": "on",
    "between": "between",
    "closest_to": "closest|nearest",
    "farthest_from": "farthest|furthest",
    "nearest_edge": "edge of the table",
}


class Judge:
    """Plain-geometry truth of predicates in every view, from sentences.json and the COLMAP model alone.

    The generator keeps a margin, so plain definitions must agree: true in all views for the referent, and for every
    rival some predicate that is false in all views.
    """

    def __init__(self, folder: Path):
        self.data = json.loads((folder / "sentences.json").read_text())
        self.objects = self.data["objects"]
        self.decals = {d["decal"]: d for d in self.data["decals"]}
        self.model = read_model(folder / "sparse" / "0")
        self.fx, self.fy, self.cx, self.cy = self.model.cameras[1].params

    def place(self, landmark: dict) -> np.ndarray:
        source = self.objects[landmark["item"]] if "item" in landmark else self.decals[landmark["decal"]]
        return np.array(source["position"])

    def gap(self, thing: dict, landmark: dict) -> float:
        own = np.array(thing["position"])
        if "item" in landmark:
            other = self.objects[landmark["item"]]
            return np.linalg.norm(own - other["position"]) - thing["radius"] - other["radius"]
        decal = self.decals[landmark["decal"]]
        c, s = np.cos(decal["yaw"]), np.sin(decal["yaw"])
        x, y = (own - decal["position"])[:2]
        outside = max(abs(c * x + s * y) - decal["half"][0], abs(c * y - s * x) - decal["half"][1])
        return outside - thing["radius"]

    def candidates(self, predicates: list) -> list[int]:
        wanted = [p for p in predicates if p[0] in ATTRIBUTES]
        return [i for i, o in enumerate(self.objects) if all(o[name] == value for name, value in wanted)]

    def truth(self, index: int, predicate: list, rivals: list[int]) -> list[bool]:
        """Whether the predicate holds, once a view."""
        name, *landmarks = predicate
        thing = self.objects[index]
        own = np.array(thing["position"])
        others = [np.array(self.objects[i]["position"]) for i in rivals if i != index]
        if name == "nearest_edge":
            axis, sign = {"front": (1, 1), "back": (1, -1), "left": (0, 1), "right": (0, -1)}[landmarks[0]]
            return [bool(others) and all(sign * own[axis] < sign * other[axis] for other in others)]
        places = [self.place(landmark) for landmark in landmarks]
        if name in ("closest_to", "farthest_from"):
            sign = 1 if name == "closest_to" else -1
            distance = sign * np.linalg.norm(own - places[0])
            return [bool(others) and all(distance < sign * np.linalg.norm(o - places[0]) for o in others)]
        if name == "next_to":
            return [bool(-0.01 < self.gap(thing, landmarks[0]) < 0.11)]
        if name == "on":
            return [bool(self.gap(thing, landmarks[0]) < -thing["radius"] / 2)]
        if name == "between":
            way = places[1] - places[0]
            share = (own - places[0]) @ way / (way @ way)
            aside = np.linalg.norm(own - places[0] - share * way) / np.linalg.norm(way)
            return [bool(0 < share < 1 and aside < 0.45)]
        result = []
        for image in self.model.images:
            a, b = (image.rotation @ p + image.tvec for p in (own, places[0]))
            # The direction of sight along the table is the camera's forward axis without its vertical part.
            forward = image.rotation[2] * [1, 1, 0]
            deeper = forward @ (own - places[0]) > 0
            further_left = a[0] / a[2] < b[0] / b[2]
            result.append(
                {"left_of": further_left, "right_of": not further_left, "behind": deeper, "in_front_of": not deeper}[
                    name
                ]
            )
        return result

    def referents(self, predicates: list) -> list[int]:
        """Items for which all predicates hold in all views; fails if another is not excluded in all views."""
        rivals = self.candidates(predicates)
        related = [p for p in predicates if p[0] not in ATTRIBUTES]
        found = [i for i in rivals if all(all(self.truth(i, p, rivals)) for p in related)]
        for i in set(rivals) - set(found):
            assert any(not any(self.truth(i, p, rivals)) for p in related), (i, predicates)
        return found


@pytest.fixture(scope="module", params=[(0, 6), (4, 7), (1, 10)], ids=str)
def scene(request, tmp_path_factory) -> Path:
    seed, objects = request.param
    folder = tmp_path_factory.mktemp("scene") / "table"
    generate(folder, Flags(seed=seed, objects=objects, **SMALL))
    return folder


def check_sentences(judge: Judge) -> None:
    """Every sentence is true, refers to one object, and needs its relation where it says so."""
    said = judge.data["sentences"]
    assert len({s["sentence"] for s in said}) == len(said)
    for item, group in itertools.groupby(said, key=lambda s: s["item"]):
        group = list(group)
        assert len(group) == 5
        assert [s["split"] for s in group].count("test") == 1
        assert sum(s["needs_relation"] for s in group) >= 2
        look = [["shape", judge.objects[item]["shape"]], ["colour", judge.objects[item]["colour"]]]
        assert len(judge.candidates(look)) >= 2
        for s in group:
            assert s["category"] == judge.objects[item]["category"]
            assert judge.referents(s["predicates"]) == [item], s
            assert s["needs_relation"] == (len(judge.candidates(s["predicates"])) > 1)
            for name, *landmarks in s["predicates"]:
                if name not in ATTRIBUTES:
                    assert re.search(KEYWORDS[name], s["sentence"]), (name, s["sentence"])
                for landmark in landmarks:
                    if isinstance(landmark, dict) and "item" in landmark:
                        assert judge.candidates(landmark["predicates"]) == [landmark["item"]]
    assert np.mean([len(s["sentence"].split()) for s in said]) >= 10


def test_sentences_are_true_and_unique(scene: Path):
    check_sentences(Judge(scene))


def test_false_sentences_are_found_out(scene: Path):
    """The judge above is not blind: mirrored relations or another referent do not pass it."""
    judge = Judge(scene)
    swapped = {"left_of": "right_of", "right_of": "left_of", "behind": "in_front_of", "in_front_of": "behind"}
    tried = 0
    for s in judge.data["sentences"]:
        if any(p[0] in swapped for p in s["predicates"]):
            wrong = [[swapped.get(p[0], p[0]), *p[1:]] for p in s["predicates"]]
            rivals = judge.candidates(wrong)
            related = [p for p in wrong if p[0] in swapped.values()]
            assert not all(all(judge.truth(s["item"], p, rivals)) for p in related)
            tried += 1
    assert tried > 0


@pytest.mark.parametrize("seed", range(20, 32))
def test_sentences_of_more_seeds(seed: int, tmp_path: Path):
    """The same checks without pictures: cameras and sentences.json suffice."""
    from scene.readers.colmap import ColmapCamera, ColmapImage, ColmapModel, write_model
    from synthetic import export

    flags = Flags(seed=seed)
    cameras = generator.dome_cameras(flags)
    world, sentences = generator.find_world(flags, cameras)
    names = export.category_names(world)
    assert len(set(names)) == len(names)
    first = cameras[0]
    intrinsics = np.array([first.fx, first.fy, first.cx, first.cy])
    images = [
        ColmapImage(i + 1, c.name, export.quaternion(c.rotation), c.translation, 1) for i, c in enumerate(cameras)
    ]
    model = ColmapModel({1: ColmapCamera(1, "PINHOLE", first.width, first.height, intrinsics)}, images)
    write_model(tmp_path / "sparse" / "0", model)
    (tmp_path / "sentences.json").write_text(json.dumps(export.describe(world, names, sentences)))
    judge = Judge(tmp_path)
    check_sentences(judge)
    for a, b in itertools.combinations(judge.objects, 2):
        assert np.linalg.norm(np.subtract(a["position"], b["position"])) > a["radius"] + b["radius"]


def test_test_sentences_use_words_of_the_training_sentences(scene: Path):
    said = json.loads((scene / "sentences.json").read_text())["sentences"]
    words = {word for s in said if s["split"] == "train" for word in re.findall("[a-z]+", s["sentence"].lower())}
    for s in said:
        if s["split"] == "test":
            assert set(re.findall("[a-z]+", s["sentence"].lower())) <= words
            train = [p for t in said if t["item"] == s["item"] and t["split"] == "train" for p in t["predicates"]]
            assert all(p in train for p in s["predicates"] if p[0] in ATTRIBUTES)


def test_loads_as_ref_lerf(scene: Path):
    loaded = ref_lerf.load(scene)
    data = json.loads((scene / "sentences.json").read_text())
    assert len(loaded.train) + len(loaded.test) == SMALL["views"]
    assert loaded.test
    train_said, test_said = set(loaded.sentences(loaded.train)), set(loaded.sentences(loaded.test))
    assert train_said == {s["sentence"] for s in data["sentences"] if s["split"] == "train"}
    assert test_said == {s["sentence"] for s in data["sentences"] if s["split"] == "test"}
    assert not train_said & test_said
    assert not {v.id for v in loaded.train} & {v.id for v in loaded.test}
    for view in [*loaded.train, *loaded.test]:
        assert view.image().shape == (SMALL["height"], SMALL["width"], 3)
        per_object = {}
        for referral in view.referrals:
            per_object.setdefault(referral.category, []).append(referral)
            assert view.mask(referral).any()
        assert len(per_object) >= len(data["objects"]) - 2  # hardly anything is ever hidden
        assert all(len(group) == (1 if view in loaded.test else 4) for group in per_object.values())


def read_mask(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0


def test_masks_agree_with_positions_and_points(scene: Path):
    """Masks lie inside the projected bounding cylinders, do not overlap, and hold the sparse points of the object."""
    judge = Judge(scene)
    xyz = judge.model.xyz
    hits, total = 0, 0
    for image in judge.model.images:
        stem = Path(image.name).stem
        masks = {p.stem: read_mask(p) for p in (scene / "gt_mask" / stem).glob("*.png")}
        assert np.sum(list(masks.values()), axis=0).max() == 1

        def pixels(points, image=image):
            local = points @ image.rotation.T + image.tvec
            return local[:, :2] / local[:, 2:] * [judge.fx, judge.fy] + [judge.cx, judge.cy]

        for thing in judge.objects:
            if thing["category"] not in masks:
                continue
            mask = masks[thing["category"]]
            rows, columns = np.nonzero(mask)
            angle = np.linspace(0, 2 * np.pi, 64)
            ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1) * thing["radius"] + thing["position"]
            hull = pixels(np.concatenate([ring, ring + [0, 0, thing["height"]]])).astype(np.float32)
            outline = cv2.convexHull(hull)
            for x, y in zip(columns + 0.5, rows + 0.5, strict=True):
                assert cv2.pointPolygonTest(outline, (float(x), float(y)), True) > -0.5
            aside = np.linalg.norm(xyz[:, :2] - thing["position"][:2], axis=1)
            own = (aside < thing["radius"]) & (xyz[:, 2] > 0.01) & (xyz[:, 2] < thing["height"])
            where = np.floor(pixels(xyz[own])).astype(int)
            hits += mask[where[:, 1], where[:, 0]].sum()
            total += own.sum()
    assert total > 500
    assert hits / total > 0.85  # the rest is occluded in that view


def test_points_lie_on_surfaces(scene: Path):
    """Every sparse point near the table is on the table top or inside the bounding cylinder of an object."""
    judge = Judge(scene)
    xyz = judge.model.xyz
    above = xyz[xyz[:, 2] > 0.004]
    assert len(above) > 300
    inside = np.zeros(len(above), dtype=bool)
    for thing in judge.objects:
        aside = np.linalg.norm(above[:, :2] - thing["position"][:2], axis=1)
        inside |= (aside < thing["radius"] + 0.004) & (above[:, 2] < thing["height"] + 0.004)
    assert inside.all()
    assert judge.model.rgb.std() > 20


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_same_bits_whatever_the_threads(tmp_path: Path, monkeypatch):
    flags = Flags(seed=5, objects=6, views=3, width=80, height=60)
    generate(tmp_path / "a", flags)
    monkeypatch.setattr(generator, "THREADS", 1)
    generate(tmp_path / "b", flags)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    generate(tmp_path / "c", Flags(seed=6, objects=6, views=3, width=80, height=60))
    assert digest(tmp_path / "a")["images/frame_00001.png"] != digest(tmp_path / "c")["images/frame_00001.png"]


def test_a_scene_of_ours_is_replaced_and_nothing_else(tmp_path: Path):
    folder = tmp_path / "table"
    small = {"objects": 6, "width": 80, "height": 60}
    generate(folder, Flags(seed=5, views=4, **small))
    note = folder / "images" / "holiday.png"
    note.write_bytes(b"mine")
    generate(folder, Flags(seed=6, views=2, **small))
    assert sorted(p.name for p in (folder / "images").iterdir()) == [
        "frame_00001.png",
        "frame_00002.png",
        "holiday.png",
    ]
    assert {p.name for p in (folder / "gt_mask").iterdir()} == {"frame_00001", "frame_00002"}
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        claim(folder)


@pytest.mark.parametrize(
    "flags",
    [["--views", "0"], ["--views", "x"], ["--width", "9"], ["--objects", "5"], ["--width", "900"], ["--seed", "-1"]],
)
def test_bad_flags_are_refused(flags: list[str], tmp_path: Path):
    with pytest.raises((UserError, SystemExit)) as caught:
        parse(["--out", str(tmp_path / "x"), *flags])
    assert caught.type is UserError or caught.value.code == 2
    assert not (tmp_path / "x").exists()


def test_a_folder_of_somebody_else_ends_with_exit_code_2(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("mine")
    command = [sys.executable, "-m", "synthetic", "--out", str(tmp_path), "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "thesis.tex" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("marker", ["[]", "{", '{"files": 3}', '{"files": [1]}'])
def test_a_damaged_marker_is_one_clear_message(marker: str, tmp_path: Path):
    (tmp_path / "synthetic.json").write_text(marker)
    with pytest.raises(UserError, match=r"synthetic\.json"):
        claim(tmp_path)
