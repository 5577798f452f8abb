"""Frames on the lab's wire are told apart: whose packets they are, and who claims an address."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from ndakit.cli.bench.topologies import CLIENTS, chart
from ndakit.lab.frames import ARP, IPV6, announced, arp_answer, decode_segment, ethertype_at, is_taken
from ndakit.verify.claims.holders import ASKED_EVERY_S, longest_double_s

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
    segment = decode_segment(frame)
    assert segment is not None
    assert (segment.source_mac, str(segment.source), segment.source_port) == ("52:54:00:00:00:02", source, 80)
    assert (segment.destination_port, segment.transport) == (40000, "tcp")


def test_a_tag_in_front_changes_nothing_and_datagrams_are_udp() -> None:
    plain = ipv4(17, PORTS)
    segment = decode_segment(plain[:12] + b"\x81\x00\x00\x0a" + plain[12:])
    assert segment is not None
    assert (segment.transport, segment.source_port) == ("udp", 80)


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
    answer = arp_answer(arp(2))
    assert answer is not None
    assert (str(answer[0]), answer[1]) == ("192.168.0.10", "52:54:00:00:00:02")
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
    vip = announced(frame)
    assert (vip and str(vip)) == address


def test_the_chart_has_a_bar_for_every_way_and_number_of_clients() -> None:
    rates = {"plain": [1.0, 2.0, 3.0, 4.0], "nat": [1.0, 1.9, 2.9, 3.9], "dr": [2.0, 3.0, 4.0, 5.0]}
    drawn = chart(rates)
    assert drawn.startswith("<svg") and drawn.endswith("</svg>\n")
    assert drawn.count("<rect") == 1 + len(rates) * (len(CLIENTS) + 1)


def test_the_question_whether_an_address_is_taken_is_one_that_its_holder_answers_and_nobody_learns_from() -> None:
    probe = is_taken(IPv4Address("192.0.2.10"), 7)
    kind, at, vlan = ethertype_at(probe)
    assert (kind, vlan, probe[:6]) == (ARP, 7, b"\xff" * 6)
    assert probe[at + 6 : at + 8] == b"\0\1"
    assert probe[at + 14 : at + 18] == bytes(4)
    assert probe[at + 24 : at + 28] == IPv4Address("192.0.2.10").packed
    ask = is_taken(IPv6Address("2001:db8::1:2:3"))
    kind, at, vlan = ethertype_at(ask)
    assert (kind, vlan, ask[:6]) == (IPV6, 0, bytes.fromhex("3333ff020003"))
    assert ask[at + 8 : at + 24] == bytes(16)
    assert IPv6Address(ask[at + 24 : at + 40]) == IPv6Address("ff02::1:ff02:3")
    assert (ask[at + 7], ask[at + 40]) == (255, 135)
    # The sum over pseudo header and message is all ones, as RFC 4443, 2.3 and RFC 1071 have it.
    words = ask[at + 8 : at + 40] + bytes((0, 0, 0, 24, 0, 0, 0, 58)) + ask[at + 40 :]
    total = sum(int.from_bytes(words[i : i + 2], "big") for i in range(0, len(words), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF
    assert announced(probe) is None
    assert announced(ask) is None


def test_an_address_has_two_holders_for_as_long_as_two_answer_in_a_row() -> None:
    one, two, none = frozenset({"a"}), frozenset({"a", "b"}), frozenset[str]()
    assert longest_double_s([]) == 0
    assert longest_double_s([one, none, one]) == 0
    assert longest_double_s([two, one, two, two, two, none, two, two]) == pytest.approx(3 * ASKED_EVERY_S)
