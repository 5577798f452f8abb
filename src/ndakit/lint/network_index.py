"""Many subnets or rules asked by many addresses: looked up, not walked through.

A profile may have thousands of sources, servers and rules; comparing each with each takes minutes. Used by lint.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Generic, TypeVar

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
_T = TypeVar("_T")


class Networks:
    """A set of subnets that says whether one of them holds another subnet."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._by_length: dict[tuple[int, int], set[int]] = {}
        for net in networks:
            self._by_length.setdefault((net.version, net.prefixlen), set()).add(int(net.network_address))

    def hold(self, inner: Network) -> bool:
        """True if `inner` lies in one of them (a subnet lies in itself)."""
        number, bits = int(inner.network_address), inner.max_prefixlen
        for (version, length), starts in self._by_length.items():
            if version == inner.version and length <= inner.prefixlen:
                shift = bits - length
                if (number >> shift) << shift in starts:
                    return True
        return False


class BySocket(Generic[_T]):
    """Things by the single addresses and the port words that they are about; those about wider subnets, about all, or
    about any port come with every one."""

    def __init__(self, entries: Iterable[tuple[_T, Sequence[Network], Collection[str]]]) -> None:
        """Each thing with its subnets and its port words; none of either means all."""
        self._of: dict[tuple[Address, str], list[_T]] = {}
        self._wide: list[_T] = []
        for entry, nets, words in entries:
            if nets and words and all(n.prefixlen == n.max_prefixlen for n in nets):
                for net in nets:
                    for word in words:
                        self._of.setdefault((net.network_address, word), []).append(entry)
            else:
                self._wide.append(entry)

    def about(self, address: Address, word: str) -> Iterator[_T]:
        """What may be about an address and a port word, to be looked at one by one."""
        yield from self._of.get((address, word), ())
        yield from self._wide
