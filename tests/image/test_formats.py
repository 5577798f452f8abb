"""Disks of virtual machines: the same bytes every time, right for their hypervisors, proved against the raw disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import stat
import struct
import tarfile
import uuid
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from imagebuilder_fakes import PROFILE, driver, fake, request, workspace_folder
from ndakit.build import pipeline, plan
from ndakit.core import process
from ndakit.core.workspace import Workspace
from ndakit.image import disk as image_disk
from ndakit.image import formats as image_formats
from ndakit.image.artifacts import Artifact, ImageFile, Record
from ndakit.image.built import BuiltImage, DiskFull
from ndakit.image.disk import MIB, DiskFacts, DiskImageBroken
from ndakit.imagebuilder import sources
from ndakit.imagebuilder.imagebuilder import ImageMissing
from ndakit.load import load
from ndakit.machine.boot_image import boot_images

pytestmark = pytest.mark.images

FORMATS = tuple(image_formats.OPTIONS)


def disk(size: int = 5 * MIB + 512) -> bytes:
    """A raw disk with data at its start, across a MiB and at its end, and zeros between."""
    data = bytearray(size)
    for place in (0, MIB - 700, 3 * MIB + 4096):
        data[place : place + 5024] = hashlib.sha256(str(place).encode()).digest() * 157
    data[-3:] = b"end"
    return bytes(data)


def built(folder: Path, content: bytes = b"", name: str = "x-combined-efi.img.gz") -> BuiltImage:
    """A gzipped raw image as an ImageBuilder leaves it, metadata behind the stream included."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(gzip.compress(content or disk(), 1, mtime=0) + b"metadata")
    facts = DiskFacts(len(content or disk()), "gpt", "squashfs", MIB, MIB, 4096)
    return BuiltImage(path, "combined-efi", "squashfs", hashlib.sha256(path.read_bytes()).hexdigest(), facts)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_a_longer_cid_left_behind_in_a_vmdk_does_not_count(tmp_path: Path) -> None:
    (image,) = image_formats.make([built(tmp_path)], ["vmdk"])
    whole = image.path.read_bytes()
    end = whole.index(b"\0", whole.index(b"# Disk DescriptorFile"))
    image.path.write_bytes(whole[: end + 1] + b"\n" + whole[end + 2 :])  # as qemu-img does it once in some dozen times
    with image.path.open("r+b") as disk_file:
        image_formats._identify_vmdk(disk_file, uuid.UUID(int=1, version=4))
    again = image.path.read_bytes()
    assert again[end + 1] == 0
    assert again[:600] != whole[:600]


def test_the_same_image_gives_the_same_disks_in_every_folder_and_umask(tmp_path: Path) -> None:
    first = image_formats.make([built(tmp_path / "one")], FORMATS)
    before = os.umask(0o077)
    try:
        second = [image_formats.make([built(tmp_path / f"two{n}")], FORMATS) for n in range(3)]
    finally:
        os.umask(before)
    for again in second:
        assert [(i.path.name, sha256(i.path)) for i in first] == [(i.path.name, sha256(i.path)) for i in again]
    assert [i.sha256 for i in first] == [sha256(i.path) for i in first]


def test_holes_of_the_file_system_do_not_show(tmp_path: Path) -> None:
    dense, sparse = tmp_path / "dense", tmp_path / "sparse"
    dense.write_bytes(disk(6 * MIB))
    image_formats._unpack(built(tmp_path / "in", disk(6 * MIB)).path, sparse)
    assert sparse.read_bytes() == dense.read_bytes()
    assert sparse.stat().st_blocks < dense.stat().st_blocks
    for name in FORMATS:
        made = [tmp_path / who / f"x.{name}" for who in ("a", "b")]
        for raw, target in zip((dense, sparse), made, strict=True):
            target.parent.mkdir(exist_ok=True)
            image_formats.convert(raw, name, target, identity="one")
        assert sha256(made[0]) == sha256(made[1]), name


def test_disks_are_made_beside_the_raw_one_which_is_left_out_unless_wanted(tmp_path: Path) -> None:
    image = built(tmp_path)
    assert [i.path.name for i in image_formats.make([image], ["vmdk", "img"])] == [
        "x-combined-efi.vmdk", "x-combined-efi.img.gz",
    ]  # fmt: skip
    (only,) = image_formats.make([image], ["qcow2"])
    assert (only.format, only.kind, only.filesystem) == ("qcow2", "combined-efi", "squashfs")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "x-combined-efi.img.gz", "x-combined-efi.qcow2", "x-combined-efi.vmdk",
    ]  # fmt: skip
    assert image_formats.make([image], ["img"]) == (image,)


def test_firmware_files_are_kept_as_they_are(tmp_path: Path) -> None:
    files = [BuiltImage(tmp_path / f"{kind}.bin", kind, "squashfs", "", None) for kind in ("sysupgrade", "factory")]
    assert image_formats.make(files, ["img"]) == tuple(files)


@pytest.mark.parametrize("name", FORMATS)
def test_qemu_finds_a_whole_disk_of_full_mib_in_it(name: str, tmp_path: Path) -> None:
    (made,) = image_formats.make([built(tmp_path)], [name])
    said = json.loads(process.run(["qemu-img", "info", "--output=json", made.path], timeout_s=30).stdout)
    assert (said["format"], said["virtual-size"]) == (name, 6 * MIB)
    assert made.disk is not None
    assert made.disk.disk_bytes == 6 * MIB
    process.run(["qemu-img", "check", "-q", made.path], timeout_s=30)
    back = tmp_path / "back"
    process.run(["qemu-img", "convert", "-O", "raw", made.path, back], timeout_s=30)
    assert back.read_bytes() == disk().ljust(6 * MIB, b"\0")


def test_a_vmdk_is_one_that_esxi_imports(tmp_path: Path) -> None:
    (made,) = image_formats.make([built(tmp_path)], ["vmdk"])
    head = made.path.read_bytes()[: 21 * 512]
    assert struct.unpack_from("<I", head, 4) == (3,)  # version 1 is "too old" for ESXi
    text = head[512:].split(b"\0")[0].decode()
    for line in ('createType="streamOptimized"', 'ddb.adapterType = "lsilogic"', 'ddb.virtualHWVersion = "13"'):
        assert line in text
    assert f'SPARSE "{made.path.name}"' in text
    assert re.search(r"^CID=[0-9a-f]{8}$", text, re.MULTILINE)


def test_a_content_id_without_leading_zeros_changes_no_byte_beside_it(tmp_path: Path) -> None:
    (made,) = image_formats.make([built(tmp_path)], ["vmdk"])
    whole = made.path.read_bytes()
    short = re.sub(rb"\nCID=[0-9a-f]+\n", b"\nCID=1a2b3c\n", whole[512 : 21 * 512], count=1)[: 20 * 512]
    made.path.write_bytes(whole[:512] + short.ljust(20 * 512, b"\0") + whole[21 * 512 :])
    with made.path.open("r+b") as file:
        identity = hashlib.sha256(f"vmdk {built(tmp_path / 'again').sha256}".encode()).digest()[:16]
        image_formats._IDENTIFY["vmdk"](file, uuid.UUID(bytes=identity, version=4))
    assert made.path.read_bytes() == whole


def identity_of(path: Path, name: str) -> bytes:
    data = path.read_bytes()
    if name == "vmdk":
        line = re.search(rb"\nCID=([0-9a-f]+)\n", data)
        assert line is not None
        return line[1]
    return data[0x188 : 0x188 + 16] if name == "vdi" else data[64 * 1024 + 16 : 64 * 1024 + 48]


@pytest.mark.parametrize("name", ["vmdk", "vdi", "vhdx"])
def test_other_disks_have_other_identities(name: str, tmp_path: Path) -> None:
    (one,) = image_formats.make([built(tmp_path / "one")], [name])
    (two,) = image_formats.make([built(tmp_path / "two", disk()[:-1] + b"!")], [name])
    assert identity_of(one.path, name) != identity_of(two.path, name)


def test_both_headers_of_a_vhdx_have_right_checksums_and_the_log_is_empty(tmp_path: Path) -> None:
    assert image_formats.crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    (made,) = image_formats.make([built(tmp_path)], ["vhdx"])
    data = made.path.read_bytes()
    assert data[8:20].decode("utf-16-le") == "ndakit"
    numbers = set()
    for place in (64 * 1024, 128 * 1024):
        header = bytearray(data[place : place + 4096])
        (said,) = struct.unpack_from("<I", header, 4)
        header[4:8] = bytes(4)
        assert image_formats.crc32c(header) == said
        numbers.add(struct.unpack_from("<Q", header, 8)[0])
        log_bytes, log_at = struct.unpack_from("<IQ", header, 68)
        assert not any(data[log_at : log_at + log_bytes])
    assert numbers == {1, 2}


def test_a_disk_that_holds_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(file: BinaryIO, _: uuid.UUID) -> None:
        file.seek(-5, os.SEEK_END)
        file.write(b"wrong")

    monkeypatch.setitem(image_formats._IDENTIFY, "vdi", spoil)
    with pytest.raises(DiskImageBroken, match="does not hold what the raw image holds"):
        image_formats.make([built(tmp_path)], ["vdi"])


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_disk_of_the_format_gets_no_identity(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"something else".ljust(300 * 1024, b"\0"))
    with path.open("r+b") as file, pytest.raises(DiskImageBroken, match="qemu-img made"):
        image_formats._IDENTIFY[name](file, uuid.UUID(int=0, version=4))


def tool(folder: Path, text: str) -> None:
    """A program qemu-img of our own."""
    folder.mkdir()
    (folder / "qemu-img").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "qemu-img").chmod(0o755)


def test_a_full_disk_is_called_one_and_nothing_raw_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path / "bin", "echo 'qemu-img: error while writing: No space left on device' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(DiskFull):
        image_formats.make([built(tmp_path / "out")], ["qcow2"])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x-combined-efi.img.gz"]


def test_any_other_failure_shows_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path / "bin", "echo 'Unknown option' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(process.ProcessFailed, match="Unknown option"):
        image_formats.make([built(tmp_path / "out")], ["vdi"])


def test_without_qemu_img_a_build_of_such_disks_does_not_begin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "find", lambda _: None)
    image_formats.require(["img", "rootfs"])
    with pytest.raises(process.ToolMissing) as caught:
        image_formats.require(["img", "vdi"])
    assert caught.value.package == "qemu-utils"


# -- reading images ----------------------------------------------------------------------------------------------------


def test_a_long_run_of_zeros_is_unpacked_in_small_pieces(tmp_path: Path) -> None:
    path = tmp_path / "zeros.img.gz"
    path.write_bytes(gzip.compress(bytes(64 * MIB), 9) + gzip.compress(b"more") + b"metadata")
    pieces = [len(piece) for piece in image_disk.unpacked(path)]
    assert sum(pieces) == 64 * MIB + 4
    assert max(pieces) <= MIB


def archive(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 10_000
            tar.addfile(entry, io.BytesIO(os.urandom(10_000)))
    return path


def test_a_root_file_system_archive_is_read_to_its_end(tmp_path: Path) -> None:
    whole = archive(tmp_path / "a.tar.gz", "./etc/openwrt_release", "./etc/banner")
    assert image_disk.inspect_archive(whole) == 20_000
    whole.write_bytes(whole.read_bytes()[:12_000])
    with pytest.raises(DiskImageBroken, match="no whole archive"):
        image_disk.inspect_archive(whole)
    with pytest.raises(DiskImageBroken, match="no /etc/openwrt_release"):
        image_disk.inspect_archive(archive(tmp_path / "b.tar.gz", "./etc/banner"))


# -- through the pipeline ----------------------------------------------------------------------------------------------


def build(root: Path, formats: str, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    text = PROFILE.replace("{rootfs_mib: 64}", f"{{rootfs_mib: 64, formats: {formats}}}")
    workspace = Workspace.at(workspace_folder(root / "ws", text))
    loaded = load.load(workspace, "bakery")
    builder = sources.OpenWrtBuilder(fake(root / "ib"))
    (made,) = pipeline.build(workspace, loaded, ["lb1"], builder)
    return made.artifact


def test_only_the_wanted_files_are_kept_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build(tmp_path, "[rootfs, vhdx, qcow2]", monkeypatch)
    assert [i.format for i in made.record.images] == ["rootfs", "vhdx", "qcow2"]
    assert made.image.name.endswith("-combined-efi.vhdx")  # what is booted is a disk
    assert not list(made.folder.glob("*.img*"))
    assert made.verify() == []
    assert re.fullmatch(r"\d+\.\d+.*", made.record.tools["qemu-img"])
    assert made.record.inputs["disks"] == {name: image_formats.OPTIONS[name] for name in ("vhdx", "qcow2")}
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o644 for p in made.folder.iterdir())


def test_an_archive_that_was_not_made_is_missed(tmp_path: Path) -> None:
    with pytest.raises(ImageMissing, match=r"made no rootfs\.tar\.gz image"):
        driver(tmp_path, mode="no-archive").image(request(tmp_path, archive=True), tmp_path / "out")
    made = driver(tmp_path / "whole").image(request(tmp_path, archive=True), tmp_path / "out2")
    assert [i.format for i in made.images] == ["img", "rootfs"]


def test_the_lab_says_why_it_makes_no_images_of_32_bits(tmp_path: Path) -> None:
    text = PROFILE.replace("release:", "device: x86\nrelease:")
    workspace = Workspace.at(workspace_folder(tmp_path / "ws", text))
    loaded = load.load(workspace, "bakery")
    with pytest.raises(sources.LabUnavailable, match="Debian has no kernel of 32 bits any more") as caught:
        pipeline.build(workspace, loaded, ["lb1"], sources.choose("lab", None, workspace, loaded.profile))
    assert "--builder openwrt" in caught.value.fix


def test_another_format_makes_an_image_stale_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, "img", monkeypatch)
    workspace = Workspace.at(tmp_path / "ws")
    profile = tmp_path / "ws/profiles/bakery.yaml"
    profile.write_text(profile.read_text().replace("formats: img", "formats: [img, vdi]"))
    loaded = load.load(workspace, "bakery")
    (planned,) = plan.plan(workspace, loaded, ["lb1"], sources.OpenWrtBuilder(tmp_path / "ib"))
    assert "image.formats: img → img vdi" in planned.reasons


def test_instructions_that_would_read_differently_make_an_image_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path, "img", monkeypatch)
    workspace = Workspace.at(tmp_path / "ws")
    builder = sources.OpenWrtBuilder(tmp_path / "ib")
    assert plan.plan(workspace, load.load(workspace, "bakery"), ["lb1"], builder)[0].up_to_date
    own = tmp_path / "ws/templates/beside/FLASH.md.j2"
    own.parent.mkdir(parents=True)
    own.write_text("{{ header | comment }}: ask the network team\n")
    (planned,) = plan.plan(workspace, load.load(workspace, "bakery"), ["lb1"], builder)
    assert planned.reasons == ("FLASH.md would read differently now",)


@pytest.mark.parametrize(
    ("platform", "formats", "format_", "bus"),
    [
        ("kvm", ("qcow2", "img"), "qcow2", "virtio"),
        ("vmware", ("vmdk",), "vmdk", "sata"),
        ("virtualbox", ("rootfs", "vdi"), "vdi", "sata"),
        ("hyperv", ("vhdx",), "vhdx", "ide"),
        ("bare", ("img",), "raw", "virtio"),
    ],
)
def test_the_first_disk_is_booted_on_its_platforms_controller(
    platform: str, formats: tuple[str, ...], format_: str, bus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PROFILE.replace(
        "image: {rootfs_mib: 64}", f"platform: {platform}\nimage: {{formats: [{', '.join(formats)}]}}"
    )
    loaded = load.load(Workspace.at(workspace_folder(tmp_path / "ws", text)), "bakery")
    files = tuple(ImageFile(f"x.{f}", "k", "f", 1, "", None if f == "rootfs" else 1, format=f) for f in formats)
    nodes = {node: Artifact(tmp_path, _record(files)) for node in ("lb1", "lb2")}
    first, last = boot_images(loaded.profile, nodes).values()
    assert (first.format, first.bus, first.path.suffix) == (
        format_,
        bus,
        f".{formats[-1] if 'vdi' in formats else formats[0]}",
    )
    assert (first.firmware, last.firmware) == ("bios", "efi")


@pytest.mark.parametrize(("device", "firmware"), [("x86", "bios"), ("x86-64", "efi"), ("armsr-armv8", "efi")])
def test_the_last_node_is_booted_by_efi_if_its_machine_has_the_same_bits(
    device: str, firmware: str, tmp_path: Path
) -> None:
    text = PROFILE.replace("image: {rootfs_mib: 64}", f"device: {device}\nimage: {{formats: [qcow2]}}")
    loaded = load.load(Workspace.at(workspace_folder(tmp_path / "ws", text)), "bakery")
    built = Artifact(tmp_path, _record((ImageFile("x.qcow2", "k", "f", 1, "", 1, format="qcow2"),)))
    (image,) = boot_images(loaded.profile, {"lb2": built}).values()
    assert (image.firmware, image.format) == (firmware, "qcow2")


def _record(files: tuple[ImageFile, ...]) -> Record:
    class Only:
        images = files

    return cast(Record, Only())
