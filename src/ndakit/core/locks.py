"""Locks between runs: lock files, scratch folders that end with their run, and entries of caches that nobody uses.

Every lock is one of the kernel's (flock(2)): it is gone when its holder dies, however it dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ndakit.core import json_text, process
from ndakit.core.errors import MachineError
from ndakit.core.files import PlaceTaken, make_folder


class WorkspaceBusy(MachineError):
    """Another run holds the lock for longer than we wait."""

    def __init__(self, lock: Path, holder: str, waited_s: float) -> None:
        super().__init__(
            f"another run is at work here ({holder}); waited {waited_s:g} s",
            where=str(lock),
            fix="wait until it has ended, or end that process; the lock goes away with it",
        )


@contextlib.contextmanager
def hold(
    path: Path, *, shared: bool = False, wait_s: float = 1800.0, on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold a lock file, alone or (`shared`) beside others who share it.

    The kernel drops the lock when its holder dies, however it dies (flock(2)). While it cannot be had, `on_wait` is
    told once who has it (of several who share it, the last who came). Raises WorkspaceBusy after `wait_s`, PlaceTaken,
    and OSError for what the disk refuses.
    """
    fd = _lock_file(path)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        started_s = time.monotonic()
        told = False
        while True:
            if _locked(fd, kind):
                if _is_still(path, fd):
                    break
                removed, fd = fd, _lock_file(path)  # by its last holder: whoever comes now locks another file
                os.close(removed)
                continue
            holder = _holder(path)
            if on_wait is not None and not told:
                on_wait(f"waiting for {holder}, which is at work here")
                told = True
            process.go_on()
            if time.monotonic() - started_s >= wait_s:
                raise WorkspaceBusy(path, holder, wait_s)
            time.sleep(0.1)
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"pid": os.getpid(), "since": int(time.time())}).encode(), 0)
        yield
    finally:
        os.close(fd)


def _lock_file(path: Path) -> int:
    make_folder(path.parent)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        return fd
    except OSError as cause:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise PlaceTaken("the lock file", path, cause) from cause
        raise


def _locked(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_still(path: Path, fd: int) -> bool:
    """True if the open file is the one that the path names."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    """Who wrote itself into the lock file, in words."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        pid = int(json_text.read(path)["pid"])
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return f"process {pid}, {command.strip()[:120]}"
    return "another process"


def stale(entries: Iterable[Path], *, keep: int, idle_s: float) -> list[Path]:
    """The entries of a cache to give up: all but the `keep` used last, if nobody has used them for `idle_s`.

    An entry's time of modification says when it was last used. Other runs give up entries at the same time: one that
    vanishes meanwhile is passed over.
    """
    used: list[tuple[float, Path]] = []
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):
            used.append((entry.lstat().st_mtime, entry))
    now = time.time()
    return [entry for last, entry in sorted(used, reverse=True)[keep:] if now - last > idle_s]


def give_up(entry: Path, lock: Path, remove: Callable[[], None], *, idle_s: float) -> None:
    """Remove an entry of a cache and its lock file, unless somebody holds the lock or has used the entry meanwhile."""
    with contextlib.suppress(OSError, WorkspaceBusy, PlaceTaken), hold(lock, wait_s=0):
        if stale([entry], keep=0, idle_s=idle_s):
            remove()
            lock.unlink()


@contextlib.contextmanager
def scratch_folder(base: Path, purpose: str) -> Iterator[Path]:
    """A private folder under `base`, locked while in use and gone afterwards; unlocked leftovers are removed first."""
    make_folder(base)
    sweep(base)
    folder = Path(tempfile.mkdtemp(prefix=f"{purpose}-{os.getpid()}-", dir=base))
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


def sweep(base: Path) -> int:
    """Remove the scratch folders under `base` whose owner is gone; their number. Young ones (10 s) are left alone."""
    removed = 0
    for folder in base.iterdir() if base.is_dir() else ():
        with contextlib.suppress(OSError):
            if not folder.is_dir() or time.time() - folder.stat().st_mtime < 10:
                continue
            fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
            finally:
                os.close(fd)
    return removed
