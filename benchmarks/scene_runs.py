"""One scene and seed of a benchmark: trained, evaluated and compared with baselines by the scripts' own functions."""

from __future__ import annotations

import contextlib
import gc
import logging
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import eval as eval_script
import train as train_script
from arguments import DATASETS, ModelParams, PipelineParams
from arguments.groups import option
from evaluation.baselines import LIFT, MASKS, evaluate_lift, evaluate_masks
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


@dataclass
class BenchmarkParams:
    """Benchmark"""

    root: Path | None = None
    """folder with the scenes of a dataset, or a single scene folder"""
    scenes: list[str] = option(["all"], at_least=1)
    """names of scene folders below --root, or all"""
    dataset: str = option("auto", choices=("auto", *DATASETS))
    """layout of the scenes; auto detects it from the files in each folder"""
    protocol: str = option("auto", choices=("auto", "ref-lerf", "released", "lerf-ovs", "3d-ovs"))
    """how pairs of view and sentence are scored; auto goes by the layout"""
    seeds: int = option(3, at_least=1)
    """runs per scene, with seeds 0, 1 ..."""
    baselines: list[str] = option(["lift", "masks"])
    """baselines for each run: lift, masks, both or none"""
    out: Path | None = None
    """output folder of the models and tables; a second run continues in it"""
    device: str = option("auto", choices=("auto", "cpu", "cuda"))
    """auto uses the GPU if there is one; under torchrun each process uses that of its LOCAL_RANK"""


@dataclass(frozen=True)
class SceneRun:
    """One scene and seed."""

    scene: Path
    seed: int
    model: Path  # the model folder, <out>/<scene>/seed_<seed>
    device: str  # value of --device
    train: list[str]  # flags of train.py but the model folder, so that it may be moved, and --resume
    eval: list[str]  # flags of eval.py but the model folder
    baselines: list[str]

    @property
    def name(self) -> str:
        return f"{self.scene.name}, seed {self.seed}"

    def state(self) -> dict[str, Any]:
        """Read benchmark.json of the model folder; empty if it is missing, or train.py wrote nothing beside it."""
        path = self.model / STATE
        has_begun = path.is_file() and any(other != path for other in self.model.iterdir())
        state = read_json(path, "the benchmark's notes") if has_begun else {}
        if not isinstance(state, dict):
            raise UserError(f"{path} is damaged; remove the folder {self.model} and run again.")
        return state

    @property
    def measured_with(self) -> list[str]:
        """The flags that the numbers in the model folder depend on."""
        return [*self.eval, "--baselines", *sorted(set(self.baselines))]

    def is_done(self) -> bool:
        """Whether everything of this run is finished."""
        return self.state().get("done") == self.measured_with and (self.model / BASELINES).is_file()


def make_runs(params: BenchmarkParams, scene: Path, passed: list[str]) -> list[SceneRun]:
    """Return the seeds of a scene; {scene} and {seed} in flags for train.py are filled in."""
    runs = []
    common = ["--device", params.device, "--dataset", params.dataset]
    evaluation = [*common, "--protocol", params.protocol]
    for seed in range(params.seeds):
        words = [word.replace("{scene}", scene.name).replace("{seed}", str(seed)) for word in passed]
        train = ["-s", str(scene), *common, "--seed", str(seed), *words]
        model = params.out / scene.name / f"seed_{seed}"
        runs.append(SceneRun(scene, seed, model, params.device, train, evaluation, params.baselines))
    return runs


def refuse_other_flags(runs: list[SceneRun]) -> None:
    """Raise UserError if a model folder was trained with other flags: its numbers would be those of another run."""
    for run in runs:
        before = run.state().get("train", run.train)
        if before != run.train:
            raise UserError(
                f"{run.model} was trained with other flags:\n  {' '.join(before)}\nthan now:\n  "
                f"{' '.join(run.train)}\nGive the flags of that run, or another folder with --out."
            )
        if run.model.is_dir() and not (run.model / STATE).is_file() and any(run.model.iterdir()):
            raise UserError(f"{run.model} holds files of something else than a benchmark; give another --out.")


def run_scene(runs: list[SceneRun]) -> list[str]:
    """Run the unfinished seeds of a scene; return why some failed, which stops no other.

    Raises:
        Interrupted: after a signal.
    """
    failures = []
    for run in runs:
        if run.is_done():
            log.info("== %s: finished before", run.name)
            continue
        log.info("== %s", run.name)
        reason = ""
        try:
            execute(run)
        except UserError as error:
            reason = str(error)
        except (SystemExit, Interrupted, KeyboardInterrupt):
            raise
        except Exception as error:  # a defect in one scene must not cost the night of all others
            log.error("%s", traceback.format_exc())
            reason = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
        finally:
            _free_memory()
        if reason:
            failures.append(f"{run.name}: {reason}")
            log.error("failed: %s", failures[-1])
    return failures


def execute(run: SceneRun) -> None:
    """Train, evaluate and compare with the baselines; finished parts are kept."""
    state = run.state() or {"train": run.train, "git_revision": git_revision(), "torch": torch.__version__}
    state.pop("done", None)  # from here on, results and baselines may be of different flags until both are written
    run.model.mkdir(parents=True, exist_ok=True)
    write_json(run.model / STATE, state)
    if "train_seconds" not in state:
        on_gpu, resumes = choose_device(run.device).type == "cuda", (run.model / RESUME_FILE).is_file()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        code = train_script.main(["-m", str(run.model), *run.train, *(["--resume"] if resumes else [])])
        if code:
            raise Interrupted(code)
        state["train_seconds"] = time.perf_counter() - began
        state["resumed"] = resumes
        state["peak_gigabytes"] = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
        state["machine"] = torch.cuda.get_device_name() if on_gpu else "CPU"
        write_json(run.model / STATE, state)
        _free_memory()
    began = time.perf_counter()
    with open(run.model / "eval.txt", "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        eval_script.main(["-m", str(run.model), *run.eval])
    state["eval_seconds"] = time.perf_counter() - began
    _free_memory()
    began = time.perf_counter()
    write_json(run.model / BASELINES, run_baselines(run))
    state["baseline_seconds"] = time.perf_counter() - began
    write_json(run.model / STATE, state | {"done": run.measured_with})


def run_baselines(run: SceneRun) -> dict[str, Any]:
    """Return the numbers of each baseline on the model of the run, or a text that says why it has none."""
    model = ModelParams(**(saved_flags(run.model, [ModelParams]) | {"model_path": run.model}))
    opened = open_trained(model, PipelineParams(device=run.device), -1, 0.5)
    protocol = PROTOCOLS[read_json(run.model / "results.json", "the results of eval.py")["protocol_name"]]
    out, numbers = run.model / "baselines", {}
    if LIFT in run.baselines:
        max_bytes = plan_bytes(None, opened.trained.gaussians.device)
        numbers[LIFT] = evaluate_lift(opened, protocol, out / LIFT, max_bytes)
    if MASKS in run.baselines:
        numbers[MASKS] = evaluate_masks(opened.scene, model.mask_dir, protocol, out / MASKS)
    return numbers


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
