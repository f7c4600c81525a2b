"""Files that repeat each other agree, and the documents name files that exist."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.rigs.paths import ROOT


def project_requirements() -> set[str]:
    """Requirements of pyproject.toml and of its extras `dev`, `formats` and `video` (tomllib is not in Python 3.10)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    blocks = re.findall(r"^(?:dependencies|dev|formats|video) = \[$(.*?)^\]$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    return set(re.findall(r'"([^"]+)"', "".join(blocks)))


def test_conda_environment_lists_what_pyproject_requires():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    local = {item for item in pip if item.startswith("./")}
    assert set(pip) - local == project_requirements()
    assert all((ROOT / path / "pyproject.toml").is_file() for path in local)


def test_citation_has_what_the_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "title", "message", "authors"} <= citation.keys()
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation["version"] == version.group(1)
    assert citation["preferred-citation"]["authors"][0]["family-names"] == "He"


@pytest.mark.parametrize("document", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))])
def test_links_inside_the_repository_lead_somewhere(document):
    path = ROOT / document
    text = path.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert missing == []


def test_own_packages_carry_the_mark_that_imports_look_for():
    for init in ROOT.glob("submodules/*/*/__init__.py"):
        assert '\n__project__ = "refersplat"' in init.read_text(encoding="utf-8"), init


def test_equation_table_names_existing_functions_and_kernels():
    text = (ROOT / "docs" / "METHOD.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|") and line.count("|") == 5]
    functions = set(re.findall(r"^def (\w+)", (ROOT / "referring" / "reference.py").read_text(encoding="utf-8"), re.M))
    named = {name for row in rows[2:] for name in re.findall(r"`(\w+)`", row[1])}
    assert named - functions == set()
    assert len(named) > 10
    sources = {path.name for path in [*ROOT.glob("referring/kernels/csrc/*"), *ROOT.glob("submodules/*/*/csrc/*/*")]}
    assert set(re.findall(r"\w+\.cuh?\b", text)) - sources == set()
