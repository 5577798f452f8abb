"""Cross-checks: routes that hide what the balancer is attached to, or add up to what the gateway is for."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath
from ndakit.model.base import Subnet
from ndakit.model.profile import Profile
from ndakit.model.reach import SubnetTable
from ndakit.model.rules.addresses import foreign, owned
from ndakit.model.rules.findings import Finding, error, warning
from ndakit.model.spans import PUBLIC, Spans, shown


def routes(profile: Profile) -> Iterator[Finding]:
    """Routes stated twice, and routes to what is attached directly."""
    seen: dict[tuple[Subnet, int | None], KeyPath] = {}
    attached = {s: name for name, net in profile.networks.items() for s in net.subnet}
    for name, net in profile.networks.items():
        for number, route in enumerate(net.routes):
            path: KeyPath = ("networks", name, "routes", number)
            first = seen.setdefault((route.to, route.metric), path)
            if first != path:
                yield error(
                    "route-twice", f"the route to {route.to} is stated twice", path,
                    "keep one, or give each its own metric", other=first,
                )  # fmt: skip
            if route.to in attached:
                yield error(
                    "route-to-own-subnet", f"the route to {route.to} leads to network {attached[route.to]} itself",
                    path,
                    "delete the route: the balancer is attached to that network",
                    other=("networks", attached[route.to], "subnet"),
                )  # fmt: skip
            if route.to.prefixlen == 0:
                yield error(
                    "route-is-default", f"the route to {route.to} is the default route", path,
                    f"write it as networks.{name}.gateway: {route.via}",
                )  # fmt: skip
    yield from _default_in_parts(profile)
    yield from _inside_own_subnets(profile)


def _default_in_parts(profile: Profile) -> Iterator[Finding]:
    """Routes that add up to the default route, such as 0.0.0.0/1 and 128.0.0.0/1: they count before the gateway."""
    for version in (4, 6):
        parts = [
            (route, ("networks", name, "routes", number), name)
            for name, net in profile.networks.items()
            for number, route in enumerate(net.routes)
            if route.to.version == version and route.to.prefixlen
        ]
        if not PUBLIC[version] <= Spans.of((r.to for r, *_ in parts), version):
            continue
        parts.sort(key=lambda part: part[0].to.prefixlen)
        (route, path, name), second = parts[0], parts[1:2]
        holder = next((n for n, net in profile.networks.items() if net.gateway_of(version) is not None), None)
        what = f"the routes to {route.to} and {second[0][0].to}" if second else f"the route to {route.to}"
        what += " and others add up to" if len(parts) > 2 else " add up to" if second else " is as good as"
        yield error(
            "route-is-default", f"{what} the IPv{version} default route: "
            + (f"the gateway of network {holder} would never be used" if holder else "write it as what it is"), path,
            "delete them, or narrow them to what is there" if holder
            else f"write networks.{name}.gateway: {route.via} in place of them",
            other=("networks", holder, "gateway") if holder else (second[0][1] if second else None),
            also=(("networks",),),
        )  # fmt: skip


def _inside_own_subnets(profile: Profile) -> Iterator[Finding]:
    """Routes to a part of a network that the balancer is attached to: they count before the link (longest prefix)."""
    table = SubnetTable((s, name) for name, net in profile.networks.items() for s in net.subnet)
    there = sorted(
        ((a.version, int(a), words, at) for at, words, a, _ in (*owned(profile), *foreign(profile))),
        key=lambda entry: entry[:2],
    )
    for name, net in profile.networks.items():
        for number, route in enumerate(net.routes):
            path: KeyPath = ("networks", name, "routes", number)
            home = table.owner(route.to.network_address)
            subnet = profile.networks[home].subnet_of(route.to.version) if home is not None else None
            if home is None or subnet is None or route.to.prefixlen <= subnet.prefixlen:
                continue
            first = bisect.bisect_left(there, (route.to.version, int(route.to.network_address)), key=lambda e: e[:2])
            inside = f"the route to {route.to} lies over a part of network {home}'s own subnet {subnet}"
            if first < len(there) and there[first][0] == route.to.version and (
                there[first][1] <= int(route.to.broadcast_address)
            ):  # fmt: skip
                _, address, words, at = there[first]
                yield error(
                    "route-over-neighbour", f"{inside}, and {words} ({shown(address, route.to.version)}) is there: "
                    f"what is for it would go to {route.via} instead", path, "delete the route, or narrow it",
                    other=at, also=(("networks", home, "subnet"),),
                )  # fmt: skip
            else:
                yield warning(
                    "route-inside-subnet", f"{inside}: hosts there are asked through {route.via}, although they are on "
                    "the link", path, f"delete the route, if {route.via} does not stand between them and the balancer",
                    other=("networks", home, "subnet"), also=(("nodes",), ("vips",), ("pools",)),
                )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (routes,)
