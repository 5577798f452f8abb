"""The lab's own machines: from a state that was kept, or booted, and then their state is kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ndakit.core.deadline import DeadlineExceeded
from ndakit.lab.host import LabHosts
from ndakit.lab.host.channel import LabHostRefused
from ndakit.lab.network import LabNetwork
from ndakit.machine import saved
from ndakit.machine.vm import Vm

Said = list[str]


class Machine:
    """A machine that went on from a state, or booted, and what is done with it."""

    agent_path, spec = Path("/agent"), None

    def __init__(self, said: Said, *, resumed: bool) -> None:
        self.said, self.resumed = said, resumed

    def power_off(self) -> None:
        self.said.append("off")

    def power_on(self) -> None:
        self.resumed = False
        self.said.append("on")


class Hosts:
    """A connection to it."""

    def __init__(self, said: Said, refusal: Exception | None) -> None:
        self.said, self.refusal = said, refusal

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.said.append("closed")

    def resumed(self) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.said.append("told the time")


def connected(
    monkeypatch: pytest.MonkeyPatch, *, resumed: bool, silent: bool = False, refusal: Exception | None = None
) -> Said:
    """What happens until there is a connection."""
    said: Said = []
    machine = Machine(said, resumed=resumed)

    def connect(path: Path, *, segments: object, timeout_s: float) -> Any:
        if silent and machine.resumed:
            raise DeadlineExceeded("waited 30 s for the lab host to answer, in vain", where=str(path), fix="wait")
        said.append("connected")
        return Hosts(said, refusal)

    monkeypatch.setattr(LabHosts, "connect", connect)
    monkeypatch.setattr(saved, "place", lambda spec, accelerator: Path("/state"))
    monkeypatch.setattr(saved, "keep", lambda vm, place: said.append("kept"))
    lab = SimpleNamespace(plan=SimpleNamespace(segments=("lan",)), accelerator=None)
    LabNetwork._connect(cast(LabNetwork, lab), "lab-people", cast(Vm, machine))
    return said


def test_a_machine_that_boots_leaves_its_state_while_nobody_talks_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connected(monkeypatch, resumed=False) == ["connected", "closed", "kept", "connected"]


def test_a_machine_from_a_state_is_told_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connected(monkeypatch, resumed=True) == ["connected", "told the time"]


@pytest.mark.parametrize("silent", [True, False])
def test_a_machine_whose_state_does_not_work_boots_and_leaves_another(
    monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    refusal = None if silent else LabHostRefused("-", "resumed", "no such command")
    begun = [] if silent else ["connected", "closed"]
    booted = ["off", "on", "connected", "closed", "kept", "connected"]
    assert connected(monkeypatch, resumed=True, silent=silent, refusal=refusal) == [*begun, *booted]
