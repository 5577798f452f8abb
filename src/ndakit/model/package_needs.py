"""Which OpenWrt packages a profile needs, and which it must do without: tables of facts, no I/O.

One line per need: when, which packages in each family, why. A feature adds its line to NEEDS and nothing else; the list
for an ImageBuilder is made of it by `package_plan`, and `rules.packages` compares it with `image.packages`.
Names are those of OpenWrt's feeds (docs/facts.md, Packages).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ndakit.core.mistakes import KeyPath
from ndakit.core.release import Family
from ndakit.model.engines import ENGINES, Engine
from ndakit.model.profile import Profile
from ndakit.model.terminators import IN_FRONT, Terminator

Names = Mapping[Family, tuple[str, ...]]
"""Package names by family; a family that is missing needs none."""


def everywhere(*names: str) -> Names:
    """The same names in every family."""
    return dict.fromkeys(Family, names)


def by_firewall(*, fw3: tuple[str, ...] = (), fw4: tuple[str, ...] = ()) -> Names:
    """Names that differ between iptables (up to 21.02) and nftables (from 22.03 on)."""
    return {Family.FW3_OPKG: fw3, Family.FW4_OPKG: fw4, Family.FW4_APK: fw4}


@dataclass(frozen=True)
class Need:
    """Packages that a profile needs when `when` is true of it, and why."""

    packages: Names
    when: Callable[[Profile], bool]
    why: str


def _x86(profile: Profile) -> bool:
    return profile.target.startswith("x86/")


def _needs_of(engine: Engine) -> Iterator[Need]:
    """What an engine needs where it runs."""
    for name, why in engine.packages:
        yield Need(everywhere(name), lambda profile: engine in profile.running_engines, why)


def _needs_of_terminator(terminator: Terminator) -> Iterator[Need]:
    """What a program in front of HAProxy needs where it runs."""
    for name, why in terminator.packages:
        yield Need(everywhere(name), lambda profile: terminator in profile.terminators, why)


def _transparent(profile: Profile) -> bool:
    return any(service.transparent for service in profile.services.values())


def _firewall_checks_adverts(profile: Profile) -> bool:
    return bool(profile.instances) and profile.vrrp.unicast and not profile.release.keepalived_ttl


def _bonds(profile: Profile) -> bool:
    return any(net.bond is not None for net in profile.networks.values())


def _trusts_public_cas(profile: Profile) -> bool:
    return any(
        pool.to_servers is not None and pool.to_servers.verify == "system" and bool(profile.haproxy_services_of(name))
        for name, pool in profile.pools.items()
    )


_AGENT = "the hypervisor sees addresses and can shut the node down cleanly"

NEEDS: tuple[Need, ...] = (
    Need(everywhere("keepalived"), lambda p: bool(p.instances),
         "VRRP: the VIPs move to the other node when this one fails"),
    *(need for engine in ENGINES for need in _needs_of(engine)),
    Need(everywhere("ip-full"), lambda p: True,
         "shows VIPs, neighbours and rules completely, and as JSON for the acceptance test"),
    Need(by_firewall(fw3=("iptables-mod-ipopt",)), _firewall_checks_adverts,
         "the firewall lets in no VRRP advert that came through a router (TTL): this release's keepalived cannot tell"),
    Need(everywhere("conntrackd", "kmod-nf-conntrack-netlink"), lambda p: p.tracks_connections,
         "the nodes tell each other of the connections that pass through, so that they survive a failover"),
    Need(everywhere("conntrack"), lambda p: p.tracks_connections, "shows those connections"),
    *(need for terminator in IN_FRONT for need in _needs_of_terminator(terminator)),
    Need(everywhere("ca-bundle"), _trusts_public_cas,
         "the CAs that browsers know: certificates of servers are compared with them (to_servers.verify: system)"),
    Need(by_firewall(fw3=("iptables-mod-tproxy",), fw4=("kmod-nft-socket",)), _transparent,
         "the firewall tells servers' answers that are for HAProxy, though addressed to clients (topology tproxy)"),
    Need(everywhere("kmod-bonding"), _bonds, "several cards as one link"),
    Need(everywhere("kmod-vmxnet3"), lambda p: p.platform == "vmware" and _x86(p),
         "VMware's network card is not in the kernel"),
    Need(everywhere("qemu-ga"), lambda p: p.platform == "kvm", _AGENT),
    Need(everywhere("open-vm-tools"),  # built for x86 only
         lambda p: p.platform == "vmware" and _x86(p) and p.release.vmware_tools, _AGENT),
)  # fmt: skip
"""What profiles need beyond their device's own packages."""


@dataclass(frozen=True)
class Needless:
    """A package of the device that an appliance is better without when `when` is true, and why."""

    package: str
    when: Callable[[Profile], bool]
    why: str


NEEDLESS: tuple[Needless, ...] = (
    Needless("dnsmasq", lambda p: True,
             "a balancer gives out no addresses and answers no names: in a customer's network, an accident"),
    Needless("odhcpd-ipv6only", lambda p: True, "a balancer announces no IPv6 prefixes"),
    Needless("odhcp6c", lambda p: True, "all addresses are static"),
    Needless("ppp", lambda p: True, "no dial-up"),
    Needless("ppp-mod-pppoe", lambda p: True, "no dial-up"),
    Needless("kmod-drm-i915", lambda p: _x86(p) and p.platform != "bare" and p.release.branch >= (25, 12),
             "a virtual machine has no Intel graphics, and its firmware is large"),
)  # fmt: skip
"""What devices bring and appliances leave out; removing what a device does not have is no error anywhere."""

KEPT: tuple[tuple[Names, str], ...] = (
    (everywhere("base-files", "busybox", "kernel", "libc"), "the base system"),
    (everywhere("dropbear"), "SSH, the way in for administrators"),
    (everywhere("fstools"), "mounts the root file system"),
    (everywhere("logd"), "the system's log"),
    (everywhere("netifd"), "brings the networks up"),
    (everywhere("procd"), "starts and restarts every service"),
    (everywhere("uci"), "reads the configuration"),
    (by_firewall(fw3=("firewall",), fw4=("firewall4",)), "the firewall"),
    (by_firewall(fw4=("nftables", "nftables-json")), "loads the firewall's rules"),
)
"""Packages that every device brings and without which no appliance works, and what they are there for."""

RIVALS: Mapping[str, str] = {"haproxy-nossl": "haproxy"}
"""Package → the one that it cannot be installed beside."""


def needed(profile: Profile) -> dict[str, str]:
    """The packages that a profile needs beyond its device's own, each with the first reason for it."""
    why_of: dict[str, str] = {}
    for need in NEEDS:
        if need.when(profile):
            for name in need.packages.get(profile.release.family, ()):
                why_of.setdefault(name, need.why)
    return why_of


def place_of(profile: Profile, package: str) -> KeyPath | None:
    """The key because of which a profile needs a package; None where no single one is the reason."""
    needing = (row for row in profile.terminators if package in [name for name, _ in row.packages])
    services = (name for row in needing for name in profile.terminated_services(row))
    return next((("services", name, "tls", "terminator") for name in services), None)


def kept(profile: Profile) -> dict[str, str]:
    """The packages of every device that no appliance works without, each with what it is there for."""
    return {name: why for names, why in KEPT for name in names.get(profile.release.family, ())}


def needless(profile: Profile) -> dict[str, str]:
    """The packages that a profile's devices are better without, each with the reason."""
    return {one.package: one.why for one in NEEDLESS if one.when(profile)}
