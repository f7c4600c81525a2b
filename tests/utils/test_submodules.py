"""The scripts find this project's packages, whatever else is installed under their names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rigs.paths import ROOT

PRINT = "print(sys.modules['simple_knn'].__file__)"


def run(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in the checkout, with `paths` standing for what is installed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def fork(tmp_path: Path) -> Path:
    """Another project's package of the same name, which must not even be run."""
    package = tmp_path / "fork" / "simple_knn"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("print('fork was run')\n")
    (package / "_C.py").write_text("def distCUDA2(points): return 'fork'\n")
    return package.parent


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """This project's package, installed elsewhere."""
    shutil.copytree(ROOT / "submodules" / "simple-knn" / "simple_knn", tmp_path / "ours" / "simple_knn")
    return tmp_path / "ours"


CODE = f"from utils.submodules import import_ours; import_ours('simple_knn._C'); {PRINT}"
IN_TREE = str(ROOT / "submodules" / "simple-knn" / "simple_knn" / "__init__.py")


def test_plain_clone_uses_the_checkout_in_silence(tmp_path):
    done = run(CODE, tmp_path)
    assert done.stdout.strip() == IN_TREE
    assert done.stderr == ""


def test_fork_is_passed_over_with_a_warning_that_names_it(fork):
    done = run(CODE, fork)
    assert done.stdout.strip() == IN_TREE
    assert "another project's" in done.stderr
    assert str(fork / "simple_knn" / "__init__.py") in done.stderr


def test_fork_that_is_already_imported_is_replaced(fork):
    done = run(f"import simple_knn._C; {CODE}; print(sys.modules['simple_knn._C'].__file__)", fork)
    assert done.stdout.split("\n")[1:3] == [IN_TREE, IN_TREE.replace("__init__", "_C")]
    assert "another project's" in done.stderr


def test_equal_installed_copy_is_used(ours):
    done = run(CODE, ours)
    assert done.stdout.strip() == str(ours / "simple_knn" / "__init__.py")
    assert done.stderr == ""


def test_changed_installed_copy_gives_way_to_the_checkout(ours):
    with open(ours / "simple_knn" / "_C.py", "a") as file:
        file.write("\n# changed\n")
    done = run(CODE, ours)
    assert done.stdout.strip() == IN_TREE
    assert "older or changed copy" in done.stderr


def test_missing_everywhere_is_a_user_error(fork):
    hide = "import utils.submodules as s, pathlib; s.FOLDERS['simple_knn'] = pathlib.Path('/nowhere')"
    done = run(f"{hide}; s.import_ours('simple_knn')", fork)
    assert "UserError: The package simple_knn is missing" in done.stderr
    assert "another project's" in done.stderr
