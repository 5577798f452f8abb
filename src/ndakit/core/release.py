"""What differs between OpenWrt releases, as facts to ask for.

Owns the families and the capabilities (docs/facts.md, Releases). Templates and
cross-checks ask `release.…`; nothing else compares version numbers.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from enum import StrEnum

OLDEST = (18, 6)
NEWEST_POINTS = {
    (18, 6): 9, (19, 7): 10, (21, 2): 7, (22, 3): 7, (23, 5): 6, (24, 10): 8, (25, 12): 5,
}  # fmt: skip
"""The newest point release of each branch that is known (downloads.openwrt.org, 2026)."""
ENDED = (23, 5)
"""The newest branch that gets no more point releases (openwrt.org, "Security")."""


def newest(branch: tuple[int, int]) -> str | None:
    """The newest point release that is known of a branch, `21.02.7`; None for a branch that is not known."""
    point = NEWEST_POINTS.get(branch)
    return None if point is None else f"{branch[0]:02}.{branch[1]:02}.{point}"


def since(year: int, month: int) -> str:
    """How a fix names what is new in a branch: `21.02.7 or later`, a release that can be written as it stands."""
    return f"{newest((year, month))} or later"


class Family(StrEnum):
    """The three families a renderer must tell apart."""

    FW3_OPKG = "fw3-opkg"
    FW4_OPKG = "fw4-opkg"
    FW4_APK = "fw4-apk"


@functools.total_ordering
@dataclass(frozen=True)
class Release:
    """An exact OpenWrt release such as 24.10.8 or 25.12.0-rc2."""

    year: int
    month: int
    point: int
    candidate: int | None = None

    @classmethod
    def parse(cls, text: str) -> Release:
        """Read `24.10.8`. Raises ValueError with a message for people."""
        match = re.fullmatch(r"(\d{2})\.(\d{2})\.(\d{1,2})(?:-rc(\d{1,2}))?", text, re.ASCII)
        if not match:
            raise ValueError("an exact OpenWrt release is needed, such as 24.10.8 or 25.12.0-rc2")
        year, month, point, candidate = match.groups()
        release = cls(int(year), int(month), int(point), int(candidate) if candidate else None)
        if release.branch < OLDEST:
            raise ValueError("releases before 18.06 are not supported")
        return release

    @property
    def branch(self) -> tuple[int, int]:
        """(24, 10) for 24.10.8."""
        return (self.year, self.month)

    @property
    def missing(self) -> str:
        """Why there is no such release, as far as it is known; empty if there is one, or if it may have come later."""
        known = newest(self.branch)
        if known is None:
            branches = ", ".join(f"{year:02}.{month:02}" for year, month in NEWEST_POINTS)
            later = self.branch > max(NEWEST_POINTS) and 1 <= self.month <= 12  # a branch is named by year and month
            return "" if later else f"its branches are {branches}"
        over = self.branch <= ENDED and self.point > NEWEST_POINTS[self.branch]
        return f"the last one of its branch is {known}" if over else ""

    @property
    def unfamiliar(self) -> bool:
        """True for a branch that is newer than all that are known: it is taken for one like the newest of these."""
        return not self.missing and self.branch > max(NEWEST_POINTS)

    @property
    def family(self) -> Family:
        """Which of the three families it belongs to: fw4 came with 22.03, apk with 25.12."""
        if self.branch < (22, 3):
            return Family.FW3_OPKG
        return Family.FW4_OPKG if self.branch < (25, 12) else Family.FW4_APK

    @property
    def fw4(self) -> bool:
        """True if the firewall is fw4 with nftables."""
        return self.family is not Family.FW3_OPKG

    @property
    def device_sections(self) -> bool:
        """True if network takes `config device` and `option device` (21.02); before: `type bridge` and `ifname`."""
        return self.branch >= (21, 2)

    @property
    def native_bonding(self) -> bool:
        """True if netifd makes bonds itself: 22.03, and 21.02 from its point 2 on; before: package proto-bonding
        (docs/facts.md, Releases)."""
        return self.branch >= (22, 3) or (self.branch == (21, 2) and self.point >= 2)

    @property
    def address_lists(self) -> bool:
        """True where several `list ipaddr 'a/len'` are known to be taken (netifd of 22.03 and later)."""
        return self.fw4

    @property
    def ssh_key_types(self) -> frozenset[str]:
        """The key types that root can surely log in with: OpenWrt builds dropbear without ECDSA (openwrt/openwrt#7984,
        #24685), and dropbear knows ed25519 since 2020.79, which is in 21.02."""
        return frozenset({"ssh-rsa"} | ({"ssh-ed25519"} if self.branch >= (21, 2) else set()))

    @property
    def haproxy(self) -> tuple[int, int]:
        """The branch of its HAProxy (packages feed, net/haproxy); that of the newest one known for later releases."""
        known = {(18, 6): (1, 8), (19, 7): (2, 0), (21, 2): (2, 2), (22, 3): (2, 4), (23, 5): (2, 8), (24, 10): (3, 0)}
        return known.get(self.branch, (3, 2))

    @property
    def ssh_sha1_only(self) -> bool:
        """True if its SSH server signs, and takes signatures, with SHA-1 only (dropbear before 2020.79, up to 19.07):
        OpenSSH 8.8 and later refuse that unless they are told not to."""
        return self.branch < (21, 2)

    @property
    def haproxy_ipv6_masks(self) -> bool:
        """True if its HAProxy masks IPv6 addresses (`ipmask` with two masks, new in 1.9; 18.06 has 1.8)."""
        return self.branch >= (19, 7)

    @property
    def haproxy_header_patterns(self) -> bool:
        """True if its HAProxy deletes headers by a pattern (`del-header -m`, in the manual of 2.4 and later)."""
        return self.branch >= (22, 3)

    @property
    def haproxy_compares_authority(self) -> bool:
        """True if its HAProxy is known to refuse an HTTP/1 request whose target names another host than its Host does
        (seen with 2.6 and 3.2)."""
        return self.haproxy >= (2, 6)

    @property
    def haproxy_keeps_rights(self) -> bool:
        """True if its HAProxy keeps single rights of root's when it becomes another user (`setcap`, new in 2.9)."""
        return self.haproxy >= (2, 9)

    @property
    def tls13(self) -> bool:
        """True if its OpenSSL knows TLS 1.3 (1.1.1; 18.06 has 1.0.2)."""
        return self.branch >= (19, 7)

    @property
    def openssl3(self) -> bool:
        """True if its OpenSSL is 3.0 or later (23.05)."""
        return self.branch >= (23, 5)

    @property
    def haproxy_curves(self) -> bool:
        """True if its HAProxy has the TLS words of 2.2: `ssl-default-bind-curves`, `ssl-load-extra-files`,
        `http-after-response` (21.02)."""
        return self.branch >= (21, 2)

    @property
    def haproxy_cookie_attributes(self) -> bool:
        """True if its HAProxy writes further attributes of its cookie (`cookie … attr`, new in 2.2: HAProxy's
        CHANGELOG, 2.2-dev1)."""
        return self.haproxy >= (2, 2)

    @property
    def haproxy_connections_max(self) -> int | None:
        """The most connections that its HAProxy takes; None where the build sets no limit. Up to 23.05 the package is
        built with SYSTEM_MAXCONN=165530, and a higher maxconn is lowered with a word that `-q` swallows; HAProxy 3.0,
        in 24.10, ignores that setting (docs/facts.md, Releases; HAProxy's Makefile)."""
        return None if self.branch >= (24, 10) else 165530

    @property
    def vmware_tools(self) -> bool:
        """True if there is a package open-vm-tools (19.07)."""
        return self.branch >= (19, 7)

    @property
    def keepalived_section(self) -> str:
        """The type of the UCI section in which keepalived's init script looks for alt_config_file: `global_defs` up to
        19.07, which reads no other type and says nothing; `globals` from 21.02 on (openwrt/packages c4d1af42e8)."""
        return "globals" if self.branch >= (21, 2) else "global_defs"

    @property
    def haproxy_under_procd(self) -> bool:
        """True if the package's init script hands HAProxy to procd (19.07); in 18.06 nobody starts it again."""
        return self.branch >= (19, 7)

    @property
    def keepalived_ttl(self) -> bool:
        """True if keepalived can refuse unicast adverts that came through a router (`unicast_peer`: min_ttl and
        max_ttl, new in 2.1.0; 19.07 has 2.0.18, 21.02 has 2.2). Before, the firewall has to look at the TTL."""
        return self.branch >= (21, 2)

    @property
    def track_script_in_group(self) -> bool:
        """True if keepalived lowers the priority of a whole sync group: new in 2.0 (18.06 has 1.4.5)."""
        return self.branch >= (19, 7)

    @property
    def heartbeats(self) -> bool:
        """True if an instance that was held back by its sync group, and then hears an advert, holds the group back
        again: new in keepalived 2.0 (vrrp.c, vrrp_state_backup: wantstate; 18.06 has 1.4)."""
        return self.branch >= (19, 7)

    @property
    def keepalived_process_names(self) -> bool:
        """True if keepalived's VRRP process can be given a name of its own (`vrrp_process_name`, in 2.0.18 of 19.07 and
        later). From 2.1 on its parent waits before it starts one that died again, 1 s to 60 s (lib/scheduler.c,
        calc_restart_delay), so that a parent alone does not show that VRRP runs."""
        return self.branch >= (19, 7)

    @property
    def efi_images(self) -> bool:
        """True if there are EFI images for x86 (21.02)."""
        return self.branch >= (21, 2)

    @property
    def armsr(self) -> bool:
        """True if the target for ARM machines with EFI is called armsr (23.05)."""
        return self.branch >= (23, 5)

    @property
    def generic_device(self) -> str:
        """ImageBuilder's PROFILE for x86: `Generic` up to 19.07, `generic` after."""
        return "Generic" if self.branch < (21, 2) else "generic"

    def package_version(self, upstream: str, build: int) -> str:
        """A package's version: `1.2.3-1`, and `1.2.3-r1` from 24.10 on (docs/facts.md, Releases)."""
        return f"{upstream}-{'r' if self.branch >= (24, 10) else ''}{build}"

    def __lt__(self, other: Release) -> bool:
        return self._key < other._key

    @property
    def _key(self) -> tuple[int, int, int, int]:
        return (self.year, self.month, self.point, self.candidate if self.candidate is not None else 999)

    def __str__(self) -> str:
        tail = f"-rc{self.candidate}" if self.candidate is not None else ""
        return f"{self.year:02}.{self.month:02}.{self.point}{tail}"
