"""python -m tests.rigs.layout_fixtures SCENE OUT: a procedural scene in the layouts of all datasets.

SCENE is a folder of `python -m synthetic`. OUT gets
    ref-lerf/table             json/train_json, json/test_json
    ref-lerf-flat/ramen        json/frame_00001.json, split by the published frames of ramen
    lerf-ovs/desk, lerf-ovs/label/desk
    3d-ovs/bed
Photos and the COLMAP model are the same in all of them.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import cv2

from scene.readers.image_files import read_mask


def write_all(scene: Path, out: Path) -> dict[str, Path]:
    """Write all layouts below `out`, and return scene folders by layout."""
    return {name: write(scene, out / name) for name, write in LAYOUTS.items()}


def as_ref_lerf(scene: Path, root: Path) -> Path:
    """Copy the scene."""
    return _with_photos(scene, root / "table", "json", "gt_mask")


def as_flat_ref_lerf(scene: Path, root: Path) -> Path:
    """The first release: JSON files in one folder, split by the published test frames, here frame 6."""
    folder = _with_photos(scene, root / "ramen", "json", "gt_mask")
    for split in ("train_json", "test_json"):
        for path in (folder / "json" / split).glob("*.json"):
            shutil.move(path, folder / "json" / path.name)
        (folder / "json" / split).rmdir()
    return folder


def as_lerf_ovs(scene: Path, root: Path) -> Path:
    """Polygons around the masks of test views, pseudo masks for the training views."""
    folder = _with_photos(scene, root / "desk")
    for frame, objects in _objects(scene, "train").items():
        for category, mask in objects.items():
            _copy(mask, folder / "gt_mask" / frame / f"{category}.png")
    for frame, objects in _objects(scene, "test").items():
        entries = []
        for category, mask in objects.items():
            picture = read_mask(mask)
            height, width = picture.shape
            outlines, _ = cv2.findContours(picture.astype("uint8"), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            for outline in outlines:
                points = outline[:, 0].tolist()
                if len(points) > 2:
                    entries.append({"category": category, "group": 1, "segmentation": points})
        info = {"name": f"{frame}.png", "width": width, "height": height, "depth": 3, "note": ""}
        path = root / "label" / "desk" / f"{frame}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"info": info, "objects": entries}), encoding="utf-8")
    return folder


def as_three_d_ovs(scene: Path, root: Path) -> Path:
    """Class masks for the test views, pseudo masks for the training views."""
    folder = _with_photos(scene, root / "bed")
    classes = set()
    for split, target in (("test", "segmentations"), ("train", "gt_mask")):
        for frame, objects in _objects(scene, split).items():
            for category, mask in objects.items():
                classes.add(category)
                _copy(mask, folder / target / frame / f"{category}.png")
    (folder / "segmentations/classes.txt").write_text("\n".join(sorted(classes)) + "\n", encoding="utf-8")
    return folder


LAYOUTS = {
    "ref-lerf": as_ref_lerf,
    "ref-lerf-flat": as_flat_ref_lerf,
    "lerf-ovs": as_lerf_ovs,
    "3d-ovs": as_three_d_ovs,
}


def _with_photos(scene: Path, folder: Path, *more: str) -> Path:
    for name in ("images", "sparse", *more):
        shutil.copytree(scene / name, folder / name)
    return folder


def _objects(scene: Path, split: str) -> dict[str, dict[str, Path]]:
    """Find the mask files of the objects in each frame of a split."""
    found = {}
    for path in sorted((scene / "json" / f"{split}_json").glob("*.json")):
        entries = json.loads(path.read_text(encoding="utf-8"))["object"]
        found[path.stem] = {e["category"]: scene / "gt_mask" / e["segmentation"] for e in entries}
    return found


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


if __name__ == "__main__":
    for layout, place in write_all(Path(sys.argv[1]), Path(sys.argv[2])).items():
        print(f"{layout}: {place}")
