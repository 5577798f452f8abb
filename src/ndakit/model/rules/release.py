"""Cross-checks: what the profile asks for and its OpenWrt release cannot do, or not in a way known to work.

What a release can do is a fact of `ndakit.release`; each rule here names the place that asks for more, and `release`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath
from ndakit.core.names import INTERFACE_NAME_MAX, device_name, uci_name
from ndakit.core.release import NEWEST_POINTS, Release, newest, since
from ndakit.model.capacity import capacity_of
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, error, warning

RELEASE: KeyPath = ("release",)
UNKNOWN = "release-unknown"
"""The code of `known`'s warning."""


def ssh_keys(profile: Profile) -> Iterator[Finding]:
    """Keys that the release's SSH server does not take: their owner could not log in."""
    taken = profile.release.ssh_key_types
    make = "ssh-keygen -t ed25519" if "ssh-ed25519" in taken else "ssh-keygen -t rsa -b 3072"
    for name, key in profile.access.ssh_keys.items():
        kind = key.split()[0]
        if kind in taken:
            continue
        later = f" (or use release {since(21, 2)})" if kind == "ssh-ed25519" else ""
        yield error(
            "ssh-key-of-release",
            f"the SSH server of OpenWrt {profile.release} takes no keys of type {kind}, so {name} could not log in",
            ("access", "ssh_keys", name), f"make a key of another type: {make}{later}", other=RELEASE,
        )  # fmt: skip


def links(profile: Profile) -> Iterator[Finding]:
    """Bonds, and what the releases with bridges inside of interfaces (up to 19.07) cannot express."""
    release = profile.release
    for name, net in profile.networks.items():
        path: KeyPath = ("networks", name)
        if net.bond is not None and not release.native_bonding:
            yield error(
                "bond-of-release", f"network {name} is a bond, and OpenWrt {release} cannot make one by itself",
                (*path, "bond"), "use release 21.02.2 or later, or name one card and delete bond", other=RELEASE,
            )  # fmt: skip
        if release.device_sections:
            continue
        if net.bridge is not None and device_name("br", name) != f"br-{uci_name(name)}":
            yield error(
                "bridge-of-release",
                f"OpenWrt {release} would call network {name}'s bridge br-{uci_name(name)}, "
                f"and the VIPs would go to {device_name('br', name)}",
                (*path, "bridge"),
                f"rename the network: at most 12 letters and digits, without -; or use release {since(21, 2)}",
                other=RELEASE, also=(path,),
            )  # fmt: skip
        if net.vlan is not None and net.bridge is not None:
            yield error(
                "vlan-of-release",
                f"network {name} is a VLAN on a bridge, and OpenWrt {release} has VLANs on single cards only",
                (*path, "vlan"), f"use release {since(21, 2)}, or name one card and delete bridge", other=RELEASE,
                also=((*path, "bridge"),),
            )  # fmt: skip
        elif net.vlan is not None and net.bond is None and len(f"{net.nics[0]}.{net.vlan}") > INTERFACE_NAME_MAX:
            yield error(
                "vlan-of-release",
                f"OpenWrt {release} would call network {name}'s interface {net.nics[0]}.{net.vlan}, "
                f"which is longer than {INTERFACE_NAME_MAX} characters",
                (*path, "vlan"), f"use release {since(21, 2)}, or let the switch send this network untagged",
                other=RELEASE, also=((*path, "nics"),),
            )  # fmt: skip


def known(profile: Profile) -> Iterator[Finding]:
    """A release that was never made, or that nothing is known of."""
    if words := doubt(profile.release):
        what, instead = words
        yield warning(UNKNOWN, what, RELEASE, f"write {instead}")


def doubt(release: Release) -> tuple[str, str] | None:
    """Why a release is none, or why nothing is known of it, and which one is to be taken instead."""
    latest = newest(max(NEWEST_POINTS)) or ""
    if why := release.missing:
        return f"there is no OpenWrt {release}, as far as is known: {why}", newest(release.branch) or latest
    if release.unfamiliar:
        return f"nothing is known of OpenWrt {release}: it is taken for one like {latest}, the newest known", latest
    return None


def egress(profile: Profile) -> Iterator[Finding]:
    """Source NAT for IPv6: fw3 has none."""
    if profile.release.fw4:
        return
    for name, net in profile.networks.items():
        subnet = net.subnet_of(6)
        if net.egress == "none" or subnet is None:
            continue
        vip = profile.vips.get(net.egress)
        if net.egress == "node":
            asked = any(other.gateway_of(6) is not None for other in profile.networks.values())
        else:
            asked = vip is not None and vip.address_of(6) is not None
        if asked:
            yield error(
                "egress-of-release",
                f"network {name}'s way out needs source NAT for IPv6, and OpenWrt {profile.release} has none",
                ("networks", name, "egress"),
                f"use release {since(22, 3)}, or write egress: none, or take {subnet} out of the network",
                other=RELEASE, also=(("networks", name, "subnet"), ("vips", net.egress)),
            )  # fmt: skip


def topologies(profile: Profile) -> Iterator[Finding]:
    """Services whose engine, or whose topology there, the release does not have."""
    for name, service in profile.services.items():
        engine = service.carried_by
        first = max(engine.since, engine.topologies[service.topology].since)
        if profile.release.branch < first:
            fix = f"use release {since(*first)}"
            if service.proxiable:
                fix = f"write topology: proxy, or {fix}"
            yield error(
                "topology-of-release", f"service {name} has topology {service.topology}, and OpenWrt {profile.release} "
                f"has {engine.missing}",
                ("services", name, "topology"), fix, other=RELEASE, also=(("services", name),),
            )  # fmt: skip


def images(profile: Profile) -> Iterator[Finding]:
    """Images and targets that the release does not have."""
    release = profile.release
    if profile.target.startswith("x86/") and profile.image.firmware == "efi" and not release.efi_images:
        yield error(
            "no-efi", f"OpenWrt {release} has no EFI images", ("image", "firmware"),
            f"write image: {{firmware: bios}}, or use release {since(21, 2)}", other=RELEASE,
        )  # fmt: skip
    if profile.target.startswith("armsr/") and not release.armsr:
        yield error(
            "device-too-new", f"OpenWrt {release} has no target {profile.target}", ("device",),
            f"use release {since(23, 5)}", other=RELEASE,
        )  # fmt: skip
    if profile.target.startswith("armvirt/"):
        what = "is called armsr" if release.armsr else "makes kernels and root file systems, and no disks"
        bits = "armsr-armv8" if profile.target == "armvirt/64" else "armsr-armv7"
        yield error(
            "device-renamed", f"the target armvirt of OpenWrt {release} {what}", ("device",),
            f"write device: {bits}" + ("" if release.armsr else f", and use release {since(23, 5)}"), other=RELEASE,
        )  # fmt: skip


def connections(profile: Profile) -> Iterator[Finding]:
    """More connections than the release's HAProxy takes."""
    limit, asked = profile.release.haproxy_connections_max, capacity_of(profile).connections_max
    if limit is None or asked <= limit:
        return
    yield error(
        "connections-of-release",
        f"sizing asks for {asked} connections at once, and the HAProxy of OpenWrt {profile.release} is built for "
        f"{limit}: it takes no more, and does not say so",
        ("sizing", "sessions_per_second" if profile.sizing.sessions_per_second else "session_duration_s"),
        f"lower sessions_per_second or session_duration_s, or use release {since(24, 10)}", other=RELEASE,
    )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (
    known,
    ssh_keys, links, egress, topologies, connections, images,
)  # fmt: skip
