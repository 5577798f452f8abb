"""The claim that a client keeps its server, tried on a balancer made of a dictionary: it holds, and faults are told.

What a real HAProxy does is in tests/render/test_persistence_live.py, the claim in machines in test_handover_vm.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import cycle
from typing import Any, cast

import pytest

import goldens
from ndakit.lab.clients import LoadResult
from ndakit.lab.host.measure import Answer, Try
from ndakit.lab.network import LabNetwork
from ndakit.lab.plan import VantagePoint
from ndakit.model import Address, Endpoint, Profile
from ndakit.verify.claims import all_claims, left_out
from ndakit.verify.claims.connection_sync import handed_over
from ndakit.verify.claims.persistence import persistence, rdp_request

HEAD = goldens.PROFILES["bakery"].read_text().partition("pools:")[0]
KINDS = {
    "source": ("{type: source%s}", "tcp"),
    "cookie": ("{type: cookie, name: SRV%s}", "http"),
    "prefix": ("{type: cookie, name: ID, mode: prefix%s}", "http"),
    "existing": ("{type: cookie, name: ID, mode: existing%s}", "http"),
    "header": ("{type: header, name: X-User%s}", "http"),
    "parameter": ("{type: parameter, name: sid%s}", "http"),
    "rdp-cookie": ("{type: rdp-cookie%s}", "tcp"),
}


def profile(
    kind: str, on_failure: str = "", servers: str = "{a: 192.168.0.21, b: 192.168.0.22, c: 192.168.0.23}"
) -> Profile:
    text, protocol = KINDS.get(kind, (kind, "tcp"))
    kept = text.replace("%s", f", on_failure: {on_failure}" if on_failure else "")
    return goldens.parse(
        f"{HEAD}pools: {{web: {{check: tcp, persistence: {kept}, servers: {servers}}}}}\n"
        f"services: {{web: {{vip: www, port: 80, protocol: {protocol}, pool: web}}}}\n"
    )


def answer(server: str, headers: Mapping[str, str], status: int) -> Answer:
    error = "" if status else "reset"
    return Answer(Try(0, 1, 0, error, status, server), tuple(headers.items()), "", ("192.168.0.99", 1))


@dataclass
class Balancer:
    """What a lab is asked, with faults that it may have."""

    profile: Profile
    fault: str = ""
    path: str = "/"
    dead: set[str] = field(default_factory=set)
    table: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.turns = cycle(self.profile.pools["web"].servers)
        kept = self.profile.persistence("web")
        assert kept is not None
        self.kept: Any = kept

    def client_for(self, endpoint: Endpoint, service: str) -> VantagePoint:
        return VantagePoint("client", (ip_address("192.168.0.99"),))

    def choose(self, key: str) -> str:
        """The server for a client; "" if it is turned away."""
        had = self.table.get(key) if key and self.fault != "forgets" else None
        if had is not None and (had not in self.dead or self.fault == "serves the dead"):
            return had
        if had is not None and self.kept.refuses and self.fault != "reassigns":
            return ""
        if self.dead and self.fault == "refuses all":
            return ""
        server = next(s for s in self.turns if s not in self.dead)
        if key and not (self.fault == "forgets the new one" and self.dead):
            self.table[key] = server
        return server

    def get(self, point: VantagePoint, address: Address, port: int, *, path: str, headers: Mapping[str, str]) -> Answer:
        brought = dict(headers).get("Cookie", "")
        key = path if path != "/" else dict(headers).get("X-User", "") or brought
        if self.kept.type == "cookie" and self.kept.mode != "existing":
            value = brought.partition("=")[2].partition("~")[0]
            if value:
                self.table[brought] = value
        server = self.choose(key)
        if not server:
            return answer("", {}, 503)
        says = self.kept.type == "cookie" and self.kept.mode == "insert"
        same = self.kept.type == "cookie" and brought == f"{self.kept.name}={server}"
        return answer(server, {"Set-Cookie": f"SRV={server}; path=/; HttpOnly"} if says and not same else {}, 200)

    def talk(self, point: VantagePoint, address: Address, port: int, words: bytes) -> Answer:
        server = self.choose(words.decode("latin-1"))
        return answer(server, {}, 200 if server else 0)

    def server_of(self, pool: str, given: Answer) -> str:
        return given.server

    def load(self, point: VantagePoint, address: Address, port: int, pool: str, requests: int) -> LoadResult:
        server = self.choose("192.168.0.99")
        return LoadResult(1, {server: 1} if server else {}, int(not server), "" if server else "reset")

    @contextlib.contextmanager
    def server_down(self, pool: str, server: str) -> Iterator[None]:
        self.dead.add(server)
        try:
            yield
        finally:
            self.dead.discard(server)

    def wait_server(self, pool: str, server: str, *, up: bool, timeout_s: float) -> float | None:
        return None if self.fault == ("never back" if up else "never out") else 1.0


def tried(kind: str, on_failure: str = "", fault: str = "") -> tuple[bool, str, str]:
    outcome = persistence(cast(LabNetwork, Balancer(profile(kind, on_failure), fault)), "web")
    return outcome.ok, outcome.figure, outcome.detail


@pytest.mark.parametrize("on_failure", ["", "refuse"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_claim_holds_where_clients_are_kept(kind: str, on_failure: str) -> None:
    ok, figure, detail = tried(kind, on_failure)
    assert ok, detail
    assert figure.startswith("4 requests to a, then ")
    if on_failure:
        assert figure.endswith("status 503" if KINDS[kind][1] == "http" else "reset")


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("cookie", "prefix")])
@pytest.mark.parametrize(
    ("on_failure", "fault", "word"),
    [
        ("", "forgets", "a client that had a got "),
        ("", "serves the dead", "when a was dead, it got a"),
        ("", "forgets the new one", "when a was dead, a client that had b got c"),
        ("", "never out", "a was still in the pool"),
        ("", "never back", "a was not back in the pool"),
        ("refuse", "reassigns", "its client was not turned away but got "),
        ("refuse", "serves the dead", "its client was not turned away but got a"),
    ],
)
def test_each_fault_is_told(kind: str, on_failure: str, fault: str, word: str) -> None:
    ok, _, detail = tried(kind, on_failure, fault)
    assert not ok and word in detail


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "source"])
def test_new_clients_that_are_turned_away_as_well_are_told(kind: str) -> None:
    ok, _, detail = tried(kind, "refuse", "refuses all")
    assert not ok and "when a was dead, a new client got " in detail


@pytest.mark.parametrize("fault", ["forgets", "serves the dead"])
def test_a_cookie_that_nobody_reads_is_told(fault: str) -> None:
    ok, _, detail = tried("cookie", "", fault)
    assert not ok and ("a client that had a got" in detail or "when a was dead, it got a" in detail)


def test_what_cannot_be_tried_says_why() -> None:
    for kind, servers, word in (
        ("{type: tls-session}", "{a: 192.168.0.21, b: 192.168.0.22}", "the lab's servers of tcp services end no TLS"),
        ("source", "{a: 192.168.0.21}", "only one server of its pool takes anything"),
        ("{type: source, timeout_s: 5}", "{a: 192.168.0.21, b: 192.168.0.22}", "a client is forgotten before"),
    ):
        made = profile(kind, "", servers)
        assert not [c for c in all_claims(made) if c.name == "persistence/web"]
        (reason,) = [one.reason for one in left_out(made) if one.name == "persistence/web"]
        assert reason.startswith(word)


def test_what_clients_are_known_by_is_said() -> None:
    said = {kind: next(c.text for c in all_claims(profile(kind)) if c.name == "persistence/web") for kind in KINDS}
    assert said["cookie"] == (
        "a client of web, known by its cookie SRV, keeps its server; when that dies, the client gets another one and "
        "keeps it"
    )
    refuse = next(c.text for c in all_claims(profile("source", "refuse")) if c.name == "persistence/web")
    assert refuse.endswith("when that dies, the client is turned away until the server is back")


def test_which_clients_a_failover_must_not_move() -> None:
    for kind, kept in (("header", True), ("cookie", True), ("existing", True), ("prefix", False), ("rdp-cookie", True)):
        made = profile(kind)
        made = made.model_copy(update={"vrrp": made.vrrp.model_copy(update={"connection_sync": True})})
        assert (handed_over(made).kept == ("web",)) is kept, kind
        quiet = made.model_copy(update={"vrrp": made.vrrp.model_copy(update={"connection_sync": False})})
        assert handed_over(quiet).kept == ()


def test_an_rdp_clients_words_are_whole() -> None:
    said = rdp_request("me")
    assert int.from_bytes(said[2:4], "big") == len(said), "the length of the TPKT"
    assert said[4] == len(said) - 5, "the length of the X.224 header"
    assert said[11:] == b"Cookie: mstshash=me\r\n"
