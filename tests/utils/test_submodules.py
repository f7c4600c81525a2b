"""The scripts find this project's packages, whatever else is installed under their names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rigs.paths import ROOT

IN_TREE = str(ROOT / "submodules" / "simple-knn" / "simple_knn" / "__init__.py")
NOT_INSTALLED = "sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in getattr(f, '__module__', '')]"
CODE = "import utils; from simple_knn import _C; import simple_knn; print(simple_knn.__file__); print(_C.__file__)"


def run(code: str, *installed: Path, checkout: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python code in a checkout, with the folders `installed` standing for site-packages."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; {NOT_INSTALLED}; sys.path.insert(0, {str(checkout)!r}); {code}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, installed))},
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


def test_plain_clone_uses_the_checkout_without_a_word(tmp_path):
    done = run(CODE, tmp_path)
    assert done.stdout.splitlines() == [IN_TREE, IN_TREE.replace("__init__", "_C")]
    assert done.stderr == ""


def test_fork_is_overridden_with_a_warning_that_names_it(fork):
    done = run(CODE, fork)
    assert done.stdout.splitlines()[0] == IN_TREE
    assert "another project's" in done.stderr
    assert str(fork / "simple_knn" / "__init__.py") in done.stderr


def test_imported_fork_is_replaced(fork):
    done = run(f"import simple_knn._C; {CODE}", fork)
    assert done.stdout.splitlines() == ["fork was run", IN_TREE, IN_TREE.replace("__init__", "_C")]
    assert "another project's" in done.stderr


def test_equal_installed_copy_is_used(ours):
    done = run(CODE, ours)
    assert done.stdout.splitlines()[0] == str(ours / "simple_knn" / "__init__.py")
    assert done.stderr == ""


def test_changed_installed_copy_is_overridden_by_the_checkout(ours):
    with open(ours / "simple_knn" / "_C.py", "a") as file:
        file.write("\n# changed\n")
    done = run(CODE, ours)
    assert done.stdout.splitlines()[0] == IN_TREE
    assert "older or changed copy" in done.stderr


def test_missing_package_ends_the_program_with_one_message(fork, tmp_path):
    shutil.copytree(ROOT / "utils", tmp_path / "checkout" / "utils")
    shutil.copytree(
        ROOT / "submodules" / "diff-gaussian-rasterization",
        tmp_path / "checkout" / "submodules" / "diff-gaussian-rasterization",
    )
    done = run("import utils", fork, checkout=tmp_path / "checkout")
    assert done.returncode == 2
    assert done.stderr.startswith("error: The package simple_knn is missing")
    assert "another project's" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("package", ["gaussian_renderer", "referring.kernels", "scene", "training", "utils"])
def test_packages_that_use_the_rasterizer_find_it_first(package, tmp_path):
    done = run(f"import {package}, diff_gaussian_rasterization, simple_knn; print(simple_knn.__file__)", tmp_path)
    assert done.stdout.strip() == IN_TREE, done.stderr


def test_scripts_find_the_packages_from_another_folder(tmp_path):
    command = [sys.executable, ROOT / "train.py", "--help"]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
