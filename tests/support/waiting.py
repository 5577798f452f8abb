"""Waiting for what is to be seen, and what still runs in a folder."""

from __future__ import annotations

import time
from pathlib import Path


def processes_below(folder: Path) -> list[str]:
    """The command lines of processes that work in a folder."""
    commands = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(folder):
                commands.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return commands


def wait_for(condition: object, timeout_s: float = 10.0) -> None:
    assert callable(condition)
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.02)
