"""Frames on the lab's wire are told apart: whose packets they are, and who claims an address."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from ndakit.bench_topologies import CLIENTS, chart
from ndakit.frames import announced, arp_answer, decode_segment

MACS = bytes.fromhex("525400000001525400000002")


def ipv4(protocol: int, payload: bytes, fragment: int = 0) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, fragment, 64, protocol, 0)
    return MACS + b"\x08\x00" + head + ip_address("203.0.113.10").packed + ip_address("203.0.113.50").packed + payload


def ipv6(protocol: int, payload: bytes) -> bytes:
    head = struct.pack("!IHBB", 0x60000000, len(payload), protocol, 64)
    return MACS + b"\x86\xdd" + head + ip_address("2001:db8::10").packed + ip_address("2001:db8::50").packed + payload


PORTS = struct.pack("!HH", 80, 40000) + bytes(16)


@pytest.mark.parametrize(("frame", "source"), [(ipv4(6, PORTS), "203.0.113.10"), (ipv6(6, PORTS), "2001:db8::10")])
def test_a_tcp_segment_tells_who_sent_it_and_where_from(frame: bytes, source: str) -> None:
    found = decode_segment(frame)
    assert found is not None
    assert (found.source_mac, str(found.source), found.source_port) == ("52:54:00:00:00:02", source, 80)
    assert (found.destination_port, found.transport) == (40000, "tcp")


def test_a_tag_in_front_changes_nothing_and_datagrams_are_udp() -> None:
    plain = ipv4(17, PORTS)
    found = decode_segment(plain[:12] + b"\x81\x00\x00\x0a" + plain[12:])
    assert found is not None
    assert (found.transport, found.source_port) == ("udp", 80)


@pytest.mark.parametrize(
    "frame",
    [b"", MACS, ipv4(6, b""), ipv4(6, PORTS, fragment=100), ipv4(4, PORTS), ipv6(58, PORTS), MACS + b"\x08\x06"],
)
def test_what_is_no_whole_segment_is_none(frame: bytes) -> None:
    assert decode_segment(frame) is None


def arp(operation: int) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    sender = bytes.fromhex("525400000002") + ip_address("192.168.0.10").packed
    return MACS + b"\x08\x06" + head + sender + bytes(10)


def test_an_arp_answer_tells_the_address_and_whose_card_it_is_on() -> None:
    found = arp_answer(arp(2))
    assert found is not None
    assert (str(found[0]), found[1]) == ("192.168.0.10", "52:54:00:00:00:02")
    assert arp_answer(arp(1)) is None
    assert arp_answer(arp(2)[:30]) is None


def gratuitous(operation: int, sender: str = "203.0.113.10", target: str = "203.0.113.10") -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    ends = bytes.fromhex("525400000002") + ip_address(sender).packed + bytes(6) + ip_address(target).packed
    return MACS + b"\x08\x06" + head + ends


def advertisement(flags: int, kind: int = 136) -> bytes:
    return ipv6(58, struct.pack("!BBHI", kind, 0, 0, flags << 24) + ip_address("2001:db8::1").packed)


@pytest.mark.parametrize(
    ("frame", "address"),
    [
        (gratuitous(1), "203.0.113.10"),
        (gratuitous(2), "203.0.113.10"),
        (gratuitous(2)[:12] + b"\x81\x00\x00\x0a" + gratuitous(2)[12:], "203.0.113.10"),
        (advertisement(0x20), "2001:db8::1"),
        (gratuitous(2, target="203.0.113.50"), None),  # an answer to somebody
        (advertisement(0x60), None),  # solicited
        (advertisement(0x20, kind=135), None),
        (gratuitous(1)[:40], None),
        (advertisement(0x20)[:70], None),
        (ipv6(6, PORTS), None),
        (b"", None),
    ],
)
def test_an_address_is_announced_by_who_says_so_unasked(frame: bytes, address: str | None) -> None:
    found = announced(frame)
    assert (found and str(found)) == address


def test_the_chart_has_a_bar_for_every_way_and_number_of_clients() -> None:
    rates = {"plain": [1.0, 2.0, 3.0, 4.0], "nat": [1.0, 1.9, 2.9, 3.9], "dr": [2.0, 3.0, 4.0, 5.0]}
    drawn = chart(rates)
    assert drawn.startswith("<svg") and drawn.endswith("</svg>\n")
    assert drawn.count("<rect") == 1 + len(rates) * (len(CLIENTS) + 1)
