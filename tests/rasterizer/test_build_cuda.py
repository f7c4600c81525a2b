"""The CUDA build: every .cu compiles without a warning, and each machine gets the library that fits it.

Compiling needs nvcc, but no GPU. The rest runs everywhere: a script that calls g++ stands in for nvcc.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from diff_gaussian_rasterization import abi, backends, build, toolchain
from tests.rigs.tiny_library import library_source, posix, write_script

FOLDER = build.PACKAGE.parent
WARNINGS = ("-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra")
COMMON_EXPORTS = ("dgr_abi_version", "dgr_version", "dgr_error_text", "dgr_constants", "dgr_layout")
NVCC = """case "$1" in
  --version) echo "Cuda compilation tools, release {version}, V{version}.1"; exit;;
  --list-gpu-arch) printf 'compute_80\\ncompute_86\\ncompute_90\\n'; exit;;
esac
while [ $# -gt 0 ]; do
  case "$1" in *.cu) unit=$1;; *.o) objects="$objects $1";; -o) output=$2; shift;; esac
  shift
done
if [ -n "$unit" ]; then exec g++ -fPIC -x c++ -c "$unit" -o "$output"; fi
exec g++ -shared $objects -o "$output"
"""


@pytest.fixture(scope="module")
def compiled() -> Path:
    """The library of all .cu, for two generations and as PTX, by a build in which a warning is an error.

    It lies in the build cache, so that only a change of the sources compiles it again.
    """
    if toolchain.find_nvcc() is None:
        pytest.skip("nvcc is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
        target = build.find_target("cuda")
    assert {"sm_80", "sm_90", "compute_90"} <= set(target.codes)
    try:
        return build.build_into_cache(dataclasses.replace(target, flags=(*target.flags, *WARNINGS)))
    except build.BuildError as error:
        pytest.fail(str(error), pytrace=False)


def test_library_exports_the_declared_functions_and_nothing_else(compiled: Path) -> None:
    listing = subprocess.run(["nm", "-D", "--defined-only", compiled], capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("nm is not installed")
    headers = [build.CSRC / name for name in ("dgr_cuda.h", "dgr_step.h")]
    declared = [re.findall(r"^DGR_EXPORT [^(]*?(\w+)\(", path.read_text(), re.MULTILINE) for path in headers]
    assert all(declared)
    assert {line.split()[-1] for line in listing.stdout.splitlines()} == {*COMMON_EXPORTS, *sum(declared, [])}


def test_library_loads_without_a_gpu_and_agrees_with_the_cpu_library(compiled: Path) -> None:
    cuda, cpu = build.open_library(compiled), abi.library()
    for name, number in (("dgr_constants", ctypes.c_double), ("dgr_layout", ctypes.c_int64)):
        found = []
        for library in (cuda, cpu):
            function, values = getattr(library, name), (number * 64)()
            found.append((function(values, 64), list(values)))
        assert found[0] == found[1]
        assert 0 < found[0][0] < 64


def test_library_reports_why_it_cannot_run(compiled: Path) -> None:
    library = build.open_library(compiled)
    library.dgr_error_text.restype = ctypes.c_char_p
    status = library.dgr_cuda_ready(1000)
    assert status < 0
    assert re.search("invalid device|no CUDA-capable device|driver", library.dgr_error_text(status).decode())


@pytest.mark.gpu
def test_library_runs_on_the_gpu() -> None:
    assert backends.cuda_missing() is None
    assert backends.backend_for("cuda") == "cuda"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch) -> Path:
    """Sources of one tiny CUDA library, a stand-in nvcc, an empty cache, one GPU of capability 9.0."""
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "csrc" / "cuda" / "tiny.cu").write_text(library_source())
    monkeypatch.setattr(build, "CSRC", tmp_path / "csrc")
    monkeypatch.setenv("DGR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(stand_in_nvcc(tmp_path, "12.4")))
    set_gpus(monkeypatch, "90")
    build.library_or_none.cache_clear()
    yield tmp_path
    build.library_or_none.cache_clear()


def stand_in_nvcc(folder: Path, version: str) -> Path:
    """The folder of a CUDA toolkit whose nvcc calls g++."""
    home = folder / f"cuda-{version}"
    (home / "bin").mkdir(parents=True)
    write_script(home / "bin" / "nvcc", NVCC.format(version=version))
    return home


def set_gpus(monkeypatch, *capabilities: str) -> None:
    gpus = tuple(("GPU", capability, "570") for capability in capabilities)
    monkeypatch.setattr(toolchain, "local_gpus", lambda: gpus)


@posix
def test_library_is_built_once_for_the_gpu_present(tiny: Path, capsys) -> None:
    library = build.load_library("cuda")
    assert capsys.readouterr().err == "Compiling the cuda kernels for sm_90, once.\n"
    folder = Path(library._name).parent
    assert [entry.name for entry in (tiny / "cache").iterdir()] == [folder.name]
    assert json.loads((folder / "build.json").read_text())["codes"] == ["sm_90"]
    before = Path(library._name).stat().st_mtime_ns
    build.library_or_none.cache_clear()
    assert Path(build.load_library("cuda")._name).stat().st_mtime_ns == before
    assert capsys.readouterr().err == ""


@posix
def test_key_depends_on_gpu_and_nvcc_but_not_on_the_cpu(tiny: Path, monkeypatch) -> None:
    keys = [build.find_target("cuda").key]
    monkeypatch.setattr(toolchain, "cpu_key", lambda: "another-machine-cpu")
    assert build.find_target("cuda").key == keys[0]
    monkeypatch.setenv("CUDA_HOME", str(stand_in_nvcc(tiny, "13.0")))
    keys.append(build.find_target("cuda").key)
    set_gpus(monkeypatch, "86", "90")
    keys.append(build.find_target("cuda").key)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    keys.append(build.find_target("cuda").key)
    for header in ("cuda/kernel.cuh", "common.h"):
        (tiny / "csrc" / header).write_text("#pragma once\n")
        keys.append(build.find_target("cuda").key)
    assert len(set(keys)) == 6
    (tiny / "csrc" / "cpu").mkdir()
    (tiny / "csrc" / "cpu" / "parallel.h").write_text("#pragma once\n")
    assert build.find_target("cuda").key == keys[-1]


def test_targets_share_common_headers_only() -> None:
    """Otherwise a changed source might not change the key, see compiling.sources_hash."""
    files = [path for path in build.CSRC.rglob("*.*") if path.is_file()]
    includes = {name for path in files for name in re.findall(r'#include "(.+)"', path.read_text(encoding="utf-8"))}
    assert "../dgr.h" in includes
    assert not [name for name in includes if re.search(r"(cpu|cuda)/", name)]


@posix
def test_without_nvcc_a_cached_library_is_used_on_matching_gpus(tiny: Path, monkeypatch) -> None:
    path = build.cached_library("cuda")
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: None)
    assert build.cached_library("cuda") == path
    set_gpus(monkeypatch, "80")
    with pytest.raises(build.BuildError, match="nvcc was not found.*Install the CUDA toolkit"):
        build.cached_library("cuda")
    set_gpus(monkeypatch, "90")
    (tiny / "csrc" / "cuda" / "tiny.cu").write_text(library_source() + "// changed\n")
    with pytest.raises(build.BuildError, match="nvcc was not found"):
        build.cached_library("cuda")


@posix
def test_installed_library_is_ignored_on_another_gpu(tiny: Path, monkeypatch) -> None:
    monkeypatch.setattr(build, "PACKAGE", tiny / "package")
    path = build.build_library(tiny / "package" / "_native" / "cuda", "cuda")
    assert build.installed_library("cuda") == path
    set_gpus(monkeypatch, "80")
    assert build.installed_library("cuda") is None


@posix
@pytest.mark.parametrize("answer", ["NVIDIA H100, 9.0, 570.86", "Field compute_cap is not valid", ""])
def test_gpus_come_from_nvidia_smi_else_from_pytorch(tmp_path: Path, monkeypatch, answer: str) -> None:
    smi = write_script(tmp_path / "nvidia-smi", f"echo '{answer}'")
    Path(smi).chmod(0o755 if answer else 0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    orin = types.SimpleNamespace(name="Orin", major=8, minor=7)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: orin)
    found = toolchain.local_gpus.__wrapped__()
    assert found == ((("NVIDIA H100", "90", "570.86"),) if "H100" in answer else (("Orin", "87", "unknown"),))


@pytest.mark.parametrize(
    ("codes", "capability", "runs"),
    [
        ("sm_90", "90", True),
        ("sm_80", "86", True),  # a later GPU of the same generation
        ("sm_86", "80", False),
        ("sm_80", "90", False),
        ("sm_80 compute_80", "120", True),
        ("compute_90", "80", False),
        ("sm_90a", "90", True),
        ("compute_90a", "100", False),  # features of one GPU only
        ("", "90", False),
    ],
)
def test_which_code_runs_where(codes: str, capability: str, runs: bool) -> None:
    assert toolchain.code_runs(tuple(codes.split()), capability) is runs


@posix
@pytest.mark.parametrize(
    ("gpus", "requested", "targets"),
    [((), "", ["cpu"]), (("90",), "", ["cpu", "cuda"]), ((), "9.0", ["cpu", "cuda"])],
)
def test_pip_builds_cuda_only_for_known_gpus(tiny, monkeypatch, gpus, requested, targets) -> None:
    set_gpus(monkeypatch, *gpus)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", requested)
    assert build.targets_for_install() == targets
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: None)
    assert build.targets_for_install() == ["cpu"]


@posix
def test_host_compiler_comes_from_cxx_or_an_error_names_it(tiny: Path, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "env g++")
    flags = build.find_target("cuda").flags
    assert flags[flags.index("-ccbin") + 1] == "g++"
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(build.BuildError, match="variable CXX is '/bin/false'"):
        build.find_target("cuda")


class Library:
    """The part of a loaded library that backend selection uses."""

    _name = "/cache/libdgr_cuda.so"

    def __init__(self, status: int):
        self.dgr_cuda_ready = lambda device: status
        self.dgr_error_text = lambda status: b"CUDA driver version is insufficient for CUDA runtime version"


@pytest.fixture
def gpu_seen(monkeypatch):
    """PyTorch sees a GPU; returns a function that sets the outcome of the build."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    monkeypatch.delenv("DGR_BACKEND", raising=False)

    def outcome(library: Library | None, reason: str = "") -> None:
        monkeypatch.setattr(build, "library_or_none", lambda target: (library, reason))
        backends.cuda_missing.cache_clear()
        backends.warn_once.cache_clear()

    yield outcome
    backends.cuda_missing.cache_clear()
    backends.warn_once.cache_clear()


def test_working_library_is_chosen(gpu_seen, monkeypatch) -> None:
    gpu_seen(Library(0))
    assert backends.backend_for("cuda") == "cuda"
    module = types.ModuleType("cuda")
    monkeypatch.setitem(sys.modules, "diff_gaussian_rasterization.cuda", module)
    assert backends.implementation("cuda") is module


def test_without_a_library_one_warning_or_an_error(gpu_seen, monkeypatch) -> None:
    gpu_seen(None, "nvcc was not found.")
    with pytest.warns(RuntimeWarning, match="No compiled kernels run on cuda.*slow: nvcc was not found"):
        assert backends.backend_for("cuda") == "reference"
    monkeypatch.setenv("DGR_BACKEND", "cuda")
    with pytest.raises(build.BuildError, match="DGR_BACKEND=cuda.*nvcc was not found"):
        backends.backend_for("cuda")


def test_library_that_the_driver_rejects_is_not_chosen(gpu_seen) -> None:
    gpu_seen(Library(-38))
    with pytest.warns(
        RuntimeWarning, match="does not run on H100: CUDA driver version is insufficient.*update the driver"
    ):
        assert backends.backend_for("cuda") == "reference"


def test_cuda_is_not_compiled_if_pytorch_sees_no_gpu(gpu_seen, monkeypatch) -> None:
    def compile_now(target: str):
        raise AssertionError(f"{target} was requested")

    gpu_seen(None)
    monkeypatch.setattr(build, "library_or_none", compile_now)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backends.cuda_missing() == "PyTorch sees no GPU."
    monkeypatch.setenv("DGR_BACKEND", "cuda")
    with pytest.raises(build.BuildError, match="PyTorch sees no GPU"):
        backends.backend_for("cuda")


@posix
def test_doctor_reports_an_unseen_gpu_and_missing_nvcc(tmp_path: Path) -> None:
    """A driver without a PyTorch for it and without nvcc: both are named in one report."""
    write_script(tmp_path / "nvidia-smi", "echo 'NVIDIA H100 80GB HBM3, 9.0, 570.86.15'")
    script = tmp_path / "doctor.py"
    script.write_text(
        "import sys; from diff_gaussian_rasterization import __main__, toolchain\n"
        "toolchain.find_nvcc = lambda: None; sys.exit(__main__.main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(FOLDER), "CUDA_VISIBLE_DEVICES": ""}
    environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"GPU: +NVIDIA H100 80GB HBM3, compute capability 9\.0, driver 570", done.stdout)
    assert re.search(r"nvcc: +none", done.stdout)
    assert re.search(r"backend for cuda: +none \(torch sees no GPU\)", done.stdout)
    torch_advice = "torch was built without CUDA" if torch.version.cuda is None else "torch does not see the GPU"
    assert torch_advice in done.stdout
    assert "nvcc was not found" in done.stdout


def test_doctor_shows_the_cuda_library(gpu_seen, monkeypatch, tmp_path: Path, capsys) -> None:
    from diff_gaussian_rasterization import __main__ as doctor

    library = Library(-38)
    library._name = str(tmp_path / "libdgr_cuda.so")
    (tmp_path / "build.json").write_text('{"compiler": "nvcc 13.0", "codes": ["sm_90"]}')
    gpu_seen(library)
    set_gpus(monkeypatch, "90")
    advice: list[str] = []
    doctor.show_cuda(advice)
    shown = capsys.readouterr().out
    assert re.search(
        rf"cuda library: +{re.escape(library._name)}\n  built with: +nvcc 13.0\n  compiled for: +sm_90", shown
    )
    assert len(advice) == 1
    assert "update the driver" in advice[0]
