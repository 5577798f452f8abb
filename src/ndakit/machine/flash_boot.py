"""An image for flash, taken apart so that a virtual machine can start it: kernel, initramfs, and a disk.

QEMU has no board with such flash, so a virtual ARM board starts the kernel directly, with the root file system on a
disk, and behind it, where UBI has rootfs_data, an empty ext4. Only the lab's images can be started like this: their
kernel is for that board and brings its initramfs. Owns the cache of what was taken apart; the image's structure is
`image.flash`'s.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from ndakit.core import locks, process, workspace
from ndakit.core.errors import InputError
from ndakit.image import flash

KERNEL_OPTIONS = "console=ttyAMA0,115200n8 panic=3 rootwait root=/dev/vda"
_ALIGN = 64 * 1024  # where the lab's initramfs looks for the writable part behind a squashfs
_DATA_BYTES = 128 * flash.MIB
_KEPT = 4
_YOUNG_S = 3600.0


class NotBootable(InputError):
    """The image is for a board that cannot be imitated."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            "no virtual machine can start this image: its kernel is for the device's own board",
            where=str(path),
            fix="flash it, or try the profile with an image of the lab: ./inv build PROFILE --builder lab",
        )


@dataclass(frozen=True)
class BootFiles:
    """What a virtual ARM board starts."""

    kernel: Path
    initrd: Path
    disk: Path
    """Root and writable part; raw."""


def take_apart(image: Path, *, cache: Path | None = None) -> BootFiles:
    """Kernel, initramfs and disk of a flash image, from the cache if it was taken apart before.

    Raises FlashImageBroken, NotBootable, ToolMissing (mke2fs).
    """
    folder = (cache or workspace.cache()) / "flash"
    folder.mkdir(parents=True, exist_ok=True)
    with image.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    place = folder / digest[:32]
    with locks.hold(folder / f"{place.name}.lock", wait_s=600):
        if not place.is_dir():
            partial = folder / f"{place.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
            partial.mkdir()
            try:
                _write(image, partial)
                partial.rename(place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        (place / "disk").touch()  # its age is when it was last used
    _prune(folder)
    return BootFiles(place / "kernel", place / "initrd", place / "disk")


def _write(image: Path, into: Path) -> None:
    content = flash.read(image)
    if content.problems:
        raise flash.FlashImageBroken(image, content.problems)
    files = flash.boot_files(content.kernel)
    if files is None:
        raise NotBootable(image)
    for name, data in zip(("kernel", "initrd"), files, strict=True):
        (into / name).write_bytes(data)
    root = content.root[: int.from_bytes(content.root[40:48], "little")]
    start = -(-len(root) // _ALIGN) * _ALIGN
    disk = into / "disk"
    with disk.open("wb") as out:
        out.write(root)
        out.truncate(start + _DATA_BYTES)
    tool = process.require("mke2fs", package="e2fsprogs", reason="to give a flash image's machine a writable part")
    options = f"offset={start},lazy_itable_init=1,lazy_journal_init=1"
    argv: list[str | Path] = [
        tool,
        "-q",
        "-F",
        "-t",
        "ext4",
        "-L",
        "rootfs_data",
        "-E",
        options,
        disk,
        f"{_DATA_BYTES // 1024}k",
    ]
    process.run(argv, timeout_s=60)


def _prune(folder: Path) -> None:
    """Keep what was used last, and whatever was used within the hour: a machine may be about to open it."""
    disks = [place / "disk" for place in folder.iterdir() if place.suffix not in (".lock", ".partial")]
    for disk in locks.stale(disks, keep=_KEPT, idle_s=_YOUNG_S):
        place = disk.parent
        locks.give_up(disk, folder / f"{place.name}.lock", functools.partial(_remove, place), idle_s=_YOUNG_S)


def _remove(place: Path) -> None:
    """Under its lock. What is removed in part must not look like a whole one."""
    partial = place.with_name(f"{place.name}.partial")
    place.rename(partial)
    shutil.rmtree(partial)
