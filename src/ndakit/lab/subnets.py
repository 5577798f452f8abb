"""Parts of subnets, and addresses in them that nobody has: arithmetic for plans, without any meaning of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ndakit.model import Address, Subnet
from ndakit.model.reach import special


def narrower(one: Subnet, other: Subnet) -> Subnet:
    """What two overlapping subnets have in common."""
    return one if one.prefixlen >= other.prefixlen else other


def without(region: Subnet, gone: Iterable[Subnet]) -> Iterator[Subnet]:
    """A subnet's parts that are in none of others, the last part first."""
    there = [s for s in gone if s.version == region.version and s.overlaps(region)]
    if not there:
        yield region
    elif all(s.prefixlen > region.prefixlen for s in there):
        halves: list[Subnet] = [*region.subnets()]
        for half in reversed(halves):
            yield from without(half, there)


def usable(address: Address, subnet: Subnet) -> bool:
    """True if a host of the subnet can have the address (RFC 3021 and RFC 6164 free both of a /31 and /127)."""
    if special(address) is not None:
        return False
    if subnet.prefixlen >= subnet.max_prefixlen - 1:
        return True
    return address != subnet.network_address and (subnet.version == 6 or address != subnet.broadcast_address)


def take(used: set[Address], regions: Iterable[Subnet], home: Subnet) -> Address | None:
    """An address that is not among `used` (and now is), of some regions of the subnet `home`, each from its end.

    None if there is none. A region has at most as many taken addresses as there are, and two that no host can have, so
    that nothing beyond them needs to be looked at.
    """
    for region in regions:
        for offset in range(1, 1 + min(region.num_addresses, len(used) + 3)):
            address = region[-offset]
            if address not in used and usable(address, home):
                used.add(address)
                return address
    return None
