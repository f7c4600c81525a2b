"""The kernels of the referring field as nvcc sees them; compiling needs no GPU."""

from __future__ import annotations

import dataclasses
import subprocess

import pytest

from diff_gaussian_rasterization.compiling import Target
from referring.kernels import library
from referring.kernels.library import CSRC, OLDEST_GPU, build, toolchain

WARNINGS = ("-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra")


@pytest.mark.parametrize(("words", "shared_kb"), [(16, 220), (64, 96)])
def test_every_kernel_compiles_without_a_warning(monkeypatch: pytest.MonkeyPatch, words: int, shared_kb: int) -> None:
    """For the longest and the shortest sentences, a large and a small GPU; GPUs that are too old are left out."""
    if toolchain.find_nvcc() is None:
        pytest.skip("nvcc is not installed")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5;9.0" if shared_kb == library.SHARED_KB[0] else "7.5;8.0")
    defines = (f"-DFIELD_WORDS={words}", f"-DFIELD_SHARED_KB={shared_kb}")
    target = build.cuda_target("cuda-field", CSRC, defines, 10 * OLDEST_GPU[0])
    assert len(target.codes) == 1
    try:
        path = build.build_into_cache(dataclasses.replace(target, flags=(*target.flags, *WARNINGS)))
    except build.BuildError as error:
        pytest.fail(str(error), pytrace=False)
    listing = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        functions = {*library.SIGNATURES, "field_warps", "field_warps_per_sm", "field_list_block", "field_error_text"}
        assert {line.split()[-1] for line in listing.stdout.splitlines()} == functions


def test_key_follows_sources_and_flags(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "a.cu").write_text("int a;")
    (tmp_path / "b.cuh").write_text("int b;")
    nvcc = toolchain.Compiler(("nvcc",), "nvcc", "nvcc 13.0")
    target = Target("cuda-field", nvcc, ("-O3",), "here", tmp_path, tmp_path)
    keys = {target.key, dataclasses.replace(target, flags=("-O2",)).key}
    (tmp_path / "b.cuh").write_text("int c;")
    assert target.key not in keys
    assert len(keys) == 2
