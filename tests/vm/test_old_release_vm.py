"""A pair of 19.07: fw3, tproxy by firewall.user, and a keepalived that cannot see through how many routers an advert
came; the firewall does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import planted
from pairs import Pair, running

pytestmark = pytest.mark.timed

KEY = (
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCNq6vM0qLxcTCDn34ZUe3C97FF4nKEieBF4A2neHevAoKNRtxZExq+7DDWYA5s3qkZOsO3p3SwLK"
    "r2XcIMBu81X884i90qNevAxe6NeUsiAw4fC24p/jHsUW5hZS1wvEoaPK8jJPokgjFR9XSVLPai6zaCqw0x1U4mCz4NJd1TtSOqyMjd7essk4cOlIsJ"
    "Mc9xu9f2f3CHHHiHdYSG5aBNu0UzPoUh+YQDM90ULkYcIK2uSQ3iJG9QjYMDjNnM2Mkl7sCMaB2UWbxxjIM+s8D3VcW1JhPUz1TiUUwqKW/cBYv/AV"
    "9bbAIHOlJJGRp8H8cAIRpJvfauZlIWznXFEPdL admin"
)
PROFILE = f"""\
name: old
release: 19.07.10
image: {{firmware: bios}}
access: {{ssh_keys: {{admin: {KEY}}}, sources: {{office: 192.168.5.0/25}}}}
networks:
  lan: {{nics: [eth0], subnet: [192.168.5.0/24, "2001:db8:5::/64"], gateway: [192.168.5.1, "2001:db8:5::1"]}}
system: {{ntp: []}}
nodes:
  lb1: {{addresses: {{lan: [192.168.5.11, "2001:db8:5::11"]}}}}
  lb2: {{addresses: {{lan: [192.168.5.12, "2001:db8:5::12"]}}}}
vips:
  www: {{network: lan, address: 192.168.5.10}}
  six: {{network: lan, address: "2001:db8:5::10", group: six}}
  gw: {{network: lan, address: 192.168.5.9, role: gateway}}
  gw6: {{network: lan, address: "2001:db8:5::9", role: gateway, group: six}}
pools:
  web: {{port: 80, check: {{type: tcp, interval_s: 1}}, servers: {{web1: [192.168.5.21, "2001:db8:5::21"]}}}}
  live: {{port: 1935, check: {{type: tcp, interval_s: 1}}, servers: {{str1: [192.168.5.31, "2001:db8:5::31"]}}}}
services:
  web: {{vip: [www, six], port: 80, protocol: http, pool: web}}
  live: {{vip: www, port: 1935, topology: tproxy, protocol: tcp, pool: live}}
  live6: {{vip: six, port: 1935, topology: tproxy, protocol: tcp, pool: live}}
"""
CLAIMS = ("daemons/lb1", "daemons/lb2", "vrrp/lb1", "vrrp/lb2", "vips/one-holder", "service/web", "vrrp/forged",
          "divert/lb1", "divert/lb2", "client-address/live", "way-back/live", "client-address/live6", "way-back/live6",
          "servers/live")  # fmt: skip


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with running(tmp_path_factory.mktemp("old"), "old", PROFILE) as booted:
        yield booted


@pytest.mark.parametrize("name", CLAIMS)
def test_the_claim_holds(old: Pair, name: str) -> None:
    outcome = old.outcome(name)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


@pytest.mark.parametrize(("program", "instance"), [("iptables", "lan-main"), ("ip6tables", "lan-six")])
def test_a_firewall_that_does_not_look_at_the_ttl_is_found_out(old: Pair, program: str, instance: str) -> None:
    rule = "INPUT -p 112 -j ACCEPT"
    with planted.on_every_node(old.lab, f"{program} -w -I {rule}", f"{program} -w -D {rule}"):
        outcome = old.outcome("vrrp/forged")
    assert not outcome.ok, outcome.figure
    assert outcome.detail in (f"{node} gave the VIPs of {instance} up" for node in ("lb1", "lb2"))


def test_a_node_without_the_divert_rule_is_named_and_a_reload_of_fw3_brings_it_back_once(old: Pair) -> None:
    lab, programs = old.lab, ("iptables", "ip6tables")
    breaking = "; ".join(f"{program} -w -t mangle -F PREROUTING" for program in programs)
    with planted.on_every_node(lab, breaking, "/etc/init.d/firewall reload; /etc/init.d/firewall reload"):
        outcomes = [old.outcome(f"client-address/{name}") for name in ("live", "live6")]
    for node in ("lb1", "lb2"):
        for program in programs:
            jumps = lab.run(node, f"{program} -w -t mangle -S PREROUTING | grep -c transparent")
            assert jumps.strip() == "1"
    for outcome in outcomes:
        assert not outcome.ok
        assert "has no DIVERT rule" in outcome.detail
    assert old.outcome("client-address/live").ok
    assert old.outcome("client-address/live6").ok


def test_adverts_of_ipv6_leave_as_if_from_a_neighbour(old: Pair) -> None:
    for node in ("lb1", "lb2"):
        assert old.lab.run(node, "cat /proc/sys/net/ipv6/conf/eth0/hop_limit").strip() == "255"
