"""Faults that a test plants on balancers, to see that a claim finds them.

A claim that asks through a VIP sees one node only: the one that holds it. A fault on the master alone is missed as soon
as the VIPs leave it, and planting a fault often makes them leave: who restarts HAProxy on the master may hand them
over, and a node that is preferred takes them back while the claim runs. So a fault is planted on every node, or the
test says which part its node has to play, and fails with that reason if the node did not play it.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ndakit.lab.network import LabNetwork


@contextlib.contextmanager
def on_every_node(lab: LabNetwork, breaking: str, mending: str) -> Iterator[None]:
    """Something is wrong on every node for a while, so that it is wrong on the one that holds the VIPs. `breaking` and
    `mending`: shell text that has to succeed; the lab has settled after each. Raises LabNotReady if a node refuses
    one."""
    try:
        _order(lab, breaking)
        lab.settle()
        yield
    finally:
        _order(lab, mending)
        lab.settle()


@contextlib.contextmanager
def on_master(lab: LabNetwork, node: str, breaking: str, mending: str) -> Iterator[None]:
    """Something is wrong on `node` alone, which is the master meanwhile: asserted when it is broken, and again at the
    end, before it is mended. For what may not be wrong on both nodes."""
    with _on(lab, node, breaking, mending, settle=True):
        assert lab.one_master() == node, f"{node} is not the master: what is wrong there is not seen"
        yield
        assert lab.one_master() == node, f"the VIPs left {node} meanwhile: what is wrong there may have been missed"


@contextlib.contextmanager
def on_backup(lab: LabNetwork, node: str, breaking: str, mending: str, *, settle: bool = True) -> Iterator[None]:
    """Something is wrong on `node` alone, which is not the master at the beginning: it shows when the node takes over.
    `settle=False`: the lab cannot settle with this fault."""
    assert lab.one_master() != node, f"{node} is the master: it cannot take over"
    with _on(lab, node, breaking, mending, settle=settle):
        assert lab.one_master() != node, f"{node} has become master too early"
        yield


@contextlib.contextmanager
def on_node(lab: LabNetwork, node: str, breaking: str, mending: str) -> Iterator[None]:
    """Something is wrong on `node` alone, and is looked for there, whoever is master. The lab need not settle with it,
    and has not settled at the end."""
    try:
        lab.order(node, breaking)
        yield
    finally:
        lab.order(node, mending)


@contextlib.contextmanager
def _on(lab: LabNetwork, node: str, breaking: str, mending: str, *, settle: bool) -> Iterator[None]:
    try:
        lab.order(node, breaking)
        if settle:
            lab.settle()
        yield
    finally:
        lab.order(node, mending)
        lab.settle()


def _order(lab: LabNetwork, command: str) -> None:
    """Type a command on all nodes at once; on all of them, also if one refuses it."""
    with ThreadPoolExecutor(max_workers=len(lab.profile.nodes)) as pool:
        typed = [pool.submit(lab.order, node, command) for node in lab.profile.nodes]
    for one in typed:
        one.result()


CLAIMED = {"outcome", "assert_fails", "_claim", "killed"}
"""What a test calls to try a claim."""


def by_hand(text: str) -> list[str]:
    """Functions that type commands on a balancer in `finally`, after they have tried a claim: their faults are not
    planted as they should be."""
    names = []
    for function in (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)):
        tries = [n for n in ast.walk(function) if isinstance(n, ast.Try)]
        if any(_calls(t.body) & CLAIMED and _calls(t.finalbody) & {"order", "run"} for t in tries):
            names.append(function.name)
    return names


def _calls(body: list[ast.stmt]) -> set[str]:
    calls = [n.func for s in body for n in ast.walk(s) if isinstance(n, ast.Call)]
    return {f.attr if isinstance(f, ast.Attribute) else f.id for f in calls if isinstance(f, ast.Attribute | ast.Name)}
