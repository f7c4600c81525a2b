"""A library of two functions in place of the rasteriser's, and shell scripts in place of compilers.

With them a build takes half a second.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diff_gaussian_rasterization import constants

posix = pytest.mark.skipif(os.name == "nt", reason="the stand-in compilers are shell scripts")


def library_source(abi: int = constants.ABI_VERSION, version: str = constants.VERSION) -> str:
    """Return the C++ source of a library that reports its ABI and version."""
    return f"""
#include <cstdint>
extern "C" __attribute__((visibility("default"))) int32_t dgr_abi_version() {{ return {abi}; }}
extern "C" __attribute__((visibility("default"))) const char* dgr_version() {{ return "{version}"; }}
"""


def write_script(path: Path, body: str) -> str:
    """Write an executable shell script and return its path."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def write_compiler(path: Path, body: str = "") -> str:
    """Write a compiler that runs `body`, then passes its arguments to g++; return its path."""
    return write_script(path, f'{body}\nexec g++ "$@"')
