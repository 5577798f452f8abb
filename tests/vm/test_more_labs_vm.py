"""Other shapes of profiles, built and booted: dual stack, tcp, one arm, no preemption, fast adverts, one node, fw3,
a VLAN."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pytest

import planted
from ndakit.verify.claims import bonding
from pairs import Pair, running

pytestmark = pytest.mark.timed

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f admin"

DUAL = f"""\
name: dual
release: 25.12.5
image: {{firmware: bios}}
access:
  ssh_keys: {{admin: {KEY}}}
  sources: {{noc: [198.51.100.0/24, "2001:db8:9::/64"]}}
networks:
  lan:
    nics: [eth0, eth1]
    bond: {{mode: 802.3ad}}
    subnet: [10.1.0.0/24, "2001:db8:1::/64"]
    gateway: [10.1.0.1, "2001:db8:1::1"]
    dns: [10.1.0.1]
nodes:
  a: {{addresses: {{lan: [10.1.0.11, "2001:db8:1::11"]}}}}
  b: {{addresses: {{lan: [10.1.0.12, "2001:db8:1::12"]}}}}
vips:
  main: {{network: lan, address: [10.1.0.10, "2001:db8:1::10"]}}
  six: {{network: lan, address: "2001:db8:1::20", group: six}}
vrrp: {{advert_interval_s: 0.1}}
pools:
  web:
    port: 8080
    balance: leastconn
    check: {{type: http, path: /, interval_s: 0.5, timeout_s: 1, rise: 2, fall: 2}}
    sorry: {{pool: spare}}
    servers: {{web1: 10.1.0.21, web2: "2001:db8:1::22"}}
  spare: {{port: 8080, check: {{type: tcp, interval_s: 0.5}}, servers: {{spare1: 10.1.0.29}}}}
  mail:
    check: {{type: tcp, port: 25, interval_s: 0.5, timeout_s: 1, rise: 2, fall: 2}}
    servers: {{mx1: 10.1.0.31, mx2: 10.1.0.32}}
services:
  web: {{vip: [main, six], port: 80, protocol: http, pool: web}}
  slim:
    vip: main
    families: [ipv4]
    port: 81
    protocol: http
    pool: web
    limits: {{body_kib: 4, connections: {{per_client: 70}}}}
    error_pages: {{"413": sorry.html}}
  mail: {{vip: main, port: [25, 587], protocol: tcp, pool: mail}}
"""

ALONE = f"""\
name: alone
release: 21.02.7
image: {{firmware: bios, filesystem: squashfs}}
access:
  ssh_keys: {{admin: {KEY}}}
  sources: {{office: 192.168.5.0/25}}
  ssh: {{port: 2222}}
networks:
  lan: {{nics: [eth0], vlan: 7, subnet: 192.168.5.0/24, gateway: 192.168.5.1, dns: [192.168.5.1]}}
nodes: {{only: {{addresses: {{lan: 192.168.5.11}}}}}}
vips: {{www: {{network: lan, address: 192.168.5.10}}, own: {{network: lan, address: 192.168.5.11}}}}
pools:
  web:
    check: {{type: tcp, port: 8000, interval_s: 0.5, timeout_s: 1, rise: 2, fall: 2}}
    servers: {{web1: 192.168.5.21, web2: 192.168.5.22, web3: {{address: 192.168.5.23, backup: true}}}}
  full:
    port: 8000
    check: tcp
    sorry: {{pool: site}}
    servers: {{web2: {{address: 192.168.5.22, max_connections: 4}}}}
  site: {{port: 8000, check: tcp, sorry: {{page: sorry.html}}, servers: {{web1: 192.168.5.21}}}}
services:
  web: {{vip: www, port: 8000-8002, protocol: http, pool: web}}
  shell: {{vip: www, port: 22, protocol: tcp, pool: web}}
  box: {{vip: own, port: 8081, protocol: http, pool: web}}
  work: {{vip: www, port: 8090, protocol: http, pool: site, maintenance: true}}
  full: {{vip: www, port: 8092, protocol: http, pool: full, limits: {{queue: {{length: 2}}}}}}
  few:
    vip: www
    port: 8091
    protocol: http
    pool: site
    limits: {{requests: {{count: 10, per_s: 2}}, connections: {{count: 8}}}}
    error_pages: {{"429": sorry.html}}
"""


@pytest.fixture(scope="module")
def dual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with running(tmp_path_factory.mktemp("dual"), "dual", DUAL) as booted:
        yield booted


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with running(tmp_path_factory.mktemp("alone"), "alone", ALONE) as booted:
        yield booted


SLIM = ("error-page/slim/413", "body/slim", "connections/slim/per-client")
DUAL_CLAIMS = (
    *("identity/a", "identity/b", "addresses/a", "addresses/b", "daemons/a", "daemons/b", "ssh/a", "ssh/b"),
    *("vrrp/a", "vrrp/b"),
    *("statistics/a", "statistics/b", "vips/one-holder", "vrrp/forged"),
    *("service/web", "client-address/web", *SLIM, "service/slim", "client-address/slim"),
    *("service/mail", "firewall/lan", "bond/lan"),
    *("check/web", "wrong-answer/web", "sorry/web", "check/mail", "failover/haproxy-stopped", "failover/power-off"),
    *("failover/return", "quiet/a", "quiet/b"),
)


@pytest.mark.parametrize("name", DUAL_CLAIMS)
def test_a_dual_stack_pair_on_one_arm_keeps_what_it_claims(dual: Pair, name: str) -> None:
    outcome = dual.outcome(name)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"
    if name == "failover/power-off":
        assert float(outcome.values["gap_ms"]) < 800


def test_all_claims_of_the_dual_stack_pair_are_tried(dual: Pair) -> None:
    assert tuple(dual.claims) == (
        *(
            f"{what}/{node}"
            for node in "ab"
            for what in ("identity", "addresses", "daemons", "vrrp", "ssh", "statistics")
        ),
        *("vips/one-holder", "vrrp/forged", "service/web", "client-address/web", *SLIM, "service/slim"),
        *("client-address/slim", "service/mail", "firewall/lan"),
        *("bond/lan", *(f"bond/lan-{kind.name}" for kind in bonding.CASES)),
        *("check/web", "wrong-answer/web", "sorry/web", "check/mail", "failover/haproxy-stopped"),
        *(c for c in dual.claims if dual.claims[c].thorough and not c.startswith("bond/")),
        *("failover/power-off", "failover/return"),
        *("quiet/a", "quiet/b"),
    )
    assert {n for n, c in dual.claims.items() if not c.thorough} == set(DUAL_CLAIMS)


@pytest.mark.parametrize(("version", "instance"), [(4, "lan-main"), (6, "lan-six")])
def test_a_node_that_believes_adverts_from_beyond_a_router_is_found_out(
    dual: Pair, version: int, instance: str
) -> None:
    conf = "/etc/keepalived/keepalived.conf"
    peers = "10.1.0.1" if version == 4 else "2001:db8:1::1"
    edit = f"sed -i 's/^\\(\\t\\t{peers}[12]\\) min_ttl 255 max_ttl 255/\\1/' {conf}"
    reload = "/etc/init.d/keepalived reload"
    breaking = f"cp {conf} /tmp/good.conf; {edit}; ! cmp -s {conf} /tmp/good.conf && {reload}"
    with planted.on_every_node(dual.lab, breaking, f"cp /tmp/good.conf {conf}; {reload}"):
        outcome = dual.outcome("vrrp/forged")
    assert not outcome.ok, outcome.figure
    assert outcome.detail in (f"{node} gave the VIPs of {instance} up" for node in ("a", "b"))


@pytest.mark.parametrize("kind", [kind.name for kind in bonding.CASES])
def test_a_bond_keeps_what_it_claims_with_a_card_or_a_switch_less(dual: Pair, kind: str) -> None:
    outcome = dual.outcome(f"bond/lan-{kind}")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


def test_a_switch_that_does_not_speak_lacp_is_found_out(dual: Pair) -> None:
    lab = dual.lab
    for node in ("a", "b"):
        lab.cable_up(node, "bond-lan", "none")
    try:
        time.sleep(8)  # after 3 s without a word the partner is doubted, after 3 s more forgotten (802.1AX, 6.4.12)
        outcome = dual.outcome("bond/lan")
    finally:
        for node in ("a", "b"):
            lab.cable_up(node, "bond-lan", "one")
        time.sleep(5)
        lab.settle()
    assert not outcome.ok
    assert "as its LACP partner, not the switch" in outcome.detail and "over one card only" in outcome.detail


def test_no_node_takes_what_a_router_advertises(dual: Pair) -> None:
    for node in ("a", "b"):
        places = "for d in default eth0 eth1 bond-lan; do cat /proc/sys/net/ipv6/conf/$d/accept_ra; done"
        assert dual.lab.run(node, places).split() == ["0"] * 4


def test_the_master_without_preemption_is_whoever_took_over(dual: Pair) -> None:
    master = dual.lab.master()
    dual.lab.run(master, "/etc/init.d/keepalived stop")
    try:
        other = dual.lab.wait_other_master(master, timeout_s=10)
    finally:
        dual.lab.run(master, "/etc/init.d/keepalived start")
        dual.lab.settle()
    assert other not in ("", master)
    assert dual.lab.master() == other


def test_requests_over_ipv6_reach_the_servers(dual: Pair) -> None:
    lab = dual.lab
    endpoint = next(e for e in lab.profile.endpoints("web") if e.address.version == 6)
    result = lab.load(lab.client_for(endpoint), endpoint.address, 80, "web", 20)
    assert (result.failures, set(result.shares)) == (0, {"web1", "web2"})


ALONE_CLAIMS = (
    *("identity/only", "addresses/only", "daemons/only", "ssh/only", "statistics/only", "vips/one-holder"),
    *("service/web", "client-address/web", "service/shell", "service/box", "client-address/box"),
    *("maintenance/work", "queue/full", "service/full", "client-address/full", "sorry/full"),
    *("connections/few/count", "requests/few"),
    *("firewall/lan", "check/web", "backup/web", "quiet/only"),
)


@pytest.mark.parametrize("name", ALONE_CLAIMS)
def test_a_standalone_node_of_the_fw3_family_keeps_what_it_claims(alone: Pair, name: str) -> None:
    outcome = alone.outcome(name)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


def haproxy_edited(edits: Sequence[str]) -> tuple[str, str]:
    """The commands that edit HAProxy's file and put it back; two seconds later its new worker serves."""
    conf, anew = "/etc/haproxy.cfg", "/etc/init.d/haproxy reload; sleep 2"
    edit = " ".join(f"-e '{one}'" for one in edits)
    return f"cp {conf} /tmp/good.cfg; sed -i {edit} {conf}; {anew}", f"cp /tmp/good.cfg {conf}; {anew}"


def test_maintenance_and_limits_that_are_gone_are_found_out(alone: Pair) -> None:
    edits = ("/use_backend _sorry:site/d", "s/maxconn 8$/maxconn 9/", "/deny_status 429/d", "/queue(full) ge 2/d")
    tried = ("maintenance/work", "connections/few/count", "requests/few", "queue/full")
    with planted.on_every_node(alone.lab, *haproxy_edited(edits)):
        outcomes = [alone.outcome(name) for name in tried]
    assert [outcome.ok for outcome in outcomes] == [False] * 4
    maintenance, connections, requests, queue = (outcome.detail for outcome in outcomes)
    assert "status 200, another text" in maintenance
    assert connections == "connection 9 did not wait"
    assert requests == "33 requests in a row were answered as if there were no limit"
    assert queue.startswith("with 2 waiting the next one gets ")


def test_a_limit_of_bodies_that_is_gone_is_found_out(dual: Pair) -> None:
    edits = ("/deny_status 413/d", "/status 411/d", "s/sc1_conn_cur gt 70/sc1_conn_cur gt 71/")
    with planted.on_every_node(dual.lab, *haproxy_edited(edits)):
        outcomes = [dual.outcome(name) for name in SLIM]
    assert [outcome.ok for outcome in outcomes] == [False] * 3
    assert "of unknown size" in outcomes[1].detail and "4097 bytes" in outcomes[1].detail
    assert outcomes[2].detail == "connection 71 was answered, not closed"


def test_a_standalone_node_claims_no_failover(alone: Pair) -> None:
    assert set(alone.claims) == set(ALONE_CLAIMS)


def test_a_standalone_node_runs_no_keepalived(alone: Pair) -> None:
    assert not alone.lab.facts("only").service_running("keepalived")
