"""Every type of check, by keepalived and by HAProxy, with its effect: the dead are out in time and come back, and who
answers wrongly is out as well, though its port is open."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest

from ndakit.lab.clients import RunningServer
from ndakit.lab.host import HostService
from ndakit.lab.server_ports import ServerPort
from pairs import Pair, running

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f admin"
PAGE = b"<p>all well</p>\n"
DIGEST = hashlib.md5(PAGE, usedforsecurity=False).hexdigest()
SCRIPT = """\
#!/bin/sh
# Well if the server's page /script is there.
exec wget -q -O /dev/null -T "$3" "http://$1:$2/script"
"""

SLACK_S = 4.0
"""All servers are made to answer wrongly one after the other, and are then asked about all at once."""

Wrong = Callable[[RunningServer, ServerPort], contextlib.AbstractContextManager[None]]
"""A server's port is served wrongly for a while."""


def instead(serve: Callable[[RunningServer, ServerPort], HostService]) -> Wrong:
    """By another program."""

    @contextlib.contextmanager
    def wrong(server: RunningServer, port: ServerPort) -> Iterator[None]:
        server.services.pop(port).stop()
        other = serve(server, port)
        try:
            yield
        finally:
            other.stop()
            server.start()

    return wrong


def web(pages: Mapping[str, tuple[int, str | None]] | None = None) -> Wrong:
    """A web server with other pages, and without a certificate."""
    return instead(lambda s, p: s.host.web(p.number, address=s.address, name=s.label, pages=pages or {}))


def smtp(code: int) -> Wrong:
    """A mail server that greets otherwise."""
    return instead(lambda s, p: s.host.smtp(p.number, address=s.address, name=s.label, code=code))


def dns(code: int) -> Wrong:
    """A name server that fails."""
    return instead(lambda s, p: s.host.udp(p.number, address=s.address, name=s.label, dns_code=code))


def udp(said: bytes, answer: bytes) -> Wrong:
    """A server of datagrams that answers otherwise."""
    return instead(lambda s, p: s.host.udp(p.number, address=s.address, name=s.label, exchanges=[(said, answer)]))


TCP = instead(lambda s, p: s.host.tcp(p.number, address=s.address, banner=s.label))
"""A server of lines that knows no answers."""


@contextlib.contextmanager
def deaf(server: RunningServer, _: ServerPort) -> Iterator[None]:
    """Everything is answered but pings."""
    server.hear_pings(heard=False)
    try:
        yield
    finally:
        server.hear_pings(heard=True)


@dataclass(frozen=True)
class Case:
    """A pool: its check as in a profile, how its port is served wrongly, what the node's log says of that, and what its
    service carries."""

    check: str
    wrong: Wrong | None = None
    reason: str = ""
    protocol: str = "tcp"


KERNEL: Mapping[str, Case] = {
    "k-tcp": Case("type: tcp"),
    "k-http": Case("type: http, path: /health, expect: {status: 418}", web({"/health": (200, None)}), "HTTP_CHECK"),
    "k-page": Case(f"type: http, expect: {{digest: {DIGEST}}}", web(), "HTTP_CHECK"),
    "k-https": Case("type: https, path: /health, host: www.example", web(), "SSL_CHECK"),
    "k-smtp": Case("type: smtp", smtp(554), "SMTP_CHECK Bad greeting banner"),
    "k-dns": Case("type: dns, query: example.com, record: A", dns(2), "(rcode = 2)", "udp"),
    # Cut short: keepalived itself would take for good what agrees so far.
    "k-talk": Case(
        r"type: udp, send: 'ping\x00', expect: {reply: 'pong\x00'}", udp(b"ping\0", b"pong"), "UDP_CHECK", "udp"
    ),
    "k-udp": Case("type: udp", protocol="udp"),
    "k-ping": Case("type: ping", deaf, "ICMP CHECK", "udp"),
    "k-script": Case(
        "type: script, script: check.sh, arguments: ['1']", web({"/script": (500, None)}), "exited with status 1"
    ),
}
PROXY: Mapping[str, Case] = {
    "p-tcp": Case("type: tcp"),
    "p-talk": Case(r"type: tcp, send: 'ping\r\n', expect: {reply: '+pong\x00'}", TCP, "step 2 of tcp-check"),
    "p-greet": Case("type: tcp, expect: {reply: 'ready'}", TCP, "step 1 of tcp-check"),
    "p-http": Case("type: http, expect: {status: 418}", web(), "Layer7 wrong status, code: 200", "http"),
    "p-https": Case("type: https, path: /health, host: www.example", web(), "SSL handshake failure"),
    "p-smtp": Case("type: smtp, helo: balancer.example", smtp(554), "Layer7 wrong status, code: 554"),
}
CASES = {**KERNEL, **PROXY}
SORRY = "k-ping"
"""The pool with a sorry server: dead servers must be so for a check that asks for no port as well."""
WRONG = {name: case.wrong for name, case in CASES.items() if case.wrong is not None}


def profile() -> str:
    """One node, a pool and a service for each case, each on a port of its own. Behind the kernel's services the second
    server is the same host for most; behind HAProxy's all servers are on one."""
    pools, services = [], []
    for number, (name, case) in enumerate(CASES.items()):
        kernel = name in KERNEL
        first, second = (f"10.1.0.{20 + number}", "10.1.0.19") if kernel else (f"10.9.0.{20 + number}", "10.9.0.19")
        sorry = ""
        if name == SORRY:
            second, sorry = "10.1.0.18", "sorry: {pool: spare}, "
            pools.append(f"  spare: {{port: {9000 + number}, servers: {{spare-1: 10.1.0.19}}}}")
        seldom = 1 if any(word in case.check for word in ("https", "script", "udp")) else 0.5
        timeout_s = 0.5 if name == "k-ping" else 1
        pools.append(
            f"  {name}: {{port: {9000 + number}, check: {{{case.check}, interval_s: {seldom}, timeout_s: {timeout_s}, "
            f"retry_delay_s: 0.2, fall: 2{'' if kernel else ', rise: 1'}}}, {sorry}"
            f"servers: {{{name}-1: {first}, {name}-2: {second}}}}}"
        )
        what = f"topology: {'dr' if kernel else 'proxy'}, protocol: {case.protocol}, pool: {name}"
        services.append(f"  {name}: {{vip: main, port: {9000 + number}, {what}}}")
    return f"""\
name: checks
release: 24.10.8
image: {{firmware: bios}}
access:
  ssh_keys: {{admin: {KEY}}}
  sources: {{noc: 10.1.0.0/24}}
networks:
  lan: {{nics: [eth0], subnet: 10.1.0.0/24, routes: [{{to: 10.9.0.0/24, via: 10.1.0.2}}]}}
system: {{ntp: []}}
nodes: {{one: {{addresses: {{lan: 10.1.0.11}}}}}}
vips: {{main: {{network: lan, address: 10.1.0.10}}}}
pools:
{chr(10).join(pools)}
services:
{chr(10).join(services)}
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("checks")
    (folder / "profiles").mkdir()
    (folder / "profiles/check.sh").write_text(SCRIPT)
    with running(folder, "checks", profile(), pages={DIGEST: PAGE}) as found:
        yield found


CLAIMS = ("service/k-smtp", "client-address/k-smtp", "client-address/k-page", "service/k-dns", "service/p-talk")


@pytest.mark.parametrize("name", [*CLAIMS, *(f"check/{name}" for name in CASES), f"sorry/{SORRY}"])
def test_the_claim_holds(pair: Pair, name: str) -> None:
    outcome = pair.outcome(name)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


def port_of(pair: Pair, pool: str) -> tuple[RunningServer, ServerPort]:
    """A pool's first server, and the port that its check asks."""
    server, number = pair.lab.servers[pool, f"{pool}-1"], pair.lab.profile.pools[pool].port
    return server, next(p for p in server.ports if p.number == number)


@dataclass(frozen=True)
class Seen:
    """What became of servers that answer wrongly: seconds until they were out and, mended, in again."""

    out_s: Mapping[str, float]
    back_s: Mapping[str, float]
    open: Mapping[str, bool]
    stayed_out: Mapping[str, bool]
    log: str


@pytest.fixture(scope="module")
def wrongly(pair: Pair) -> Seen:
    """The first server of each pool answers wrongly, all at the same time, for the checks do not know of each other."""
    out_s: dict[str, float] = {}
    still_open: dict[str, bool] = {}
    pair.lab.run("one", "logger wrong answers from here on")
    with contextlib.ExitStack() as stack:
        for name, wrong in WRONG.items():
            stack.enter_context(wrong(*port_of(pair, name)))
        watch(pair, out_s, up=False)
        for name in WRONG:
            server, port = port_of(pair, name)
            kind = "udp" if port.datagrams else "tcp"
            url = f"{kind}://{server.addresses[0]}:{port.number}"
            still_open[name] = server.host.ask(url, b"?" if port.datagrams else b"", lines=0).ok
        there = in_use(pair)
        log = pair.lab.run("one", "logread").partition("wrong answers from here on")[2]
    back_s: dict[str, float] = {}
    watch(pair, back_s, up=True)
    return Seen(out_s, back_s, still_open, {name: f"{name}-1" not in there for name in WRONG}, log)


def watch(pair: Pair, found: dict[str, float], *, up: bool) -> None:
    """Note when the first server of each pool is in or out; gives up after twice the longest time."""
    profile = pair.lab.profile
    longest_s = max(profile.recovery_s(n) if up else profile.detection_s(n) for n in WRONG)
    started_s = time.monotonic()
    while set(found) != set(WRONG) and time.monotonic() < started_s + 2 * longest_s:
        there = in_use(pair)
        for name in WRONG:
            if name not in found and (f"{name}-1" in there) is up:
                found[name] = time.monotonic() - started_s


def in_use(pair: Pair) -> set[str]:
    """The servers to which the node sends clients, by the kernel's account and by HAProxy's."""
    lab = pair.lab
    there = {s.server for s in lab.states("one") if s.up}
    kernel = {a for v in lab.facts("one").virtual_servers() for (a, _), weight in v.weights.items() if weight}
    return there | {name for (pool, name), s in lab.servers.items() if pool in KERNEL and {*s.addresses} & kernel}


@pytest.mark.parametrize("name", WRONG)
def test_a_server_that_answers_wrongly_is_out_though_its_port_is_open(pair: Pair, wrongly: Seen, name: str) -> None:
    assert wrongly.open[name]
    assert wrongly.stayed_out[name]
    server, _ = port_of(pair, name)
    who = f"[{server.label}]" if name in KERNEL else f"{name}-1 is DOWN"
    assert [line for line in wrongly.log.splitlines() if who in line and CASES[name].reason in line]
    assert wrongly.out_s.get(name, 999) <= pair.lab.profile.detection_s(name) + SLACK_S
    assert wrongly.back_s.get(name, 999) <= pair.lab.profile.recovery_s(name) + SLACK_S


def test_no_alarm_in_the_log_at_the_end(pair: Pair) -> None:
    outcome = pair.outcome("quiet/one")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"
