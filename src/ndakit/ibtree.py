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
from collections.abc import Callable, Iterator
from pathlib import Path

from ndakit.workspace import write_atomic

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of a file, where the file system can

# What a run of make leaves behind: roots being put together, images, temporary files, and a list of devices that stays
# empty once it was made by scripts that had lost their exec bits.
_LEFTOVERS = re.compile(
    r"bin|tmp|logs|\.profiles\.mk|\.config\.old|staging_dir/host/\.prereq-build"
    r"|build_dir/[^/]+/(root-[^/]+|root\.orig-[^/]+|json_info_files)|build_dir/[^/]+/[^/]+/(tmp|root\.[^/]+)"
)

# What make adds to the material without changing what comes into an image: downloads, indexes, keys of its own.
_DERIVED = re.compile(r"dl|keys|key-build[^/]*|packages/(Packages[^/]*|packages\.adb|index\.json|\.[^/]+)")

_SHARED_SUFFIXES = (".ipk", ".apk")
"""Package files are only ever read or replaced, never written into: a hard link is as good as a copy."""


def files(root: Path, skip: Callable[[str], bool]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file and symbolic link below `root` with its relative path, sorted; `skip` prunes files and folders."""

    def walk(folder: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda e: e.name)
        for entry in found:
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

    `target` must not exist. Package files are hard links where that is possible, everything else is a copy (one that
    shares blocks where the file system can): make writes into files in place, and must never reach the original.
    """

    def copy(folder: str, prefix: str) -> None:
        (target / prefix).mkdir(parents=not prefix)
        with os.scandir(folder) as entries:
            found = list(entries)
        for entry in found:
            path = prefix + entry.name
            if is_leftover(path):
                continue
            if entry.is_symlink():
                (target / path).symlink_to(Path(entry.path).readlink())
            elif entry.is_dir():
                copy(entry.path, path + "/")
            elif path.endswith(_SHARED_SUFFIXES):
                share(Path(entry.path), target / path)
            elif entry.is_file():
                _copy(Path(entry.path), target / path)

    copy(str(source), "")


def merge_packages(source: Path, target: Path) -> None:
    """Put package files of one download folder into another that lacks them; each appears whole or not at all."""
    if not source.is_dir():
        return
    target.mkdir(parents=True, exist_ok=True)
    for package in sorted(source.iterdir()):
        if package.name.endswith(_SHARED_SUFFIXES) and package.is_file() and not (target / package.name).exists():
            partial = target / f".{package.name}.{os.getpid()}"
            share(package, partial)
            partial.replace(target / package.name)


def share(source: Path, target: Path) -> None:
    """A hard link, or a copy where links are not possible (another file system, a foreign owner)."""
    try:
        os.link(source, target)
    except OSError:
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as old, target.open("wb") as new:
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
    that keeps the hash of each file with its size, times and inode, so that a second call reads no contents.
    """
    left_out = skip or (lambda p: is_leftover(p) or _DERIVED.fullmatch(p) is not None)
    known: dict[str, list[int | str]] = {}
    if cache is not None:
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(cache.read_text())
    now: dict[str, list[int | str]] = {}
    total = hashlib.sha256()
    for path, entry in files(root, left_out):
        if entry.is_symlink():
            total.update(f"L {path}\0{Path(entry.path).readlink()}\0".encode("utf-8", "surrogateescape"))
            continue
        facts = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(facts.st_mode):
            continue
        identity: list[int | str] = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
        before = known.get(path)
        content = str(before[4]) if before and before[:4] == identity else _sha256(entry.path)
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
