"""Who answers for a VIP, asked on the wire the whole time: an address that two nodes answer for is one too many.

The question is the one of a host that looks whether an address is taken (RFC 5227, 2.1.1, and RFC 4862, 5.4.2): whoever
holds the address answers, and nobody's table of neighbours learns anything from the question.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Self

from ndakit.lab.frames import announced, arp_answer, ethertype_at, is_taken, mac_text
from ndakit.lab.network import LabNetwork
from ndakit.lab.switch import Frame

ASKED_EVERY_S = 0.2
_Place = tuple[str, int, IPv4Address | IPv6Address]
"""Segment, VLAN (0: none) and address: a link-local one may be a VIP of several networks."""


class Holders:
    """Asks for every VIP five times a second while it is open; who answered is kept per round."""

    def __init__(self, lab: LabNetwork) -> None:
        self._lab = lab
        self._nodes = {nic.mac: node for node, nics in lab.plan.balancers.items() for nic in nics}
        self._lock = threading.Lock()
        self._now: defaultdict[_Place, set[str]] = defaultdict(set)
        self._rounds: defaultdict[_Place, list[frozenset[str]]] = defaultdict(list)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="holders", daemon=True)
        self._observation = lab.switch.on_frame(self._see)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._observation.end()

    def doubled_s(self) -> dict[str, float]:
        """VIP → for how long two nodes answered for an address of it, at most and without a break; seconds."""
        with self._lock:
            return {
                name: max(longest_double_s(self._rounds[self._place(name, address)]) for address in vip.address)
                for name, vip in self._lab.profile.vips.items()
            }

    def _ask(self) -> None:
        places = [self._place(name, a) for name, vip in self._lab.profile.vips.items() for a in vip.address]
        questions = [(segment, is_taken(address, vlan or None)) for segment, vlan, address in places]
        while not self._stop.wait(ASKED_EVERY_S):
            with self._lock:
                for place in places:
                    self._rounds[place].append(frozenset(self._now.pop(place, ())))
            for segment, frame in questions:
                self._lab.switch.inject(segment, frame)

    def _place(self, vip: str, address: IPv4Address | IPv6Address) -> _Place:
        network = self._lab.profile.vips[vip].network
        return self._segment(network), self._lab.profile.networks[network].vlan or 0, address

    def _segment(self, network: str) -> str:
        """Where a network's first card is plugged in."""
        first = self._lab.profile.networks[network].nics[0]
        nics = (nic for cards in self._lab.plan.balancers.values() for nic in cards)
        return next(nic.segment for nic in nics if nic.name == first and nic.segment is not None)

    def _see(self, frame: Frame) -> None:
        node = self._nodes.get(mac_text(frame.data[6:12]))
        if node is None:
            return
        arp = arp_answer(frame.data)
        address = arp[0] if arp is not None else announced(frame.data)
        if address is not None:
            _, _, vlan = ethertype_at(frame.data)
            with self._lock:
                self._now[frame.segment, vlan, address].add(node)


def longest_double_s(rounds: Sequence[frozenset[str]]) -> float:
    """How long two nodes answered without a break: rounds in a row with more than one of them, in seconds."""
    longest = now = 0
    for nodes in rounds:
        now = now + 1 if len(nodes) > 1 else 0
        longest = max(longest, now)
    return longest * ASKED_EVERY_S
