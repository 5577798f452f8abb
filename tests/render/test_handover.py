"""What nodes tell each other, which pools decide, and the profile's own firewall rules: from the model to the text."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

import goldens
from ndakit.core.names import is_name, pool_of_backend
from ndakit.lab.clients import LabLacks
from ndakit.lab.network import LabNetwork
from ndakit.lab.plan import plan
from ndakit.lint.config_text import haproxy as haproxy_sections
from ndakit.lint.lint import lint
from ndakit.model import Profile
from ndakit.model import rules as model_rules
from ndakit.render.firewall import firewall
from ndakit.render.node import NodeView
from ndakit.render.pair import PairView, pair
from ndakit.render.render import render
from ndakit.verify.claims import all_claims
from ndakit.verify.claims.connection_sync import connections, handed_over
from ndakit.verify.claims.firewall import _fits, denied, let_through, own_ports

BASE = goldens.PROFILES["handover"].read_text()


def profile(*changes: tuple[str, str]) -> Profile:
    text = BASE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    data: Any = yaml.load(text, Loader=yaml.BaseLoader)
    return Profile.model_validate(data)


def seen(example: Profile, node: str = "lb1") -> PairView:
    return pair(NodeView(example, node))


def text(example: Profile, path: str, node: str = "lb1") -> str:
    return render(example, node, goldens.TEMPLATES)[path].text


# what is told to whom


def test_the_full_example_gives_no_finding() -> None:
    assert list(model_rules.findings(profile())) == []


def test_nodes_name_each_other() -> None:
    one, two = seen(profile(), "lb1").sync, seen(profile(), "lb2").sync
    assert one is not None and two is not None
    assert (one.own, one.peer) == (two.peer, two.own)
    assert one.device == "eth1"


def test_connections_are_told_on_the_innermost_network_that_all_nodes_share() -> None:
    assert profile().sync_link == ("lan", 4)
    gateways = profile(("subnet: 192.168.0.0/24,", "subnet: 192.168.0.0/24, routes: [],"))
    assert gateways.sync_link == ("lan", 4)
    only_dmz = profile((", lan: 192.168.0.12, dmz", ", dmz"))
    assert only_dmz.sync_link == ("dmz", 4)
    only_wan = profile((", lan: 192.168.0.12, dmz: 192.168.9.12", ""))
    assert only_wan.sync_link == ("wan", 4)
    all_outside = profile(
        ("subnet: 192.168.0.0/24,", "subnet: 192.168.0.0/24, gateway: 192.168.0.254,"), (", dmz: 192.168.9.12", "")
    )
    assert all_outside.sync_link == ("lan", 4)


def test_three_nodes_tell_each_other_by_multicast() -> None:
    third = (
        "vips:\n",
        '  lb3: {addresses: {wan: [203.0.113.13, "2001:db8:0:1::13"], lan: 192.168.0.13, dmz: 192.168.9.13}}\nvips:\n',
    )
    three = profile(third)
    sync = seen(three).sync
    assert sync is not None and sync.multicast
    conf = text(three, "/etc/conntrackd/conntrackd.conf")
    assert "\tMulticast {\n\t\tIPv4_address 225.0.0.50\n\t\tGroup 3780\n\t\tIPv4_interface 192.168.0.11\n" in conf
    rules = {r.name: r for r in firewall(NodeView(three, "lb1")).rules}
    assert rules["sync-tracked"].source_addresses == ("192.168.0.12", "192.168.0.13")
    assert "igmp" in rules


def test_what_ends_at_a_node_is_not_told() -> None:
    sync = seen(profile()).sync
    assert sync is not None
    assert {"203.0.113.10", "192.168.0.1", "192.168.0.11", "192.168.0.12"} <= {str(a) for a in sync.ignored}


def test_without_the_key_nothing_is_told_and_nothing_is_open_for_it() -> None:
    quiet = profile((" connection_sync: true,", ""))
    tree = render(quiet, "lb1", goldens.TEMPLATES)
    assert not [p for p in tree if "conntrackd" in p or p.endswith("/connections")]
    assert not [r for r in firewall(NodeView(quiet, "lb1")).rules if r.name.startswith("sync")]
    assert "lvs_sync_daemon" not in tree["/etc/keepalived/keepalived.conf"].text
    assert "net.ipv4.vs.sync" not in tree["/etc/sysctl.conf"].text
    assert not [c for c in all_claims(quiet) if "connections" in c.name]
    claims = [c.text for c in all_claims(profile()) if "connections" in c.name]
    assert claims == [
        "connections of servers in lan to the outside and connections of raw and who keeps which server of www: "
        "handed over to the next master, and back"
    ]


def test_of_each_topology_and_family_one_service_is_tried() -> None:
    carried = handed_over(profile((
        "  raw: {vip: www, families: [ipv4], port: 5000,",
        "  again: {vip: www, families: [ipv4], port: 5001, topology: nat, protocol: tcp, pool: inner}\n"
        "  names: {vip: www, families: [ipv4], port: 53, topology: nat, protocol: udp, pool: inner}\n"
        "  near: {vip: www, families: [ipv4], port: [6000, 6001], topology: dr, protocol: tcp, pool: inner}\n"
        "  six: {vip: www, port: 7000, topology: dr, protocol: tcp, pool: inner}\n"
        "  raw: {vip: www, families: [ipv4], port: 5000,",
    )))  # fmt: skip
    assert [(c.service, c.endpoint.address.version, c.port) for c in carried.carried] == [
        ("again", 4, 5001),
        ("near", 4, 6000),
        ("six", 6, 7000),
    ]
    assert (carried.egress, carried.kept) == (("lan",), ("www",))


def test_what_nobody_in_the_lab_can_try_does_not_hold() -> None:
    example = profile()
    bare = LabNetwork.__new__(LabNetwork)
    bare.profile, bare.plan = example, replace(plan(example), inside={})
    with pytest.raises(LabLacks, match="no IPv4 host that could get out through lan-gw"):
        connections(bare)
    only_kept = profile((" egress: www", " egress: none"), (", topology: nat, protocol: tcp", ", protocol: tcp"))
    bare = cast(LabNetwork, SimpleNamespace(profile=only_kept, plan=replace(plan(only_kept), hosts={}, servers={})))
    outcome = connections(bare)
    assert (outcome.ok, outcome.figure) == (False, "not tried")
    assert outcome.detail == "nobody in the lab is a client of www"


def test_haproxies_tell_each_other_under_their_host_names() -> None:
    for node in ("lb1", "lb2"):
        config = text(profile(), "/etc/haproxy.cfg", node)
        assert "\tpeer handover-lb1 192.168.0.11:10000\n\tpeer handover-lb2 192.168.0.12:10000\n" in config
        assert " peers _nodes\n\tstick on src\n" in config
    rules = {r.name: r for r in firewall(NodeView(profile(), "lb2")).rules}
    assert rules["sync-tables"].source_addresses == ("192.168.0.11",)
    assert rules["sync-tables"].destination_addresses == ("192.168.0.12",)


def test_a_pool_may_have_any_name() -> None:
    """No section of haproxy.cfg that ndakit names itself has a name that a profile can write."""
    for name, node in goldens.cases():
        tree, example = goldens.tree(name, node), goldens.profile(name)
        for section in haproxy_sections(tree["/etc/haproxy.cfg"].text if "/etc/haproxy.cfg" in tree else ""):
            ours = pool_of_backend(section.name) not in example.pools
            assert not (ours and is_name(section.name)), f"{name}: {section.kind} {section.name}"
    kinds = {section.kind for section in haproxy_sections(text(profile(), "/etc/haproxy.cfg"))}
    assert {"peers", "frontend", "backend"} <= kinds
    nodes = profile(("apache: {", "nodes: {"), ("pool: apache}", "pool: nodes}"), ("[apache,", "[nodes,"))
    assert lint(render(nodes, "lb1", goldens.TEMPLATES), nodes, "lb1") == []


def test_without_persistence_there_are_no_peers() -> None:
    assert "peers" not in text(profile((" persistence: {type: source},", "")), "/etc/haproxy.cfg")


def test_answers_that_ipvs_does_not_know_do_not_wear_the_vip() -> None:
    nats = firewall(NodeView(profile(), "lb1")).nats
    assert [(n.source, n.source_ports, n.protocol, n.to) for n in nats] == [
        ("192.168.0.31", "5000", "tcp", None),
        ("192.168.0.32", "5000", "tcp", None),
        ("192.168.0.0/24", None, "all", "203.0.113.10"),
    ]
    by_udp = firewall(NodeView(profile(("nat, protocol: tcp", "nat, protocol: udp")), "lb1")).nats
    assert [n.source for n in by_udp] == ["192.168.0.0/24"]


# who is master


def test_an_empty_pool_weighs_more_than_all_nodes_differ() -> None:
    example = profile()
    assert -seen(example).weight > max(map(example.priority, example.nodes)) - min(map(example.priority, example.nodes))
    assert example.priority_lowest >= 1


def test_the_way_to_the_servers_is_watched_where_no_vip_is() -> None:
    assert seen(profile()).links == {"main": ("eth2",)}
    both = profile(("192.168.9.22", "192.168.0.22"))
    assert seen(both).links == {"main": ()}


def alive(tmp_path: Path, pool: str, *, kernel: str = "", answer: int = 0) -> int:
    """The rendered script, with a stand-in for wget and a table of IPVS of our own."""
    table = tmp_path / "ip_vs"
    table.write_text(kernel)
    script = tmp_path / "pool-alive"
    script.write_text(text(profile(), "/usr/libexec/ndakit/pool-alive").replace("/proc/net/ip_vs", str(table)))
    asked = "http://127.0.0.1:8404/empty/apache"
    (tmp_path / "wget").write_text(f'#!/bin/sh\n[ "$6" = {asked} ] && exit {answer}\nexit 0\n')
    (tmp_path / "wget").chmod(0o755)
    return subprocess.run(["sh", script, pool], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False).returncode


TABLE = """IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  CB00710A:1388 wrr
"""


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("  -> C0A8001F:1388      Masq    1      0          0\n", 0),
        ("  -> C0A80020:1388      Masq    10     0          0\n", 0),
        ("  -> C0A8001F:1388      Masq    0      0          0\n", 1),
        ("  -> C0A80063:1388      Masq    1      0          0\n", 1),
        ("", 1),
    ],
)
def test_a_pool_of_the_kernel_lives_while_one_of_its_servers_has_weight(tmp_path: Path, line: str, code: int) -> None:
    assert alive(tmp_path, "inner", kernel=TABLE + line) == code


@pytest.mark.parametrize(("answer", "code"), [(0, 1), (8, 0), (4, 0), (1, 0)])
def test_a_pool_of_haproxy_is_empty_only_if_haproxy_says_so(tmp_path: Path, answer: int, code: int) -> None:
    """wget ends with 0 for the page, with 8 for another status, with something else if nobody answers."""
    assert alive(tmp_path, "apache", answer=answer) == code


def test_nobody_answers_for_a_pool_that_is_not_watched(tmp_path: Path) -> None:
    assert alive(tmp_path, "other") == 2


# the profile's own rules


def test_what_is_denied_stands_behind_ssh_and_before_every_service() -> None:
    names = [r.name for r in firewall(NodeView(profile(), "lb1")).rules]
    assert names.index("ssh") < names.index("deny-bad") < names.index("allow-dc") < names.index("service-www")
    assert all(r.source == "*" and r.device for r in firewall(NodeView(profile(), "lb1")).rules if r.drop)


def test_what_is_denied_leaves_ipv6_its_neighbours() -> None:
    names = [r.name for r in firewall(NodeView(profile(), "lb1")).rules]
    assert names.index("neighbours") < names.index("multicast-listeners") < names.index("deny-bad")
    assert names.index("deny-bad") < names.index("ping-ipv6")


def test_names_of_sources_become_their_subnets() -> None:
    rules = {r.name: r for r in firewall(NodeView(profile(), "lb1")).rules}
    assert rules["allow-monitor"].source_addresses == ("203.0.113.128/25", "2001:db8:9::/48")
    assert rules["allow-dc"].source_addresses == ("192.168.0.99/32",)
    assert rules["allow-router"].protocol == "89"


def test_pings_are_a_rule_for_each_family_of_the_network() -> None:
    rules = {r.name: r for r in firewall(NodeView(profile(), "lb1")).rules}
    assert rules["allow-ping-ipv4"].icmp_types == rules["allow-ping-ipv6"].icmp_types == ("echo-request",)
    assert rules["deny-noping"].family == "ipv4"


def test_verify_expects_what_the_rules_say() -> None:
    example = profile()
    dc, other = ip_address("192.168.0.99"), ip_address("192.168.0.98")
    assert let_through(example, "lan", dc) == {5985}
    assert let_through(example, "lan", other) == set()
    assert own_ports(example, "dmz") == {23, 1000, 1010}
    assert denied(example, "dmz", ip_address("192.168.9.50"), 1005)
    assert not denied(example, "lan", other, 1005)
    assert denied(example, "wan", ip_address("198.51.100.9"), 80)


@pytest.mark.parametrize(
    ("state", "is_open", "let_in", "stated", "fits"),
    [
        ("open", True, False, False, True),
        ("closed", True, True, True, False),
        ("closed", False, True, True, True),
        ("filtered", False, True, True, False),
        ("closed", False, False, True, False),
        ("filtered", False, False, True, True),
        ("open", False, False, False, False),
        ("closed", False, False, False, True),
    ],
)
def test_a_port_is_in_the_state_that_it_should_be_in(
    state: str, is_open: bool, let_in: bool, stated: bool, fits: bool
) -> None:
    assert _fits(state, False, is_open, let_in, stated) is fits


@pytest.mark.parametrize(
    ("state", "passed", "is_open", "let_in", "fits"),
    [
        ("open", False, True, False, True),
        ("filtered", True, True, False, False),
        ("filtered", True, False, True, True),
        ("filtered", False, False, True, False),
        ("filtered", False, False, False, True),
        ("filtered", True, False, False, False),
        ("closed", True, False, False, False),
        ("open", False, False, False, False),
    ],
)
def test_of_a_silent_udp_port_it_counts_whether_its_packets_were_let_in(
    state: str, passed: bool, is_open: bool, let_in: bool, fits: bool
) -> None:
    assert _fits(state, passed, is_open, let_in, False, "udp") is fits


def test_a_rule_for_udp_is_none_for_tcp() -> None:
    example = profile(("  deny:\n", "    syslog: {network: lan, protocol: udp, port: 514}\n  deny:\n"))
    assert own_ports(example, "lan", "udp") == {514}
    assert let_through(example, "lan", ip_address("192.168.0.98"), "udp") == {514}
    assert 514 not in let_through(example, "lan", ip_address("192.168.0.98"))
