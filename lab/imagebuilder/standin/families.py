"""What differs between OpenWrt releases: package manager, default packages, names of profiles and files.

Facts about the real ImageBuilders as of August 2026: openwrt/openwrt `target/imagebuilder/files/Makefile`,
`include/target.mk`, `target/linux/x86/Makefile`, `include/image.mk`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_RELEASE = re.compile(r"^(?P<year>\d\d)\.(?P<month>\d\d)\.(?P<point>\d+)(-rc\d+)?$")
_COMMON = "base-files libc libgcc dnsmasq dropbear logd mtd netifd ppp ppp-mod-pppoe uci urandom-seed urngd"
_X86_GENERIC = "kmod-bnx2 kmod-e1000e kmod-e1000 kmod-forcedeth kmod-igb kmod-ixgbe kmod-r8169"


class UnknownRelease(Exception):
    """No stand-in can be made for this release or target; the text says why."""


@dataclass(frozen=True)
class Family:
    """One release as its ImageBuilder shows itself."""

    release: str
    number: tuple[int, int]

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
        """The only profile of x86/64: spelt with a capital before 21.02."""
        return "generic" if self.number >= (21, 2) else "Generic"

    @property
    def rootfs_partsize_variable(self) -> bool:
        """True when make knows ROOTFS_PARTSIZE; before 23.05 it is silently ignored and .config decides."""
        return self.number >= (23, 5)

    @property
    def default_rootfs_mib(self) -> int:
        """CONFIG_TARGET_ROOTFS_PARTSIZE as shipped."""
        return 104 if self.number >= (21, 2) else 256

    @property
    def default_packages(self) -> tuple[str, ...]:
        """What `make info` lists as default packages of x86/64."""
        manager = "apk-mbedtls" if self.apk else "opkg"
        tls = "mbedtls" if self.number >= (23, 5) else "wolfssl"
        words = f"{_COMMON} {manager} kmod-button-hotplug partx-utils mkf2fs e2fsprogs"
        if self.number >= (21, 2):
            words += f" ca-bundle libustream-{tls} grub2-bios-setup procd procd-ujail uclient-fetch fstools"
        else:
            words += " procd uclient-fetch fstools busybox"
        if self.fw4:
            words += " firewall4 nftables kmod-nft-offload odhcp6c odhcpd-ipv6only"
        else:
            words += " firewall iptables ip6tables kmod-ipt-offload odhcp6c odhcpd-ipv6only"
        return tuple(sorted(words.split()))

    @property
    def profile_packages(self) -> tuple[str, ...]:
        """What the x86/64 profile adds."""
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
        return f"openwrt-{self.release}-{clean + '-' if clean else ''}x86-64"

    def image_name(self, extra: str, filesystem: str, kind: str) -> str:
        """The name of an image without its ending. Before 21.02 there is no profile in it, and the type comes first."""
        if self.number >= (21, 2):
            return f"{self.prefix(extra)}-generic-{filesystem}-{kind}"
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
    if target != "x86/64":
        raise UnknownRelease(
            f"the lab has a stand-in for target x86/64 only, not for {target!r}\n"
            "  where: --target\n"
            "  fix:   choose a platform of target x86/64 for the lab, or give a real ImageBuilder for this target"
        )
    return Family(release, number)
