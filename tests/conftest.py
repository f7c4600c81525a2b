"""Shared by all tests: this project's packages come first, installed or not."""

from __future__ import annotations

from utils.submodules import FOLDERS, find_ours

for name in FOLDERS:
    find_ours(name)
