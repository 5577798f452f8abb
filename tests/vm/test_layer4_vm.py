"""Services whose servers see the clients (nat, dr, tun, tproxy): every claim holds, and fails without its fact."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest

import planted
from ndakit.core.deadline import Deadline
from ndakit.verify.claims import faults, ipvs
from ndakit.verify.claims.holders import Holders
from ndakit.verify.claims.traffic import service as service_claim
from pairs import Pair, new_key, running

pytestmark = pytest.mark.timed

PROFILE = """\
name: layer4
release: 24.10.8
access:
  ssh_keys: {{admin: {key}}}
  sources: {{noc: 192.168.0.0/24}}
networks:
  wan: {{nics: [eth0], subnet: [203.0.113.0/24, "2001:db8:0:1::/64"], gateway: [203.0.113.1, "2001:db8:0:1::1"]}}
  lan:
    nics: [eth1]
    subnet: [192.168.0.0/24, "fd00:0:0:1::/64"]
    routes: [{{to: 10.20.0.0/24, via: 192.168.0.254}}, {{to: 10.21.0.0/24, via: 192.168.0.253}}]
system: {{ntp: []}}
nodes:
  lb1: {{addresses: {{wan: [203.0.113.11, "2001:db8:0:1::11"], lan: [192.168.0.11, "fd00:0:0:1::11"]}}}}
  lb2: {{addresses: {{wan: [203.0.113.12, "2001:db8:0:1::12"], lan: [192.168.0.12, "fd00:0:0:1::12"]}}}}
vips:
  www: {{network: wan, address: [203.0.113.10, "2001:db8:0:1::10"]}}
  lan-gw: {{network: lan, address: [192.168.0.1, "fd00:0:0:1::1"], role: gateway}}
  intern: {{network: lan, address: [192.168.0.10, "fd00:0:0:1::10"]}}
vrrp: {{prefer: lb1, preempt: true, preempt_delay_s: 2, advert_interval_s: 0.5}}
pools:
  static:
    port: 80
    check: {{type: http, path: /health, interval_s: 1, timeout_s: 1}}
    sorry: {{pool: spare}}
    servers:
      img1: {{address: [192.168.0.31, "fd00:0:0:1::31"], weight: 2}}
      img2: {{address: [192.168.0.32, "fd00:0:0:1::32"]}}
  spare: {{port: 80, check: {{type: tcp, interval_s: 1}}, servers: {{sorry1: [192.168.0.39, "fd00:0:0:1::39"]}}}}
  names: {{balance: rr, check: {{type: ping, interval_s: 1}}, servers: {{ns1: 192.168.0.41, ns2: 192.168.0.42}}}}
  media:
    balance: leastconn
    check: {{type: tcp, interval_s: 1, timeout_s: 1}}
    servers: {{med1: [192.168.0.61, "fd00:0:0:1::61"], med2: [192.168.0.62, "fd00:0:0:1::62"]}}
  kept: {{persistence: {{type: source, timeout_s: 60}}, servers: {{keep1: 192.168.0.71, keep2: 192.168.0.72}}}}
  far: {{check: {{type: tcp, interval_s: 1, timeout_s: 1}}, servers: {{far1: 10.20.0.21, far2: 10.20.0.22}}}}
  own: {{port: 8085, reply_route: policy, servers: {{own1: 192.168.0.81}}}}
  behind:
    reply_route: policy
    check: {{type: tcp, interval_s: 1, timeout_s: 1}}
    servers: {{beh1: 10.21.0.21, beh2: 10.21.0.22}}
  plain: {{port: 80, servers: {{web1: 192.168.0.91, web2: 192.168.0.92}}}}
  ftp: {{check: {{port: 21, interval_s: 1}}, servers: {{ftp1: 192.168.0.95, ftp2: 192.168.0.96}}}}
  sites:
    port: 80
    check: {{type: http, path: /health, interval_s: 1, timeout_s: 1}}
    servers: {{web1: [192.168.0.91, "fd00:0:0:1::91"], web2: [192.168.0.92, "fd00:0:0:1::92"]}}
  rtmp: {{check: {{type: tcp, interval_s: 1}}, servers: {{web1: 192.168.0.91, web2: 192.168.0.92}}}}
services:
  natted: {{vip: www, port: 8082, topology: nat, protocol: tcp, pool: static}}
  names: {{vip: www, families: [ipv4], port: 53, topology: nat, protocol: udp, pool: names}}
  fast: {{vip: intern, port: 8081, topology: dr, protocol: tcp, pool: media}}
  sticky: {{vip: intern, families: [ipv4], port: 8084, topology: dr, protocol: tcp, pool: kept}}
  faraway: {{vip: intern, families: [ipv4], port: 8083, topology: tun, protocol: tcp, pool: far}}
  routed: {{vip: www, families: [ipv4], port: 8085, topology: nat, protocol: tcp, pool: own}}
  behind: {{vip: www, families: [ipv4], port: 8086, topology: nat, protocol: tcp, pool: behind}}
  shop: {{vip: www, families: [ipv4], port: 80, protocol: http, pool: plain}}
  shell: {{vip: www, families: [ipv4], port: 22, topology: nat, protocol: tcp, pool: own}}
  ftp: {{vip: www, families: [ipv4], port: [21, 20000-39999], topology: nat, protocol: tcp, pool: ftp}}
  iis: {{vip: www, port: 8087, topology: tproxy, protocol: http, pool: sites}}
  rtmp: {{vip: www, families: [ipv4], port: 1935, topology: tproxy, protocol: tcp, pool: rtmp}}
  owned: {{vip: www, families: [ipv4], port: 8088, topology: tproxy, protocol: tcp, pool: own}}
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("layer4")
    public, private = new_key(folder)
    with running(folder, "layer4", PROFILE.format(key=public), identity=private) as booted:
        yield booted


CLAIMS = (
    *("vips/one-holder", "vrrp/lb1", "vrrp/lb2", "firewall/wan", "firewall/lan"),
    *("service/natted", "client-address/natted", "way-back/natted", "servers/static", "check/static", "sorry/static"),
    *("service/names", "way-back/names", "servers/names"),
    *("service/fast", "client-address/fast", "way-back/fast", "servers/media", "check/media"),
    *("service/sticky", "persistence/sticky", "service/faraway", "client-address/faraway", "way-back/faraway"),
    *("drain/static", "drain/media", "drain/far"),
    *("servers/far", "check/far", "service/routed", "way-back/routed", "service/shop", "client-address/shop"),
    # Servers behind an inner router, which sends their answers to the balancers (reply_route: policy).
    *("service/behind", "client-address/behind", "way-back/behind", "servers/behind", "check/behind"),
    # Port 22 of a VIP is a service's, and that of the nodes is still their own SSH; 20001 ports are one service.
    *("service/shell", "way-back/shell", "ssh/lb1", "ssh/lb2", "service/ftp", "way-back/ftp"),
    # HAProxy in between, and the servers see the clients all the same; `owned` by a rule of the server's own.
    *("divert/lb1", "divert/lb2", "service/iis", "client-address/iis", "client-headers/iis", "way-back/iis"),
    *("servers/sites", "check/sites", "service/rtmp", "client-address/rtmp", "way-back/rtmp"),
    *("service/owned", "client-address/owned", "way-back/owned", "servers/own"),
)


@pytest.mark.parametrize("name", CLAIMS)
def test_the_claim_holds(pair: Pair, name: str) -> None:
    outcome = pair.outcome(name)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


@contextlib.contextmanager
def on_server(pair: Pair, pool: str, server: str, breaking: str, mending: str) -> Iterator[None]:
    """Something is wrong on a server for a while."""
    host = pair.lab.server_host(pool, server)
    host.run(["dash", "-c", breaking])
    try:
        yield
    finally:
        host.run(["dash", "-c", mending])


def test_an_inner_router_that_sends_the_answers_elsewhere_is_named(pair: Pair) -> None:
    rule = "ip rule {} from 10.21.0.21 ipproto tcp sport 8086 lookup 4201"
    with on_server(pair, "behind", "beh1", rule.format("del"), rule.format("add")):
        outcome = pair.outcome("way-back/behind")
    assert not outcome.ok
    assert "router 192.168.0.253 has no rule for its answers from 10.21.0.21 port 8086" in outcome.detail


@pytest.mark.parametrize(
    ("breaking", "mending", "name", "words"),
    [("nft flush chain inet fw4 tproxy_divert", "fw4 restart", "client-address/iis",
      "lb1 has no DIVERT rule, which marks packets for which one of its sockets waits, for IPv6"),
     ("ip -6 rule del priority 1000", "ip -6 rule add priority 1000 fwmark 0x1/0x1 lookup 100", "client-address/iis",
      "lb1 has no policy rule for packets with the mark 0x1 for IPv6"),
     ("ip route flush table 100", "ip route add local default dev lo table 100", "client-address/rtmp",
      "lb1 has no local route for everything in table 100 for IPv4")],
)  # fmt: skip
def test_a_node_that_does_not_take_answers_to_clients_in_is_named(
    pair: Pair, breaking: str, mending: str, name: str, words: str
) -> None:
    with planted.on_master(pair.lab, "lb1", breaking, mending):
        outcome, about_node = pair.outcome(name), pair.outcome("divert/lb1")
    assert not outcome.ok
    assert words in outcome.detail
    assert not about_node.ok
    assert words in about_node.detail
    assert pair.outcome("divert/lb2").ok
    assert pair.outcome("divert/lb1").ok


def test_a_dr_server_that_answers_arp_for_the_vip_is_named(pair: Pair) -> None:
    settings = "echo {} >/proc/sys/net/ipv4/conf/all/arp_ignore"
    with on_server(pair, "media", "med1", settings.format(0), settings.format(1)):
        outcome = pair.outcome("way-back/fast")
        assert not outcome.ok
        assert "answered ARP for 192.168.0.10" in outcome.detail
        assert "server med1 does not keep its VIPs from ARP" in outcome.detail
        assert not pair.outcome("servers/media").ok
    assert pair.outcome("way-back/fast").ok


def test_a_dr_server_without_the_vip_is_named(pair: Pair) -> None:
    breaking, mending = "ip addr del 192.168.0.10/32 dev lo", "ip addr add 192.168.0.10/32 dev lo"
    with on_server(pair, "media", "med2", breaking, mending):
        outcome = service_claim(pair.lab, "fast")
        assert not outcome.ok
        assert "server med2 has no 192.168.0.10 on lo" in ipvs.server_side(pair.lab, "media").detail


@pytest.mark.parametrize(
    ("pool", "server", "name", "words"),
    [("static", "img1", "client-address/natted", "the client is 203.0.113."),
     ("sites", "web1", "way-back/iis", "went past the balancers")],
)  # fmt: skip
def test_a_server_without_the_gateway_vip_is_named(pair: Pair, pool: str, server: str, name: str, words: str) -> None:
    breaking, mending = "ip route replace default via 192.168.0.254", "ip route replace default via 192.168.0.1"
    with on_server(pair, pool, server, breaking, mending):
        outcome = pair.outcome(name)
        assert not outcome.ok
        assert words in outcome.detail
        assert f"server {server} has not 192.168.0.1 as its default gateway" in outcome.detail
        assert not pair.outcome(f"servers/{pool}").ok


def test_a_tun_server_with_rp_filter_on_is_named(pair: Pair) -> None:
    settings = "echo {} >/proc/sys/net/ipv4/conf/ndakit4/rp_filter"
    with on_server(pair, "far", "far1", settings.format(1), settings.format(0)):
        outcome = pair.outcome("client-address/faraway")
        assert not outcome.ok
        assert "server far1 has rp_filter on for ndakit4" in outcome.detail


def test_a_server_without_its_rule_for_answers_is_named(pair: Pair) -> None:
    rule = "from 192.168.0.81 ipproto tcp sport 8085 lookup 4201"
    with on_server(pair, "own", "own1", f"ip rule del {rule}", f"ip rule add {rule}"):
        outcome = pair.outcome("servers/own")
        assert not outcome.ok
        assert "has no rule for its answers from 192.168.0.81 port 8085 through 192.168.0.1" in outcome.detail


def test_a_server_that_answers_by_policy_answers_checks_directly(pair: Pair) -> None:
    # Through the master, the backup's checks would fail when the master does: just before it takes over.
    way = "ip route get 192.168.0.{} from 192.168.0.81 ipproto tcp sport 8085"
    host = pair.lab.server_host("own", "own1")
    assert " via " not in host.run(way.format(12).split()).stdout
    assert " via 192.168.0.1 " in host.run(way.format(253).split()).stdout


def test_a_proxy_in_between_is_found_out(pair: Pair) -> None:
    # The claims about the kernel's services, tried on one that HAProxy carries.
    seen = ipvs.seen_client(pair.lab, "shop")
    assert not seen.ok
    assert "saw 192.168.0.11, the client is 203.0.113." in seen.detail
    assert not ipvs.way_back(pair.lab, "shop").ok


def test_a_client_that_does_not_keep_its_server_is_found_out(pair: Pair) -> None:
    outcome = ipvs.persistence(pair.lab, "natted")
    assert not outcome.ok
    assert "were answered by img" in outcome.detail


def test_a_servers_script_says_what_is_missing_and_mends_it(pair: Pair) -> None:
    lab = pair.lab
    assert "ready" in lab.server_script("far", "far2", "status")
    lab.server_script("far", "far2", "down")
    assert "missing: tunnel device ndakit4" in lab.server_script("far", "far2", "status")
    assert not ipvs.server_side(lab, "far").ok
    lab.server_script("far", "far2", "up")
    assert ipvs.server_side(lab, "far").ok


FAULTS = ("cable/wan", "cables", "frozen", "keepalived-killed", "cut-off", "not-heard", "killed")


@pytest.mark.parametrize("name", FAULTS)
def test_whatever_happens_to_the_master_clients_are_answered_again_in_time(pair: Pair, name: str) -> None:
    outcome = pair.outcome(f"failover/{name}")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


def test_a_node_that_does_not_forward_is_found_out_when_it_becomes_master(pair: Pair) -> None:
    lab = pair.lab
    answers = "ip saddr { 192.168.0.31, 192.168.0.32 } tcp sport 80"
    with planted.on_backup(lab, "lb2", f"nft insert rule inet fw4 forward {answers} drop", "fw4 restart"):
        outcome = pair.outcome("failover/cable/wan")
    assert not outcome.ok
    assert "clients were not answered again" in outcome.detail
    assert "natted does not answer at 203.0.113.10:8082 (time-out)" in outcome.detail
    assert outcome.detail.count("does not answer") == 1


def test_a_node_without_the_divert_rule_is_found_out_when_it_becomes_master(pair: Pair) -> None:
    lab = pair.lab
    with planted.on_backup(lab, "lb2", "nft flush chain inet fw4 tproxy_divert", "fw4 restart"):
        outcome = pair.outcome("failover/cable/wan")
    assert not outcome.ok
    for at in ("iis does not answer at 203.0.113.10:8087", "iis does not answer at [2001:db8:0:1::10]:8087"):
        assert at in outcome.detail
    assert "natted" not in outcome.detail


def test_without_its_watcher_a_node_whose_keepalived_cannot_start_keeps_its_vips(pair: Pair) -> None:
    with planted.on_every_node(pair.lab, "/etc/init.d/ndakit-vips stop", "/etc/init.d/ndakit-vips start"):
        outcome = pair.outcome("failover/keepalived-killed")
    assert not outcome.ok
    assert "two nodes answered for" in outcome.detail


def test_a_fault_that_nobody_takes_over_from_is_found_out(pair: Pair) -> None:
    stop, start = "/etc/init.d/keepalived stop", "/etc/init.d/keepalived start"
    with planted.on_backup(pair.lab, "lb2", stop, start, settle=False):
        outcome = pair.outcome("failover/cable/wan")
    assert not outcome.ok
    assert "no other node became master" in outcome.detail


@pytest.mark.parametrize("node", ["lb1", "lb2"])
def test_no_alarm_in_the_logs_at_the_end(pair: Pair, node: str) -> None:
    outcome = pair.outcome(f"quiet/{node}")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


FLOOD = """\
import socket, struct, sys, time
target, port, count = socket.inet_aton(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
for n in range(count):
    source = struct.pack("!I", 0xCB007140 + n % 32)  # 203.0.113.64 and on: nobody is there
    head = struct.pack("!HHIIBBHHH", 1024 + n % 60000, port, n, 0, 5 << 4, 2, 1024, 0, 0)
    pseudo = source + target + struct.pack("!BBH", 0, 6, len(head))
    head = head[:16] + struct.pack("!H", checksum(pseudo + head)) + head[18:]
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, n & 0xFFFF, 0, 64, 6, 0, source, target)
    s.sendto(ip + head, (sys.argv[1], 0))
    if n % 8 == 7:
        time.sleep(0.01)  # an emulated machine takes no more
"""
HALF_OPEN = "grep -c ' SYN_RECV ' /proc/net/ip_vs_conn || true"


def _flooded(pair: Pair, count: int = 3000) -> int:
    """How many half-open connections the master keeps of a flood of SYNs."""
    lab = pair.lab
    lab.hosts[lab.plan.clients["wan"].host].run(
        ["python3", "-I", "-S", "-c", FLOOD, "203.0.113.10", "8082", str(count)], timeout_s=60
    )
    return _half_open(pair)


def _half_open(pair: Pair) -> int:
    return int(pair.lab.run(pair.lab.one_master(), HALF_OPEN).strip())


def test_a_flood_of_half_open_connections_stays_bounded_where_memory_is_scarce(pair: Pair) -> None:
    lab = pair.lab
    lab.settle()
    master = lab.one_master()
    vs = "/proc/sys/net/ipv4/vs"
    told = lab.run(master, f"cd {vs}; cat amemthresh drop_packet drop_entry secure_tcp").split()
    assert told == ["16384", "1", "1", "1"]  # a sixteenth of 1024 MiB, in pages
    kept = _flooded(pair)
    assert kept > 1500, f"in quiet times nothing is dropped: {kept} of 3000"
    # All memory counts as scarce from here on: the kernel acts as under a flood that has used it up. It looks once a
    # second (Linux, DEFENSE_TIMER_PERIOD), and each time throws a few of the half-open ones out.
    lab.run(master, f"echo 262144 > {vs}/amemthresh")
    defence = f"cd {vs}; cat drop_packet drop_entry secure_tcp"
    try:
        Deadline(5, "the kernel's defence").wait_until(
            lambda: lab.run(master, defence).split() == ["2"] * 3, every_s=0.2
        )
        before = _half_open(pair)
        Deadline(10, "a tenth of the half-open connections to be dropped").wait_until(
            lambda: _half_open(pair) < 0.9 * before, every_s=0.5
        )
        assert _flooded(pair) <= before, "no new connection is taken"
        assert lab.run(master, defence).split() == ["2", "2", "2"]
    finally:
        lab.run(master, f"echo 16384 > {vs}/amemthresh")
    Deadline(5, "quiet times").wait_until(lambda: lab.run(master, defence).split() == ["1"] * 3, every_s=0.2)
    assert service_claim(lab, "natted").ok


def test_a_node_whose_keepalived_hangs_gives_its_vips_up(pair: Pair) -> None:
    lab = pair.lab
    master = lab.one_master()
    with Holders(lab) as holders:
        lab.run(master, "kill -STOP $(pidof keepalived)")
        assert lab.wait_other_master(master, timeout_s=15)
    assert max(holders.doubled_s().values()) < 5
    lab.settle()
    assert "keepalived hangs: this node has given its VIPs up" in lab.run(master, "logread")


def test_with_procds_own_number_of_retries_it_gives_up_at_the_sixth_end(pair: Pair) -> None:
    # The last one: the log has "crash loop" from here on, which is an alarm. procd's own pause of 5 s and the claim's
    # many looks would only make it longer.
    again = "for one in haproxy keepalived; do /etc/init.d/$one restart; done"
    few = f"uci set system.@service[0].respawn_retry=5; {again}"
    with planted.on_every_node(pair.lab, few, f"uci revert system; {again}"):
        outcome = faults.killed(pair.lab, looks=40)
    assert not outcome.ok
    assert "haproxy was not started again after its end number 6" in outcome.detail
    # Seen once: given up after six ends as counted here, not five. Why is not proved: perhaps one of its processes
    # was killed alone and its parent brought it back. What must hold: it is given up before the seven are over.
    assert re.search(r"keepalived was not started again after its end number [67]\b", outcome.detail), outcome.detail
