"""How much work something is, told without a clock: lines of Python that it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def lines_run(do: Callable[[], object]) -> int:
    """How many lines run, those of everything that is called included."""
    count = 0

    def seen(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return seen

    before = sys.gettrace()
    sys.settrace(seen)
    try:
        do()
    finally:
        sys.settrace(before)
    return count
