"""Disk images: partition tables, the places of everything on the disk, and the compressed file.

Layout as OpenWrt's x86 images have it (openwrt/openwrt `scripts/gen_image_generic.sh`, ptgen): boot partition from
256 KiB on, root partition after it, aligned to 256 KiB; GRUB's core before the boot partition. Bytes are streamed; a
disk is never held in memory whole.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import fwtool

SECTOR = 512
MIB = 1024 * 1024
_ALIGN = 512  # sectors: 256 KiB
_BIOS_BOOT_LBA = 34
_ENTRIES = 128
_CHUNK = MIB
_TYPE_ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_TYPE_LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
_TYPE_BIOS = uuid.UUID("21686148-6449-6e6f-744e-656564454649")


@dataclass(frozen=True)
class Part:
    """A run of bytes of the disk, at an offset: data, or a file. Parts do not overlap and come in order."""

    offset: int
    data: bytes | Path
    packed: bool = False  # compressed already: store it instead of trying again


@dataclass(frozen=True)
class Layout:
    """Where the two partitions lie, in sectors."""

    boot: int
    boot_size: int
    root: int
    root_size: int

    @property
    def end(self) -> int:
        """The number of sectors of the disk (with room for the second partition table of GPT)."""
        return self.root + self.root_size + _ALIGN


def layout(boot_mib: int, root_mib: int) -> Layout:
    """The layout for partitions of these sizes."""
    boot_size = boot_mib * MIB // SECTOR
    return Layout(_ALIGN, boot_size, _ALIGN + boot_size, root_mib * MIB // SECTOR)


def identity(seed: str) -> uuid.UUID:
    """A disk identity derived from what makes images differ, so that the same input gives the same disk."""
    return uuid.UUID(bytes=hashlib.sha256(seed.encode()).digest()[:16], version=4)


def mbr_root(disk: uuid.UUID) -> str:
    """How the kernel names the root partition of an MBR disk (its 32-bit signature and the number)."""
    return f"PARTUUID={disk.bytes[:4][::-1].hex()}-02"


def gpt_root(disk: uuid.UUID) -> str:
    """How the kernel names the root partition of a GPT disk."""
    return f"PARTUUID={_partition(disk, 2)}"


def mbr(code: bytes, disk: uuid.UUID, where: Layout) -> bytes:
    """LBA 0 of an MBR disk."""
    table = _record(0x80, 0x0C, where.boot, where.boot_size) + _record(0, 0x83, where.root, where.root_size)
    return code[:440] + disk.bytes[:4] + b"\0\0" + table + bytes(32) + b"\x55\xaa"


def gpt(code: bytes, disk: uuid.UUID, where: Layout) -> tuple[bytes, bytes]:
    """The first 34 sectors and the last 33 of a GPT disk (UEFI specification, 5.3)."""
    entries = bytearray(_ENTRIES * 128)
    for slot, kind, first, last, name in (
        (1, _TYPE_ESP, where.boot, where.boot + where.boot_size - 1, "kernel"),
        (2, _TYPE_LINUX, where.root, where.root + where.root_size - 1, "rootfs"),
        (128, _TYPE_BIOS, _BIOS_BOOT_LBA, where.boot - 1, "bios"),
    ):
        entry = kind.bytes_le + _partition(disk, slot).bytes_le + struct.pack("<QQQ", first, last, 0)
        entry += name.encode("utf-16-le").ljust(72, b"\0")
        entries[(slot - 1) * 128 : slot * 128] = entry
    last = where.end - 1

    def header(here: int, there: int, table: int) -> bytes:
        fields = (
            0,
            0,
            here,
            there,
            _BIOS_BOOT_LBA,
            last - 33,
            disk.bytes_le,
            table,
            _ENTRIES,
            128,
            zlib.crc32(entries),
        )
        head = bytearray(struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, *fields))
        struct.pack_into("<I", head, 16, zlib.crc32(head))
        return bytes(head).ljust(SECTOR, b"\0")

    protective = code[:440] + bytes(6) + _record(0, 0xEE, 1, last) + bytes(48) + b"\x55\xaa"
    return (
        protective + header(1, last, 2) + bytes(entries),
        bytes(entries) + header(last, 1, last - 32),
    )


def write(target: Path, parts: Iterable[Part], size: int, *, compress: bool, metadata: dict[str, object]) -> str:
    """Write a disk of `size` bytes in one step; the SHA-256 of the file.

    Compressed images get the metadata appended behind the gzip stream, as OpenWrt's do (gunzip then says "trailing
    garbage ignored" and exits with 2).
    """
    partial = target.with_name(f".{target.name}.partial")
    digest = hashlib.sha256()
    crc = 0
    with partial.open("wb") as out:
        for piece in _gzip(parts, size) if compress else _plain(parts, size):
            digest.update(piece)
            crc = zlib.crc32(piece, crc)
            out.write(piece)
        if compress:
            trailer = fwtool.trailer(crc, metadata)
            digest.update(trailer)
            out.write(trailer)
    partial.replace(target)
    return digest.hexdigest()


def _plain(parts: Iterable[Part], size: int) -> Iterator[bytes]:
    for data, _ in _pieces(parts, size):
        yield data


def _gzip(parts: Iterable[Part], size: int) -> Iterator[bytes]:
    """One gzip member (RFC 1952). What is compressed already is only stored; a full flush joins the two kinds."""
    yield b"\x1f\x8b\x08\0\0\0\0\0\0\x03"
    crc = 0
    level = -1
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    for data, packed in _pieces(parts, size):
        crc = zlib.crc32(data, crc)
        wanted = 0 if packed else 1
        if wanted != level:
            if level >= 0:
                yield packer.flush(zlib.Z_FULL_FLUSH)
            packer = zlib.compressobj(wanted, zlib.DEFLATED, -15)
            level = wanted
        yield packer.compress(data)
    yield packer.flush(zlib.Z_FINISH)
    yield struct.pack("<II", crc, size & 0xFFFFFFFF)


def _pieces(parts: Iterable[Part], size: int) -> Iterator[tuple[bytes, bool]]:
    """The disk from start to end in pieces, gaps filled with zeros; whether a piece is compressed data."""
    at = 0
    zeros = bytes(_CHUNK)

    def gap(until: int) -> Iterator[tuple[bytes, bool]]:
        nonlocal at
        while at < until:
            step = min(_CHUNK, until - at)
            at += step
            yield zeros[:step], False

    for part in parts:
        yield from gap(part.offset)
        if isinstance(part.data, bytes):
            at += len(part.data)
            yield part.data, part.packed
            continue
        with part.data.open("rb") as stream:
            while piece := stream.read(_CHUNK):
                at += len(piece)
                yield piece, part.packed
    yield from gap(size)


def _record(flag: int, kind: int, first: int, count: int) -> bytes:
    return struct.pack("<B3sB3sII", flag, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", first, min(count, 0xFFFFFFFF))


def _partition(disk: uuid.UUID, number: int) -> uuid.UUID:
    """OpenWrt's ptgen numbers the partitions in the last byte of the disk's GUID; so do we."""
    return uuid.UUID(bytes=disk.bytes[:15] + bytes([number]))
