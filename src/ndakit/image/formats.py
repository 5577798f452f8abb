"""Disks of virtual machines, made from a built raw image: qcow2, vmdk, vdi, vhdx, the same bytes every time.

Owns what qemu-img is asked for, and the identities inside the files. Nobody else makes them: no ImageBuilder knows
qcow2; its vdi, vmdk and vhdx are `qemu-img convert` without options (openwrt/openwrt `include/image-commands.mk`,
qemu-image), so that they carry random identities, and its vmdk is one that ESXi does not take. Which formats a profile
wants is the model's business, which hypervisor gets which file that of `sidecars`.

Formats: VMware "Virtual Disk Format 5.0"; Microsoft [MS-VHDX] 2.2 and 2.6; VDI: QEMU `block/vdi.c`.
"""

from __future__ import annotations

import hashlib
import re
import struct
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ndakit.core import process
from ndakit.core.files import file_sha256
from ndakit.image import disk as image_disk
from ndakit.image.built import BuiltImage, DiskFull
from ndakit.image.disk import MIB, DiskImageBroken

_TIMEOUT_S = 600.0

# streamOptimized is what ESXi and vCenter import; a hosted sparse file they refuse to run. With any other adapter type
# than lsilogic ESXi wants an IDE controller. Hardware version 13: ESXi 6.5, Workstation 14 and later.
# Blocks of 1 MiB: what Microsoft recommends for Linux guests, whose files lie scattered over the disk.
OPTIONS = {
    "qcow2": "compat=1.1",
    "vmdk": "subformat=streamOptimized,adapter_type=lsilogic,hwversion=13",
    "vdi": "static=off",
    "vhdx": "subformat=dynamic,block_size=1048576",
}
"""Format → what qemu-img is told about it; part of what decides an image."""

_VDI_SIGNATURE = b"\x7f\x10\xda\xbe"
_VHDX_HEADERS = (64 * 1024, 128 * 1024)
_VHDX_REGIONS = 192 * 1024
_VHDX_HEADER_BYTES = 4096
_VHDX_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_VHDX_PAGE83 = uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746")


def wanted(formats: Sequence[str]) -> tuple[str, ...]:
    """Those of a profile's formats that are made here, in its order."""
    return tuple(f for f in formats if f in OPTIONS)


def require(formats: Sequence[str]) -> None:
    """Refuse at once what would fail at the end of a build. Raises ToolMissing if qemu-img is needed and not there."""
    if wanted(formats):
        _tool()


def version() -> str:
    """qemu-img's version, for the record. Raises ToolMissing, ProcessFailed."""
    number = re.search(r"\d+(?:\.\d+)+", process.run([_tool(), "--version"], timeout_s=_TIMEOUT_S).stdout)
    return number[0] if number else ""


def make(images: Sequence[BuiltImage], formats: Sequence[str]) -> tuple[BuiltImage, ...]:
    """The images in the formats that are wanted, in their order; disks are made beside the raw one.

    What is no disk and no root file system archive (firmware files of small devices) is `img`. A raw disk that is not
    wanted for itself is left out. Every disk is compared with the raw one, byte by byte.
    Raises DiskImageBroken, DiskFull, ToolMissing, ProcessFailed.
    """
    raws = [i for i in images if i.format == "img"]
    in_formats: list[BuiltImage] = []
    for name in formats:
        if name not in OPTIONS:
            in_formats += [i for i in images if i.format == name]
    if names := wanted(formats):
        made = _convert_all(next(i for i in raws if i.disk is not None), names)
        in_formats += [made[name] for name in names]
    return tuple(sorted(in_formats, key=lambda image: formats.index(image.format)))


def _convert_all(image: BuiltImage, formats: Sequence[str]) -> dict[str, BuiltImage]:
    stem = re.sub(r"\.img(\.gz)?$", "", image.path.name)
    raw = image.path.with_name(f".{stem}.raw")
    try:
        size = _unpack(image.path, raw)
        made = {}
        for name in formats:
            target = image.path.with_name(f"{stem}.{name}")
            convert(raw, name, target, identity=image.sha256)
            disk = replace(image.disk, disk_bytes=size) if image.disk else None
            made[name] = replace(image, path=target, format=name, sha256=file_sha256(target), disk=disk)
    finally:
        raw.unlink(missing_ok=True)
    return made


def convert(raw: Path, name: str, target: Path, *, identity: str) -> None:
    """Make a disk of a format from a raw one, prove that it holds the same, and give it an identity of its own.

    That follows from the text `identity` (the raw image's hash), so that the same disk has the same one and another
    disk another: VirtualBox refuses two of one identity. Raises DiskImageBroken, DiskFull, ToolMissing, ProcessFailed.
    """
    tool = _tool()
    target.unlink(missing_ok=True)
    # One request at a time: several would lie in the file in the order in which they happened to end.
    argv: list[str | Path] = [
        tool,
        "convert",
        "-q",
        "-m",
        "1",
        "-f",
        "raw",
        "-O",
        name,
        "-o",
        OPTIONS[name],
        raw,
        target,
    ]
    done = process.run(argv, timeout_s=_TIMEOUT_S, check=False)
    if done.returncode != 0:
        if "No space left" in done.stderr:
            raise DiskFull(str(target))
        raise process.ProcessFailed(done)
    with target.open("r+b") as disk:
        _IDENTIFY[name](disk, uuid.UUID(bytes=hashlib.sha256(f"{name} {identity}".encode()).digest()[:16], version=4))
    argv = [tool, "compare", "-f", "raw", "-F", name, raw, target]
    compared = process.run(argv, timeout_s=_TIMEOUT_S, check=False)
    if compared.returncode != 0:
        said = "; ".join(compared.tail(2))
        raise DiskImageBroken(target, f"it does not hold what the raw image holds ({said})")


def _tool() -> Path:
    return process.require("qemu-img", package="qemu-utils", reason="to make disks of virtual machines")


def _unpack(packed: Path, raw: Path) -> int:
    """Unpack into a sparse file of whole MiB (hypervisors refuse others) and return its size.

    GPT's second table stays where the first one says that it is, so the room behind it does no harm. Holes are whole
    MiB as well: qemu-img looks for them, and what it finds would otherwise depend on the file system's block size.
    """
    rest = bytearray()
    size = 0
    with raw.open("wb") as sink:
        for chunk in image_disk.unpacked(packed):
            rest += chunk
            size += len(chunk)
            while len(rest) >= MIB:
                _put(sink, rest[:MIB])
                del rest[:MIB]
        _put(sink, rest)
        size = -(-size // MIB) * MIB
        sink.truncate(size)
    return size


def _put(sink: BinaryIO, block: bytearray) -> None:
    if block.count(0) == len(block):
        sink.seek(len(block), 1)
    else:
        sink.write(block)


def _identify_vmdk(disk: BinaryIO, identity: uuid.UUID) -> None:
    """The content id in the descriptor, which lies where the header says; QEMU writes it without leading zeros."""
    head = disk.read(44)
    start, sectors = struct.unpack_from("<QQ", head, 28)
    disk.seek(start * 512)
    room = disk.read(sectors * 512)
    # qemu-img writes the CID twice, without leading zeros: what a longer text left behind its end is no part of it.
    text = room.partition(b"\0")[0]
    named = re.sub(rb"\nCID=[0-9a-f]+\n", b"\nCID=%s\n" % identity.hex[:8].encode(), text, count=1)
    if head[:4] != b"KDMV" or named == text or len(named) > len(room):
        raise DiskImageBroken(Path(disk.name), "qemu-img made a vmdk without a descriptor")
    disk.seek(start * 512)
    disk.write(named.ljust(len(room), b"\0"))


def _identify_vdi(disk: BinaryIO, identity: uuid.UUID) -> None:
    """The UUIDs of the image and of its last snapshot."""
    if disk.read(68)[64:] != _VDI_SIGNATURE:
        raise DiskImageBroken(Path(disk.name), "qemu-img made no vdi")
    disk.seek(0x188)
    disk.write(identity.bytes_le + uuid.UUID(bytes=identity.bytes[::-1], version=4).bytes_le)


def _identify_vhdx(disk: BinaryIO, identity: uuid.UUID) -> None:
    """Both headers, the disk's SCSI identity, the name of the maker (it holds a version), and the emptied log."""
    if disk.read(8) != b"vhdxfile":
        raise DiskImageBroken(Path(disk.name), "qemu-img made no vhdx")
    disk.write("ndakit".encode("utf-16-le").ljust(512, b"\0"))
    headers = {}
    for place in _VHDX_HEADERS:
        disk.seek(place)
        headers[place] = bytearray(disk.read(_VHDX_HEADER_BYTES))
    # The header with the greater number counts; QEMU begins with a random one.
    order = sorted(headers, key=lambda place: int(struct.unpack_from("<Q", headers[place], 8)[0]))
    for number, place in enumerate(order, start=1):
        header = headers[place]
        log_bytes, log_at = struct.unpack_from("<IQ", header, 68)
        if header[:4] != b"head" or any(header[48:64]):  # a log that is still to be replayed has an identity
            raise DiskImageBroken(Path(disk.name), "qemu-img did not finish the vhdx")
        struct.pack_into("<Q", header, 8, number)
        header[16:48] = identity.bytes_le * 2
        struct.pack_into("<I", header, 4, 0)
        struct.pack_into("<I", header, 4, crc32c(header))
        disk.seek(place)
        disk.write(header)
        disk.seek(log_at)
        disk.write(bytes(log_bytes))
    metadata = _vhdx_entry(disk, _VHDX_REGIONS, 16, 32, _VHDX_METADATA, "<Q")
    page83 = metadata + _vhdx_entry(disk, metadata, 32, 32, _VHDX_PAGE83, "<I")
    disk.seek(page83)
    disk.write(identity.bytes_le)


def _vhdx_entry(disk: BinaryIO, table: int, start: int, size: int, kind: uuid.UUID, offset: str) -> int:
    """Where a table's entry of this kind points to; the offset follows the entry's identity."""
    disk.seek(table)
    text = disk.read(64 * 1024)
    for at in range(start, len(text) - size, size):
        if text[at : at + 16] == kind.bytes_le:
            return int(struct.unpack_from(offset, text, at + 16)[0])
    raise DiskImageBroken(Path(disk.name), f"qemu-img made a vhdx without {kind}")


def crc32c(data: bytes | bytearray) -> int:
    """The checksum of VHDX headers (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _identify_qcow2(disk: BinaryIO, identity: uuid.UUID) -> None:
    """It has no identity."""
    if disk.read(4) != b"QFI\xfb":
        raise DiskImageBroken(Path(disk.name), "qemu-img made no qcow2")


_IDENTIFY = {"qcow2": _identify_qcow2, "vmdk": _identify_vmdk, "vdi": _identify_vdi, "vhdx": _identify_vhdx}
