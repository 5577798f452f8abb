"""JSON that comes from outside: read strictly, with one kind of error for everything that is wrong with it.

Python's reader has three: ValueError, RecursionError for what is nested too deep, and none at all for NaN and Infinity,
which RFC 8259 does not have. Records, notes in caches and answers of programs are read here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def parse(text: str | bytes) -> Any:
    """The value. Raises ValueError for whatever is no JSON (RFC 8259), or nested deeper than Python reads."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def mapping(text: str | bytes) -> dict[str, Any]:
    """The value, which has to be an object. Raises ValueError."""
    value = parse(text)
    if not isinstance(value, dict):
        raise ValueError(f"it is no object, but {type(value).__name__}")
    return value


def read(path: Path) -> dict[str, Any]:
    """The object in a file. Raises OSError, and ValueError for a file that holds none."""
    return mapping(path.read_bytes())


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")
