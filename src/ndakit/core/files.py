"""Files and folders on disk: written so that no reader sees half of them, exchanged in one step, hashed.

What a folder is for is the business of `workspace`, who may use it meanwhile that of `locks`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shlex
import stat
import tempfile
from pathlib import Path

from ndakit.core.errors import MachineError


class PlaceTaken(MachineError):
    """Where a file or folder of ours belongs is something else."""

    def __init__(self, what: str, place: Path, cause: OSError) -> None:
        super().__init__(
            f"{what} cannot be made: {cause.strerror or cause}",
            where=str(place),
            fix=f"move away what is there: mv {shlex.quote(str(place))} {shlex.quote(f'{place}.old')}",
        )


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises PlaceTaken where something else is, and OSError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        for place in (*reversed(folder.parents), folder):
            if place.is_symlink() and not place.exists():
                raise PlaceTaken("a folder", place, cause) from cause
            if place.exists() and not place.is_dir():
                raise PlaceTaken("a folder", place, cause) from cause
        raise


def write_atomic(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old or the new content, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def swap_folder(new: Path, folder: Path) -> None:
    """Put the folder `new` in the place of `folder` in one step; the old one ends up in the place of `new`.

    Both lie on one file system. Where that cannot exchange names (renameat2(2), RENAME_EXCHANGE) it takes two steps.
    """
    if not folder.is_symlink() and not folder.exists():
        new.rename(folder)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if libc.renameat2(at_cwd, os.fsencode(new), at_cwd, os.fsencode(folder), exchange) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        raise OSError(code, os.strerror(code), str(folder))
    old = new.parent / f"{new.name}.old"
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    old.rename(new)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def own_bytes(path: Path) -> bytes:
    """The content of a file that this user alone can have written: code is read by this.

    Raises OSError; PermissionError too for a link, for no plain file, for another user's, and for one that others may
    write.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as source:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "others can have written it", str(path))
        return source.read()
