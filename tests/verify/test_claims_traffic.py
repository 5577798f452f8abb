"""Claims about services, tried on stand-ins for a lab: forged headers that arrive, and connections held at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from ipaddress import IPv4Address
from itertools import cycle
from types import SimpleNamespace
from typing import Any, cast

import pytest

import goldens
from ndakit.core.release import Release
from ndakit.lab.clients import LabPeople, LoadResult
from ndakit.lab.host import Host
from ndakit.lab.network import LabNetwork
from ndakit.lab.plan import VantagePoint, plan
from ndakit.model import Profile
from ndakit.model.claimed_headers import CLAIMS, ClaimGroup
from ndakit.verify import claims
from ndakit.verify.claims import haproxy, shares, traffic
from ndakit.verify.claims.base import Outcome, first_service_port

POINT = SimpleNamespace(host="client", address=lambda version: "203.0.113.9")
CLIENT = "203.0.113.9"


def weighted(*weights: int, balance: str = "leastconn", protocol: str = "http", more: str = "") -> Profile:
    servers = ", ".join(f"w{i}: {{address: 192.168.0.{21 + i}, weight: {w}}}" for i, w in enumerate(weights))
    head = goldens.PROFILES["bakery"].read_text().partition("pools:")[0]
    return goldens.parse(
        f"{head}pools: {{web: {{port: 80, check: tcp, balance: {balance}, servers: {{{servers}}}}}}}\n"
        f"services: {{web: {{vip: www, port: 80, protocol: {protocol}, pool: web{more}}}}}\n"
    )


# -- headers -----------------------------------------------------------------------------------------------------------


def asked(release: str = "24.10.8", status: int = 200, **arrives: Any) -> Outcome:
    """The claim, where a server sees these headers; `status` is what a request with a disguised one gets."""
    seen = {"x-forwarded-for": CLIENT, "x-forwarded-proto": "http"} | {
        name.replace("__", "-"): value for name, value in arrives.items()
    }

    def get(*args: object, headers: dict[str, str]) -> Any:
        code = status if headers is haproxy.DISGUISED else 200
        return SimpleNamespace(status=code, seen_header=lambda name: seen.get(name.lower()) if code == 200 else None)

    profile = weighted(1, 1).model_copy(update={"release": Release.parse(release)})
    lab = SimpleNamespace(profile=profile, client_for=lambda *_: POINT, get=get)
    return haproxy.client_address(cast(LabNetwork, lab), "web")


def test_a_client_that_is_who_it_is_holds() -> None:
    assert asked().ok
    assert asked(connection="close").ok


@pytest.mark.parametrize("group", CLAIMS.groups, ids=lambda g: g.about)
def test_the_forged_headers_hold_one_of_each_group_and_no_other(group: ClaimGroup) -> None:
    assert set(group.names) & haproxy.FORGED.keys()
    assert haproxy.FORGED.keys() - set(CLAIMS.names) == {"Connection"}


def test_a_disguised_header_is_refused_where_haproxy_has_no_patterns_and_gone_where_it_has() -> None:
    assert asked("21.02.7", 403).ok
    assert not asked("21.02.7", 200).ok
    assert not asked("24.10.8", 403).ok
    assert "a request with X_Forwarded_For gets status 503" in asked("24.10.8", 503).detail


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (h.lower().replace("-", "__"), v)
        for h, v in (haproxy.FORGED | haproxy.DISGUISED).items()
        if h not in haproxy.SET_BY_US
    ],
)
def test_each_forged_header_that_arrives_is_found_out(header: str, value: str) -> None:
    outcome = asked(**cast(Any, {header: value}))
    assert not outcome.ok
    assert header.replace("__", "-") in outcome.detail.lower()


def test_forged_values_of_what_we_set_are_found_out() -> None:
    outcome = asked(x__forwarded__for="192.0.2.66", x__forwarded__proto="https")
    assert "X-Forwarded-For is '192.0.2.66', the client is 203.0.113.9" in outcome.detail
    assert "X-Forwarded-Proto is 'https'" in outcome.detail


# -- requests that nobody answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["http", "tcp"])
@pytest.mark.parametrize(("error", "asked"), [("time-out", 5), ("refused", 60)])
def test_a_claim_does_not_wait_for_requests_that_time_out_once_it_has_failed(
    protocol: str, error: str, asked: int
) -> None:
    """One of two servers keeps silent, or refuses: each second request fails."""
    profile = weighted(1, 1, balance="roundrobin", protocol=protocol)
    people = LabPeople(profile, plan(profile), None, lambda text: None)
    answers = cycle([(True, "w0", ""), (False, "", error)])
    tries = (SimpleNamespace(ok=ok, server=w, status=200 if ok else 0, error=why, body=w) for ok, w, why in answers)
    made: list[object] = []

    def one(*args: object, **words: object) -> Any:
        made.append(next(tries))
        return made[-1]

    def load(url: str, requests: int, **words: object) -> Any:
        return SimpleNamespace(tries=[one() for _ in range(requests)])

    people.hosts["client"] = cast(Host, SimpleNamespace(load=load, ask=one))
    result = people.load(cast(VantagePoint, POINT), IPv4Address("192.168.0.10"), 80, "web", 60)
    assert result.total == len(made)
    assert asked - 1 <= result.total <= asked
    assert (result.failures, result.first_error) == (result.total // 2, error)


@pytest.mark.parametrize(("balance", "asked"), [("source", 12), ("first", 12), ("roundrobin", 60)])
def test_where_one_server_has_to_answer_all_a_dozen_requests_show_it(balance: str, asked: int) -> None:
    profile, made = weighted(1, 1, balance=balance), []

    def load(point: object, address: object, port: int, pool: str, requests: int, transport: str) -> LoadResult:
        made.append(requests)
        return LoadResult(requests, {"w0": requests - 1, "w1": 1}, 0)

    network = SimpleNamespace(
        profile=profile, client_for=lambda *_: POINT, load=load, speaks=lambda *_: "http", servers={}, hosts={}
    )
    outcome = traffic.service(cast(LabNetwork, network), "web")
    assert made == [asked]
    assert not outcome.ok, "one answer of another server is enough"


# -- connections at once -----------------------------------------------------------------------------------------------


class Call:
    """A connection on which somebody answers at the second look."""

    def __init__(self, first: str) -> None:
        self.looks, self.first, self.closed = 0, first, False

    def heard(self) -> Any:
        self.looks += 1
        there = self.looks > 1 and self.first
        return SimpleNamespace(heard=len(self.first) if there else 0, first=self.first if there else "",
                               error="" if self.first else "reset")  # fmt: skip

    def close(self, *, reset: bool) -> None:
        self.closed = reset


def lab(profile: Profile, who: Iterator[str], kind: str = "http") -> tuple[LabNetwork, list[Call]]:
    """A lab in which these servers answer, one after the other."""
    calls: list[Call] = []

    def call(address: object, port: int, *, payload: bytes, source: object) -> Call:
        server = next(who)
        texts = {
            "http": f"HTTP/1.1 200 OK\r\nx-lab-server: {server}\r\nConnection: close\r\n\r\n",
            "tcp": f"{server}\nhello",
        }
        assert payload == shares._BUSY[kind]
        calls.append(Call(texts[kind] if server else ""))
        return calls[-1]

    labels = {("web", n): SimpleNamespace(label=str(s.address[0])) for n, s in profile.pools["web"].servers.items()}
    fake = SimpleNamespace(
        profile=profile, plan=plan(profile), servers=labels, hosts={"client": SimpleNamespace(call=call)},
        client_for=lambda endpoint, service: POINT, speaks=lambda service, port: kind,
    )  # fmt: skip
    return cast(LabNetwork, fake), calls


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_connections_are_held_until_all_are_there_and_counted_by_server(kind: str) -> None:
    profile = weighted(3, 1)
    one, other = "192.168.0.21", "192.168.0.22"
    network, calls = lab(profile, cycle([one, one, other, one]), kind)
    counts = shares.hold_at_once(network, first_service_port(profile, "web"))
    assert counts == {"w0": 18, "w1": 6}
    assert shares.at_once_errors(profile, "web", counts) == []
    assert len(calls) == 24
    assert all(call.closed for call in calls)


def test_weights_that_are_not_looked_at_are_found_out() -> None:
    profile = weighted(3, 1)
    network, _ = lab(profile, cycle(["192.168.0.21", "192.168.0.22"]))
    counts = shares.hold_at_once(network, first_service_port(profile, "web"))
    assert shares.at_once_errors(profile, "web", counts) == [
        "w0 has 12 of 24 connections at once, not 18",
        "w1 has 12 of 24 connections at once, not 6",
    ]


def test_connections_that_nobody_answers_are_found_out() -> None:
    profile = weighted(1, 1)
    network, _ = lab(profile, cycle(["", "192.168.0.22"]))
    counts = shares.hold_at_once(network, first_service_port(profile, "web"))
    assert "12 of 24 connections at once were not answered" in shares.at_once_errors(profile, "web", counts)


@pytest.mark.parametrize(
    ("profile", "kind", "shows"),
    [
        (weighted(3, 1), "http", True),
        (weighted(3, 1, protocol="tcp"), "tcp", True),
        (weighted(3, 1, protocol="tcp"), "smtp", False),
        (weighted(1, 1), "http", False),
        (weighted(3, 0), "http", False),
        (weighted(3, 1, balance="roundrobin"), "http", False),
        (weighted(3, 1, more=", persistence: {type: source}"), "http", False),
        (weighted(3, 1, more=", limits: {connections: {count: 20}}"), "http", False),
        (weighted(3, 1, protocol="tcp", more=", topology: dr"), "http", False),
    ],
)
def test_weights_are_asked_at_once_only_where_that_shows_them(profile: Profile, kind: str, shows: bool) -> None:
    assert shares.shows_at_once(lab(profile, cycle([""]), kind)[0], "web", 80) is shows


@pytest.mark.parametrize(("weights", "count"), [((3, 1, 1), 25), ((1, 1), 24), ((100, 50), 24), ((30, 17), 47)])
def test_so_many_connections_are_held_that_weights_get_whole_ones(weights: tuple[int, ...], count: int) -> None:
    assert shares._how_many(weighted(*weights).pools["web"]) == count


# -- backups -----------------------------------------------------------------------------------------------------------


def stood_in(alone: LoadResult, again: LoadResult) -> Outcome:
    """The claim about backups, with what is answered while the others are dead and afterwards."""
    head = goldens.PROFILES["bakery"].read_text().partition("pools:")[0]
    profile = goldens.parse(
        f"{head}pools: {{web: {{port: 80, check: tcp, servers: {{web1: 192.168.0.21, "
        "small: {address: 192.168.0.29, backup: true}}}}\n"
        "services: {web: {vip: www, port: 80, protocol: http, pool: web}}\n"
    )
    answers = iter((alone, again))
    down: list[str] = []

    @contextlib.contextmanager
    def server_down(_: str, server: str) -> Iterator[None]:
        down.append(server)
        yield

    lab = SimpleNamespace(
        profile=profile, server_down=server_down, wait_server=lambda *_, **__: 1.0, ask=lambda *_: next(answers)
    )
    outcome = {c.name: c for c in claims.all_claims(profile)}["backup/web"].run(cast(LabNetwork, lab))
    assert down == ["web1"]
    return outcome


MAIN, SMALL, NONE = LoadResult(6, {"web1": 6}, 0), LoadResult(6, {"small": 6}, 0), LoadResult(6, {}, 6)


def test_backups_that_answer_without_the_others_and_only_then_hold() -> None:
    assert stood_in(SMALL, MAIN).ok


@pytest.mark.parametrize(
    ("alone", "again", "told"),
    [
        (NONE, MAIN, "without the others: no answer, 6 failures"),
        (MAIN, MAIN, "without the others: web1 100 %, 0 failures"),
        (SMALL, SMALL, "with the others again: small 100 %, 0 failures"),
        (SMALL, NONE, "with the others again: no answer, 6 failures"),
    ],
)
def test_backups_that_do_not_stand_in_or_do_not_step_back_are_found_out(
    alone: LoadResult, again: LoadResult, told: str
) -> None:
    outcome = stood_in(alone, again)
    assert not outcome.ok and outcome.detail == told


def test_a_backup_that_answers_beside_the_others_is_found_out() -> None:
    profile = weighted(1, 1, balance="roundrobin")
    servers = profile.pools["web"].servers
    pool = profile.pools["web"].model_copy(
        update={"servers": {**servers, "w1": servers["w1"].model_copy(update={"backup": True})}}
    )
    backed = profile.model_copy(update={"pools": {"web": pool}})
    assert shares.share_errors(backed, "web", LoadResult(4, {"w0": 4}, 0)) == []
    told = shares.share_errors(backed, "web", LoadResult(4, {"w0": 2, "w1": 2}, 0))
    assert told == ["w1 answered, and is there for the time without the others"]
