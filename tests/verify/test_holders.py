"""Who answers for a VIP, on a real switch with nodes that only answer: two at once are noticed, and for how long."""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from types import SimpleNamespace
from typing import cast

import pytest

from ndakit.lab.frames import ARP, IPV6, ethertype_at
from ndakit.lab.network import LabNetwork
from ndakit.lab.switch import Switch
from ndakit.verify.claims.faults import DOUBLE_S, twice
from ndakit.verify.claims.holders import ASKED_EVERY_S, Holders
from wire import Guest, mac

V4, V6 = IPv4Address("192.0.2.10"), IPv6Address("2001:db8::10")


class Node:
    """Answers as a kernel does that holds these addresses."""

    def __init__(self, guest: Guest, number: int) -> None:
        self.guest, self.mac, self.held = guest, mac(number), set[IPv4Address | IPv6Address]()
        guest.wire.settimeout(0.05)
        self.stopped = False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while not self.stopped:
            with contextlib.suppress(TimeoutError):
                self.answer(self.guest.wire.recv(65535))

    def answer(self, asked: bytes) -> None:
        kind, at, _ = ethertype_at(asked)
        head, sender = self.mac + asked[12:at], asked[6:12]
        if kind == ARP and IPv4Address(asked[at + 24 : at + 28]) in self.held:
            body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + self.mac + asked[at + 24 : at + 28] + sender + bytes(4)
            self.guest.send(sender + head + body)
        if kind == IPV6 and IPv6Address(asked[at + 48 : at + 64]) in self.held:
            target, everybody = asked[at + 48 : at + 64], IPv6Address("ff02::1").packed
            message = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + target
            header = struct.pack("!IHBB", 6 << 28, len(message), 58, 255) + target + everybody
            self.guest.send(b"\x33\x33\0\0\0\1" + head + header + message)

    def close(self) -> None:
        self.stopped = True
        self.thread.join()
        self.guest.wire.close()


@pytest.fixture(params=[None, 7])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[LabNetwork, Node, Node]]:
    """A lab of two nodes on a switch, untagged or on a VLAN."""
    with Switch() as switch, contextlib.ExitStack() as stack:
        nodes = [Node(Guest(switch.port("wan", f"{name}-eth0")), n) for n, name in enumerate(("lb1", "lb2"), 1)]
        for node in nodes:
            stack.callback(node.close)
        network = SimpleNamespace(nics=("eth0",), vlan=request.param)
        nics = {
            name: (SimpleNamespace(name="eth0", mac=node.mac.hex(":"), segment="wan"),)
            for name, node in zip(("lb1", "lb2"), nodes, strict=True)
        }
        vip = SimpleNamespace(network="wan", address=(V4, V6))
        profile = SimpleNamespace(networks={"wan": network}, vips={"www": vip})
        lab = SimpleNamespace(profile=profile, plan=SimpleNamespace(balancers=nics), switch=switch)
        yield cast("LabNetwork", lab), nodes[0], nodes[1]


@pytest.mark.parametrize("address", [V4, V6])
def test_two_nodes_with_one_address_are_noticed(
    place: tuple[LabNetwork, Node, Node], address: IPv4Address | IPv6Address
) -> None:
    lab, one, two = place
    with Holders(lab) as holders:
        one.held = {V4, V6}
        time.sleep(1)
        assert twice(holders.doubled_s()) == ([], 0.0)
        two.held = {address}
        time.sleep(8 * ASKED_EVERY_S)
        two.held = set()
        time.sleep(2 * ASKED_EVERY_S)
    wrong, double_s = twice(holders.doubled_s())
    assert double_s > DOUBLE_S
    assert wrong == [f"two nodes answered for www for {double_s:.1f} s"]


def test_a_handover_is_not_two_holders(place: tuple[LabNetwork, Node, Node]) -> None:
    lab, one, two = place
    with Holders(lab) as holders:
        for _ in range(4):
            one.held, two.held = {V4, V6}, set()
            time.sleep(2 * ASKED_EVERY_S)
            one.held, two.held = set(), {V4, V6}
            time.sleep(2 * ASKED_EVERY_S)
    assert twice(holders.doubled_s())[0] == []
