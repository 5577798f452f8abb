"""Images for NAND flash: what is in them, and everything that the device would trip over."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ndakit.core import workspace
from ndakit.image import flash
from ndakit.image.flash import FlashImageBroken, FlashTooSmall, inspect
from ndakit.machine import flash_boot
from places import ROOT, SUPPORT

sys.path.insert(0, str(SUPPORT / "fake_imagebuilder"))

import flashfiles as made  # a script's neighbour, not a package of the tests

DEVICE = "seagate_dockstar"
KERNEL = made.kernel(b"zImage with its device tree" * 9000)  # two erase blocks
FILES = made.squashfs(bytes(range(256)) * 1500)  # three


def written(folder: Path, data: bytes) -> Path:
    path = folder / "image.bin"
    path.write_bytes(data)
    return path


def changed(data: bytes, at: int, value: bytes = b"\x5a") -> bytes:
    return data[:at] + value + data[at + len(value) :]


def test_a_factory_image_is_read_to_its_volumes(tmp_path: Path) -> None:
    facts = inspect(written(tmp_path, made.ubi(KERNEL, FILES)), DEVICE)
    assert (facts.layout, facts.volumes) == ("ubi", ("kernel", "rootfs", "rootfs_data"))
    assert (facts.kernel_bytes, facts.root_bytes, facts.filesystem) == (len(KERNEL), len(FILES), "squashfs")
    assert facts.flash_bytes == (2 + 3 + 1 + 4) * 128 * 1024


def test_a_sysupgrade_image_is_read_to_its_files_and_metadata(tmp_path: Path) -> None:
    facts = inspect(written(tmp_path, made.sysupgrade(KERNEL, FILES)), DEVICE)
    assert (facts.layout, facts.volumes) == ("sysupgrade-tar", ("kernel", "root"))
    assert (facts.kernel_bytes, facts.root_bytes) == (len(KERNEL), len(FILES))
    assert facts.supported == ("seagate,dockstar", "dockstar")


def test_metadata_is_found_before_a_signature(tmp_path: Path) -> None:
    data = made.sysupgrade(KERNEL, FILES)
    assert inspect(written(tmp_path, data + made.signature(data)), DEVICE).supported[0] == "seagate,dockstar"


def ubinize(folder: Path, *words: str, files: dict[str, bytes]) -> Path:
    """A UBI image by mtd-utils' own program, with the command line of OpenWrt's build for this device."""
    done = subprocess.run(
        [sys.executable, ROOT / "lab/debian.py", "root", "--cache", workspace.cache() / "lab", "--name", "flash-tools",
         "mtd-utils"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    root = Path(done.stdout.strip())
    config = ""
    for number, name in enumerate(("kernel", "rootfs", "rootfs_data")):
        config += f"[{name}]\nmode=ubi\nvol_id={number}\nvol_type=dynamic\nvol_name={name}\n"
        if name in files:
            (folder / name).write_bytes(files[name])
            config += f"image={folder / name}\n"
        else:
            config += "vol_size=1MiB\nvol_flags=autoresize\n"
    (folder / "ubi.cfg").write_text(config)
    program = [root / "lib64/ld-linux-x86-64.so.2", "--library-path", root / "usr/lib/x86_64-linux-gnu"]
    argv = [*program, root / "usr/sbin/ubinize", "-o", folder / "ubi.bin", *words, folder / "ubi.cfg"]
    subprocess.run([str(a) for a in argv], check=True, capture_output=True)
    return folder / "ubi.bin"


def test_what_the_real_ubinize_writes_is_read(tmp_path: Path) -> None:
    words = ("-p", "128KiB", "-m", "2048", "-s", "512")
    facts = inspect(ubinize(tmp_path, *words, files={"kernel": KERNEL, "rootfs": FILES}), DEVICE)
    assert (facts.volumes, facts.kernel_bytes) == (("kernel", "rootfs", "rootfs_data"), len(KERNEL))
    assert facts.flash_bytes == (2 + 3 + 9 + 4) * 128 * 1024  # rootfs_data: 1 MiB in blocks of 126 KiB


def test_our_writer_and_the_real_ubinize_write_the_same_blocks(tmp_path: Path) -> None:
    words = ("-p", "128KiB", "-m", "2048", "-s", "512", "-Q", "7")
    theirs = ubinize(tmp_path, *words, files={"kernel": KERNEL, "rootfs": FILES}).read_bytes()
    ours = made.ubi(KERNEL, FILES)
    assert theirs[2 * made.BLOCK :] == ours[2 * made.BLOCK :]  # all but the size of rootfs_data in the volume table


def test_flash_of_other_units_is_read_as_well(tmp_path: Path) -> None:
    words = ("-p", "16KiB", "-m", "512", "-s", "256")
    content = flash.read(ubinize(tmp_path, *words, files={"kernel": KERNEL, "rootfs": FILES}))
    assert (content.problems, content.kernel[: len(KERNEL)]) == ((), KERNEL)


UBI = made.ubi(KERNEL, FILES)
B, VID, DATA = made.BLOCK, made.VID_AT, made.DATA_AT
HEAD = UBI[: 2 * B]


def with_table(*records: bytes, rest: bytes = UBI[2 * B :]) -> bytes:
    return b"".join(made.block(made.LAYOUT, n, made.table(records)) for n in (0, 1)) + rest


K, R, D = made.record("kernel", 2), made.record("rootfs", 3), made.record("rootfs_data", 1, flags=1)
TAR = made.sysupgrade(KERNEL, FILES)
PLAIN = made.tar(
    "sysupgrade-seagate_dockstar", {"CONTROL": b"BOARD=seagate_dockstar\n", "kernel": KERNEL, "root": FILES}
)


@pytest.mark.parametrize(
    "data", [b"", b"x" * 15, b"x" * 100, TAR, b"x" * 100 + b"FWx0" + bytes(12), b"FWx0" + bytes(8) + b"\xff" * 4]
)
def test_what_ends_in_no_signature_is_left_as_it_is(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(data)
    assert not flash.cut_signature(tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == data


@pytest.mark.parametrize("data", [b"", b"x" * 100, TAR])
def test_a_signature_is_cut_and_the_metadata_before_it_stays(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(data + made.signature(data, b"key"))
    assert len(made.signature(data, b"key")) == 532
    assert flash.cut_signature(tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == data


def with_metadata(data: bytes, facts: object) -> bytes:
    return data + made.trailer(data, facts)


OURS = {"supported_devices": ["seagate,dockstar"]}

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "something else": (b"\x1f\x8b\x08\x00" + bytes(600), "begins with 1f8b0800, neither UBI nor a tar"),
    "cut off in a block": (UBI[:-1000], "no whole number of 128 KiB blocks"),
    "cut off after a block": (UBI[:-B], "its squashfs is cut off"),
    "a block of zeros": (UBI[: 3 * B] + bytes(B) + UBI[4 * B :], "block 3 has no UBI header"),
    "a changed block header": (changed(UBI, 3 * B + 8), "the header of block 3 is damaged"),
    "a changed volume header": (changed(UBI, 3 * B + VID + 15), "the volume header of block 3 is damaged"),
    "a changed magic": (changed(UBI, 3 * B + VID), "the volume header of block 3 is damaged"),
    "a block missing in the middle": (UBI[: 5 * B] + UBI[6 * B :], "volume rootfs has gaps: blocks 0, 2"),
    "a block of another image": (UBI[: 3 * B] + made.block(0, 1, KERNEL[made.LEB :], 8) + UBI[4 * B :], "different im"),
    "one table": (UBI[B:], "volume table is there 1 times"),
    "tables that differ": (HEAD[:B] + changed(HEAD[B:], DATA + 2), "two copies of its volume table differ"),
    "a changed record": (with_table(changed(K, 20), R, D), "record 0 of its volume table is damaged"),
    "no kernel volume": (with_table(made.record("boot", 2), R, D), "there is no volume kernel"),
    "no rootfs_data": (with_table(K, R), "there is no volume rootfs_data"),
    "rootfs_data of fixed size": (with_table(K, R, made.record("rootfs_data", 1)), "does not grow"),
    "a half-written volume": (with_table(made.record("kernel", 2, marker=1), R, D), "kernel is marked as half written"),
    "too little reserved": (with_table(K, made.record("rootfs", 2), D), "rootfs has 3 blocks, and 2 are reserved"),
    "blocks of no volume": (with_table(K, R, D, rest=UBI[2 * B :] + made.block(9, 0, b"x")), "table does not name: 9"),
    "an empty kernel": (with_table(K, R, D, rest=UBI[4 * B :]), "volume kernel is empty"),
    "no kernel in it": (made.ubi(b"\x7fELF" + KERNEL, FILES), "its kernel begins with 7f454c46: no U-Boot image"),
    "a changed kernel": (made.ubi(changed(KERNEL, 5000), FILES), "its kernel is damaged"),
    "a changed kernel header": (made.ubi(changed(KERNEL, 40), FILES), "U-Boot header is damaged"),
    "no squashfs": (made.ubi(KERNEL, b"\x31\x18\x10\x06" + FILES), "begins with 31181006: no squashfs"),
    "a tar cut off": (TAR[: len(TAR) // 2], "there is no metadata behind it"),
    "no metadata": (PLAIN, "there is no metadata behind it"),
    "a changed tar": (changed(TAR, 9000), "its metadata does not belong to it"),
    "metadata that is no JSON": (PLAIN + made.trailer(PLAIN, "x").replace(b'"x"', b'"x"'), "metadata cannot be read"),
    "metadata without devices": (with_metadata(PLAIN, {}), "its metadata cannot be read (KeyError)"),
    "another device": (made.sysupgrade(KERNEL, FILES, devices=("zyxel,nsa325",)), "names zyxel,nsa325, so sysupgrade"),
    "two folders": (
        with_metadata(made.tar("sysupgrade-a", {"CONTROL": b"BOARD=a\n", "../sysupgrade-b/x": b"y"}), OURS),
        "there is no kernel in it",
    ),
    "another folder": (with_metadata(made.tar("firmware", {"kernel": KERNEL, "root": FILES}), OURS), "but firmware"),
    "CONTROL of another board": (
        with_metadata(made.tar("sysupgrade-x", {"CONTROL": b"BOARD=y\n", "kernel": KERNEL, "root": FILES}), OURS),
        "CONTROL does not name the board",
    ),
    "no root": (
        with_metadata(made.tar("sysupgrade-x", {"CONTROL": b"BOARD=x\n", "kernel": KERNEL}), OURS),
        "there is no root in it",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_flash_image_is_refused_with_what_is_wrong(tmp_path: Path, name: str) -> None:
    data, words = BROKEN[name]
    path = written(tmp_path, data)
    with pytest.raises(FlashImageBroken) as caught:
        inspect(path, DEVICE)
    assert words in caught.value.what
    assert (caught.value.exit_code, caught.value.where) == (4, str(path))


def test_every_byte_of_a_sysupgrade_image_is_covered_by_a_checksum(tmp_path: Path) -> None:
    small = made.sysupgrade(made.kernel(b"z"), made.squashfs(b"r"))
    path = tmp_path / "image.bin"
    for at in range(0, len(small) - 16, 257):
        path.write_bytes(changed(small, at, bytes([small[at] ^ 0xFF])))
        with pytest.raises(FlashImageBroken):
            inspect(path, DEVICE)


def test_an_image_larger_than_the_flash_is_refused_with_both_sizes(tmp_path: Path) -> None:
    data = with_table(K, R, made.record("rootfs_data", 2100, flags=1))
    with pytest.raises(FlashTooSmall, match=r"needs 264 MiB of flash, and the device has 249 MiB") as caught:
        inspect(written(tmp_path, data), DEVICE)
    assert "packages" in caught.value.fix


def test_the_flash_of_a_device_that_we_do_not_know_has_no_limit(tmp_path: Path) -> None:
    assert inspect(written(tmp_path, made.sysupgrade(KERNEL, FILES, devices=("a,b",))), "a_b").supported == ("a,b",)


# -- for a virtual machine ---------------------------------------------------------------------------------------------


def multi(first: bytes, second: bytes) -> bytes:
    sizes = b"".join(n.to_bytes(4, "big") for n in (len(first), len(second), 0))
    return made.kernel(sizes + first + bytes(-len(first) % 4) + second, kind=4)


@pytest.mark.parametrize("make", [made.ubi, made.sysupgrade])
def test_a_lab_image_comes_apart_into_what_it_was_made_of(
    tmp_path: Path, make: Callable[[bytes, bytes], bytes]
) -> None:
    image = written(tmp_path, make(multi(b"kernel", b"initramfs"), FILES))
    files = flash_boot.take_apart(image, cache=tmp_path / "cache")
    assert (files.kernel.read_bytes(), files.initrd.read_bytes()) == (b"kernel", b"initramfs")
    with files.disk.open("rb") as disk:
        assert disk.read(len(FILES)) == FILES
        disk.seek(-(-len(FILES) // 65536) * 65536 + 1080)
        assert disk.read(2) == b"\x53\xef"  # an ext4 where the lab looks for its writable part
    assert flash_boot.take_apart(image, cache=tmp_path / "cache") == files


def test_what_a_killed_run_left_does_not_pass_for_a_finished_one(tmp_path: Path) -> None:
    image = written(tmp_path, made.ubi(multi(b"kernel", b"initramfs"), FILES))
    files = flash_boot.take_apart(image, cache=tmp_path / "cache")
    half = files.disk.parent.with_suffix(".partial")
    files.disk.parent.rename(half)
    files.kernel.parent.with_suffix(".partial").joinpath("kernel").write_bytes(b"half")
    assert flash_boot.take_apart(image, cache=tmp_path / "cache").kernel.read_bytes() == b"kernel"
    assert not half.exists()


def test_a_real_device_s_kernel_is_started_by_no_virtual_machine(tmp_path: Path) -> None:
    image = written(tmp_path, made.ubi(KERNEL, FILES))
    with pytest.raises(flash_boot.NotBootable, match="own board"):
        flash_boot.take_apart(image, cache=tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache/flash").iterdir() if p.suffix != ".lock"]


def test_a_broken_image_is_not_taken_apart(tmp_path: Path) -> None:
    with pytest.raises(FlashImageBroken):
        flash_boot.take_apart(written(tmp_path, UBI[:-1000]), cache=tmp_path / "cache")


def test_metadata_as_fwtool_writes_it_is_read(tmp_path: Path) -> None:
    # What `fwtool -I` of an ImageBuilder 23.05.2 appends to the four bytes `abcd`.
    trailer = bytes(8) + b'{"metadata_version":"1.1","supported_devices":["seagate,dockstar"]}\n'
    trailer += bytes.fromhex("46577830 0d3a0196 01000000 0000005c")
    facts = {"metadata_version": "1.1", "supported_devices": ["seagate,dockstar"]}
    assert made.trailer(b"abcd", facts)[-16:-12] == trailer[-16:-12]
    assert made.crc(b"abcd" + trailer[:-16]).to_bytes(4, "big") == trailer[-12:-8]
    problems: list[str] = []
    assert flash.metadata(b"abcd" + trailer, problems) == ("seagate,dockstar",)
    assert problems == []
    assert flash.metadata(b"abce" + trailer, problems) == ()
    assert "does not belong to it" in problems[0]
