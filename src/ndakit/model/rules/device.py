"""Cross-checks: what the device does not have: disks, a choice of firmware, a second network card, hypervisors.

What its image files are is also checked by `image`, which release has it by `release`, and what its memory
holds by `capacity`. Sources: docs/facts.md (Targets and devices); openwrt/openwrt
`target/linux/kirkwood`, `target/linux/armsr`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ndakit.core.mistakes import KeyPath
from ndakit.model.host import Platform
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, error

DEVICE: KeyPath = ("device",)
USB_CARD = "kmod-usb-net"
"""The beginning of the names of packages with drivers of USB network cards."""
CARDS: Mapping[str, int] = {"dockstar": 1, "kirkwood/generic:seagate_dockstar": 1}
"""Devices with a fixed number of network cards (openwrt/openwrt `target/linux/kirkwood/base-files/etc/board.d`)."""
VIRTUAL_ARM: Mapping[str, tuple[Platform, ...]] = {
    "armsr/armv8": ("bare", "kvm", "vmware"),
    "armsr/armv7": ("bare", "kvm"),
}
"""Where ARM machines are known to run; their kernel's drivers are virtio's and VMware's."""


def flash(profile: Profile) -> Iterator[Finding]:
    """Keys of disks on a device that has flash, and platforms that have no such device."""
    if not profile.on_flash:
        return
    if profile.platform != "bare":
        yield error(
            "platform-of-device",
            f"{profile.device} is no virtual machine, so platform {profile.platform} is wrong",
            ("platform",), "write platform: bare, or leave it out", other=DEVICE,
        )  # fmt: skip
    if profile.image.filesystem != "squashfs":
        yield error(
            "filesystem-of-device", f"{profile.device} has squashfs images only", ("image", "filesystem"),
            "write filesystem: squashfs, or leave it out", other=DEVICE,
        )  # fmt: skip
    stated = profile.image.model_fields_set if "image" in profile.model_fields_set else set()
    if "firmware" in stated:
        yield error(
            "firmware-of-device",
            f"{profile.device} starts by its own boot loader: there is neither BIOS nor EFI to choose",
            ("image", "firmware"), "leave firmware out", other=DEVICE,
        )  # fmt: skip
    if "rootfs_mib" in stated:
        yield error(
            "size-of-device",
            f"{profile.device} has no root partition whose size could be chosen: all of its flash is used",
            ("image", "rootfs_mib"), "leave rootfs_mib out", other=DEVICE,
        )  # fmt: skip


def arm(profile: Profile) -> Iterator[Finding]:
    """ARM machines with EFI: their images know no BIOS, and not every hypervisor runs them."""
    platforms = VIRTUAL_ARM.get(profile.target)
    if platforms is None:
        return
    if profile.image.firmware == "bios":
        yield error(
            "firmware-of-device", f"{profile.device} has EFI images only", ("image", "firmware"),
            "write firmware: efi, or leave it out", other=DEVICE,
        )  # fmt: skip
    if profile.platform not in platforms:
        yield error(
            "platform-of-device", f"{profile.device} is not known to run on platform {profile.platform}",
            ("platform",), f"write platform: {' or '.join(platforms[1:])}, or device: x86-64", other=DEVICE,
        )  # fmt: skip


def cards(profile: Profile) -> Iterator[Finding]:
    """More network cards than the device has sockets for; USB cards need their driver."""
    has = CARDS.get(profile.device)
    if has is None or any(n.startswith(USB_CARD) and w == "add" for n, w in profile.image.packages.items()):
        return
    there = {f"eth{number}" for number in range(has)}
    for name, net in profile.networks.items():
        for number, nic in enumerate(net.nics):
            if nic not in there:
                yield error(
                    "card-of-device", f"{profile.device} has no network card {nic}, only {', '.join(sorted(there))}",
                    ("networks", name, "nics", number),
                    "use eth0, with a vlan for each network; or add the driver of a USB card, such as "
                    f"image: {{packages: {{{USB_CARD}-asix-ax88179: add}}}}",
                    other=DEVICE, also=(("image", "packages"),),
                )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (flash, arm, cards)
