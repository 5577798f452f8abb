"""Two nodes that hand over more than addresses: connections, kept clients, VIPs for want of servers; own rules."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import planted
from ndakit.verify.claims import connection_sync
from pairs import Pair, new_key, running

pytestmark = pytest.mark.timed

PROFILE = """\
name: handover
release: 24.10.8
access:
  ssh_keys: {{admin: {key}}}
  sources: {{noc: 203.0.113.128/25}}
networks:
  wan:
    nics: [eth0]
    subnet: [203.0.113.0/24, "2001:db8:0:1::/64"]
    gateway: [203.0.113.1, "2001:db8:0:1::1"]
    dns: [203.0.113.53]
  lan:
    nics: [eth1]
    subnet: [192.168.0.0/24, "fd00:0:0:1::/64"]
    routes: [{{to: 10.20.0.0/24, via: 192.168.0.254}}]
    egress: www
nodes:
  lb1: {{addresses: {{wan: [203.0.113.11, "2001:db8:0:1::11"], lan: [192.168.0.11, "fd00:0:0:1::11"]}}}}
  lb2: {{addresses: {{wan: [203.0.113.12, "2001:db8:0:1::12"], lan: [192.168.0.12, "fd00:0:0:1::12"]}}}}
vips:
  www: {{network: wan, address: [203.0.113.10, "2001:db8:0:1::10"]}}
  lan-gw: {{network: lan, address: [192.168.0.1, "fd00:0:0:1::1"], role: gateway}}
  intern: {{network: lan, address: [192.168.0.10, "fd00:0:0:1::10"]}}
vrrp: {{prefer: lb1, preempt: true, preempt_delay_s: 4, connection_sync: true, demote_on: [apache]}}
pools:
  apache: {{port: 80, check: {{type: http, interval_s: 1, timeout_s: 3, fall: 2}}, servers: {{web1: 192.168.0.21}}}}
  kept:
    port: 80
    check: {{type: tcp, interval_s: 1, timeout_s: 1}}
    persistence: {{type: source}}
    servers: {{keep1: 192.168.0.22, keep2: 192.168.0.23}}
  images:
    port: 80
    check: {{type: tcp, interval_s: 1, timeout_s: 1}}
    servers: {{img1: [192.168.0.31, "fd00:0:0:1::31"], img2: [192.168.0.32, "fd00:0:0:1::32"]}}
  media:
    check: {{type: tcp, interval_s: 1, timeout_s: 1}}
    servers: {{med1: [192.168.0.41, "fd00:0:0:1::41"], med2: [192.168.0.42, "fd00:0:0:1::42"]}}
  far: {{check: {{type: tcp, interval_s: 1, timeout_s: 1}}, servers: {{far1: 10.20.0.21}}}}
services:
  www: {{vip: www, families: [ipv4], port: 80, protocol: http, pool: apache}}
  shop: {{vip: www, families: [ipv4], port: 81, protocol: http, pool: kept}}
  tools:
    {{vip: www, families: [ipv4], port: 82, protocol: http, pool: kept,
     persistence: {{type: header, name: X-Session}}}}
  basket:
    {{vip: www, families: [ipv4], port: 83, protocol: http, pool: kept,
     persistence: {{type: cookie, name: SRV, on_failure: refuse}}}}
  natted: {{vip: www, port: 8082, topology: nat, protocol: tcp, pool: images}}
  direct: {{vip: intern, port: 8083, topology: dr, protocol: tcp, pool: media}}
  tunnel: {{vip: intern, families: [ipv4], port: 8084, topology: tun, protocol: tcp, pool: far}}
sizing: {{memory_mib: 512, sessions_per_second: 100, session_duration_s: 1}}
tuning: {{sysctl: {{net.ipv4.tcp_fin_timeout: 20}}}}
firewall:
  allow:
    agent: {{network: lan, protocol: tcp, port: [5666, 7000-7010]}}
    syslog: {{network: lan, protocol: udp, port: 514}}
  deny:
    inner: {{network: lan, protocol: tcp, port: [80, 7005]}}
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("handover")
    public, private = new_key(folder)
    with running(folder, "handover", PROFILE.format(key=public), identity=private) as booted:
        yield booted


CLAIMS = (
    "daemons/lb1", "daemons/lb2", "persistence/tools", "persistence/basket", "firewall/wan",
    "firewall/lan", "failover/connections",
)  # fmt: skip


@pytest.mark.parametrize("name", CLAIMS)
def test_the_claim_holds(pair: Pair, name: str) -> None:
    outcome = pair.outcome(name)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


def test_all_kept_clients_are_asked_on_the_next_master(pair: Pair) -> None:
    assert connection_sync.handed_over(pair.lab.profile).kept == ("shop", "tools", "basket")


def test_clients_that_are_not_kept_are_found(pair: Pair) -> None:
    """The lines that keep them are gone from the running nodes."""
    conf, anew = "/etc/haproxy.cfg", "/etc/init.d/haproxy reload"
    away = "/\\tcookie SRV /d; s/ cookie keep[12]//; /\\tstick on req.fhdr/d"
    breaking = f"cp {conf} /tmp/kept.cfg; sed -i '{away}' {conf}; {anew}"
    with planted.on_every_node(pair.lab, breaking, f"cp /tmp/kept.cfg {conf}; {anew}"):
        header, cookie = pair.outcome("persistence/tools"), pair.outcome("persistence/basket")
    for outcome in (header, cookie):
        assert not outcome.ok
        assert "a client that had keep" in outcome.detail


def test_a_rule_that_is_gone_is_found(pair: Pair) -> None:
    handles = "nft -a list chain inet fw4 input_lan | sed -n 's/.*allow-agent.*handle //p'"
    breaking = f"{handles} | while read n; do nft delete rule inet fw4 input_lan handle $n; done"
    with planted.on_node(pair.lab, "lb1", breaking, "/etc/init.d/firewall reload"):
        outcome = pair.outcome("firewall/lan")
    assert not outcome.ok
    assert "5666 filtered, the profile says let in" in outcome.detail


def test_udp_that_is_let_in_is_found_although_nobody_answers(pair: Pair) -> None:
    opening = "nft insert rule inet fw4 input_lan udp dport 3780 accept"
    with planted.on_node(pair.lab, "lb2", opening, "/etc/init.d/firewall reload"):
        outcome = pair.outcome("firewall/lan")
    assert not outcome.ok
    # conntrackd listens there, and says nothing; it does not on IPv6, so that the kernel refuses.
    assert "client-lan finds 192.168.0.12:3780/udp let in, the profile says shut" in outcome.detail
    assert "client-lan finds [fd00:0:0:1::12]:3780/udp closed, the profile says shut" in outcome.detail


def test_what_sizing_computes_is_in_the_kernel(pair: Pair) -> None:
    keys = "net.netfilter.nf_conntrack_max net.netfilter.nf_conntrack_buckets net.ipv4.tcp_tw_reuse"
    values = pair.lab.run("lb1", f"sysctl -n {keys} net.ipv4.tcp_fin_timeout net.ipv4.tcp_max_tw_buckets").split()
    assert values == ["32768", "32768", "1", "20", "16384"]


DEAF = """\
table inet deaf {
    chain in {
        type filter hook input priority -10
        udp dport 8848 drop
        tcp dport 10000 drop
        tcp sport 10000 drop
    }
}
"""


def test_what_the_next_master_was_not_told_is_lost(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_sync, "RETRANSMIT_S", 1.0)  # nothing will come, so why wait for it
    # HAProxy starts anew, so that it knows nothing of before.
    breaking = f"/etc/init.d/conntrackd stop; echo '{DEAF}' | nft -f -; /etc/init.d/haproxy restart"
    mending = "/etc/init.d/conntrackd start; nft delete table inet deaf"
    with planted.on_backup(pair.lab, "lb2", breaking, mending):
        outcome = pair.outcome("failover/connections")
    assert not outcome.ok
    assert "when lb2 became master, 12 of 12 connections died: " in outcome.detail
    assert "when lb2 became master, 203.0.113." in outcome.detail


def test_a_killed_conntrackd_runs_again(pair: Pair) -> None:
    before = pair.lab.run("lb1", "pidof conntrackd").strip()
    pair.lab.run("lb1", f"kill -9 {before}")
    for _ in range(40):
        after = pair.lab.run("lb1", "pidof conntrackd || true").strip()
        if after and after != before:
            return
        time.sleep(0.5)
    pytest.fail("conntrackd did not come back")


def test_a_node_that_alone_sees_no_server_gives_the_vips_away_and_takes_them_back(pair: Pair) -> None:
    pair.lab.settle()
    assert pair.lab.master() == "lb1"
    drop = "nft add table inet broken && nft 'add chain inet broken out { type filter hook output priority 0; }' && "
    pair.lab.run("lb1", drop + "nft add rule inet broken out ip daddr 192.168.0.21 drop")
    try:
        assert pair.lab.wait_other_master("lb1", timeout_s=40) == "lb2"
    finally:
        pair.lab.run("lb1", "nft delete table inet broken")
    assert pair.lab.wait_master(lambda m: m == "lb1", timeout_s=40) == "lb1"


def test_with_no_server_anywhere_the_vips_stay(pair: Pair) -> None:
    pair.lab.settle()
    with pair.lab.pool_down("apache"):
        time.sleep(12)
        assert pair.lab.master() == "lb1"
    pair.lab.settle()
