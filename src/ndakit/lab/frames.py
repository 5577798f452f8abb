"""What lies in an Ethernet frame, as far as the lab's switch tells traffic apart: MACs, VLAN, protocol, VRRP adverts.

Bytes only; malformed frames give None or the little that is known, never an exception. One frame is made here: the
question whether an address is taken.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

VLAN_TAGS = frozenset({0x8100, 0x88A8})
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
VRRP = 112
_ICMPV6 = 58
_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT = 135, 136
_ASKER = bytes.fromhex("027a00000001")
_ETHERTYPES = {IPV4: "ipv4", ARP: "arp", IPV6: "ipv6", 0x8809: "lacp", 0x88CC: "lldp"}
_PROTOCOLS = {1: "icmp", 2: "igmp", 4: "ipip", 6: "tcp", 17: "udp", 58: "icmpv6", VRRP: "vrrp"}
_IPV6_EXTENSIONS = frozenset({0, 43, 60})  # hop-by-hop, routing, destination options: each tells its length


def mac_text(mac: bytes) -> str:
    """`52:54:00:00:00:01`."""
    return mac.hex(":")


def ethertype_at(frame: bytes) -> tuple[int, int, int]:
    """The frame's Ethertype behind its VLAN tags, where the payload begins, and the outermost VLAN id (0: none)."""
    at, vlan = 12, 0
    kind = int.from_bytes(frame[12:14], "big")
    while kind in VLAN_TAGS and len(frame) >= at + 6:
        vlan = vlan or (frame[at + 2] & 0x0F) << 8 | frame[at + 3]
        at += 4
        kind = int.from_bytes(frame[at : at + 2], "big")
    return kind, at + 2, vlan


def protocol_of(frame: bytes) -> tuple[int, int]:
    """Ethertype and IP protocol number (-1 where there is none): what traffic is counted by."""
    kind, at, _ = ethertype_at(frame)
    if kind == IPV4 and len(frame) > at + 9:
        return kind, frame[at + 9]
    if kind == IPV6 and len(frame) > at + 6:
        return kind, _ipv6_payload(frame, at)[0]
    return kind, -1


def protocol_name(ethertype: int, protocol: int) -> str:
    """`arp`, `ipv4/tcp`, `ipv6/vrrp`, `ipv4/132`, `0x88b5`."""
    name = _ETHERTYPES.get(ethertype, f"0x{ethertype:04x}")
    return name if protocol < 0 else f"{name}/{_PROTOCOLS.get(protocol, protocol)}"


@dataclass(frozen=True)
class VrrpAdvert:
    """One VRRP advertisement (version 2: RFC 3768, version 3: RFC 5798). Priority 0 means: I resign."""

    source_mac: str
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    vlan: int
    ttl: int
    version: int
    vrid: int
    priority: int
    interval_s: float
    addresses: tuple[IPv4Address | IPv6Address, ...]


def decode_vrrp(frame: bytes) -> VrrpAdvert | None:
    """The VRRP advertisement in a frame (multicast or unicast), None if there is none."""
    kind, at, vlan = ethertype_at(frame)
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    if kind == IPV4 and len(frame) >= at + 20 and frame[at + 9] == VRRP:
        body = at + (frame[at] & 0x0F) * 4
        end = min(at + int.from_bytes(frame[at + 2 : at + 4], "big"), len(frame))
        ttl, source, destination = (
            frame[at + 8],
            IPv4Address(frame[at + 12 : at + 16]),
            IPv4Address(frame[at + 16 : at + 20]),
        )
        width = 4
    elif kind == IPV6 and len(frame) >= at + 40:
        protocol, body = _ipv6_payload(frame, at)
        if protocol != VRRP:
            return None
        end = min(at + 40 + int.from_bytes(frame[at + 4 : at + 6], "big"), len(frame))
        ttl, source, destination = (
            frame[at + 7],
            IPv6Address(frame[at + 8 : at + 24]),
            IPv6Address(frame[at + 24 : at + 40]),
        )
        width = 16
    else:
        return None
    if end - body < 8:
        return None
    first, vrid, priority, count, spaced = struct.unpack_from("!BBBBH", frame, body)
    version, message = first >> 4, first & 0x0F
    if message != 1 or version not in (2, 3) or end < body + 8 + count * width:
        return None
    # Version 2: authentication type, seconds. Version 3: four bits reserved, twelve bits of hundredths of a second.
    interval_s = float(spaced & 0xFF) if version == 2 else (spaced & 0x0FFF) / 100
    make = IPv4Address if width == 4 else IPv6Address
    places = range(body + 8, body + 8 + count * width, width)
    return VrrpAdvert(
        source_mac=mac_text(frame[6:12]),
        source=source,
        destination=destination,
        vlan=vlan,
        ttl=ttl,
        version=version,
        vrid=vrid,
        priority=priority,
        interval_s=interval_s,
        addresses=tuple(make(frame[p : p + width]) for p in places),
    )


def encode_vrrp(advert: VrrpAdvert) -> bytes:
    """A version 3 advertisement as an IP packet, without Ethernet (RFC 5798, 5.1 and 5.2): what somebody would send who
    wants to be taken for `advert.source`."""
    width = 4 if advert.source.version == 4 else 16
    places = b"".join(address.packed for address in advert.addresses)
    spaced = round(advert.interval_s * 100) & 0x0FFF
    head = struct.pack("!BBBBH", 3 << 4 | 1, advert.vrid, advert.priority, len(advert.addresses), spaced)
    length = len(head) + 2 + len(places)
    pseudo = advert.source.packed + advert.destination.packed
    pseudo += struct.pack("!BBH", 0, VRRP, length) if width == 4 else struct.pack("!II", length, VRRP)
    body = head + _checksum(pseudo + head + b"\0\0" + places) + places
    if width == 16:
        return struct.pack("!IHBB", 6 << 28, length, VRRP, advert.ttl) + pseudo[:32] + body
    ends = advert.source.packed + advert.destination.packed
    first = struct.pack("!BBHHHBB", 0x45, 0xC0, 20 + length, 0, 0, advert.ttl, VRRP)
    return first + _checksum(first + b"\0\0" + ends) + ends + body


def _checksum(data: bytes) -> bytes:
    """The Internet's checksum (RFC 1071) of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def _ipv6_payload(frame: bytes, at: int) -> tuple[int, int]:
    """Protocol and place of an IPv6 packet's payload behind its extension headers."""
    protocol, body = frame[at + 6], at + 40
    while protocol in _IPV6_EXTENSIONS and len(frame) >= body + 2:
        protocol, body = frame[body], body + (frame[body + 1] + 1) * 8
    return protocol, body


@dataclass(frozen=True)
class Segment:
    """A TCP segment or UDP datagram: who sent the frame, and from where to where the packet goes."""

    source_mac: str
    source: IPv4Address | IPv6Address
    source_port: int
    destination: IPv4Address | IPv6Address
    destination_port: int
    transport: str


def decode_segment(frame: bytes) -> Segment | None:
    """The transport header of a frame that is neither a fragment nor tunnelled; None for anything else."""
    kind, at, _ = ethertype_at(frame)
    try:
        if kind == IPV4:
            protocol, payload = frame[at + 9], at + 4 * (frame[at] & 0x0F)
            if int.from_bytes(frame[at + 6 : at + 8], "big") & 0x1FFF:
                return None
            source: IPv4Address | IPv6Address = IPv4Address(frame[at + 12 : at + 16])
            destination: IPv4Address | IPv6Address = IPv4Address(frame[at + 16 : at + 20])
        elif kind == IPV6:
            protocol, payload = _ipv6_payload(frame, at)
            source, destination = IPv6Address(frame[at + 8 : at + 24]), IPv6Address(frame[at + 24 : at + 40])
        else:
            return None
        ports = struct.unpack_from("!HH", frame, payload)
    except (IndexError, ValueError, struct.error):
        return None
    if protocol not in (6, 17):
        return None
    return Segment(mac_text(frame[6:12]), source, ports[0], destination, ports[1], "udp" if protocol == 17 else "tcp")


def arp_answer(frame: bytes) -> tuple[IPv4Address, str] | None:
    """The address that an ARP reply gives away and the MAC that it names (RFC 826); None for any other frame."""
    kind, at, _ = ethertype_at(frame)
    if kind != ARP or len(frame) < at + 28 or frame[at + 7] != 2:
        return None
    return IPv4Address(frame[at + 14 : at + 18]), mac_text(frame[at + 8 : at + 14])


def announced(frame: bytes) -> IPv4Address | IPv6Address | None:
    """The address that its holder announces unasked: gratuitous ARP (RFC 5227, 1.1: sender and target are the same) or
    a neighbour advertisement that answers nobody (RFC 4861, 4.4: S is 0); None for any other frame."""
    kind, at, _ = ethertype_at(frame)
    if kind == ARP and len(frame) >= at + 28 and frame[at + 14 : at + 18] == frame[at + 24 : at + 28]:
        return IPv4Address(frame[at + 14 : at + 18])
    if kind == IPV6 and len(frame) >= at + 40:
        protocol, body = _ipv6_payload(frame, at)
        if protocol == _ICMPV6 and len(frame) >= body + 24 and frame[body] == _NEIGHBOUR_ADVERTISEMENT:
            solicited = bool(frame[body + 4] & 0x40)
            return None if solicited else IPv6Address(frame[body + 8 : body + 24])
    return None


def is_taken(address: IPv4Address | IPv6Address, vlan: int | None = None) -> bytes:
    """The frame with which a host asks whether an address is taken: an ARP probe (RFC 5227, 2.1.1), or a neighbour
    solicitation from nobody (RFC 4862, 5.4.2). The sender's MAC is a made-up one."""
    tag = b"" if vlan is None else struct.pack("!HH", 0x8100, vlan)
    if isinstance(address, IPv4Address):
        packet = struct.pack("!HHBBH", 1, IPV4, 6, 4, 1) + _ASKER + bytes(4) + bytes(6) + address.packed
        return b"\xff" * 6 + _ASKER + tag + struct.pack("!H", ARP) + packet
    target = address.packed
    group = IPv6Address("ff02::1:ff00:0").packed[:13] + target[13:]
    message = struct.pack("!BBHI", _NEIGHBOUR_SOLICITATION, 0, 0, 0) + target
    pseudo = bytes(16) + group + struct.pack("!II", len(message), _ICMPV6) + message
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    message = message[:2] + struct.pack("!H", ~total & 0xFFFF) + message[4:]
    header = struct.pack("!IHBB", 6 << 28, len(message), _ICMPV6, 255) + bytes(16) + group
    return b"\x33\x33" + group[12:] + _ASKER + tag + struct.pack("!H", IPV6) + header + message
