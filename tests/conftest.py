"""Shared by all tests: this project's packages come first, installed or not; GPU tests run where they can."""

from __future__ import annotations

import pytest

from utils.submodules import FOLDERS, find_ours

for name in FOLDERS:
    find_ours(name)

from splat_scenes import DEVICES  # noqa: E402, it imports the packages found above

from diff_gaussian_rasterization.backends import cuda_missing  # noqa: E402


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (reason := cuda_missing()):
        pytest.skip(f"no CUDA kernels: {reason}")


@pytest.fixture(params=DEVICES, scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Every device with compiled kernels. Of the session: hypothesis refuses fixtures that belong to one test."""
    return request.param


@pytest.fixture
def compiled_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the compiled kernels of the test's device."""
    on = request.getfixturevalue("device") if "device" in request.fixturenames else "cpu"
    monkeypatch.setenv("DGR_BACKEND", on)
