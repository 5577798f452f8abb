"""What is inside a built image: its partitions, and whether the root file system fits into its partition; archives.

OpenWrt's gen_image_generic.sh writes the root file system behind the partition table without looking at its size: an
image whose root is larger than its partition is made with exit code 0 and does not work. Reads raw and gzipped images
without unpacking them to disk. Structures: UEFI specification 2.10, 5.2.1 (MBR) and 5.3 (GPT); squashfs 4.0 superblock;
ext4 superblock (kernel documentation, filesystems/ext4/super.rst).
"""

from __future__ import annotations

import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ndakit.core.errors import BuildError
from ndakit.core.mistakes import clean

SECTOR_BYTES = 512
MIB = 1024 * 1024
_CHUNK = 1 << 18
_PIECE = 1 << 20
_TABLE_BYTES = 34 * SECTOR_BYTES
_SUPERBLOCK_BYTES = 4096
_ROOT_PARTITION = 2  # OpenWrt: 1 is /boot, 2 the root; on GPT 128 is for GRUB


class DiskImageBroken(BuildError):
    """An image file is not what its name says."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(
            f"the image {path.name} is broken: {detail}",
            where=str(path),
            fix="build it again; if that does not mend it, read the log of the build",
        )


@dataclass(frozen=True)
class DiskFacts:
    """A disk image: its unpacked size, and the root partition with what lies in it. All sizes in bytes."""

    disk_bytes: int
    table: str
    """`gpt` or `mbr`."""
    filesystem: str
    """`squashfs`, `ext4`, or empty if it is none of them."""
    root_offset: int
    root_capacity: int
    root_payload: int


def unpacked(path: Path) -> Iterator[bytes]:
    """The content of an image in pieces, gunzipped if it is packed.

    What stands behind the gzip stream (OpenWrt appends metadata there) is left out. Raises DiskImageBroken.
    """
    with path.open("rb") as source:
        head = source.read(2)
        source.seek(0)
        if head != b"\x1f\x8b":
            while chunk := source.read(_CHUNK):
                yield chunk
            return
        stream = zlib.decompressobj(wbits=31)
        try:
            while chunk := source.read(_CHUNK):
                while chunk:
                    # A few bytes can unpack to a thousand times as many zeros: never more than a piece at once.
                    if out := stream.decompress(chunk, _PIECE):
                        yield out
                    if not stream.eof:
                        chunk = stream.unconsumed_tail
                        continue
                    chunk = stream.unused_data or source.read(_CHUNK)
                    if not chunk.startswith(b"\x1f\x8b"):
                        return
                    stream = zlib.decompressobj(wbits=31)
            while not stream.eof and (out := stream.decompress(b"", _PIECE)):
                yield out
        except zlib.error as cause:
            raise DiskImageBroken(path, f"its compressed data is damaged ({cause})") from cause
        if not stream.eof:
            raise DiskImageBroken(path, "it is cut off in the middle")


def inspect(path: Path) -> DiskFacts:
    """Read the partition table and the root file system's superblock, and unpack the rest to count it.

    Raises DiskImageBroken for a file that is cut off, damaged or has no partition table.
    """
    head, superblock = bytearray(), bytearray()
    total = 0
    table: tuple[str, int, int] | None = None
    for chunk in unpacked(path):
        if table is None:
            head += chunk
            if len(head) >= _TABLE_BYTES:
                table = _root_partition(path, head)
                superblock += head[table[1] :]
        elif len(superblock) < _SUPERBLOCK_BYTES:
            superblock += chunk[max(0, table[1] - total) :]
        total += len(chunk)
    if table is None:
        raise DiskImageBroken(path, f"it has only {total} bytes")
    kind, offset, capacity = table
    if len(superblock) < _SUPERBLOCK_BYTES:
        raise DiskImageBroken(path, f"it ends at {total // MIB} MiB, before the root partition")
    filesystem, payload = _payload(bytes(superblock[:_SUPERBLOCK_BYTES]))
    return DiskFacts(total, kind, filesystem, offset, capacity, payload)


def inspect_archive(path: Path) -> int:
    """Read a root file system archive to its end; the bytes of its files.

    Raises DiskImageBroken for one that is cut off, damaged, or has no /etc/openwrt_release.
    """
    total, names = 0, set()
    try:
        with tarfile.open(path, "r|gz") as archive:
            for entry in archive:
                total += entry.size
                names.add(entry.name.removeprefix("./"))
    except (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, TypeError) as cause:
        # TypeError: tarfile takes the ord() of what is missing, where the head of the gzip stream ends too early.
        raise DiskImageBroken(path, f"it is no whole archive ({clean(str(cause))[:80]})") from cause
    if "etc/openwrt_release" not in names:
        raise DiskImageBroken(path, "there is no /etc/openwrt_release in it")
    return total


def _root_partition(path: Path, head: bytes | bytearray) -> tuple[str, int, int]:
    """(table, offset, size in bytes) of the root partition."""
    if head[510:512] != b"\x55\xaa":
        raise DiskImageBroken(path, "it has no partition table")
    if head[450] == 0xEE:
        if head[512:520] != b"EFI PART":
            raise DiskImageBroken(path, "its GPT has no header")
        start, _, size = struct.unpack_from("<QII", head, SECTOR_BYTES + 72)
        entry = start * SECTOR_BYTES + (_ROOT_PARTITION - 1) * size
        if entry + 48 > len(head):
            raise DiskImageBroken(path, "its GPT lies elsewhere than OpenWrt's")
        first, last = struct.unpack_from("<QQ", head, entry + 32)
        kind, count = "gpt", last - first + 1
    else:
        first, count = struct.unpack_from("<II", head, 446 + 16 * (_ROOT_PARTITION - 1) + 8)
        kind = "mbr"
    if first == 0 or count <= 0:
        raise DiskImageBroken(path, "it has no root partition")
    if first > 4096 * MIB // SECTOR_BYTES:
        raise DiskImageBroken(path, "its root partition begins beyond 4 GiB")
    return kind, first * SECTOR_BYTES, count * SECTOR_BYTES


def _payload(superblock: bytes) -> tuple[str, int]:
    """(file system, bytes it takes) from its first 4 KiB."""
    if superblock[:4] == b"hsqs":
        return "squashfs", struct.unpack_from("<Q", superblock, 40)[0]
    if superblock[1080:1082] == b"\x53\xef":
        (blocks,) = struct.unpack_from("<I", superblock, 1028)
        (log_size,) = struct.unpack_from("<I", superblock, 1048)
        return "ext4", blocks << (10 + min(log_size, 6))
    return "", 0
