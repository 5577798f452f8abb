"""Cross-checks: which files are asked for, and whether the platform and the device can use them.

What an OpenWrt release or a device cannot make at all is found by `release` and `host`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ndakit.core.mistakes import KeyPath
from ndakit.model.host import Platform
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, error, warning

FORMATS: KeyPath = ("image", "formats")
DISKS = ("qcow2", "vmdk", "vdi", "vhdx")
"""The disks of virtual machines; they are made of a raw disk image."""
TAKES: Mapping[Platform, tuple[str, ...]] = {
    "bare": ("img",),
    "kvm": ("qcow2", "img"),
    "vmware": ("vmdk",),
    "hyperv": ("vhdx",),
    "virtualbox": ("vdi", "vmdk"),
    "xen": ("img", "qcow2"),
}
"""What each platform starts from without a conversion by hand, the best first."""
DISK_TARGETS = ("x86", "armsr", "armvirt")
"""OpenWrt targets whose images are disks with partitions (docs/facts.md, Targets and devices)."""


def formats(profile: Profile) -> Iterator[Finding]:
    """Files named twice, files that cannot be alone, and disks of a device that has none."""
    wanted = profile.image.formats
    for name in dict.fromkeys(wanted):
        if wanted.count(name) > 1:
            yield error("format-twice", f"image.formats names {name} twice", FORMATS, f"name {name} once")
    if set(wanted) == {"rootfs"}:
        yield error(
            "rootfs-alone", "a root file system archive alone boots nowhere, so that it could not be verified",
            FORMATS, "write image: {formats: [img, rootfs]}",
        )  # fmt: skip
    disks = [name for name in wanted if name in DISKS]
    if disks and profile.target.partition("/")[0] not in DISK_TARGETS:
        yield error(
            "format-of-device", f"{profile.device} starts from flash memory: there is no {disks[0]} of it", FORMATS,
            "write image: {formats: [img]}, or leave formats out", other=("device",),
        )  # fmt: skip


def platform(profile: Profile) -> Iterator[Finding]:
    """A platform that takes none of the files."""
    takes = TAKES[profile.platform]
    if profile.target.partition("/")[0] in DISK_TARGETS and not set(takes) & set(profile.image.formats):
        yield warning(
            "format-of-platform",
            f"platform {profile.platform} starts from {' or '.join(takes)}, and only "
            f"{', '.join(profile.image.formats)} is made",
            FORMATS, f"add {takes[0]} to image.formats", other=("platform",),
        )  # fmt: skip


def firmware(profile: Profile) -> Iterator[Finding]:
    """Hyper-V's machines of generation 2 have EFI only, of 64 bits."""
    if profile.platform != "hyperv" or not profile.target.startswith("x86/"):
        return
    if profile.image.firmware == "bios":
        yield warning(
            "generation-1", "only Hyper-V machines of generation 1 boot a BIOS image", ("image", "firmware"),
            "write firmware: efi, which boots in both generations, or make a machine of generation 1",
            other=("platform",),
        )  # fmt: skip
    elif profile.target != "x86/64":
        yield warning(
            "generation-1", f"only Hyper-V machines of generation 1 boot {profile.device}: the EFI of generation 2 has "
            "64 bits",
            ("device",), "write device: x86-64, or make a machine of generation 1",
            other=("platform",),
        )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (formats, platform, firmware)
