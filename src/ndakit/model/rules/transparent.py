"""Cross-checks: topology tproxy, where HAProxy speaks to the servers from the clients' addresses.

The way of the answers is in `reply_paths`, for nat's servers need the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ndakit.core.release import since
from ndakit.model import transparent
from ndakit.model.links import exits
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, warning
from ndakit.model.rules.request_paths import place, topology_of, uses


def nat_in_the_way(profile: Profile) -> Iterator[Finding]:
    """Clients beside the servers, in a network whose packets go back into it with another source: only so do they get
    answers, and servers do not see them. For the others the firewall has an exception (render/nat)."""
    told: set[str] = set()
    for name, service, pool, server, address in uses(profile):
        network = profile.network_of(address)
        inside = any(profile.vips[v].network == network for v in service.vip)
        if not service.transparent or network is None or name in told or not inside:
            continue
        if profile.pools[pool].reply_route == "policy" or network not in exits(profile, network, address.version):
            continue
        told.add(name)
        egress = profile.networks[network].egress
        yield warning(
            "tproxy-nat",
            f"service {name} is tproxy, and of clients in network {network} itself server {server} sees another "
            f"address: what goes back into the network gets that of the way out (egress: {egress})",
            topology_of(name),
            f"write reply_route: policy for pool {pool}: its servers then see those clients too",
            other=("networks", network, "egress"),
            also=(place(profile, pool, server, address), ("pools", pool, "reply_route"), ("services", name, "vip")),
        )  # fmt: skip


def runs_as_root(profile: Profile) -> Iterator[Finding]:
    """Releases whose HAProxy must stay root for this."""
    if not transparent.as_root(profile):
        return
    name = transparent.services(profile)[0]
    yield warning(
        "tproxy-as-root",
        f"service {name} is tproxy, for which the HAProxy of OpenWrt {profile.release} must stay root: a client that "
        "breaks into it has the node",
        topology_of(name),
        f"use release {since(24, 10)}, where HAProxy keeps one right of root's, or topology: proxy; nat has no HAProxy "
        "in between",
        other=("release",),
    )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (nat_in_the_way, runs_as_root)
