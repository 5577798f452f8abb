"""A balancer's built disk as a machine boots it: firmware, disk format and controller of the profile's platform."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ndakit.image.artifacts import Artifact
from ndakit.machine import flash_boot
from ndakit.machine.accelerator import Architecture
from ndakit.machine.spec import Bus, Disk, DiskFormat, Nic, VmSpec
from ndakit.model import Profile
from ndakit.model.host import Platform


@dataclass(frozen=True)
class BootImage:
    """A balancer's disk as it was built, and how its platform would start it."""

    path: Path
    firmware: Literal["efi", "bios"]
    """How it starts; `bios` also where the kernel is started directly."""
    format: DiskFormat = "raw"
    bus: Bus = "virtio"
    architecture: Architecture = "x86_64"
    memory_mib: int = 256
    kernel: Path | None = None
    """A kernel to start directly, with its initramfs and options; None: from the disk."""
    initrd: Path | None = None
    append: str = ""

    def machine(self, name: str, nics: tuple[Nic, ...]) -> VmSpec:
        """The virtual machine for it: these network cards, this disk on a throw-away layer, and nothing else."""
        return VmSpec(
            name,
            self.memory_mib,
            disks=(Disk(self.path, self.format, self.bus),),
            nics=nics,
            firmware=self.firmware,
            kernel=self.kernel,
            initrd=self.initrd,
            append=self.append,
            architecture=self.architecture,
        )


def mac_of(*words: str) -> str:
    """A locally administered MAC address from names alone, so that every run has the same."""
    digest = hashlib.sha256("/".join(words).encode()).hexdigest()
    return ":".join(["52", "54", *(digest[i : i + 2] for i in range(0, 8, 2))])


_FORMATS: Mapping[str, DiskFormat] = {"img": "raw", "qcow2": "qcow2", "vmdk": "vmdk", "vdi": "vdi", "vhdx": "vhdx"}


# The controllers that `sidecars` gives the machines of these platforms; Hyper-V's and Xen's own are not in QEMU.
_BUSES: Mapping[Platform, Bus] = {
    "bare": "virtio",
    "kvm": "virtio",
    "vmware": "sata",
    "hyperv": "ide",
    "virtualbox": "sata",
    "xen": "ide",
}


# Targets that are no PCs: the CPU of QEMU's board for them, and its memory in MiB (a Dockstar has 128; the lab's own
# initramfs and overlay take some of the rest).
_BOARDS: Mapping[str, tuple[Architecture, int]] = {
    "armsr/armv8": ("aarch64", 256),
    "armsr/armv7": ("arm", 256),
    "kirkwood/generic": ("arm", 128),
}


def boot_images(profile: Profile, built: dict[str, Artifact]) -> dict[str, BootImage]:
    """How each node is booted: the first disk of image.formats, on its platform's kind of controller.

    An efi image boots both ways, so the last node takes EFI and the others BIOS; the EFI of virtual machines has 64
    bits, so images of 32 bits are all booted by BIOS.
    """
    if profile.target in _BOARDS:
        return {n: _board_image(profile.target, a) for n, a in built.items()}
    last = tuple(built)[-1]
    efi = profile.image.firmware == "efi" and profile.target == "x86/64"
    bus = _BUSES[profile.platform]
    return {
        n: BootImage(a.image, "efi" if efi and n == last else "bios", _FORMATS[a.first.format], bus)
        for n, a in built.items()
    }


def _board_image(target: str, built: Artifact) -> BootImage:
    """How an image for ARM is booted: by EFI, or, one for flash, taken apart. Raises NotBootable."""
    architecture, memory_mib = _BOARDS[target]
    if target.startswith("armsr/"):
        format_ = _FORMATS[built.first.format]
        return BootImage(built.image, "efi", format_, architecture=architecture, memory_mib=memory_mib)
    files = flash_boot.take_apart(built.image)
    return BootImage(
        files.disk, "bios", architecture=architecture, memory_mib=memory_mib, kernel=files.kernel, initrd=files.initrd,
        append=flash_boot.KERNEL_OPTIONS,
    )  # fmt: skip
