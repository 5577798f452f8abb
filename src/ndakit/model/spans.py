"""Sets of addresses of one IP version, as sorted spans: union, difference, common part, in time linear in their number.

Subnets that overlap, lie inside each other or add up to everybody become one value here, so that a rule asks what is
meant ("everybody", "nobody of these") and not how it was written.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from ndakit.model.base import Address, Subnet


@dataclass(frozen=True)
class Spans:
    """Addresses as numbers: (first, last) pairs, sorted, without overlaps and without two that touch."""

    pairs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, subnets: Iterable[Subnet | Address], version: int) -> Spans:
        """The addresses of an IP version in some subnets and addresses."""
        pairs: list[tuple[int, int]] = []
        for item in subnets:
            if item.version == version:
                first = item.network_address if hasattr(item, "network_address") else item
                last = item.broadcast_address if hasattr(item, "broadcast_address") else item
                pairs.append((int(first), int(last)))
        return cls(_joined(pairs))

    def __bool__(self) -> bool:
        return bool(self.pairs)

    @property
    def size(self) -> int:
        """How many addresses there are."""
        return sum(last - first + 1 for first, last in self.pairs)

    @property
    def first(self) -> int:
        """The lowest address, as a number."""
        return self.pairs[0][0]

    def __or__(self, other: Spans) -> Spans:
        return Spans(_joined([*self.pairs, *other.pairs]))

    def __sub__(self, other: Spans) -> Spans:
        left: list[tuple[int, int]] = []
        number = 0
        for first, last in self.pairs:
            while number < len(other.pairs) and other.pairs[number][1] < first:
                number += 1
            at = number
            while at < len(other.pairs) and other.pairs[at][0] <= last:
                if other.pairs[at][0] > first:
                    left.append((first, other.pairs[at][0] - 1))
                first = other.pairs[at][1] + 1
                at += 1
            if first <= last:
                left.append((first, last))
        return Spans(tuple(left))

    def __and__(self, other: Spans) -> Spans:
        shared: list[tuple[int, int]] = []
        mine = theirs = 0
        while mine < len(self.pairs) and theirs < len(other.pairs):
            (a, b), (c, d) = self.pairs[mine], other.pairs[theirs]
            if max(a, c) <= min(b, d):
                shared.append((max(a, c), min(b, d)))
            if b < d:
                mine += 1
            else:
                theirs += 1
        return Spans(tuple(shared))

    def __le__(self, other: Spans) -> bool:
        """True if every address is in the other one as well."""
        return not self - other

    def within(self, subnet: Subnet) -> Spans:
        """The addresses that are in a subnet (of the same IP version)."""
        low, high = int(subnet.network_address), int(subnet.broadcast_address)
        at = max(0, bisect.bisect_right(self.pairs, (low, 1 << 128)) - 1)
        inside: list[tuple[int, int]] = []
        while at < len(self.pairs) and self.pairs[at][0] <= high:
            first, last = max(low, self.pairs[at][0]), min(high, self.pairs[at][1])
            if first <= last:
                inside.append((first, last))
            at += 1
        return Spans(tuple(inside))


def _joined(pairs: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for first, last in sorted(pairs):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)


def _of(version: int, *texts: str) -> Spans:
    return Spans.of((ip_network(t) for t in texts), version)


NEVER: dict[int, Spans] = {
    4: _of(4, "0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4"),
    6: _of(6, "::/127", "::ffff:0:0/96", "ff00::/8"),
}
"""Addresses that no packet on a network may have as its source (RFC 6890, "Source: False"; RFC 1112, 4)."""

EVERYBODY: dict[int, Spans] = {
    4: _of(4, "0.0.0.0/0") - NEVER[4],
    6: _of(6, "2000::/3", "fc00::/7"),
}
"""Everybody who can ask something from beyond the link: all addresses that hosts have, public and private ones."""

PUBLIC: dict[int, Spans] = {
    4: EVERYBODY[4] - _of(4, "10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
    6: _of(6, "2000::/3"),
}
"""Those that are unique in the world (RFC 1918, RFC 6598, RFC 4291)."""


def shown(number: int, version: int) -> str:
    """A number as an address: IPv6 numbers can be small enough for IPv4."""
    return str(ip_address(number.to_bytes(4 if version == 4 else 16, "big")))
