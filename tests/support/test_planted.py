"""Faults that tests plant on balancers: a claim that asks through a VIP meets them whoever holds it, or the test says
that it did not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import cast

import pytest

import planted
from ndakit.lab.clients import LabNotReady
from ndakit.lab.network import LabNetwork


class TwoNodes:
    """A lab of two nodes that tells what was done to it. The first one holds the VIPs until `move`."""

    def __init__(self, refuses: str = "") -> None:
        self.profile = SimpleNamespace(nodes={"lb1": None, "lb2": None})
        self.done: list[str] = []
        self.broken: set[str] = set()
        self._refuses = refuses
        self.master = "lb1"

    def order(self, node: str, command: str) -> None:
        if f"{node} {command}" == self._refuses:
            raise LabNotReady("refused", "")
        self.done.append(f"{node} {command}")
        (self.broken.add if command == "break" else self.broken.discard)(node)

    def one_master(self) -> str:
        return self.master

    def settle(self) -> None:
        self.done.append("settle")

    @property
    def fault_is_served(self) -> bool:
        """Whether who asks through a VIP meets the fault."""
        return self.master in self.broken


def lab(nodes: TwoNodes) -> LabNetwork:
    return cast(LabNetwork, nodes)


def test_who_asks_through_a_vip_meets_the_fault_although_the_vips_move() -> None:
    nodes = TwoNodes()
    with planted.on_every_node(lab(nodes), "break", "mend"):
        assert nodes.fault_is_served
        nodes.master = "lb2"
        assert nodes.fault_is_served
    assert not nodes.broken
    assert sorted(nodes.done[:2]) == ["lb1 break", "lb2 break"]
    assert nodes.done[2] == nodes.done[-1] == "settle"


@pytest.mark.parametrize("refuses", ["lb1 break", "lb1 mend"])
def test_a_node_that_refuses_does_not_keep_the_other_one_from_being_mended(refuses: str) -> None:
    nodes = TwoNodes(refuses)
    with pytest.raises(LabNotReady), planted.on_every_node(lab(nodes), "break", "mend"):
        assert refuses == "lb1 mend", "a test does not begin with half of its fault"
    assert "lb2 mend" in nodes.done


Planting = Callable[[LabNetwork, str, str, str], AbstractContextManager[None]]
WAYS: list[Planting] = [
    planted.on_node,
    planted.on_master,
    planted.on_backup,
    lambda lab, _, breaking, mending: planted.on_every_node(lab, breaking, mending),
]


@pytest.mark.parametrize("plant", WAYS)
def test_what_a_test_planted_is_mended_when_it_fails(plant: Planting) -> None:
    nodes = TwoNodes()
    node = "lb2" if plant is planted.on_backup else "lb1"
    with pytest.raises(ZeroDivisionError), plant(lab(nodes), node, "break", "mend"):
        raise ZeroDivisionError
    assert not nodes.broken


def test_a_fault_on_the_master_alone_fails_the_test_if_the_vips_leave_it() -> None:
    nodes = TwoNodes()
    with (
        pytest.raises(AssertionError, match="the VIPs left lb1 meanwhile"),
        planted.on_master(lab(nodes), "lb1", "break", "mend"),
    ):
        nodes.master = "lb2"
    assert not nodes.broken


@pytest.mark.parametrize(("plant", "node"), [(planted.on_master, "lb2"), (planted.on_backup, "lb1")])
def test_a_node_that_has_not_the_part_that_a_test_needs_fails_it(plant: Planting, node: str) -> None:
    nodes = TwoNodes()
    with pytest.raises(AssertionError, match=f"{node} is"), plant(lab(nodes), node, "break", "mend"):
        pytest.fail("not reached")
    assert not nodes.broken


def test_a_fault_planted_by_hand_is_seen() -> None:
    text = """
def test_one(pair):
    pair.lab.order("lb1", "break")
    try:
        outcome = pair.outcome("service/www")
    finally:
        pair.lab.order("lb1", "mend")
"""
    assert planted.by_hand(text) == ["test_one"]
