"""What tasks print: plain lines that can be pasted into a mail; colours and live tables only on a terminal."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from ndakit.errors import NdakitError

_CODES = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


def colourful(stream: TextIO) -> bool:
    """True if colours may be written there: a terminal, and NO_COLOR is not set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """`text` in a colour if `stream` (default: standard output) takes colours."""
    return f"\033[{_CODES[colour]}m{text}\033[0m" if colourful(stream or sys.stdout) else text


def say(text: str = "") -> None:
    """One or more lines on standard output, at once."""
    print(text, flush=True)


def note(text: str) -> None:
    """A line about the run itself, on standard error, so that output for scripts stays clean."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """How far a download is: a line that overwrites itself on a terminal, a line now and then elsewhere."""

    EVERY_S = 0.2
    PLAIN_EVERY_S = 10.0

    def __init__(self, to: Callable[[str], None]) -> None:
        self._to = to
        self._said_s = time.monotonic()

    def __call__(self, done_bytes: int, total_bytes: int | None) -> None:
        """Say it, unless that was just done."""
        live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        finished = total_bytes is not None and done_bytes >= total_bytes
        now_s = time.monotonic()
        if now_s - self._said_s < (self.EVERY_S if live else self.PLAIN_EVERY_S) and not (live and finished):
            return
        self._said_s = now_s
        text = f"  {done_bytes / 2**20:.1f} MiB"
        if total_bytes:
            text = f"  {done_bytes / 2**20:.1f} of {total_bytes / 2**20:.1f} MiB, {100 * done_bytes // total_bytes} %"
        if live:
            # The cursor goes back, so that whatever is said next takes the line's place.
            print(f"\r\033[K{'' if finished else text}\r", end="", file=sys.stderr, flush=True)
        else:
            self._to(text)


def show_error(error: NdakitError) -> None:
    """An error's three lines on standard error."""
    text = error.text()
    print(text.replace("error:", paint("error:", "red", sys.stderr)), file=sys.stderr, flush=True)


def show_json(value: Any) -> None:
    """A value for scripts, with sorted keys."""
    say(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=str))


def table(rows: Sequence[Sequence[str]], *, header: Sequence[str] | None = None, indent: str = "") -> str:
    """Columns aligned by spaces, the last one ragged."""
    every = [header, *rows] if header else list(rows)
    if not every:
        return ""
    widths = [max(len(str(row[i])) for row in every) for i in range(len(every[0]))]
    lines = [indent + "  ".join(str(c).ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in every]
    if header:
        lines.insert(1, indent + "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def seconds(value_s: float) -> str:
    """A duration for people."""
    if value_s < 1:
        return f"{value_s * 1000:.0f} ms"
    return f"{value_s:.1f} s" if value_s < 120 else f"{value_s / 60:.1f} min"
