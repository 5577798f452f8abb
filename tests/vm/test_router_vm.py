"""A pair that only routes, with a heartbeat on a cable of its own, a bond inside, an uplink without VIPs, and a network
for administrators: each cable does what the profile says, and two live nodes are never both master while they hear
each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import planted
from pairs import Pair, new_key, running

pytestmark = pytest.mark.timed

PROFILE = """\
name: router
release: 24.10.8
access:
  ssh_keys: {{admin: {key}}}
  sources: {{noc: 10.99.0.128/25}}
networks:
  wan:
    nics: [eth0]
    subnet: [203.0.113.0/24, "2001:db8:113::/64"]
    gateway: [203.0.113.1, "2001:db8:113::1"]
    dns: [203.0.113.1]
  lan:
    nics: [eth1, eth2]
    bond: {{mode: active-backup}}
    subnet: [192.168.0.0/24, "fd00:0:0:1::/64"]
    egress: node
  iot: {{nics: [eth3], subnet: [192.168.1.0/24, "fd00:0:0:2::/64"], egress: node}}
  hb: {{nics: [eth4], subnet: 172.31.255.0/30, role: heartbeat}}
  mgmt: {{nics: [eth5], subnet: 10.99.0.0/24}}
nodes:
  lb1:
    addresses:
      wan: [203.0.113.11, "2001:db8:113::11"]
      lan: [192.168.0.11, "fd00:0:0:1::11"]
      iot: [192.168.1.11, "fd00:0:0:2::11"]
      hb: 172.31.255.1
      mgmt: 10.99.0.11
  lb2:
    addresses:
      wan: [203.0.113.12, "2001:db8:113::12"]
      lan: [192.168.0.12, "fd00:0:0:1::12"]
      iot: [192.168.1.12, "fd00:0:0:2::12"]
      hb: 172.31.255.2
      mgmt: 10.99.0.12
vips:
  lan-gw: {{network: lan, address: [192.168.0.1, "fe80::1"], role: gateway}}
  iot-gw: {{network: iot, address: [192.168.1.1, "fe80::1"], role: gateway}}
vrrp: {{prefer: lb1, preempt: true, preempt_delay_s: 1, advert_interval_s: 0.5, demote_on: [uplink]}}
pools:
  uplink:
    check: {{type: ping, interval_s: 1, timeout_s: 1, fall: 2}}
    servers: {{router: [203.0.113.1, "2001:db8:113::1"]}}
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("router")
    public, private = new_key(folder)
    with running(folder, "router", PROFILE.format(key=public), identity=private) as booted:
        yield booted


HARMLESS = (
    *("identity/lb1", "identity/lb2", "addresses/lb1", "addresses/lb2", "daemons/lb1", "daemons/lb2"),
    *("vrrp/lb1", "vrrp/lb2", "ssh/lb1", "ssh/lb2", "vips/one-holder"),
    *("firewall/wan", "firewall/lan", "egress/lan", "firewall/iot", "egress/iot", "firewall/mgmt"),
)
CABLES = ("wan", "lan/each", "lan", "iot", "hb", "mgmt")
FAULTS = ("empty/uplink", "heard", "cables", "frozen", "keepalived-killed", "cut-off", "not-heard")
STAYS = ("lan/each", "hb", "mgmt")


@pytest.mark.parametrize("name", HARMLESS)
def test_the_claim_holds(pair: Pair, name: str) -> None:
    outcome = pair.outcome(name)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


@pytest.mark.parametrize("name", CABLES)
def test_each_cable_does_what_the_profile_says(pair: Pair, name: str) -> None:
    outcome = pair.outcome(f"failover/cable/{name}")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"
    assert ("stays on lb1" if name in STAYS else "then lb2") in outcome.figure


@pytest.mark.parametrize("name", FAULTS)
def test_whatever_happens_there_is_one_master_while_the_nodes_hear_each_other(pair: Pair, name: str) -> None:
    outcome = pair.outcome(f"failover/{name}")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


# -- each of these fails when its fact is broken -----------------------------------------------------------------------


KEEPALIVED = "/etc/keepalived/keepalived.conf"


def edited(script: str) -> tuple[str, str]:
    """The commands that edit keepalived's file and put it back. It reads it anew without giving the VIPs away."""
    anew = "/etc/init.d/keepalived reload"
    edit = f"cp {KEEPALIVED} /tmp/right.conf && sed -i '{script}' {KEEPALIVED} && ! cmp -s {KEEPALIVED} /tmp/right.conf"
    return f"{edit} && {anew}", f"cp /tmp/right.conf {KEEPALIVED} && {anew}"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "heard",
            ("nft insert rule inet fw4 input iifname eth4 drop", "fw4 restart"),
            "lb2 became master, and nothing should have moved",
        ),
        ("cable/hb", edited("/dont_track_primary/d"), "lb2 became master, and nothing should have moved"),
        ("cable/wan", edited("/track_interface/,/}/d"), "no other node became master"),
    ],
    ids=["deaf", "heartbeat-watched", "uplink-not-watched"],
)
def test_what_the_pair_would_do_without_it_is_found_out(
    pair: Pair, name: str, change: tuple[str, str], words: str
) -> None:
    lab = pair.lab
    if name == "heard":
        planting = planted.on_backup(lab, "lb2", *change)
    elif name == "cable/wan":  # whoever is master at the end, for the cable comes back before that
        planting = planted.on_every_node(lab, *change)
    else:
        planting = planted.on_master(lab, "lb1", *change)
    with planting:
        outcome = pair.outcome(f"failover/{name}")
    assert not outcome.ok
    assert words in outcome.detail


@pytest.mark.parametrize("name", ["power-off", "return"])
def test_a_dead_node_is_replaced_although_the_heartbeat_loses_its_link_with_it(pair: Pair, name: str) -> None:
    outcome = pair.outcome(f"failover/{name}")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


@pytest.mark.parametrize("node", ["lb1", "lb2"])
def test_no_alarm_in_the_logs_at_the_end(pair: Pair, node: str) -> None:
    outcome = pair.outcome(f"quiet/{node}")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"
