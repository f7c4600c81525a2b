"""Shared by all tests: this project's packages come first, installed or not; GPU tests run where they can."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch

from utils.submodules import FOLDERS, find_ours

for name in FOLDERS:
    find_ours(name)

from splat_scenes import DEVICES  # noqa: E402, it imports the packages found above

from diff_gaussian_rasterization import backend_for  # noqa: E402


@functools.cache
def missing_for_gpu_tests() -> str | None:
    """Why tests marked `gpu` cannot run here, None if they can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        patch.delenv("DGR_BACKEND", raising=False)
        warnings.simplefilter("always")
        found = backend_for("cuda")
    reasons = "; ".join(str(warning.message) for warning in caught)
    return None if found == "cuda" else f"tensors on cuda are rasterised by {found!r}: {reasons}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (reason := missing_for_gpu_tests()):
        pytest.skip(reason)


@pytest.fixture(params=DEVICES, scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Every device with compiled kernels. Of the session: hypothesis refuses fixtures that belong to one test."""
    return request.param


@pytest.fixture
def compiled_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the compiled kernels of the test's device."""
    on = request.getfixturevalue("device") if "device" in request.fixturenames else "cpu"
    monkeypatch.setenv("DGR_BACKEND", on)
