"""The tile loop is compiled for the widest instruction set of a machine; these tests run the other ones."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

from diff_gaussian_rasterization import GaussianRasterizer, abi, build, toolchain
from tests.rigs.splat_scenes import looking_down_z, random_splats, view_settings

# Name: compiler options. "loops" is what a compiler without vector extensions gets.
INSTRUCTION_SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "loops": ["-DDGR_NO_VECTOR_EXTENSIONS"],
}


def compile_for(name: str, folder: Path) -> ctypes.CDLL:
    """Compile the kernels without -march=native."""
    compiler = toolchain.find_compiler()
    if compiler.family == "msvc":
        pytest.skip("options of GCC and Clang")
    if name == "avx2" and not {"avx2", "fma"} <= set(toolchain.cpu_features()):
        pytest.skip("this CPU has no AVX2")
    library = folder / f"{name}.so"
    units = [str(path) for path in build.find_target("cpu").units]
    options = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]
    command = [*compiler.command, *options, *INSTRUCTION_SETS[name], *units, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return abi.declare(ctypes.CDLL(str(library)))


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_instruction_set(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGR_BACKEND", "cpu")

    def render() -> list[torch.Tensor]:
        results = []
        for channels in (1, 9):
            splats = random_splats(channels, 400, channels, sh_degree=1)
            inputs = splats.leaves()
            settings = view_settings(looking_down_z(70, 45), sh_degree=1)
            color, language, _ = GaussianRasterizer(settings)(**inputs)
            torch.autograd.backward([color, language], [color.detach().cos(), language.detach().cos()])
            results += [color.detach(), language.detach(), *(t.grad for t in inputs.values())]
        return results

    expected = render()
    library = compile_for(name, tmp_path)
    monkeypatch.setattr(abi, "library", lambda target: library)
    for found, native in zip(render(), expected, strict=True):
        assert (found - native).norm() <= 1e-3 * native.norm()  # a pixel on a threshold may differ
