"""Images for devices that start from NAND flash: UBI for the first time, a tar for sysupgrade.

Layout of kirkwood's images (openwrt/openwrt `target/linux/kirkwood/image/Makefile`, `scripts/ubinize-image.sh`,
`scripts/sysupgrade-tar.sh`). The kernel is Debian's and needs its initramfs: both are in one U-Boot image of several
files, which is how U-Boot takes them; OpenWrt's kernels need none.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from . import fwtool
from .tools import Tools

_PAGE, _SUBPAGE, _BLOCK_KIB = 2048, 512, 128
_UIMAGE = 0x27051956
_LINUX, _ARM, _MULTI, _UNPACKED = 5, 2, 4, 0
_LOAD = 0x8000


@dataclass(frozen=True)
class Parts:
    """What lies in the flash: the kernel with its initramfs, and the root as squashfs."""

    kernel: bytes
    root: Path


def kernel(zimage: bytes, initrd: bytes, name: str, epoch: int) -> bytes:
    """A U-Boot image of kernel and initramfs (U-Boot: include/image.h, IH_TYPE_MULTI)."""
    data = struct.pack(">III", len(zimage), len(initrd), 0)
    for part in (zimage, initrd):
        data += part + bytes(-len(part) % 4)
    kind = struct.pack(">BBBB", _LINUX, _ARM, _MULTI, _UNPACKED)
    words = (epoch, len(data), _LOAD, _LOAD, zlib.crc32(data))

    def header(crc: int) -> bytes:
        return struct.pack(">II5I", _UIMAGE, crc, *words) + kind + name.encode()[:31].ljust(32, b"\0")

    return header(zlib.crc32(header(0))) + data


def factory(cache: Path, parts: Parts, scratch: Path, epoch: int) -> bytes:
    """The UBI image: kernel, rootfs, and rootfs_data, which takes the rest of the flash."""
    tools = Tools(cache, ("mtd-utils",), "flash-tools")
    image = scratch / "kernel.uimage"
    image.write_bytes(parts.kernel)
    volumes = (("kernel", f"image={image}"), ("rootfs", f"image={parts.root}"), ("rootfs_data", "vol_size=1MiB"))
    config = scratch / "ubi.cfg"
    lines = [
        f"[{name}]\nmode=ubi\nvol_id={number}\nvol_type=dynamic\nvol_name={name}\n{what}\n"
        + ("vol_flags=autoresize\n" if name == "rootfs_data" else "")
        for number, (name, what) in enumerate(volumes)
    ]
    config.write_text("".join(lines))
    out = scratch / "factory.ubi"
    words = ("-p", f"{_BLOCK_KIB}KiB", "-m", str(_PAGE), "-s", str(_SUBPAGE), "-Q", str(epoch))
    tools.run("usr/sbin/ubinize", "-o", out, *words, config)
    return out.read_bytes()


def sysupgrade(parts: Parts, board: str, epoch: int, metadata: dict[str, object]) -> bytes:
    """The tar that sysupgrade writes into the volumes, with the metadata behind it."""
    root = parts.root.read_bytes()
    root += bytes(-len(root) % 1024)  # dd conv=sync
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo(f"sysupgrade-{board}")
        folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o755, epoch
        tar.addfile(folder)
        for name, data in (("CONTROL", f"BOARD={board}\n".encode()), ("kernel", parts.kernel), ("root", root)):
            entry = tarfile.TarInfo(f"sysupgrade-{board}/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o644, epoch
            tar.addfile(entry, io.BytesIO(data))
    whole = buffer.getvalue()
    return whole + fwtool.trailer(zlib.crc32(whole), metadata)
