"""Files of this machine that become part of an image, where everybody can see them: which are refused.

Owns what makes a file look as if it were kept from others: where it lies, who may read it, and what is in it. Who names
the file, and how the refusal is worded for people, is the business of those who ask.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
from pathlib import Path

_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY")
"""How files with private keys begin (RFC 7468; OpenSSH's the same way)."""


class KeptFromOthers(Exception):
    """A file that must not be copied to where others see it. `mode` is set if its mode is the reason."""

    def __init__(self, why: str, mode: int | None = None) -> None:
        super().__init__(why)
        self.mode = mode


def place(path: Path, base: Path) -> Path:
    """The file behind a path, links followed, which has to lie inside `base` and in no folder for secrets there.

    Raises KeptFromOthers, and OSError (also for a link that leads to itself).
    """
    try:
        real, inside = path.resolve(strict=True), base.resolve()
    except RuntimeError as cause:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from cause
    if not real.is_relative_to(inside):
        raise KeptFromOthers(f"lies outside of {base}")
    parts = real.relative_to(inside).parts
    if parts[:1] == ("secrets",) or any(part.startswith(".") for part in parts):
        raise KeptFromOthers("lies in a folder for what nobody may see")
    return real


def read(real: Path, by: Path, limit: int | None = None) -> bytes:
    """The content (at most `limit` bytes) of a plain file that others may see; it belongs to the file or folder `by`.

    Where that is kept from others itself, as by a umask of 077, the mode of a file says nothing. Raises KeptFromOthers,
    IsADirectoryError for whatever is no plain file, OSError.
    """
    fd = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb", buffering=0 if stat.S_ISDIR(os.fstat(fd).st_mode) else -1) as source:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise IsADirectoryError(errno.EISDIR, "it is no plain file", str(real))
        refuse_mode(mode, by)
        content = source.read() if limit is None else source.read(limit)
    if _PRIVATE_KEY.search(content):
        raise KeptFromOthers("holds a private key")
    return content


def refuse_mode(mode: int, by: Path) -> None:
    """Raise KeptFromOthers if others may not read a file of this mode, and may read what it belongs to."""
    if not mode & stat.S_IROTH and by.stat().st_mode & stat.S_IROTH:
        raise KeptFromOthers(f"may not be read by others (its mode is {stat.S_IMODE(mode):04o})", mode)


def fix(cause: KeptFromOthers, shown: str, beside: str) -> str:
    """What to do about it; `shown` is the file for people, `beside` the folder for a copy."""
    if cause.mode is not None:
        return f"name another file; or, if everybody may see it: chmod o+r {shlex.quote(shown)}"
    return f"copy what may be seen by everybody to {beside}, and name the copy"
