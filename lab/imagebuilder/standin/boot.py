"""What starts the kernel: the initramfs, GRUB for BIOS and EFI, and the FAT partition that holds them.

Everything here depends on the kernel, the lab's own sources and a few settings only, so it is made once per cache.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import debian

from . import busybox
from .modules import Kernel
from .targets import TARGETS, Target
from .tools import Tools
from .tree import prune

# What must be there before the root file system is: disks of every platform, and the file systems.
_EARLY = ("virtio_blk", "virtio_scsi", "sd_mod", "squashfs", "overlay", "loop", "virtio_rng", "ext4", "crc32c_generic")
_EARLY_X86 = ("ahci", "ata_piix", "hv_storvsc", "xen-blkfront", "vmw_pvscsi")
_BIOS_MODULES = [
    "biosdisk",
    "part_gpt",
    "part_msdos",
    "fat",
    "normal",
    "linux",
    "serial",
    "terminal",
    "echo",
    "configfile",
    "test",
    "minicmd",
    "search",
    "search_label",
]
_EFI_MODULES = "part_gpt part_msdos fat normal linux serial terminal echo configfile test minicmd search search_label"
_SECTOR = 512


@dataclass(frozen=True)
class GrubSettings:
    """What .config says about GRUB (CONFIG_GRUB_*)."""

    timeout: str = "1"
    title: str = "OpenWrt"
    serial: str = "ttyS0"
    baudrate: str = "115200"
    bootopts: str = ""


@dataclass(frozen=True)
class Cores:
    """GRUB's parts: boot sector, BIOS core for MBR and for GPT (empty where there is no BIOS), EFI program."""

    boot: bytes
    mbr_core: bytes
    gpt_core: bytes
    efi: bytes


def initramfs(kernel: Kernel, root: Path, script: Path, epoch: int, target: Target = TARGETS["x86/64"]) -> bytes:
    """A compressed newc archive (kernel: Documentation/driver-api/early-userspace/buffer-format.rst)."""
    program, _ = busybox.restricted((root / "usr/bin/busybox").read_bytes())
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch)
        kernel.install((*_EARLY, *(_EARLY_X86 if target.x86 else ())), staged)
        entries: list[tuple[str, int, bytes]] = [
            (name, 0o040755, b"") for name in ("bin", "dev", "lib", "lib/modules", "mnt", "new", "proc", "sys", "tmp")
        ]
        entries += [("init", 0o100755, script.read_bytes()), ("bin/busybox", 0o100755, program)]
        for path in sorted((staged / "lib/modules").rglob("*")):
            name = str(path.relative_to(staged))
            entries.append((name, 0o040755, b"") if path.is_dir() else (name, 0o100644, path.read_bytes()))
        entries += [(f"bin/{n}", 0o120777, b"busybox") for n in ("sh", "modprobe", "mount")]
    archive = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        fields = (number, mode, 0, 0, 1, epoch, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + b"".join(b"%08X" % f for f in fields) + name.encode() + b"\0"
        archive += b"\0" * (-len(archive) % 4) + data
        archive += b"\0" * (-len(archive) % 4)
    return gzip.compress(bytes(archive), 9, mtime=0)


def cores(tools: Tools, cache: Path, target: Target) -> Cores:
    """GRUB's boot sector and cores, made of Debian's modules without grub-install."""
    lib = tools.root / "usr/lib/grub"
    if not target.x86:
        lib = debian.root(cache, [f"grub-efi-{target.grub[:-4]}-bin"], arch=target.debian, name="grub") / "usr/lib/grub"
        with tempfile.TemporaryDirectory() as scratch:
            efi = Path(scratch) / "efi"
            tools.run(
                "usr/bin/grub-mkimage", "-d", lib / target.grub, "-O", target.grub, "-p", "/boot/grub", "-o", efi,
                *_EFI_MODULES.split(),
            )  # fmt: skip
            return Cores(bytes(_SECTOR), b"", b"", efi.read_bytes())
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        made = {}
        for name, platform, prefix, words in (
            ("mbr", "i386-pc", "(,msdos1)/boot/grub", _BIOS_MODULES),
            ("gpt", "i386-pc", "(,gpt1)/boot/grub", _BIOS_MODULES),
            ("efi", target.grub, "/boot/grub", _EFI_MODULES.split()),
        ):
            tools.run(
                "usr/bin/grub-mkimage", "-d", lib / platform, "-O", platform, "-p", prefix, "-o", out / name, *words
            )  # fmt: skip
            made[name] = (out / name).read_bytes()
    return Cores((lib / "i386-pc/boot.img").read_bytes(), made["mbr"], made["gpt"], made["efi"])


def boot_sector(grub: Cores, core_lba: int) -> bytes:
    """The 440 bytes of code for LBA 0 that load a core from `core_lba` (GRUB: include/grub/i386/pc/boot.h, 0x5c)."""
    sector = bytearray(grub.boot[:440])
    struct.pack_into("<Q", sector, 0x5C, core_lba)
    return bytes(sector)


def placed_core(core: bytes, lba: int) -> bytes:
    """A core whose first sector knows where the rest lies: one block list at its end, 12 bytes."""
    moved = bytearray(core)
    struct.pack_into("<Q", moved, _SECTOR - 12, lba + 1)
    return bytes(moved)


def grub_config(settings: GrubSettings, root: str, console: str, target: Target) -> str:
    """grub.cfg with the two entries of OpenWrt's (openwrt/openwrt `target/linux/x86/image/grub*.cfg`)."""
    words = ("rootwait panic=3", console, f"console={settings.serial},{settings.baudrate}n8", target.kernel_options)
    options = " ".join(w for w in (f"root={root}", *words, settings.bootopts) if w)
    terminals = "console"  # where there is no BIOS, the firmware's console is the serial port
    head = ""
    if target.x86:
        unit = settings.serial.removeprefix("ttyS")
        head = f"serial --unit={unit} --speed={settings.baudrate} --word=8 --parity=no --stop=1\n"
        terminals = "console serial"
    return (
        f"{head}terminal_input {terminals}\nterminal_output {terminals}\n\n"
        f'set default="0"\nset timeout="{settings.timeout}"\n\n'
        f'menuentry "{settings.title}" {{\n\tlinux /boot/vmlinuz {options}\n\tinitrd /boot/initrd.gz\n}}\n'
        f'menuentry "{settings.title} (failsafe)" {{\n\tlinux /boot/vmlinuz failsafe=true {options}\n'
        "\tinitrd /boot/initrd.gz\n}\n"
    )


def fat(
    tools: Tools,
    kernel: Kernel,
    initrd: bytes,
    config: str,
    efi: tuple[str, bytes] | None,
    size: int,
    epoch: int,
    cache: Path,
) -> Path:
    """The boot partition as a file of `size` bytes in the cache, labelled `kernel`; `efi`: a program and its name."""
    words = (kernel.version, hashlib.sha256(initrd).hexdigest(), config, str(bool(efi)), str(size), str(epoch))
    key = hashlib.sha256("\0".join(words).encode() + (efi[1] if efi else b"")).hexdigest()[:24]
    target = cache / "boot" / f"{key}.fat"
    if target.is_file():
        os.utime(target)  # in use now
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, suffix=".partial") as scratch:
        staged = Path(scratch)
        (staged / "boot/grub").mkdir(parents=True)
        (staged / "boot/grub/grub.cfg").write_text(config)
        shutil.copyfile(kernel.image, staged / "boot/vmlinuz")
        (staged / "boot/initrd.gz").write_bytes(initrd)
        names = ["boot"]
        if efi is not None:
            (staged / "EFI/BOOT").mkdir(parents=True)
            (staged / "EFI/BOOT" / efi[0]).write_bytes(efi[1])
            names.insert(0, "EFI")
        image = staged / "fat.img"
        with image.open("wb") as stream:
            stream.truncate(size)
        env = {"SOURCE_DATE_EPOCH": str(epoch), "MTOOLS_SKIP_CHECK": "1", "MTOOLSRC": "/dev/null"}
        tools.run(
            "usr/bin/mtools:mformat", "-i", image, "-T", str(size // _SECTOR), "-h", "16", "-s", "63", "-v", "kernel",
            "-N", "4e444b31", "::", env=env,
        )  # fmt: skip
        # One call per folder and file, in a fixed order: what a tree walk returns first must not decide the bytes.
        for folder in _folders(names):
            tools.run("usr/bin/mtools:mmd", "-i", image, f"::{folder}", env=env)
        for file in sorted(p for n in names for p in (staged / n).rglob("*") if p.is_file()):
            place = f"::{file.relative_to(staged)}"
            tools.run("usr/bin/mtools:mcopy", "-i", image, file, place, env=env)
        image.rename(target)
    prune(target.parent, keep=16)
    return target


def _folders(names: Sequence[str]) -> list[str]:
    return [f for n in names for f in ({"boot": ["boot", "boot/grub"], "EFI": ["EFI", "EFI/BOOT"]}[n])]
