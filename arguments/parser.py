"""Build an argparse parser from the dataclasses of `arguments.groups`."""

from __future__ import annotations

import argparse
import ast
import inspect
import math
import textwrap
import types
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints


def parse(
    description: str,
    groups: Sequence[type],
    argv: Sequence[str] | None = None,
    saved: Callable[[argparse.Namespace], dict[str, Any]] | None = None,
) -> tuple[Any, ...]:
    """Parse flags into one instance of each group, in the order given.

    Bad flags end the program with argparse's usage line and exit code 2. A field of the same name in two groups is
    one flag. Flags cannot be abbreviated.

    Args:
        description: first lines of --help.
        saved: called with the parsed flags; returns values of an earlier run by flag name, which replace the defaults
            of flags that are not on the command line.
    """
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    known: set[str] = set()
    for group in groups:
        section = parser.add_argument_group(group.__doc__)
        for name, flags, settings in _options(group):
            if name not in known:
                section.add_argument(*flags, dest=name, **settings)
            known.add(name)
    namespace = parser.parse_args(argv)
    if saved is not None:
        parser.set_defaults(**{name: value for name, value in saved(namespace).items() if name in known})
        namespace = parser.parse_args(argv)
    values = vars(namespace)
    return tuple(group(**{field.name: values[field.name] for field in fields(group)}) for group in groups)


def _options(group: type) -> list[tuple[str, list[str], dict[str, Any]]]:
    """List (name, flags, argparse settings) for every field of a group."""
    types_of, helps = get_type_hints(group), _docstrings(group)
    options: list[tuple[str, list[str], dict[str, Any]]] = []
    for field in fields(group):
        kind = types_of[field.name]
        default = field.default if field.default_factory is MISSING else field.default_factory()
        settings: dict[str, Any] = {"default": default, "help": helps[field.name].replace("%", "%%")}
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction if default else "store_true"
        elif get_origin(kind) is list:
            settings |= {"nargs": "+" if field.metadata.get("at_least") else "*"}
            settings |= {"type": get_args(kind)[0], "metavar": field.name.rstrip("s").upper()}
        else:
            settings["type"] = _without_none(kind)
            if field.metadata.get("choices"):
                settings["choices"] = field.metadata["choices"]
            else:
                settings["metavar"] = {int: "N", float: "X", Path: "PATH"}.get(settings["type"], "NAME")
            least = field.metadata.get("at_least")
            if least is not None:
                settings["type"] = _bounded(settings["type"], least, field.metadata["at_most"])
            if field.metadata.get("kind"):
                settings |= {"type": field.metadata["kind"], "metavar": field.metadata["metavar"]}
        options.append((field.name, [*field.metadata.get("short", ()), f"--{field.name}"], settings))
    return options


def _bounded(kind: Callable[[str], float], least: float, most: float | None) -> Callable[[str], float]:
    """Make the argparse type of a finite number of `kind` within bounds."""
    highest = math.inf if most is None else most

    def number(text: str) -> float:
        value = kind(text)
        if not (least <= value <= highest and abs(value) < math.inf):  # NaN fails every comparison
            expected = f"at least {least:g}" + (f" and at most {most:g}" if most is not None else "")
            raise argparse.ArgumentTypeError(f"{text} is out of bounds: expected {expected}")
        return value

    number.__name__ = kind.__name__  # argparse shows it for text that is not a number
    return number


def _without_none(kind: Any) -> Any:
    """Return T for `T | None`, else the type itself."""
    if get_origin(kind) in (Union, types.UnionType):
        return next(argument for argument in get_args(kind) if argument is not type(None))
    return kind


def _docstrings(group: type) -> dict[str, str]:
    """Return the string literal under each field of a dataclass."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(group))).body[0]
    assert isinstance(definition, ast.ClassDef)
    return {
        ast.unparse(statement.target): inspect.cleandoc(ast.literal_eval(following.value))
        for statement, following in pairwise(definition.body)
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr)
    }
