"""Cross-checks: who may administer the balancer, whether they get in, and whether only they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath
from ndakit.model.admin_access import LINK_LOCAL, WHOLE, Door, Filter, Reason, Way
from ndakit.model.base import Subnet
from ndakit.model.profile import Profile
from ndakit.model.reach import special
from ndakit.model.rules.findings import Finding, error, warning
from ndakit.model.spans import PUBLIC, Spans

OPEN_SHARE = 1 / 8
"""Who lets in an eighth of all public addresses, or more, lets in whoever tries."""


def door(profile: Profile, node: str) -> Door:
    """A node's door as its profile means it: routes and addresses as stated, SSH open to access.sources."""
    addresses, ways = [], []
    for name, net in profile.networks.items():
        device = profile.l2_device(name)
        for subnet in net.subnet:
            own = profile.node_address(node, name, subnet.version)
            if own is not None and own in subnet:
                addresses.append((own, device))
                ways.append(Way(subnet, device))
        if 6 in net.families:
            ways.append(Way(LINK_LOCAL, device))
        ways += [Way(WHOLE[g.version], device, g) for g in net.gateway or ()]
        ways += [Way(r.to, device, r.via, r.metric or 0) for r in net.routes]
    return Door(
        addresses=tuple(addresses),
        ways=tuple(ways),
        filters=(Filter(True, sources=tuple(s for v in (4, 6) for s in profile.sources(v))),),
        listens=None,
        nodes=tuple(a for its in profile.nodes.values() for own in its.addresses.values() for a in own),
        vips=tuple(a for v in profile.vips.values() for a in v.address),
    )


def gets_in(profile: Profile) -> Iterator[Finding]:
    """Each entry of access.sources, and whether somebody of it gets in to every node."""
    doors = [door(profile, node) for node in profile.nodes]
    entries = [(n, i, s) for n, subnets in profile.access.sources.items() for i, s in enumerate(subnets)]
    reasons: dict[tuple[str, int], Reason] = {}
    for name, number, subnet in entries:
        for one in doors:
            reasons[name, number] = reasons.get((name, number)) or one.why_not(subnet)
    shut_out = all(reasons.values())
    for name, number, subnet in entries:
        reason = reasons[name, number]
        if reason:
            yield from _nobody(profile, ("access", "sources", name, number), subnet, reason, shut_out=shut_out)


def _nobody(profile: Profile, path: KeyPath, subnet: Subnet, reason: Reason, *, shut_out: bool) -> Iterator[Finding]:
    if reason == "never":
        what = special(subnet.network_address)
        who = f"from {what}" if what else "from the address that a network keeps for itself"
        who += " through a router" if subnet.is_link_local else ""
        yield error(
            "source-never-asks", f"nobody asks from {subnet}: no packet comes {who}", path,
            "write the subnets of the administrators", also=(("networks",),),
        )  # fmt: skip
    elif reason == "vip":
        vip = next(
            n for n, v in profile.vips.items() if any(a.version == subnet.version and a in subnet for a in v.address)
        )
        yield error(
            "source-never-asks", f"nobody asks from {subnet}: it is VIP {vip}, which only takes connections", path,
            "write the subnets of the administrators", other=("vips", vip, "address"), also=(("nodes",),),
        )  # fmt: skip
    elif reason == "nodes":
        if shut_out:
            yield error(
                "source-of-nodes", f"only the nodes themselves are in {subnet}, so nobody from outside gets in", path,
                "add the subnets of the administrators", other=("nodes",), also=(("access", "sources"), ("vips",)),
            )  # fmt: skip
    elif reason == "family":
        say = error if shut_out else warning
        yield say(
            "source-of-no-family",
            f"the nodes have no IPv{subnet.version} address, so nobody in {subnet} gets in",
            path,
            f"add a subnet of the administrators' that is IPv{4 if subnet.version == 6 else 6}, or give a network an "
            f"IPv{subnet.version} subnet and the nodes addresses in it" if shut_out else
            f"delete it, or give a network an IPv{subnet.version} subnet and the nodes addresses in it; the others of "
            "access.sources do get in",
            also=(("networks",), ("nodes",), ("access", "sources")),
        )  # fmt: skip
    elif reason == "astray":
        say = error if shut_out else warning
        yield say(
            "source-astray",
            f"answers to {subnet} would take a router, although its hosts are on the link: a route lies over a part of "
            "that network's subnet",
            path, "delete the route, or narrow it", other=_route_over(profile, subnet),
            also=(("networks",), ("access", "sources")),
        )  # fmt: skip
    elif reason == "no-way":
        yield error(
            "source-unreachable",
            f"no network leads to {subnet}, so nobody there could administer the balancer: it is in no subnet, "
            f"and there is neither a route nor an IPv{subnet.version} gateway",
            path, "correct the subnet, or add a gateway or a route", also=(("networks",), ("nodes",)),
        )  # fmt: skip
    # A router that is not on the link or is a node: gateway-outside-subnet, route-outside-subnet, address-twice and
    # address-is-ours say that, at the router's place.


def _route_over(profile: Profile, subnet: Subnet) -> KeyPath:
    return next(
        (
            ("networks", name, "routes", number)
            for name, net in profile.networks.items()
            for number, route in enumerate(net.routes)
            if route.to.version == subnet.version and route.to.overlaps(subnet)
        ),
        ("networks",),
    )


def everybody(profile: Profile) -> Iterator[Finding]:
    """Sources that let in whoever tries, one alone or all together."""
    for version in (4, 6):
        entries = [
            (subnet, ("access", "sources", name, number))
            for name, subnets in profile.access.sources.items()
            for number, subnet in enumerate(subnets)
            if subnet.version == version
        ]
        entries.sort(key=lambda entry: entry[0].prefixlen)
        public = PUBLIC[version]
        share = (Spans.of((s for s, _ in entries), version) & public).size / public.size
        if share < OPEN_SHARE:
            continue
        who = "everyone" if share > 0.99 else f"{share:.0%} of all public IPv{version} addresses"
        (widest, path), second = entries[0], entries[1:2]
        alone = (Spans.of([widest], version) & public).size / public.size
        many = alone < 0.9 * share and bool(second)
        what = f"{widest} and the others of access.sources together let" if many else f"{widest} lets"
        yield warning(
            "access-open", f"{what} {who} reach SSH and the statistics page", path,
            "write the subnets of the administrators", other=second[0][1] if many else None,
            also=(("access", "sources"),) if many else (),
        )  # fmt: skip


def keys_twice(profile: Profile) -> Iterator[Finding]:
    """One SSH key under two names."""
    seen: dict[tuple[str, ...], str] = {}
    for name, key in profile.access.ssh_keys.items():
        first = seen.setdefault(tuple(key.split()[:2]), name)
        if first != name:
            yield warning(
                "ssh-key-twice", f"{first} and {name} have the same SSH key", ("access", "ssh_keys", name),
                "delete one, or paste the right key", other=("access", "ssh_keys", first),
            )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (gets_in, everybody, keys_twice)
