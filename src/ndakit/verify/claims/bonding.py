"""Claims about bonds that speak LACP (802.3ad): that their cards are one link, and what a cable or a switch less does.

The lab's switch plays the switches: one that bundles a node's ports (or an MLAG pair that does, which for the node is
the same; each half of the cards is plugged into one of the pair), two that know nothing of each other, and one that
nobody has told of the bundle.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ndakit.core.deadline import Deadline, DeadlineExceeded
from ndakit.lab.clients import LabLacks, ServicePort
from ndakit.lab.network import SWITCHES, LabNetwork, Switches, halves
from ndakit.model import Profile
from ndakit.verify.claims.base import Outcome, asked_services, first_service_port
from ndakit.verify.claims.failover import gap_errors, measured, poll_target, precision, unserved

REQUESTS = 48
"""Fresh connections whose answers have to spread: that none of two cards gets a tenth of them is no accident."""
LEAST_SHARE = 0.1
LASTS_S = 1.5
AGREED_S = 20.0
"""How long two sides may take to agree; Linux waits two seconds for more cards before it begins."""
ONE_GAP_S = 1.0
"""A bundle without one of its ports: Linux looks at its cards every 0.1 s (monitor_interval in /etc/config/network), a
lost SYN is asked again after 0.25 s by the one who measures."""
OTHER_GAP_S = 5.0
"""Until another bundle is in use: the same, three LACP frames a second apart at worst, and VRRP, which meanwhile hears
nothing and may move the VIPs."""


@dataclass(frozen=True)
class Case:
    """Something that happens to a bond. `switches`: what the cards are plugged into; `out`: which cards lose their
    link, one list after the other; `everywhere`: of all nodes, as when a switch fails, or of the master alone."""

    name: str
    text: str
    switches: Switches
    out: Callable[[list[str], list[str]], list[list[str]]]
    everywhere: bool
    bound_s: float
    stays: bool
    """Whether the VIPs stay where they are."""


def _in_use(_cards: list[str], carrying: list[str]) -> list[list[str]]:
    return [carrying]


def _each_half(cards: list[str], _carrying: list[str]) -> list[list[str]]:
    return [list(half) for half in halves(cards)]


CASES = (
    Case("mlag", "an MLAG pair: one of its two switches fails, then the other", "one", _each_half, True, ONE_GAP_S,
         stays=True),
    Case("two-switches", "two switches that are no pair: one is used; when it fails, the other takes over", "two",
         _in_use, True, OTHER_GAP_S, stays=False),
    Case("no-lacp", "a switch that does not speak LACP: one card is used; without its cable, another", "none", _in_use,
         False, OTHER_GAP_S, stays=False),
)  # fmt: skip


def speaks_lacp(profile: Profile, network: str) -> bool:
    """True if a network has a bond of its own (not a VLAN beside another network's) that speaks LACP."""
    bond = profile.networks[network].bond
    return bond is not None and bond.mode == "802.3ad" and profile.base_owner(network) == network


def bundled(lab: LabNetwork, network: str) -> Outcome:
    """What each node's kernel and the switch say of the bundle, and by which ports the master's frames come."""
    bond = lab.profile.base_device(network)
    wrong = [text for node in lab.profile.nodes for text in _disagreements(lab, node, bond)]
    node = lab.master() or next(iter(lab.profile.nodes))
    ports = lab.bond_ports(node, bond)
    before = [lab.switch.counters(port).in_frames for port in ports]
    _talk(lab, network)
    came = [lab.switch.counters(p).in_frames - n for p, n in zip(ports, before, strict=True)]
    total = sum(came) or 1
    used = [count for count in came if count >= LEAST_SHARE * total]
    if len(used) < 2:
        wrong.append(f"{node} sends over one card only: {came} frames")
    shares = ", ".join(f"{c} {100 * n / total:.0f} %" for c, n in zip(lab.bond_cards(node, bond), came, strict=True))
    return Outcome(not wrong, f"{shares} of {total} frames of {node}", "; ".join(wrong), {"frames": total})


def _disagreements(lab: LabNetwork, node: str, bond: str) -> Iterator[str]:
    cards = {card.name: card for card in lab.facts(node).bond(bond)}
    for name in lab.bond_cards(node, bond):
        card = cards.get(name)
        if card is None:
            yield f"{name} is not in {bond} of {node}"
        elif not card.up or card.speed == "Unknown":
            yield f"{name} of {node} is {'up' if card.up else 'down'}, its speed {card.speed}"
        elif card.partner != SWITCHES[0]:
            yield f"{name} of {node} has {card.partner or 'nobody'} as its LACP partner, not the switch"
        elif not card.carries:
            yield f"{name} of {node} is not in the bundle that is in use"
    carrying = {port.name for port in lab.carrying(node, bond)}
    for port in lab.bond_ports(node, bond):
        if port.name not in carrying:
            yield f"the switch does not take {port.name} into the bundle"


def _service_ports(profile: Profile, network: str) -> list[ServicePort]:
    """A service whose requests come by the bond; else one whose servers are asked over it; else any."""
    here = {n for n in profile.networks if profile.base_owner(n) == network}
    outside = [
        first_service_port(profile, name)._replace(endpoint=endpoint)
        for name in asked_services(profile)
        for endpoint in profile.endpoints(name)
        if endpoint.network in here and profile.services[name].transport == "tcp"
    ]
    inside = [
        first_service_port(profile, name)
        for name in asked_services(profile)
        for server in profile.pools[profile.services[name].main_pool].servers.values()
        if any(profile.network_of(a) in here for a in server.address)
    ]
    return [*outside, *inside]


def _talk(lab: LabNetwork, network: str) -> None:
    """Have many connections over the bond; where no service uses it, what goes over it anyway has to do."""
    for service_port in _service_ports(lab.profile, network):
        with contextlib.suppress(LabLacks):
            lab.ask(service_port, REQUESTS)
            return
    time.sleep(10.0)


def case(lab: LabNetwork, network: str, kind: Case) -> Outcome:
    """Plug in, wait until it works, take cards out, ask all the time, and put everything back."""
    bond = lab.profile.base_device(network)
    service_port = next(iter(_service_ports(lab.profile, network)), None) or poll_target(lab.profile)
    if service_port is None:
        return Outcome(False, "not tried", "there is nothing that a client could ask meanwhile")
    wrong: list[str] = []
    figures: list[str] = []
    values: dict[str, float | int | str] = {}
    try:
        if kind.switches != "one":
            lab.tell(kind.text)
            for node in lab.profile.nodes:
                lab.cable_up(node, bond, kind.switches)
            time.sleep(3.0)  # what was agreed with the switch before has to be forgotten first
        _settled(lab, bond, kind.switches)
        master = lab.one_master()
        nodes = [n for n in lab.profile.nodes if lab.is_up(n)] if kind.everywhere else [master]
        used = _in_use_of(lab, master, bond)
        if kind.switches != "one" and len(used) >= len(lab.bond_cards(master, bond)):
            wrong.append(f"{master} uses {', '.join(used)} at once, although they do not belong together")
        for cards in kind.out(lab.bond_cards(master, bond), used):
            with lab.watch(service_port) as watch:
                time.sleep(0.5)
                lab.tell(f"{', '.join(cards)} of {', '.join(nodes)} lose their link")
                _links(lab, nodes, cards, up=False)
                time.sleep(LASTS_S if kind.stays else kind.bound_s)
                with contextlib.suppress(DeadlineExceeded):  # then the gap is longer than allowed
                    watch.wait_until(lambda polled: not polled.silent, Deadline(kind.bound_s, "an answer"))
                polled = watch.stop()
            wrong += gap_errors(polled, kind.bound_s)
            wrong += [f"without {', '.join(cards)}: {text}" for text in unserved(lab)]
            if kind.stays and (now := lab.master()) != master:
                wrong.append(f"without {', '.join(cards)} the VIPs went from {master} to {now or 'nobody'}")
            _links(lab, nodes, cards, up=True)
            _settled(lab, bond, kind.switches)
            figures.append(f"{polled.gap_ms:.0f} ms without {', '.join(cards)}{precision(polled)}")
            values = max((values, measured(polled)), key=lambda v: float(v.get("gap_ms", -1)))
    finally:
        for node in lab.profile.nodes:
            if lab.is_up(node):
                _links(lab, [node], lab.bond_cards(node, bond), up=True)
                if kind.switches != "one":
                    lab.cable_up(node, bond, "one")
        _settled(lab, bond, "one")
    return Outcome(
        not wrong, f"gap {'; '.join(figures)} (limit {kind.bound_s * 1000:.0f} ms)", "; ".join(wrong), values
    )


def _in_use_of(lab: LabNetwork, node: str, bond: str) -> list[str]:
    """The cards that a node's kernel uses."""
    return [card.name for card in lab.facts(node).bond(bond) if card.carries and card.up]


def _links(lab: LabNetwork, nodes: list[str], cards: list[str], *, up: bool) -> None:
    for node in nodes:
        for card in cards:
            lab.machine(node).set_link(card, up)


def _settled(lab: LabNetwork, bond: str, switches: Switches) -> None:
    """Wait until the nodes and the switch agree again, and the pair with itself."""

    def agreed() -> bool:
        nodes = [n for n in lab.profile.nodes if lab.is_up(n)]
        return all(
            len(lab.carrying(n, bond)) >= (len(lab.bond_cards(n, bond)) if switches == "one" else 1)
            and _in_use_of(lab, n, bond)
            for n in nodes
        )

    with contextlib.suppress(DeadlineExceeded):  # then settle says what does not work
        Deadline(AGREED_S, "the switch and the nodes' bonds to agree").wait_until(agreed, every_s=0.5)
    lab.settle()
