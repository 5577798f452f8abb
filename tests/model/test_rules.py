"""What the cross-checks leave alone; what they find is in the corpus (invalid/, valid/)."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ndakit.core.release import Release
from ndakit.model import Profile, rules
from ndakit.model.rules import release as rules_release
from ndakit.model.rules.findings import Finding
from places import DATA

BASE = (DATA / "valid/full.yaml").read_text()


def right() -> Profile:
    return Profile.model_validate(
        yaml.load(BASE, Loader=yaml.BaseLoader), context={"attach": lambda _: b"<p>sorry</p>"}
    )


def codes(*changes: tuple[str, str]) -> set[str]:
    text = BASE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    data: Any = yaml.load(text, Loader=yaml.BaseLoader)
    return {f.code for f in rules.findings(Profile.model_validate(data, context={"attach": lambda _: b"<p>sorry</p>"}))}


SERVICE = "web: {vip: www, port: 80, protocol: http, pool: web}"


def test_a_profile_that_is_right_gives_no_finding() -> None:
    assert codes() == set()


GOOD: dict[str, list[tuple[str, str]]] = {
    "a link-local gateway": [('"2001:db8:0:1::1"]', '"fe80::1"]')],
    "a wider subnet": [("subnet: 192.168.0.0/24", "subnet: 192.168.0.0/22")],
    "a server behind the default gateway": [("web1: 192.168.0.21", "web1: 10.1.2.3")],
    "administrators behind the default gateway": [("noc: 203.0.113.128/25", "vpn: 10.0.0.0/8")],
    "one family of a VIP": [
        (SERVICE, f"{SERVICE}\n  v6: {{vip: www, families: [ipv6], port: 81, protocol: http, pool: web}}"),
        ("{check: http", "{port: 80, check: http"),
    ],
    "one port in two families": [
        (
            SERVICE,
            "web: {vip: www, families: [ipv4], port: 80, protocol: http, pool: web}\n"
            "  v6: {vip: www, families: [ipv6], port: 80, protocol: http, pool: web}",
        )
    ],
    "a tagged and an untagged network on one card": [("nics: [eth1]", "nics: [eth0], vlan: 10")],
    "VLANs on one bond": [
        ("nics: [eth0],", "nics: [eth0, eth1], bond: {mode: 802.3ad},"),
        ("nics: [eth1]", "nics: [eth1, eth0], bond: {mode: 802.3ad}, vlan: 10"),
    ],
    "VLANs on one bridge": [
        ("nics: [eth0],", "nics: [eth0, eth1], bridge: {stp: true}, vlan: 9,"),
        ("nics: [eth1]", "nics: [eth0, eth1], bridge: {stp: true}, vlan: 10"),
    ],
    "a bridge of one card": [("nics: [eth1]", "nics: [eth1], bridge: true")],
    "routed VIPs outside": [
        ('address: [203.0.113.10, "2001:db8:0:1::10"]', 'routed: true, address: [198.51.100.10, "2001:db8:9::10"]')
    ],
    "two ports of one server": [("web2: 192.168.0.22", "web2: {address: 192.168.0.21, port: 8080}")],
    "one server drained": [("web1: 192.168.0.21", "web1: {address: 192.168.0.21, weight: 0}")],
    "an IPv6 server behind an IPv4 VIP": [("web1: 192.168.0.21", 'web1: "2001:db8:0:1::21"')],
    "two routes with metrics": [
        (
            "egress: www",
            "egress: www, routes: [{to: 10.0.0.0/8, via: 192.168.0.254}, "
            "{to: 10.0.0.0/8, via: 192.168.0.253, metric: 9}]",
        )
    ],
}


@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD.keys())
def test_what_works_is_left_alone(changes: list[tuple[str, str]]) -> None:
    assert codes(*changes) == set()


@pytest.mark.parametrize(
    ("kind", "release", "taken"),
    [("ssh-ed25519", "19.07.10", False), ("ssh-ed25519", "21.02.7", True), ("ssh-rsa", "18.06.9", True),
     ("ecdsa-sha2-nistp256", "25.12.5", False), ("sk-ecdsa-sha2-nistp256@openssh.com", "25.12.5", False)],
)  # fmt: skip
def test_a_key_that_the_release_does_not_take_is_an_error_naming_it(kind: str, release: str, taken: bool) -> None:
    profile = right()
    access = profile.access.model_copy(update={"ssh_keys": {"me": f"{kind} AAAA me"}})
    findings = rules_release.ssh_keys(profile.model_copy(update={"access": access, "release": Release.parse(release)}))
    assert [f.at for f in findings] == ([] if taken else [("access", "ssh_keys", "me")])


def test_every_release_rule_names_the_release_as_the_other_side() -> None:
    text = (DATA / "invalid/links-of-release.yaml").read_text()
    profile = Profile.model_validate(yaml.load(text, yaml.BaseLoader))
    findings = [f for f in rules.findings(profile) if f.code.endswith("-of-release")]
    assert len(findings) == 5
    assert {f.other for f in findings} == {("release",)}


def test_an_egress_that_asks_for_no_ipv6_is_left_alone_on_fw3() -> None:
    old = ("release: 24.10.8", "release: 21.02.7")
    six = ("subnet: 192.168.0.0/24", 'subnet: [192.168.0.0/24, "fd00::/64"]')
    assert "egress-of-release" in codes(old, six)
    assert "egress-of-release" not in codes(
        old, six, ('address: [203.0.113.10, "2001:db8:0:1::10"]', "address: 203.0.113.10")
    )
    assert "egress-of-release" not in codes(old)


def test_a_slash_31_has_neither_network_nor_broadcast_address() -> None:
    text = BASE.replace("subnet: 192.168.0.0/24", "subnet: 192.168.0.10/31").replace(
        "lan: 192.168.0.12", "lan: 192.168.0.10"
    )
    data = yaml.load(text, Loader=yaml.BaseLoader)
    data["vips"].pop("lan-gw")
    codes = {f.code for f in rules.findings(Profile.model_validate(data))}
    assert "address-of-subnet" not in codes
    assert "node-outside-subnet" not in codes


def test_every_finding_knows_the_places_it_depends_on() -> None:
    finding = Finding("x", "error", "x", ("a",), "x", other=("b", 1), also=(("c",),))
    assert finding.about == (("a",), ("b", 1), ("c",))


def test_findings_are_the_same_every_time() -> None:
    data = yaml.load(BASE.replace("192.168.0.12", "192.168.0.11"), Loader=yaml.BaseLoader)
    profile = Profile.model_validate(data)
    assert list(rules.findings(profile)) == list(rules.findings(profile))


PORTS = (SERVICE, "web: {vip: www, port: [21, 20000-39999], topology: nat, protocol: tcp, pool: web}")
PLAIN = ("{check: http", "{check: {type: tcp, port: 21}")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([PORTS, PLAIN], True),
        ([(SERVICE, PORTS[1].replace("[21, 20000-39999]", "21")), PLAIN], False),
        ([PORTS, (PLAIN[0], f"{PLAIN[1]}, balance: source")], False),
        ([PORTS, (PLAIN[0], f"{PLAIN[1]}, balance: leastconn")], True),
        ([(SERVICE, PORTS[1].replace("pool: web", "pool: web, persistence: {type: source}")), PLAIN], False),
        ([PORTS, (PLAIN[0], f"{PLAIN[1]}, persistence: {{type: source}}")], False),
        ([(SERVICE, PORTS[1].replace("topology: nat, protocol: tcp", "topology: nat, protocol: udp")), PLAIN], False),
        ([(SERVICE, PORTS[1].replace("20000-39999], topology: nat", "20000-20010]")), PLAIN], False),
    ],
    ids=["several", "one", "source", "leastconn", "persistence", "pool-persistence", "udp", "proxy"],
)
def test_several_tcp_ports_of_the_kernel_without_one_server_are_told(
    changes: list[tuple[str, str]], told: bool
) -> None:
    assert ("ports-apart" in codes(*changes)) is told


@pytest.mark.parametrize(
    ("vrrp", "told"),
    [
        ("preempt: true, connection_sync: true", True),
        ("preempt: true, connection_sync: true, preempt_delay_s: 4", False),
        ("preempt: false, connection_sync: true", False),
        ("preempt: true", False),
    ],
)
def test_a_router_that_returns_at_once_has_not_heard_of_the_connections(vrrp: str, told: bool) -> None:
    text = yaml.load(BASE, Loader=yaml.BaseLoader)
    text["vrrp"] = yaml.load(f"{{{vrrp}}}", Loader=yaml.BaseLoader)
    for key in ("services", "pools", "sizing"):
        text.pop(key, None)
    profile = Profile.model_validate(text, context={"attach": lambda _: b"x"})
    assert profile.egress_groups
    assert ("back-before-told" in {f.code for f in rules.findings(profile)}) is told


@pytest.mark.parametrize(
    ("release", "known"),
    [
        ("19.07.10", True), ("19.07.99", False), ("18.06.9", True), ("20.02.1", False), ("24.10.0-rc2", True),
        ("24.10.99", True), ("26.10.1", True), ("23.05.7", False), ("99.99.1", False), ("26.00.1", False),
    ],
)  # fmt: skip
def test_a_release_that_was_never_made_is_told(release: str, known: bool) -> None:
    assert (Release.parse(release).missing == "") is known


@pytest.mark.parametrize(("pools", "told"), [
    ('{uplink: {check: ping, servers: {router: [192.168.0.2, "2001:db8:0:1::2"]}}}', True),
    ('{uplink: {check: ping, servers: {a: 192.168.0.2, b: "2001:db8:0:1::2"}}}', True),
    ('{uplink: {check: ping, servers: {a: 192.168.0.2, b: 192.168.0.3}}}', False),
    ('{uplink: {check: ping, servers: {a: 192.168.0.2}}, six: {check: ping, servers: {a: "2001:db8:0:1::2"}}}', False),
])  # fmt: skip
def test_a_watched_pool_of_both_families_is_told(pools: str, told: bool) -> None:
    text = yaml.load(BASE, Loader=yaml.BaseLoader)
    text.pop("services")
    text["pools"] = yaml.load(pools, Loader=yaml.BaseLoader)
    text["vrrp"] = {"preempt": "true", "demote_on": [*text["pools"]]}
    profile = Profile.model_validate(text, context={"attach": lambda _: b"x"})
    assert ("demote-either-family" in {f.code for f in rules.findings(profile)}) is told
