"""Which version of this program runs."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_revision() -> str:
    """Commit of the checkout, with "-dirty" after local changes; "unknown" outside a checkout or without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    folder = Path(__file__).resolve().parent.parent
    try:
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip() or "unknown"
