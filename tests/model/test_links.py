"""Which links decide who is master, which cables verification pulls and what it expects of each, and what it leaves
out: from the profile alone."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import cast

import pytest

import goldens
from ndakit.lab.network import LabNetwork
from ndakit.lab.plan import plan
from ndakit.machine.vm import Vm
from ndakit.model import Profile
from ndakit.model.links import WayOut, deciding, routes_only, watched, watched_alone, ways_out
from ndakit.render.node import NodeView
from ndakit.render.pair import pair
from ndakit.render.render import render
from ndakit.verify.claims import all_claims, left_out
from ndakit.verify.claims.failover import poll_target
from ndakit.verify.claims.faults import cables, faults
from ndakit.verify.claims.firewall import no_way, worn

NO_GATEWAYS = (
    (", role: gateway", ""),
    ('[192.168.0.1, "fe80::1"]', "192.168.0.1"),
    ('[192.168.1.1, "fe80::1"]', "192.168.1.1"),
)
ROUTER = goldens.PROFILES["heartbeat"].read_text()


def router(*changes: tuple[str, str]) -> Profile:
    text = ROUTER
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return goldens.parse(text)


def test_the_way_out_is_watched_although_no_vip_lies_there() -> None:
    profile = router()
    assert deciding(profile) == {"lan": "VIPs are there", "iot": "VIPs are there", "wan": "the way out"}
    assert pair(NodeView(profile, "lb1")).links == {"main": ("eth0",)}


def test_each_group_watches_its_own_way_out_only() -> None:
    profile = router(
        ("iot-gw: {network: iot,", "iot-gw: {network: iot, group: things,"),
        ("[192.168.1.0/24, \"fd00:0:0:2::/64\"], egress: node}", "[192.168.1.0/24, \"fd00:0:0:2::/64\"]}"),
    )  # fmt: skip
    assert watched(profile, "main") == {"lan": "VIPs are there", "wan": "the way out"}
    assert watched(profile, "things") == {"iot": "VIPs are there"}
    assert pair(NodeView(profile, "lb1")).links == {"main": ("eth0",), "things": ()}


@pytest.mark.parametrize(
    "changes",
    [
        (("egress: node", "egress: none"),),
        ((', gateway: [203.0.113.1, "2001:db8:113::1"]', ""),),
        NO_GATEWAYS,
    ],
    ids=["no egress", "no gateway outside", "no gateway inside"],
)
def test_what_nothing_leaves_through_is_not_watched(changes: tuple[tuple[str, str], ...]) -> None:
    profile = router(*changes)
    assert deciding(profile) == {"lan": "VIPs are there", "iot": "VIPs are there"}
    assert routes_only(profile) is (changes is NO_GATEWAYS)  # then the nodes' own addresses are the servers' gateways


def test_a_gateway_of_one_family_is_a_way_out_for_that_family_only() -> None:
    profile = router((', gateway: [203.0.113.1, "2001:db8:113::1"]', ', gateway: "2001:db8:113::1"'))
    assert [(w.network, w.version) for w in ways_out(profile)] == [("lan", 6), ("iot", 6)]
    profile = router((', gateway: [203.0.113.1, "2001:db8:113::1"]', ", gateway: 203.0.113.1"))
    assert [(w.network, w.version) for w in ways_out(profile)] == [("lan", 4), ("iot", 4)]


def test_what_leaves_wears_the_nodes_own_addresses_or_the_vip() -> None:
    profile = router()
    assert worn(profile, next(ways_out(profile))) == {"203.0.113.11", "203.0.113.12"}
    shop = goldens.profile("apache-pair")
    assert worn(shop, WayOut("lan", "lan-gw", "wan", 4)) == {"203.0.113.10"}


# -- heartbeats --------------------------------------------------------------------------------------------------------


def test_every_group_listens_on_every_heartbeat_and_its_link_is_watched_by_none() -> None:
    profile = router(("iot-gw: {network: iot,", "iot-gw: {network: iot, group: things,"))
    view = NodeView(profile, "lb1")
    assert [(g.name, g.instances) for g in view.sync_groups] == [
        ("main", ("lan-main", "hb-main")), ("things", ("iot-things", "hb-things")),
    ]  # fmt: skip
    beats = [i for i in view.instances if i.heartbeat]
    assert len({i.vrid for i in beats}) == 2
    assert len({i.advertised.address for i in beats}) == 2
    assert {(i.advertised.device, str(i.own), i.peers) for i in beats} == {
        ("lo", "172.31.255.1", (ip_address("172.31.255.2"),))
    }
    assert not any("eth4" in devices for devices in pair(view).links.values())


def test_a_heartbeat_of_ipv6_alone_advertises_an_address_of_ipv6() -> None:
    profile = router(
        ("172.31.255.0/29", '"fd00:0:0:9::/64"'),
        ("172.31.255.1", '"fd00:0:0:9::1"'),
        ("172.31.255.2", '"fd00:0:0:9::2"'),
    )
    beat = next(i for i in NodeView(profile, "lb1").instances if i.heartbeat)
    assert (beat.version, beat.advertised.prefixed) == (6, "100::3/128")


def test_what_nodes_tell_each_other_goes_over_the_heartbeat() -> None:
    assert router().sync_link == ("hb", 4)
    assert router((", role: heartbeat", "")).sync_link == ("lan", 4)


def test_without_vips_or_a_second_node_there_is_no_heartbeat() -> None:
    lone = ROUTER[: ROUTER.index("  lb2:")] + ROUTER[ROUTER.index("vips:") : ROUTER.index("vrrp:")]
    assert goldens.parse(lone).heartbeats == ()
    assert goldens.parse(lone).instances == ()


# -- cables ------------------------------------------------------------------------------------------------------------


def test_each_cable_is_pulled_and_expected_to_do_what_the_profile_says() -> None:
    profile = router(("  hb: {", "  mgmt: {nics: [eth5], subnet: 10.0.0.0/24}\n  hb: {"))
    assert [(f.name, f.moves) for f in faults(profile) if f.name.startswith(("cable/", "heard"))] == [
        ("cable/wan", True), ("cable/lan/each", False), ("cable/lan", True), ("cable/iot", True),
        ("cable/mgmt", False), ("cable/hb", False), ("heard", False),
    ]  # fmt: skip


def test_a_card_less_in_a_bundle_may_cost_a_lost_packet_and_the_next_waits_for_the_switch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profile = router(("{mode: active-backup}", "{mode: 802.3ad}"))
    fault = next(f for f in faults(profile) if f.name == "cable/lan/each")
    assert (fault.moves, fault.unnoticed_s) == (False, 1.0)
    lab, machines = lab_of(profile)
    asked = list[set[str]]()

    def carrying(node: str, bond: str) -> list[str]:
        assert (node, bond) == ("lb1", "bond-lan")
        asked.append(set(machines["lb1"].down))
        return ["eth1"] if len(asked) < 3 else ["eth1", "eth2"]

    monkeypatch.setattr(lab, "carrying", carrying)
    monkeypatch.setattr("ndakit.verify.claims.faults.BOND_S", 0.0)
    fault.make(lab, "lb1")
    assert asked == [set()] * 3  # both are plugged in while the switch is waited for
    assert machines["lb1"].down == {"eth2"}
    fault.mend(lab, "lb1")
    assert machines["lb1"].down == set()


def test_networks_on_one_card_have_one_cable_which_decides_if_one_of_them_does() -> None:
    profile = router(
        ("  hb: {", "  mgmt: {nics: [eth3], vlan: 9, subnet: 10.0.0.0/24}\n  hb: {"),
        ("iot: {nics: [eth3]", "iot: {nics: [eth3], vlan: 8"),
    )
    assert [(c.network, c.cards, c.why) for c in cables(profile)][2:] == [
        ("iot", ("eth3",), "iot: VIPs are there"), ("hb", ("eth4",), ""),
    ]  # fmt: skip


def test_of_a_bridge_the_one_port_with_a_cable_in_the_lab_is_pulled() -> None:
    profile = goldens.profile("links")
    assert [(c.network, c.cards) for c in cables(profile)] == [
        ("office-network-at-the-back", ("eth0", "eth1")), ("dmz-a", ("eth2",)), ("store", ("eth4", "eth5")),
        ("voice", ("eth6",)),
    ]  # fmt: skip


class _Machine:
    """A virtual machine as far as its cables go."""

    def __init__(self) -> None:
        self.alive, self.down = True, set[str]()

    def set_link(self, card: str, up: bool) -> None:
        assert self.alive
        self.down = self.down - {card} if up else self.down | {card}

    def power_off(self) -> None:
        self.alive = False


def lab_of(profile: Profile) -> tuple[LabNetwork, dict[str, _Machine]]:
    lab = LabNetwork.__new__(LabNetwork)
    machines = {node: _Machine() for node in profile.nodes}
    lab.profile, lab.plan, lab.tell = profile, plan(profile), lambda text: None
    lab._nodes = cast(dict[str, Vm], machines)
    return lab, machines


def test_a_direct_cable_has_two_ends() -> None:
    lab, machines = lab_of(router())
    assert lab.plan.direct == ("eth4",)
    lab.plug("lb1", "eth4", up=False)
    assert [m.down for m in machines.values()] == [{"eth4"}, {"eth4"}]
    lab.plug("lb1", "eth4", up=True)
    lab.plug("lb1", "eth0", up=False)
    assert [m.down for m in machines.values()] == [{"eth0"}, set()]
    lab.power_off("lb1")
    assert machines["lb2"].down == {"eth4"}


@pytest.mark.parametrize(
    "change", [(", role: heartbeat", ""), ("hb: {nics: [eth4]", "hb: {nics: [eth3], vlan: 9")], ids=["switch", "shared"]
)
def test_other_cables_lead_to_a_switch(change: tuple[str, str]) -> None:
    assert plan(router(change)).direct == ()


# -- claims ------------------------------------------------------------------------------------------------------------


def test_a_pair_that_only_routes_claims_its_way_out_and_its_failover() -> None:
    profile = router()
    names = [c.name for c in all_claims(profile)]
    assert {"egress/lan", "egress/iot", "failover/cable/wan", "failover/power-off", "failover/return"} <= {*names}
    assert not [n for n in names if n.startswith(("statistics/", "service/", "failover/haproxy"))]
    assert poll_target(profile) == WayOut("lan", "lan-gw", "wan", 4)
    hosts = plan(profile).hosts
    inside = {(h.name, tuple(map(str, h.gateways))) for h in hosts.values() if h.name.startswith("inside-")}
    assert inside == {("inside-lan", ("192.168.0.1", "fe80::1")), ("inside-iot", ("192.168.1.1", "fe80::1"))}


def test_connections_of_a_pair_that_only_routes_are_handed_over() -> None:
    vip = "  out: {network: wan, address: 203.0.113.10}\nvrrp: {connection_sync: true, "
    profile = router(("egress: node", "egress: out"), ("vrrp: {", vip))
    claim = next(c for c in all_claims(profile) if c.name == "failover/connections")
    assert claim.text.startswith("connections of servers in lan, iot to the outside")


def test_whatever_is_left_out_is_listed_with_its_reason() -> None:
    said = {one.name: one.reason for one in left_out(router())}
    assert said == {
        "statistics/lb1": "no HAProxy runs: it carries no service, and nobody asked for its statistics",
        "statistics/lb2": "no HAProxy runs: it carries no service, and nobody asked for its statistics",
        "failover/connections": "connection_sync is not on, so that connections end with their master",
    }
    full = router(("172.31.255.0/29", "172.31.255.0/30"), ("egress: node", "egress: none"))
    said = {one.name: one.reason for one in left_out(full)}
    assert said["firewall/hb"].startswith("every address of its subnet is taken")
    assert said["failover"].startswith("there is no service and no way out")
    assert not [c for c in all_claims(full) if c.name.startswith("failover/")]


def test_every_egress_pool_and_failover_of_the_examples_is_claimed_or_left_out_with_a_reason() -> None:
    for name in goldens.PROFILES:
        profile = goldens.profile(name)
        there = {c.name for c in all_claims(profile)} | {one.name for one in left_out(profile)}
        wanted = {f"egress/{n}" for n, net in profile.networks.items() if net.egress != "none"}
        wanted |= {f"check/{n}" for n in profile.pools if n not in watched_alone(profile)} | {
            f"firewall/{n}" for n in profile.networks
        }
        assert not wanted - there
        assert "failover" in there or "failover/power-off" in there
        assert all(one.reason for one in left_out(profile))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (NO_GATEWAYS, "no VIP of role gateway"),
        (((', gateway: [203.0.113.1, "2001:db8:113::1"]', ""),), "no other network has a default gateway"),
        (
            (
                (', gateway: [203.0.113.1, "2001:db8:113::1"]', ", gateway: 203.0.113.1"),
                ('[192.168.0.1, "fe80::1"]', '"fe80::1"'),
            ),
            "no IP version in common",
        ),
    ],
)
def test_a_way_out_that_cannot_be_tried_says_why(changes: tuple[tuple[str, str], ...], words: str) -> None:
    profile = router(*changes)
    assert words in no_way(profile, "lan")
    assert words in {one.name: one.reason for one in left_out(profile)}["egress/lan"]


# -- pools that nobody balances ----------------------------------------------------------------------------------------


def test_a_pool_that_only_demote_on_uses_is_pinged_at_its_checks_pace() -> None:
    profile = router()
    watched_pool = pair(NodeView(profile, "lb1")).pools[0]
    assert (watched_pool.interval_s, watched_pool.timeout_s, watched_pool.fall, watched_pool.rise) == (2, 3, 2, 2)
    assert [str(a) for a in watched_pool.pinged] == ["203.0.113.1", "2001:db8:113::1"]
    assert (watched_pool.backends, watched_pool.ipvs_pattern, watched_pool.user) == ((), "", "root")
    fault = next(f for f in faults(profile) if f.name == "empty/uplink")
    assert (fault.moves, fault.notice_s) == (True, 9)
    assert "check/uplink" not in {one.name for one in left_out(profile)}


def test_one_with_a_script_is_asked_by_that_script_as_nobody(tmp_path: Path) -> None:
    (tmp_path / "ask.sh").write_text("#!/bin/sh\nexit 0\n")
    change = (
        "{type: ping, interval_s: 1.5, timeout_s: 1, fall: 2}",
        "{type: script, script: ask.sh, arguments: [a b]}",
    )
    tree = render(goldens.parse(ROUTER.replace(*change), tmp_path), "lb1", goldens.TEMPLATES)
    asked = "/usr/libexec/ndakit/check-script uplink 203.0.113.1 0 >/dev/null 2>&1 && exit 0"
    assert asked in tree["/usr/libexec/ndakit/pool-alive"].text
    assert "script-uplink \"$@\" 'a b'" in tree["/usr/libexec/ndakit/check-script"].text
    assert tree["/usr/libexec/ndakit/script-uplink"].mode & 0o111
    assert "\tuser nobody\n" in tree["/etc/keepalived/keepalived.conf"].text
    assert "virtual_server" not in tree["/etc/keepalived/keepalived.conf"].text
