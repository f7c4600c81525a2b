"""The native build: cache, locks, failing compilers, incompatible libraries, pip."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diff_gaussian_rasterization import build, compiling, lock, toolchain
from tests.rigs.paths import ROOT
from tests.rigs.tiny_library import library_source, posix, write_compiler, write_script

FOLDER = ROOT / "submodules" / "diff-gaussian-rasterization"
pytestmark = posix


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A tiny csrc/ and an empty cache; returns a function that writes the source."""
    csrc = tmp_path / "csrc"
    (csrc / "cpu").mkdir(parents=True)
    monkeypatch.setattr(build, "CSRC", csrc)
    monkeypatch.setenv("DGR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    build.library_or_none.cache_clear()

    def write(**changes) -> Path:
        (csrc / "cpu" / "tiny.cpp").write_text(library_source(**changes))
        return csrc

    write()
    yield write
    build.library_or_none.cache_clear()


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with this checkout's package on the path."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(FOLDER), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_second_load_uses_the_cached_file(tiny, tmp_path):
    library = build.load_library()
    assert build.load_library() is library
    path = Path(library._name)
    assert path.is_relative_to(tmp_path / "cache")
    before = path.stat().st_mtime_ns
    build.library_or_none.cache_clear()
    assert build.load_library()._name == str(path)
    assert path.stat().st_mtime_ns == before
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [path.parent.name]  # no lock, no scratch


def test_key_depends_on_sources_headers_and_compiler(tiny, tmp_path, monkeypatch):
    keys = {build.find_target("cpu").key}
    csrc = tiny()
    (csrc / "header.h").write_text("#pragma once\n")
    keys.add(build.find_target("cpu").key)
    with open(csrc / "cpu" / "tiny.cpp", "a") as file:
        file.write("// changed\n")
    keys.add(build.find_target("cpu").key)
    monkeypatch.setenv("CXX", write_compiler(tmp_path / "other-g++"))
    keys.add(build.find_target("cpu").key)
    monkeypatch.setattr(toolchain, "cpu_key", lambda: "another-machine-cpu")
    keys.add(build.find_target("cpu").key)
    assert len(keys) == 5


def test_damaged_file_in_the_cache_is_rebuilt(tiny):
    path = build.cached_library()
    path.write_bytes(path.read_bytes()[:100])
    assert build.load_library()._name == str(path)


def test_library_exports_nothing_but_its_c_functions(tiny):
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", build.cached_library()], capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("nm is not installed")
    assert {line.split()[-1] for line in listing.stdout.splitlines()} == {"dgr_abi_version", "dgr_version"}


def test_max_jobs_limits_parallel_compilations(monkeypatch):
    monkeypatch.setenv("MAX_JOBS", "2")
    assert compiling.parallel_jobs(8) == 2
    monkeypatch.setenv("MAX_JOBS", "many")
    assert compiling.parallel_jobs(1) == 1


def test_two_processes_at_once_compile_once(tiny, tmp_path):
    log = tmp_path / "compilations"
    cxx = write_compiler(tmp_path / "logging-g++", f'case "$*" in *-c*tiny.cpp*) echo run >> {log}; sleep 0.3;; esac')
    code = f"""
    from pathlib import Path
    import sys, types
    package = types.ModuleType("diff_gaussian_rasterization")  # without torch, as setup.py does it
    package.__path__ = [{str(FOLDER / "diff_gaussian_rasterization")!r}]
    sys.modules["diff_gaussian_rasterization"] = package
    from diff_gaussian_rasterization import build
    build.CSRC = Path({str(build.CSRC)!r})
    print(build.load_library()._name)
    assert "torch" not in sys.modules
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {**os.environ, "CXX": cxx}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate(timeout=120)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(printed) == 1
    assert log.read_text().split() == ["run"]


def test_lock_of_a_dead_process_is_removed(tmp_path):
    path = tmp_path / "x.lock"
    path.write_text("left by an earlier version")
    code = f"""
    import sys, time
    from pathlib import Path
    sys.path.insert(0, {str(build.PACKAGE)!r})
    import lock
    with lock.file_lock(Path({str(path)!r})):
        print("held", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TimeoutError, match="held by another living process"), lock.file_lock(path, timeout=0.3):
            pass
        holder.kill()
    assert path.exists()
    with lock.file_lock(path, timeout=10):
        pass
    assert not path.exists()


def test_lock_is_held_by_one_thread_at_a_time(tmp_path):
    path, inside, most = tmp_path / "x.lock", [], []

    def hold(number: int) -> None:
        with lock.file_lock(path):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, range(24)))
    assert most == [1] * 24
    assert not path.exists()


def test_without_locks_in_the_file_system_the_build_goes_ahead(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock.file_lock(tmp_path / "x.lock", timeout=1.0):
        pass


def test_compiler_without_openmp_and_native_still_builds(tiny, tmp_path, monkeypatch):
    refuse = 'case "$*" in *-fopenmp*|*-march=native*|*-static-lib*) echo unsupported >&2; exit 1;; esac'
    monkeypatch.setenv("CXX", write_compiler(tmp_path / "old-g++", refuse))
    path = Path(build.load_library()._name)
    record = json.loads((path.parent / "build.json").read_text())
    assert record["openmp"] is False
    assert not any("native" in flag for flag in record["flags"])


def test_compile_error_is_shown_in_full_and_leaves_no_files(tiny, tmp_path):
    with open(tiny() / "cpu" / "tiny.cpp", "a") as file:
        file.write("#error the sky is green\n")
    library, reason = build.library_or_none()
    assert library is None
    assert "the sky is green" in reason
    assert "tiny.cpp" in reason
    assert list((tmp_path / "cache").iterdir()) == []


def test_broken_cxx_names_the_variable(tiny, monkeypatch):
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(build.BuildError, match="variable CXX is '/bin/false'"):
        build.load_library()


def test_program_that_is_no_compiler_is_rejected(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", write_script(tmp_path / "g++", "echo 'Copyright Free Software Foundation'"))
    with pytest.raises(build.BuildError, match="wrote no .*it is not a compiler"):
        build.load_library()


def test_missing_compiler_says_how_to_install_one(tiny, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(build.BuildError, match="No C\\+\\+ compiler was found.*Install"):
        build.load_library()


def test_unwritable_cache_names_the_variable(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DGR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(build.BuildError, match="Set DGR_CACHE_DIR"):
        build.load_library()


@pytest.mark.parametrize("wrong", [{"abi": 99}, {"version": "0.0.1"}])
def test_library_of_another_version_is_rejected_by_name(tiny, wrong):
    tiny(**wrong)
    with pytest.raises(build.BuildError, match=r"libdgr_cpu\S+ has ABI") as caught:
        build.load_library()
    assert str(build.PACKAGE) in str(caught.value)


def test_installed_library_is_used_only_for_its_sources_and_cpu(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "PACKAGE", tmp_path / "package")
    path = build.build_library(tmp_path / "package" / "_native" / "cpu")
    assert build.installed_library() == path
    assert build.load_library()._name == str(path)
    with monkeypatch.context() as context:
        context.setattr(toolchain, "cpu_key", lambda: "another-machine-cpu")
        assert build.installed_library() is None
    with open(build.CSRC / "cpu" / "tiny.cpp", "a") as file:
        file.write("// changed\n")
    assert build.installed_library() is None


@pytest.mark.parametrize(
    ("requested", "gpus", "known", "expected"),
    [
        ("", ("90",), ("80", "90"), "sm_90"),
        ("", ("120",), ("80", "90"), "compute_90"),  # GPU newer than nvcc: the driver translates
        ("", (), ("75", "80", "90", "100"), "sm_75 sm_80 sm_90 sm_100 compute_100"),
        ("8.0;9.0a+PTX", (), ("80", "90"), "sm_80 sm_90a compute_90a"),
        ("8.0 8.6", ("90", "90"), ("80", "86", "90"), "sm_80 sm_86 sm_90"),  # the GPU at hand is never left out
        ("12.0", (), ("120",), "sm_120"),
    ],
)
def test_cuda_architectures(requested, gpus, known, expected):
    assert " ".join(toolchain.cuda_codes(requested, gpus, known)) == expected


@pytest.mark.parametrize("requested", ["Hopper", "3.5", "90"])
def test_unknown_cuda_architecture_is_rejected_by_name(requested):
    with pytest.raises(build.BuildError, match=f"TORCH_CUDA_ARCH_LIST.*{requested}.*nvcc knows 8.0, 9.0"):
        toolchain.cuda_codes(requested, (), ("80", "90"))


def test_package_falls_back_to_pytorch_with_a_warning(tmp_path):
    code = """
    import torch, diff_gaussian_rasterization as dgr
    print(dgr.backend_for(torch.device("cpu")))
    """
    done = python(code, CXX="/bin/false", DGR_CACHE_DIR=str(tmp_path))
    assert done.stdout.strip() == "reference", done.stderr
    assert "CXX is '/bin/false'" in done.stderr


def test_doctor_with_and_without_a_compiler(tmp_path):
    command = [sys.executable, "-m", "diff_gaussian_rasterization"]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    good = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stdout + good.stderr
    assert str(FOLDER / "diff_gaussian_rasterization") in good.stdout
    assert re.search(r"backend for cpu: +cpu", good.stdout)
    environment.update(CXX="/bin/false", DGR_CACHE_DIR=str(tmp_path))
    bad = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert re.search(r"backend for cpu: +reference", bad.stdout)
    assert "CXX is '/bin/false'" in bad.stdout


@pytest.mark.slow
@pytest.mark.parametrize("isolated", [True, False], ids=["isolated", "no-build-isolation"])
def test_pip_install_includes_a_library_that_needs_no_cache(tmp_path, isolated):
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "site")]
    if not isolated:
        pytest.importorskip("setuptools")
        command.append("--no-build-isolation")
    write_script(tmp_path / "nvidia-smi", "exit 1")  # no GPU: compiling CUDA would take minutes
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "TORCH_CUDA_ARCH_LIST": ""}
    source = tmp_path / "source"  # pip leaves build/ and *.egg-info beside setup.py
    shutil.copytree(FOLDER, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "_native"))
    done = subprocess.run([*command, str(source)], env=environment, capture_output=True, text=True, check=False)
    if isolated and done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stdout + done.stderr
    code = "from diff_gaussian_rasterization import build; print(build.load_library()._name)"
    environment = {"PYTHONPATH": str(tmp_path / "site"), "CXX": "/bin/false"}
    loaded = python(code, **environment)
    assert loaded.stdout.strip().startswith(str(tmp_path / "site")), loaded.stderr
    installed, ours = tmp_path / "site" / "diff_gaussian_rasterization", FOLDER / "diff_gaussian_rasterization"
    sources = {path.relative_to(ours) for path in ours.glob("csrc/**/*.*")}
    assert {path.relative_to(installed) for path in installed.glob("csrc/**/*.*")} == sources
    assert {"csrc/cpu/info.cpp", "csrc/cuda/info.cu", "csrc/cuda/launch.cuh"} <= {path.as_posix() for path in sources}
    assert [path.name for path in (installed / "_native").iterdir()] == ["cpu"]
