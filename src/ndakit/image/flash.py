"""What is inside an image for NAND flash, and what is wrong with it: UBI images, and the tar that sysupgrade takes.

Reads the structures that the boot loader, UBI and sysupgrade will read on the device, and checks what they would trip
over; whole disks are the business of `disk`. Structures: Linux `drivers/mtd/ubi/ubi-media.h`; U-Boot
`include/image.h` (legacy images); openwrt/openwrt `scripts/ubinize-image.sh`, `scripts/sysupgrade-tar.sh`,
`package/base-files/files/lib/upgrade/nand.sh`; openwrt/fwtool `fwimage.h`; squashfs 4.0 superblock.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ndakit.core import json_text
from ndakit.core.errors import BuildError

KIB, MIB = 1024, 1024 * 1024
_UBI, _VID = b"UBI#", b"UBI!"
_HEADER_BYTES = 64
_LAYOUT_VOLUME = 0x7FFFEFFF
_RECORD_BYTES = 172
_RECORDS_MAX = 128
_AUTORESIZE = 1
_UIMAGE = 0x27051956
_UIMAGE_BYTES = 64
_MULTI = 4
_TRAILER = b"FWx0"
_TRAILER_BYTES = 16
_SIGNATURE, _INFO = 0, 1
_SIGNATURE_MAX = 64 * KIB
_UBI_SPARE_BLOCKS = 4  # two for the volume table, one for wear levelling, one for atomic changes
_BAD_BLOCKS_PER_1024 = 20  # what UBI keeps back for blocks that go bad (CONFIG_MTD_UBI_BEB_LIMIT)


class FlashImageBroken(BuildError):
    """An image for flash is not what its name says, or the device could not use it."""

    def __init__(self, path: Path, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            f"the image {path.name} is broken: {'; '.join(problems)}",
            where=str(path),
            fix="do not flash it; build it again, and if that does not mend it, read the log of the build",
        )


class FlashTooSmall(BuildError):
    """The image is whole, and larger than the device's flash."""

    def __init__(self, path: Path, needed: int, has: int) -> None:
        super().__init__(
            f"the image {path.name} needs {-(-needed // MIB)} MiB of flash, and the device has {has // MIB} MiB for it",
            where=str(path),
            fix="leave packages out: image: {packages: {NAME: remove}}; the manifest beside the log lists them",
        )


@dataclass(frozen=True)
class Flash:
    """A device's flash, as far as images are concerned: the partition for UBI, and its units. Sizes in bytes."""

    ubi_bytes: int
    block_bytes: int
    page_bytes: int
    boards: frozenset[str]
    """What sysupgrade's metadata may call the device; one of them has to be there."""

    @property
    def good_bytes(self) -> int:
        """The partition without what UBI keeps back for blocks that go bad, a share of the whole chip."""
        chip = 1 << (self.ubi_bytes - 1).bit_length()
        return self.ubi_bytes - chip // 1024 * _BAD_BLOCKS_PER_1024

    @property
    def usable_bytes(self) -> int:
        """What UBI leaves for volumes: without its own blocks, its headers and what it keeps back."""
        blocks = self.good_bytes // self.block_bytes - _UBI_SPARE_BLOCKS
        return blocks * (self.block_bytes - self.page_bytes)


FLASHES: Mapping[str, Flash] = {
    # openwrt/openwrt target/linux/kirkwood: patches-6.6/102-dockstar.patch, image/Makefile.
    "seagate_dockstar": Flash(0xFE00000, 128 * KIB, 2048, frozenset({"seagate,dockstar", "dockstar"})),
}
"""ImageBuilder's device → its flash."""


@dataclass(frozen=True)
class FlashFacts:
    """A flash image that holds together. Sizes in bytes."""

    layout: Literal["ubi", "sysupgrade-tar"]
    kernel_bytes: int
    """The kernel as U-Boot sees it, without padding."""
    filesystem: str
    root_bytes: int
    volumes: tuple[str, ...]
    """UBI: names of the volumes in their order; a tar: what sysupgrade writes."""
    flash_bytes: int
    """How much of the UBI partition it takes, at least."""
    supported: tuple[str, ...]
    """What the metadata says; empty for UBI images, which have none."""


@dataclass(frozen=True)
class Content:
    """Kernel and root of a flash image, as bytes, and which devices its metadata names."""

    layout: Literal["ubi", "sysupgrade-tar"]
    kernel: bytes
    root: bytes
    volumes: tuple[str, ...]
    flash_bytes: int
    supported: tuple[str, ...]
    problems: tuple[str, ...]


def inspect(path: Path, device: str) -> FlashFacts:
    """Look into a flash image of an ImageBuilder's device.

    Raises FlashImageBroken with everything that is wrong, FlashTooSmall if it does not fit the device's flash.
    """
    content = read(path)
    flash = FLASHES.get(device)
    problems = [*content.problems, *_kernel_problems(content.kernel), *_root_problems(content.root)]
    if content.layout == "sysupgrade-tar" and flash is not None and not flash.boards & set(content.supported):
        names = ", ".join(content.supported) or "no device"
        problems.append(f"its metadata names {names}, so sysupgrade on the device would refuse it")
    if problems:
        raise FlashImageBroken(path, problems)
    needed = content.flash_bytes or len(content.kernel) + len(content.root)
    if flash is not None:
        has = flash.good_bytes if content.layout == "ubi" else flash.usable_bytes
        if needed > has:
            raise FlashTooSmall(path, needed, has)
    (kernel_bytes,) = struct.unpack_from(">I", content.kernel, 12)
    (root_bytes,) = struct.unpack_from("<Q", content.root, 40)
    return FlashFacts(
        content.layout,
        kernel_bytes + _UIMAGE_BYTES,
        "squashfs",
        root_bytes,
        content.volumes,
        needed,
        content.supported,
    )


def read(path: Path) -> Content:
    """Kernel and root of a flash image, with what is wrong about its structure. Raises FlashImageBroken if it is
    neither UBI nor a tar for sysupgrade."""
    data = path.read_bytes()
    if data.startswith(_UBI):
        return _ubi(data)
    if data[257:262] == b"ustar":
        return _tar(data)
    if not data:
        raise FlashImageBroken(path, ["it is empty"])
    raise FlashImageBroken(path, [f"it begins with {data[:4].hex()}, neither UBI nor a tar for sysupgrade"])


def boot_files(kernel: bytes) -> tuple[bytes, bytes] | None:
    """(kernel, initramfs) of a U-Boot image of several files; None for an image of one (OpenWrt's own)."""
    if len(kernel) < _UIMAGE_BYTES + 12 or struct.unpack_from(">I", kernel)[0] != _UIMAGE or kernel[30] != _MULTI:
        return None
    first, second, end = struct.unpack_from(">III", kernel, _UIMAGE_BYTES)
    start = _UIMAGE_BYTES + 12
    after = start + first + -first % 4
    if end != 0 or len(kernel) < after + second:
        return None
    return kernel[start : start + first], kernel[after : after + second]


# -- kernel and root ---------------------------------------------------------------------------------------------------


def _kernel_problems(kernel: bytes) -> list[str]:
    if not kernel:
        return []  # that there is none was said already
    if len(kernel) < _UIMAGE_BYTES or struct.unpack_from(">I", kernel)[0] != _UIMAGE:
        return [f"its kernel begins with {kernel[:4].hex()}: no U-Boot image, so U-Boot would not start it"]
    (head_crc,) = struct.unpack_from(">I", kernel, 4)
    if zlib.crc32(kernel[:4] + bytes(4) + kernel[8:_UIMAGE_BYTES]) != head_crc:
        return ["its kernel's U-Boot header is damaged (checksum)"]
    (size,) = struct.unpack_from(">I", kernel, 12)
    body = kernel[_UIMAGE_BYTES : _UIMAGE_BYTES + size]
    if len(body) < size:
        return [f"its kernel is cut off: {len(body)} of {size} bytes"]
    if zlib.crc32(body) != struct.unpack_from(">I", kernel, 24)[0]:
        return ["its kernel is damaged (checksum)"]
    return []


def _root_problems(root: bytes) -> list[str]:
    if not root:
        return []
    if root[:4] != b"hsqs":
        return [f"its root file system begins with {root[:4].hex()}: no squashfs"]
    if len(root) < 96:
        return ["its squashfs is cut off in its superblock"]
    (used,) = struct.unpack_from("<Q", root, 40)
    return [f"its squashfs is cut off: {len(root)} of {used} bytes"] if used > len(root) else []


# -- UBI ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    volume: int
    number: int
    data: memoryview


def _crc(data: bytes | memoryview) -> int:
    """UBI's and fwtool's CRC-32: zlib's, without the inversion at the end."""
    return zlib.crc32(data) ^ 0xFFFFFFFF


def _block_size(data: bytes) -> int:
    """The distance between the first two erase blocks; the whole file if there is one."""
    at = data.find(_UBI, 1)
    while at > 0 and at % 512:
        at = data.find(_UBI, at + 1)
    return at if at > 0 else len(data)


def _ubi(data: bytes) -> Content:
    size = _block_size(data)
    problems: list[str] = []
    if len(data) % size:
        problems.append(f"it is cut off: {len(data)} bytes are no whole number of {size // KIB} KiB blocks")
    blocks: list[_Block] = []
    sequences: set[int] = set()
    for index in range(len(data) // size):
        block = _block(memoryview(data)[index * size : (index + 1) * size], index, problems, sequences)
        if block is not None:
            blocks.append(block)
    if len(sequences) > 1:
        problems.append("its blocks are of different images (sequence numbers)")
    table = _volume_table(blocks, problems)
    contents = {
        name: b"".join(b.data for b in sorted((b for b in blocks if b.volume == number), key=lambda b: b.number))
        for number, (name, _, _) in table.items()
    }
    for number, (name, reserved, _) in table.items():
        there = sorted(b.number for b in blocks if b.volume == number)
        if there != list(range(len(there))):
            problems.append(f"volume {name} has gaps: blocks {_short(there)}")
        elif len(there) > reserved:
            problems.append(f"volume {name} has {len(there)} blocks, and {reserved} are reserved for it")
    strangers = {b.volume for b in blocks} - set(table) - {_LAYOUT_VOLUME}
    if strangers and table:
        problems.append(f"it has blocks of volumes that its table does not name: {_short(sorted(strangers))}")
    if table:
        names = {name for name, _, _ in table.values()}
        problems += [f"there is no volume {n}" for n in ("kernel", "rootfs", "rootfs_data") if n not in names]
        problems += [f"volume {n} is empty" for n in ("kernel", "rootfs") if n in names and not contents[n]]
        if any(name == "rootfs_data" and not flags & _AUTORESIZE for name, _, flags in table.values()):
            problems.append("rootfs_data does not grow over the rest of the flash (autoresize)")
    reserved = sum(r for _, r, _ in table.values())
    return Content(
        "ubi",
        contents.get("kernel", b""),
        contents.get("rootfs", b""),
        tuple(name for name, _, _ in table.values()),
        (reserved + _UBI_SPARE_BLOCKS) * size,
        (),
        tuple(problems[:8]),
    )


def _block(block: memoryview, index: int, problems: list[str], sequences: set[int]) -> _Block | None:
    """The data of one erase block, None if it holds none or is broken."""
    where = f"block {index}"
    head = block[:_HEADER_BYTES]
    if bytes(head[:4]) != _UBI:
        problems.append(f"{where} has no UBI header")
        return None
    if _crc(head[:60]) != struct.unpack_from(">I", head, 60)[0]:
        problems.append(f"the header of {where} is damaged (checksum)")
        return None
    vid_at, data_at, sequence = struct.unpack_from(">III", head, 16)
    sequences.add(sequence)
    if head[4] != 1 or not _HEADER_BYTES <= vid_at <= len(block) - _HEADER_BYTES or data_at > len(block):
        problems.append(f"the header of {where} is of another version or points outside of the block")
        return None
    vid = block[vid_at : vid_at + _HEADER_BYTES]
    if bytes(vid[:4]) != _VID:
        if any(b != 0xFF for b in vid):
            problems.append(f"the volume header of {where} is damaged")
        return None  # an empty block
    if _crc(vid[:60]) != struct.unpack_from(">I", vid, 60)[0]:
        problems.append(f"the volume header of {where} is damaged (checksum)")
        return None
    volume, number, _, length, _, _, data_crc = struct.unpack_from(">7I", vid, 8)
    data = block[data_at:]
    if vid[5] == 2 or length:  # static volumes say how much is in a block, and its checksum
        data = data[:length]
        if _crc(data) != data_crc:
            problems.append(f"the data of {where} is damaged (checksum)")
    return _Block(volume, number, data)


def _volume_table(blocks: Sequence[_Block], problems: list[str]) -> dict[int, tuple[str, int, int]]:
    """Volume id → (name, reserved blocks, flags), from the first of two equal copies."""
    copies = [b.data for b in blocks if b.volume == _LAYOUT_VOLUME]
    if len(copies) != 2:
        problems.append(f"its volume table is there {len(copies)} times instead of twice")
    elif copies[0] != copies[1]:
        problems.append("the two copies of its volume table differ")
    table: dict[int, tuple[str, int, int]] = {}
    for number in range(_RECORDS_MAX if copies else 0):
        record = bytes(copies[0][number * _RECORD_BYTES : (number + 1) * _RECORD_BYTES])
        if len(record) < _RECORD_BYTES:
            break
        if _crc(record[:168]) != struct.unpack_from(">I", record, 168)[0]:
            problems.append(f"record {number} of its volume table is damaged (checksum)")
            continue
        reserved, _, _, _, marker, length = struct.unpack_from(">IIIBBH", record)
        if reserved == 0:
            continue
        name = record[16 : 16 + min(length, 127)].decode("ascii", "replace")
        if marker:
            problems.append(f"volume {name} is marked as half written")
        table[number] = (name, reserved, record[144])
    return table


def _short(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:6])
    return f"{shown}, …" if len(numbers) > 6 else shown


# -- the tar of sysupgrade ---------------------------------------------------------------------------------------------


def _tar(data: bytes) -> Content:
    problems: list[str] = []
    supported = metadata(data, problems)
    contents: dict[str, bytes] = {}
    folders: set[str] = set()
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for entry in tar:
                folder, _, name = entry.name.removeprefix("./").partition("/")
                folders.add(folder)
                if entry.isfile():
                    source = tar.extractfile(entry)
                    contents[name] = source.read() if source is not None else b""
                    if len(contents[name]) < entry.size:
                        problems.append(f"{name} is cut off: {len(contents[name])} of {entry.size} bytes")
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as cause:
        problems.append(f"the tar is damaged ({cause})")
    board = next(iter(folders), "")
    if len(folders) != 1 or not board.startswith("sysupgrade-"):
        problems.append(
            f"there is not one folder sysupgrade-BOARD in it, but {', '.join(sorted(folders)) or 'nothing'}"
        )
    elif contents.get("CONTROL", b"").strip() != f"BOARD={board.removeprefix('sysupgrade-')}".encode():
        problems.append(f"CONTROL does not name the board of its folder {board}")
    problems += [f"there is no {name} in it" for name in ("kernel", "root") if not contents.get(name)]
    names = tuple(n for n in ("kernel", "root") if n in contents)
    return Content(
        "sysupgrade-tar",
        contents.get("kernel", b""),
        contents.get("root", b""),
        names,
        0,
        supported,
        tuple(problems),
    )


def metadata(data: bytes, problems: list[str]) -> tuple[str, ...]:
    """Which devices the JSON that fwtool appended names (supported_devices); a signature may stand behind it.

    What is wrong is added to `problems`.
    """
    end = len(data)
    while end >= _TRAILER_BYTES and data[end - _TRAILER_BYTES : end - _TRAILER_BYTES + 4] == _TRAILER:
        crc, kind, size = struct.unpack_from(">IB3xI", data, end - _TRAILER_BYTES + 4)
        start = end - size
        if start < 0 or size < _TRAILER_BYTES:
            break
        if _crc(memoryview(data)[: end - _TRAILER_BYTES]) != crc:
            problems.append("its metadata does not belong to it (checksum): something was changed or cut out")
            return ()
        if kind == _INFO:
            try:
                facts = json_text.mapping(data[start + 8 : end - _TRAILER_BYTES])
                return tuple(str(name).split(" ")[0] for name in facts["supported_devices"])
            except (ValueError, KeyError, TypeError) as cause:
                problems.append(f"its metadata cannot be read ({type(cause).__name__})")
                return ()
        end = start
    problems.append("there is no metadata behind it, which sysupgrade demands")
    return ()


def cut_signature(path: Path) -> bool:
    """Take away the signature that fwtool appended to an image, its last part; False if it ends in something else.

    Metadata before it stays as it is: its checksum covers what lies before it only. Raises OSError.
    """
    with path.open("r+b") as image:
        end = image.seek(0, io.SEEK_END)
        if end < _TRAILER_BYTES:
            return False
        image.seek(end - _TRAILER_BYTES)
        magic, _, kind, size = struct.unpack(">4sIB3xI", image.read(_TRAILER_BYTES))
        if magic != _TRAILER or kind != _SIGNATURE or not _TRAILER_BYTES <= size <= min(end, _SIGNATURE_MAX):
            return False
        image.truncate(end - size)
    return True
