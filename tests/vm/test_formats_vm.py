"""Every format of an image holds the same disk, and starts in QEMU to HAProxy answering: with either firmware, and on
each controller of a hypervisor.

One build makes all disks with an EFI image, a second one an ext4 root with a BIOS image. libvirt's own schema judges
the descriptions of the machine.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import pytest

from imagebuilder_fakes import PROFILE
from ndakit.build import pipeline
from ndakit.core.deadline import Deadline
from ndakit.core.workspace import Workspace, cache
from ndakit.image.artifacts import Artifact
from ndakit.imagebuilder import sources
from ndakit.load import load
from ndakit.machine import accelerator, disks
from ndakit.machine.spec import Bus, Disk, DiskFormat, Nic, VmSpec
from ndakit.machine.vm import Vm, launch
from places import LAB

BOOT_S = 300.0
FORMATS = "formats: [img, qcow2, vmdk, vdi, vhdx, rootfs]"


def build(folder: Path, image: str) -> Artifact:
    (folder / "profiles").mkdir(parents=True)
    text = PROFILE.replace("rootfs_mib: 64", f"rootfs_mib: 128, {image}").replace("release:", "platform: kvm\nrelease:")
    (folder / "profiles/bakery.yaml").write_text(text)
    workspace = Workspace.at(folder)
    loaded = load.load(workspace, "bakery")
    (made,) = pipeline.build(workspace, loaded, ["lb1"], sources.choose("lab", None, workspace, loaded.profile))
    assert made.artifact.verify() == []
    return made.artifact


@pytest.fixture(scope="module")
def squashfs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """All formats of an EFI image."""
    return build(tmp_path_factory.mktemp("squashfs"), f"firmware: efi, {FORMATS}")


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A BIOS image with a writable root."""
    return build(tmp_path_factory.mktemp("ext4"), "firmware: bios, filesystem: ext4, formats: qcow2")


def file(built: Artifact, format_: str) -> Path:
    (image,) = (i for i in built.record.images if i.format == format_)
    return built.folder / image.name


def answers(vm: Vm) -> None:
    """Wait until HAProxy answers at the VIP: with 503, for there are no servers."""
    vm.console.activate(Deadline(BOOT_S, "the root shell"))
    deadline = Deadline(BOOT_S, "HAProxy at 192.168.0.10")
    while (
        "503"
        not in vm.console.run("wget -q -O - http://192.168.0.10/ 2>&1 || wget -O - http://192.168.0.10/ 2>&1").stdout
    ):
        deadline.check()
        time.sleep(0.3)


def machine(disk: Disk, firmware: Literal["bios", "efi"]) -> VmSpec:
    nics = (Nic("eth0", "52:54:00:00:f0:01"),)
    return VmSpec("formats", 192, (disk,), nics, firmware=firmware, vga=True)


@pytest.mark.parametrize(
    ("kind", "format_", "bus", "firmware"),
    [
        ("img", "raw", "virtio", "bios"),
        ("img", "raw", "sata", "efi"),
        ("vmdk", "vmdk", "sata", "bios"),
        ("vhdx", "vhdx", "ide", "bios"),
    ],
)
def test_an_image_starts_to_haproxy_answering_with_each_firmware_and_on_each_controller(
    squashfs: Artifact, tmp_path: Path, kind: str, format_: DiskFormat, bus: Bus, firmware: Literal["bios", "efi"]
) -> None:
    disk = Disk(file(squashfs, kind), format_, bus)
    with launch(machine(disk, firmware), tmp_path, accelerator.probe()) as vm:
        answers(vm)
        mounts = vm.console.run("cat /proc/mounts").stdout
    assert re.search(r"^\S+ /rom squashfs ro", mounts, re.MULTILINE)


@pytest.mark.parametrize("format_", ["qcow2", "vmdk", "vdi", "vhdx"])
def test_every_format_holds_the_disk_that_starts(squashfs: Artifact, tmp_path: Path, format_: DiskFormat) -> None:
    raw = disks.unpack(file(squashfs, "img"), cache=tmp_path)
    compare: list[str | Path] = ["qemu-img", "compare", "-f", "raw", "-F", format_, raw, file(squashfs, format_)]
    assert subprocess.run(compare, check=False, capture_output=True).returncode == 0
    with raw.open("r+b") as disk:
        disk.write(b"another")
    assert subprocess.run(compare, check=False, capture_output=True).returncode == 1


def test_an_ext4_root_with_a_bios_image_starts_too(ext4: Artifact, tmp_path: Path) -> None:
    with launch(machine(Disk(file(ext4, "qcow2"), "qcow2"), "bios"), tmp_path, accelerator.probe()) as vm:
        answers(vm)
        assert re.search(r"^\S+ / ext4 rw", vm.console.run("cat /proc/mounts").stdout, re.MULTILINE)


def judge(description: Path) -> subprocess.CompletedProcess[str]:
    """xmllint with libvirt's schema of domains, both from Debian's packages, in a root of their own."""
    argv: list[str | Path] = [
        sys.executable,
        "-B",
        LAB / "debian.py",
        "root",
        "--cache",
        cache() / "lab",
        "--name",
        "libvirt",
    ]
    done = subprocess.run([*argv, "libvirt-common", "libxml2-utils"], check=True, capture_output=True, text=True)
    root = Path(done.stdout.strip())
    schema = root / "usr/share/libvirt/schemas/domain.rng"
    loader: list[str | Path] = [
        root / "lib64/ld-linux-x86-64.so.2",
        "--library-path",
        root / "usr/lib/x86_64-linux-gnu",
    ]
    words = [*loader, root / "usr/bin/xmllint", "--noout", "--relaxng", schema, description]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_libvirt_takes_the_description_of_the_machine(squashfs: Artifact, ext4: Artifact, tmp_path: Path) -> None:
    for built in (squashfs, ext4):
        said = judge(built.folder / "bakery-lb1.libvirt.xml")
        assert said.returncode == 0, said.stderr
    wrong = tmp_path / "wrong.xml"
    wrong.write_text((squashfs.folder / "bakery-lb1.libvirt.xml").read_text().replace('bus="virtio"', 'bus="nonsense"'))
    assert judge(wrong).returncode != 0
