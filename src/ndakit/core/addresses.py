"""IP addresses and subnets, and how an address is written beside a port."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network


def literal(address: str | Address) -> str:
    """An address as it stands before a port, in URLs and sockets: IPv6 in brackets (RFC 3986, 3.2.2)."""
    return f"[{address}]" if ":" in str(address) else str(address)


def authority(address: str | Address, port: int) -> str:
    """An address and a port, as in a URL (RFC 3986, 3.2): `192.0.2.1:80`, `[2001:db8::1]:80`."""
    return f"{literal(address)}:{port}"
