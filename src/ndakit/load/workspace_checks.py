"""Rules across the profiles of a workspace: addresses, router ids, subnets and servers that two profiles share.

Private addresses are compared only between profiles of one `customer`, because every customer has a 192.168.0.0/24.
Heartbeats are not compared: each is a cable, or a switch, that the nodes of one profile have for themselves.
Nothing here blocks: twins of a pair for tests are made on purpose.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from ipaddress import ip_network

from ndakit.core.errors import Location
from ndakit.core.mistakes import KeyPath, ProfileWarning, dotted, listing
from ndakit.load.loaded import Loaded
from ndakit.model import Address, Subnet

_PRIVATE = tuple(
    ip_network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fe80::/10")
)
_MANY = 3
_COMPARED_MAX = 8
"""Of more profiles with something in common, only the last ones are compared with each other."""


def compare(loaded: Sequence[Loaded]) -> Iterator[ProfileWarning]:
    """What two or more profiles have in common that they should not.

    Of two profiles the later one in `loaded` is the one that a warning is about: who checks one, puts it last.
    """
    by_name: defaultdict[str, list[Loaded]] = defaultdict(list)
    for one in loaded:
        by_name[one.profile.name].append(one)
    for name, ones in by_name.items():
        for other in ones[1:]:
            yield ProfileWarning(
                "same-name",
                f"two profiles are called {name}",
                _at(other, ("name",)),
                "rename one: overlays, images and hosts would have the same names",
                _at(ones[0], ("name",)),
            )
    yield from _addresses(loaded)
    yield from _router_ids(loaded)
    yield from _servers(loaded)


def _addresses(loaded: Sequence[Loaded]) -> Iterator[ProfileWarning]:
    seen: defaultdict[Address, list[tuple[Loaded, KeyPath, str]]] = defaultdict(list)
    for one in loaded:
        for node, its in one.profile.nodes.items():
            for network, addresses in its.addresses.items():
                if _alone(one, network):
                    continue
                for number, address in enumerate(addresses):
                    path: KeyPath = ("nodes", node, "addresses", network, number)
                    seen[address].append((one, path, f"node {node} of {one.profile.name}"))
        for name, vip in one.profile.vips.items():
            for number, address in enumerate(vip.address):
                if address.is_link_local:  # another one on each network
                    continue
                if not any(user is one for user, *_ in seen[address]):  # a single node's VIP may be its own address
                    seen[address].append((one, ("vips", name, "address", number), f"VIP {name} of {one.profile.name}"))
    for address, users in seen.items():
        compared = users[-_COMPARED_MAX:]
        for (first, path, words), (second, other_path, other_words) in itertools.combinations(compared, 2):
            if first is not second and _may_meet(first, second, address):
                yield ProfileWarning(
                    "same-address",
                    f"{other_words} has the address {address}, and so has {words}",
                    _at(second, other_path),
                    _fix("choose another address", address),
                    _at(first, path),
                )


def _router_ids(loaded: Sequence[Loaded]) -> Iterator[ProfileWarning]:
    seen: defaultdict[tuple[Subnet, int], list[tuple[Loaded, str, str]]] = defaultdict(list)
    used: defaultdict[Subnet, set[int]] = defaultdict(set)
    for one in loaded:
        for instance in one.profile.instances:
            for subnet in one.profile.networks[instance.network].subnet if not instance.heartbeat else ():
                seen[subnet, instance.vrid].append((one, instance.network, instance.group))
                used[subnet].add(instance.vrid)
    clashes: defaultdict[tuple[str, str, str, str, int], list[Subnet]] = defaultdict(list)
    users_of: dict[tuple[str, str, str, str, int], tuple[Loaded, Loaded, str]] = {}
    for (subnet, vrid), users in seen.items():
        for (first, net, _), (second, other_net, group) in itertools.combinations(users[-_COMPARED_MAX:], 2):
            if first is not second and _may_meet(first, second, subnet.network_address):
                key = (str(first.path), net, str(second.path), other_net, vrid)
                clashes[key].append(subnet)  # a network of both families is one network
                users_of[key] = (first, second, group)
    for key, subnets in clashes.items():
        _, net, _, other_net, vrid = key
        first, second, group = users_of[key]
        taken = set().union(*(used[s] for s in second.profile.networks[other_net].subnet))
        alike = {str(user.path) for s in subnets for user, *_ in seen[s, vrid]}
        file = _at(second, ("name",)).file
        pin = f"in {file}, rename group {group}"
        if group == "main":
            verb = "add" if second.profile.networks[other_net].vrid is None else "change vrid to"
            free = _free(vrid, taken, sorted(alike).index(str(second.path)))
            pin = f"in {file}, under networks: {other_net}:, {verb} vrid: {free}".replace("to vrid: ", "to ")
        yield ProfileWarning(
            "same-vrid",
            f"{first.profile.name} and {second.profile.name} both use VRRP router id {vrid} in "
            f"{' and '.join(map(str, subnets))}",
            _at(second, ("networks", other_net)),
            _fix(pin, subnets[0].network_address),
            _at(first, ("networks", net)),
        )


def _free(vrid: int, taken: set[int], rank: int) -> int:
    """A router id after this one that no profile has. Each of several profiles with the same id is told another one, by
    its `rank` among them, so that all of them can do as they are told."""
    free = [n for n in (*range(vrid + 1, 256), *range(1, vrid)) if n not in taken]
    return free[rank % len(free)] if free else vrid


def _servers(loaded: Sequence[Loaded]) -> Iterator[ProfileWarning]:
    checkers: defaultdict[Address, dict[str, tuple[Loaded, KeyPath]]] = defaultdict(dict)
    for one in loaded:
        for pool, its in one.profile.pools.items():
            for server, facts in its.servers.items():
                path: KeyPath = ("pools", pool, "servers", server)
                checkers[facts.address[0]].setdefault(str(one.path), (one, path))
    told: set[frozenset[str]] = set()
    for address, users in checkers.items():
        entries = list(users.values())
        group = [e for e in entries if _may_meet(entries[0][0], e[0], address)]
        names = frozenset(str(e[0].path) for e in group)
        if len(group) >= _MANY and names not in told:
            told.add(names)
            yield ProfileWarning(
                "many-checkers",
                f"the server {address} is checked by {len(group)} profiles: "
                f"{listing(e[0].profile.name for e in group)}",
                _at(*group[-1]),
                _fix("lengthen check.interval_s there", address),
                _at(*group[0]),
            )


def _may_meet(first: Loaded, second: Loaded, address: Address) -> bool:
    """True if an address of both means the same host: it is unique in the world, or both belong to one customer."""
    private = any(address in n for n in _PRIVATE if n.version == address.version)
    return not private or first.profile.customer == second.profile.customer


def _fix(action: str, address: Address) -> str:
    private = any(address in n for n in _PRIVATE if n.version == address.version)
    if not private:
        return action
    return (
        f"{action}; if the two belong to different customers, write customer: NAME in each profile: they are then not "
        "compared"
    )


def _alone(loaded: Loaded, network: str) -> bool:
    """True for a network that the nodes of a profile have for themselves."""
    settings = loaded.profile.networks.get(network)
    return settings is not None and settings.role == "heartbeat"


def _at(loaded: Loaded, path: KeyPath) -> Location:
    """Where a value was written, or the nearest thing around it."""
    for end in range(len(path), 0, -1):
        if path[:end] in loaded.origins:
            return loaded.origins[path[:end]]
    return Location(str(loaded.path), key=dotted(path))
