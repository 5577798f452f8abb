"""Whether an administrator gets in: one node as a packet to its SSH port, and the answer, meet it.

A `Door` is what decides, in plain values: own addresses, routes, the firewall's rules about the SSH port, and where SSH
listens. Who builds it is others' business: `rules.access` from a profile, `lint.admin` from rendered files. One
evaluation serves both, so that a profile's mistake is told with its place, and a template's is found as well.

The questions are the kernel's: does the packet's source exist at all, does the firewall let it in, does anything listen
there, and does the answer find its way back (longest prefix first, then the smallest metric; fib_trie).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Literal

from ndakit.model.base import Address, Subnet
from ndakit.model.spans import NEVER, Spans

LINK_LOCAL = ip_network("fe80::/64")
NOT_ROUTED = {4: Spans.of([ip_network("169.254.0.0/16")], 4), 6: Spans.of([ip_network("fe80::/10")], 6)}
"""What no router forwards (RFC 3927, 2.7; RFC 4291, 2.5.6): whoever has such an address is on the link."""
WHOLE = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}

Reason = Literal["", "never", "vip", "nodes", "family", "no-way", "astray", "dead-router", "firewall", "not-listening"]
"""Why nobody of a source gets in: no packet comes from such an address; only a VIP is there; only the nodes are there;
the node has no address of the family; no route leads back; answers to neighbours take a router; the router for the
answers is not on the link, or is the node itself; the firewall drops it; SSH does not listen there. Empty: somebody
does."""


@dataclass(frozen=True)
class Way:
    """A route of the node; without `via` the addresses are on the link."""

    to: Subnet
    device: str
    via: Address | None = None
    metric: int = 0


@dataclass(frozen=True)
class Filter:
    """A firewall rule about the SSH port: empty `sources` and `destinations` mean all, `devices` None any."""

    accepts: bool
    devices: frozenset[str] | None = None
    sources: tuple[Subnet, ...] = ()
    destinations: tuple[Subnet, ...] = ()
    version: int | None = None

    def about(self, device: str, own: Address | None, version: int) -> bool:
        """True if it decides about packets that come in on a device, to an address (None: the link-local one)."""
        return (
            self.version in (None, version)
            and (self.devices is None or device in self.devices)
            and (not self.destinations or (own is not None and any(_holds(d, own) for d in self.destinations)))
            and (not self.sources or any(s.version == version for s in self.sources))
        )


@dataclass(frozen=True)
class Door:
    """A node as an administrator meets it. `nodes`, `vips`: addresses at which no administrator sits."""

    addresses: tuple[tuple[Address, str], ...]
    ways: tuple[Way, ...]
    filters: tuple[Filter, ...]
    listens: tuple[Address, ...] | None
    """Where SSH listens; None: on every address."""
    nodes: tuple[Address, ...] = ()
    vips: tuple[Address, ...] = ()

    def why_not(self, source: Subnet) -> Reason:
        """Why nobody of a source gets in; empty if somebody does."""
        version = source.version
        alive = Spans.of([source], version) - NEVER[version].within(source) - self._kept[version].within(source)
        if not alive:
            return "never"
        beside_vips = alive - self._no_people["vips"][version].within(source)
        if not beside_vips:
            return "vip"
        people = beside_vips - self._no_people["nodes"][version].within(source)
        if not people:
            return "nodes"
        if not any(a.version == version for a, _ in self.addresses):
            return "family"
        if self._gets_in[version].within(source) - (alive - people):
            return ""
        ways = self._routes[version]
        if ways["good"].within(source) & people:
            heard = self.listens is None or any(a.version == version for a in self.listens)
            return "firewall" if heard else "not-listening"
        if ways["astray"].within(source) & people:
            return "astray"
        if not people - NOT_ROUTED[version]:
            return "never"  # and not on a link of ours either
        return "dead-router" if ways["dead-router"].within(source) & people else "no-way"

    @functools.cached_property
    def _no_people(self) -> dict[str, dict[int, Spans]]:
        return {
            "vips": {v: Spans.of(self.vips, v) for v in (4, 6)},
            "nodes": {v: Spans.of(self.nodes, v) for v in (4, 6)},
        }

    @functools.cached_property
    def _kept(self) -> dict[int, Spans]:
        """What the own subnets keep for themselves: network and broadcast addresses (not in a /31, RFC 3021)."""
        links = [w.to for w in self.ways if w.via is None and w.to.prefixlen < w.to.max_prefixlen - 1]
        four = [a for s in links if s.version == 4 for a in (s.network_address, s.broadcast_address)]
        return {4: Spans.of(four, 4), 6: Spans.of([s.network_address for s in links if s.version == 6], 6)}

    @functools.cached_property
    def _answers(self) -> dict[int, dict[str, dict[str, Spans]]]:
        """IP version → kind (good, astray, dead-router) → device → to whom answers leave there."""
        answers: dict[int, dict[str, dict[str, Spans]]] = {}
        own = {a for a, _ in self.addresses}
        links: dict[tuple[str, int], list[Subnet]] = {}
        for way in self.ways:
            if way.via is None:
                links.setdefault((way.device, way.to.version), []).append(way.to)
        for version in (4, 6):
            kinds: dict[str, dict[str, list[tuple[int, int]]]] = {"good": {}, "astray": {}, "dead-router": {}}
            for low, high, way, above in _longest(w for w in self.ways if w.to.version == version):
                kind = "good"
                if way.via is not None:
                    near = links.get((way.device, version), [])
                    if way.via in own or not (way.via.is_link_local or any(way.via in s for s in near)):
                        kind = "dead-router"
                    elif above:
                        kind = "astray"
                reached = Spans(((low, high),))
                reached = reached if way.via is None else reached - NOT_ROUTED[version]
                kinds[kind].setdefault(way.device, []).extend(reached.pairs)
            answers[version] = {
                kind: {device: Spans(_sorted(pairs)) for device, pairs in devices.items()}
                for kind, devices in kinds.items()
            }
        return answers

    @functools.cached_property
    def _routes(self) -> dict[int, dict[str, Spans]]:
        """IP version → kind of route → to whom."""
        return {
            version: {
                kind: functools.reduce(lambda a, b: a | b, devices.values(), Spans()) for kind, devices in kinds.items()
            }
            for version, kinds in self._answers.items()
        }

    @functools.cached_property
    def _gets_in(self) -> dict[int, Spans]:
        """IP version → everybody who gets in: whose packets are let in, and whose answers leave as they should."""
        accepted: dict[tuple[int, tuple[int, ...]], Spans] = {}
        targets: dict[tuple[str, int], set[Address | None]] = {}
        for address, device in self.addresses:
            if self.listens is None or address in self.listens:
                targets.setdefault((device, address.version), set()).add(address)
            if address.version == 6 and self.listens is None:
                targets.setdefault((device, 6), set()).add(None)
        ways_in: dict[int, Spans] = {}
        for version in (4, 6):
            pairs: list[tuple[int, int]] = []
            for device, answered in self._answers[version]["good"].items():
                for own in targets.get((device, version), ()):
                    rules = tuple(n for n, f in enumerate(self.filters) if f.about(device, own, version))
                    if (version, rules) not in accepted:
                        accepted[version, rules] = self._accepted(rules, version)
                    pairs += (answered & accepted[version, rules]).pairs
            ways_in[version] = Spans(_sorted(pairs)) - NEVER[version] - self._kept[version]
        return ways_in

    def _accepted(self, rules: tuple[int, ...], version: int) -> Spans:
        undecided, accepted = Spans.of([WHOLE[version]], version), Spans()
        for rule in (self.filters[n] for n in rules):
            hit = undecided & Spans.of(rule.sources, version) if rule.sources else undecided
            if rule.accepts:
                accepted = accepted | hit
            undecided = undecided - hit
        return accepted


def _holds(subnet: Subnet, address: Address) -> bool:
    return subnet.version == address.version and address in subnet


def _sorted(pairs: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    return (Spans() | Spans(tuple(sorted(pairs)))).pairs


def _longest(ways: Iterable[Way]) -> list[tuple[int, int, Way, bool]]:
    """Who is reached by which route: (first, last, route, whether it lies inside of a link's subnet).

    Prefixes lie inside each other or apart, so that one pass over them with a stack is enough.
    """
    best: dict[tuple[int, int], Way] = {}
    for way in ways:
        key = (int(way.to.network_address), int(way.to.broadcast_address))
        if key not in best or (way.via is not None, way.metric) < (best[key].via is not None, best[key].metric):
            best[key] = way
    parts: list[tuple[int, int, Way, bool]] = []
    stack: list[tuple[int, int, Way, bool]] = []
    at = 0

    def close(until: int) -> None:
        nonlocal at
        while stack and stack[-1][1] < until:
            _, last, way, above = stack.pop()
            if at <= last:
                parts.append((at, last, way, above))
                at = last + 1

    for (low, high), way in sorted(best.items(), key=lambda item: (item[0][0], -item[0][1])):
        close(low)
        if stack and at < low:
            parts.append((at, low - 1, *stack[-1][2:]))
        at = max(at, low)
        above = bool(stack) and (stack[-1][3] or stack[-1][2].via is None)
        stack.append((low, high, way, above))
    close(1 << 129)
    return parts
