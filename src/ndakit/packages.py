"""Which packages an image needs beyond its device's own, and which it must not have, each with the reason.

The names are those of OpenWrt's package feeds (openwrt.md of the project's reference, section 6). Whether an
ImageBuilder has them is imagebuilder's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ndakit.errors import ErrorGroup, InputError, NdakitError
from ndakit.model import Profile
from ndakit.view import NodeView

_NOT_A_ROUTER = {
    "dnsmasq": "a balancer gives out no addresses and answers no names: in a customer's network, an accident",
    "odhcpd-ipv6only": "a balancer announces no IPv6 prefixes",
    "odhcp6c": "all addresses are static",
    "ppp": "no dial-up",
    "ppp-mod-pppoe": "no dial-up",
}
_AGENTS = {
    "kvm": ("qemu-ga", "the hypervisor sees addresses and can shut the node down cleanly"),
    "vmware": ("open-vm-tools", "the hypervisor sees addresses and can shut the node down cleanly"),
}


class PackagesContradict(InputError):
    """The profile removes a package that it needs itself."""


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
    """The packages of one node. Raises an ErrorGroup of PackagesContradict."""
    view = NodeView(profile, node)
    add = {
        "haproxy": "balances, checks the servers, answers when none is left",
        "ip-full": "shows VIPs, neighbours and rules completely, and as JSON for the acceptance test",
    }
    if view.vrrp:
        add["keepalived"] = "VRRP: the VIPs move to the other node when this one fails"
    if any(d.type == "bonding" for d in view.devices):
        add["kmod-bonding"] = "several cards as one link"
    if profile.platform == "vmware" and profile.target.startswith("x86/"):
        add["kmod-vmxnet3"] = "VMware's network card is not in the kernel"
    if profile.platform in _AGENTS:
        name, reason = _AGENTS[profile.platform]
        add[name] = reason
    remove = dict(_NOT_A_ROUTER)
    errors: list[NdakitError] = []
    for name, wish in profile.image.packages.items():
        if wish == "add":
            remove.pop(name, None)
            add.setdefault(name, "the profile asks for it (image.packages)")
        elif name in add:
            errors.append(
                PackagesContradict(
                    f"package '{name}' is to be removed, but this profile needs it: {add[name]}",
                    where=f"profile {profile.name}, image.packages.{name}",
                    fix=f"take {name} out of image.packages",
                )
            )
        else:
            remove.setdefault(name, "the profile asks for it (image.packages)")
    if errors:
        raise ErrorGroup(errors)
    return PackagePlan(dict(sorted(add.items())), dict(sorted(remove.items())))
