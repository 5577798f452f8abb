"""The claim that a client keeps its server, tried with a real HAProxy on the loopback and what is rendered.

It holds for every type, and does not once the lines that keep clients are gone.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

import goldens
from haproxy_driver import Server, all_heard, say, statistics
from haproxy_live import configuration, program
from ndakit.lab.clients import LoadResult
from ndakit.lab.host.measure import Answer, Try
from ndakit.lab.network import LabNetwork
from ndakit.lab.plan import VantagePoint
from ndakit.model import Address, Endpoint, Profile
from ndakit.render.render import render
from ndakit.verify.claims import Claim, all_claims

CLIENT = "127.0.0.99"
SERVERS = {"a": "127.0.0.21", "b": "127.0.0.22", "c": "127.0.0.23"}
KINDS = {
    "source": ("{type: source", "tcp"),
    "cookie": ("{type: cookie, name: SRV", "http"),
    "prefix": ("{type: cookie, name: ID, mode: prefix", "http"),
    "existing": ("{type: cookie, name: ID, mode: existing", "http"),
    "header": ("{type: header, name: X-User", "http"),
    "parameter": ("{type: parameter, name: sid", "http"),
    "rdp-cookie": ("{type: rdp-cookie", "tcp"),
}
SERVICES = [(kind, then) for kind in KINDS for then in ("reassign", "refuse")]
WAIT_S = 20.0


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in held]
    for sock in held:
        sock.close()
    return ports


def profile(http: int, tcp: int, page: int, ports: Mapping[tuple[str, str], int]) -> Profile:
    listed = ", ".join(f"{name}: {address}" for name, address in SERVERS.items())
    check = "{type: tcp, interval_s: 0.2, timeout_s: 0.5, fall: 2, rise: 1}"
    head = goldens.PROFILES["bakery"].read_text().partition("networks:")[0]
    pools, services = "", ""
    for (kind, then), port in ports.items():
        text, protocol = KINDS[kind]
        kept = f"{text}, on_failure: {then}}}"
        back = http if protocol == "http" else tcp
        pools += f"  {kind}-{then}: {{port: {back}, check: {check}, persistence: {kept}, servers: {{{listed}}}}}\n"
        services += f"  {kind}-{then}: {{vip: www, port: {port}, protocol: {protocol}, pool: {kind}-{then}}}\n"
    return goldens.parse(
        f"{head}networks: {{lan: {{nics: [eth0], subnet: 127.0.0.0/24}}}}\n"
        "nodes: {lb1: {addresses: {lan: 127.0.0.11}}}\n"
        f"vips: {{www: {{network: lan, address: 127.0.0.10}}}}\nmonitoring: {{statistics: {{port: {page}}}}}\n"
        "sizing: {sessions_per_second: 1, session_duration_s: 1, memory_mib: 128}\n"
        f"pools:\n{pools}services:\n{services}"
    )


@dataclass
class Loopback:
    """What a lab does for the claim, on the loopback."""

    profile: Profile
    page: tuple[str, int]
    servers: Mapping[str, list[Server]]
    path: str = "/"

    def client_for(self, endpoint: Endpoint, service: str) -> VantagePoint:
        return VantagePoint("client", ())

    def _said(self, address: Address, port: int, text: str, *, http: bool) -> str:
        try:
            with say(str(address), port, text, source=CLIENT) as sock:
                return all_heard(sock) if http else sock.recv(100).decode()
        except OSError:
            return ""

    def get(self, point: VantagePoint, address: Address, port: int, *, path: str, headers: Mapping[str, str]) -> Answer:
        lines = [f"GET {path} HTTP/1.1", "Host: lab", "Connection: close", *(f"{k}: {v}" for k, v in headers.items())]
        head, *rows = self._said(address, port, "\r\n".join([*lines, "", ""]), http=True).split("\r\n")
        told = [cast(tuple[str, str], tuple(row.split(": ", 1))) for row in rows if ": " in row]
        server = next((value for name, value in told if name.lower() == "x-server"), "")
        status = int(head.split(" ")[1]) if head else 0
        return Answer(Try(0, 1, 0, "" if head else "reset", status, server), tuple(told), "", (CLIENT, 1))

    def talk(self, point: VantagePoint, address: Address, port: int, words: bytes) -> Answer:
        server = self._said(address, port, words.decode("latin-1"), http=False)
        return Answer(Try(0, 1, 0, "" if server else "reset", 0, server), (), "", (CLIENT, 1))

    def load(self, point: VantagePoint, address: Address, port: int, pool: str, requests: int) -> LoadResult:
        server = self._said(address, port, "who", http=False)
        return LoadResult(1, {server: 1} if server else {}, int(not server), "" if server else "reset")

    def server_of(self, pool: str, answer: Answer) -> str:
        return answer.server

    @contextlib.contextmanager
    def server_down(self, pool: str, server: str) -> Iterator[None]:
        for one in self.servers[server]:
            one.die()
        try:
            yield
        finally:
            for one in self.servers[server]:
                one.live()

    def wait_server(self, pool: str, server: str, *, up: bool, timeout_s: float) -> float | None:
        end_s = time.monotonic() + WAIT_S
        while time.monotonic() < end_s:
            rows = [row for row in statistics(*self.page) if row["svname"] == server]
            if rows and all(row["status"] == ("UP" if up else "DOWN") for row in rows):
                return 1.0
            time.sleep(0.05)
        return None


@contextlib.contextmanager
def lab(folder: Path, *, keeps: bool) -> Iterator[LabNetwork]:
    """HAProxy and the servers; without the lines that keep clients, if that is wanted."""
    http, tcp, page, *rest = free_ports(3 + len(SERVICES))
    made = profile(http, tcp, page, dict(zip(SERVICES, rest, strict=True)))
    text = configuration(render(made, "lb1", goldens.TEMPLATES), folder)
    if not keeps:
        text = re.sub(r"^\t(cookie|stick on) .*$", "", text, flags=re.M)
        text = re.sub(r"^(\tserver .*?) cookie \w+", r"\1", text, flags=re.M)
    config = folder / "haproxy.cfg"
    config.write_text(text)
    servers = {n: [Server(n, a, http, "http"), Server(n, a, tcp, "tcp")] for n, a in SERVERS.items()}
    process = subprocess.Popen([*program("haproxy"), "-db", "-f", str(config)])
    try:
        loopback = Loopback(made, ("127.0.0.11", page), servers)
        end_s = time.monotonic() + WAIT_S
        while time.monotonic() < end_s:
            with contextlib.suppress(OSError):
                statistics(*loopback.page)
                break
            time.sleep(0.05)
        yield cast(LabNetwork, loopback)
    finally:
        process.kill()
        process.wait()
        for one in (o for both in servers.values() for o in both):
            one.die()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabNetwork]:
    with lab(tmp_path_factory.mktemp("whole"), keeps=True) as running:
        yield running


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabNetwork]:
    with lab(tmp_path_factory.mktemp("broken"), keeps=False) as running:
        yield running


def claim(running: LabNetwork, kind: str, then: str) -> Claim:
    return next(one for one in all_claims(running.profile) if one.name == f"persistence/{kind}-{then}")


@pytest.mark.parametrize(("kind", "then"), SERVICES)
def test_the_claim_holds(whole: LabNetwork, kind: str, then: str) -> None:
    outcome = claim(whole, kind, then).run(whole)
    assert outcome.ok, outcome.detail
    turned = "status 503" if KINDS[kind][1] == "http" else "reset"
    assert outcome.figure.endswith(turned) == (then == "refuse")


@pytest.mark.parametrize(("kind", "then"), SERVICES)
def test_the_claim_does_not_hold_without_the_lines_that_keep_clients(broken: LabNetwork, kind: str, then: str) -> None:
    outcome = claim(broken, kind, then).run(broken)
    assert not outcome.ok
    assert re.search(r"a client that had \w got \w", outcome.detail)
