"""python -m synthetic --out DIR --seed S: make a procedural referring scene in the Ref-LERF layout."""

from __future__ import annotations

import argparse
import time
from dataclasses import fields
from pathlib import Path

from synthetic.generate import Flags, generate
from utils.errors import run


def parse(argv: list[str] | None) -> tuple[Path, Flags]:
    """Return the output folder and the checked flags."""
    parser = argparse.ArgumentParser(
        prog="python -m synthetic",
        description="Make a table top with 6 to 10 objects, exact masks and referring sentences (Ref-LERF layout).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new, empty or a former scene of ours")
    for flag in fields(Flags):
        parser.add_argument(f"--{flag.name}", type=int, default=flag.default, help=flag.metadata["help"])
    values = vars(parser.parse_args(argv))
    out = values.pop("out")
    return out, Flags(**values)


def main(argv: list[str] | None = None) -> None:
    """Run the generator."""
    start = time.perf_counter()
    out, flags = parse(argv)
    generate(out, flags)
    print(f"{out}: {flags.views} views of {flags.width}x{flags.height} in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    run(main)
