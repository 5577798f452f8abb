"""An image onto a disk, or into a file: written, read back and compared.

A disk is made useless first and whole last: its old partition table goes, then everything but the first MiB is written,
and only when that is on the disk comes the first MiB with boot code and partition table. A power cut in between leaves
a disk that nothing starts from, and never one that looks finished. A file gets its name at the end.

ioctl numbers: Linux's <linux/fs.h>. Prints nothing: progress goes to the caller.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from ndakit.core.errors import BuildError, MachineError
from ndakit.image import disk as image_disk
from ndakit.image.artifacts import RECORD, Artifact, ImageFile
from ndakit.image.sidecars import FLASH
from ndakit.operate.disks import TargetDisk, TargetUnusable

PIECE = 1 << 20
"""Bytes written at once, and those that come last."""
HEAD = PIECE
_BLKRRPART, _BLKFLSBUF, _BLKZEROOUT = 0x125F, 0x1261, 0x127F
_ZEROS = bytes(PIECE)

Progress = Callable[[str, int, int], None]
"""Called with what is being done (`writing`, `reading back`), bytes done, bytes in all."""


class NothingToFlash(BuildError):
    """The build has no image that a disk takes."""


class NotForDisks(BuildError):
    """The image is one of the lab."""

    def __init__(self, artifact: Artifact, warning: str) -> None:
        super().__init__(
            f"this image is not for a real disk: {warning}",
            where=str(artifact.image),
            fix=f"build it with OpenWrt's ImageBuilder: ./inv build {artifact.record.profile} --builder openwrt",
        )


class DiskBusy(MachineError):
    """Somebody else uses the disk."""


class WriteFailed(MachineError):
    """The disk did not take what was written, or does not give it back."""


@dataclass(frozen=True)
class Flashed:
    """What was done: bytes of the image, how many of them were zeros that the disk made itself, and the time."""

    target: Path
    image: Path
    image_bytes: int
    zero_bytes: int
    sha256: str
    write_s: float
    read_s: float


def image_for_disk(artifact: Artifact) -> ImageFile:
    """The raw disk image of a build. Raises NothingToFlash."""
    for image in artifact.record.images:
        if image.disk_bytes is not None and image.format == "img":
            return image
    if any(image.disk_bytes is not None for image in artifact.record.images):
        build = f"./inv build {artifact.record.profile} --builder {artifact.record.builder}"
        fix = f"write img into image.formats of the profile, and {build}"
        raise NothingToFlash("there is no raw disk image (format img)", where=str(artifact.folder), fix=fix)
    raise NothingToFlash(
        f"a {artifact.record.device} has no disk: its image goes into its flash memory",
        where=str(artifact.folder),
        fix=_by_hand(artifact),
    )


def _by_hand(artifact: Artifact) -> str:
    """How the image of a device with flash memory gets there. What is rebuilt from a backup has no FLASH.md: nobody
    knows the box's addresses then."""
    if (artifact.folder / FLASH).is_file():
        return f"follow {artifact.folder / FLASH}"
    update = next((image.name for image in artifact.record.images if image.kind == "sysupgrade"), None)
    others = [image.name for image in artifact.record.images if image.name != update]
    words = []
    if update is not None:
        path = quote(str(artifact.folder / update))
        words.append(
            f"a box that runs OpenWrt takes it by itself: scp -O {path} root@ADDRESS:/tmp/, and then there: "
            f"sysupgrade -n /tmp/{quote(update)}"
        )
    if others:
        words.append(f"one that does not gets {', '.join(others)}, as its page in OpenWrt's table of hardware says")
    return "; ".join(words)


def to_disk(artifact: Artifact, disk: TargetDisk, progress: Progress) -> Flashed:
    """Overwrite a whole disk with the image, and read it back.

    Raises NothingToFlash, NotForDisks, TargetUnusable, DiskBusy, WriteFailed, DiskImageBroken. After Ctrl-C, or if the
    power goes, the disk starts nothing until it is written anew.
    """
    image = image_for_disk(artifact)
    if artifact.record.warning and disk.kind == "disk":
        raise NotForDisks(artifact, artifact.record.warning)
    source = artifact.folder / image.name
    if (refusal := disk.refusal(image.disk_bytes or 0)) is not None:
        raise refusal
    fd = _open(disk)
    try:
        with _refused(disk.path):
            return _overwrite(fd, disk, source, image.disk_bytes or 0, progress)
    finally:
        os.close(fd)


def to_file(artifact: Artifact, target: Path, progress: Progress) -> Flashed:
    """Write the image, unpacked and with holes for zeros, into a file that gets its name at the end.

    Raises NothingToFlash, TargetUnusable, WriteFailed, DiskImageBroken.
    """
    image = image_for_disk(artifact)
    source, total = artifact.folder / image.name, image.disk_bytes or 0
    usable_file(target)
    half = target.with_name(f".{target.name}.{os.getpid()}.half")
    with _refused(target):
        fd = os.open(half, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            started_s = time.monotonic()
            os.ftruncate(fd, total)
            digest, zeros = hashlib.sha256(), 0
            for offset, piece in _pieces(source, total):
                digest.update(piece)
                if _is_zero(piece):
                    zeros += len(piece)
                else:
                    _write(fd, piece, offset)
                progress("writing", offset + len(piece), total)
            os.fsync(fd)
            write_s = time.monotonic() - started_s
            read_s = _compare(fd, digest.hexdigest(), total, target, progress)
            if not artifact.record.secrets:
                os.fchmod(fd, 0o644)
            half.rename(target)
        except BaseException:
            half.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
    return Flashed(target, source, total, zeros, digest.hexdigest(), write_s, read_s)


def usable_file(target: Path) -> None:
    """Raises TargetUnusable for a place that no file may come to: a folder, a link, a pipe, beside a build's files."""
    if target.is_dir():
        raise TargetUnusable(f"{target} is a folder", where="--to", fix=f"name a file: --to {target / 'disk.img'}")
    if not target.parent.is_dir():
        fix = f"make it: mkdir -p {target.parent}"
        raise TargetUnusable(f"there is no folder {target.parent}", where="--to", fix=fix)
    if target.is_symlink() or (target.exists() and not target.is_file()):
        fix = "name the file itself, or another one"
        raise TargetUnusable(f"{target} is a link, or no plain file", where="--to", fix=fix)
    if (target.parent / RECORD).exists():
        fix = "name a file in another folder"
        raise TargetUnusable(f"{target.parent} holds a build, whose files belong together", where="--to", fix=fix)


def _open(disk: TargetDisk) -> int:
    """The disk, for us alone, and the same one that was looked at."""
    try:
        fd = os.open(disk.path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as cause:
        if cause.errno in (errno.EACCES, errno.EPERM):
            fix = "run it as root: sudo ./inv flash …"
            raise DiskBusy(f"{disk.path} may not be written by you", where=str(disk), fix=fix) from cause
        if cause.errno == errno.EBUSY:
            fix = "see who uses it: lsblk, /proc/swaps, dmsetup ls; end that, or name another disk"
            raise DiskBusy(f"{disk.path} is in use, the kernel says", where=str(disk), fix=fix) from cause
        if cause.errno in (errno.ENOENT, errno.ENXIO, errno.ENOMEDIUM):
            fix = "plug it in again, and look with lsblk"
            raise DiskBusy(f"{disk.path} is gone", where=str(disk), fix=fix) from cause
        raise
    facts = os.fstat(fd)
    if not stat.S_ISBLK(facts.st_mode) or (os.major(facts.st_rdev), os.minor(facts.st_rdev)) != disk.numbers:
        os.close(fd)
        fix = "run it again: the disks are looked at anew"
        raise DiskBusy(f"{disk.path} is another disk than a moment ago", where=str(disk), fix=fix)
    return fd


def _overwrite(fd: int, disk: TargetDisk, source: Path, total: int, progress: Progress) -> Flashed:
    started_s = time.monotonic()
    has = os.lseek(fd, 0, os.SEEK_END)
    if has < total:
        fix = "look at it with lsblk, then run this again"
        raise DiskBusy(f"{disk.path} has {has} bytes now, and the image needs {total}", where=str(disk), fix=fix)
    # What is left of an older partition table (GPT keeps a copy at the end) or of a RAID would be believed later.
    _zero(fd, 0, min(HEAD, has))
    tail = max(total, has - PIECE)
    _zero(fd, tail, has - tail)
    os.fsync(fd)
    digest, zeros, head = hashlib.sha256(), 0, b""
    for offset, piece in _pieces(source, total):
        digest.update(piece)
        if offset == 0:
            head = piece
        elif _is_zero(piece):
            _zero(fd, offset, len(piece))
            zeros += len(piece)
        else:
            _write(fd, piece, offset)
        progress("writing", offset + len(piece), total)
    os.fsync(fd)
    _write(fd, head, 0)
    os.fsync(fd)
    write_s = time.monotonic() - started_s
    try:
        read_s = _compare(fd, digest.hexdigest(), total, disk.path, progress)
    except BaseException:
        # What could not be read back must not look finished.
        with contextlib.suppress(OSError):
            _zero(fd, 0, min(HEAD, has))
            os.fsync(fd)
        raise
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, _BLKRRPART)  # so that lsblk shows the new partitions
    return Flashed(disk.path, source, total, zeros, digest.hexdigest(), write_s, read_s)


def _compare(fd: int, sha256: str, total: int, target: Path, progress: Progress) -> float:
    """Read everything back, from the disk and not from memory; the seconds that took. Raises WriteFailed."""
    started_s = time.monotonic()
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _BLKFLSBUF)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    digest = hashlib.sha256()
    for offset in range(0, total, PIECE):
        piece = os.pread(fd, min(PIECE, total - offset), offset)
        digest.update(piece)
        progress("reading back", offset + len(piece), total)
    if digest.hexdigest() != sha256:
        raise WriteFailed(
            f"{target} does not hold what was written: SHA-256 {digest.hexdigest()[:16]}… instead of {sha256[:16]}…",
            where=str(target),
            fix="do not use it: take another disk or stick, this one is worn out or lies about its size",
        )
    return time.monotonic() - started_s


def _pieces(source: Path, total: int) -> Iterator[tuple[int, bytes]]:
    """The unpacked image in pieces of PIECE bytes (the last one may be shorter), each with its place.

    Raises DiskImageBroken if there are not as many bytes as the record says.
    """
    pending, offset = bytearray(), 0
    for chunk in image_disk.unpacked(source):
        pending += chunk
        while len(pending) >= PIECE:
            yield offset, bytes(pending[:PIECE])
            del pending[:PIECE]
            offset += PIECE
    if pending:
        yield offset, bytes(pending)
    if offset + len(pending) != total:
        raise image_disk.DiskImageBroken(source, f"it has {offset + len(pending)} bytes, its record says {total}")


def _is_zero(piece: bytes) -> bool:
    return piece == _ZEROS[: len(piece)]


def _write(fd: int, piece: bytes, offset: int) -> None:
    rest = memoryview(piece)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def _zero(fd: int, offset: int, length: int) -> None:
    """Zeros, by the disk itself where it can do that."""
    if length <= 0:
        return
    try:
        fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("QQ", offset, length))
    except OSError:
        for begin in range(offset, offset + length, PIECE):
            _write(fd, _ZEROS[: min(PIECE, offset + length - begin)], begin)


_MEANS: Mapping[int, tuple[str, str]] = {
    errno.EIO: ("it cannot be written or read", "take another disk or stick: this one is broken (dmesg says more)"),
    errno.ENOSPC: ("there is no room", "free some space there, or name another place"),
    errno.EDQUOT: ("there is no room within your quota", "free some space there, or name another place"),
    errno.ENODEV: ("it was unplugged", "plug it in again and write it anew: it starts nothing now"),
    errno.ENXIO: ("it was unplugged", "plug it in again and write it anew: it starts nothing now"),
    errno.EROFS: ("it is read-only", "move the switch for write protection, or name another place"),
    errno.EACCES: ("you may not write there", "name a place of yours, or run it as its owner"),
    errno.EPERM: ("the system does not allow it", "name another place, or run it as root"),
}


@contextlib.contextmanager
def _refused(target: Path) -> Iterator[None]:
    """What the system refuses while a target is written, in words."""
    try:
        yield
    except OSError as cause:
        words, fix = _MEANS.get(cause.errno or 0, (str(cause.strerror or cause), "look at dmesg, then write it anew"))
        raise WriteFailed(f"{target} was not written to its end: {words}", where=str(target), fix=fix) from cause
