"""The dataset layouts: which one a scene folder has, and loading it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from arguments import DATASETS, ModelParams
from scene.dataset import Scene, log
from scene.layouts import lerf_ovs, ref_lerf, three_d_ovs
from scene.layouts.annotations import Folder, load_scene

LAYOUTS: dict[str, ModuleType] = {layout.NAME: layout for layout in (ref_lerf, lerf_ovs, three_d_ovs)}
assert tuple(LAYOUTS) == DATASETS


def layout_of(source: Path, dataset: str = "auto") -> ModuleType:
    """The layout that `dataset` names, or for "auto" the one whose files lie in the folder, Ref-LERF first.

    Where others have test views, JSON files of training views alone, as pseudo_mask.py makes them, are no Ref-LERF.
    A folder without annotations counts as Ref-LERF: it serves the colour stage.
    """
    if dataset != "auto":
        return LAYOUTS[dataset]
    here = [layout for layout in LAYOUTS.values() if layout.is_here(source)]
    if len(here) > 1 and not ref_lerf.has_test_views(source):
        here = [layout for layout in here if layout is not ref_lerf]
    if len(here) > 1:
        names = " and of ".join(layout.NAME for layout in here)
        log.info("%s has the annotations of %s: %s is taken; --dataset chooses", source, names, here[0].NAME)
    return here[0] if here else ref_lerf


def load(model: ModelParams) -> Scene:
    """Load the scene that the flags name.

    Returns:
        The scene; faults that leave something to work with are counted in the log (logger "refersplat").

    Raises:
        UserError: if a file is damaged, a name climbs out of its folder, or nothing is left to work with.
    """
    layout = layout_of(model.source_path, model.dataset)
    folder = Folder(model.source_path, model.mask_dir, model.eval)
    return load_scene(
        layout.NAME, layout.annotate, folder, model.images, model.resolution, model.white_background
    )  # fmt: skip


def wanted_for_training(scene: Scene, mask_dir: str) -> str:
    """What the layout of a scene expects of training views, in words."""
    return LAYOUTS[scene.dataset].TRAINING_MASKS.format(mask_dir=mask_dir)
