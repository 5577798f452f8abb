"""Topology tproxy: HAProxy speaks to the servers from the clients' addresses, and what a node needs for that.

The servers' answers are addressed to clients, so a node would drop them or pass them on. The firewall marks those for
which there is a socket on the node, a policy rule sends marked packets to a routing table of their own, and that table
says that every address is the node's own (Linux, Documentation/networking/tproxy.rst). No forwarding is needed.
"""

from __future__ import annotations

from ndakit.model.base import Address
from ndakit.model.profile import Profile

MARK = 0x1
"""The bit of a packet's mark that says: for a socket of this node. Services have the bits of
`MARK_MASK` of render/firewall."""
TABLE = 100
"""The routing table in which every address is local. A number: netifd takes no name that rt_tables has not."""
RULE_PRIORITY = 1000
"""The policy rule's place: after the local table (0), before main (32766)."""


def services(profile: Profile) -> tuple[str, ...]:
    """The services of topology tproxy."""
    return tuple(name for name, service in profile.services.items() if service.transparent)


def versions(profile: Profile) -> tuple[int, ...]:
    """The IP versions in which there are such services, in order."""
    used = {e.address.version for name in services(profile) for e in profile.endpoints(name)}
    return tuple(sorted(used))


def pools(profile: Profile, service: str) -> tuple[str, ...]:
    """The pools whose servers can get a service's requests: its own, those of its routes, and their sorry pools."""
    return tuple(pool for pool in profile.pools if service in profile.services_of(pool))


def sockets(profile: Profile, service: str, version: int) -> frozenset[tuple[Address, int]]:
    """Address and port of every server that can answer for a service of an IP version. One without a port of its own
    has the ports of the service, of which only the first counts here."""
    return frozenset(
        (address, profile.server_port(pool, server) or profile.services[service].first_port)
        for pool in pools(profile, service)
        for server in profile.pools[pool].servers.values()
        if (address := server.address_of(version)) is not None
    )


def as_root(profile: Profile) -> bool:
    """True if HAProxy has to stay root: another address as the source needs a right that HAProxy can keep from 2.9 on
    (`setcap`, 24.10)."""
    return bool(services(profile)) and not profile.release.haproxy_keeps_rights
