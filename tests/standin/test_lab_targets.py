"""The stand-in's targets: what `make info` and file names say of each, and the parts of a flash image."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from standin import elf, families, flash, fwtool, resolve
from standin.families import UnknownRelease

from ndakit.image import flash as image_flash
from places import LAB

sys.path.insert(0, str(LAB / "imagebuilder"))
import instantiate  # a script beside the package

NAMES = {
    ("24.10.8", "x86/64"): ("x86/64", "openwrt-24.10.8-a-b-x86-64-generic-squashfs-combined"),
    ("19.07.10", "x86/64"): ("x86/64", "openwrt-19.07.10-a-b-x86-64-combined-squashfs"),
    ("24.10.8", "armsr/armv8"): ("armsr/armv8", "openwrt-24.10.8-a-b-armsr-armv8-generic-squashfs-combined"),
    ("25.12.5", "kirkwood/generic"): (
        "kirkwood/generic", "openwrt-25.12.5-a-b-kirkwood-generic-seagate_dockstar-squashfs-combined",
    ),
    ("22.03.7", "kirkwood/generic"): ("kirkwood", "openwrt-22.03.7-a-b-kirkwood-seagate_dockstar-squashfs-combined"),
}  # fmt: skip


@pytest.mark.parametrize(("release", "target"), NAMES)
def test_targets_and_files_are_named_as_the_release_names_them(release: str, target: str) -> None:
    family = families.family(release, target)
    assert (family.info_target, family.image_name("A_B", "squashfs", "combined")) == NAMES[release, target]


def test_armsr_s_disks_got_their_second_name_with_24_10() -> None:
    assert families.family("23.05.6", "armsr/armv8").combined == "combined"
    assert families.family("24.10.0", "armsr/armv8").combined == "combined-efi"


def test_the_target_armsr_begins_with_23_05() -> None:
    with pytest.raises(UnknownRelease, match=r"22\.03\.7 has no target armsr/armv7"):
        families.family("22.03.7", "armsr/armv7")


@pytest.mark.parametrize("target", ["armsr/armv8", "armsr/armv7", "kirkwood/generic"])
@pytest.mark.parametrize("release", ["23.05.6", "24.10.8", "25.12.5"])
def test_every_package_of_a_device_is_known(release: str, target: str) -> None:
    family = families.family(release, target)
    feed = resolve.feed(LAB / "imagebuilder/packages.toml", family)
    assert not [p for p in (*family.default_packages, *family.profile_packages) if p not in feed]


def test_a_device_with_flash_has_no_grub_and_no_ext4() -> None:
    text = instantiate.config(families.family("24.10.8", "kirkwood/generic"))
    assert "CONFIG_TARGET_ROOTFS_SQUASHFS=y" in text
    assert "EXT4FS" not in text
    assert "GRUB_EFI_IMAGES" not in text


def test_only_pcs_get_the_drivers_of_hypervisors() -> None:
    table = LAB / "imagebuilder/packages.toml"
    pc, board = (resolve.feed(table, families.family("24.10.8", t)) for t in ("x86/64", "kirkwood/generic"))
    assert "hv_netvsc" in pc["kernel"].modules
    assert "hv_netvsc" not in board["kernel"].modules
    assert board["lua-lab"].files[-1].startswith("usr/lib/arm-linux-gnueabi/")


def test_the_kernel_of_a_flash_image_is_one_that_u_boot_takes_and_comes_apart_again(tmp_path: Path) -> None:
    made = flash.kernel(b"kernel", b"the initramfs", "ARM lab Linux", 7)
    assert image_flash.boot_files(made) == (b"kernel", b"the initramfs")
    root = tmp_path / "root"
    root.write_bytes(b"hsqs" + bytes(36) + (96).to_bytes(8, "little") + bytes(48))
    image = tmp_path / "image.bin"
    image.write_bytes(flash.sysupgrade(flash.Parts(made, root), "x", 7, {"supported_devices": ["a,b"]}))
    facts = image_flash.inspect(image, "a_b")
    assert (facts.kernel_bytes, facts.root_bytes, facts.supported) == (len(made), 96, ("a,b",))


def test_metadata_is_what_fwtool_appends() -> None:
    # `fwtool -I` of an ImageBuilder 23.05.2, behind the four bytes `abcd` (CRC-32 0xed82cd11).
    ours = fwtool.trailer(0xED82CD11, {"a": 1})
    assert ours[:8] == bytes(8)
    assert ours[-16:-12] == b"FWx0"
    assert ours[-8:] == bytes.fromhex("01000000") + len(ours).to_bytes(4, "big")
    problems: list[str] = []
    assert image_flash.metadata(b"abcd" + fwtool.trailer(0xED82CD11, {"supported_devices": ["x"]}), problems) == ("x",)
    assert problems == []


def test_libraries_of_32_bit_programs_are_found(tmp_path: Path) -> None:
    """A program with one library and a loader, field by field (elf(5))."""
    strings = b"\0libc.so.6\0/lib/ld-linux.so.3\0"
    start = 52 + 3 * 32
    dynamic = b"".join(v.to_bytes(4, "little") for v in (5, start, 1, 1, 0, 0))

    def header(kind: int, at: int, size: int) -> bytes:
        return b"".join(v.to_bytes(4, "little") for v in (kind, at, at, at, size, size, 4, 4))

    head = b"\x7fELF\x01\x01\x01".ljust(28, b"\0") + (52).to_bytes(4, "little") + bytes(10)
    head += (32).to_bytes(2, "little") + (3).to_bytes(2, "little") + bytes(6)
    assert len(head) == 52
    total = start + len(strings) + len(dynamic)
    table = header(1, 0, total) + header(3, start + 11, 19) + header(2, start + len(strings), len(dynamic))
    program = tmp_path / "program"
    program.write_bytes(head + table + strings + dynamic)
    assert elf.needed(program) == (["libc.so.6"], "/lib/ld-linux.so.3")
    program.write_bytes(b"#!/bin/sh\n" * 20)
    assert elf.needed(program) == ([], None)
