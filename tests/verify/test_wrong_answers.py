"""Servers that answer wrongly: which pools are tried, how each type lies, and what is said of a server that stays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from ipaddress import ip_address
from types import SimpleNamespace
from typing import cast

import pytest
import yaml

import goldens
from ndakit.lab.host import Host, Web
from ndakit.lab.network import LabNetwork
from ndakit.lab.running_server import RunningServer
from ndakit.lab.server_ports import ServerPort, asked_ports
from ndakit.model import Profile
from ndakit.model.checks import TYPES, Page, Speaks
from ndakit.model.checks.redis import LOADING, PING
from ndakit.verify.claims import all_claims, left_out
from ndakit.verify.claims.wrong_answers import WrongAnswers, victims, why_not

HEAD = goldens.PROFILES["bakery"].read_text().partition("pools:")[0]
TWO = "servers: {w1: 192.168.0.21, w2: 192.168.0.22}"


def profile(**checks: str) -> Profile:
    """One pool and service for each check, all with the same two servers, behind HAProxy or the kernel."""
    pools = "".join(
        f"  {name}: {{port: {8000 + n}, check: {text}, {TWO}}}\n" for n, (name, text) in enumerate(checks.items())
    )
    kernel = ("udp", "dns", "ping", "script")
    services = "".join(
        f"  {name}: {{vip: www, port: {8000 + n}, pool: {name}, protocol: tcp, "
        f"topology: {'dr' if any(word in text for word in kernel) else 'proxy'}}}\n"
        for n, (name, text) in enumerate(checks.items())
    )
    text = f"{HEAD}pools:\n{pools}services:\n{services}"
    return Profile.model_validate(yaml.load(text, yaml.BaseLoader), context={"attach": lambda _: b"#!/bin/sh\n"})


def test_a_pool_whose_check_can_find_a_wrong_answer_is_tried_and_others_say_why_not() -> None:
    made = profile(web="http", plain="tcp", mail="smtp", any="udp", own="{type: script, script: check.sh}")
    assert {c.name for c in all_claims(made) if c.name.startswith("wrong-answer/")} == {
        "wrong-answer/web", "wrong-answer/mail",
    }  # fmt: skip
    reasons = {one.name: one.reason for one in left_out(made) if one.name.startswith("wrong-answer/")}
    assert reasons == {
        "wrong-answer/plain": "its check looks at nothing but whether the port is open",
        "wrong-answer/any": "its check takes any answer, and none, for good",
        "wrong-answer/own": "nobody knows what its script takes for a wrong answer",
    }


def test_a_pool_with_one_server_that_takes_anything_is_left_out() -> None:
    servers = "{w1: 192.168.0.21, w2: {address: 192.168.0.22, weight: 0}}"
    made = goldens.parse(
        f"{HEAD}pools: {{web: {{check: http, servers: {servers}}}}}\n"
        "services: {web: {vip: www, port: 80, protocol: http, pool: web}}\n"
    )
    assert why_not(made, "web") == "only one server of it takes anything: nobody would be left to answer"
    assert victims(made) == {}


def test_pools_with_the_same_hosts_in_another_order_keep_one_that_is_well() -> None:
    other = "servers: {w2: 192.168.0.22, w1: 192.168.0.21}"
    made = goldens.parse(
        f"{HEAD}pools: {{web: {{check: http, {TWO}}}, shop: {{check: http, {other}}}}}\n"
        "services:\n  web: {vip: www, port: 80, protocol: http, pool: web}\n"
        "  shop: {vip: www, port: 81, protocol: http, pool: shop}\n"
    )
    assert victims(made) == {"web": "w1", "shop": "w1"}


LIES = {
    "http": ("http", Speaks("http", pages=(Page("/", 500),))),
    "own-path": ("{type: http, path: /health, expect: {status: 500}}", Speaks("http", pages=(Page("/health", 200),))),
    "digest": (
        f"{{type: http, expect: {{digest: {'a' * 32}}}}}", Speaks("http", pages=(Page("/", 200),)),
    ),
    "https": ("https", Speaks("http", tls=True, pages=(Page("/", 500),))),
    "smtp": ("smtp", Speaks("smtp", code=554)),
    "redis": ("redis", Speaks("tcp", exchanges=((PING, LOADING),), quiet=True)),
    "dns": ("dns", Speaks("udp", code=2)),
    "tcp": (
        r"{type: tcp, send: 'ping\r\n', expect: {reply: '+pong'}}",
        Speaks("tcp", exchanges=((b"ping\r\n", b"no\r\n"),)),
    ),
    "tcp-no": ("{type: tcp, expect: {reply: 'o'}}", Speaks("tcp", exchanges=((b"", b"~~\r\n"),))),
    "udp": (r"{type: udp, send: who, expect: {reply: 'me\x00'}}", Speaks("udp", exchanges=((b"who", b"me"),))),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_each_type_lies_on_the_port_that_it_asks(name: str) -> None:
    text, wrong = LIES[name]
    check = profile(web=text).pools["web"].check
    lie = check.lie()
    assert lie is not None and lie.speaks == wrong and not lie.deaf
    (well,) = check.offered(datagrams=False)
    assert well.kind == wrong.kind, "the same program answers, so that nothing else tells the two apart"
    assert ServerPort.speaking(80, well).lying(wrong) != ServerPort.speaking(80, well)


def test_every_type_says_how_it_lies_or_why_it_cannot() -> None:
    for word, kind in TYPES.items():
        stated = {"type": word} | ({"script": "c.sh"} if word == "script" else {})
        check = kind.model_validate(stated, context={"attach": lambda _: b"#!/bin/sh\n"})
        assert (check.lie() is None) == bool(check.never_wrong), word
    assert TYPES["ping"].model_validate({}).lie() is not None


def test_a_lie_leaves_what_other_pools_ask_on_the_port_as_it_is() -> None:
    made = profile(
        one="{type: http, path: /one, port: 80}", two="{type: http, path: /two, port: 80, expect: {status: 418}}"
    )
    well = ServerPort(80, "http", pages=(Page("/two", 418),), exchanges=((b"a", b"b"),))
    lie = made.pools["one"].check.lie()
    assert lie is not None and lie.speaks is not None
    lying = well.lying(lie.speaks)
    assert lying.pages == (Page("/two", 418), Page("/one", 500)) and lying.exchanges == well.exchanges
    assert asked_ports(made, "one", "w1") == (80,)


class FakeLab:
    """A lab in which lying servers leave their pools, unless they are named."""

    def __init__(self, profile: Profile, *, stays: str = "", gone: str = "", shut: str = "") -> None:
        self.profile, self.stays, self.gone, self.shut = profile, stays, gone, shut
        self.disturbed: list[list[str]] = []
        self.lying: set[str] = set()
        host = SimpleNamespace(ask=self.ask)
        ports = tuple(ServerPort(8000 + n, "http") for n in range(len(profile.pools)))
        self.servers = {
            (pool, server): SimpleNamespace(host=host, ports=ports, addresses=(ip_address("192.168.0.21"),))
            for pool, settings in profile.pools.items()
            for server in settings.servers
        }

    def ask(self, url: str, payload: bytes, *, lines: int) -> SimpleNamespace:
        return SimpleNamespace(
            ok=not self.shut or not url.endswith(str(8000 + list(self.profile.pools).index(self.shut)))
        )

    @contextlib.contextmanager
    def server_lies(self, pool: str, server: str) -> Iterator[None]:
        if not self.lying:
            self.disturbed.append([])
        self.disturbed[-1].append(pool)
        self.lying.add(pool)
        try:
            yield
        finally:
            self.lying.discard(pool)

    def wait_server(self, pool: str, server: str, *, up: bool, timeout_s: float) -> float | None:
        assert (pool in self.lying) is not up, "out while it lies, back when it does not"
        return None if pool == (self.gone if up else self.stays) else 0.5

    def put_back(self) -> None:
        self.stays = ""


def tried(lab: FakeLab, *names: str) -> dict[str, tuple[bool, str]]:
    wrong_answers = WrongAnswers()
    outcomes = {name: wrong_answers.outcome(cast(LabNetwork, lab), name) for name in names}
    return {name: (outcome.ok, outcome.detail) for name, outcome in outcomes.items()}


def test_all_pools_are_tried_in_one_disturbance() -> None:
    lab = FakeLab(profile(web="http", shop="http", mail="smtp"))
    assert tried(lab, "web", "shop", "mail") == dict.fromkeys(("web", "shop", "mail"), (True, ""))
    assert lab.disturbed == [["web", "shop", "mail"]]


@pytest.mark.parametrize(
    ("fault", "detail"),
    [
        ({"stays": "shop"}, "w1 answered wrongly, and was still in the pool after "),
        ({"gone": "shop"}, "w1 was not back in the pool after "),
        ({"shut": "shop"}, "w1's port was shut, so that it did not lie"),
    ],
)
def test_a_server_that_stays_or_does_not_come_back_fails_its_own_pool_only(fault: dict[str, str], detail: str) -> None:
    lab = FakeLab(profile(web="http", shop="http"), **fault)
    outcomes = tried(lab, "web", "shop")
    assert outcomes["web"] == (True, "")
    assert not outcomes["shop"][0] and outcomes["shop"][1].startswith(detail)


def test_a_pool_that_is_tried_again_is_tried_alone() -> None:
    lab = FakeLab(profile(web="http", shop="http"), stays="shop")
    wrong_answers = WrongAnswers()
    assert not wrong_answers.outcome(cast(LabNetwork, lab), "shop").ok
    wrong_answers.again(cast(LabNetwork, lab), "shop")
    assert (
        wrong_answers.outcome(cast(LabNetwork, lab), "shop").ok
        and wrong_answers.outcome(cast(LabNetwork, lab), "web").ok
    )
    assert lab.disturbed == [["web", "shop"], ["shop"]]


class FakeWeb(Web):
    """A web server that only remembers what it is told."""

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def set(self, **changes: object) -> None:
        self.said.append(f"set {changes}")

    def stop(self) -> None:
        self.said.append("stop")


class FakeHost:
    """A lab host that remembers what it serves."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def web(self, port: int, **more: object) -> FakeWeb:
        self.said.append(f"web {port} {more['pages']} {more['exchanges']}")
        return FakeWeb(self.said)


def server(*ports: ServerPort) -> tuple[RunningServer, list[str]]:
    host = FakeHost()
    running = RunningServer(cast(Host, host), "w1", (), "", ports)
    running.start()
    host.said.clear()
    return running, host.said


def test_a_web_server_that_lies_keeps_its_port_open_and_tells_the_truth_again() -> None:
    running, said = server(ServerPort(80, "http", pages=(Page("/two", 418),)), ServerPort(81, "http"))
    running.lie([80], Speaks("http", pages=(Page("/", 500),)))
    running.lie([80], Speaks("http", pages=(Page("/three", 500),)))
    assert said == [
        "set {'pages': {'/two': (418, None), '/': (500, None)}}",
        "set {'pages': {'/two': (418, None), '/': (500, None), '/three': (500, None)}}",
    ]
    said.clear()
    running.start()
    assert said[0] == "set {'pages': {'/two': (418, None)}}" and "stop" not in said and not running.lies


def test_what_is_said_in_an_exchange_is_said_by_another_program_for_a_while() -> None:
    running, said = server(ServerPort(80, "http"))
    running.lie([80], Speaks("http", exchanges=((b"a", b"b"),)))
    assert said == ["stop", "web 80 {} ((b'a', b'b'),)"]
    said.clear()
    running.start()
    assert said == ["stop", "web 80 {} ()"]
