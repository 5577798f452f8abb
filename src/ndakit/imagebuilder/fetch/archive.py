"""Unpack a tar archive so that nothing in it can reach outside of its folder.

Owns what a member may be and where it may lie. Every file is made anew by us (never through a link, never twice), so
that nothing depends on which of its filters this Python's tarfile has. Whether the archive is the right one is known
before: `fetch` unpacks nothing that is not vouched for. Formats: tar(5), `.tar.xz` by Python, `.tar.zst` by zstd(1).
"""

from __future__ import annotations

import contextlib
import lzma
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from ndakit.core import process
from ndakit.core.errors import BuildError
from ndakit.core.mistakes import clean

MAX_MEMBERS = 400_000
MAX_BYTES = 16 * 1024**3
"""Far more than any ImageBuilder has (2026: 10 000 members, 1.5 GiB), and less than what fills a disk by surprise."""

_MAX_PATH = 1024
_MAX_NAME = 255
_MAX_LINK = 1024
_MAX_TIME_S = 2.0**33
"""The year 2242: no file of an ImageBuilder is younger, and every file system can write it down."""
_CHUNK = 1024 * 1024
_LINKS_TO_PROGRAMS = PurePosixPath("staging_dir/host")
"""Only here may links be absolute: an ImageBuilder carries links to the programs of the machine that made it, such as
`bin/awk → /usr/bin/gawk` (openwrt/openwrt `target/imagebuilder/Makefile` copies them as they are)."""


class ArchiveUnsafe(BuildError):
    """Something in the archive would reach outside of its folder, or is no plain file, folder or link."""

    def __init__(self, archive: Path, member: str, why: str) -> None:
        super().__init__(
            f"the archive is not unpacked: {member[:200]!r} in it {why}",
            where=str(archive),
            fix="compare the archive with the one of another mirror; if it is the same there, and you trust it,"
            " unpack it with tar yourself and name its folder: --imagebuilder DIR",
        )


class ArchiveBroken(BuildError):
    """The archive cannot be read to its end."""

    def __init__(self, archive: Path, why: str) -> None:
        super().__init__(
            f"the archive cannot be unpacked: {why}",
            where=str(archive),
            fix="compare its checksum with the one of another mirror; whoever made this archive made it so",
        )


@dataclass
class _Made:
    """What was unpacked so far, by path inside the archive."""

    files: set[PurePosixPath] = field(default_factory=set)
    links: set[PurePosixPath] = field(default_factory=set)
    parents: set[PurePosixPath] = field(default_factory=set)
    """Folders that something lies in, whether or not they have a member of their own."""
    folders: dict[PurePosixPath, float] = field(default_factory=dict)
    """Folder → its time; set at the very end, when nothing is written into them any more."""


def unpack(archive: Path, into: Path, log: Path) -> Path:
    """Unpack into the empty folder `into`; the one folder that the archive holds.

    Keeps exec bits and times; drops owners, setuid bits and the right to write for others. `log` is for what zstd says.
    Raises ArchiveUnsafe, ArchiveBroken, ToolMissing, and OSError for what the disk refuses.
    """
    made = _Made()
    total = 0
    try:
        with _opened(archive, log) as tar:
            for count, member in enumerate(tar, 1):
                total += max(member.size, 0)
                if count > MAX_MEMBERS or total > MAX_BYTES:
                    raise ArchiveUnsafe(archive, member.name, "is where it gets larger than any ImageBuilder")
                _make(archive, tar, member, into, made)
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError, OverflowError, RecursionError) as cause:
        # The last three are what tarfile itself raises for numbers, texts and headers that no tar has.
        raise ArchiveBroken(archive, clean(str(cause))[:200] or type(cause).__name__) from cause
    for path, mtime in sorted(made.folders.items(), reverse=True):
        os.utime(into / path, (mtime, mtime))
    tops = sorted(entry.name for entry in into.iterdir())
    if len(tops) != 1 or not (into / tops[0]).is_dir() or (into / tops[0]).is_symlink():
        raise ArchiveBroken(archive, f"one folder is expected in it, there is {', '.join(tops[:3]) or 'nothing'}")
    return into / tops[0]


@contextlib.contextmanager
def _opened(archive: Path, log: Path) -> Iterator[tarfile.TarFile]:
    """The archive as a stream that is read once."""
    if archive.name.endswith(".xz"):
        with lzma.open(archive) as content, tarfile.open(fileobj=content, mode="r|") as tar:
            yield tar
        return
    process.require("zstd", package="zstd", reason="to unpack ImageBuilders since 24.10")
    log.parent.mkdir(parents=True, exist_ok=True)
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as plain:
        line = 'exec zstd -dcq -- "$1" >"/dev/fd/$2"'
        try:
            child = process.spawn(["sh", "-c", line, "zstd", archive, str(theirs)], log=log, pass_fds=[theirs])
        finally:
            os.close(theirs)
        try:
            with tarfile.open(fileobj=plain, mode="r|") as tar:
                yield tar
            while plain.read(_CHUNK):
                pass  # what follows the end of the tar, so that zstd gets to its own end and checks it
            if child.wait(60) != 0:
                raise ArchiveBroken(archive, _said(child, archive) or "zstd failed")
        except tarfile.TarError as cause:
            said = _said(child, archive) if child.wait(5) else ""
            raise ArchiveBroken(archive, said or clean(str(cause))[:200]) from cause
        finally:
            child.stop()


def _said(child: process.Child, archive: Path) -> str:
    """What zstd said last; the archive's folder is in the error anyway."""
    return clean(child.log_tail(1).replace(str(archive), archive.name))[:200]


def _make(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, into: Path, made: _Made) -> None:
    path = _inside(archive, member.name, made)
    target = into / path
    if not 0 <= member.mtime <= _MAX_TIME_S:  # not so for NaN either
        raise ArchiveUnsafe(archive, member.name, "has a time that no file has")
    if member.isdir():
        if path in made.files or path in made.links:
            raise ArchiveUnsafe(archive, member.name, "is there twice")
        made.parents.update(path.parents)
        target.mkdir(parents=True, exist_ok=True)
        if path.parts:
            target.chmod(0o755)
            made.folders[path] = member.mtime
        return
    taken = any(path in there for there in (made.files, made.links, made.folders, made.parents))
    if taken or not path.parts:
        raise ArchiveUnsafe(archive, member.name, "is there twice")
    if not (member.isreg() or member.issym() or member.islnk()):
        raise ArchiveUnsafe(archive, member.name, "is a device or another special file")
    made.parents.update(path.parents)
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        _check_link(archive, member, path)
        target.symlink_to(member.linkname)
        made.links.add(path)
        return
    if member.islnk():
        source = _inside(archive, member.linkname, made)
        if source not in made.files:
            raise ArchiveUnsafe(archive, member.name, f"is a hard link to {member.linkname[:200]!r}, no file before it")
        os.link(into / source, target, follow_symlinks=False)
    else:
        content = tar.extractfile(member)
        if content is None:
            raise ArchiveBroken(archive, f"{member.name!r} has no content")
        _write(content, target, member)
    made.files.add(path)


def _write(content: IO[bytes], target: Path, member: tarfile.TarInfo) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(target, flags, 0o600), "wb") as sink:
        shutil.copyfileobj(content, sink, _CHUNK)
        os.fchmod(sink.fileno(), 0o755 if member.mode & 0o100 else 0o644)
    os.utime(target, (member.mtime, member.mtime))


def _inside(archive: Path, name: str, made: _Made) -> PurePosixPath:
    """A member's path, which lies inside and is reached through no link."""
    path = PurePosixPath(name)
    if path.is_absolute():
        raise ArchiveUnsafe(archive, name, "has an absolute path")
    if ".." in path.parts:
        raise ArchiveUnsafe(archive, name, "leads outside")
    if not _can_be(name, _MAX_PATH):
        raise ArchiveUnsafe(archive, name[:60], "has a name that no file has")
    if any(parent in made.links for parent in path.parents):
        raise ArchiveUnsafe(archive, name, "would be written through a link")
    if any(parent in made.files for parent in path.parents):
        raise ArchiveUnsafe(archive, name, "would lie in a file")
    return path


def _can_be(path: str, longest: int) -> bool:
    """True if the system takes this as a path (path_resolution(7)): no NUL, no part of more than 255 bytes."""
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return b"\0" not in encoded and len(encoded) <= longest and max(map(len, encoded.split(b"/"))) <= _MAX_NAME


def _check_link(archive: Path, member: tarfile.TarInfo, path: PurePosixPath) -> None:
    goal = PurePosixPath(member.linkname)
    if not member.linkname or not _can_be(member.linkname, _MAX_LINK):
        raise ArchiveUnsafe(archive, member.name, "is a link to nowhere")
    if goal.is_absolute():
        if not PurePosixPath(*path.parts[1:]).is_relative_to(_LINKS_TO_PROGRAMS):
            raise ArchiveUnsafe(archive, member.name, f"is a link to {member.linkname[:200]!r}, outside of it")
        return
    up = sum(part == ".." for part in goal.parts)
    # The folder at the top is part of every path inside: to leave it is to leave the archive. After a name, ".." is not
    # counted but refused: that name may be a link itself, and then nobody can tell where it leads.
    if len(path.parts) - 1 - up < 1 or ".." in goal.parts[up:]:
        raise ArchiveUnsafe(archive, member.name, f"is a link to {member.linkname[:200]!r}, outside of it")
