"""Selecting and trying claims, judging shares and gaps, reading a node's answers: without any machine."""

from __future__ import annotations

import contextlib
import itertools
import json
import shlex
import subprocess
import threading
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ndakit.cli import verify_progress
from ndakit.core.deadline import Deadline, DeadlineExceeded
from ndakit.core.workspace import Workspace
from ndakit.lab.clients import LabLacks, LoadResult
from ndakit.lab.host import Polled, Try
from ndakit.lab.network import LabNetwork
from ndakit.lab.pace import Pace
from ndakit.lab.plan import plan
from ndakit.load import load
from ndakit.machine.vm import Vm
from ndakit.model import Profile
from ndakit.model.engines import HAPROXY
from ndakit.node import facts, shell
from ndakit.node.facts import (
    NodeFacts,
    OutputNotUnderstood,
    facts_of,
    parse_addresses,
    parse_statistics,
    parse_tracked,
    parse_virtual_servers,
    parse_vrrp_states,
)
from ndakit.verify import report
from ndakit.verify import run as verify_run
from ndakit.verify.claims import Claim, Outcome, all_claims, left_out
from ndakit.verify.claims.failover import daemon_stopped, gap_bound_s, precision, too_long
from ndakit.verify.claims.firewall import expected_open
from ndakit.verify.claims.shares import at_once_errors, share_errors
from ndakit.verify.report import Acceptance
from ndakit.verify.run import ClaimDone, ClaimStarted, NoSuchClaim, Verdict
from places import ROOT
from typed import Typed


@pytest.fixture(scope="module")
def pair() -> Profile:
    return load.load(Workspace(ROOT), "apache-pair").profile


@pytest.fixture(scope="module")
def bakery() -> Profile:
    return load.load(Workspace(ROOT), "bakery").profile


def claim(name: str, ok: bool = True, needs: tuple[str, ...] = ()) -> Claim:
    return Claim(name, f"{name} is so", lambda lab: Outcome(ok, "3 of 3", "two were missing"), needs)


NO_LAB = cast(LabNetwork, None)


def test_the_pair_makes_these_claims(pair: Profile) -> None:
    assert [c.name for c in all_claims(pair)] == [
        *(f"{what}/lb1" for what in ("identity", "addresses", "daemons", "vrrp", "ssh", "statistics")),
        *(f"{what}/lb2" for what in ("identity", "addresses", "daemons", "vrrp", "ssh", "statistics")),
        "vips/one-holder",
        "vrrp/forged",
        "service/www",
        "client-address/www",
        "firewall/wan",
        "firewall/lan",
        "egress/lan",
        "check/apache",
        "wrong-answer/apache",
        "sorry/apache",
        "failover/haproxy-stopped",
        *(f"failover/cable/{network}" for network in ("wan", "lan")),
        *(f"failover/{what}" for what in ("cables", "frozen", "keepalived-killed", "cut-off", "not-heard")),
        "failover/killed",
        "failover/power-off",
        "failover/return",
        "quiet/lb1",
        "quiet/lb2",
    ]


def test_a_profile_without_a_way_out_does_not_claim_one(bakery: Profile) -> None:
    assert not [c for c in all_claims(bakery) if c.name.startswith("egress/")]


def test_only_takes_a_claim_a_group_and_what_they_build_on(pair: Profile) -> None:
    claims = all_claims(pair)
    assert [c.name for c in verify_run.select(claims, "ssh, vips/one-holder")] == [
        "ssh/lb1",
        "ssh/lb2",
        "vips/one-holder",
    ]
    assert [c.name for c in verify_run.select(claims, "failover/return")] == ["failover/power-off", "failover/return"]
    assert [c.name for c in verify_run.select(claims, "failover/cable")] == ["failover/cable/wan", "failover/cable/lan"]
    assert verify_run.select(claims, None) == claims


def test_only_with_a_wrong_name_lists_the_right_ones(pair: Profile) -> None:
    with pytest.raises(NoSuchClaim, match="no claim of this profile is, or begins with, 'shh'") as caught:
        verify_run.select(all_claims(pair), "shh")
    assert "ssh/lb1" in caught.value.fix
    assert caught.value.exit_code == 2


def test_a_claim_that_fails_is_reported_with_its_detail_and_the_run_goes_on() -> None:
    seen: list[ClaimStarted | ClaimDone] = []
    first, second = verify_run.run(NO_LAB, [claim("a/x", ok=False), claim("b/x")], seen.append)
    assert (first.state, first.detail, second.state) == ("fails", "two were missing", "holds")
    assert [type(e) for e in seen] == [ClaimStarted, ClaimDone, ClaimStarted, ClaimDone]


def test_an_error_of_the_lab_fails_the_claim_and_the_run_goes_on() -> None:
    def broken(lab: LabNetwork) -> Outcome:
        raise DeadlineExceeded("waited 30 s for a prompt, in vain", where="lb1.console.log", fix="look")

    first, second = verify_run.run(NO_LAB, [Claim("a/x", "a", broken), claim("b/x")], lambda event: None)
    assert first.state == "fails"
    assert "waited 30 s" in first.detail
    assert "(lb1.console.log); look" in first.detail
    assert second.ok


class Clock:
    """A meter that tells of a busy machine for the first few times that it is asked."""

    def __init__(self, busy: int) -> None:
        self.busy = busy
        self.waited = 0

    def since(self, moment_s: float) -> Pace:
        self.busy -= 1
        return Pace(1.0, "lb1", lost_share=0.9 if self.busy >= 0 else 0.0, others_share=0.8)

    def wait_calm(self, timeout_s: float) -> bool:
        self.waited += 1
        return True


class TellingLab(LabNetwork):
    """A lab that only counts how often it was put back."""

    def __init__(self) -> None:
        self.back = 0
        self.tell = lambda text: None

    def put_back(self) -> None:
        self.back += 1


def flaky(failures: int, name: str = "a/x") -> Claim:
    """A claim that fails so often, and holds then."""
    left = [failures]

    def run(lab: LabNetwork) -> Outcome:
        left[0] -= 1
        return Outcome(left[0] < 0, "gap 10036 ms", "clients were not answered again")

    return Claim(name, f"{name} is so", run, again=lambda lab: lab.put_back())


def test_on_a_busy_machine_a_claim_is_tried_again_and_the_sheet_says_so() -> None:
    lab, clock = TellingLab(), Clock(busy=1)
    (verdict,) = verify_run.run(lab, [flaky(1)], lambda event: None, clock)
    assert (verdict.state, verdict.tries, lab.back, clock.waited) == ("holds", 2, 1, 1)
    (why,) = verdict.disturbed
    assert why == (
        "this machine was too busy: lb1 waited 90% of a second, others took 80% of its processors; "
        "clients were not answered again"
    )
    assert f"a/x was tried 2 times, for this machine was too busy:\n  {why}" in verify_progress.claims_table([verdict])


def test_on_a_quiet_machine_a_claim_that_fails_is_never_tried_again() -> None:
    lab = TellingLab()
    (verdict,) = verify_run.run(lab, [flaky(1)], lambda event: None, Clock(busy=0))
    assert (verdict.state, verdict.tries, lab.back) == ("fails", 1, 0)
    assert verify_run.undecided("acme", [verdict]) is None


def test_a_claim_that_holds_on_a_busy_machine_holds() -> None:
    (verdict,) = verify_run.run(TellingLab(), [flaky(0)], lambda event: None, Clock(busy=9))
    assert (verdict.state, verdict.tries) == ("holds", 1)


def test_a_real_fault_that_shows_at_the_second_try_fails() -> None:
    (verdict,) = verify_run.run(TellingLab(), [flaky(2)], lambda event: None, Clock(busy=1))
    assert (verdict.state, verdict.tries) == ("fails", 2)
    assert verify_run.undecided("acme", [verdict]) is None


def test_a_machine_that_stays_too_busy_has_a_verdict_of_its_own() -> None:
    verdicts = verify_run.run(TellingLab(), [flaky(9), flaky(0, "b/x")], lambda event: None, Clock(busy=9))
    assert [(v.state, v.tries) for v in verdicts] == [("too busy", verify_run.TRIES), ("holds", 1)]
    error = verify_run.undecided("acme", verdicts)
    assert error is not None
    assert (error.exit_code, error.code) == (5, "machine-too-busy")
    assert error.what == "this machine is too busy to judge acme: 1 of 2 claims could not be judged"
    sheet = acceptance(*verdicts)
    assert not sheet.holds
    assert sheet.as_json()["verdict"] == "too busy"
    assert [c["verdict"] for c in sheet.as_json()["claims"]] == ["too busy", "holds"]
    closing = verify_progress.summary(sheet)
    assert "apache-pair: 1 of 2 claims hold (1 not judged, for this machine is too busy; " in closing


def test_a_fault_found_beside_what_could_not_be_judged_is_a_fault() -> None:
    verdicts = (Verdict("a/x", "a", "too busy"), Verdict("b/x", "b", "fails"))
    assert verify_run.undecided("acme", verdicts) is None
    assert acceptance(*verdicts).verdict == "fails"


def test_a_console_that_one_claim_lost_is_opened_again_for_the_next(pair: Profile) -> None:
    """Its shell is given up when an answer takes too long; on a busy machine every later claim failed for that."""

    class Lost:
        log, active = Path("lb1.console.log"), False

        def activate(self, deadline: Deadline) -> None:
            self.active = True

        def run(self, command: str, timeout_s: float = 30.0) -> SimpleNamespace:
            assert self.active, "not activated"
            return SimpleNamespace(stdout="here\n", rc=0, stderr="")

    lab = LabNetwork.__new__(LabNetwork)
    lab.profile, lab._nodes = pair, {"lb1": cast(Vm, SimpleNamespace(console=Lost()))}
    assert lab.run("lb1", "echo here") == "here\n"
    lab.order("lb1", "true")


def test_claims_that_only_look_are_tried_at_the_same_time_and_told_in_order() -> None:
    meeting = threading.Barrier(3)  # none of them ends before all have begun

    def looks(lab: LabNetwork) -> Outcome:
        meeting.wait(30)
        return Outcome(True, "seen")

    claims = [Claim(name, name, looks, beside=True) for name in ("a/1", "a/2", "a/3")]
    seen: list[str] = []
    verdicts = verify_run.run(
        TellingLab(), [*claims, flaky(0, "b/x")],
        lambda event: seen.append(event.claim.name if isinstance(event, ClaimStarted) else event.verdict.state),
    )  # fmt: skip
    assert [v.state for v in verdicts] == ["holds"] * 4
    assert seen == ["a/1", "holds", "a/2", "holds", "a/3", "holds", "b/x", "holds"]


def test_only_what_looks_is_tried_beside_something_else(pair: Profile) -> None:
    together = {c.name.partition("/")[0] for c in all_claims(pair) if c.beside}
    assert together == {"identity", "addresses", "daemons", "vrrp", "ssh", "statistics", "firewall", "egress"}
    assert not [c for c in all_claims(pair) if c.beside and (c.needs or c.thorough)]


def test_the_claims_that_only_look_at_two_nodes_are_all_tried_at_once(pair: Profile) -> None:
    first = next(group for beside, group in itertools.groupby(all_claims(pair), lambda claim: claim.beside) if beside)
    nodes = Counter(claim.name.rpartition("/")[2] for claim in first)
    assert set(nodes) == {"lb1", "lb2"}
    assert nodes.total() <= verify_run.AT_ONCE


def test_a_claim_that_nobody_in_the_lab_can_try_is_not_tried_again() -> None:
    def lacks(lab: LabNetwork) -> Outcome:
        raise LabLacks("client", "wan")

    (verdict,) = verify_run.run(TellingLab(), [Claim("a/x", "a", lacks)], lambda event: None, Clock(busy=9))
    assert (verdict.state, verdict.tries) == ("fails", 1)


def test_a_name_or_an_address_that_is_wrong_counts_on_a_busy_machine_too_but_not_a_console_that_is_late(
    pair: Profile,
) -> None:
    assert {c.name.partition("/")[0] for c in all_claims(pair) if c.timeless} == {"identity", "addresses"}

    def differs(lab: LabNetwork) -> Outcome:
        return Outcome(False, "router", "expected lb1")

    def late(lab: LabNetwork) -> Outcome:
        raise DeadlineExceeded("waited 60 s for lb1, in vain", where="lb1.console.log", fix="look")

    claims = [
        Claim("identity/lb1", "its name", run, timeless=True, again=lambda lab: lab.put_back())
        for run in (differs, late)
    ]
    wrong, unseen = verify_run.run(TellingLab(), claims, lambda event: None, Clock(busy=9))
    assert (wrong.state, wrong.tries) == ("fails", 1)
    assert unseen.state == "too busy"


def test_a_lab_that_cannot_be_put_back_on_a_busy_machine_is_no_fault_either() -> None:
    class Dead(TellingLab):
        def put_back(self) -> None:
            raise DeadlineExceeded("waited 240 s for lb1, in vain", where="lb1.console.log", fix="look")

    busy, quiet = (verify_run.run(Dead(), [flaky(9)], lambda event: None, Clock(busy=n))[0] for n in (9, 1))
    assert (busy.state, quiet.state) == ("too busy", "fails")
    assert "could not be put back: waited 240 s for lb1" in busy.detail


def test_a_bug_in_a_claim_stays_a_traceback() -> None:
    def bug(lab: LabNetwork) -> Outcome:
        raise KeyError("lb3")

    with pytest.raises(KeyError):
        verify_run.run(NO_LAB, [Claim("a/x", "a", bug)], lambda event: None)


@pytest.mark.parametrize(
    ("holders", "words"),
    [
        (("lb1", "lb2"), "no node is the only one to hold the VIPs"),
        ((), "no node is the only one to hold the VIPs"),
        (("lb1",), "no node but lb1 runs"),
    ],
)
def test_without_a_master_or_a_second_node_claims_about_failover_fail_with_the_reason(
    pair: Profile, monkeypatch: pytest.MonkeyPatch, holders: tuple[str, ...], words: str
) -> None:
    lab = LabNetwork.__new__(LabNetwork)
    lab.profile, lab._nodes = pair, {}
    monkeypatch.setattr(lab, "vip_holders", lambda: dict.fromkeys(pair.vips, holders))
    monkeypatch.setattr(lab, "is_up", lambda node: node == "lb1")
    wanted = [c for c in all_claims(pair) if c.thorough or c.name == "failover/power-off"]
    verdicts = verify_run.run(lab, wanted, lambda said: None)
    assert len(verdicts) == 9
    assert {(v.state, words in v.detail) for v in verdicts} == {("fails", True)}


def test_haproxy_runs_again_whatever_went_wrong_while_it_was_stopped(
    pair: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(old: str, timeout_s: float) -> str:
        raise DeadlineExceeded("no console answers", where="here", fix="wait")

    lab = LabNetwork.__new__(LabNetwork)
    lab.profile, typed = pair, list[tuple[str, str]]()
    monkeypatch.setattr(lab, "one_master", lambda: "lb1")
    monkeypatch.setattr(lab, "watch", lambda target: contextlib.nullcontext())
    monkeypatch.setattr(lab, "run", lambda node, command: typed.append((node, command)))
    monkeypatch.setattr(lab, "wait_other_master", late)
    with pytest.raises(DeadlineExceeded):
        daemon_stopped(lab, "haproxy")
    assert typed == [("lb1", f"/etc/init.d/haproxy {word}") for word in ("stop", "start")]


def test_a_claim_is_not_tried_when_what_it_builds_on_failed() -> None:
    _, second = verify_run.run(NO_LAB, [claim("a/x", ok=False), claim("b/x", needs=("a/x",))], lambda event: None)
    assert (second.state, second.detail) == ("not tried", "a/x did not hold before")
    assert not second.ok


def shares(**counts: int) -> LoadResult:
    return LoadResult(sum(counts.values()), counts, 0)


def test_shares_by_weight_are_right_and_wrong_ones_are_named(pair: Profile) -> None:
    assert share_errors(pair, "www", shares(web1=40, web2=20)) == []
    assert share_errors(pair, "www", shares(web1=30, web2=30)) == [
        "web1 got 50% instead of 67%",
        "web2 got 50% instead of 33%",
    ]
    assert share_errors(pair, "www", shares(web1=60)) == [
        "web1 got 100% instead of 67%",
        "web2 got 0% instead of 33%",
    ]


def test_an_answer_from_outside_the_pool_is_named(pair: Profile) -> None:
    assert share_errors(pair, "www", shares(web1=40, other=20)) == ["answered by other, which is not in pool apache"]


@pytest.mark.parametrize("balance", ["source", "uri", "sh"])
def test_one_client_stays_on_one_server_where_the_balance_says_so(pair: Profile, balance: str) -> None:
    profile = balanced(pair, balance)
    assert share_errors(profile, "www", shares(web2=60)) == []
    assert "spread one client over 2 servers" in share_errors(profile, "www", shares(web1=30, web2=30))[0]


def balanced(profile: Profile, balance: str, **weights: int) -> Profile:
    """The pool with another balance and other weights, behind a topology whose engine has this balance."""
    pool, topology = profile.pools["apache"], "proxy" if balance in HAPROXY.balance else "nat"
    servers = {n: s.model_copy(update={"weight": weights.get(n, s.weight)}) for n, s in pool.servers.items()}
    changed = pool.model_copy(update={"balance": balance, "servers": servers})
    services = {"www": profile.services["www"].model_copy(update={"topology": topology})}
    return profile.model_copy(update={"pools": {"apache": changed}, "services": services})


@pytest.mark.parametrize("balance", ["wrr", "sh", "lc", "nq"])
def test_a_drained_server_that_answers_is_named(pair: Profile, balance: str) -> None:
    profile = balanced(pair, balance, web1=0, web2=1)
    assert share_errors(profile, "www", shares(web2=60)) == []
    assert share_errors(profile, "www", shares(web1=60)) == ["web1 answered, and has weight 0"]


def test_shares_are_not_judged_where_the_kernel_may_think_a_server_full(pair: Profile) -> None:
    kernel = balanced(pair, "rr", web1=1, web2=1)
    assert share_errors(kernel, "www", shares(web1=4, web2=56)) != []
    limited = kernel.pools["apache"].servers["web1"].model_copy(update={"max_connections": 4})
    kernel.pools["apache"].servers["web1"] = limited
    assert share_errors(kernel, "www", shares(web1=4, web2=56)) == []


@pytest.mark.parametrize("balance", ["lblcr", "locality-replica"])
def test_an_address_may_have_several_servers_where_the_balance_says_so(pair: Profile, balance: str) -> None:
    profile = balanced(pair, balance, web1=1, web2=1)
    assert share_errors(profile, "www", shares(web1=10, web2=50)) == []


@pytest.mark.parametrize("balance", ["fo", "ovf"])
def test_the_heaviest_server_answers_where_the_balance_says_so(pair: Profile, balance: str) -> None:
    profile = balanced(pair, balance, web1=2, web2=1)
    assert share_errors(profile, "www", shares(web1=60)) == []
    wrong = ["web2 answered, and not a server of weight 2"]
    assert share_errors(profile, "www", shares(web2=60)) == wrong


def test_leastconn_of_haproxy_takes_idle_servers_in_turn_whatever_their_weights(pair: Profile) -> None:
    profile = balanced(pair, "leastconn", web1=3, web2=1)
    assert share_errors(profile, "www", shares(web1=30, web2=30)) == []
    assert share_errors(profile, "www", shares(web1=45, web2=15)) != []
    services = {"www": profile.services["www"].model_copy(update={"topology": "nat"})}
    kernel = profile.model_copy(update={"services": services})
    assert share_errors(kernel, "www", shares(web1=45, web2=15)) == [], "IPVS counts finished connections as well"
    assert share_errors(kernel, "www", shares(web1=30, web2=30)) != []


def test_leastconn_is_judged_by_connections_that_are_there_at_once(pair: Profile) -> None:
    profile = balanced(pair, "leastconn", web1=3, web2=1)
    assert at_once_errors(profile, "www", {"web1": 18, "web2": 6}) == []
    assert at_once_errors(profile, "www", {"web1": 12, "web2": 12}) == [
        "web1 has 12 of 24 connections at once, not 18",
        "web2 has 12 of 24 connections at once, not 6",
    ]
    assert at_once_errors(profile, "www", {"web1": 18, "web2": 5, "nobody": 1}) == [
        "1 of 24 connections at once were not answered"
    ]


def test_chance_gets_the_room_that_it_needs_and_no_more(pair: Profile) -> None:
    profile = balanced(pair, "random", web1=3, web2=1)
    assert share_errors(profile, "www", shares(web1=150, web2=90)) == []
    assert share_errors(profile, "www", shares(web1=90, web2=150)) != []
    assert share_errors(profile, "www", shares(web1=240)) != []


def test_the_first_server_answers_where_the_balance_says_so(pair: Profile) -> None:
    profile = balanced(pair, "first", web1=1, web2=9)
    assert share_errors(profile, "www", shares(web1=60)) == []
    assert share_errors(profile, "www", shares(web2=60)) == ["web2 answered, and web1 comes first"]
    assert share_errors(balanced(pair, "first", web1=0, web2=9), "www", shares(web2=60)) == []


def adverts(profile: Profile, advert_s: float) -> Profile:
    return profile.model_copy(update={"vrrp": profile.vrrp.model_copy(update={"advert_interval_s": advert_s})})


def test_the_limit_for_a_gap_is_stricter_than_what_is_promised(pair: Profile, bakery: Profile) -> None:
    assert 3.0 < gap_bound_s(adverts(pair, 1.0), "lb2") < 4.0
    assert 3.0 < gap_bound_s(adverts(bakery, 1.0), "lb2") < 4.0
    assert 0.3 < gap_bound_s(adverts(bakery, 0.1), "lb2") < 0.8


class PlannedLab:
    """As much of a lab as the expectation of open ports needs."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.plan = plan(profile)


def open_ports(profile: Profile, who: str, network: str) -> dict[str, set[int]]:
    lab = PlannedLab(profile)
    point = getattr(lab.plan, who)[network]
    return {str(a): p for a, p in expected_open(cast(LabNetwork, lab), point, network).items()}


def test_a_stranger_may_reach_services_only(pair: Profile) -> None:
    ports_of = open_ports(pair, "strangers", "wan")
    assert ports_of == {"203.0.113.11": set(), "203.0.113.12": set(), "203.0.113.10": {80}}


def test_whoever_sits_inside_access_sources_may_reach_ssh_and_statistics(bakery: Profile) -> None:
    ports_of = open_ports(bakery, "clients", "lan")
    assert ports_of == {"192.168.0.11": {22, 8404}, "192.168.0.12": {22, 8404}, "192.168.0.10": {22, 80}}


ADDRESSES = """\
1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever
2: eth0    inet 203.0.113.11/24 brd 203.0.113.255 scope global eth0\\       valid_lft forever
2: eth0    inet 203.0.113.10/32 scope global eth0\\       valid_lft forever preferred_lft forever
2: eth0    inet6 2001:db8::11/64 scope global \\       valid_lft forever preferred_lft forever
2: eth0    inet6 fe80::1/64 scope link \\       valid_lft forever preferred_lft forever
3: eth1.10@eth1    inet 192.168.0.11/24 scope global eth1.10\\       valid_lft forever
"""


def test_addresses_are_read_with_prefixes_and_without_link_local_ones() -> None:
    on_device = parse_addresses(ADDRESSES)
    assert on_device["eth0"] == {ip_interface(a) for a in ("203.0.113.11/24", "203.0.113.10/32", "2001:db8::11/64")}
    assert on_device["eth1.10"] == {ip_interface("192.168.0.11/24")}


def test_statistics_name_each_server_and_whether_it_is_up() -> None:
    text = "# pxname,svname,status\nwww,FRONTEND,OPEN\napache,web1,UP 1/3\napache,web2,DOWN\napache,BACKEND,UP\n"
    assert [(s.server, s.up) for s in parse_statistics(text)] == [("web1", True), ("web2", False)]


DUMP = """\
------< VRRP Topology >------
 VRRP Instance = wan-main
   VRRP Version = 3
   State = BACKUP
 VRRP Instance = lan-main
   VRRP Version = 3
   State = FAULT
------< Interfaces >------
 Name = lo
   State = UP, RUNNING, loopback
"""


def test_keepalived_tells_the_state_of_each_instance_and_of_nothing_else() -> None:
    assert parse_vrrp_states(DUMP) == {"wan-main": "BACKUP", "lan-main": "FAULT"}
    assert parse_vrrp_states(DUMP[:120]) == {"wan-main": "BACKUP"}


def test_a_node_without_keepalived_has_no_vrrp_states() -> None:
    assert NodeFacts(Typed(cat=DUMP)).vrrp_states(2) == {}
    there = json.dumps({"keepalived": {"instances": {"instance1": {"running": True, "pid": 420}}}})
    assert NodeFacts(Typed(ubus=there, sed=DUMP, rm="")).vrrp_states(2)["lan-main"] == "FAULT"


def test_a_page_that_is_no_statistics_is_not_understood() -> None:
    with pytest.raises(OutputNotUnderstood, match="statistics page"):
        parse_statistics("<html>403</html>")


def test_a_service_runs_only_if_procd_says_so() -> None:
    running = json.dumps({"haproxy": {"instances": {"instance1": {"running": True}}}})
    ended = json.dumps({"haproxy": {"instances": {"instance1": {"running": False}}}})
    assert NodeFacts(Typed(ubus=running)).service_running("haproxy")
    assert not NodeFacts(Typed(ubus=ended)).service_running("haproxy")
    assert not NodeFacts(Typed(ubus="{}")).service_running("haproxy")
    assert not NodeFacts(Typed()).service_running("haproxy")
    with pytest.raises(OutputNotUnderstood):
        NodeFacts(Typed(ubus="Command failed: Not found")).service_running("haproxy")


class Shell:
    """A node whose programs are shell scripts in a folder."""

    def __init__(self, folder: Path, **programs: str) -> None:
        self.path = f"{folder}:/usr/bin:/bin"
        for name, script in programs.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)

    def run(self, command: str, *args: str) -> Any:
        class Result:
            done = subprocess.run(
                ["/bin/sh", "-c", command % tuple(map(shlex.quote, args))],
                env={"PATH": self.path}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            rc, stdout = done.returncode, done.stdout

        return Result()


EVERYDAY = "echo '[0.1] ..MP-BIOS bug: 8254 timer not connected to IO-APIC'; echo '[1.0] eth0: link up'"
ALARM = "echo '[2.0] haproxy[9]: segfault at 0 ip 1'"


@pytest.mark.parametrize(
    ("dmesg", "logread", "lines"),
    [
        (EVERYDAY, "echo all is well", []),
        (f"{EVERYDAY}; {ALARM}", "echo all is well", ["[2.0] haproxy[9]: segfault at 0 ip 1"]),
        (EVERYDAY, "echo 'procd: Instance x is in a crash loop'", ["procd: Instance x is in a crash loop"]),
        ("echo 'kernel: BUG: scheduling while atomic'", "exit 0", ["kernel: BUG: scheduling while atomic"]),
        (EVERYDAY, "echo 'haproxy: debug: nothing'", []),
        (EVERYDAY, "exit 1", ["cannot be read: logread"]),
    ],
)
def test_trouble_in_the_logs_is_found_and_everyday_lines_are_not(
    dmesg: str, logread: str, lines: list[str], tmp_path: Path
) -> None:
    assert NodeFacts(Shell(tmp_path, dmesg=dmesg, logread=logread)).trouble() == lines


def test_logs_that_cannot_be_searched_are_no_quiet_logs(tmp_path: Path) -> None:
    shell = Shell(tmp_path, dmesg="exit 0", logread="exit 0", grep="exit 2")
    assert NodeFacts(shell).trouble() == ["cannot be read: the logs, grep ended with exit code 2"]


def acceptance(*verdicts: Verdict, lab: bool = True) -> Acceptance:
    return Acceptance(
        "apache-pair", None, "24.10.8", "lab", lab, {"lb1": {"file": "x.img.gz", "sha256": "00", "id": "11"}},
        {"accelerator": "tcg"}, "2026-01-01T00:00:00+00:00", 61.5, verdicts,
    )  # fmt: skip


GOOD = Verdict("a/x", "a is so", "holds", "3 of 3", values={"n": 3})
BAD = Verdict("b/x", "b is so", "fails", "1 of 3", "two were missing")


def test_the_record_holds_only_if_every_claim_does(tmp_path: Path) -> None:
    assert acceptance(GOOD).holds
    assert not acceptance(GOOD, BAD).holds
    assert not acceptance().holds
    report.write(tmp_path / "acceptance.json", acceptance(GOOD, BAD))
    facts = json.loads((tmp_path / "acceptance.json").read_text())
    assert facts["holds"] is False
    assert [c["verdict"] for c in facts["claims"]] == ["holds", "fails"]
    assert facts["images"]["lb1"]["id"] == "11"
    assert "never to be flashed" in facts["warning"]


def test_what_was_not_tried_is_in_the_record_and_in_a_table_with_its_reason(tmp_path: Path, bakery: Profile) -> None:
    omitted = left_out(bakery)
    assert omitted
    report.write(tmp_path / "acceptance.json", replace(acceptance(GOOD), left_out=omitted))
    facts = json.loads((tmp_path / "acceptance.json").read_text())
    assert facts["left_out"] == [{"name": one.name, "reason": one.reason} for one in omitted]
    lines = verify_progress.left_out_table(omitted).splitlines()
    assert all(one.name in line and one.reason in line for one, line in zip(omitted, lines, strict=True))


def test_the_record_of_real_images_carries_no_lab_warning() -> None:
    assert "warning" not in acceptance(GOOD, lab=False).as_json()


def test_the_table_is_plain_text_with_the_details_of_failures_below() -> None:
    text = verify_progress.claims_table([GOOD, BAD])
    assert text.splitlines()[0].split() == ["holds", "a/x", "3", "of", "3"]
    assert "FAILS" in text
    assert "b/x: b is so\n  two were missing" in text
    assert "\033" not in text


def polled(gap_ms: float, late_ms: float) -> Polled:
    """A poller's findings with one gap of that length; answers took no time."""
    ends = [0.0, 20.0, 20.0 + gap_ms, 40.0 + gap_ms]
    tries = [Try(e, e, e, "", 200, "web1") for e in ends]
    failed = Try(21.0, 271.0, None, "time-out", 0, "")
    return Polled((*tries, failed), 0.02, 0.25, 5, 0, 0, late_ms, False)


def test_a_gap_beyond_the_limit_is_too_long_unless_the_poller_was_late_itself() -> None:
    assert not too_long(polled(3400, 5), 3.5)
    assert too_long(polled(3600, 5), 3.5)
    assert not too_long(polled(3600, 200), 3.5)
    assert "measured to" in precision(polled(3600, 200))
    assert precision(polled(3600, 5)) == ""


VIRTUAL = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  CB00710A:1F92 wlc persistent 300 FFFFFFFF
  -> C0A8001F:0050      Masq    2      0          0
  -> C0A80020:0050      Masq    0      0          0
UDP  [2001:0db8:0000:0000:0000:0000:0000:0010]:0035 rr
  -> [fd00:0000:0000:0001:0000:0000:0000:0031]:0035      Route   1      0          0
FWM  00000050 wrr
  -> C0A8003D:0000      Tunnel  1      0          0
"""


TRACKED = """\
ipv4     2 udp      17 29 src=203.0.113.99 dst=203.0.113.11 sport=42114 dport=8848 packets=1 bytes=33 [UNREPLIED] \
src=203.0.113.11 dst=203.0.113.99 sport=8848 dport=42114 packets=0 bytes=0 mark=0 zone=0 use=2
ipv4     2 tcp      6 119 TIME_WAIT src=203.0.113.99 dst=203.0.113.10 sport=40000 dport=80 packets=6 bytes=600 \
src=203.0.113.10 dst=203.0.113.99 sport=80 dport=40000 packets=4 bytes=400 [ASSURED] mark=0 zone=0 use=2
ipv6     10 icmpv6   58 29 src=2001:0db8:0000:0000:0000:0000:0000:0099 dst=2001:0db8:0000:0000:0000:0000:0000:0011 \
type=128 code=0 id=14271 src=2001:0db8:0000:0000:0000:0000:0000:0011 dst=2001:0db8:0000:0000:0000:0000:0000:0099 \
type=129 code=0 id=14271 mark=0 zone=0 use=2
"""


def test_what_the_firewall_has_let_in_is_read_from_proc() -> None:
    assert {(p, str(a), str(b), port) for p, a, b, port in parse_tracked(TRACKED)} == {
        ("udp", "203.0.113.99", "203.0.113.11", 8848),
        ("tcp", "203.0.113.99", "203.0.113.10", 80),
        ("icmpv6", "2001:db8::99", "2001:db8::11", 0),
    }
    with pytest.raises(OutputNotUnderstood):
        NodeFacts(Typed()).let_in([ip_address("203.0.113.99")])


class BusyBox:
    """As much of a shell as facts use, with BusyBox's own sed and sort, as a node has them."""

    name = "busybox"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        subprocess.run(["busybox", "--install", "-s", folder], check=True, capture_output=True)
        self._path = folder
        self.told_bytes = 0

    def run(self, command: shell.Command, timeout_s: float = 30.0, *, output_max_bytes: int = 0) -> shell.Ran:
        words = ["sh", "-c", command] if isinstance(command, str) else list(command)
        ran = subprocess.run(words, capture_output=True, env={"PATH": str(self._path)}, timeout=timeout_s, check=False)
        self.told_bytes += len(ran.stdout)
        return shell.Ran(ran.returncode, ran.stdout, ran.stderr)


def test_of_thousands_of_connections_a_node_tells_in_short_what_was_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client of a service under load; a serial console takes minutes for such a table as it is."""
    web = TRACKED.splitlines(keepends=True)[1]
    loaded = "".join(web.replace("40000", str(port)) for port in range(20000, 25000))
    stranger = web.replace("203.0.113.99", "203.0.113.98")
    (tmp_path / "tracked").write_text(TRACKED + loaded + stranger)
    monkeypatch.setattr(facts, "TRACKED", str(tmp_path / "tracked"))
    box = BusyBox(tmp_path / "bin")
    people = [ip_address("203.0.113.99"), ip_address("2001:db8::99")]
    let_in = facts_of(cast(shell.Shell, box)).let_in(people)
    assert let_in == parse_tracked(TRACKED)
    assert box.told_bytes < 1000
    (tmp_path / "tracked").unlink()
    with pytest.raises(OutputNotUnderstood):
        facts_of(cast(shell.Shell, box)).let_in(people)


def test_the_kernels_virtual_servers_are_read_from_proc() -> None:
    plain, six, marked = parse_virtual_servers(VIRTUAL)
    assert (plain.protocol, str(plain.address), plain.port) == ("tcp", "203.0.113.10", 8082)
    assert {str(a): w for (a, _), w in plain.weights.items()} == {"192.168.0.31": 2, "192.168.0.32": 0}
    assert (str(six.address), six.port, [str(a) for a, _ in six.weights]) == ("2001:db8::10", 53, ["fd00:0:0:1::31"])
    assert (marked.mark, marked.address, list(marked.weights.values())) == (0x50, None, [1])
    assert parse_virtual_servers("") == []
