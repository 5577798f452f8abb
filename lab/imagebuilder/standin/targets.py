"""The targets the lab has a stand-in for: OpenWrt's names of them, and which Debian architecture takes their place.

Owns what differs between machines; what differs between releases is in `families`. Names: openwrt/openwrt
`target/linux/{x86,armsr,kirkwood}/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

_COMMON = "e2fsprogs mkf2fs"
_ARMSR = "kmod-amazon-ena kmod-e1000e kmod-vmxnet3 partx-utils"


@dataclass(frozen=True)
class Target:
    """One target with its only device here. `start` is how its images are started: a disk with GRUB, or flash."""

    name: str
    device: str
    title: str
    architecture: str
    start: Literal["pc", "efi", "flash"]
    debian: str
    """Debian's architecture of the programs."""
    triplet: str
    """The name of its folder of libraries."""
    loader: str
    """Where its programs look for their loader; in the root, without the first slash."""
    kernel: str
    """The Debian package of the kernel."""
    kernel_debian: str
    serial: str
    default_packages: str = _COMMON
    device_packages: str = ""
    supported: tuple[str, ...] = ()
    kernel_mib: int = 16
    grub: str = ""
    """GRUB's platform for EFI, and the file name that firmware looks for."""
    efi_name: str = ""
    kernel_options: str = ""

    @property
    def x86(self) -> bool:
        """True for PCs: they have BIOS, and hypervisors with drivers of their own."""
        return self.start == "pc"

    @property
    def board(self) -> str:
        """OpenWrt's BOARD: the target without its sub-target."""
        return self.name.partition("/")[0]


TARGETS: Mapping[str, Target] = {
    t.name: t
    for t in (
        Target(
            "x86/64",
            "generic",
            "Generic x86/64",
            "x86_64",
            start="pc",
            debian="amd64",
            triplet="x86_64-linux-gnu",
            loader="lib64/ld-linux-x86-64.so.2",
            kernel="linux-image-cloud-amd64",
            kernel_debian="amd64",
            serial="ttyS0",
            supported=("generic",),
            grub="x86_64-efi",
            efi_name="BOOTX64.EFI",
            # Several guests at once crash this kernel in cmpxchg16b under QEMU's emulation; its tests of its own
            # ciphers take half a second there.
            # Programs that lie at the same addresses each time are translated less often: from the kernel on, a boot
            # took 6.6 s of a processor instead of 8.6 s.
            kernel_options="clearcpuid=cx16 cryptomgr.notests norandmaps",
        ),
        Target(
            "armsr/armv8",
            "generic",
            "Generic EFI Boot",
            "aarch64_generic",
            start="efi",
            debian="arm64",
            triplet="aarch64-linux-gnu",
            loader="lib/ld-linux-aarch64.so.1",
            kernel="linux-image-cloud-arm64",
            kernel_debian="arm64",
            serial="ttyAMA0",
            device_packages=_ARMSR,
            kernel_mib=128,
            grub="arm64-efi",
            efi_name="BOOTAA64.EFI",
        ),
        Target(
            "armsr/armv7",
            "generic",
            "Generic EFI Boot",
            "arm_cortex-a15_neon-vfpv4",
            start="efi",
            debian="armhf",
            triplet="arm-linux-gnueabihf",
            loader="lib/ld-linux-armhf.so.3",
            kernel="linux-image-armmp",
            kernel_debian="armhf",
            serial="ttyAMA0",
            device_packages=_ARMSR,
            kernel_mib=128,
            grub="arm-efi",
            efi_name="BOOTARM.EFI",
        ),
        Target(
            "kirkwood/generic",
            "seagate_dockstar",
            "Seagate FreeAgent Dockstar",
            "arm_xscale",
            start="flash",
            # Debian 13 has programs for ARMv5 and no kernel for it: QEMU's virtual ARMv7 board runs both.
            debian="armel",
            triplet="arm-linux-gnueabi",
            loader="lib/ld-linux.so.3",
            kernel="linux-image-armmp",
            kernel_debian="armhf",
            serial="ttyAMA0",
            default_packages="uboot-envtools kmod-usb2",
            device_packages="kmod-rtc-mv",
            supported=("seagate,dockstar", "dockstar"),
        ),
    )
}
