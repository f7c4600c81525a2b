"""The imports of the product go down one list of folders, without circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.rigs.paths import ROOT

SUBMODULES = ("diff_gaussian_rasterization", "simple_knn")
ORDER = (  # low to high: a module imports from its own entry or from entries before it
    ("utils", *SUBMODULES),
    ("arguments",),
    ("scene",),
    ("referring",),
    ("gaussian_renderer",),
    ("training",),
    ("inference",),
    ("evaluation",),
    ("pseudo_masks",),
    ("synthetic",),
    ("train", "render", "eval", "pseudo_mask"),
    ("benchmarks",),
)
RANKS = {name: rank for rank, names in enumerate(ORDER) for name in names}
COMMANDS = {"scene.check", "scene.formats.__main__"}  # run with python -m, so they parse flags


def product_modules() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every product module."""
    for names in ORDER:
        for name in names:
            if (script := ROOT / f"{name}.py").is_file():
                yield name, script
                continue
            folder = next(path for path in [ROOT / name, *ROOT.glob(f"submodules/*/{name}")] if path.is_dir())
            for file in sorted(folder.rglob("*.py")):
                parts = [name, *file.relative_to(folder).with_suffix("").parts]
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def imports(module: str, file: Path) -> Iterator[tuple[str, str]]:
    """(module, name in it or "") of every import of a file, at the top or inside functions."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((base, alias.name) for alias in node.names)


@cache
def import_graph() -> dict[str, set[str]]:
    """Product modules that each product module imports."""
    modules = dict(product_modules())
    graph = {}
    for module, file in modules.items():
        found = {f"{base}.{name}" if f"{base}.{name}" in modules else base for base, name in imports(module, file)}
        graph[module] = found & modules.keys()
    return graph


def test_every_folder_of_python_has_its_place_in_the_order() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/*.py")} | {path.stem for path in ROOT.glob("*.py")}
    assert folders - RANKS.keys() - {"tests"} == set()


def test_imports_go_down_the_list_of_folders() -> None:
    against = {
        (module, name.partition(".")[0])
        for module, imported in import_graph().items()
        for name in imported
        if RANKS[name.partition(".")[0]] > RANKS[module.partition(".")[0]]
    }
    assert against == set()


def test_no_module_imports_itself_through_others() -> None:
    graph = import_graph()
    reachable = {module: set(imported) for module, imported in graph.items()}
    changed = True
    while changed:
        changed = False
        for names in reachable.values():
            further = set().union(*(reachable[name] for name in names)) - names
            names |= further
            changed |= bool(further)
    assert {module for module, names in reachable.items() if module in names} == set()


def test_nothing_under_scene_parses_flags() -> None:
    """Its modules take dataclasses of `arguments`; only commands parse them."""
    parsing = {
        module
        for module, file in product_modules()
        if module.partition(".")[0] == "scene"
        for base, name in imports(module, file)
        if base in ("argparse", "arguments.parser") or (base, name) == ("arguments", "parse")
    }
    assert parsing == COMMANDS


def test_every_form_of_import_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("import a.b\nfrom c import d\ndef f():\n    from . import g\n    from ..h import i\n")
    expected = {("a.b", ""), ("c", "d"), ("top.inner", "g"), ("top.h", "i")}
    assert set(imports("top.inner.module", file)) == expected
