"""An ImageBuilder's folder as files: a private copy to work in, and a hash of what it would put into an image.

Owns what in such a folder is material and what make leaves behind. Nothing here runs make or reads its output.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ndakit.core import json_text
from ndakit.core.files import write_atomic

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of a file, where the file system can

# What a run of make leaves behind: roots being put together, images, temporary files, and a list of devices that stays
# empty once it was made by scripts that had lost their exec bits.
_LEFTOVERS = re.compile(
    r"bin|tmp|logs|\.profiles\.mk|\.config\.old|staging_dir/host/\.prereq-build"
    r"|build_dir/[^/]+/(root-[^/]+|root\.orig-[^/]+|json_info_files)|build_dir/[^/]+/[^/]+/(tmp|root\.[^/]+)"
)

# What make adds to the material without changing what comes into an image: downloads, indexes, keys of its own.
_DERIVED = re.compile(r"dl|keys|key-build[^/]*|packages/(Packages[^/]*|packages\.adb|index\.json|\.[^/]+)")

_PACKAGE_SUFFIXES = (".ipk", ".apk")

# What make only ever reads or replaces, never writes into: a hard link is as good as a copy. Programs, makefiles,
# scripts, sources and packages; what is built lies in build_dir, dl, tmp and bin, settings in files at the top.
_SHARED = re.compile(r"(staging_dir|target|include|scripts)/.*|.*\.(ipk|apk)")

_SETTLED_S = 2.0
"""A file that was changed less than this before it was hashed may change again within the same tick of its clock."""


def files(root: Path, skip: Callable[[str], bool]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file and symbolic link below `root` with its relative path, sorted; `skip` prunes files and folders."""

    def walk(folder: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        with os.scandir(folder) as entries:
            in_order = sorted(entries, key=lambda e: e.name)
        for entry in in_order:
            path = prefix + entry.name
            if skip(path):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path, path + "/")
            else:
                yield path, entry

    yield from walk(str(root), "")


def is_leftover(path: str) -> bool:
    """True for what a run of make left behind in an ImageBuilder; `path` is relative to it."""
    return _LEFTOVERS.fullmatch(path) is not None


def private_copy(source: Path, target: Path) -> None:
    """Copy an ImageBuilder without what earlier runs left, keeping modes, times and symbolic links.

    `target` must not exist. What make never writes into is a hard link where that is possible, everything else is a
    copy (one that shares blocks where the file system can): what make writes must never reach the original.
    """
    target.parent.mkdir(parents=True, exist_ok=True)

    def copy(folder: str, prefix: str) -> None:
        os.mkdir(f"{target}/{prefix}")  # noqa: PTH102  # here and below: thousands of files, and pathlib takes half the time
        with os.scandir(folder) as entries:
            all_entries = list(entries)
        for entry in all_entries:
            path = prefix + entry.name
            if is_leftover(path):
                continue
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), f"{target}/{path}")  # noqa: PTH115, PTH211  # see above
            elif entry.is_dir():
                copy(entry.path, path + "/")
            elif _SHARED.fullmatch(path):
                share(entry.path, f"{target}/{path}")
            elif entry.is_file():
                _copy(entry.path, f"{target}/{path}")

    copy(str(source), "")


def merge_packages(source: Path, target: Path) -> None:
    """Put package files of one download folder into another that lacks them; each appears whole or not at all."""
    if not source.is_dir():
        return
    target.mkdir(parents=True, exist_ok=True)
    for package in sorted(source.iterdir()):
        if package.name.endswith(_PACKAGE_SUFFIXES) and package.is_file() and not (target / package.name).exists():
            partial = target / f".{package.name}.{os.getpid()}-{threading.get_ident()}"
            share(package, partial)
            partial.replace(target / package.name)


def share(source: str | Path, target: str | Path) -> None:
    """A hard link, or a copy where links are not possible (another file system, a foreign owner)."""
    try:
        os.link(source, target)  # may not be allowed for a file that others own (proc(5), protected_hardlinks)
    except OSError:
        _copy(source, target)


def _copy(source: str | Path, target: str | Path) -> None:
    with open(source, "rb") as old, open(target, "wb") as new:  # noqa: PTH123  # called for thousands of files
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:
            size, done = os.fstat(old.fileno()).st_size, 0
            while done < size:
                sent = os.sendfile(new.fileno(), old.fileno(), done, size - done)
                if sent == 0:
                    break
                done += sent
    shutil.copystat(source, target)


def fingerprint(root: Path, cache: Path | None = None, skip: Callable[[str], bool] | None = None) -> str:
    """SHA-256 over the paths, exec bits, link targets and contents of an ImageBuilder's material.

    The same in every place and on every machine for the same material, whatever make has left there. `cache` is a file
    that keeps the hash of each file with its size, time and inode, so that a second call reads no contents. (Not the
    time of its inode: that changes with every hard link.)
    """
    left_out = skip or (lambda p: is_leftover(p) or _DERIVED.fullmatch(p) is not None)
    known: dict[str, list[int | str]] = {}
    if cache is not None:
        with contextlib.suppress(OSError, ValueError):
            known = json_text.read(cache)
    now: dict[str, list[int | str]] = {}
    settled_ns = time.time_ns() - round(_SETTLED_S * 1e9)
    total = hashlib.sha256()
    for path, entry in files(root, left_out):
        if entry.is_symlink():
            total.update(f"L {path}\0{Path(entry.path).readlink()}\0".encode("utf-8", "surrogateescape"))
            continue
        facts = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(facts.st_mode):
            continue
        identity: list[int | str] = [facts.st_size, facts.st_mtime_ns, facts.st_ino]
        before = known.get(path)
        fits = isinstance(before, list) and len(before) == 4 and before[:3] == identity
        content = str(before[3]) if before and fits else _sha256(entry.path)
        if facts.st_mtime_ns < settled_ns:
            now[path] = [*identity, content]
        executable = "x" if facts.st_mode & 0o111 else "-"
        total.update(f"{executable} {path}\0{content}\0".encode("utf-8", "surrogateescape"))
    if cache is not None and now != known:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            write_atomic(cache, json.dumps(now, separators=(",", ":")).encode())
    return total.hexdigest()


def _sha256(path: str) -> str:
    with open(path, "rb") as source:  # noqa: PTH123  # a scandir entry's path, many thousand times
        return hashlib.file_digest(source, "sha256").hexdigest()


def package_digest(root: Path) -> str:
    """A hash of the package files that lie in an ImageBuilder's `packages/` now, those put there later included."""
    total = hashlib.sha256()
    for path, entry in files(root / "packages", lambda p: False) if (root / "packages").is_dir() else ():
        if path.endswith(_PACKAGE_SUFFIXES) and entry.is_file():
            facts = entry.stat()
            # One that shares its content with the original is part of the fingerprint; it is not read again.
            content = f"{facts.st_size} {facts.st_mtime_ns}" if facts.st_nlink > 1 else _sha256(entry.path)
            total.update(f"{path}\0{content}\0".encode("utf-8", "surrogateescape"))
    return total.hexdigest()
