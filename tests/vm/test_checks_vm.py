"""Every type of check, by keepalived and by HAProxy, with its effect: the dead are out in time and come back, and who
answers wrongly is out as well, though its port is open."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from ndakit.lab.running_server import RunningServer
from ndakit.verify.claims.wrong_answers import lied
from pairs import Pair, running

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f admin"
PAGE = b"<p>all well</p>\n"
DIGEST = hashlib.md5(PAGE, usedforsecurity=False).hexdigest()
SCRIPT = """\
#!/bin/sh
# Well if the server's page /script is there.
exec wget -q -O /dev/null -T "$3" "http://$1:$2/script"
"""


@dataclass(frozen=True)
class Case:
    """A pool: its check as in a profile, what the node's log says of a server that answers wrongly, and what its
    service carries. Without a reason nothing that answers is wrong for the check, or nobody knows what is."""

    check: str
    reason: str = ""
    protocol: str = "tcp"


KERNEL: Mapping[str, Case] = {
    "k-tcp": Case("type: tcp"),
    "k-http": Case("type: http, path: /health, expect: {status: 418}", "HTTP_CHECK"),
    "k-page": Case(f"type: http, expect: {{digest: {DIGEST}}}", "HTTP_CHECK"),
    "k-https": Case("type: https, path: /health, host: www.example", "SSL_CHECK"),
    "k-smtp": Case("type: smtp", "SMTP_CHECK Bad greeting banner"),
    "k-dns": Case("type: dns, query: example.com, record: A", "(rcode = 2)", "udp"),
    # Cut short: keepalived itself would take for good what agrees so far.
    "k-talk": Case(r"type: udp, send: 'ping\x00', expect: {reply: 'pong\x00'}", "UDP_CHECK", "udp"),
    "k-udp": Case("type: udp", protocol="udp"),
    "k-ping": Case("type: ping", "ICMP CHECK", "udp"),
    "k-script": Case("type: script, script: check.sh, arguments: ['1']"),
}
PROXY: Mapping[str, Case] = {
    "p-tcp": Case("type: tcp"),
    "p-talk": Case(r"type: tcp, send: 'ping\r\n', expect: {reply: '+pong\x00'}", "step 2 of tcp-check"),
    "p-greet": Case("type: tcp, expect: {reply: 'ready'}", "step 1 of tcp-check"),
    "p-http": Case("type: http, expect: {status: 418}", "Layer7 wrong status, code: 500", "http"),
    "p-https": Case("type: https, path: /health, host: www.example", "Layer7 wrong status, code: 500"),
    "p-redis": Case("type: redis", "Layer7"),
    "p-smtp": Case("type: smtp, helo: balancer.example", "Layer7 wrong status, code: 554"),
}
CASES = {**KERNEL, **PROXY}
SORRY = "k-ping"
"""The pool with a sorry server: dead servers must be so for a check that asks for no port as well."""
WRONG = [name for name, case in CASES.items() if case.reason]


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
    with running(folder, "checks", profile(), pages={DIGEST: PAGE}) as booted:
        yield booted


CLAIMS = ("service/k-smtp", "client-address/k-smtp", "client-address/k-page", "service/k-dns", "service/p-talk")


@pytest.mark.parametrize("name", [*CLAIMS, *(f"check/{name}" for name in CASES), f"sorry/{SORRY}"])
def test_the_claim_holds(pair: Pair, name: str) -> None:
    outcome = pair.outcome(name)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


@pytest.fixture(scope="module")
def log(pair: Pair) -> str:
    """What the node's log said while one server of every pool answered wrongly."""
    pair.lab.run("one", "logger wrong answers from here on")
    for name in WRONG:
        pair.outcome(f"wrong-answer/{name}")
    return pair.lab.run("one", "logread").partition("wrong answers from here on")[2]


def test_every_pool_is_tried_that_can_be_wrong(pair: Pair) -> None:
    assert {n for n in pair.claims if n.startswith("wrong-answer/")} == {f"wrong-answer/{name}" for name in WRONG}


@pytest.mark.parametrize("name", WRONG)
def test_a_server_that_answers_wrongly_is_out_though_its_port_is_open(pair: Pair, log: str, name: str) -> None:
    outcome = pair.outcome(f"wrong-answer/{name}")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"
    who = f"[{pair.lab.servers[name, f'{name}-1'].label}]" if name in KERNEL else f"{name}-1 is DOWN"
    lines = [line for line in log.splitlines() if who in line]
    assert [line for line in lines if CASES[name].reason in line], lines


@pytest.mark.usefixtures("log")
def test_a_server_that_nobody_finds_out_fails_the_claim(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it does not lie at all, so that its check is content with it."""
    monkeypatch.setattr(RunningServer, "lie", lambda *_: None)
    outcome = lied(pair.lab, {"p-http": "p-http-1"})["p-http"]
    assert not outcome.ok and "p-http-1 answered wrongly, and was still in the pool after" in outcome.detail


def test_no_alarm_in_the_log_at_the_end(pair: Pair) -> None:
    outcome = pair.outcome("quiet/one")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"
