"""Detect the layout of a scene folder and load it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from arguments import DATASETS, ModelParams
from scene.dataset import Scene
from scene.issues import log
from scene.layouts import lerf_ovs, ref_lerf, three_d_ovs

LAYOUTS: dict[str, ModuleType] = {layout.NAME: layout for layout in (ref_lerf, lerf_ovs, three_d_ovs)}
assert tuple(LAYOUTS) == DATASETS


def detect_layout(source: Path, dataset: str = "auto") -> ModuleType:
    """Return the layout that `dataset` names; for "auto" the one whose files the folder has, Ref-LERF first.

    JSON files of training views alone, as pseudo_mask.py writes them, do not make a Ref-LERF scene where another
    layout has test views. A folder without annotations counts as Ref-LERF, for the RGB stage.
    """
    if dataset != "auto":
        return LAYOUTS[dataset]
    found = [layout for layout in LAYOUTS.values() if layout.has_annotations(source)]
    if len(found) > 1 and not ref_lerf.has_test_views(source):
        found = [layout for layout in found if layout is not ref_lerf]
    if len(found) > 1:
        names = " and of ".join(layout.NAME for layout in found)
        log.info("%s has the annotations of %s: %s is taken; --dataset chooses", source, names, found[0].NAME)
    return found[0] if found else ref_lerf


def load(model: ModelParams) -> Scene:
    """Load the scene that the flags name.

    Returns:
        The scene; issues that leave something to work with are counted in the log (logger "refersplat").

    Raises:
        UserError: if a file is damaged, a name leads out of its folder, or nothing is left to work with.
    """
    assert model.source_path is not None
    return detect_layout(model.source_path, model.dataset).load(
        model.source_path,
        images=model.images,
        resolution=model.resolution,
        mask_dir=model.mask_dir,
        eval=model.eval,
        white_background=model.white_background,
    )


def expected_mask_files(scene: Scene, mask_dir: str) -> str:
    """Describe the files that the layout of a scene expects for training views."""
    return LAYOUTS[scene.dataset].TRAINING_MASKS.format(mask_dir=mask_dir)
