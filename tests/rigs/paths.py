"""Places that tests read from: the checkout, and data that is not part of it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("SHARED_DIR") or ROOT.parent / "shared")
GOLDEN = Path(os.environ.get("GOLDEN_DIR") or SHARED / "golden")
