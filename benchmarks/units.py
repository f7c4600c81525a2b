"""One scene and seed of a benchmark: trained, evaluated, compared with baselines, by the scripts' own functions."""

from __future__ import annotations

import contextlib
import gc
import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import eval as eval_script
import train as train_script
from arguments import BenchmarkParams, ModelParams, PipelineParams
from evaluation import baselines
from evaluation.protocols import PROTOCOLS
from inference.predict import open_trained
from scene.model_folder import saved_flags
from training.session import RESUME_FILE, Interrupted
from utils.device import choose_device, plan_bytes
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.scripts import git_revision

log = logging.getLogger("refersplat")

STATE, BASELINES = "benchmark.json", "baselines.json"


@dataclass(frozen=True)
class Unit:
    """One scene and seed.

    Attributes:
        scene: its folder.
        seed: of train.py.
        model: the model folder, `<out>/<scene>/seed_<seed>`.
        train: flags of train.py but the model folder, so that it may be moved, and --resume.
        eval: flags of eval.py but the model folder.
        baselines: names of those wanted.
    """

    scene: Path
    seed: int
    model: Path
    train: list[str]
    eval: list[str]
    baselines: list[str]

    @property
    def name(self) -> str:
        return f"{self.scene.name}, seed {self.seed}"

    @property
    def device(self) -> str:
        """Value of --device."""
        return self.eval[self.eval.index("--device") + 1]

    def state(self) -> dict[str, Any]:
        """What benchmark.json of the model folder says; empty if there is none, or train.py wrote nothing beside it."""
        path = self.model / STATE
        has_begun = path.is_file() and any(other != path for other in self.model.iterdir())
        state = read_json(path, "the benchmark's notes") if has_begun else {}
        if not isinstance(state, dict):
            raise UserError(f"{path} is damaged; remove the folder {self.model} and run again.")
        return state

    @property
    def measures(self) -> list[str]:
        """What the numbers in the model folder depend on besides the model."""
        return [*self.eval, "--baselines", *sorted(set(self.baselines))]

    def is_done(self) -> bool:
        """Whether everything of this unit is there."""
        return self.state().get("done") == self.measures and (self.model / BASELINES).is_file()


def make_units(params: BenchmarkParams, scene: Path, passed: list[str]) -> list[Unit]:
    """The seeds of a scene; {scene} and {seed} in flags for train.py are filled in."""
    units = []
    for seed in range(params.seeds):
        model = params.out / scene.name / f"seed_{seed}"
        words = [word.replace("{scene}", scene.name).replace("{seed}", str(seed)) for word in passed]
        common = ["--device", params.device, "--dataset", params.dataset]
        train = ["-s", str(scene), *common, "--seed", str(seed), *words]
        evaluation = [*common, "--protocol", params.protocol]
        units.append(Unit(scene, seed, model, train, evaluation, params.baselines))
    return units


def refuse_other_flags(units: list[Unit]) -> None:
    """Raise UserError if a model folder was trained with other flags: its numbers would be those of another run."""
    for unit in units:
        before = unit.state().get("train", unit.train)
        if before != unit.train:
            raise UserError(
                f"{unit.model} was trained with other flags:\n  {' '.join(before)}\nthan now:\n  "
                f"{' '.join(unit.train)}\nGive the flags of that run, or another folder with --out."
            )
        if unit.model.is_dir() and not (unit.model / STATE).is_file() and any(unit.model.iterdir()):
            raise UserError(f"{unit.model} holds files of something else than a benchmark; give another --out.")


def run_scene(units: list[Unit]) -> list[str]:
    """Run what is not done of a scene's seeds; returns why some failed, which stops no other.

    Args:
        units: the seeds of one scene.

    Raises:
        Interrupted: after a signal.
    """
    failures = []
    for unit in units:
        if unit.is_done():
            log.info("== %s: finished before", unit.name)
            continue
        log.info("== %s", unit.name)
        try:
            run_unit(unit)
        except UserError as error:
            failures.append(f"{unit.name}: {error}")
        except (SystemExit, Interrupted, KeyboardInterrupt):
            raise
        except Exception as error:  # a defect in one scene must not cost the night of all others
            log.error("%s", traceback.format_exc())
            reason = str(error).splitlines()[0] if str(error) else "no message"
            failures.append(f"{unit.name}: {type(error).__name__}: {reason}")
        finally:
            _free_memory()
        if failures and failures[-1].startswith(unit.name):
            log.error("failed: %s", failures[-1])
    return failures


def run_unit(unit: Unit) -> None:
    """Train, evaluate and compare with the baselines; what was done before is left."""
    state = unit.state() or {"train": unit.train, "git_revision": git_revision(), "torch": torch.__version__}
    state.pop("done", None)  # from here on, results and baselines may be of different flags until both are written
    on_gpu = choose_device(unit.device).type == "cuda"
    unit.model.mkdir(parents=True, exist_ok=True)
    write_json(unit.model / STATE, state)
    if "train_seconds" not in state:
        resumes = (unit.model / RESUME_FILE).is_file()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        code = train_script.main(["-m", str(unit.model), *unit.train, *(["--resume"] if resumes else [])])
        if code:
            raise Interrupted(code)
        state["train_seconds"] = time.perf_counter() - began
        state["resumed"] = resumes
        state["peak_gigabytes"] = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
        state["machine"] = torch.cuda.get_device_name() if on_gpu else "CPU"
        write_json(unit.model / STATE, state)
        _free_memory()
    began = time.perf_counter()
    with open(unit.model / "eval.txt", "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        eval_script.main(["-m", str(unit.model), *unit.eval])
    state["eval_seconds"] = time.perf_counter() - began
    _free_memory()
    began = time.perf_counter()
    write_json(unit.model / BASELINES, run_baselines(unit))
    state["baseline_seconds"] = time.perf_counter() - began
    write_json(unit.model / STATE, state | {"done": unit.measures})


def run_baselines(unit: Unit) -> dict[str, Any]:
    """Numbers of each baseline, or in words why there are none; on the model of the unit."""
    model = ModelParams(**(saved_flags(unit.model, [ModelParams]) | {"model_path": unit.model}))
    pipeline = PipelineParams(device=unit.device)
    opened = open_trained(model, pipeline, -1, 0.5)
    protocol = PROTOCOLS[read_json(unit.model / "results.json", "the results of eval.py")["protocol_name"]]
    out = unit.model / "baselines"
    runs: dict[str, Callable[[], Any]] = {
        baselines.LIFT: lambda: baselines.evaluate_lift(
            opened, protocol, out / baselines.LIFT, plan_bytes(None, opened.trained.gaussians.device)
        ),
        baselines.MASKS: lambda: baselines.evaluate_masks(
            opened.scene, model.mask_dir, protocol, out / baselines.MASKS
        ),
    }
    return {name: runs[name]() for name in runs if name in unit.baselines}


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
