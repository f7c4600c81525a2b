"""Write a scene in the Ref-LERF layout, with a contact sheet.

<out>/images/frame_00001.png ...      <out>/sparse/0/{cameras,images,points3D}.bin
<out>/json/{train_json,test_json}/frame_00001.json      <out>/gt_mask/frame_00001/<category>.png
<out>/sentences.json      objects, landmarks and every sentence with its predicates
<out>/overview.png        a sheet to look at
<out>/synthetic.json      the flags it was made with; marks the folder as ours
"""

from __future__ import annotations

import colorsys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from scene.cameras import Camera
from scene.readers.colmap import ColmapCamera, ColmapImage, ColmapModel, write_model
from scene.readers.colmap_model import quaternion
from synthetic.raycast import Picture
from synthetic.relations import ATTRIBUTES
from synthetic.sentences import Referring
from synthetic.world import TABLE, World
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.images import write_image

MARKER = "synthetic.json"
OURS = {"images", "sparse", "json", "gt_mask", "sentences.json", "overview.png", MARKER}
MIN_PIXELS = 12  # an object with fewer in a picture of 240x180 is not listed for that view
POINT_NOISE = 0.0006  # metres, of the sparse points

WIDTH = 1200  # pixels of the sheet
FONT = cv2.FONT_HERSHEY_SIMPLEX

Content = np.ndarray | dict  # of a file: a picture or JSON


def claim(out: Path) -> list[str]:
    """Check the output folder, before any work, and return the files that a former run of ours wrote to it.

    Raises:
        UserError: if `out` is a file, or a folder that holds anything we did not write.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give the name of a folder to write the scene to.")
    present = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if not present:
        return []
    if MARKER not in present or present - OURS:
        stranger = sorted(present - OURS or present)[0]
        raise UserError(
            f"--out {out} already holds {stranger!r}, which this program did not write; "
            "nothing was changed. Give a new or empty folder."
        )
    marker = read_json(out / MARKER, "the marker file of the synthetic scene")
    files = marker.get("files") if isinstance(marker, dict) else None
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise UserError(f"{out / MARKER} is not a marker file of ours; remove it or give a new folder with --out.")
    return files


def write(out: Path, files: dict[str, Content], model: ColmapModel, flags: dict, former: list[str]) -> None:
    """Write `files` by relative path and the COLMAP model, and remove those of `former` that are not among them.

    The marker lists every file of ours at any time, so that a run that was cut off leaves nothing unknown behind.
    """
    new = sorted([*files, *(f"sparse/0/{name}.bin" for name in ("cameras", "images", "points3D"))])

    def mark(names: list[str]) -> None:
        write_json(out / MARKER, {"generator": "synthetic", "flags": flags, "files": names})

    mark(sorted({*new, *former}))
    for name, content in files.items():
        if isinstance(content, np.ndarray):
            write_image(out / name, content)
        else:
            write_json(out / name, content)
    write_model(out / "sparse" / "0", model)
    for name in set(former) - set(new):
        path = out / name
        if path.resolve().is_relative_to(out.resolve()):
            path.unlink(missing_ok=True)
            if path.parent != out and not any(path.parent.iterdir()):
                path.parent.rmdir()
    mark(new)


def category_names(world: World) -> list[str]:
    """One name an item: what tells it from its look-alikes, then colour and shape."""
    names = []
    for item in world.items:
        group = [o for o in world.items if (o.shape, o.colour) == (item.shape, item.colour)]
        differing = [a for a in ("size", "texture") if len({getattr(o, a) for o in group}) > 1]
        words = [getattr(item, a) for a in differing] + [item.colour, item.shape]
        if not differing and len(group) > 1:
            spread = np.ptp([o.position for o in group], axis=0)
            axis = int(spread[1] > spread[0])
            rank = sorted(o.position[axis] for o in group).index(item.position[axis])
            words.append((("left", "right"), ("front", "back"))[axis][rank])
        names.append(" ".join(words))
    repeated = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name} {i}" if name in repeated else name for i, name in enumerate(names)]


def sparse_model(pictures: list[Picture], cameras: list[Camera], count: int, seed: int) -> ColmapModel:
    """A COLMAP model with surface points as structure from motion would find them.

    Points come from the pixels of the given pictures (those of training views), more where there is texture, with a
    little noise in place and colour.
    """
    rng = np.random.default_rng([seed, 51])
    xyz, rgb = [], []
    share = np.diff(np.linspace(0, count, len(pictures) + 1).astype(int))
    for picture, expected in zip(pictures, share, strict=True):
        grey = picture.rgb.astype(np.float64).mean(axis=2)
        contrast = np.hypot(*np.gradient(grey)) + 2.0
        far = np.linalg.norm(picture.point, axis=2) > 4
        weight = np.where(far, 0.1, contrast).ravel()
        chosen = rng.choice(weight.size, size=int(expected), replace=True, p=weight / weight.sum())
        xyz.append(picture.point.reshape(-1, 3)[chosen])
        rgb.append(picture.rgb.reshape(-1, 3)[chosen])
    points = np.concatenate(xyz)
    points += rng.normal(0, POINT_NOISE, points.shape)
    colours = np.concatenate(rgb) + rng.normal(0, 3, points.shape)
    first = cameras[0]
    intrinsics = np.array([first.fx, first.fy, first.cx, first.cy])
    model = {1: ColmapCamera(1, "PINHOLE", first.width, first.height, intrinsics)}
    images = [ColmapImage(i, c.name, quaternion(c.rotation), c.translation, 1) for i, c in enumerate(cameras, 1)]
    return ColmapModel(model, images, points, np.clip(np.round(colours), 0, 255).astype(np.uint8))


def describe(world: World, names: list[str], sentences: list[list[Referring]]) -> dict:
    """The content of sentences.json: enough to check every sentence without this package."""
    objects = [
        {
            "category": name,
            **{key: getattr(item, key) for key in ATTRIBUTES},
            "position": [*item.position, 0.0],
            "radius": item.radius,
            "height": item.height,
        }
        for name, item in zip(names, world.items, strict=True)
    ]
    said = [
        {
            "sentence": s.text,
            "category": names[s.item],
            **{key: getattr(s, key) for key in ("item", "split", "needs_relation", "predicates")},
        }
        for group in sentences
        for s in group
    ]
    decals = [{"decal": d.kind, "position": [*d.position, 0.0], "half": d.half, "yaw": d.yaw} for d in world.decals]
    units = "metres; x right, y away from the viewer, z up; table top at z = 0"
    return {"units": units, "table": {"half": TABLE}, "objects": objects, "decals": decals, "sentences": said}


def scene_files(
    world: World, cameras: list[Camera], pictures: list[Picture], sentences: list[list[Referring]], tests: range
) -> dict[str, Content]:
    """Pictures, masks and JSON by path relative to the scene's folder."""
    names = category_names(world)
    least = max(4, round(MIN_PIXELS * cameras[0].width * cameras[0].height / (240 * 180)))
    files: dict[str, Content] = {}
    for index, (camera, picture) in enumerate(zip(cameras, pictures, strict=True)):
        stem = Path(camera.name).stem
        files[f"images/{camera.name}"] = picture.rgb
        split = "test" if index in tests else "train"
        listed = []
        for item, name in enumerate(names):
            mask = picture.ids == item
            if mask.sum() < least:
                continue
            files[f"gt_mask/{stem}/{name}.png"] = mask.astype(np.uint8) * 255
            said = [s.text for s in sentences[item] if s.split == split]
            listed.append({"category": name, "segmentation": f"{stem}/{name}.png", "sentence": said})
        files[f"json/{split}_json/{stem}.json"] = {"object": listed}
    files["sentences.json"] = describe(world, names, sentences)
    return files


def _fitted(rgb: np.ndarray, width: int) -> np.ndarray:
    """The picture scaled to `width`."""
    height = round(rgb.shape[0] * width / rgb.shape[1])
    method = cv2.INTER_CUBIC if width > rgb.shape[1] else cv2.INTER_AREA
    return cv2.resize(rgb, (width, height), interpolation=method)


def _label(sheet: np.ndarray, text: str, x: int, y: int, scale: float, colour) -> None:
    cv2.putText(sheet, text, (x, y), FONT, scale, colour, 1, cv2.LINE_AA)


def contact_sheet(
    world: World, cameras: list[Camera], pictures: list[Picture], sentences: list[list[Referring]]
) -> np.ndarray:
    """RGB [H, WIDTH, 3]: some views, one with numbered objects, and the sentences."""
    half, count = WIDTH // 2, len(world.items)
    tints = [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(i / count, 0.75, 0.95)) for i in range(count)]
    middle = min(range(len(cameras)), key=lambda i: abs(cameras[i].center[0]) + abs(cameras[i].center[2] - 0.7))
    large = _fitted(pictures[middle].rgb, half)  # with outlined and numbered masks
    for index in range(count):
        mask = (pictures[middle].ids == index).astype(np.uint8)
        mask = cv2.resize(mask, large.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        outline = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
        cv2.drawContours(large, outline, -1, tints[index], 2, cv2.LINE_AA)
        rows, columns = np.nonzero(mask)
        if len(rows):
            centre = (int(columns.mean()), int(rows.mean()))
            cv2.circle(large, centre, 12, (255, 255, 255), -1, cv2.LINE_AA)
            number = str(index + 1)
            _label(large, number, centre[0] - 4 * len(number), centre[1] + 5, 0.45, (30, 30, 30))
    top = np.hstack([_fitted(pictures[middle].rgb, half), large])
    chosen = np.linspace(0, len(pictures) - 1, 5).round().astype(int)
    strip = np.hstack([_fitted(pictures[i].rgb, WIDTH // 5) for i in chosen])
    names = category_names(world)
    text = np.full((sum(24 + 20 * len(group) + 8 for group in sentences) + 16, WIDTH, 3), 250, np.uint8)
    y = 24
    for index, (name, group) in enumerate(zip(names, sentences, strict=True)):
        cv2.circle(text, (22, y - 5), 8, tints[index], -1, cv2.LINE_AA)
        _label(text, f"{index + 1}  {name}", 40, y, 0.52, (20, 20, 20))
        for said in group:
            y += 20
            prefix, colour = ("test:  ", (170, 40, 30)) if said.split == "test" else ("", (90, 90, 90))
            _label(text, prefix + said.text, 64, y, 0.45, colour)
        y += 32
    return np.concatenate([top, strip, text])
