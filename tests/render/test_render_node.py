"""What the profile means for one node: peers, VIPs, who may reach what, which backend follows which."""

from __future__ import annotations

import re

import pytest

import goldens
from ndakit.core.uci import Section, read
from ndakit.lint.config_text import haproxy, keepalived
from ndakit.render.node import NodeView
from ndakit.render.render import render

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me"


def sections(name: str, config: str, kind: str, node: str = "") -> list[Section]:
    return [s for s in read(goldens.tree(name, node)[f"/etc/config/{config}"].text) if s.type == kind]


def rule(name: str, title: str, node: str = "") -> Section:
    return next(s for s in sections(name, "firewall", "rule", node) if s.get("name") == title)


def test_peers_are_transposed() -> None:
    """Each node names the others' addresses, and its own as its source."""
    own, peers = {}, {}
    for node in ("lb1", "lb2"):
        root = keepalived(goldens.tree("apache-pair", node)["/etc/keepalived/keepalived.conf"].text)
        for block in root.inner("vrrp_instance"):
            own[block.name, node] = block.value("unicast_src_ip")
            peers[block.name, node] = [line.words[0] for b in block.inner("unicast_peer") for line in b.lines]
    for (name, node), address in own.items():
        other = "lb2" if node == "lb1" else "lb1"
        assert peers[name, other] == [address]


def test_the_nodes_differ_only_where_they_must() -> None:
    first, second = goldens.tree("apache-pair", "lb1"), goldens.tree("apache-pair", "lb2")
    assert list(first) == list(second)

    def plain(text: str) -> str:
        for word in (r"lb[12]", r"203\.0\.113\.1[12]\b", r"192\.168\.0\.1[12]\b", r"priority \d+"):
            text = re.sub(word, "#", text)
        return text

    for path in first:
        assert plain(first[path].text) == plain(second[path].text), path


def test_without_preemption_nobody_takes_over_a_living_master() -> None:
    root = keepalived(goldens.tree("bakery")["/etc/keepalived/keepalived.conf"].text)
    assert all(b.first("nopreempt") and not b.first("preempt_delay") for b in root.inner("vrrp_instance"))
    root = keepalived(goldens.tree("apache-pair")["/etc/keepalived/keepalived.conf"].text)
    assert all(b.value("preempt_delay") == "2" and not b.first("nopreempt") for b in root.inner("vrrp_instance"))


def test_a_lost_haproxy_is_a_fault_not_a_lower_priority() -> None:
    for name in ("bakery", "apache-pair", "dual-stack"):
        root = keepalived(goldens.tree(name)["/etc/keepalived/keepalived.conf"].text)
        (script,) = root.inner("vrrp_script")
        assert script.first("weight") is None
        assert all("haproxy" in {line.words[0] for b in i.inner("track_script") for line in b.lines}
                   for i in root.inner("vrrp_instance"))  # fmt: skip


def test_adverts_hold_one_vip_and_both_families_move_together() -> None:
    root = keepalived(goldens.tree("dual-stack")["/etc/keepalived/keepalived.conf"].text)
    wan = next(b for b in root.inner("vrrp_instance") if b.name == "wan-main")
    assert [line.words[0] for b in wan.inner("virtual_ipaddress") for line in b.lines] == ["203.0.113.10/32"]
    assert [line.words[0] for b in wan.inner("virtual_ipaddress_excluded") for line in b.lines] == [
        "2001:db8:113::10/128",
        "198.51.100.7/32",
    ]


def test_groups_of_one_network_are_instances_of_their_own() -> None:
    root = keepalived(goldens.tree("dual-stack")["/etc/keepalived/keepalived.conf"].text)
    (group,) = root.inner("vrrp_sync_group")
    assert [line.words[0] for b in group.inner("group") for line in b.lines] == ["wan-main", "lan-main", "six-main"]
    assert {b.name for b in root.inner("vrrp_instance")} == {"wan-main", "lan-main", "six-main", "lan-db"}
    assert [b.words[0] for b in keepalived(goldens.tree("bakery")["/etc/keepalived/keepalived.conf"].text).blocks] == [
        "global_defs", "vrrp_script", "vrrp_instance"]  # fmt: skip


def test_a_standalone_node_has_its_vips_as_addresses_and_no_vrrp() -> None:
    tree = goldens.tree("standalone")
    assert not [p for p in tree if "keepalived" in p or "daemon-runs" in p]
    lan = next(s for s in sections("standalone", "network", "interface") if s.name == "lan")
    assert lan.list("ipaddr") == ("192.168.0.11/24", "192.168.0.10/32")
    assert lan.list("ip6addr") == ("fd00:0:0:1::11/64", "fd00:0:0:1::10/128")


def test_a_vip_of_the_outside_is_open_to_all_and_one_of_an_inner_network_only_there() -> None:
    assert rule("dual-stack", "service-web").get("src") == "*"
    assert rule("dual-stack", "service-db").get("src") == "lan"
    both = [
        s.get("src") for s in sections("links", "firewall", "rule") if (s.get("name") or "").startswith("service-web")
    ]
    assert both == ["*", "voice"]


def test_each_family_has_its_own_outside() -> None:
    """A VIP beside the IPv6 gateway is no outside for IPv4 while the IPv4 gateway is elsewhere."""
    text = goldens.PROFILES["trunk"].read_text()
    text = text.replace("servers: {nics: [eth0, eth1], bond: {mode: 802.3ad}, vlan: 20, subnet: 10.2.0.0/24",
                        "servers: {nics: [eth0, eth1], bond: {mode: 802.3ad}, vlan: 20,"
                        " subnet: [10.2.0.0/24, 'fd00:2::/64'], gateway: 'fd00:2::fe'")  # fmt: skip
    text = text.replace("servers: 10.2.0.11", "servers: [10.2.0.11, 'fd00:2::11']")
    text = text.replace("servers: 10.2.0.12", "servers: [10.2.0.12, 'fd00:2::12']")
    text = text.replace("vips:\n", "vips:\n  in: {network: servers, address: [10.2.0.10, 'fd00:2::10']}\n")
    text = text.replace("vip: www,", "vip: [www, in],")
    tree = render(goldens.parse(text), "a", goldens.TEMPLATES)
    rules = [s for s in read(tree["/etc/config/firewall"].text) if (s.get("name") or "").startswith("service-web")]
    assert {s.get("src"): s.list("dest_ip") for s in rules} == {
        "*": ("10.1.0.10", "fd00:2::10"),
        "outside": ("fd00:1::10",),
        "servers": ("10.2.0.10",),
    }


def test_servers_can_reach_the_service_in_front_of_them() -> None:
    """The hairpin: a rule for the outside zone alone would not let the servers' own network in."""
    assert rule("apache-pair", "service-www").get("src") == "*"


def test_the_way_out_wears_the_vip_and_is_for_the_servers_only() -> None:
    (nat,) = sections("apache-pair", "firewall", "nat")
    assert [nat.get(o) for o in ("src", "src_ip", "snat_ip", "target")] == [
        "wan",
        "192.168.0.0/24",
        "203.0.113.10",
        "SNAT",
    ]
    way = rule("apache-pair", "egress-lan-wan")
    assert (way.get("src"), way.get("dest"), way.list("src_ip")) == ("lan", "wan", ("192.168.0.0/24",))
    assert sections("bakery", "firewall", "nat") == []
    assert not any(s.get("dest") for s in sections("bakery", "firewall", "rule"))


def test_egress_through_the_node_wears_each_nodes_own_address() -> None:
    worn = {
        node: [
            s.get("snat_ip")
            for s in sections("dual-stack", "firewall", "nat", node)
            if s.get("src_ip") == "fd00:0:0:6::/64"
        ]
        for node in ("lb1", "lb2")
    }
    assert worn == {"lb1": ["2001:db8:113::11"], "lb2": ["2001:db8:113::12"]}


def test_on_one_network_the_nodes_own_packets_keep_their_address() -> None:
    nats = sections("one-arm-2512", "firewall", "nat")
    assert [(s.get("src_ip"), s.get("target")) for s in nats] == [
        ("192.168.0.11", "ACCEPT"),
        ("192.168.0.12", "ACCEPT"),
        ("192.168.0.0/24", "SNAT"),
    ]


def test_forwarding_is_on_only_where_servers_go_out_and_redirects_never() -> None:
    def values(name: str) -> dict[str, str]:
        lines = goldens.tree(name)["/etc/sysctl.conf"].text.splitlines()
        return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    assert values("apache-pair")["net.ipv4.ip_forward"] == "1"
    assert values("apache-pair")["net.ipv4.conf.eth1.send_redirects"] == "0"
    assert values("bakery")["net.ipv4.ip_forward"] == "0"
    assert values("bakery")["net.ipv4.conf.eth0.accept_redirects"] == "0"
    assert values("standalone")["net.ipv4.ip_local_reserved_ports"] == "18404"


def test_a_pool_is_checked_once_however_many_services_use_it() -> None:
    proxies = {p.name: p for p in haproxy(goldens.tree("dual-stack")["/etc/haproxy.cfg"].text) if p.kind == "backend"}
    assert {n for n in proxies if n.startswith("web")} == {"web", "web.slow", "web.raw"}
    assert all("check" in line.words for line in proxies["web"].all("server"))
    assert [line.words[line.words.index("track") + 1] for line in proxies["web.raw"].all("server")] == [
        "web/web1", "web/web2"]  # fmt: skip


def test_services_that_want_the_same_share_a_backend() -> None:
    text = (
        goldens.PROFILES["bakery"]
        .read_text()
        .replace(
            "services: {web: {vip: www, port: 80,",
            "services: {other: {vip: www, port: 81, protocol: http, pool: web}, web: {vip: www, port: 80,",
        )
    )
    text = text.replace("{web: {check: http,", "{web: {port: 80, check: http,")
    tree = render(goldens.parse(text), "lb1", goldens.TEMPLATES)
    assert [p.name for p in haproxy(tree["/etc/haproxy.cfg"].text) if p.kind == "backend"] == ["web"]


def test_sorry_pools_are_chained_and_a_circle_ends() -> None:
    text = f"""
name: chain
release: 24.10.8
access: {{ssh_keys: {{me: {KEY}}}, sources: {{o: 10.0.0.0/24}}}}
networks: {{lan: {{nics: [eth0], subnet: 10.0.0.0/24, gateway: 10.0.0.254}}}}
nodes: {{lb1: {{addresses: {{lan: 10.0.0.11}}}}}}
vips: {{www: {{network: lan, address: 10.0.0.10}}}}
pools:
  a: {{port: 80, sorry: {{pool: b}}, servers: {{x: 10.0.0.21}}}}
  b: {{port: 80, sorry: {{pool: c}}, servers: {{x: 10.0.0.22}}}}
  c: {{port: 80, sorry: {{pool: a}}, servers: {{x: 10.0.0.23}}}}
services: {{web: {{vip: www, port: 80, protocol: tcp, pool: a}}}}
"""
    tree = render(goldens.parse(text), "lb1", goldens.TEMPLATES)
    front = next(p for p in haproxy(tree["/etc/haproxy.cfg"].text) if p.name == "service:web")
    assert [" ".join(line.words) for line in front.all("use_backend")] == [
        "use_backend c if { nbsrv(a) lt 1 } { nbsrv(b) lt 1 }",
        "use_backend b if { nbsrv(a) lt 1 }",
    ]


@pytest.mark.parametrize(
    ("name", "host"), [("apache-pair", "www.example.com"), ("bakery", "192.168.0.10"), ("standalone", "web.example")]
)
def test_the_check_asks_as_a_client_would(name: str, host: str) -> None:
    proxies = haproxy(goldens.tree(name)["/etc/haproxy.cfg"].text)
    (line,) = [line for p in proxies for line in p.all("http-check", "send")]
    assert line.words[-2:] == ("Host", host)


def test_client_supplied_forwarding_headers_are_replaced() -> None:
    front = next(p for p in haproxy(goldens.tree("apache-pair")["/etc/haproxy.cfg"].text) if p.name == "service:www")
    words = [line.words[1:] for line in front.all("http-request")]
    assert words[-2:] == [("set-header", "X-Forwarded-For", "%[src]"), ("set-header", "X-Forwarded-Proto", "http")]
    assert {w[0] for w in words[:4]} == {"del-header"}
    assert front.first("option", "forwardfor") is None


def test_the_statistics_page_is_on_the_nodes_own_addresses_only() -> None:
    proxies = haproxy(goldens.tree("apache-pair", "lb2")["/etc/haproxy.cfg"].text)
    (page,) = [p for p in proxies if p.first("stats", "enable")]
    assert [line.words[1] for line in page.all("bind")] == ["203.0.113.12:8404", "192.168.0.12:8404"]


def test_the_statistics_page_is_not_on_addresses_of_a_family_without_sources() -> None:
    (page,) = (f for f in haproxy(goldens.tree("trunk")["/etc/haproxy.cfg"].text) if f.name == "_statistics")
    assert [line.words[1] for line in page.all("bind")] == [f"10.{n}.0.11:8404" for n in (1, 2, 3, 4, 5)]


def test_networks_with_the_same_cards_and_bond_share_it() -> None:
    devices = {str(s.get("name")): s for s in sections("trunk", "network", "device")}
    assert list(devices) == ["bond-outside", "bond-outside.10", "bond-outside.20", "vlan-storagced5", "br-machines",
                             "br-machines.40"]  # fmt: skip
    assert {d.get("ifname") for d in devices.values() if d.get("type") == "8021q"} == {"bond-outside", "br-machines"}
    interfaces = {s.name: s.get("device") for s in sections("trunk", "network", "interface")}
    assert (interfaces["machines"], interfaces["cameras"]) == ("br-machines", "br-machines.40")


def test_a_bond_is_its_first_networks_even_where_another_one_is_untagged() -> None:
    text = goldens.PROFILES["trunk"].read_text().replace(", vlan: 20", "")
    node = NodeView(goldens.parse(text), "a")
    assert [d.name for d in node.devices if d.type == "bonding"] == ["bond-outside"]
    assert {i.network: i.device for i in node.interfaces}["servers"] == "bond-outside"


def test_the_network_file_has_the_form_of_its_release() -> None:
    old = {s.name: s for s in sections("fw3-1907", "network", "interface")}
    assert old["lan"].get("type") == "bridge"
    assert old["lan"].get("ifname") == "eth1 eth2"
    assert old["wan"].get("ifname") == "eth0.7"
    assert sections("fw3-1907", "network", "device") == []
    middle = {s.name: s for s in sections("fw3-2102", "network", "interface")}
    assert (middle["lan"].get("device"), middle["lan"].get("netmask")) == ("br-lan", "255.255.255.0")
    new = {s.name: s for s in sections("links", "network", "interface")}
    assert new["voice"].get("device") == "eth6.20"


def test_a_dhcp_server_that_was_asked_for_stays_silent() -> None:
    assert "/etc/config/dhcp" not in goldens.tree("bakery")
    sections = read(goldens.tree("fw4-2203")["/etc/config/dhcp"].text)
    assert [(s.type, s.get("ignore"), s.get("ra")) for s in sections if s.type == "dhcp"] == [("dhcp", "1", "disabled")]


def test_old_releases_get_the_old_form_of_an_http_check() -> None:
    text = goldens.tree("fw3-1907")["/etc/haproxy.cfg"].text
    assert "\toption httpchk GET /health HTTP/1.1\\r\\nHost:\\ www.example.com\n" in text


@pytest.mark.parametrize(("advert_s", "monitor_ms"), [("1", 100), ("0.4", 100), ("0.1", 25), ("0.05", 12)])
def test_a_bond_notices_a_lost_card_before_the_other_nodes_miss_three_adverts(advert_s: str, monitor_ms: int) -> None:
    text = (goldens.DATA / "profiles/links.yaml").read_text() + f"vrrp: {{advert_interval_s: {advert_s}}}\n"
    bonds = [d for d in NodeView(goldens.parse(text), "a").devices if d.type == "bonding"]
    assert bonds and {d.monitor_ms for d in bonds} == {monitor_ms}
    assert monitor_ms < 3 * float(advert_s) * 1000 / 2
