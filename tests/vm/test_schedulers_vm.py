"""How the kernel chooses a server: every scheduler, limits, draining, quorum, sorry servers, persistence, by effect.

One balancer, and clients with many addresses beyond the router. What is said of a scheduler here would not hold with
another one in its place.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import planted
from choosing import (
    CLIENTS,
    KEPT_S,
    LEAVER,
    NEIGHBOUR,
    NEWCOMERS,
    OUTSIDERS,
    PORTS,
    PROXY_PORTS,
    SCHEDULERS,
    SIX,
    SIX_NEIGHBOUR,
    Clients,
    profile,
)
from ndakit.core.deadline import Deadline
from ndakit.node import control
from ndakit.verify import claims
from ndakit.verify.claims import scheduling
from ndakit.verify.claims.base import first_service_port
from pairs import new_key, running

RESET_S = 10
"""Linux forgets a connection that was reset so long after (ip_vs_proto_tcp.c, IP_VS_TCP_S_CLOSE)."""


@dataclass
class Waiting:
    """What was begun when the lab was up, because its end takes time."""

    kept_by: str
    reset_s: float
    """When the kept client's only connection was reset."""
    filled: Counter[str]
    """Who got the connections with which server a of pool limited became full."""
    beyond: Counter[str]
    """Who got the next ones."""
    at_once: str
    """Who got one right after two of a's connections were reset."""


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    folder = tmp_path_factory.mktemp("choice")
    public, private = new_key(folder)
    with running(folder, "choice", profile(public), identity=private) as booted:
        yield Clients(booted.lab)


@pytest.fixture(autouse=True)
def nothing_held(clients: Clients, waiting: Waiting) -> Iterator[None]:
    yield
    clients.let_go()


@pytest.fixture(scope="module")
def waiting(clients: Clients) -> Waiting:
    last = clients.hold("kept", source=LEAVER)
    kept_by = clients.names(last)
    clients.let_go(last, reset=True)
    reset_s = time.monotonic()
    held = clients.hold("limited", 8)
    beyond = clients.hold("limited", 3)
    clients.let_go([h for h in held if clients.name(h) == "a"][:2], reset=True)
    at_once = clients.who("limited")
    return Waiting(kept_by, reset_s, Counter(clients.names(held)), Counter(clients.names(beyond)), at_once)


# -- schedulers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [CLIENTS[0], SIX])
def test_rr_takes_turns_whatever_the_weights(clients: Clients, source: str) -> None:
    answers = clients.all("rr", 6, source)
    assert answers[:3] == answers[3:]
    assert Counter(answers) == Counter(a=2, b=2, c=2)


def test_wrr_takes_turns_by_weight_whoever_is_busy(clients: Clients) -> None:
    held = clients.hold("wrr", 12)
    assert Counter(clients.names(held)) == Counter(a=2, b=4, c=6)
    clients.let_go(held, "c")
    assert Counter(clients.names(clients.hold("wrr", 6))) == Counter(a=1, b=2, c=3)


def test_lc_evens_out_open_connections_whatever_the_weights(clients: Clients) -> None:
    held = clients.hold("lc", 9)
    assert Counter(clients.names(held)) == Counter(a=3, b=3, c=3)
    clients.let_go(held, "a")
    assert clients.names(clients.hold("lc", 3)) == "aaa"


def test_wlc_evens_out_open_connections_by_weight(clients: Clients) -> None:
    held = clients.hold("wlc", 12)
    assert Counter(clients.names(held)) == Counter(a=2, b=4, c=6)
    clients.let_go(held, "c")
    assert clients.names(clients.hold("wlc", 5)) == "ccccc"


def test_sed_leaves_a_slow_server_idle_as_long_as_the_fast_one_is_quicker(clients: Clients) -> None:
    assert clients.names(clients.hold("sed", 3)) == "bbb"
    assert Counter(clients.names(clients.hold("sed", 5))) == Counter(a=1, b=4)


def test_nq_lets_no_server_idle_and_goes_by_weight_then(clients: Clients) -> None:
    held = clients.hold("nq", 2)
    assert Counter(clients.names(held)) == Counter(a=1, b=1)
    assert clients.names(clients.hold("nq", 6)) == "bbbbbb"
    clients.let_go(held, "a")
    assert clients.names(clients.hold("nq")) == "a"


def test_sh_goes_by_the_clients_address(clients: Clients) -> None:
    clients.hold("sh", 3)  # who is busy does not matter
    first = {source: clients.who("sh", source) for source in CLIENTS}
    assert set(first.values()) == {"a", "b", "c"}
    assert {source: clients.who("sh", source) for source in CLIENTS} == first


def test_sh_gives_clients_of_a_drained_server_another_one(clients: Clients) -> None:
    first = {source: clients.who("sh", source) for source in CLIENTS}
    _weigh(clients, "sh", "a", 0)
    drained = {source: clients.who("sh", source) for source in CLIENTS}
    _weigh(clients, "sh", "a", 1)
    assert set(drained.values()) == {"b", "c"}
    assert {source: clients.who("sh", source) for source in CLIENTS} == first


def test_without_its_fallback_sh_would_refuse_them(clients: Clients) -> None:
    vip = clients.url("sh").removeprefix("http://")
    _weigh(clients, "sh", "a", 0)
    clients.lab.run("lb1", f"ipvsadm -E -t {vip} -s sh")
    answers = {clients.who("sh", source) for source in CLIENTS}
    clients.lab.run("lb1", f"ipvsadm -E -t {vip} -s sh -b sh-fallback")
    _weigh(clients, "sh", "a", 1)
    assert answers == {"b", "c", "refused"}


def test_fo_sends_everything_to_the_heaviest_server_that_is_left(clients: Clients) -> None:
    lab = clients.lab
    assert clients.names(clients.hold("fo", 6)) == "xxxxxx"
    with lab.server_down("fo", "x"):
        assert lab.wait_server("fo", "x", up=False, timeout_s=5) is not None
        assert clients.names(clients.hold("fo", 6)) == "yyyyyy"
    assert lab.wait_server("fo", "x", up=True, timeout_s=5) is not None
    assert clients.all("fo", 3) == "xxx"


def test_ovf_fills_one_server_after_the_other(clients: Clients) -> None:
    # The kernel compares before it counts: one connection more than the weight (ip_vs_ovf.c).
    held = clients.hold("ovf", 9)
    assert clients.names(held) == "aaaabbbcc"
    assert clients.who("ovf") == "refused"
    clients.let_go(held[:1])
    assert clients.who("ovf") == "a"


def _by_destination(clients: Clients, service: str) -> dict[str, str]:
    """Who answers for each VIP of a service that has four."""
    vips = clients.lab.profile.services[service].vip
    return {vip: clients.name(clients.hold(service, vip=vip)[0]) for vip in vips}


def test_dh_goes_by_the_vips_address_whoever_is_busy(clients: Clients) -> None:
    first = _by_destination(clients, "dh")
    assert len(set(first.values())) > 1
    clients.hold("dh", 4, vip="one")
    for source in CLIENTS[:4]:
        assert {vip: clients.who("dh", source, vip=vip) for vip in first} == first


def test_dh_refuses_clients_of_a_drained_server(clients: Clients) -> None:
    first = _by_destination(clients, "dh")
    _weigh(clients, "dh", first["one"], 0)
    answer = clients.who("dh", vip="one")
    _weigh(clients, "dh", first["one"], 1)
    assert answer == "refused"


def _overloaded(clients: Clients, service: str) -> tuple[str, str]:
    """VIP one's server by locality, and whom it goes to once that has more connections than its weight; then the first
    one is idle again."""
    first = _by_destination(clients, service)
    assert len({first[v] for v in ("one", "two", "three")}) == 3, "each new address goes to the idlest server"
    clients.let_go()
    here = clients.hold(service, 3, CLIENTS[2], vip="one")
    assert set(clients.names(here)) == {first["one"]}, "others are idle, and yet it stays"
    there = clients.hold(service, 2, CLIENTS[3], vip="one")
    assert len(set(clients.names(there))) == 1
    clients.let_go(here)
    return first["one"], clients.name(there[0])


def test_lblc_goes_by_the_vips_address_and_moves_it_away_from_a_busy_server(clients: Clients) -> None:
    before, after = _overloaded(clients, "lblc")
    assert before != after
    assert clients.who("lblc", vip="one") == after, "it has moved for good"


def test_lblcr_gives_a_busy_address_a_second_server_and_keeps_the_first(clients: Clients) -> None:
    before, after = _overloaded(clients, "lblcr")
    assert before != after
    assert clients.who("lblcr", vip="one") == before, "it has both, and this one is idle"


@pytest.mark.parametrize("source", [CLIENTS[0], SIX])
def test_datagrams_take_turns(clients: Clients, source: str) -> None:
    answers = clients.all("sorry-udp", 6, source)
    assert answers[:3] == answers[3:]
    assert Counter(answers) == Counter(x=2, y=2, z=2)


# -- servers that shall have less, or nothing ------------------------------------------------------------------------


def test_a_server_of_weight_0_gets_nothing_and_is_there_all_the_same(clients: Clients) -> None:
    assert Counter(clients.all("drained", 6)) == Counter(b=3, c=3)
    facts = clients.lab.facts("lb1").virtual_servers()
    weights = next(v.weights for v in facts if v.port == clients.lab.profile.services["drained"].first_port)
    assert sorted(weights.values()) == [0, 1, 1]


def _weigh(clients: Clients, service: str, server: str, weight: int) -> None:
    """As docs/topologies.md says it is done on a balancer that runs."""
    profile = clients.lab.profile
    clients.lab.run("lb1", control.weight_command(profile, *first_service_port(profile, service), server, weight))


def test_a_server_that_is_drained_keeps_its_connections_and_gets_no_new_ones(clients: Clients) -> None:
    old = next(h for h in clients.hold("wrr", 6) if clients.name(h) == "c")
    _weigh(clients, "wrr", "c", 0)
    assert Counter(clients.all("wrr", 6)) == Counter(a=2, b=4)
    time.sleep(4.5)  # longer than the checks' interval: keepalived leaves it at that
    assert Counter(clients.all("wrr", 6)) == Counter(a=2, b=4)
    assert clients.names([old]) == "c"
    assert old.again().seen["request"] == 2
    _weigh(clients, "wrr", "c", 3)
    assert Counter(clients.all("wrr", 6)) == Counter(a=1, b=2, c=3)


def test_a_drained_server_that_was_away_is_back_with_its_weight(clients: Clients) -> None:
    lab, address = clients.lab, clients.lab.profile.pools["fo"].servers["x"].address[0]

    def there() -> bool:
        weights = next(v.weights for v in lab.facts("lb1").virtual_servers() if v.port == 8030)
        return any(a == address for a, _ in weights)

    _weigh(clients, "fo", "x", 0)
    assert (clients.who("fo"), there()) == ("y", True)
    with lab.server_down("fo", "x"):
        Deadline(5, "keepalived to take the server out").wait_until(lambda: not there(), every_s=0.2)
    assert lab.wait_server("fo", "x", up=True, timeout_s=5) is not None
    assert clients.who("fo") == "x"


def test_a_client_that_was_kept_leaves_a_drained_server_with_new_connections(clients: Clients) -> None:
    old = clients.hold("kept", source=NEIGHBOUR)[0]
    before = clients.name(old)
    assert clients.all("kept", 3, NEIGHBOUR) == 3 * before
    _weigh(clients, "kept", before, 0)
    after = clients.all("kept", 3, NEIGHBOUR)
    assert before not in after
    assert len(set(after)) == 1
    assert old.again().ok
    _weigh(clients, "kept", before, 1)


def test_a_full_server_gets_no_more_connections(waiting: Waiting) -> None:
    assert waiting.filled == Counter(a=4, b=4)
    assert waiting.beyond == Counter(b=3)
    assert waiting.at_once == "b", "finished connections count until the kernel forgets them"


# -- when servers are missing ----------------------------------------------------------------------------------------


def test_below_the_quorum_the_sorry_server_answers_although_servers_are_left(clients: Clients) -> None:
    lab = clients.lab
    assert "s" not in clients.all("quorum", 6)
    with lab.server_down("quorum", "x"):
        assert lab.wait_server("quorum", "x", up=False, timeout_s=5) is not None
        assert clients.all("quorum", 4) == "ssss"
    assert lab.wait_server("quorum", "x", up=True, timeout_s=5) is not None
    assert Counter(clients.all("quorum", 6)) == Counter(x=3, y=2, z=1)


def test_with_no_server_left_the_sorry_server_answers_tcp_and_udp_in_both_families(clients: Clients) -> None:
    lab = clients.lab
    with lab.pool_down("sorry"):
        for server in "xyz":
            assert lab.wait_server("sorry", server, up=False, timeout_s=5) is not None
        for service in ("sorry", "sorry-udp"):
            for source in (CLIENTS[0], SIX):
                assert clients.all(service, 2, source) == "ss", f"{service} from {source}"
    for server in "xyz":
        assert lab.wait_server("sorry", server, up=True, timeout_s=5) is not None
    for service in ("sorry", "sorry-udp"):
        for source in (CLIENTS[0], SIX):
            assert Counter(clients.all(service, 3, source)) == Counter("xyz")


# -- persistence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("client", "neighbour"), [(CLIENTS[0], NEIGHBOUR), (SIX, SIX_NEIGHBOUR)])
def test_clients_of_one_network_keep_one_server_and_each_network_gets_its_own(
    clients: Clients, client: str, neighbour: str
) -> None:
    here = clients.all("kept", 4, client)
    assert here == 4 * here[0]
    assert clients.all("kept", 4, neighbour) == here
    others = {outsider: clients.who("kept", outsider) for outsider in OUTSIDERS[6 if ":" in client else 4]}
    assert set(others.values()) == {"a", "b", "c"}
    assert {outsider: clients.who("kept", outsider) for outsider in others} == others


@pytest.mark.parametrize(("client", "neighbour"), [(CLIENTS[0], NEIGHBOUR), (SIX, SIX_NEIGHBOUR)])
def test_datagrams_of_one_network_keep_one_server(clients: Clients, client: str, neighbour: str) -> None:
    here = clients.all("kept-udp", 4, client)
    assert here == 4 * here[0]
    assert clients.all("kept-udp", 4, neighbour) == here
    assert {clients.who("kept-udp", outsider) for outsider in OUTSIDERS[6 if ":" in client else 4]} == {"a", "b", "c"}


@pytest.mark.parametrize(("client", "other"), [(CLIENTS[0], NEIGHBOUR), (SIX, SIX_NEIGHBOUR)])
def test_a_client_keeps_its_server_on_all_ports_of_a_service(clients: Clients, client: str, other: str) -> None:
    here = [clients.who("ftp", client, port=port) for port in (21, 10000, 21, 10005, 10010)]
    there = [clients.who("ftp", other, port=port) for port in (21, 10000, 10010)]
    assert len(set(here)) == 1
    assert len(set(there)) == 1
    assert here[0] != there[0]


# -- what takes time -------------------------------------------------------------------------------------------------


def test_a_server_gets_connections_again_once_there_are_few_enough(clients: Clients, waiting: Waiting) -> None:
    time.sleep(max(0.0, waiting.reset_s + RESET_S + 1 - time.monotonic()))
    assert "a" in clients.all("limited", 2)


def test_a_client_is_forgotten_when_the_time_is_over(clients: Clients, waiting: Waiting) -> None:
    time.sleep(max(0.0, waiting.reset_s + KEPT_S + 1 - time.monotonic()))
    # Servers take turns: after somebody new has got the one that was kept, it is another's turn.
    for newcomer in NEWCOMERS:
        if clients.who("kept", newcomer) == waiting.kept_by:
            assert clients.who("kept", LEAVER) != waiting.kept_by
            return
    pytest.fail(f"three new clients, and none got {waiting.kept_by}")


# -- what verify makes of it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [n for n in SCHEDULERS if n != "dh"] + ["kept", "ftp", "limited"])
def test_the_claim_about_draining_holds(clients: Clients, pool: str) -> None:
    outcome = _claim(clients, f"drain/{pool}")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


def test_a_server_that_gets_connections_although_it_is_drained_is_found_out(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "drain", lambda *_: ())
    outcome = _claim(clients, "drain/rr")
    assert not outcome.ok
    assert " was drained, and got " in outcome.detail


def test_clients_that_a_drained_server_loses_are_found_out(clients: Clients) -> None:
    outcome = scheduling.drained(clients.lab, "dh")
    assert not outcome.ok
    assert "8 of 8 failed (refused)" in outcome.detail


BY_PROXY = tuple(f"by-{name}" for name in PROXY_PORTS)
SERVICES = (*PORTS, "fo", "drained", "limited", "quorum", "sorry", "sorry-udp", "kept", "kept-udp", *BY_PROXY)


@pytest.mark.parametrize("service", SERVICES)
def test_verify_knows_what_to_expect(clients: Clients, service: str) -> None:
    outcome = _claim(clients, f"service/{service}")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


def test_haproxys_leastconn_is_judged_by_connections_that_are_there_at_once(clients: Clients) -> None:
    outcome = _claim(clients, "service/by-leastconn")
    assert outcome.figure.endswith("a 60 %, b 20 %, c 20 % of 25 at once")
    assert "at once" not in _claim(clients, "service/by-leastconn-even").figure


@pytest.mark.parametrize(
    ("balance", "words"),
    [
        ("leastconn", "of 25 connections at once, not 15"),
        ("roundrobin", "a got 33% instead of 60%"),
        ("first", "b answered, and a comes first"),
    ],
)
def test_a_haproxy_that_chooses_otherwise_is_found_out(clients: Clients, balance: str, words: str) -> None:
    """The running HAProxy is told otherwise than the profile: all weights the same; b where a belongs."""
    lab, block = clients.lab, f"/^backend by-{balance}$/,/^$/"
    change = "s/server a 192.168.0.31/server a 192.168.0.32/" if balance == "first" else "s/weight [0-9]*/weight 1/"
    conf, anew = "/etc/haproxy.cfg", "/etc/init.d/haproxy restart"
    breaking = f"cp {conf} /tmp/before.cfg; sed -i '{block}{change}' {conf}; ! cmp -s {conf} /tmp/before.cfg && {anew}"
    with planted.on_every_node(lab, breaking, f"cp /tmp/before.cfg {conf}; {anew}"):
        outcome = _claim(clients, f"service/by-{balance}")
    assert not outcome.ok
    assert words in outcome.detail


@pytest.mark.parametrize("even", ["", "-even"])
def test_haproxys_source_and_uri_keep_a_key_on_its_server_and_use_all(clients: Clients, even: str) -> None:
    by_source = {client: clients.all(f"by-source{even}", 2, client) for client in CLIENTS}
    assert all(answered == 2 * answered[0] for answered in by_source.values())
    assert len({answered[0] for answered in by_source.values()}) > 1

    def who(path: str, source: str) -> str:
        answer = clients.host.get(f"{clients.url(f'by-uri{even}')}{path}", source=source)
        return clients.named(answer)

    by_path = {f"/{n}": {who(f"/{n}", source) for source in CLIENTS[:2]} for n in range(12)}
    assert all(len(servers) == 1 for servers in by_path.values()), "whoever asks"
    assert len({server for servers in by_path.values() for server in servers}) > 1


@pytest.mark.parametrize("claim", ["daemons/lb1", "statistics/lb1"])
def test_a_node_whose_services_the_kernel_carries_keeps_what_it_claims(clients: Clients, claim: str) -> None:
    outcome = _claim(clients, claim)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


def test_a_node_without_statistics_or_keepalived_is_found_out(clients: Clients) -> None:
    lab = clients.lab
    stop, start = (f"/etc/init.d/haproxy {action}; /etc/init.d/keepalived {action}" for action in ("stop", "start"))
    with planted.on_node(lab, "lb1", stop, start):
        page, running = _claim(clients, "statistics/lb1"), _claim(clients, "daemons/lb1")
    lab.settle()
    assert "noc does not get it from 192.168.0.11" in page.detail
    assert running.detail == "not running: haproxy, keepalived"


def _claim(clients: Clients, name: str) -> claims.Outcome:
    by_name = {c.name: c for c in claims.all_claims(clients.lab.profile)}
    return by_name[name].run(clients.lab)


def test_the_claim_about_the_quorum_holds_and_needs_the_sorry_server(clients: Clients) -> None:
    outcome = _claim(clients, "quorum/quorum")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"
    with clients.lab.server_down("spare", "s"):
        outcome = _claim(clients, "quorum/quorum")
    assert not outcome.ok
    assert "without x: no answer, 8 failures" in outcome.detail


def test_the_claim_about_the_sorry_server_tries_every_service_and_family(clients: Clients) -> None:
    outcome = _claim(clients, "sorry/sorry")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"
    spare = clients.lab.servers["spare", "s"]
    spare.services.pop(next(p for p in spare.ports if (p.number, p.kind) == (8034, "http"))).stop()
    outcome = _claim(clients, "sorry/sorry")
    spare.start()
    assert not outcome.ok
    assert outcome.detail == (
        "expected answers from pool spare; 203.0.113.10 tcp port 8034: no answer; "
        "2001:db8:0:1::10 tcp port 8034: no answer"
    )
