"""What is claimed of bonds, tried on a stand-in for a lab: which cards lose their links, and what is a failure."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import cast

import pytest

import goldens
from ndakit.lab.host.measure import Polled, Try, Watched
from ndakit.lab.network import LabNetwork
from ndakit.model import Profile
from ndakit.verify.claims import bonding
from ndakit.verify.claims.base import Outcome

CASES = {case.name: case for case in bonding.CASES}
CARDS = ["eth0", "eth1", "eth2"]


@functools.cache
def profile() -> Profile:
    text = goldens.PROFILES["bakery"].read_text()
    old = "{lan: {nics: [eth0],"
    assert old in text
    return goldens.parse(text.replace(old, "{lan: {nics: [eth0, eth1, eth2], bond: {mode: 802.3ad},"))


class Bonds:
    """Two nodes with bonds of three cards, and a client who is answered but for a time after each loss of links."""

    def __init__(self, gap_ms: float, *, moves: bool = False, silent: bool = False, all_in_use: bool = False) -> None:
        self.profile = profile()
        self._gap_ms, self._moves, self._silent, self._all_in_use = gap_ms, moves, silent, all_in_use
        self.switches = "one"
        self.down: set[tuple[str, str]] = set()
        self.lost: list[set[tuple[str, str]]] = []
        self._master = "lb1"

    def as_lab(self) -> LabNetwork:
        return cast(LabNetwork, self)

    def cable_up(self, node: str, bond: str, switches: str) -> None:
        self.switches = switches

    def bond_cards(self, node: str, bond: str) -> list[str]:
        return CARDS

    def carrying(self, node: str, bond: str) -> list[str]:
        return CARDS

    def facts(self, node: str) -> SimpleNamespace:
        used = {"one": CARDS, "two": CARDS[:2], "none": CARDS[:1]}[self.switches]
        cards = [SimpleNamespace(name=c, up=True, carries=c in used or self._all_in_use) for c in CARDS]
        return SimpleNamespace(bond=lambda name: cards)

    def machine(self, node: str) -> SimpleNamespace:
        def set_link(card: str, up: bool) -> None:
            (self.down.discard if up else self.down.add)((node, card))

        return SimpleNamespace(set_link=set_link)

    @contextmanager
    def watch(self, front: object) -> Iterator[SimpleNamespace]:
        answer = Try(0, 1, 0.5, "", 200, "web1")
        failure = Try(2, 2, None, "time-out", 0, "")
        again = Try(self._gap_ms, self._gap_ms + 1, self._gap_ms, "", 200, "web1")
        tries = (answer, failure) if self._silent else (answer, failure, again) if self._gap_ms else (answer,)

        def stop() -> Watched:
            self.lost.append(set(self.down))
            if self._moves:
                self._master = "lb2"
            return Watched(Polled(tries, 0.1, 0.5, len(tries), 0, 0, 0.0, False))

        yield SimpleNamespace(stop=stop, wait_until=lambda condition, deadline: stop)

    def ask(self, front: object, requests: int) -> SimpleNamespace:
        return SimpleNamespace(failures=0)

    def is_up(self, node: str) -> bool:
        return True

    def master(self) -> str:
        return self._master

    one_master = master

    def settle(self) -> None:
        """They agree."""

    def tell(self, text: str) -> None:
        """Nobody listens."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda s: None)


def tried(bonds: Bonds, name: str) -> Outcome:
    return bonding.case(bonds.as_lab(), "lan", CASES[name])


def everybody(*cards: str) -> set[tuple[str, str]]:
    return {(node, card) for node in ("lb1", "lb2") for card in cards}


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("mlag", [everybody("eth0", "eth1"), everybody("eth2")]),
        ("two-switches", [everybody("eth0", "eth1")]),
        ("no-lacp", [{("lb1", "eth0")}]),
    ],
)
def test_a_switch_takes_the_cards_of_all_nodes_with_it_and_all_is_put_back(
    name: str, lost: list[set[tuple[str, str]]]
) -> None:
    bonds = Bonds(gap_ms=300)
    outcome = tried(bonds, name)
    assert outcome.ok, outcome.detail
    assert bonds.lost == lost
    assert (bonds.down, bonds.switches) == (set(), "one")


@pytest.mark.parametrize(
    ("name", "bonds", "detail"),
    [
        ("mlag", Bonds(1300), "the gap was longer than 1000 ms; the gap was longer than 1000 ms"),
        ("mlag", Bonds(300, moves=True), "without eth0, eth1 the VIPs went from lb1 to lb2; "),
        ("two-switches", Bonds(5300), "the gap was longer than 5000 ms"),
        ("two-switches", Bonds(300, silent=True), "clients were not answered again within 1 ms"),
        ("two-switches", Bonds(300, all_in_use=True), "lb1 uses eth0, eth1, eth2 at once, although they do not belong"),
        ("no-lacp", Bonds(5300), "the gap was longer than 5000 ms"),
    ],
)
def test_what_clients_or_the_vips_must_not_do_is_found(name: str, bonds: Bonds, detail: str) -> None:
    outcome = tried(bonds, name)
    assert not outcome.ok and outcome.detail.startswith(detail), outcome.detail


def test_of_two_switches_that_are_no_pair_one_may_move_the_vips() -> None:
    assert tried(Bonds(300, moves=True), "two-switches").ok
