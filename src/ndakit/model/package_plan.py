"""Which packages an image gets beyond its device's own, and which it does not get, each with the reason.

The tables of needs are in `package_needs`, contradictions are found by `rules.packages`; here the profile's own
wishes come on top, and here is what releases do not have under a name that people try. Whether an ImageBuilder has a
package is the business of `imagebuilder`, what lies in the workspace's packages/ that of `feed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ndakit.core.release import Release
from ndakit.model import package_needs
from ndakit.model.profile import Profile

WISH = "the profile asks for it (image.packages)"


@dataclass(frozen=True)
class PackagePlan:
    """What to add and to remove, each name with its reason, sorted by name."""

    add: Mapping[str, str]
    remove: Mapping[str, str]

    @property
    def words(self) -> tuple[str, ...]:
        """As ImageBuilder's PACKAGES takes them: `haproxy`, `-ppp`."""
        return (*self.add, *(f"-{name}" for name in self.remove))


def plan(profile: Profile, node: str) -> PackagePlan:
    """The packages of one node of a checked profile: today those of all its nodes."""
    add = package_needs.needed(profile)
    remove = package_needs.needless(profile)
    for name, wish in profile.image.packages.items():
        if wish == "add":
            remove.pop(name, None)
            add.setdefault(name, WISH)
        else:
            remove.setdefault(name, WISH)
    return PackagePlan(dict(sorted(add.items())), dict(sorted(remove.items())))


@dataclass(frozen=True)
class Lack:
    """A name that some releases do not have. `instead` completes "use …"; None if there is nothing like it."""

    instead: str | None = None
    since: tuple[int, int] = (0, 0)
    """The first release that has it; with `until` the same, none ever had."""
    until: tuple[int, int] = (99, 99)
    """The first release that does not have it any more."""

    def of(self, release: Release) -> bool:
        """True if this release does not have it."""
        return not self.since <= release.branch < self.until


@dataclass(frozen=True)
class Recipe:
    """A program that no release has, and whose package ndakit brings for OpenWrt's SDK: packages/NAME."""

    libraries: tuple[str, ...]
    """Source packages of OpenWrt that the SDK has to have first."""
    guide: str
    """The page that says how."""


RECIPES: Mapping[str, Recipe] = {"pound": Recipe(("openssl",), "docs/pound.md")}
"""Programs that are built once by whoever needs them; the lab takes Debian's instead."""

_NEVER = (99, 99)
LACKS: Mapping[str, Lack] = {
    "acme": Lack("acme-acmesh", until=(25, 12)),
    "acme-acmesh": Lack("acme", since=(23, 5)),
    "acme-common": Lack("acme", since=(23, 5)),
    "apk-mbedtls": Lack("opkg", since=(25, 12)),
    "auc": Lack("owut", until=(24, 10)),
    "collectd-mod-haproxy": Lack("HAProxy's own exporter, monitoring.prometheus", since=_NEVER),
    "collectd-mod-write-prometheus": Lack("prometheus-node-exporter-lua", since=(24, 10)),
    "firewall": Lack("firewall4", until=(22, 3)),
    "firewall4": Lack("firewall", since=(22, 3)),
    "iptables-mod-socket": Lack("iptables-mod-tproxy, which has it", since=(22, 3)),
    "ipvsadm": Lack(since=(19, 7)),
    "keepalived-sync": Lack(since=(23, 5)),
    "kmod-ipt-ipvs": Lack("kmod-nf-ipvs, which has xt_ipvs", since=_NEVER),
    "kmod-nf-ipvs": Lack(since=(19, 7)),
    "kmod-nft-socket": Lack("iptables-mod-tproxy", since=(22, 3)),
    "kmod-nft-tproxy": Lack("iptables-mod-tproxy", since=(22, 3)),
    "luci-app-opkg": Lack("luci-app-package-manager", until=(24, 10)),
    "luci-app-package-manager": Lack("luci-app-opkg", since=(24, 10)),
    "mysql-client": Lack("mariadb-client", since=_NEVER),
    "nginx": Lack("nginx-ssl", until=(24, 10)),
    "nginx-mod-stream": Lack("nginx-all-module", since=(23, 5)),
    "open-vm-tools": Lack(since=(19, 7)),
    "opkg": Lack("apk-mbedtls", until=(25, 12)),
    "owut": Lack("auc", since=(24, 10)),
    "pound": Lack("haproxy, which ends TLS as well (terminator: haproxy)", since=_NEVER),
    "prometheus-node-exporter-ucode": Lack("prometheus-node-exporter-lua", since=(24, 10)),
    "snmpd": Lack("snmpd-ssl", until=(24, 10)),
    "snmpd-nossl": Lack("snmpd", since=(24, 10)),
    "snmpd-ssl": Lack("snmpd", since=(24, 10)),
    "telegraf": Lack(since=(21, 2)),
    "varnish": Lack("HAProxy's cache, nginx-ssl or squid", since=_NEVER),
}
"""Names that people ask for and that releases do not have, or not any more (docs/facts.md, Packages; ASU's table)."""


def lack(release: Release, name: str) -> Lack | None:
    """Why a release has no package of this name; None if it has one, or if nothing is known about it."""
    known = LACKS.get(name)
    return known if known is not None and known.of(release) else None
