"""Where things are: the repository, the lab's sources, what tests read, and the helpers that tests run as programs."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "lab"
DATA = ROOT / "tests" / "data"
SUPPORT = ROOT / "tests" / "support"
