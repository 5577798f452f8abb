"""What the lab's work with Debian packages stands on: its error, running programs, a disk that is full."""

from __future__ import annotations

import contextlib
import errno
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR)


class LabError(Exception):
    """The machine cannot do it: what happened, where, and how to fix it."""

    def __init__(self, what: str, *, where: str, fix: str) -> None:
        super().__init__(f"{what}\n  where: {where}\n  fix:   {fix}")


@contextlib.contextmanager
def space(folder: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a message."""
    try:
        yield
    except OSError as cause:
        if cause.errno not in _CANNOT_WRITE:
            raise
        raise LabError(
            f"the cache cannot be written: {cause.strerror}",
            where=str(folder),
            fix="free some space there (about 1 GB is needed), or choose another folder (XDG_CACHE_HOME)",
        ) from cause


def run(argv: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    require(argv[0], "apt" if argv[0].startswith("apt") else "dpkg")
    return subprocess.run(
        argv, env={**env, "LC_ALL": "C"}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def require(tool: str, package: str) -> None:
    if shutil.which(tool) is None:
        raise LabError(
            f"{tool} is needed to get the lab's packages, and is not installed",
            where="this machine's PATH",
            fix=f"use a Debian or Ubuntu machine, or: apt-get install {package}",
        )
