"""The switch's side of LACP: frames on the wire, agreeing, and which port carries what; with a machine that is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from ndakit.lab import lacp
from ndakit.lab.lacp import NOBODY, SLOW_PROTOCOLS, Bundle, Side
from ndakit.lab.switch import Switch
from wire import BROADCAST, Guest, frame, mac

SWITCH, OTHER = "02:00:00:00:ad:01", "02:00:00:00:ad:02"
Plug = Callable[..., dict[int, Guest]]
ACTIVE_FAST_TOGETHER, IN_SYNC, CARRYING = 0x07, 0x08, 0x30


def host(port: int, state: int, system: int = 1) -> Side:
    return Side(65535, mac(system), 9, 255, port, state)


class Machine:
    """What Linux's bonding does, in the least words: it answers every LACP frame with what it knows."""

    def __init__(self, ports: dict[int, Guest], *, active: set[int] | None = None) -> None:
        self.ports = ports
        self.active = set(ports) if active is None else active
        self.heard: dict[int, Side] = dict.fromkeys(ports, NOBODY)
        self.frames: dict[int, list[bytes]] = {number: [] for number in ports}

    def speak(self) -> None:
        for number, guest in self.ports.items():
            state = ACTIVE_FAST_TOGETHER | (IN_SYNC | CARRYING if number in self.active else 0)
            guest.send(lacp.encode(mac(number), host(number, state), self.heard[number]))

    def hear(self, for_s: float = 0.3) -> None:
        for number, guest in self.ports.items():
            guest.wire.settimeout(for_s / len(self.ports))
            while True:
                try:
                    data = guest.receive()
                except TimeoutError:
                    break
                sides = lacp.decode(data)
                if sides is None:
                    self.frames[number].append(data)
                else:
                    self.heard[number] = sides[0]
                    assert data[:6] == SLOW_PROTOCOLS and len(data) == 124

    def agree(self) -> None:
        for _ in range(3):
            self.speak()
            self.hear()


@pytest.fixture
def switch() -> Iterator[Switch]:
    with Switch() as made:
        yield made


@pytest.fixture
def plug(switch: Switch) -> Iterator[Plug]:
    made: list[Guest] = []

    def plugged(*names: str) -> dict[int, Guest]:
        guests = {number: Guest(switch.port("lan", name)) for number, name in enumerate(names, 1)}
        made.extend(guests.values())
        return guests

    yield plugged
    for guest in made:
        guest.wire.close()


def test_a_frame_is_that_of_the_standard() -> None:
    data = lacp.encode(mac(7), host(1, 0x3F), host(2, 0x47, system=2))
    assert len(data) == 124  # 802.1AX, 6.4.2.3: 110 bytes behind the Ethernet header
    assert data[:18].hex() == "0180c2000002" + mac(7).hex() + "8809" + "01010114"
    assert data[18:34].hex() == "ffff" + mac(1).hex() + "0009" + "00ff" + "0001" + "3f" + "00"
    assert data[36:38].hex() == "0214" and data[56:60].hex() == "03100000"
    assert lacp.decode(data) == (host(1, 0x3F), host(2, 0x47, system=2))


@pytest.mark.parametrize("damage", [0, 12, 14, 15, 16, 36])
def test_what_is_no_such_frame_is_none(damage: int) -> None:
    data = bytearray(lacp.encode(mac(7), host(1, 0x3F), NOBODY))
    if damage:
        data[damage] ^= 0xFF
        assert lacp.decode(bytes(data)) is None
    else:
        assert lacp.decode(bytes(data[:57])) is None


def test_ports_that_agree_are_one_link_and_use_each_of_them(switch: Switch, plug: Plug) -> None:
    ports, other = plug("a-eth0", "a-eth1"), plug("b")[1]
    switch.bundle([g.port for g in ports.values()], SWITCH)
    other.send(frame(BROADCAST, mac(9)))
    machine = Machine(ports)
    machine.hear()
    assert machine.frames == {1: [], 2: []}, "nothing passes before they agree"
    ports[1].send(frame(BROADCAST, mac(1)))
    assert other.silent()
    machine.agree()
    assert all(switch.carries(g.port) for g in ports.values())
    ports[1].send(frame(BROADCAST, mac(1)))
    assert other.receive()[6:12] == mac(1)
    machine.hear()
    assert machine.frames == {1: [], 2: []}, "the bundle does not hear itself"
    stations = range(20, 50)
    for sent, number in enumerate(stations, start=1):
        other.send(frame(mac(1), mac(number)))
        other.send(frame(mac(1), mac(number)))
        other.send(frame(BROADCAST, mac(number)))
        # A socket holds ten frames: nothing more is sent before these three are there.
        end_s = time.monotonic() + 10
        while sum(map(len, machine.frames.values())) < 3 * sent and time.monotonic() < end_s:
            machine.hear(0.04)
    machine.hear(0.1)
    received = {n: [f[6:12] for f in frames if f[0:6] == mac(1)] for n, frames in machine.frames.items()}
    assert sorted(received[1] + received[2]) == sorted(mac(n) for n in stations for _ in "ab")
    assert not set(received[1]) & set(received[2]), "a conversation stays on one port"
    assert min(len(received[1]), len(received[2])) > 8
    flooded = [f[6:12] for frames in machine.frames.values() for f in frames if f[0:6] == BROADCAST]
    assert sorted(flooded) == sorted(mac(n) for n in stations), "a flooded frame comes once"


def test_without_one_link_the_other_takes_all_and_gives_back(switch: Switch, plug: Plug) -> None:
    ports, other = plug("a-eth0", "a-eth1"), plug("b")[1]
    switch.bundle([g.port for g in ports.values()], SWITCH)
    machine = Machine(ports)
    machine.agree()
    ports[1].port.carrier(False)
    for number in range(20, 40):
        other.send(frame(mac(1), mac(number)))
    machine.hear()
    assert (len(machine.frames[1]), len(machine.frames[2])) == (0, 20)
    ports[1].port.carrier(True)
    assert not switch.carries(ports[1].port), "it has to agree anew"
    machine.heard[1] = NOBODY
    machine.agree()
    assert switch.carries(ports[1].port)


def test_a_switch_that_does_not_speak_has_plain_ports_and_passes_no_lacp_on(switch: Switch, plug: Plug) -> None:
    ports, other = plug("a-eth0", "a-eth1"), plug("b")[1]
    switch.bundle([g.port for g in ports.values()], SWITCH, speaks=False)
    machine = Machine(ports)
    machine.agree()
    assert machine.heard == {1: NOBODY, 2: NOBODY}
    assert other.silent(), "LACP goes nowhere"
    other.send(frame(BROADCAST, mac(9)))
    machine.hear()
    assert [len(f) for f in machine.frames.values()] == [1, 1]


def test_lacp_of_a_port_without_a_bundle_goes_nowhere_and_is_counted(switch: Switch, plug: Plug) -> None:
    ports, other = plug("a"), plug("b")[1]
    Machine(ports).speak()
    assert other.silent()
    assert switch.counters(ports[1].port).drops == {"link-local": 1}


def test_two_switches_that_are_no_pair_are_two_partners_of_which_one_is_used(switch: Switch, plug: Plug) -> None:
    ports, other = plug("a-eth0", "a-eth1"), plug("b")[1]
    switch.bundle([ports[1].port], SWITCH)
    switch.bundle([ports[2].port], OTHER)
    machine = Machine(ports, active={2})  # Linux keeps the other aggregator out of sync
    machine.agree()
    assert [machine.heard[n].system.hex(":") for n in (1, 2)] == [SWITCH, OTHER]
    assert [switch.carries(ports[n].port) for n in (1, 2)] == [False, True]
    other.send(frame(BROADCAST, mac(9)))
    machine.hear()
    assert [len(f) for f in machine.frames.values()] == [0, 1]
    machine.active = {1}
    machine.agree()
    assert [switch.carries(ports[n].port) for n in (1, 2)] == [True, False]


def test_a_foreign_machine_on_one_port_does_not_get_into_the_bundle() -> None:
    bundle = Bundle(mac(5), ["one", "two"])
    one, two = bundle.members["one"], bundle.members["two"]
    for member, system in ((one, 1), (two, 2)):
        member.hear(lacp.encode(mac(1), host(1, ACTIVE_FAST_TOGETHER | IN_SYNC, system), NOBODY), 0.0)
        words = member.due(0.0)
        assert words is not None
        sides = lacp.decode(words)
        assert sides is not None
        member.hear(lacp.encode(mac(1), host(1, ACTIVE_FAST_TOGETHER | IN_SYNC, system), sides[0]), 0.1)
    assert bundle.carrying() == ["one"]


def test_a_machine_that_falls_silent_is_gone_after_three_seconds() -> None:
    bundle = Bundle(mac(5), ["one"])
    one = bundle.members["one"]
    one.hear(lacp.encode(mac(1), host(1, ACTIVE_FAST_TOGETHER | IN_SYNC), NOBODY), 0.0)
    sides = lacp.decode(one.due(0.0) or b"")
    assert sides is not None and not one.carries, "it does not know us yet"
    one.hear(lacp.encode(mac(1), host(1, ACTIVE_FAST_TOGETHER | IN_SYNC), sides[0]), 0.1)
    assert one.carries
    assert one.due(0.2) is not None, "a change is said at once"
    assert one.due(0.3) is None
    assert one.due(1.3) is not None, "and that one is there every second"
    assert one.carries
    one.due(3.2)
    assert not one.carries and bundle.way(frame(mac(1), mac(2))) is None


def test_the_switch_speaks_without_being_asked(switch: Switch, plug: Plug) -> None:
    ports = plug("a-eth0")
    switch.bundle([ports[1].port], SWITCH)
    started_s = time.monotonic()
    sides = lacp.decode(ports[1].receive())
    assert sides is not None and sides[0].system.hex(":") == SWITCH and sides[1] == NOBODY
    assert time.monotonic() - started_s < 2
