"""The stand-in's fw4 and fw3: the rules that real nft and iptables hold afterwards, and what is said about mistakes."""

from __future__ import annotations

import re

import pytest

import goldens
from labrig import LINKS, NETIFD, MakeRoot, Root, Said

UNSUPPORTED = "\necho ==unsupported; cat /tmp/lab-unsupported\n"


def _up(root: Root, script: str) -> Said:
    return root.run(LINKS + NETIFD + script)


def _rules(text: str) -> str:
    return re.sub(r"counter packets \d+ bytes \d+", "counter", re.sub(r' comment "[^"]*"', "", text))


def _chain(text: str, name: str) -> list[str]:
    body = text.split(f"\tchain {name} {{\n", 1)[1].split("\n\t}", 1)[0]
    return [line.strip() for line in body.splitlines()]


def test_a_balancers_rules_are_those_of_the_real_fw4(make_root: MakeRoot) -> None:
    said = _up(make_root("fw4-lb1"), "fw4 -q start && nft list ruleset" + UNSUPPORTED)
    assert said.err == ""
    rules = _rules(said.out)
    assert _chain(rules, "input")[:5] == [
        "type filter hook input priority filter; policy drop;",
        'iifname "lo" accept',
        "ct state vmap { established : accept, related : accept }",
        "ip saddr { 192.168.0.250, 203.0.113.128/25 } tcp dport 22 counter accept",
        "ip6 saddr 2001:db8:113:f::/64 tcp dport 22 counter accept",
    ]
    wan = _chain(rules, "input_wan")
    assert wan[:3] == [
        "ip daddr 203.0.113.10 tcp dport { 80, 443 } counter accept",
        "ip6 daddr 2001:db8:113::10 tcp dport { 80, 443 } counter accept",
        "ip daddr 203.0.113.10 udp dport 5000-5010 counter accept",
    ]
    assert "meta l4proto vrrp ip saddr 203.0.113.12 counter accept" in wan
    assert wan[-1] == "jump drop_from_wan"
    assert "meta l4proto vrrp ip6 saddr fe80::/10 ip6 daddr ff02::12 counter accept" in _chain(rules, "input_lan")
    assert _chain(rules, "srcnat_wan") == ["ip saddr 192.168.0.0/24 counter snat ip to 203.0.113.10"]
    assert _chain(rules, "notrack_wan") == ["ip daddr 203.0.113.10 tcp dport 8081 counter notrack"]
    assert _chain(rules, "forward_lan") == ["jump accept_to_wan", "jump reject_to_lan"]
    assert "ip daddr 192.168.0.31 tcp dport 80 counter jump accept_to_lan" in _chain(rules, "forward_wan")
    assert said.out.endswith("==unsupported\n")


def test_variants_and_their_messages(make_root: MakeRoot) -> None:
    root = make_root("fw4-variants")
    root.put(
        "etc/config/firewall",
        (root.path / "etc/config/firewall").read_text().replace("flow_offloading '1'", "flow_offloading '0'"),
    )
    said = _up(root, "fw4 print >/tmp/p; fw4 -q check && fw4 -q start; nft list ruleset" + UNSUPPORTED)
    rules = _rules(said.out)
    for line in (
        "elements = { 198.51.100.7, 203.0.113.128/25 }",
        "limit rate 5000/second burst 10000 packets return",
        "tcp flags & (fin | syn | rst | ack) == syn jump syn_flood",
        "ct state vmap { invalid : drop, established : accept, related : accept }",
        'iifname "tunl0" jump input_tun',
        "ip daddr 203.0.113.10 udp dport 53 counter accept",
        'iifname "gre*" jump input_tun',
        "tcp dport 853 counter accept",
        "udp dport 853 counter accept",
        "tcp dport 8080 limit rate 100/second burst 200 packets counter accept",
        "ip saddr != 203.0.113.66 ip daddr 203.0.113.10-203.0.113.19 tcp dport { 1000-1010, 1935 } counter accept",
        'iifname "eth9" udp dport 694 counter accept',
        "ip saddr @admins tcp dport 22 counter accept",
        "ct state invalid counter drop",
        "meta mark set meta mark & 0xfffff05f | 0x00000050",
        "meta mark set 0x00000060",
        "ip6 saddr fd00:0:0:1::/64 counter snat ip6 to 2001:db8:113::10",
        "ip saddr 192.168.0.0/24 ip daddr != 192.168.0.0/16 masquerade",
        "tcp option maxseg size set rt mtu",
        "meta l4proto tcp counter accept",
    ):
        assert line in rules, line
    mangle = _chain(rules, "mangle_prerouting")
    assert (
        'iifname "eth0" ip daddr 203.0.113.10 tcp dport { 80, 443 } counter '
        "meta mark set meta mark & 0xfffff05f | 0x00000050" in mangle
    )
    for message in (
        "(badzone) option 'src' specifies invalid value 'dmz'",
        "(badport) option 'dest_port' specifies invalid value 'https'",
        "(badport) skipped due to invalid options",
        "(unknown option) specifies unknown option 'dport'",
        "(mixed fam) is restricted to IPv4 but referenced addresses are IPv6 only or mixed, skipping",
        "Section missing specifies unreachable path '/etc/nosuch.nft', ignoring section",
        "Section legacy option 'fw4_compatible' is not set, ignoring section",
    ):
        assert message in said.err, message
    assert said.out.endswith("==unsupported\n")


def test_a_typo_in_an_option_opens_the_port_to_everything_as_on_openwrt(make_root: MakeRoot) -> None:
    root = make_root("fw4-lb1")
    root.put("etc/config/firewall", _zones("\toption proto 'tcp'\n\toption dport '4'\n"))
    said = _up(root, "fw4 print")
    assert "specifies unknown option 'dport'" in said.err
    assert 'meta l4proto tcp counter accept comment "!fw4: r"' in said.out


def _zones(rule: str) -> str:
    return (
        "config zone\n\toption name 'wan'\n\tlist network 'wan'\n\toption input 'DROP'\n\n"
        f"config rule\n\toption name 'r'\n\toption src 'wan'\n\toption target 'ACCEPT'\n{rule}"
    )


@pytest.mark.parametrize(
    "rule",
    ["\toption proto 'tcp'\n\toption dest_port '0'\n", "\toption enabled '0'\n\toption dest_port '4'\n"],
)
def test_port_zero_and_disabled_rules_vanish(make_root: MakeRoot, rule: str) -> None:
    root = make_root("fw4-lb1")
    root.put("etc/config/firewall", _zones(rule))
    assert '"!fw4: r"' not in _up(root, "fw4 print").out


def test_a_bogus_protocol_or_long_name_makes_nft_refuse_everything_and_the_old_rules_stay(make_root: MakeRoot) -> None:
    root = make_root("fw4-lb1")
    said = _up(
        root,
        "fw4 -q start; uci add firewall rule >/dev/null; uci set firewall.@rule[-1].src=wan\n"
        "uci set firewall.@rule[-1].proto=bogus; uci set firewall.@rule[-1].target=ACCEPT; uci commit\n"
        "fw4 -q check; echo check=$?; fw4 -q reload; echo reload=$?\n"
        "nft list chain inet fw4 input_wan | grep -c dport\n"
        "uci set firewall.@rule[-1].proto=tcp; uci set firewall.@rule[-1].name=$(printf '%0130d' 1); uci commit\n"
        "fw4 -q check; echo long=$?",
    )
    assert re.sub(r"Ruleset.*\n", "", said.out) == "check=1\nreload=1\n4\nlong=1\n"


def test_without_netifd_the_zones_are_hollow_and_nft_still_accepts(make_root: MakeRoot) -> None:
    said = make_root("fw4-lb1").run("fw4 print; fw4 check")
    assert "jump input_wan" not in said.out
    assert "Ruleset passes nftables check." in said.out


@pytest.mark.parametrize(
    ("overlay", "where"),
    [("tproxy-a", "tproxy_divert"), ("tproxy-b", "mangle_prerouting"), ("tproxy-c", "mangle_prerouting")],
)
def test_the_three_places_for_a_divert_rule(make_root: MakeRoot, overlay: str, where: str) -> None:
    said = _up(make_root(overlay), "fw4 print | sed 's/socket transparent 1/meta mark 0/' >/tmp/p; fw4 print")
    if overlay == "tproxy-a":
        assert 'include "/etc/nftables.d/*.nft"' in said.out
    else:
        chain = _chain(said.out, where)
        assert chain[1].startswith("include ")
        assert "divert.nft" in chain[1]
        assert "mark" in chain[2]
    assert ("Automatically including" in said.err) == (overlay == "tproxy-c")


def test_fw3_holds_the_rules_in_iptables_for_both_families(make_root: MakeRoot) -> None:
    root = make_root("fw3-lb1", release="19.07.10")
    said = _up(root, "fw3 print" + UNSUPPORTED)
    v4, v6 = said.out.split("# ip6tables-restore\n")
    assert (
        '-A INPUT -p tcp -s 203.0.113.128/25 -m tcp --dport 22 -m comment --comment "!fw3: ssh-admins" -j ACCEPT' in v4
    )
    assert "-p tcp -d 203.0.113.10 -m tcp --dport 443" in v4
    assert "-A zone_wan_input -p 112 -s 203.0.113.12" in v4
    assert "-A zone_wan_postrouting -s 192.168.0.0/24" in v4 and "-j SNAT --to-source 203.0.113.10" in v4
    assert ":INPUT DROP" in v6 and "SNAT" not in v6
    for program, text in (("iptables", v4), ("ip6tables", v6)):
        root.put("tmp-rules", text.split("==unsupported")[0])
        tested = root.run(f"{program}-restore --test </tmp-rules")
        assert tested.code == 0 or "Table does not exist" in tested.err or "can't initialize" in tested.err, tested
    assert said.out.endswith("==unsupported\n")


def test_fw3_poisons_later_numbers_after_one_it_cannot_read(make_root: MakeRoot) -> None:
    root = make_root("fw3-lb1", release="19.07.10")
    root.put(
        "etc/config/firewall",
        "config zone\n\toption name 'wan'\n\tlist network 'wan'\n\n"
        "config rule\n\toption name 'first'\n\toption src 'wan'\n\toption dest_port 'ssh'\n\toption target 'ACCEPT'\n\n"
        "config rule\n\toption name 'second'\n\toption src 'wan'\n\toption dest_port '80'\n\toption target 'ACCEPT'\n",
    )
    said = _up(root, "fw3 -4 print")
    assert "Warning: Option @rule[0].dest_port has invalid value 'ssh'" in said.err
    assert "Warning: Option @rule[1].dest_port has invalid value '80'" in said.err
    assert "--dport" not in said.out


ZONE = (
    "config defaults\n\toption input 'DROP'\n\toption output 'ACCEPT'\n\toption forward 'DROP'\n\n"
    "config zone\n\toption name 'lan'\n\tlist network 'lan'\n{device}"
    "\toption input 'DROP'\n\toption output 'ACCEPT'\n\toption forward 'DROP'\n\n"
    "config rule\n\toption name 'vrrp'\n\toption src 'lan'\n\toption family '{family}'\n\toption proto '112'\n"
    "\tlist src_ip '{source}'\n{extra}\toption target 'ACCEPT'\n"
)
DEVICE = "\tlist device 'br-lan'\n"


def _zone(device: str = DEVICE, family: str = "ipv4", source: str = "192.168.0.12", extra: str = "") -> str:
    return ZONE.format(device=device, family=family, source=source, extra=extra)


@pytest.mark.parametrize(
    ("overlay", "release", "verb", "jump"),
    [
        ("fw4-lb1", "24.10.8", "fw4 print", 'iifname "br-lan" jump input_lan'),
        ("fw3-lb1", "19.07.10", "fw3 print", r"-A INPUT .*-i br-lan -j zone_lan_input"),
        ("fw3-lb1", "21.02.7", "fw3 print", r"-A INPUT .*-i br-lan -j zone_lan_input"),
    ],
)
def test_a_zone_that_names_its_device_is_whole_before_the_network_is_up(
    make_root: MakeRoot, overlay: str, release: str, verb: str, jump: str
) -> None:
    root = make_root(overlay, release=release)
    root.put("etc/config/firewall", _zone(device=""))
    # Without netifd, as at the start: the firewall's script is number 19, netifd's 20, keepalived's 70.
    assert "br-lan" not in re.sub(r'"!fw4: [^"]*"', "", root.run(verb).out)
    root.put("etc/config/firewall", _zone())
    assert re.search(jump, root.run(verb).out)


@pytest.mark.parametrize(
    ("overlay", "release", "verb"), [("fw4-lb1", "24.10.8", "fw4 print"), ("fw3-lb1", "19.07.10", "fw3 -4 print")]
)
def test_a_device_that_comes_by_name_and_by_network_counts_once(
    make_root: MakeRoot, overlay: str, release: str, verb: str
) -> None:
    root = make_root(overlay, release=release)
    device = re.findall(r'"l3_device": *"([^"]+)"', _up(root, "ubus call network.interface.lan status").out)[0]
    root.put("etc/config/firewall", _zone(device=f"\tlist device '{device}'\n"))
    named = [line for line in _up(root, verb).out.splitlines() if "input" in line.lower() and device in line]
    root.put("etc/config/firewall", _zone(device=""))
    by_network = [line for line in _up(root, verb).out.splitlines() if "input" in line.lower() and device in line]
    assert named == by_network != []


def test_fw3_passes_more_words_on_to_iptables_and_fw4_does_not_know_them(make_root: MakeRoot) -> None:
    root = make_root("fw3-lb1", release="19.07.10")
    for family, source, extra in (
        ("ipv4", "192.168.0.12", "-m ttl --ttl-eq 255"),
        ("ipv6", "fd00::12", "-m hl --hl-eq 255"),
    ):
        root.put("etc/config/firewall", _zone(family=family, source=source, extra=f"\toption extra '{extra}'\n"))
        said = root.run(f"fw3 -{family[-1]} print" + UNSUPPORTED)
        program = "iptables" if family == "ipv4" else "ip6tables"
        rules = said.out.split("==unsupported")[0]
        assert re.search(rf"-A zone_lan_input -p 112 -s {source}\S* {extra} .*-j ACCEPT", rules), rules
        root.put("tmp-rules", rules)
        tested = root.run(f"{program}-restore --test </tmp-rules")
        assert tested.code == 0 or "Table does not exist" in tested.err or "can't initialize" in tested.err, tested
        assert said.out.endswith("==unsupported\n")
    root = make_root("fw4-lb1")
    root.put("etc/config/firewall", _zone(extra="\toption extra '-m ttl --ttl-eq 255'\n"))
    said = root.run("fw4 print")
    assert "option 'extra' is not supported by fw4" in said.err and "ttl" not in said.out


def test_the_firewall_starts_before_the_network_and_keepalived_last(make_root: MakeRoot) -> None:
    for release in ("19.07.10", "24.10.8"):
        scripts = make_root("fw4-lb1" if release > "22" else "fw3-lb1", release=release).path / "etc/init.d"
        starts = [
            int(re.findall(r"^START=(\d+)", (scripts / name).read_text(), re.M)[0])
            for name in ("firewall", "network", "keepalived")
        ]
        assert starts == [19, 20, 70]  # as in OpenWrt's packages, 18.06 to 25.12


def test_adverts_from_beyond_a_router_are_dropped_before_they_count_as_answers(make_root: MakeRoot) -> None:
    """fw3 of 19.07 with what is rendered for it: the nodes send each other adverts, so that connection tracking takes
    each of them for an answer to its own (established)."""
    root = make_root("fw3-lb1", release="19.07.10")
    script = "usr/libexec/ndakit/routed-adverts"
    tree = goldens.tree("ipvs-1907")
    root.put("etc/config/firewall", tree["/etc/config/firewall"].text)
    root.put(script, tree[f"/{script}"].text)
    said = root.run("fw3 start; fw3 reload; fw3 reload; iptables -S INPUT; iptables -S input_rule" + UNSUPPORTED)
    if "Table does not exist" in said.err or "can't initialize" in said.err:
        pytest.skip("this kernel has no iptables")
    lines = said.out.splitlines()
    jumps = [n for n, line in enumerate(lines) if line.startswith("-A INPUT") and line.endswith("-j input_rule")]
    answers = [n for n, line in enumerate(lines) if line.startswith("-A INPUT") and "RELATED,ESTABLISHED" in line]
    assert len(jumps) == len(answers) == 1 and jumps < answers
    assert [line for line in lines if line.startswith("-A input_rule")] == [
        "-A input_rule -p 112 -m ttl ! --ttl-eq 255 -j DROP"
    ]
    assert said.out.endswith("==unsupported\n")
