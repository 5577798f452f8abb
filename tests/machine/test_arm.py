"""ARM without starting anything: the command lines, what is refused, what is missing, which file is booted how."""

from __future__ import annotations

import gzip
import re
import tracemalloc
from pathlib import Path

import pytest

from ndakit.core import process
from ndakit.core.process import ToolMissing
from ndakit.core.workspace import Workspace
from ndakit.image import disk
from ndakit.imagebuilder import output
from ndakit.imagebuilder import request as imagebuilder_request
from ndakit.imagebuilder.request import ImageRequest
from ndakit.load import load
from ndakit.machine import accelerator, disks
from ndakit.machine.accelerator import TCG, Accelerator
from ndakit.machine.boot_image import BootImage
from ndakit.machine.disks import EfiMissing
from ndakit.machine.spec import Disk, DiskFile, EfiFirmware, MachineImpossible, Nic, Runtime, VmSpec, qemu_argv
from ndakit.machine.vm import Vm
from places import DATA

KERNEL = Path("/boot/zImage")


def runtime(*files: DiskFile, efi: EfiFirmware | None = None) -> Runtime:
    return Runtime(Path("/usr/bin/qemu-system-arm"), files, 7, 8, Path("/r/box.firmware.log"), efi=efi)


def test_the_command_line_of_a_board_with_a_kernel_and_a_disk() -> None:
    image = BootImage(
        Path("/cache/disk"), "bios", architecture="arm", memory_mib=128, kernel=KERNEL, initrd=Path("/boot/initrd"),
        append="root=/dev/vda",
    )  # fmt: skip
    spec = image.machine("box", (Nic("eth0", "52:54:00:00:00:01"),))
    argv = qemu_argv(spec, TCG, runtime(DiskFile(Path("/r/disk0.qcow2"), "qcow2", throw_away=True)))
    assert argv == [
        *("/usr/bin/qemu-system-arm", "-name", "box", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "virt,highmem=off", "-cpu", "cortex-a15", "-accel", "tcg,tb-size=128", "-m", "128", "-smp", "1"),
        *("-rtc", "base=utc", "-chardev", "socket,id=qmp,fd=7", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", "socket,id=console,fd=8", "-serial", "chardev:console"),
        *("-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"),
        *("-drive", "if=none,id=disk0,format=qcow2,file=/r/disk0.qcow2,cache=unsafe"),
        *("-device", "virtio-blk-pci,drive=disk0"),
        *("-device", "virtio-net-pci,id=eth0,mac=52:54:00:00:00:01,romfile=,speed=1000,duplex=full"),
        *("-kernel", "/boot/zImage", "-initrd", "/boot/initrd", "-append", "root=/dev/vda"),
    ]


def test_the_command_line_of_a_64_bit_board_with_efi() -> None:
    spec = VmSpec("box", 256, (Disk(Path("d")),), firmware="efi", architecture="aarch64")
    file = DiskFile(Path("/r/d.qcow2"), "qcow2", throw_away=True)
    argv = qemu_argv(spec, TCG, runtime(file, efi=EfiFirmware(Path("/f/CODE.fd"), Path("/r/vars.fd"))))
    assert argv[argv.index("-machine") : argv.index("-accel")] == ["-machine", "virt", "-cpu", "cortex-a57"]
    assert "if=pflash,unit=0,format=raw,readonly=on,file=/f/CODE.fd" in argv
    assert "virtio-blk-pci,drive=disk0,bootindex=0" in argv
    assert not [word for word in argv if "isa-" in word]


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("ARM board with BIOS", lambda: VmSpec("a", 128, (Disk(Path("d")),), architecture="arm")),
        ("PC's devices", lambda: VmSpec("a", 128, (Disk(Path("d"), bus="sata"),), firmware="efi", architecture="arm")),
        ("PC's devices", lambda: VmSpec("a", 128, kernel=KERNEL, architecture="aarch64", vga=True)),
        ("architecture", lambda: VmSpec("a", 128, kernel=KERNEL, architecture="mips")),  # type: ignore[arg-type]  # wrong on purpose
    ],
)
def test_a_board_that_cannot_be_is_refused(what: str, make: object) -> None:
    assert callable(make)
    with pytest.raises(MachineImpossible, match=what):
        make()


def test_kvm_is_for_this_machine_s_cpu_only(tmp_path: Path) -> None:
    kvm = Accelerator("kvm", "works")
    assert accelerator.suited(kvm, "x86_64") is kvm
    machine = Vm(VmSpec("a", 128, kernel=KERNEL, architecture="arm"), tmp_path, kvm)
    assert (machine.accelerator.name, machine.accelerator.reason) == ("tcg", "arm is not this machine's CPU")


def test_qemu_for_arm_that_is_missing_is_an_error_that_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find", lambda tool: None)
    with pytest.raises(ToolMissing) as caught:
        accelerator.find_qemu("qemu-system-aarch64")
    assert "apt-get install qemu-system-arm" in caught.value.fix


@pytest.mark.parametrize("architecture", ["arm", "aarch64"])
def test_firmware_for_arm_that_is_missing_names_its_package(
    tmp_path: Path, architecture: accelerator.Architecture
) -> None:
    with pytest.raises(EfiMissing) as caught:
        disks.efi(tmp_path, "x", architecture, places=[("/nonexistent/CODE.fd", "/nonexistent/VARS.fd")])
    assert caught.value.fix == f"apt-get install qemu-efi-{architecture}"


@pytest.mark.parametrize(
    ("said", "wanted", "same"),
    [
        ("x86/64", "x86/64", True),
        ("kirkwood/generic", "kirkwood/generic", True),
        ("kirkwood", "kirkwood/generic", True),  # up to 22.03
        ("x86", "x86/64", False),
        ("armsr/armv7", "armsr/armv8", False),
    ],
)
def test_a_target_without_sub_targets_lies_in_the_folder_generic(said: str, wanted: str, same: bool) -> None:
    assert output.same_target(said, wanted) is same


def request(target: str) -> ImageRequest:
    return ImageRequest("generic", target, (), (), Path("/f"), "x", 256)


def test_arm_machines_wait_at_grub_no_longer_than_pcs_and_get_no_second_disk() -> None:
    knobs = imagebuilder_request.wanted_knobs(request("armsr/armv8"))
    assert (knobs["CONFIG_GRUB_TIMEOUT"], knobs["CONFIG_VMDK_IMAGES"]) == ("1", False)
    assert not [k for k in imagebuilder_request.wanted_knobs(request("kirkwood/generic")) if "GRUB" in k]


@pytest.mark.parametrize(
    ("device", "release", "target", "name"),
    [
        ("dockstar", "19.07.10", "kirkwood/generic", "seagate_dockstar"),
        ("dockstar", "25.12.5", "kirkwood/generic", "seagate_dockstar"),
        ("armsr-armv8", "23.05.6", "armsr/armv8", "generic"),
        ("armsr-armv7", "25.12.5", "armsr/armv7", "generic"),
    ],
)
def test_each_device_has_its_target_and_its_name_there(
    tmp_path: Path, device: str, release: str, target: str, name: str
) -> None:
    text = (DATA / "valid/dockstar.yaml").read_text()
    text = text.replace("release: 24.10.8", f"release: {release}").replace("device: dockstar", f"device: {device}")
    if release < "21":  # its SSH server takes no other key
        key = (DATA / "golden/fw3-1907/lb1/etc/dropbear/authorized_keys").read_text().splitlines()[1]
        text = re.sub(r"ssh-ed25519 \S+ me", key, text)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/dockstar.yaml").write_text(text)
    profile = load.load(Workspace(tmp_path), "dockstar").profile
    assert (profile.target, profile.imagebuilder_device) == (target, name)


def test_a_disk_with_a_large_boot_partition_is_looked_into_without_holding_it(tmp_path: Path) -> None:
    """armsr's boot partition has 128 MiB."""
    root = 129 * 1024 * 1024
    table = bytearray(512)
    table[446 + 16 + 8 : 446 + 16 + 16] = (root // 512).to_bytes(4, "little") + (8192).to_bytes(4, "little")
    table[510:512] = b"\x55\xaa"
    image = tmp_path / "disk.img.gz"
    with gzip.open(image, "wb", compresslevel=1) as out:
        out.write(table)
        for _ in range(128):
            out.write(bytes(1024 * 1024))
        out.write(bytes(1024 * 1024 - 512) + b"hsqs" + bytes(36) + (4000).to_bytes(8, "little") + bytes(1 << 22))
    tracemalloc.start()
    facts = disk.inspect(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (facts.root_offset, facts.filesystem, facts.root_payload) == (root, "squashfs", 4000)
    assert peak < 16 * 1024 * 1024
