"""The claims about limits, maintenance and pages for errors, tried on a real HAProxy on the loopback: each holds with
what is rendered, and fails without the line that it is about."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import http.server
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

import goldens
from haproxy_live import configuration, program
from ndakit.lab.clients import LabPeople
from ndakit.lab.network import LabNetwork
from ndakit.lab.plan import LabPlan, VantagePoint, plan
from ndakit.model import Profile
from ndakit.render.render import render
from ndakit.verify import claims
from ndakit.verify.claims import Outcome, limits

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me"
SERVERS = {"web1": "127.0.1.21", "spare1": "127.0.1.29"}
WAIT_S = 10.0


@pytest.fixture(autouse=True)
def somebody_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "plan", lambda settings: seated(settings))


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in held]
    for sock in held:
        sock.close()
    return ports


def profile(service: str, sorry: str) -> Profile:
    vip, server, statistics = free_ports(3)
    return goldens.parse(
        f"name: live\nrelease: 24.10.8\naccess: {{ssh_keys: {{me: {KEY}}}, sources: {{office: 127.0.1.128/25}}}}\n"
        "networks: {lan: {nics: [eth0], subnet: 127.0.1.0/24}}\nnodes: {lb: {addresses: {lan: 127.0.1.11}}}\n"
        "vips: {www: {network: lan, address: 127.0.1.10}}\n"
        f"pools:\n  web: {{port: {server}, check: tcp, sorry: {sorry}, "
        f"servers: {{web1: {{address: {SERVERS['web1']}, max_connections: 3}}}}}}\n"
        f"  spare: {{port: {server}, check: tcp, servers: {{spare1: {SERVERS['spare1']}}}}}\n"
        f"services: {{web: {{vip: www, port: {vip}, protocol: http, pool: web, {service}}}}}\n"
        f"monitoring: {{statistics: {{port: {statistics}}}}}\n"
        "sizing: {sessions_per_second: 1, session_duration_s: 1, memory_mib: 128}\n"
    )


class Page(http.server.BaseHTTPRequestHandler):
    """A server that says who it is."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with the server's name, once the whole body is there."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = next(
            n for n, address in SERVERS.items() if address == str(cast(Any, self.server).server_address[0])
        ).encode()
        if self.path.startswith("/lab-stream"):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            while True:
                self.wfile.write(b"more\n")
                time.sleep(0.5)
        self.send_response(200)
        self.send_header("Content-Length", str(len(name)))
        self.end_headers()
        self.wfile.write(name)

    def do_POST(self) -> None:
        """The same."""
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class LocalCall:
    """A connection that lasts."""

    def __init__(self, address: tuple[str, int], source: tuple[str, int], payload: bytes) -> None:
        self.sock, self.came, self.error = socket.socket(), b"", ""
        self.sock.bind(source)
        try:
            self.sock.connect(address)
            self.sock.sendall(payload)
        except OSError:
            self.error = "reset"
        self.sock.setblocking(False)

    def heard(self) -> Any:
        """What came so far."""
        try:
            more = b"" if self.error else self.sock.recv(65536)
            self.came += more
            self.error = "" if more else "closed"
        except BlockingIOError:
            pass
        except OSError:
            self.error = "reset"
        return SimpleNamespace(heard=len(self.came), error=self.error)

    def close(self, **_: object) -> None:
        """End it."""
        self.sock.close()


class LocalHost:
    """Somebody of the lab, on this machine's loopback."""

    def get(
        self, url: str, *, source: str, timeout_s: float, headers: Any = (), method: str = "GET", tls: object = None
    ) -> Any:
        """One request."""
        parts, started_s = urlsplit(url), time.monotonic()
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout_s, source_address=(source, 0))
        try:
            connection.putrequest(method, parts.path or "/", skip_host="Host" in headers)
            for name, value in dict(headers).items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            body, status, error = answer.read().decode(), answer.status, ""
        except OSError as cause:
            body, status, error = "", 0, type(cause).__name__
        finally:
            connection.close()
        took_ms = (time.monotonic() - started_s) * 1000
        server = body if body in SERVERS else ""
        return SimpleNamespace(status=status, body=body, error=error, server=server, took_ms=took_ms, ok=not error)

    def ask(self, url: str, said: bytes, *, source: str, timeout_s: float, tls: object) -> Any:
        """The first line that comes back."""
        parts = urlsplit(url)
        with socket.create_connection((str(parts.hostname), parts.port or 0), timeout_s, (source, 0)) as sock:
            sock.sendall(said)
            return SimpleNamespace(body=sock.makefile("rb").readline().decode())

    def call(self, address: object, port: int, *, payload: bytes, source: object) -> LocalCall:
        """A connection over which something was said."""
        return LocalCall((str(address), port), (str(source), 0), payload)

    def load(self, url: str, requests: int, *, sources: Sequence[str], timeout_s: float, **words: Any) -> Any:
        """Requests one after the other."""
        each = {"source": sources[0], "timeout_s": timeout_s, "headers": words["headers"]}
        return SimpleNamespace(tries=[self.get(url, **each) for _ in range(requests)])


def seated(settings: Profile) -> LabPlan:
    """The plan with somebody in `access.sources` and somebody else: no lab takes an address of the loopback."""
    empty = plan(settings)
    stranger, admin = (VantagePoint("web1", (ip_address(a),)) for a in ("127.0.1.5", "127.0.1.200"))
    return dataclasses.replace(empty, strangers={"lan": stranger}, admins={"office": admin})


class Lab(LabPeople):
    """A lab with the loopback in place of machines."""

    def __init__(self, settings: Profile) -> None:
        super().__init__(settings, seated(settings), None, lambda text: None)
        self.path = "/"
        self.hosts = dict.fromkeys(self.plan.hosts, cast(Any, LocalHost()))
        self.servers = {
            (pool, name): cast(Any, SimpleNamespace(label=name))
            for pool, its in settings.pools.items()
            for name in its.servers
        }


@contextlib.contextmanager
def running(settings: Profile, folder: Path, changes: Sequence[tuple[str, str]]) -> Iterator[Lab]:
    """HAProxy with what is rendered, and its servers."""
    text = configuration(render(settings, "lb", goldens.TEMPLATES), folder)
    for old, new in changes:
        assert old in text, f"the configuration does not hold {old!r}"
        text = text.replace(old, new)
    (folder / "haproxy.cfg").write_text(text)
    port, statistics = settings.pools["web"].port or 0, settings.monitoring.statistics.port
    servers = [http.server.ThreadingHTTPServer((address, port), Page) for address in SERVERS.values()]
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    haproxy = subprocess.Popen([*program("haproxy"), "-db", "-f", folder / "haproxy.cfg"], stderr=subprocess.DEVNULL)
    try:
        end_s = time.monotonic() + WAIT_S
        while time.monotonic() < end_s and haproxy.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.1.11", statistics)):
                break
            time.sleep(0.05)
        yield Lab(settings)
    finally:
        haproxy.kill()
        haproxy.wait()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def tried(name: str, service: str, sorry: str, folder: Path, *changes: tuple[str, str]) -> Outcome:
    settings = profile(service, sorry)
    claim = {c.name: c for c in claims.all_claims(settings)}[name]
    with running(settings, folder, changes) as lab:
        return claim.run(cast(LabNetwork, lab))


BODY = ("\thttp-request deny deny_status 413 if { req.body_size gt 4096 }\n", "")
UNTOLD = ("\thttp-request return status 411 if { req.body_size gt 0 } !{ req.hdr(Content-Length) -m found }\n", "")
UNKNOWN = "hostnames: [shop.example], unknown_hosts: refuse"
PAGE, SPARE = "{page: sorry.html}", "{pool: spare}"
ENDLESS = "18 requests in a row were answered as if there were no limit"
RATE, PAGES = "requests: {count: 5, per_s: 1", "error_pages: {'%s': sorry.html}"
CASES = {
    "maintenance": (
        "maintenance/web", "maintenance: true", PAGE, ("\tuse_backend _sorry:web if !access-sources\n", ""),
        "a stranger at 127.0.1.10: status 200, another text",
    ),
    "maintenance for admins": (
        "maintenance/web", "maintenance: true", PAGE, ("if !access-sources", ""),
        "somebody of access.sources at 127.0.1.10: status 503",
    ),
    "maintenance, sorry pool": (
        "maintenance/web", "maintenance: true", SPARE, ("\tuse_backend spare if !access-sources\n", ""),
        "a stranger at 127.0.1.10: web1 100 %",
    ),
    "429": (
        "requests/web", f"limits: {{{RATE}}}}}", PAGE, ("429 if too-", "429 if FALSE #"), ENDLESS,
    ),
    "429, its page": (
        "requests/web", f"limits: {{{RATE}}}}}, {PAGES % 429}", PAGE, ("\terrorfile 429 ", "\t# errorfile 429 "),
        "status 429 does not come with sorry.html",
    ),
    "too often, sorry page": (
        "requests/web", f"limits: {{{RATE}, on_excess: sorry}}}}", PAGE, ("too-often sc1_http_req_rate gt 5",
                                                                     "too-often sc1_http_req_rate gt 2"),
        "request 3 was refused already: status 503",
    ),
    "too often, sorry pool": (
        "requests/web", f"limits: {{{RATE}, on_excess: sorry}}}}", SPARE, ("\tuse_backend spare if too-often\n", ""),
        ENDLESS,
    ),
    "queue": (
        "queue/web", "limits: {queue: {length: 2}}", PAGE, ("{ queue(web) ge 2 }", "{ queue(web) ge 3 }"),
        "with 2 waiting the next one gets status 0, another text",
    ),
    "queue, sorry pool": (
        "queue/web", "limits: {queue: {length: 2}}", SPARE, ("{ queue(web) ge 2 }", "{ queue(web) ge 1 }"),
        "number 2 of those who wait was answered",
    ),
    "body": ("body/web", "limits: {body_kib: 4}", PAGE, BODY, "a body of 4097 bytes at 127.0.1.10 gets status 0"),
    "body of unknown size": (
        "body/web", "limits: {body_kib: 4}", PAGE, UNTOLD, "a body of unknown size at 127.0.1.10 gets status",
    ),
    "page for 413": (
        "error-page/web/413", f"limits: {{body_kib: 4}}, {PAGES % 413}", PAGE,
        ("\terrorfile 413 ", "\t# errorfile 413 "), "127.0.1.10: status 413, another text",
    ),
    "page for 421": (
        "error-page/web/421", f"{UNKNOWN}, {PAGES % 421}", PAGE, ("\terrorfile 421 ", "\t# errorfile 421 "),
        "127.0.1.10: status 421, another text",
    ),
    "connections": (
        "connections/web/count", "limits: {connections: {count: 5}}", PAGE, ("\tmaxconn 5\n", "\tmaxconn 6\n"),
        "connection 6 did not wait",
    ),
    "connections of a client": (
        "connections/web/per-client", "limits: {connections: {per_client: 5}}", PAGE,
        ("sc1_conn_cur gt 5", "sc1_conn_cur gt 6"), "connection 6 was answered, not closed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_claim_holds_with_what_is_rendered(case: str, tmp_path: Path) -> None:
    name, service, sorry, _, _ = CASES[case]
    outcome = tried(name, service, sorry, tmp_path)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


@pytest.mark.parametrize("case", CASES)
def test_a_claim_fails_without_its_line(case: str, tmp_path: Path) -> None:
    name, service, sorry, change, told = CASES[case]
    outcome = tried(name, service, sorry, tmp_path, change)
    assert not outcome.ok and told in outcome.detail, f"{outcome.figure}: {outcome.detail}"
