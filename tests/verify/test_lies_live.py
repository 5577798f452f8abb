"""Each type of check that HAProxy carries, as rendered, with a real HAProxy and the lab's servers on the loopback: a
server that is well is in, one that lies as its type says is out though its port is open, and is in again afterwards."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from guest.loop import Loop
from guest.tls import Certificate
from guest.web import Behaviour, WebServer
from guest.words import EchoServer, SmtpServer

import goldens
from haproxy_live import program
from ndakit.lab.host import Host, HostService, Web, certificate
from ndakit.lab.running_server import RunningServer
from ndakit.lab.server_ports import asked_ports, ports_of
from ndakit.model import Profile
from ndakit.model.checks import types_of
from ndakit.model.engines import HAPROXY
from ndakit.render.render import render

CHECKS = {
    "http": "{type: http, path: /health, expect: {status: 418}",
    "any-status": "{type: http",
    "https": "{type: https",
    "smtp": "{type: smtp",
    "redis": "{type: redis",
    "talk": r"{type: tcp, send: 'ping\r\n', expect: {reply: '+pong'}",
    "greeting": "{type: tcp, expect: {reply: ready}",
    "plain": "{type: tcp",
}
LIARS = [name for name in CHECKS if name != "plain"]
HEAD = goldens.PROFILES["bakery"].read_text().partition("pools:")[0]
WELL, LIAR = "127.0.0.2", "127.0.0.3"
FRAME = """\
global
	stats socket {folder}/haproxy.sock mode 600 level admin
defaults
	timeout connect 1s
	timeout client 5s
	timeout server 5s
"""
WAIT_S = 10.0


def profile(ports: Mapping[str, int]) -> Profile:
    pools = "".join(
        f"  {name}: {{port: {ports[name]}, check: {text}, interval_s: 0.2, timeout_s: 0.5, fall: 2, rise: 1}}, "
        f"servers: {{well: {WELL}, liar: {LIAR}}}}}\n"
        for name, text in CHECKS.items()
    )
    services = "".join(f"  {n}: {{vip: www, port: {p}, protocol: tcp, pool: {n}}}\n" for n, p in ports.items())
    return goldens.parse(f"{HEAD}pools:\n{pools}services:\n{services}")


class Local:
    """A lab host's servers in this process, on the loopback; what they are told is done between two of their turns."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def turn(self, call: Callable[[], Any]) -> Any:
        """Do something in the servers' thread, and give back what came of it."""
        done, answer = threading.Event(), list[Any]()

        def act() -> None:
            answer.append(call())
            done.set()

        self.loop.after(0.0, act)
        assert done.wait(WAIT_S)
        return answer[0]

    def web(self, port: int, *, address: str, name: str, exchanges: Any, certificate: str, pages: Any) -> Web:
        pem = Certificate(certificate) if certificate else None
        return LocalWeb(self, lambda: WebServer(self.loop, name, address, port, Behaviour(pages=pages), exchanges, pem))

    def tcp(self, port: int, *, address: str, banner: str, exchanges: Any, quiet: bool) -> HostService:
        return LocalService(self, lambda: EchoServer(self.loop, banner, address, port, banner, exchanges, quiet=quiet))

    def smtp(self, port: int, *, address: str, name: str, exchanges: Any, code: int) -> HostService:
        return LocalService(self, lambda: SmtpServer(self.loop, name, address, port, exchanges, code))


class LocalService(HostService):
    def __init__(self, local: Local, make: Callable[[], Any]) -> None:
        self.local, self.server = local, local.turn(make)

    def stop(self) -> None:
        self.local.turn(self.server.stop)


class LocalWeb(Web):
    def __init__(self, local: Local, make: Callable[[], Any]) -> None:
        self.local, self.server = local, local.turn(make)

    def set(self, **changes: Any) -> None:
        self.local.turn(lambda: self.server.behave(self.server.behaviour.changed(changes)))

    def stop(self) -> None:
        self.local.turn(self.server.stop)


@dataclass(frozen=True)
class Seen:
    """Pool → its servers that were in: when all were well, while one lied, and afterwards; and whose port was open."""

    before: Mapping[str, set[str]]
    meanwhile: Mapping[str, set[str]]
    after: Mapping[str, set[str]]
    open: Mapping[str, bool]


def free_ports() -> dict[str, int]:
    held = {name: socket.create_server(("", 0)) for name in CHECKS}
    ports = {name: sock.getsockname()[1] for name, sock in held.items()}
    for sock in held.values():
        sock.close()
    return ports


def backends(made: Profile, folder: Path) -> Path:
    """The backends of haproxy.cfg as rendered."""
    text = render(made, "lb1", goldens.TEMPLATES)["/etc/haproxy.cfg"].text
    sections = re.findall(r"^backend (?!_).*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    assert len(sections) == len(CHECKS)
    config = folder / "haproxy.cfg"
    config.write_text(FRAME.format(folder=folder) + "".join(sections))
    return config


def in_use(folder: Path) -> dict[str, set[str]]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(folder / "haproxy.sock"))
        sock.sendall(b"show stat -1 4 -1\n")
        said = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
    rows = [line.split(",") for line in said.splitlines() if line and not line.startswith("#")]
    there: dict[str, set[str]] = {row[0]: set() for row in rows}
    for row in rows:
        there[row[0]] |= {row[1]} if row[17].startswith("UP") and "/" not in row[17] else set()
    return there


def until(folder: Path, wanted: Callable[[dict[str, set[str]]], bool]) -> dict[str, set[str]]:
    """What is in use once it is as wanted, or when it was waited for long enough."""
    end_s = time.monotonic() + WAIT_S
    while not wanted(used := in_use(folder)) and time.monotonic() < end_s:
        time.sleep(0.05)
    return used


def answers(name: str, ports: Mapping[str, int]) -> bool:
    with socket.create_connection((LIAR, ports[name]), timeout=5):
        return True


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder, ports, loop = tmp_path_factory.mktemp("lies"), free_ports(), Loop()
    made, pem = profile(ports), certificate()
    thread = threading.Thread(target=loop.run)

    def tick() -> None:
        loop.after(0.01, tick)

    tick()
    thread.start()
    local = cast(Host, Local(loop))
    servers = {
        (pool, server): RunningServer(local, f"{pool}/{server}", (), address, ports_of(made, pool, server), {}, pem)
        for pool in CHECKS
        for server, address in (("well", WELL), ("liar", LIAR))
    }
    for running in servers.values():
        running.start()
    haproxy = subprocess.Popen(
        [*program("haproxy"), "-db", "-f", str(backends(made, folder))], stderr=subprocess.DEVNULL
    )
    try:
        while not (folder / "haproxy.sock").exists():
            assert haproxy.poll() is None, "HAProxy did not start"
            time.sleep(0.05)
        both = {"well", "liar"}
        before = until(folder, lambda there: all(used == both for used in there.values()))
        for name in LIARS:
            lie = made.pools[name].check.lie()
            assert lie is not None and lie.speaks is not None
            servers[name, "liar"].lie(asked_ports(made, name, "liar"), lie.speaks)
        meanwhile = until(folder, lambda there: all("liar" not in there[name] for name in LIARS))
        is_open = {name: answers(name, ports) for name in LIARS}
        for name in LIARS:
            servers[name, "liar"].start()
        after = until(folder, lambda there: all(used == both for used in there.values()))
        yield Seen(before, meanwhile, after, is_open)
    finally:
        haproxy.terminate()
        haproxy.wait(10)
        for service in (one for running in servers.values() for one in running.services.values()):
            service.stop()
        loop.stop()
        thread.join(5)


def test_every_type_that_haproxy_carries_is_tried() -> None:
    tried = {profile(dict.fromkeys(CHECKS, 80)).pools[name].check.type for name in CHECKS}
    assert tried == set(types_of(HAPROXY))


@pytest.mark.parametrize("name", LIARS)
def test_a_server_that_lies_is_out_though_its_port_is_open(seen: Seen, name: str) -> None:
    assert seen.before[name] == {"well", "liar"}
    assert seen.meanwhile[name] == {"well"}
    assert seen.open[name]
    assert seen.after[name] == {"well", "liar"}


def test_who_looks_at_nothing_but_the_port_finds_nobody_out(seen: Seen) -> None:
    assert seen.before["plain"] == seen.meanwhile["plain"] == {"well", "liar"}
