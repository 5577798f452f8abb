"""Small images for NAND flash, as an ImageBuilder for a Dockstar leaves them; standard library only.

Each part can be made wrong by a test: everything is written field by field (Linux `drivers/mtd/ubi/ubi-media.h`,
U-Boot `include/image.h`, openwrt/fwtool `fwimage.h`).
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Sequence

BLOCK, DATA_AT, VID_AT = 128 * 1024, 2048, 512
LEB = BLOCK - DATA_AT
LAYOUT = 0x7FFFEFFF


def crc(data: bytes) -> int:
    """CRC-32 without the inversion at the end."""
    return zlib.crc32(data) ^ 0xFFFFFFFF


def squashfs(content: bytes) -> bytes:
    """Something that begins and ends like a squashfs."""
    head = b"hsqs" + bytes(36) + struct.pack("<Q", 96 + len(content)) + bytes(48)
    return head + content


def kernel(content: bytes, kind: int = 2) -> bytes:
    """A U-Boot image."""
    words = struct.pack(">5I", 0, len(content), 0x8000, 0x8000, zlib.crc32(content))
    rest = words + bytes((5, 2, kind, 0)) + b"ARM OpenWrt Linux".ljust(32, b"\0")
    head = struct.pack(">II", 0x27051956, 0) + rest
    return struct.pack(">II", 0x27051956, zlib.crc32(head)) + rest + content


def record(name: str, reserved: int, flags: int = 0, marker: int = 0) -> bytes:
    """One entry of the volume table."""
    text = name.encode()
    body = struct.pack(">IIIBBH", reserved, 1, 0, 1 if name else 0, marker, len(text)) + text.ljust(128, b"\0")
    body += bytes([flags]) + bytes(23)
    return body + struct.pack(">I", crc(body))


def table(records: Sequence[bytes]) -> bytes:
    """The volume table; what is not used is empty."""
    return b"".join([*records, *[record("", 0)] * (128 - len(records))])


def block(volume: int, number: int, data: bytes, sequence: int = 7) -> bytes:
    """One erase block of a dynamic volume."""
    ec = b"UBI#" + struct.pack(">B3xQIII32x", 1, 0, VID_AT, DATA_AT, sequence)
    vid = b"UBI!" + struct.pack(">BBBB7I4xQ12x", 1, 1, 0, 0, volume, number, 0, 0, 0, 0, 0, 0)
    assert (len(ec), len(vid)) == (60, 60)
    head = (ec + struct.pack(">I", crc(ec))).ljust(VID_AT, b"\xff")
    head += vid + struct.pack(">I", crc(vid))
    return (head.ljust(DATA_AT, b"\xff") + data).ljust(BLOCK, b"\xff")


def blocks(volume: int, data: bytes) -> list[bytes]:
    """The erase blocks of a volume."""
    return [block(volume, n, data[at : at + LEB]) for n, at in enumerate(range(0, len(data), LEB))]


def ubi(kernel_image: bytes, root: bytes) -> bytes:
    """The image for the first time."""
    parts = [blocks(0, kernel_image), blocks(1, root), []]
    names = (("kernel", 0), ("rootfs", 0), ("rootfs_data", 1))
    entries = [record(n, max(1, len(p)), f) for (n, f), p in zip(names, parts, strict=True)]
    whole = [block(LAYOUT, n, table(entries)) for n in (0, 1)]
    return b"".join([*whole, *parts[0], *parts[1]])


def trailer(before: bytes, facts: object) -> bytes:
    """Metadata behind a file."""
    data = bytes(8) + json.dumps(facts).encode() + b"\n"
    return data + struct.pack(">4sIB3xI", b"FWx0", crc(before + data), 1, len(data) + 16)


def signature(before: bytes, key: bytes = b"") -> bytes:
    """A signature behind metadata, as builds with a key of their own have it: 532 bytes."""
    data = b"".join(hashlib.sha512(key + bytes([n]) + before).digest() for n in range(9))[: 532 - 16]
    return data + struct.pack(">4sIB3xI", b"FWx0", crc(before + data), 0, len(data) + 16)


def sysupgrade(
    kernel_image: bytes,
    root: bytes,
    board: str = "seagate_dockstar",
    devices: Sequence[str] = ("seagate,dockstar", "dockstar"),
) -> bytes:
    """The tar for an update."""
    whole = tar(f"sysupgrade-{board}", {"CONTROL": f"BOARD={board}\n".encode(), "kernel": kernel_image, "root": root})
    return whole + trailer(whole, {"metadata_version": "1.1", "supported_devices": list(devices)})


def tar(folder: str, files: dict[str, bytes]) -> bytes:
    """A tar of one folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as out:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(data)
            out.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
