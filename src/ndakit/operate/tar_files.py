"""Archives of a balancer's files, read as if anybody could have made them: a backup comes from anywhere.

Nothing of an archive is ever unpacked by its own names: who wants a file asks for its content. What a tar can hold and
a backup of ours does not (ways out of the root, devices, hard links, twice the same name, more than there is room for)
is refused with a text.

Formats: POSIX pax/ustar and GNU tar, as BusyBox and GNU tar write them; gzip (RFC 1952).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import IO, BinaryIO, cast

from ndakit.core.errors import InputError
from ndakit.core.mistakes import clean

MAX_BYTES = 512 << 20
"""Unpacked. A balancer's configuration is some 100 KiB; its flash is rarely larger than this."""
MAX_ENTRIES = 50_000
_PATH_MAX_BYTES, _NAME_MAX_BYTES = 1000, 255
"""Linux takes names of 255 bytes (limits.h); no path on a balancer is anywhere near the first."""
_MAX_READ = 8 << 20
_PIECE = 1 << 16


class ArchiveRefused(InputError):
    """An archive that is damaged, or holds what no backup of a balancer holds."""

    def __init__(self, where: str, why: str, fix: str = "") -> None:
        super().__init__(
            f"this archive is refused: {clean(why)}",
            where=where,
            fix=fix or "take another backup (./inv backups lists them); do not unpack this one on a balancer",
        )


@dataclass(frozen=True)
class Entry:
    """A file or a symbolic link (`target` is not empty) of an archive. `path` is absolute, as on the box."""

    path: str
    mode: int
    mtime_s: int
    size_bytes: int
    target: str = ""


class _Bounded:
    """A file that is read only so far, and only in bearable pieces: tarfile reads headers of any size at once."""

    def __init__(self, source: BinaryIO, max_bytes: int) -> None:
        self._source = source
        self._max_bytes = max_bytes

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise _TooLarge("it has a header of unbelievable size")
        return self._source.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence != 0 or offset > self._max_bytes:
            raise _TooLarge(f"it unpacks to more than {self._max_bytes >> 20} MiB")
        return self._source.seek(offset)

    def tell(self) -> int:
        place = self._source.tell()
        if place > self._max_bytes:
            raise _TooLarge(f"it unpacks to more than {self._max_bytes >> 20} MiB")
        return place


class _TooLarge(Exception):
    pass


class Archive:
    """An open archive: its entries in order, and their contents while they are walked through (`walk`)."""

    def __init__(self, tar: tarfile.TarFile, where: str, max_bytes: int) -> None:
        self._tar = tar
        self._where = where
        self._max_bytes = max_bytes

    def walk(self) -> Iterator[tuple[Entry, IO[bytes] | None]]:
        """Each file with its content to be read (before the next one is asked for), each link without. Folders are
        passed over. Raises ArchiveRefused."""
        seen: set[str] = set()
        plain: set[str] = set()
        folders: set[str] = set()
        total = 0
        with _refusing(self._where):
            for count, member in enumerate(self._tar, 1):
                entry = self._entry(member)
                total += member.size
                if count > MAX_ENTRIES or total > self._max_bytes:
                    raise _TooLarge(f"it has more than {MAX_ENTRIES} entries, or {self._max_bytes >> 20} MiB")
                if entry is None:
                    folder = f"/{member.name.removeprefix('./').rstrip('/')}"
                    self._refuse_both({folder, *parents(folder)} & plain)
                    folders |= {folder, *parents(folder)}
                    continue
                if entry.path in seen:
                    raise ArchiveRefused(self._where, f"it holds {entry.path} twice")
                seen.add(entry.path)
                self._refuse_both({*parents(entry.path)} & plain)
                folders |= {*parents(entry.path)}
                if not entry.target:  # nothing goes through a link, whatever is said to lie in it
                    self._refuse_both({entry.path} & folders)
                    plain.add(entry.path)
                yield entry, self._tar.extractfile(member) if not entry.target else None

    def _refuse_both(self, paths: Set[str]) -> None:
        for path in paths:
            raise ArchiveRefused(self._where, f"in it {path[:100]} is a file and a folder")

    def _entry(self, member: tarfile.TarInfo) -> Entry | None:
        name = member.name.removeprefix("./").rstrip("/") if member.isdir() else member.name.removeprefix("./")
        if member.isdir() and name in ("", "."):
            return None
        if member.name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
            raise ArchiveRefused(self._where, f"the name {member.name[:100]!r} leads out of the box's root")
        sizes = [len(part.encode(errors="surrogatepass")) for part in name.split("/")]
        if not name.isprintable() or max(sizes) > _NAME_MAX_BYTES or sum(sizes) + len(sizes) > _PATH_MAX_BYTES:
            raise ArchiveRefused(self._where, f"it holds a file of the name {member.name[:100]!r}")
        if member.islnk():
            raise ArchiveRefused(self._where, f"{name} is a hard link, to {member.linkname[:100]!r}")
        if member.isdir():
            return None
        if member.issym():
            return Entry(f"/{name}", 0o777, int(member.mtime), 0, member.linkname or ".")
        if not member.isreg():
            raise ArchiveRefused(self._where, f"{name} is a device, a pipe or something else that is no file")
        return Entry(f"/{name}", member.mode & 0o7777, int(member.mtime), member.size)


def parents(path: str) -> Iterator[str]:
    """The folders in which a file lies, but for the root."""
    while (end := path.rfind("/")) > 0:
        path = path[:end]
        yield path


@contextlib.contextmanager
def reading(source: BinaryIO, where: str, *, max_bytes: int = MAX_BYTES) -> Iterator[Archive]:
    """Open a tar or a gzipped tar that can be sought in. Raises ArchiveRefused, also while it is read."""
    source.seek(0)
    magic = source.read(2)
    source.seek(0)
    with contextlib.ExitStack() as stack:
        with _refusing(where):
            plain = source
            if magic == b"\x1f\x8b":
                plain = cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=source, mode="rb")))
            bounded = cast(IO[bytes], _Bounded(plain, max_bytes))
            tar = stack.enter_context(tarfile.open(fileobj=bounded, mode="r:"))
        yield Archive(tar, where, max_bytes)


@contextlib.contextmanager
def _refusing(where: str) -> Iterator[None]:
    try:
        yield
    except _TooLarge as cause:
        raise ArchiveRefused(where, str(cause)) from None
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as cause:
        raise ArchiveRefused(where, f"it is damaged or cut off ({cause})") from None


def content(opened: IO[bytes], entry: Entry, where: str, max_bytes: int = _MAX_READ) -> bytes:
    """The content of one file. Raises ArchiveRefused if it is larger, or cut off."""
    if entry.size_bytes > max_bytes:
        raise ArchiveRefused(where, f"{entry.path} has {entry.size_bytes} bytes, and {max_bytes} are believed")
    with _refusing(where):
        data = opened.read(entry.size_bytes)
    if len(data) != entry.size_bytes:
        raise ArchiveRefused(where, f"{entry.path} is cut off")
    return data


def sha256(opened: IO[bytes], entry: Entry, where: str) -> str:
    """SHA-256 of one file's content, in hex. Raises ArchiveRefused."""
    digest, size = hashlib.sha256(), 0
    with _refusing(where):
        while piece := opened.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    if size != entry.size_bytes:
        raise ArchiveRefused(where, f"{entry.path} is cut off")
    return digest.hexdigest()
