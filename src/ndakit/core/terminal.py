"""What tasks print: plain lines that can be pasted into a mail; colours and live tables only on a terminal."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from ndakit.core.errors import MachineError, NdakitError
from ndakit.core.names import UNSEEN

_CODES = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}
_OURS = re.compile(rf"\033\[(?:0|{'|'.join(_CODES.values())})m")


class OutputFailed(MachineError):
    """Standard output or standard error cannot be written any more."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"what this task says cannot be written: {why}",
            where="standard output",
            fix="free some space where its output goes to, or send it elsewhere",
        )


def colourful(stream: TextIO | None) -> bool:
    """True if colours may be written there: a terminal, and NO_COLOR is not set (no-color.org)."""
    return (
        stream is not None and stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """`text` in a colour if `stream` (default: standard output) takes colours."""
    return f"\033[{_CODES[colour]}m{text}\033[0m" if colourful(stream or sys.stdout) else text


def inert(text: str, *, colours: bool = False) -> str:
    """`text` with every character that acts on a terminal, but line ends and tabs, shown as its code.

    Profiles, file names and what other programs said can hold escape sequences (ECMA-48, the C1 controls among them),
    marks that turn the direction of reading, and bytes that are no text. `colours` lets our own colours through.
    """
    lines = []
    for line in text.split("\n"):
        ends = (
            [0, *(at for match in _OURS.finditer(line) for at in match.span()), len(line)]
            if colours
            else [0, len(line)]
        )
        parts = [line[a:b] for a, b in itertools.pairwise(ends)]
        lines.append("".join(part if number % 2 else _shown(part) for number, part in enumerate(parts)))
    return "\n".join(lines)


def _shown(text: str) -> str:
    return "\t".join(UNSEEN.sub(_code, part) for part in text.split("\t"))


def _code(char: re.Match[str]) -> str:
    """As JSON and YAML write it, so that output for scripts stays what it was."""
    return json.dumps(char[0])[1:-1]


def _write(text: str, stream: TextIO | None, end: str = "\n") -> None:
    """Raises BrokenPipeError, and OutputFailed for whatever else the system refuses."""
    if stream is None:
        return
    try:
        print(inert(text, colours=colourful(stream)), end=end, file=stream, flush=True)
    except BrokenPipeError:
        raise
    except OSError as cause:
        raise OutputFailed(cause.strerror or str(cause)) from cause


def say(text: str = "") -> None:
    """One or more lines on standard output, at once."""
    _write(text, sys.stdout)


def ask(question: str) -> str:
    """The line that a person types in answer to a question; empty at the end of the input."""
    _write(question, sys.stderr, end="")
    return sys.stdin.readline() if sys.stdin is not None else ""


def note(text: str) -> None:
    """A line about the run itself, on standard error, so that output for scripts stays clean."""
    _write(text, sys.stderr)


class ProgressLine:
    """How far a download is: a line that overwrites itself on a terminal, a line now and then elsewhere."""

    EVERY_S = 0.2
    PLAIN_EVERY_S = 10.0

    def __init__(self, to: Callable[[str], None]) -> None:
        self._to = to
        self._said_s = time.monotonic()

    def __call__(self, done_bytes: int, total_bytes: int | None, *, took_s: float = 0.0) -> None:
        """Say it, unless that was just done; with the speed if it is known how long that took."""
        live = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        finished = total_bytes is not None and done_bytes >= total_bytes
        now_s = time.monotonic()
        if now_s - self._said_s < (self.EVERY_S if live else self.PLAIN_EVERY_S) and not (live and finished):
            return
        self._said_s = now_s
        text = f"  {done_bytes / 2**20:.1f} MiB"
        if total_bytes:
            text = f"  {done_bytes / 2**20:.1f} of {total_bytes / 2**20:.1f} MiB, {100 * done_bytes // total_bytes} %"
        if took_s > 0:
            text += f", {done_bytes / 2**20 / took_s:.1f} MiB/s"
        if live:
            # The cursor goes back, so that whatever is said next takes the line's place.
            print(f"\r\033[K{'' if finished else inert(text)}\r", end="", file=sys.stderr, flush=True)
        else:
            self._to(text)


def show_error(error: NdakitError) -> None:
    """An error's three lines on standard error."""
    _write(inert(error.text()).replace("error:", paint("error:", "red", sys.stderr)), sys.stderr)


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
