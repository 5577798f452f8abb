"""Cross-checks: the profile's own firewall rules, among themselves and against what has to stay open or shut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv6Network

from ndakit.core.mistakes import KeyPath, guess, listing
from ndakit.model.admin_access import WHOLE
from ndakit.model.base import Address, Subnet
from ndakit.model.firewall import Opening
from ndakit.model.profile import IPVS_SYNC_PORT, PEERS_PORT, SYNC_PORT, Instance, Profile
from ndakit.model.rules.findings import Finding, error, unknown, warning
from ndakit.model.spans import EVERYBODY, Spans

LINK_LOCAL = IPv6Network("fe80::/10")


def _rules(profile: Profile) -> Iterator[tuple[str, str, Opening, KeyPath]]:
    for kind, rules in (("allow", profile.firewall.allow), ("deny", profile.firewall.deny)):
        for name, opening in rules.items():
            yield kind, name, opening, ("firewall", kind, name)


def references(profile: Profile) -> Iterator[Finding]:
    """Networks and sources that are not there, of another family, or behind another network."""
    for kind, name, opening, path in _rules(profile):
        network = profile.networks.get(opening.network)
        if network is None:
            yield unknown("network", opening.network, profile.networks, (*path, "network"), "networks")
            continue
        fits = any(s.version in network.families for s in profile.opening_sources(opening))
        for number, source in enumerate(opening.sources):
            at: KeyPath = (*path, "sources", number)
            if isinstance(source, str):
                if source not in profile.access.sources:
                    near = guess(source, profile.access.sources)
                    hint = f"did you mean '{near}'? " if near else ""
                    yield error(
                        "unknown-source", f"there is no '{source}' in access.sources", at,
                        f"{hint}access.sources here: {listing(list(profile.access.sources))}; or write an address",
                        other=("access", "sources"),
                    )  # fmt: skip
                elif not fits and opening.sources.index(source) == number:
                    yield error(
                        "source-family", f"{kind} rule {name} is about {source} of access.sources, and network "
                        f"{opening.network} has no subnet of its family: it would be about nobody",
                        at, "name sources of the network's families", other=("access", "sources", source),
                        also=(("networks", opening.network, "subnet"),),
                    )  # fmt: skip
                continue
            if source.version not in network.families:
                say = warning if fits else error
                yield say(
                    "source-family", f"{kind} rule {name} is about {source}, and network {opening.network} has no "
                    f"IPv{source.version} subnet",
                    at, "name sources of the network's families", other=("networks", opening.network, "subnet"),
                    also=(("access", "sources"),),
                )  # fmt: skip
            elif not _comes_in(profile, opening.network, source):
                yield warning(
                    "source-elsewhere", f"{kind} rule {name}: nothing from {source} comes in on network "
                    f"{opening.network}: it is in none of its subnets, and neither a route nor a gateway there leads "
                    "to it", at, "name the network that leads there, or correct the source",
                    other=("networks", opening.network),
                )  # fmt: skip


def allowed(profile: Profile) -> Iterator[Finding]:
    """What must not be opened here, or is open anyway."""
    for name, opening in profile.firewall.allow.items():
        path: KeyPath = ("firewall", "allow", name)
        if opening.protocol == "all" or (opening.protocol in ("tcp", "udp") and opening.port is None):
            what = "every protocol" if opening.protocol == "all" else f"every {opening.protocol} port"
            yield error(
                "allow-everything", f"allow rule {name} would open {what} of the balancer, SSH and statistics included",
                (*path, "protocol"), "state a port, such as port: 5985",
            )  # fmt: skip
            continue
        if opening.covers("tcp", profile.ssh_port):
            yield error(
                "allow-ssh", f"allow rule {name} would open SSH (port {profile.ssh_port}) past access.sources",
                (*path, "port"), "add its sources to access.sources, and take the port out",
                other=("access", "sources"),
            )  # fmt: skip
        statistics = profile.monitoring.statistics.port
        if profile.runs_haproxy and opening.covers("tcp", statistics):
            yield error(
                "allow-statistics",
                f"allow rule {name} would open the statistics page (port {statistics}) past access.sources",
                (*path, "port"), "add its sources to access.sources, and take the port out",
                other=("monitoring", "statistics", "port"),
            )  # fmt: skip
        yield from _own_ports(profile, name, opening, path)
        for service, settings in profile.services.items():
            inside = any(v in profile.vips and profile.vips[v].network == opening.network for v in settings.vip)
            transport = "udp" if settings.protocol == "udp" else "tcp"
            if inside and opening.port is not None and all(
                any(low <= first and last <= high for low, high in settings.port) for first, last in opening.port
            ) and opening.covers(transport, opening.port[0][0]):  # fmt: skip
                yield warning(
                    "allow-open", f"allow rule {name} opens what service {service} has open on its VIP already, and on "
                    "the node's own addresses nobody listens there", path,
                    "delete the rule", other=("services", service, "port"), also=(("vips",),),
                )  # fmt: skip
        for other, deny in profile.firewall.deny.items():
            if deny.network == opening.network and _inside(profile, opening, deny):
                yield warning(
                    "allow-denied", f"allow rule {name} opens nothing, for deny rule {other} shuts all of it: what is "
                    "denied counts first", path, "narrow the deny rule, or delete one of the two",
                    other=("firewall", "deny", other), also=(("access", "sources"),),
                )  # fmt: skip


def _own_ports(profile: Profile, name: str, opening: Opening, path: KeyPath) -> Iterator[Finding]:
    """What the nodes tell each other, without a password: it is open to the other nodes anyway."""
    for what, protocol, port in _listeners(profile):
        if not opening.covers(protocol, port):
            continue
        nodes = [a for its in profile.nodes.values() for own in its.addresses.values() for a in own]
        if all(_about(profile, opening, v) <= Spans.of(nodes, v) for v in (4, 6)):
            continue
        yield error(
            "allow-own-port", f"allow rule {name} would open {protocol} port {port}, where a node listens to {what} "
            "and believes whoever speaks", (*path, "port"),
            f"take {port} out of its ports; the nodes reach each other there without a rule",
            other=("vrrp", "connection_sync"), also=(("nodes",), ("services",), ("networks",), ("access", "sources")),
        )  # fmt: skip


def _listeners(profile: Profile) -> Iterator[tuple[str, str, int]]:
    """What the nodes listen to from each other: words, protocol, port. None of it asks for a password."""
    if profile.tracks_connections:
        yield "the connections that the others track (conntrackd)", "udp", SYNC_PORT
    if profile.syncs_ipvs:
        yield "the connections that the others' IPVS balances", "udp", IPVS_SYNC_PORT
    if profile.shares_tables:
        yield "which server a client keeps (HAProxy's peers)", "tcp", PEERS_PORT


def denied(profile: Profile) -> Iterator[Finding]:
    """What must not be shut: the way in, the nodes' own talk, a whole service."""
    for name, opening in profile.firewall.deny.items():
        path: KeyPath = ("firewall", "deny", name)
        if opening.network not in profile.networks:
            continue
        if opening.covers("tcp", profile.ssh_port):
            yield from _lock_out(profile, name, opening, path)
        yield from _between_nodes(profile, name, opening, path)
        yield from _whole_services(profile, name, opening, path)


def _whole_services(profile: Profile, name: str, opening: Opening, path: KeyPath) -> Iterator[Finding]:
    """Services of which a rule leaves nothing: it is about everybody who comes in there, however that is written."""
    shut = [v for v in (4, 6) if (all_ := _comers(profile, opening.network, v)) and all_ <= _about(profile, opening, v)]
    for service, settings in profile.services.items():
        transport = "udp" if settings.protocol == "udp" else "tcp"
        if not shut or opening.protocol not in ("all", transport) or not _ports(settings.port) <= _ports(opening.port):
            continue
        here = [v for v in settings.vip if v in profile.vips and profile.vips[v].network == opening.network]
        wanted = {int(f[-1]) for f in settings.families or ("ipv4", "ipv6")}
        for vip in here:
            versions = [a.version for a in profile.vips[vip].address if a.version in wanted]
            dead = [v for v in versions if v in shut]
            if not dead:
                continue
            who = "everybody" if dead == versions else f"everybody with IPv{dead[0]}"
            yield error(
                "deny-service", f"deny rule {name} shuts service {service} for {who} who comes in on network "
                f"{opening.network}, where its VIP {vip} is", path,
                "narrow its sources, or delete the rule" if opening.sources else "state sources, or delete the rule",
                other=("services", service), also=(("vips", vip), ("networks",), ("access", "sources")),
            )  # fmt: skip
            break


def _lock_out(profile: Profile, name: str, opening: Opening, path: KeyPath) -> Iterator[Finding]:
    about = profile.opening_sources(opening)
    for source, subnets in profile.access.sources.items():
        for number, subnet in enumerate(subnets):
            hit = not about or any(a.version == subnet.version and a.overlaps(subnet) for a in about)
            if hit and _comes_in(profile, opening.network, subnet):
                yield error(
                    "deny-lock-out", f"deny rule {name} would shut SSH for {subnet} (access.sources.{source}), which "
                    f"comes in on network {opening.network}", path,
                    "narrow its sources or its port, or take them out of access.sources",
                    other=("access", "sources", source, number), also=(("networks", opening.network),),
                )  # fmt: skip


def _between_nodes(profile: Profile, name: str, opening: Opening, path: KeyPath) -> Iterator[Finding]:
    about = profile.opening_sources(opening)
    talk: list[tuple[str, str, int | None, set[str]]] = [("VRRP", "vrrp", None, {i.network for i in profile.instances})]
    if profile.sync_link is not None:
        network = {profile.sync_link[0]}
        if profile.tracks_connections:
            talk.append(("the connections that they track", "udp", SYNC_PORT, network))
        if profile.syncs_ipvs:
            talk.append(("the connections that IPVS balances", "udp", IPVS_SYNC_PORT, network))
        if profile.shares_tables:
            talk.append(("which server a client keeps", "tcp", PEERS_PORT, network))
    shut = [what for what, protocol, port, at in talk if opening.network in at and opening.covers(protocol, port)]
    hit: list[tuple[str, Address | Subnet]] = [
        (node, address)
        for node, facts in profile.nodes.items()
        for address in facts.addresses.get(opening.network, ())
        if not about or any(a.version == address.version and address in a for a in about)
    ]
    if shut[:1] == ["VRRP"] and any(a.overlaps(LINK_LOCAL) for a in about if a.version == 6):
        # Adverts to VRRP's IPv6 multicast group come from the nodes' link-local addresses (RFC 5798, 5.1.2.1).
        six = [i for i in profile.instances if i.network == opening.network and _ipv6_only(profile, i)]
        hit += [(next(iter(profile.nodes)), LINK_LOCAL)] if six and not profile.vrrp.unicast else []
    if shut and hit:
        node, address = hit[0]
        yield error(
            "deny-nodes", f"deny rule {name} would shut what node {node} ({address}) tells the others: "
            f"{' and '.join(shut)}", path, "narrow its sources, or name the protocol that is meant",
            other=("nodes", node, "addresses", opening.network), also=(("vrrp",), ("vips",), ("services",)),
        )  # fmt: skip


def _ipv6_only(profile: Profile, instance: Instance) -> bool:
    if instance.heartbeat:
        return profile.heard_version(instance.network) == 6
    return all(a.version == 6 for v in instance.vips for a in profile.vips[v].address)


def _ports(spans: tuple[tuple[int, int], ...] | None) -> Spans:
    """Ports as spans; None: all of them."""
    return Spans() | Spans(spans if spans is not None else ((0, 65535),))


def _comers(profile: Profile, network: str, version: int) -> Spans:
    """Everybody of an IP version who can come in on a network."""
    settings = profile.networks[network]
    if settings.gateway_of(version) is not None:
        return EVERYBODY[version]
    return Spans.of((*settings.subnet, *(r.to for r in settings.routes)), version) & EVERYBODY[version]


def _comes_in(profile: Profile, network: str, source: Subnet) -> bool:
    """True if packets from (some of) a subnet may come in on a network."""
    settings = profile.networks[network]
    return (
        settings.gateway_of(source.version) is not None
        or any(s.version == source.version and s.overlaps(source) for s in settings.subnet)
        or any(r.to.version == source.version and r.to.overlaps(source) for r in settings.routes)
    )


def _about(profile: Profile, opening: Opening, version: int) -> Spans:
    """Who a rule is about, of an IP version; without sources everybody."""
    return Spans.of(profile.opening_sources(opening) if opening.sources else (WHOLE[version],), version)


def _inside(profile: Profile, inner: Opening, outer: Opening) -> bool:
    """True if one rule is about nothing that another one is not about."""
    if outer.protocol not in ("all", inner.protocol):
        return False
    if outer.port is not None and not (
        inner.port is not None
        and all(any(low <= a and b <= high for low, high in outer.port) for a, b in inner.port)
    ):  # fmt: skip
        return False
    families = profile.networks[inner.network].families if inner.network in profile.networks else ()
    within = {v: _about(profile, inner, v) & EVERYBODY[v] for v in families}
    return any(within.values()) and all(within[v] <= _about(profile, outer, v) for v in families)


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (references, allowed, denied)
