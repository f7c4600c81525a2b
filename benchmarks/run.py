"""Every published table from one command: all scenes and seeds of a dataset, trained, evaluated, with baselines.

    python benchmarks/run.py --root data/ref-lerf --out output/ref-lerf                      # all scenes, 3 seeds
    python benchmarks/run.py --root data/ref-lerf --out output/ref-lerf -- \\
        --start_checkpoint '3dgs/{scene}/chkpnt30000.pth' --iterations 45000                 # train.py's after --
    torchrun --nproc-per-node 4 benchmarks/run.py --root data/ref-lerf --out output/ref-lerf  # one scene a GPU

In flags for train.py, {scene} and {seed} are filled in. Model folders are OUT/<scene>/seed_<k>; OUT has table.md,
table.html and table.json. Run it again to go on. A scene that fails stops no other, and makes the exit code 1.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ranks import Ranks, see_one_gpu  # noqa: E402

see_one_gpu()
if int(os.environ.get("WORLD_SIZE", "1")) > 1:
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of several processes would write over each other

import torch  # noqa: E402

import train as train_script  # noqa: E402
from arguments import parse  # noqa: E402
from benchmarks.scene_runs import BenchmarkParams, make_runs, refuse_other_flags, run_scene  # noqa: E402
from benchmarks.tables import collect, write_tables  # noqa: E402
from evaluation.baselines import LIFT, MASKS  # noqa: E402
from scene.layouts.loader import LAYOUTS, detect_layout  # noqa: E402
from training.session import Interrupted  # noqa: E402
from utils.device import choose_device  # noqa: E402
from utils.errors import UserError, run  # noqa: E402
from utils.scripts import setup_logging  # noqa: E402

log = logging.getLogger("refersplat")

OWN = {"-s", "--source_path", "-m", "--model_path", "--dataset", "--seed", "--device", "--resume"}


def check_flags(params: BenchmarkParams, passed: list[str]) -> None:
    """Raise UserError for flags that cannot be meant; flags that train.py does not know end the program."""
    for name in ("root", "out"):
        if getattr(params, name) is None:
            raise UserError(f"--{name} is missing; see --help.")
    if not params.root.is_dir():
        raise UserError(f"--root {params.root} is not a folder; give the folder of the scenes, or a scene folder.")
    if params.out.exists() and not params.out.is_dir():
        raise UserError(f"--out {params.out} is not a folder; name the folder that receives the models and tables.")
    if unknown := sorted(set(params.baselines) - {LIFT, MASKS}):
        raise UserError(f"--baselines {' '.join(unknown)}: expected {LIFT}, {MASKS}, both or none of them.")
    # argparse also takes -sPATH and --seed=3
    if own := sorted({word.split("=")[0] if word.startswith("--") else word[:2] for word in passed} & OWN):
        raise UserError(
            f"{', '.join(own)} after --: the benchmark sets {'these' if len(own) > 1 else 'it'} itself, by --root, "
            "--out, --dataset, --device and --seeds."
        )
    parse("train.py, as the benchmark calls it", train_script.GROUPS, passed)


def is_scene(folder: Path) -> bool:
    """Whether a folder looks like a scene, be it a damaged one."""
    return (folder / "images").is_dir() or (folder / "sparse").is_dir() or any(folder.glob("transforms*.json"))


def find_scenes(params: BenchmarkParams) -> list[Path]:
    """Return the scene folders that the flags name.

    Raises:
        UserError: if there are none, one is missing, or they have several layouts.
    """
    root = params.root.resolve()
    folders = [root] if is_scene(root) else [path for path in sorted(root.iterdir()) if is_scene(path)]
    found = {path.name: path for path in folders}
    if not found:
        raise UserError(f"--root {root} holds no scene: neither it nor a folder in it has images/ or sparse/.")
    if params.scenes == ["all"]:
        is_usable = LAYOUTS[params.dataset].has_annotations if params.dataset != "auto" else lambda folder: True
        chosen = [path for path in folders if is_usable(path)]
        if left := [path.name for path in folders if path not in chosen]:
            log.info("left out, without annotations of %s: %s", params.dataset, ", ".join(left))
        if not chosen:
            raise UserError(f"no scene of --root {root} has annotations of --dataset {params.dataset}.")
    else:
        if missing := [name for name in params.scenes if name not in found]:
            raise UserError(f"--scenes {' '.join(missing)}: not in {root}, which has {', '.join(found)}.")
        chosen = [found[name] for name in dict.fromkeys(params.scenes)]
    layouts = {path.name: detect_layout(path, params.dataset) for path in chosen}
    names = {layout.NAME for name, layout in layouts.items() if layout.has_annotations(found[name])}
    if len(names) > 1:
        each = ", ".join(f"{name} ({layout.NAME})" for name, layout in layouts.items())
        raise UserError(f"--root {root} has scenes of several datasets: {each}. Choose with --dataset or --scenes.")
    return chosen


def require_gpus(ranks: Ranks, device: str) -> None:
    """Raise UserError if some processes of torchrun have a GPU and others have none."""
    has_gpu = ranks.gather(torch.cuda.is_available())
    lacking = [rank for rank, has in enumerate(has_gpu) if not has]
    if device != "cpu" and any(has_gpu) and lacking:
        raise UserError(
            f"torchrun started {ranks.count} processes, but those of rank {', '.join(map(str, lacking))} have no GPU. "
            "Start at most as many on a machine as it has GPUs (--nproc-per-node), or take --device cpu."
        )
    choose_device(device)  # says what is wrong with it before a scene fails by it


def main(argv: Sequence[str] | None = None) -> int:
    setup_logging()
    argv = list(sys.argv[1:] if argv is None else argv)
    at = argv.index("--") if "--" in argv else len(argv)
    own, passed = argv[:at], argv[at + 1 :]
    described = __doc__.split("\n")[0] + " Flags for train.py follow after --, with {scene} and {seed} filled in."
    (params,) = parse(described, [BenchmarkParams], own)
    check_flags(params, passed)
    params.out = params.out.absolute()
    scenes = [make_runs(params, scene, passed) for scene in find_scenes(params)]
    refuse_other_flags([run for runs in scenes for run in runs])
    with Ranks() as ranks:
        require_gpus(ranks, params.device)
        failures: dict[str, list[str]] = {}
        try:
            for runs in ranks.take_turns(scenes):
                failures[runs[0].scene.name] = run_scene(runs)
        except Interrupted as stopped:
            log.info("interrupted; run the same command again to go on")
            return stopped.code
        for other in ranks.gather(failures):
            failures |= other
        if ranks.rank == 0:
            messages = [message for runs in scenes for message in failures[runs[0].scene.name]]
            print(write_tables(params.out, collect(scenes), messages, passed))
            print(f"written to {params.out}: table.md, table.html, table.json")
            for message in messages:  # again, below the tables
                log.error("%s", message)
        failed = ranks.rank == 0 and any(failures.values())  # one process says so, when the tables are written
        ranks.gather(None)
    return int(failed)


if __name__ == "__main__":
    run(main)
