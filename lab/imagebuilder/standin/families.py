"""What differs between OpenWrt releases: package manager, default packages, names of profiles and files.

Facts about the real ImageBuilders as of August 2026: openwrt/openwrt `target/imagebuilder/files/Makefile`,
`include/target.mk`, `target/linux/x86/Makefile`, `include/image.mk`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .targets import TARGETS, Target

_RELEASE = re.compile(r"^(?P<year>\d\d)\.(?P<month>\d\d)\.(?P<point>\d+)(-rc\d+)?$")
_COMMON = "base-files libc libgcc dnsmasq dropbear logd mtd netifd ppp ppp-mod-pppoe uci urandom-seed urngd"
_X86_GENERIC = "kmod-bnx2 kmod-e1000e kmod-e1000 kmod-forcedeth kmod-igb kmod-ixgbe kmod-r8169"


class UnknownRelease(Exception):
    """No stand-in can be made for this release or target; the text says why."""


@dataclass(frozen=True)
class Family:
    """One release of one target as its ImageBuilder shows itself."""

    release: str
    number: tuple[int, int]
    target: Target

    @property
    def apk(self) -> bool:
        """True when packages are managed by apk instead of opkg (25.12 and later)."""
        return self.number >= (25, 12)

    @property
    def fw4(self) -> bool:
        """True when the firewall is fw4 with nftables (22.03 and later)."""
        return self.number >= (22, 3)

    @property
    def l2_devices(self) -> bool:
        """True when netifd knows `config device` bridges and `option device` (21.02 and later)."""
        return self.number >= (21, 2)

    @property
    def efi(self) -> bool:
        """True when x86 has combined-efi images (21.02 and later)."""
        return self.number >= (21, 2)

    @property
    def profile(self) -> str:
        """The only device of the target; x86's is spelt with a capital before 21.02."""
        return "Generic" if self.target.x86 and self.number < (21, 2) else self.target.device

    @property
    def rootfs_partsize_variable(self) -> bool:
        """True when make knows ROOTFS_PARTSIZE; before 23.05 it is silently ignored and .config decides."""
        return self.number >= (23, 5)

    @property
    def default_rootfs_mib(self) -> int:
        """CONFIG_TARGET_ROOTFS_PARTSIZE as shipped."""
        return 104 if self.number >= (21, 2) else 256

    @property
    def combined(self) -> str:
        """What armsr's disk images are called; there never were any but those for EFI."""
        return "combined-efi" if self.number >= (24, 10) else "combined"

    @property
    def image_target(self) -> str:
        """The target as file names have it: kirkwood got a sub-target with 23.05, and was without one before."""
        if self.target.board == "kirkwood" and self.number < (23, 5):
            return self.target.board
        return self.target.name.replace("/", "-")

    @property
    def info_target(self) -> str:
        """The target as `make info` and profiles.json name it."""
        return self.target.board if self.image_target == self.target.board else self.target.name

    @property
    def default_packages(self) -> tuple[str, ...]:
        """What `make info` lists as default packages."""
        manager = "apk-mbedtls" if self.apk else "opkg"
        tls = "mbedtls" if self.number >= (23, 5) else "wolfssl"
        words = f"{_COMMON} {manager} {self.target.default_packages}"
        if self.target.x86:
            words += " kmod-button-hotplug partx-utils"
        if self.number >= (21, 2):
            words += f" ca-bundle libustream-{tls} procd procd-ujail uclient-fetch fstools"
            words += " grub2-bios-setup" if self.target.x86 else ""
        else:
            words += " procd uclient-fetch fstools busybox"
        if self.fw4:
            words += " firewall4 nftables kmod-nft-offload odhcp6c odhcpd-ipv6only"
        else:
            words += " firewall iptables ip6tables kmod-ipt-offload odhcp6c odhcpd-ipv6only"
        return tuple(sorted(words.split()))

    @property
    def profile_packages(self) -> tuple[str, ...]:
        """What the device adds."""
        if not self.target.x86:
            rtc = self.target.start == "flash" and self.number < (24, 10)  # its clock's driver was built in before
            return () if rtc else tuple(sorted(self.target.device_packages.split()))
        words = _X86_GENERIC
        if self.number >= (21, 2):
            words = f"kmod-amazon-ena kmod-amd-xgbe {words} kmod-fs-vfat kmod-igc kmod-tg3"
        return tuple(sorted(words.split()))

    def package_version(self, upstream: str) -> str:
        """A package's version as this family writes it."""
        return f"{upstream}-r1" if self.number >= (24, 10) else f"{upstream}-1"

    def prefix(self, extra: str) -> str:
        """The first part of every file name; `extra` is EXTRA_IMAGE_NAME, made fit for file names."""
        clean = re.sub(r"[\s_]+", "-", extra.strip().lower())
        return f"openwrt-{self.release}-{clean + '-' if clean else ''}{self.image_target}"

    def image_name(self, extra: str, filesystem: str, kind: str) -> str:
        """The name of an image without its ending. Before 21.02 there is no profile in it, and the type comes first."""
        if self.number >= (21, 2) or not self.target.x86:
            return f"{self.prefix(extra)}-{self.target.device}-{filesystem}-{kind}"
        return f"{self.prefix(extra)}-{kind}-{filesystem}"

    @property
    def vendor_words(self) -> str:
        """What the image calls itself, so that it is never mistaken for one to flash."""
        return f"ndakit lab stand-in for OpenWrt {self.release}, for testing only"


def family(release: str, target: str) -> Family:
    """The family of a release and target. Raises UnknownRelease."""
    match = _RELEASE.match(release)
    if match is None:
        raise UnknownRelease(
            f"the lab knows releases such as 24.10.8, not {release!r}\n"
            "  where: --release\n"
            "  fix:   give a release number; for snapshots use a real ImageBuilder"
        )
    number = (int(match["year"]), int(match["month"]))
    if number < (18, 6):
        raise UnknownRelease(
            f"the lab has no stand-in for OpenWrt {release}: 18.06 is the oldest one\n"
            "  where: --release\n"
            "  fix:   choose a newer release"
        )
    if target == "x86/generic":
        raise UnknownRelease(
            "the lab has no stand-in for x86/generic: Debian has no kernel of 32 bits any more\n"
            "  where: --target\n"
            "  fix:   try the profile with device x86-64, or give a real ImageBuilder for this target"
        )
    if target not in TARGETS:
        raise UnknownRelease(
            f"the lab has stand-ins for the targets {', '.join(TARGETS)}, not for {target!r}\n"
            "  where: --target\n"
            "  fix:   choose a device of one of these targets for the lab, or give a real ImageBuilder for this target"
        )
    kind = TARGETS[target]
    if kind.start == "efi" and number < (23, 5):
        raise UnknownRelease(
            f"OpenWrt {release} has no target {target}: it came with 23.05\n"
            "  where: --release and --target\n"
            "  fix:   choose release 23.05 or later"
        )
    return Family(release, number, kind)
