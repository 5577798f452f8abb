"""Servers taken out and brought back on a running balancer: a real HAProxy behind BusyBox's nc; IPVS as it answers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

import goldens
from haproxy_live import program
from ndakit.core.workspace import Workspace
from ndakit.load import load
from ndakit.model import Profile
from ndakit.node import control, haproxy_cli
from ndakit.node import keys as node_keys
from ndakit.node.control import ControlFailed, PoolServerUnknown
from ndakit.node.haproxy_cli import HaproxySilent
from ndakit.node.host_keys import Pins
from ndakit.node.shell import Command, Ran, command_line
from ndakit.node.ssh import Ssh
from ndakit.node.ssh_options import Target
from ssh_servers import SshServer, free_port, keygen, server

CONFIG = """
global
    stats socket /var/run/haproxy.sock mode 600 level admin expose-fd listeners
defaults
    mode tcp
    timeout connect 5s
    timeout client 5s
    timeout server 5s
listen alive
    bind 127.0.0.1:{alive}
backend apache
    server web1 127.0.0.1:{alive} check inter 200 weight 2
    server web2 127.0.0.1:{alive} check inter 200 weight 1
backend apache.other
    server web1 127.0.0.1:{alive} check inter 200 weight 2
    server web2 127.0.0.1:1 check inter 200 fall 1 weight 1
"""


@pytest.fixture(scope="module")
def pair() -> Profile:
    """apache-pair: pool apache with web1 (weight 2) and web2, by HAProxy."""
    return load.load(Workspace(goldens.ROOT), "apache-pair").profile


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """A box on which a real HAProxy runs as it runs on a node."""
    haproxy = shlex.join(program("haproxy"))
    with server("dropbear", tmp_path_factory.mktemp("control") / "box") as running:
        running.allow(keygen(running.folder / "me"))
        running.program("haproxy", f'exec {haproxy} "$@"')
        (running.home / "haproxy.cfg").write_text(CONFIG.format(alive=free_port()))
        yield running


@pytest.fixture
def on(box: SshServer, tmp_path: Path) -> Iterator[Ssh]:
    pins = Pins(tmp_path / "pins", "shop.lb1")
    pins.write(list(box.host_keys.values()))
    with Ssh(Target("shop", "lb1", "127.0.0.1", port=box.port), pins, node_keys.given(box.folder / "me", {})) as opened:
        started = opened.run("[ -S /var/run/haproxy.sock ] || haproxy -D -q -p /run/haproxy.pid -f haproxy.cfg")
        assert started.rc == 0, started.stderr
        yield opened


def states(lines: Any) -> list[tuple[str, str, int]]:
    return sorted((line.by, line.state, line.weight) for line in lines)


# -- HAProxy -----------------------------------------------------------------------------------------------------------


def test_haproxy_is_asked_through_a_second_one_that_leaves_nothing_behind(on: Ssh, box: SshServer) -> None:
    answer = haproxy_cli.ask(on, ["show info"])
    assert "Name: HAProxy" in answer
    again = haproxy_cli.ask(on, ["show stat", "show info"])
    assert again.startswith("# pxname,")
    assert "Name: HAProxy" in again
    assert len(box.processes(f"{box.folder}/bin/haproxy")) + len(box.processes("-db -f /tmp/.ndakit")) <= 1
    assert on.run("ls -d /tmp/.ndakit.* 2>/dev/null").stdout == ""


def test_a_port_that_somebody_has_is_passed_over(on: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = re.search(r"alive\n +bind 127.0.0.1:(\d+)", on.get("haproxy.cfg").decode())
    assert taken
    script = haproxy_cli._ASK.replace("$((20000 + ($$ * 13 + n * 1009) % 10000))", f"$(({taken[1]} + n))")
    assert script != haproxy_cli._ASK
    monkeypatch.setattr(haproxy_cli, "_ASK", script)
    assert "Name: HAProxy" in haproxy_cli.ask(on, ["show info"])


def test_a_server_is_drained_in_every_backend_of_its_pool_and_comes_back_with_its_weight(
    on: Ssh, pair: Profile
) -> None:
    drained = control.drain(on, pair, "apache", "web1")
    assert states(drained) == [("haproxy apache", "drained", 2), ("haproxy apache.other", "drained", 2)]
    everyone = {(s.server, s.by): s.state for s in control.haproxy_servers(on)}
    assert everyone["web2", "haproxy apache"] == "up"
    back = control.bring_back(on, pair, "apache", "web1")
    assert states(back) == [("haproxy apache", "up", 2), ("haproxy apache.other", "up", 2)]
    assert states(control.set_weight(on, pair, "apache", "web1", 7))[0] == ("haproxy apache", "up", 7)
    control.bring_back(on, pair, "apache", "web1")


def test_a_server_that_is_down_stays_down(on: Ssh, pair: Profile) -> None:
    on.run("sleep 0.5")
    lines = {line.by: line.state for line in control.drain(on, pair, "apache", "web2")}
    assert lines["haproxy apache"] == "drained"
    assert lines["haproxy apache.other"] in ("down", "drained")
    control.bring_back(on, pair, "apache", "web2")


def test_what_haproxy_refuses_is_an_error_with_its_words(
    on: Ssh, pair: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = haproxy_cli.ask
    monkeypatch.setattr(
        haproxy_cli,
        "ask",
        lambda shell, commands: real(shell, [c.replace("state drain", "state gone") for c in commands]),
    )
    with pytest.raises(ControlFailed, match=r"HAProxy says: .*state"):
        control.drain(on, pair, "apache", "web1")


def test_a_drain_that_haproxy_does_not_show_is_no_success(
    on: Ssh, pair: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = haproxy_cli.ask
    monkeypatch.setattr(
        haproxy_cli, "ask", lambda shell, commands: real(shell, commands) if commands == ["show stat"] else "\n"
    )
    with pytest.raises(ControlFailed, match="tells that it is up"):
        control.drain(on, pair, "apache", "web1")


def test_a_haproxy_that_does_not_run_is_said_so(on: Ssh, pair: Profile) -> None:
    on.run("kill $(cat /run/haproxy.pid); rm -f /var/run/haproxy.sock")
    with pytest.raises(HaproxySilent, match="HAProxy does not run"):
        control.drain(on, pair, "apache", "web1")


def test_servers_are_named_by_pool_and_name(pair: Profile) -> None:
    assert control.named(pair, "apache/web1") == ("apache", "web1")
    for wrong in ("web1", "apache", "apache/gone", "gone/web1", "apache/web1/x", ""):
        with pytest.raises(PoolServerUnknown, match="has no server") as caught:
            control.named(pair, wrong)
        assert "apache/web1" in caught.value.fix


# -- IPVS --------------------------------------------------------------------------------------------------------------


class Kernel:
    """A node whose kernel balances: answers from /proc/net/ip_vs, and takes `ipvsadm -e` for servers that it has."""

    name = "ipvs-all lb1"

    def __init__(self, obeys: bool = True) -> None:
        self.obeys = obeys
        self.commands: list[str] = []
        self.weights = {
            "TCP CB00710A:0050": {"C0A80015:1F90": 3, "C0A80016:1F90": 1},
            "TCP [2001:0db8:0113:0000:0000:0000:0000:0010]:0050": {"[fd00:0000:0000:0001:0000:0000:0000:0021]:1F90": 3},
            "UDP C0A8000A:0035": {"C0A8001F:0035": 1},
            "FWM {mark:08X}": {"C0A80023:0000": 1},
        }

    def run(self, command: Command, timeout_s: float = 30, *, output_max_bytes: int = 0) -> Ran:
        line = command_line(command)
        if "ip_vs" in line:
            text = ["IP Virtual Server version 1.2.1 (size=4096)", "Prot LocalAddress:Port Scheduler Flags"]
            for virtual, servers in self.weights.items():
                text.append(f"{virtual} wlc")
                text += [f"  -> {at:35} Masq    {weight:<6} {4:<10} 0" for at, weight in servers.items()]
            return Ran(0, "\n".join(text).encode(), b"")
        self.commands.append(line)
        words = shlex.split(line)
        assert words[:2] == ["ipvsadm", "-e"]
        real, weight = words[words.index("-r") + 1], int(words[words.index("-w") + 1])
        place = {
            "-t": lambda at: f"TCP {hexadecimal(at)}", "-u": lambda at: f"UDP {hexadecimal(at)}",
            "-f": lambda at: f"FWM {int(at):08X}",
        }[words[2]](words[3])  # fmt: skip
        at = hexadecimal(real if ":" in real else f"{real}:0")
        if at not in self.weights.get(place, {}):
            return Ran(1, b"", b"No such destination\n")
        if self.obeys:
            self.weights[place][at] = weight
        return Ran(0, b"", b"")


def hexadecimal(place: str) -> str:
    address, _, port = place.rpartition(":")
    if address.startswith("["):
        return f"[{ip_address(address.strip('[]')).exploded}]:{int(port):04X}"
    return f"{int(ip_address(address)):08X}:{int(port):04X}"


@pytest.fixture
def ipvs_all() -> Profile:
    return goldens.profile("ipvs-all")


def with_mark(kernel: Kernel, profile: Profile) -> Kernel:
    kernel.weights = {key.format(mark=profile.marks["med"]): value for key, value in kernel.weights.items()}
    return kernel


def test_a_server_is_drained_in_every_virtual_server_and_comes_back(ipvs_all: Profile) -> None:
    kernel = with_mark(Kernel(), ipvs_all)
    drained = control.drain(kernel, ipvs_all, "web", "web1")  # type: ignore[arg-type]
    assert [(line.state, line.weight, line.sessions) for line in drained] == [("drained", 0, 4)] * 2
    assert kernel.weights["TCP CB00710A:0050"] == {"C0A80015:1F90": 0, "C0A80016:1F90": 1}
    back = control.bring_back(kernel, ipvs_all, "web", "web1")  # type: ignore[arg-type]
    assert [(line.state, line.weight) for line in back] == [("up", 3)] * 2
    assert all("-x 200 -y 150" in command for command in kernel.commands), "the limits would be lost"


def test_udp_and_marked_services_are_drained_as_what_they_are(ipvs_all: Profile) -> None:
    kernel = with_mark(Kernel(), ipvs_all)
    control.drain(kernel, ipvs_all, "dns", "d1")  # type: ignore[arg-type]
    assert kernel.commands == ["ipvsadm -e -u 192.168.0.10:53 -r 192.168.0.31:53 -g -w 0"]
    lines = control.drain(kernel, ipvs_all, "med", "m1")  # type: ignore[arg-type]
    assert sorted(line.state for line in lines) == ["down", "drained"], "IPv6 has no such server in this kernel"


def test_a_server_that_keepalived_took_out_is_left_alone(ipvs_all: Profile) -> None:
    kernel = with_mark(Kernel(), ipvs_all)
    lines = control.drain(kernel, ipvs_all, "far", "f1")  # type: ignore[arg-type]
    assert {line.state for line in lines} == {"down"}
    assert kernel.commands == []


def test_a_kernel_that_does_not_obey_is_found_out(ipvs_all: Profile) -> None:
    with pytest.raises(ControlFailed, match="tells that it is up"):
        control.drain(with_mark(Kernel(obeys=False), ipvs_all), ipvs_all, "web", "web1")  # type: ignore[arg-type]


def test_a_sorry_server_gets_nothing_by_itself_and_cannot_be_drained(ipvs_all: Profile) -> None:
    with pytest.raises(ControlFailed, match="no service there sends anything to it"):
        control.drain(with_mark(Kernel(), ipvs_all), ipvs_all, "sry", "s1")  # type: ignore[arg-type]
