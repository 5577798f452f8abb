"""What lies beside an image for the one who puts it somewhere: FLASH.md, and descriptions of the virtual machine.

Owns which platform gets which instructions, files, cards, controllers and firmware. The texts are templates
(templates/beside); they follow from the profile and the record alone, so that the same image has the same texts.
What the disks are is the business of `formats`, how the lab's own machines are made that of `machine.spec`.

libvirt: formatdomain; OVF: DMTF DSP0243 1.1 with VMware's names of cards and controllers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ndakit.core.names import device_name
from ndakit.image.artifacts import Artifact, ImageFile
from ndakit.model import Profile
from ndakit.model.capacity import capacity_of
from ndakit.model.profile import FLASH_TARGETS
from ndakit.model.rules.image import DISK_TARGETS
from ndakit.render import render

FLASH = "FLASH.md"
VIRTUAL_SWITCHES: Mapping[str, str] = {
    "kvm": "a Linux bridge",
    "xen": "a Linux bridge",
    "vmware": "a vSwitch",
    "virtualbox": "a bridged adapter",
    "hyperv": "a Hyper-V switch",
}
"""Platform → what its network cards are plugged into. A bridge keeps LACP to itself (IEEE 802.1Q, 8.6.3; Linux's
group_fwd_mask does not take it), and so do the others."""


@dataclass(frozen=True)
class Card:
    """A network card: the kernel's name, what it is for, one word for that, and a name for a bridge of the host."""

    name: str
    purpose: str
    label: str
    bridge: str


@dataclass(frozen=True)
class BondNote:
    """A bond: its device, its network, its cards, and whether it speaks LACP."""

    device: str
    network: str
    cards: tuple[str, ...]
    lacp: bool


@dataclass(frozen=True)
class DiskToOpen:
    """A disk as a hypervisor opens it; `packed` is the file to unpack first, empty if there is none."""

    name: str
    format: str
    packed: str = ""


@dataclass(frozen=True)
class MachineFacts:
    """A node with its files, as the templates see it."""

    hostname: str
    title: str
    warning: str
    platform: str
    target: str
    firmware: str
    """`efi` or `bios`: what a virtual machine is told to start by."""
    efi32: bool
    """True if its EFI program is one of 32 bits, which the EFI of hypervisors does not start."""
    memory_mib: int
    address: str
    ssh: int
    """The TCP port of the node's SSH server."""
    ssh_sha1_only: bool
    """True if SSH clients of today have to be told to talk to it."""
    files: tuple[ImageFile, ...]
    cards: tuple[Card, ...]
    bonds: tuple[BondNote, ...] = ()

    @property
    def switch_of_host(self) -> str:
        """What the platform's virtual machines are plugged into, which no LACP and no lost link of the host's own cards
        comes through; empty for a real machine."""
        return VIRTUAL_SWITCHES.get(self.platform, "")

    @property
    def lacp(self) -> bool:
        """True if a bond needs a switch that speaks LACP."""
        return any(bond.lacp for bond in self.bonds)

    @property
    def disks(self) -> bool:
        """True if the images are disks; small devices start from flash memory."""
        return self.target.partition("/")[0] in DISK_TARGETS

    @property
    def x86(self) -> bool:
        """True if the hypervisors of PCs run it."""
        return self.target.startswith("x86/")

    @property
    def bits(self) -> int:
        """32 or 64."""
        return 64 if self.target in ("x86/64", "armsr/armv8") else 32

    def of(self, *formats: str) -> ImageFile | None:
        """The first file of one of these formats."""
        return next((f for wanted in formats for f in self.files if f.format == wanted), None)

    @property
    def disk_bytes(self) -> int:
        """The size of the disk; 0 where there is none."""
        return next((f.disk_bytes for f in self.files if f.disk_bytes), 0)

    @property
    def bare(self) -> ImageFile | None:
        """The disk to write to a real machine."""
        return self.of("img") if self.disks and self.platform == "bare" else None

    @property
    def flash(self) -> bool:
        """True for devices that are flashed by their boot loader."""
        return not self.disks

    @property
    def ubi(self) -> ImageFile | None:
        """The file with the whole content of the flash's UBI partition, where a device has that."""
        ours = self.target.partition("/")[0] in FLASH_TARGETS
        return next((f for f in self.files if ours and f.kind == "factory"), None)

    @property
    def kvm_disk(self) -> DiskToOpen | None:
        """What libvirt and Proxmox start from."""
        if not self.x86:
            return None
        if qcow2 := self.of("qcow2"):
            return DiskToOpen(qcow2.name, "qcow2")
        img = self.of("img") if self.platform == "kvm" else None
        return DiskToOpen(unpacked(img.name), "raw", packed=img.name) if img else None

    @property
    def xen(self) -> DiskToOpen | None:
        """What Xen starts from."""
        img = self.of("img") if self.x86 and self.platform == "xen" else None
        return DiskToOpen(unpacked(img.name), "raw", packed=img.name) if img else None

    @property
    def vmdk(self) -> ImageFile | None:
        """The disk for VMware."""
        return self.of("vmdk") if self.x86 else None

    @property
    def vdi(self) -> ImageFile | None:
        """The disk for VirtualBox."""
        return self.of("vdi") if self.x86 else None

    @property
    def vhdx(self) -> ImageFile | None:
        """The disk for Hyper-V."""
        return self.of("vhdx") if self.x86 else None

    @property
    def rootfs(self) -> ImageFile | None:
        """The root file system as an archive."""
        return self.of("rootfs")

    @property
    def update(self) -> ImageFile | None:
        """The file that sysupgrade takes."""
        if self.disks:
            return self.of("img")
        return next((f for f in self.files if f.kind == "sysupgrade"), None)

    @property
    def networks(self) -> tuple[str, ...]:
        """The cards' labels, each once."""
        return tuple(dict.fromkeys(card.label for card in self.cards))

    @property
    def libvirt_name(self) -> str:
        """The file with libvirt's description."""
        return f"{self.hostname}.libvirt.xml"

    @property
    def ovf_name(self) -> str:
        """The file to import into VMware."""
        return f"{self.hostname}.ovf"

    @property
    def ovf_system(self) -> tuple[int, str]:
        """The operating system in OVF's number (CIM_OperatingSystem) and in VMware's word."""
        return (101, "other3xLinux64Guest") if self.bits == 64 else (36, "other3xLinuxGuest")

    @property
    def ovf_card(self) -> str:
        """VMware's own card where its driver is in the image, else the one that everybody has."""
        return "VmxNet3" if self.platform == "vmware" else "E1000"

    @property
    def vbox_system(self) -> str:
        """VirtualBox's word for the operating system."""
        return "Linux_64" if self.bits == 64 else "Linux"

    @property
    def generation(self) -> int:
        """Hyper-V's generation: 2 starts by EFI of 64 bits only."""
        return 2 if self.firmware == "efi" else 1

    @property
    def pipe(self) -> str:
        """Where Hyper-V offers the serial console."""
        return f"\\\\.\\pipe\\{self.hostname}"

    @property
    def ssh_host(self) -> str:
        """The address as scp takes it."""
        return f"[{self.address}]" if ":" in self.address else self.address


def texts(
    profile: Profile, node: str, images: Sequence[ImageFile], warning: str | None, templates: Sequence[Path]
) -> dict[str, str]:
    """The texts beside a node's images by file name. Raises TemplateBroken."""
    machine = _machine(profile, node, images, warning)
    template_of = {FLASH: "FLASH.md.j2"}
    if machine.kvm_disk:
        template_of[machine.libvirt_name] = "libvirt.xml.j2"
    if machine.vmdk:
        template_of[machine.ovf_name] = "machine.ovf.j2"
    subject = f"{profile.name}, node {node}"
    return {
        name: render.single(templates, f"beside/{template}", subject, {"vm": machine}).content.decode()
        for name, template in sorted(template_of.items())
    }


def outdated(profile: Profile, node: str, built: Artifact, templates: Sequence[Path]) -> list[str]:
    """Which texts beside an image would read differently now, in words. Raises TemplateBroken."""
    now = texts(profile, node, built.record.images, built.record.warning, templates)
    return [f"{name} would read differently now" for name, text in now.items() if _read(built.folder / name) != text]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def unpacked(name: str) -> str:
    """What gunzip makes of a file name."""
    return name.removesuffix(".gz")


def _machine(profile: Profile, node: str, images: Sequence[ImageFile], warning: str | None) -> MachineFacts:
    of = f" ({profile.customer})" if profile.customer else ""
    kind = ", a lab image: for testing only" if warning else ""
    efi = profile.image.firmware == "efi"
    efi32 = efi and profile.target.startswith("x86/") and profile.target != "x86/64"
    addresses = next(iter(profile.nodes[node].addresses.values()))
    return MachineFacts(
        hostname=profile.hostname(node),
        title=f"Load balancer {node} of {profile.name}{of}, OpenWrt {profile.release} for {profile.target}{kind}",
        warning=warning or "",
        platform=profile.platform,
        target=profile.target,
        firmware="efi" if efi and not efi32 else "bios",
        efi32=efi32,
        memory_mib=capacity_of(profile).memory_mib,
        address=str(addresses[0]),
        ssh=profile.ssh_port,
        ssh_sha1_only=profile.release.ssh_sha1_only,
        files=tuple(images),
        cards=tuple(_card(profile, name) for name in profile.cards),
        bonds=tuple(
            BondNote(profile.base_device(name), name, net.nics, lacp=net.bond.mode == "802.3ad")
            for name, net in profile.networks.items()
            if net.bond is not None and profile.base_owner(name) == name
        ),
    )


def _card(profile: Profile, name: str) -> Card:
    users = {network: net for network, net in profile.networks.items() if name in net.nics}
    if not users:
        return Card(name, "nothing: the kernel counts cards without gaps, so it must be there", "unused", "br-unused")
    words = []
    for network, net in users.items():
        more = f", VLAN {net.vlan}" if net.vlan else ""
        joined = ", one card of its bond" if net.bond else ", one port of its bridge" if net.bridge else ""
        words.append(f"network {network}{more}{joined}")
    first = next(iter(users))
    return Card(name, "; ".join(words), re.sub(r"\W", "-", first), device_name("br", first))
