"""JSON that comes from outside: read strictly, with one kind of error for everything that is wrong with it.

Python's reader has three: ValueError, RecursionError for what is nested too deep, and none at all for NaN and Infinity,
which RFC 8259 does not have. Records, notes in caches and answers of programs are read here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def parse(text: str | bytes, *, halves: bool = False) -> Any:
    """The value. Raises ValueError for whatever is no JSON (RFC 8259), or nested deeper than Python reads.

    Half of a character (an escape such as \\ud800 alone, RFC 8259 8.2) is refused too: no file or terminal takes it.
    With `halves` it is taken: so Python writes bytes that are no UTF-8 (surrogateescape, PEP 383).
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
        if not halves and _may_have_halves(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("it has half of a character in it") from None
    return value


def mapping(text: str | bytes) -> dict[str, Any]:
    """The value, which has to be an object. Raises ValueError."""
    value = parse(text)
    if not isinstance(value, dict):
        raise ValueError(f"it is no object, but {type(value).__name__}")
    return value


def read(path: Path) -> dict[str, Any]:
    """The object in a file. Raises OSError, and ValueError for a file that holds none."""
    return mapping(path.read_bytes())


def _may_have_halves(text: str | bytes) -> bool:
    """False for plain ASCII without such escapes, which nearly every text is. Bytes with zeros are no UTF-8, and are
    read all the same."""
    if isinstance(text, bytes):
        return not text.isascii() or b"\\ud" in text.lower() or b"\0" in text
    return not text.isascii() or "\\ud" in text.lower()


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")
