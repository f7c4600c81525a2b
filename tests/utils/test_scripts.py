"""The console commands of pyproject.toml run the modules they are named after, from any folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rigs.paths import ROOT
from utils.scripts import MODULES


def test_pyproject_declares_every_command():
    declared = re.findall(r'^(refersplat-\S+) = "utils\.scripts:main"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert sorted(declared) == sorted(MODULES)


@pytest.mark.parametrize(("command", "module"), MODULES.items())
def test_every_command_is_a_script_or_a_module(command, module):
    path = ROOT.joinpath(*module.split("."))
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), command


@pytest.mark.parametrize("command", ["refersplat-check", "refersplat-consensus", "refersplat-formats"])
def test_commands_work_in_another_folder(command, tmp_path):
    executable = shutil.which(command, path=str(Path(sys.executable).parent))
    if executable is None:
        pytest.skip("the project is not installed (pip install -e .)")
    done = subprocess.run([executable, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
