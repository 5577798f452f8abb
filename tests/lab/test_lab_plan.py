"""The lab that a profile needs: everybody has a vantage point, no addresses collide, strangers are outside."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

import goldens
from ndakit.lab.plan import LabPlan, PlannedHost, VantagePoint, plan
from ndakit.model import Address, Profile, rules

HEAD = """\
name: made
release: 24.10.8
access:
  ssh_keys: {me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}
"""


def made(text: str) -> Profile:
    """A profile of this test; its mistakes would be the test's."""
    profile = goldens.parse(HEAD + text)
    assert [f.what for f in rules.findings(profile) if f.severity == "error"] == []
    return profile


def one_net(sources: str, subnet: str, more: str, nodes: str, rest: str = "") -> Profile:
    """One network called lan, with nodes a and b."""
    a, b = nodes.split()
    return made(
        f"  sources: {{{sources}}}\n"
        f"networks: {{lan: {{nics: [eth0], subnet: {subnet}{more}}}}}\n"
        f"nodes: {{a: {{addresses: {{lan: {a}}}}}, b: {{addresses: {{lan: {b}}}}}}}\n{rest}"
    )


MADE: dict[str, Profile] = {
    "far admins, and routes without a gateway": one_net(
        'ops: [10.0.0.0/8, "fd99::/48"], host: 10.20.3.4/32', '[192.168.0.0/24, "fd00::/64"]',
        ', routes: [{to: 10.20.0.0/16, via: 192.168.0.253}, {to: "fd99::/32", via: "fe80::9"}]',
        '[192.168.0.1,"fd00::1"] [192.168.0.2,"fd00::2"]',
    ),
    "a source of one address": one_net(
        "desk: 192.168.0.250/32", "192.168.0.0/24", ", gateway: 192.168.0.254", "192.168.0.1 192.168.0.2"
    ),
    "a source that takes the end of a wide subnet": one_net(
        "ops: 10.128.0.0/9", "10.0.0.0/8", "", "10.0.0.1 10.0.0.2"
    ),
    "a link-local gateway": one_net(
        'ops: "2001:db8:5::/64"', '"2001:db8::/64"', ', gateway: "fe80::1"', '"2001:db8::11" "2001:db8::12"'
    ),
    "full /30": made(
        """\
  sources: {ops: 192.168.0.0/30}
networks: {lan: {nics: [eth0], subnet: 192.168.0.0/30, gateway: 192.168.0.1}}
nodes: {a: {addresses: {lan: 192.168.0.2}}}
"""
    ),
    "full /30, no gateway": made(
        """\
  sources: {ops: 192.168.0.0/30}
networks: {lan: {nics: [eth0], subnet: 192.168.0.0/30}}
nodes: {a: {addresses: {lan: 192.168.0.2}}}
pools: {web: {port: 80, servers: {w1: 192.168.0.1}}}
"""
    ),
    "full /31": made(
        """\
  sources: {ops: 198.51.100.0/24}
networks: {up: {nics: [eth0], subnet: 192.168.0.0/31, gateway: 192.168.0.0}}
nodes: {a: {addresses: {up: 192.168.0.1}}}
"""
    ),
    "the far ranges are the profile's own": one_net(
        "ops: 198.18.0.0/24", "198.18.0.0/24", ", gateway: 198.18.0.1", "198.18.0.80 198.18.0.66"
    ),
    "everybody is an admin": one_net(
        'all: [0.0.0.0/0, "::/0"]', '[192.168.0.0/24, "fd00::/64"]', ', gateway: [192.168.0.254, "fd00::fe"]',
        '[192.168.0.1,"fd00::1"] [192.168.0.2,"fd00::2"]',
    ),
    "servers in all places": one_net(
        "ops: 192.168.0.0/24", '[192.168.0.0/24, "fd00::/64"]',
        ", gateway: 192.168.0.254, routes: [{to: 10.0.0.0/8, via: 192.168.0.253, metric: 9}, "
        "{to: 10.0.0.0/8, via: 192.168.0.252, metric: 1}]",
        '[192.168.0.1,"fd00::1"] [192.168.0.2,"fd00::2"]',
        """\
vips: {www: {network: lan, address: 192.168.0.10}}
pools:
  near: {port: 80, servers: {w1: 192.168.0.21, w2: [192.168.0.22, "fd00::22"]}}
  same: {port: 81, servers: {w1: [192.168.0.21, "fd00::21"], gate: 192.168.0.254}}
  far: {port: 82, servers: {f1: 10.1.1.1, f2: 172.16.1.1}}
services:
  near: {vip: www, port: 80, protocol: http, pool: near}
  same: {vip: www, port: 81, protocol: http, pool: same}
  far: {vip: www, port: 82, protocol: tcp, pool: far}
""",
    ),
    "one link-local address on two networks": made(
        """\
  sources: {ops: "fd00:1::/64"}
networks:
  one: {nics: [eth0], subnet: "fd00:1::/64", gateway: "fe80::1"}
  two: {nics: [eth1], subnet: "fd00:2::/64", routes: [{to: "fd00:9::/64", via: "fe80::1"}]}
nodes: {a: {addresses: {one: "fd00:1::a", two: "fd00:2::a"}}}
pools: {p: {port: 80, servers: {far: "fd00:9::9"}}}
"""
    ),
    "a gap in the cards": made(
        """\
  sources: {ops: 192.168.0.0/24}
networks: {lan: {nics: [eth2], subnet: 192.168.0.0/24}}
nodes: {a: {addresses: {lan: 192.168.0.1}}}
"""
    ),
}  # fmt: skip
ALL = {**{n: goldens.profile(n) for n in goldens.PROFILES}, **MADE}

every = pytest.mark.parametrize("profile", ALL.values(), ids=ALL.keys())


def own(host: PlannedHost) -> tuple[Address, ...]:
    return tuple(i.address for i in host.addresses)


def points(lab: LabPlan) -> list[tuple[str, str, tuple[Address, ...]]]:
    """(kind and name, host, addresses) of every point."""
    tables: dict[str, Mapping[Any, VantagePoint]] = {
        "server": lab.servers,
        "client": lab.clients,
        "admin": lab.admins,
        "stranger": lab.strangers,
        "outside": lab.outside,
    }
    return [(f"{k} {n}", s.host, s.addresses) for k, t in tables.items() for n, s in t.items()]


def is_admin(profile: Profile, address: Address) -> bool:
    return any(address in s for s in profile.sources(address.version))


@every
def test_every_server_has_a_seat_at_its_address_with_its_port(profile: Profile) -> None:
    lab = plan(profile)
    for pool, its in profile.pools.items():
        for name, server in its.servers.items():
            point = lab.servers[(pool, name)]
            assert server.address[0] in point.addresses
            port = profile.server_port(pool, server)
            assert port is None or port in {p.number for p in lab.hosts[point.host].ports}


@every
def test_every_seat_is_at_addresses_that_its_host_has(profile: Profile) -> None:
    lab = plan(profile)
    for what, host, addresses in points(lab):
        assert addresses, what
        assert {*addresses} <= {*own(lab.hosts[host]), *lab.hosts[host].behind}, what


@every
def test_nobody_has_an_address_or_a_mac_twice(profile: Profile) -> None:
    lab = plan(profile)
    ours = [a for node in profile.nodes.values() for its in node.addresses.values() for a in its]
    node = {*ours} if profile.standalone else set()  # whose own address a VIP may be
    ours += [a for vip in profile.vips.values() for a in vip.address if not a.is_link_local and a not in node]
    theirs = [a for host in lab.hosts.values() for a in (*own(host), *host.behind) if not a.is_link_local]
    assert len({*ours, *theirs}) == len(ours) + len(theirs)
    local = [(host.network, a) for host in lab.hosts.values() for a in own(host) if a.is_link_local]
    local += [(vip.network, a) for vip in profile.vips.values() for a in vip.address if a.is_link_local]
    assert len({*local}) == len(local)
    macs = [h.mac for h in lab.hosts.values()] + [nic.mac for nics in lab.balancers.values() for nic in nics]
    assert len({*macs}) == len(macs)


@every
def test_nobody_sits_where_the_profile_has_somebody_else(profile: Profile) -> None:
    """Name servers, time servers, gateways and servers are whom the profile says."""
    lab = plan(profile)
    dns = {a for net in profile.networks.values() for a in net.dns}
    gateways = {g for net in profile.networks.values() for g in (*(net.gateway or ()), *(r.via for r in net.routes))}
    for host in lab.hosts.values():
        if host.role in ("client", "admin", "stranger"):
            assert not {*own(host)} & (dns | gateways)
            assert not {str(a) for a in own(host)} & {*profile.system.ntp}


@every
def test_hosts_sit_in_their_networks_on_addresses_that_a_host_can_have(profile: Profile) -> None:
    for host in plan(profile).hosts.values():
        for interface in host.addresses:
            if interface.address.is_link_local:
                continue
            if interface.prefix == interface.address.max_prefixlen:
                continue  # far away, behind a router
            subnet = profile.networks[host.network].subnet_of(interface.address.version)
            assert subnet is not None
            assert interface.address in subnet
            assert interface.prefix == subnet.prefixlen
            if subnet.prefixlen < subnet.max_prefixlen - 1:
                assert interface.address != subnet.network_address
                assert subnet.version == 6 or interface.address != subnet.broadcast_address
        assert not any(a in s for a in host.behind for net in profile.networks.values() for s in net.subnet)


@every
def test_hosts_have_only_gateways_that_their_addresses_reach(profile: Profile) -> None:
    """A default route of a family without an address on the link is refused by the kernel."""
    for host in plan(profile).hosts.values():
        for hop in (*host.gateways, *(via for _, via in host.routes)):
            assert hop not in own(host)
            near = [i for i in host.addresses if i.address.version == hop.version]
            on_link = any(hop in ip_network(str(i), strict=False) for i in near)
            far = any(i.prefix == i.address.max_prefixlen for i in near)  # its router is on the link all the same
            assert near
            assert on_link or hop.is_link_local or far


@every
def test_an_admin_sits_inside_each_source(profile: Profile) -> None:
    lab = plan(profile)
    for source, subnets in profile.access.sources.items():
        for subnet in subnets:
            point = lab.admins[source if len(subnets) == 1 else f"{source} {subnet}"]
            assert all(a in subnet for a in point.addresses)
            near = next((n for n, net in profile.networks.items() if point.addresses[0] in [*net.subnet]), None)
            assert near is None or lab.hosts[point.host].network == near


@every
def test_strangers_are_in_no_source(profile: Profile) -> None:
    lab = plan(profile)
    assert not [a for point in lab.strangers.values() for a in point.addresses if is_admin(profile, a)]


@every
def test_gateways_and_routers_own_their_addresses_on_their_networks(profile: Profile) -> None:
    lab = plan(profile)
    for name, net in profile.networks.items():
        for gateway in (*(net.gateway or ()), *(r.via for r in net.routes)):
            owners = [h for h in lab.hosts.values() if gateway in own(h) and h.network == name]
            assert [h.role for h in owners] == ["router"]
            if gateway.is_link_local:
                # It could not answer the nodes' global addresses from a link-local one alone.
                assert any(a.version == 6 and not a.is_link_local for a in own(owners[0]))


@every
def test_the_far_side_of_a_gateway_is_behind_one_router_for_both_families(profile: Profile) -> None:
    lab = plan(profile)
    for name, net in profile.networks.items():
        assert (name in lab.outside) == bool(net.gateway)
        if net.gateway:
            router = lab.hosts[lab.outside[name].host]
            assert {*net.gateway} <= {*own(router)}
            assert [a.version for a in lab.outside[name].addresses] == [g.version for g in net.gateway]
            assert {*lab.outside[name].addresses} <= {*router.behind}


@every
def test_there_is_a_client_wherever_a_service_listens(profile: Profile) -> None:
    lab = plan(profile)
    for name in profile.services:
        for endpoint in profile.endpoints(name):
            assert lab.clients[endpoint.network].address(endpoint.address.version) is not None


@every
def test_segments_follow_the_first_cards_and_hosts_wear_their_networks_tag(profile: Profile) -> None:
    lab = plan(profile)
    for host in lab.hosts.values():
        net = profile.networks[host.network]
        assert host.segment in net.nics
        assert host.segment in lab.segments
        assert host.vlan == net.vlan
        for nics in lab.balancers.values():
            plugged = {nic.name: nic.segment for nic in nics}
            assert plugged[host.segment] == host.segment
            if net.bridge is not None:
                assert [plugged[n] for n in net.nics].count(None) == len(net.nics) - 1
            if net.bond is not None:
                assert {plugged[n] for n in net.nics} == {host.segment}


@every
def test_the_plan_is_the_same_twice(profile: Profile) -> None:
    again = Profile.model_validate(profile.model_dump(exclude_unset=True), context={"attach": goldens.attachment})
    assert plan(profile) == plan(profile) == plan(again)


def test_a_source_far_away_is_behind_the_router_that_leads_there() -> None:
    lab = plan(MADE["far admins, and routes without a gateway"])
    assert lab.admins["ops 10.0.0.0/8"].address(4) in ip_network("10.20.0.0/16")
    assert lab.admins["ops fd99::/48"].address(6) in ip_network("fd99::/48")
    assert {ip_address("fe80::9")} < {*own(lab.hosts[lab.admins["ops fd99::/48"].host])}
    assert lab.admins["host"].addresses == (ip_address("10.20.3.4"),)
    assert lab.hosts[lab.admins["host"].host].addresses[0].address == ip_address("192.168.0.253")


def test_a_source_of_one_address_on_a_network_is_sat_in_there() -> None:
    lab = plan(MADE["a source of one address"])
    assert own(lab.hosts[lab.admins["desk"].host]) == (ip_address("192.168.0.250"),)
    assert lab.clients["lan"].addresses != lab.admins["desk"].addresses


def test_a_stranger_is_found_however_far_the_sources_reach() -> None:
    lab = plan(MADE["a source that takes the end of a wide subnet"])
    assert lab.strangers["lan"].addresses == (ip_address("10.127.255.255"),)


def test_where_everybody_is_an_admin_there_is_no_stranger() -> None:
    assert plan(MADE["everybody is an admin"]).strangers == {}


def test_strangers_of_a_family_without_room_on_the_network_are_behind_its_gateway() -> None:
    lab = plan(ALL["trunk"])
    assert [a.version for a in lab.strangers["outside"].addresses] == [6]
    assert [a.version for a in lab.strangers["outside, from afar"].addresses] == [4]
    assert lab.hosts[lab.strangers["outside, from afar"].host].role == "router"


def test_in_a_full_subnet_the_gateway_is_the_admin_and_clients_come_through_it() -> None:
    lab = plan(MADE["full /30"])
    assert [h.name for h in lab.hosts.values()] == ["router-lan"]
    assert lab.admins["ops"].addresses == (ip_address("192.168.0.1"),)
    assert lab.clients["lan"].addresses == lab.strangers["lan"].addresses
    assert lab.clients["lan"].addresses[0] not in ip_network("192.168.0.0/30")


def test_in_a_full_subnet_without_a_gateway_a_server_plays_admin_and_client() -> None:
    lab = plan(MADE["full /30, no gateway"])
    assert lab.admins["ops"].host == lab.clients["lan"].host == "w1"
    assert lab.strangers == {}


def test_both_addresses_of_a_slash_31_are_hosts() -> None:
    lab = plan(MADE["full /31"])
    assert own(lab.hosts["router-up"]) == (ip_address("192.168.0.0"),)
    assert lab.admins["ops"].host == lab.clients["up"].host == "router-up"


def test_the_far_side_is_never_an_address_of_the_profile() -> None:
    profile = MADE["the far ranges are the profile's own"]
    assert not [a for a in plan(profile).outside["lan"].addresses if a in profile.networks["lan"].subnet[0]]


def test_one_server_in_two_pools_is_one_host_with_all_its_addresses() -> None:
    lab = plan(MADE["servers in all places"])
    assert lab.servers[("near", "w1")] == lab.servers[("same", "w1")]
    assert lab.servers[("same", "w1")].addresses == (ip_address("192.168.0.21"), ip_address("fd00::21"))
    assert {p.number for p in lab.hosts["w1"].ports} == {80, 81}


def test_a_server_that_is_the_gateway_is_one_host() -> None:
    lab = plan(MADE["servers in all places"])
    assert lab.hosts[lab.servers[("same", "gate")].host].role == "router"


def test_far_servers_are_behind_the_router_with_the_longest_prefix_and_least_metric() -> None:
    lab = plan(MADE["servers in all places"])
    homes = {n: own(lab.hosts[lab.servers[("far", n)].host])[0] for n in ("f1", "f2")}
    assert homes == {"f1": ip_address("192.168.0.252"), "f2": ip_address("192.168.0.254")}


def test_the_same_link_local_address_on_two_networks_is_two_routers() -> None:
    lab = plan(MADE["one link-local address on two networks"])
    assert lab.hosts[lab.servers[("p", "far")].host].network == "two"
    assert lab.outside["one"].host == "router-one"


def test_a_profile_that_names_only_a_later_card_gets_the_earlier_ones_unplugged() -> None:
    profile = MADE["a gap in the cards"]
    assert profile.cards == ("eth0", "eth1", "eth2")
    (nics,) = plan(profile).balancers.values()
    assert [(nic.name, nic.segment) for nic in nics] == [("eth0", None), ("eth1", None), ("eth2", "eth2")]


def test_cards_that_the_kernel_does_not_number_are_taken_as_they_are() -> None:
    text = goldens.PROFILES["bakery"].read_text().replace("eth0", "enp3s0")
    assert goldens.parse(text).cards == ("enp3s0",)


def test_a_bridges_further_ports_have_no_cable_and_both_of_a_bond_have() -> None:
    nics = {nic.name: nic.segment for nic in plan(ALL["trunk"]).balancers["a"]}
    assert nics == {"eth0": "eth0", "eth1": "eth0", "eth2": "eth2", "eth3": None}


def test_vlans_on_one_card_or_bond_share_a_segment() -> None:
    assert plan(ALL["trunk"]).segments == ("eth0", "eth2")
    lab = plan(ALL["links"])
    assert {(h.segment, h.vlan) for h in lab.hosts.values() if h.network in ("voice", "data")} == {
        ("eth6", 20),
        ("eth6", 30),
    }


def test_the_networks_hosts_know_the_way_to_a_routed_vip() -> None:
    lab = plan(ALL["dual-stack"])
    way = (ip_address("198.51.100.7"), ip_address("203.0.113.10"))
    for host in lab.hosts.values():
        four = any(a.version == 4 for a in own(host))
        assert host.routes == ((way,) if host.network == "wan" and four else ())


def test_a_routed_vip_of_a_single_node_is_sent_to_the_node() -> None:
    profile = made(
        """\
  sources: {ops: 192.168.0.0/24}
networks: {lan: {nics: [eth0], subnet: 192.168.0.0/24}}
nodes: {a: {addresses: {lan: 192.168.0.1}}}
vips: {www: {network: lan, address: 198.51.100.7, routed: true}}
"""
    )
    assert plan(profile).hosts["client-lan"].routes == ((ip_address("198.51.100.7"), ip_address("192.168.0.1")),)
