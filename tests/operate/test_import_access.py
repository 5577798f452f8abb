"""`./inv import` never lets in more people than the old balancer in silence: what kept somebody out is asked for, and
`check` refuses the profile until a person has decided it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ndakit.cli.import_profile import import_profile
from ndakit.cli.nodes import SshOptions
from ndakit.core.errors import ErrorGroup, NdakitError
from ndakit.core.workspace import Workspace
from ndakit.load import load
from ndakit.operate.import_ import importer
from ndakit.operate.import_.draft import DECIDE
from ndakit.operate.import_.refine import Imported
from ndakit.operate.import_.sources import NodeFiles
from places import ROOT

NETWORK = """\
config interface 'wan'
	option device 'eth0'
	option proto 'static'
	list ipaddr '203.0.113.11/24'
	option gateway '203.0.113.1'
config interface 'lan'
	option device 'eth1'
	option proto 'static'
	list ipaddr '192.168.2.11/24'
"""
NETWORK6 = NETWORK.replace("\toption gateway", "\tlist ip6addr '2001:db8:1::11/64'\n\toption gateway")
ZONES = """\
config zone
	option name 'wan'
	list network 'wan'
	option input 'DROP'
config zone
	option name 'lan'
	list network 'lan'
	option input 'ACCEPT'
"""
HAPROXY = """\
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend www
  bind 203.0.113.11:80
  default_backend web
backend web
  server w1 192.168.2.51:80 check
"""
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f a\n"
SSH = {"name": "ssh", "src": "wan", "proto": "tcp", "src_ip": "198.51.100.7", "dest_port": "22", "target": "ACCEPT"}
WEB = {"name": "web", "src": "wan", "proto": "tcp", "dest_port": "80", "target": "ACCEPT"}


def rule(options: dict[str, str]) -> str:
    return "config rule\n" + "".join(f"\toption {name} '{value}'\n" for name, value in options.items())


def box(*rules: dict[str, str], haproxy: str = HAPROXY, network: str = NETWORK, zones: str = ZONES) -> NodeFiles:
    """A balancer that is alone, with these firewall rules."""
    files = {
        "/etc/config/network": network,
        "/etc/config/firewall": zones + "".join(map(rule, rules)),
        "/etc/haproxy.cfg": haproxy,
        "/etc/dropbear/authorized_keys": KEY,
        "/etc/openwrt_release": "DISTRIB_RELEASE='24.10.8'\nDISTRIB_TARGET='x86/64'\n",
    }
    return NodeFiles("lb1", {path: text.encode() for path, text in files.items()})


def imported(*rules: dict[str, str], haproxy: str = HAPROXY, network: str = NETWORK, zones: str = ZONES) -> Imported:
    return importer.convert(Workspace(ROOT), "box", [box(*rules, haproxy=haproxy, network=network, zones=zones)])


def asked(result: Imported) -> list[str]:
    """What a person has to decide."""
    return [words.removeprefix(DECIDE) for words in result.draft.fill_in if words.startswith(DECIDE)]


def unsaid(result: Imported) -> list[str]:
    return [one.text for one in result.unsaid]


def test_a_box_that_opened_everything_that_the_profile_opens_asks_nothing() -> None:
    result = imported(SSH, WEB)
    assert asked(result) == []
    assert result.draft.sources == {"admin": ["198.51.100.7/32"]}
    assert result.refused == ""


@pytest.mark.parametrize(
    "narrower",
    [
        {"src_ip": "198.51.100.0/24"},
        {"src_ip": "!198.51.100.0/24"},
        {"src_mac": "02:11:22:33:44:55"},
        {"src_port": "1024:65535"},
        {"limit": "5/minute"},
        {"start_time": "08:00"},
        {"weekdays": "Mon"},
        {"mark": "0x10"},
        {"ipset": "partners"},
        {"dest_ip": "203.0.113.77"},
        {"src": "lan"},
        {"family": "ipv6"},
        {"enabled": "0"},
        {"dest_port": "8080"},
        {"proto": "udp"},
        {"extra": "-m owner"},
    ],
    ids=lambda option: "-".join(option),
)
def test_a_service_that_the_rules_let_fewer_come_to_is_asked_for(narrower: dict[str, str]) -> None:
    result = imported(SSH, WEB | narrower)
    assert [words.split(":")[0] for words in asked(result)] == ["services.www"]
    if not narrower.keys() & {"dest_ip", "src", "dest_port", "proto", "enabled"}:
        name, value = next(iter(narrower.items()))
        assert any(f"option {name} '{value}'" in text or name == "family" for text in unsaid(result))


def test_a_service_that_no_rule_opened_is_asked_for_unless_its_zone_lets_everything_in() -> None:
    assert [words for words in asked(imported(SSH)) if "no rule of lb1:/etc/config/firewall opened it" in words]
    assert asked(imported(SSH, zones=ZONES.replace("DROP", "ACCEPT"))) == []
    behind = ZONES.replace("DROP", "ACCEPT").replace(
        "\toption input", "\toption subnet '198.51.100.0/24'\n\toption input"
    )
    assert asked(imported(SSH, zones=behind))


def test_a_family_of_its_own_is_no_limit_where_there_is_no_other() -> None:
    assert asked(imported(SSH, WEB | {"family": "ipv4"})) == []


@pytest.mark.parametrize("option", [{"limit": "5/second"}, {"family": "ipv4"}, {"direction": "out"}])
def test_a_rule_that_an_opening_does_not_say_exactly_opens_nothing(option: dict[str, str]) -> None:
    agent = {"name": "agent", "src": "wan", "proto": "tcp", "dest_port": "10050", "target": "ACCEPT"}
    assert imported(SSH, WEB, agent, network=NETWORK6).draft.allow.keys() == {"agent"}
    assert imported(SSH, WEB, agent | option, network=NETWORK6).draft.allow == {}


def test_a_rule_of_openwrt_that_was_changed_is_none() -> None:
    ping = {"name": "Allow-Ping", "src": "wan", "proto": "icmp", "icmp_type": "echo-request", "family": "ipv4"}
    assert asked(imported(SSH, WEB, ping | {"target": "ACCEPT"}, network=NETWORK6)) == []
    assert not unsaid_of(imported(SSH, WEB, ping | {"target": "ACCEPT"}, network=NETWORK6), "Allow-Ping")
    changed = imported(SSH, WEB, ping | {"target": "DROP"}, network=NETWORK6)
    assert [words.split(":")[0] for words in asked(changed)] == ["pings"]
    assert unsaid_of(changed, "Allow-Ping")
    # With one family firewall.deny says it, and nothing is lost.
    carried = imported(SSH, WEB, ping | {"target": "DROP"})
    assert (asked(carried), list(carried.draft.deny)) == ([], ["allow-ping"])


def unsaid_of(result: Imported, name: str) -> list[str]:
    return [one.why for one in result.unsaid if name in one.why]


def test_a_rule_that_kept_somebody_out_and_is_lost_is_asked_for() -> None:
    spammer = {"name": "spammer", "src": "wan", "proto": "tcp", "dest_port": "80", "target": "DROP"}
    lost = imported(SSH, spammer | {"src_mac": "02:11:22:33:44:55"}, WEB)
    assert [words.split(":")[0] for words in asked(lost)] == ["services.www"]
    assert asked(imported(SSH, spammer | {"src_ip": "198.51.100.66"}, WEB)) == []  # firewall.deny
    assert asked(imported(SSH, WEB, spammer | {"src_mac": "02:11:22:33:44:55"})) == []  # it never counted
    elsewhere = {"name": "no", "src": "wan", "proto": "tcp udp", "dest_port": "8080", "target": "REJECT"}
    assert asked(imported(SSH, elsewhere, WEB)) == []  # nothing is open there


@pytest.mark.parametrize(
    "condition",
    [
        {"src_ip": "!203.0.113.0/24"},
        {"src_ip": "partner.example"},
        {"src_mac": "02:00:00:00:00:01"},
        {"start_time": "08:00"},
        {"src_port": "1024:65535"},
        {"limit": "3/minute"},
        {"ipset": "admins"},
    ],
    ids=lambda option: "-".join(option),
)
def test_ssh_is_never_opened_to_more_than_the_rule_let_in(condition: dict[str, str]) -> None:
    result = imported(SSH | condition, WEB, zones=ZONES.replace("ACCEPT", "DROP"))
    assert result.draft.sources == {}
    assert any(words.startswith("access.sources: whom does rule 'ssh'") for words in asked(result))
    assert any("access.sources has subnets that may always come" in one.why for one in result.unsaid)


def test_ssh_that_a_rule_before_kept_out_is_asked_for() -> None:
    out = {"name": "not-him", "src": "wan", "proto": "tcp", "src_ip": "198.51.100.7", "target": "DROP"}
    wide = SSH | {"src_ip": "198.51.100.0/24"}
    assert any("'not-him'" in words for words in asked(imported(out, wide, WEB)))
    assert not any("SSH" in words for words in asked(imported(wide, out, WEB)))
    shut = {"name": "shut", "src": "lan", "proto": "tcp", "dest_port": "22", "target": "REJECT"}
    assert imported(shut, WEB).draft.sources == {}
    assert imported(WEB).draft.sources == {"lan": ["192.168.2.0/24"]}


@pytest.mark.parametrize(
    "line",
    [
        "http-request deny if { path_beg /admin }",
        "http-request tarpit if { src 198.51.100.0/24 }",
        "http-request auth unless { http_auth(admins) }",
        "http-request silent-drop if { src 198.51.100.0/24 }",
        "tcp-request connection reject if !{ src 198.51.100.0/24 }",
        "tcp-request content reject if { src_get_gpc0 gt 3 }",
        "http-request deny if { sc_gpc0_rate(0) gt 5 }",
        "use_backend web if { src 198.51.100.0/24 }",
        "filter spoe engine waf config /etc/waf.conf",
    ],
)
@pytest.mark.parametrize("section", ["frontend www\n", "backend web\n", "defaults\n"])
def test_a_line_that_turns_clients_away_and_is_lost_is_asked_for(line: str, section: str) -> None:
    assert asked(imported(SSH, WEB)) == []
    result = imported(SSH, WEB, haproxy=HAPROXY.replace(section, f"{section}  {line}\n"))
    assert [words for words in asked(result) if "who may use what is behind haproxy.cfg's line" in words]


def test_what_is_no_limit_of_access_is_not_asked_for() -> None:
    for line in (
        "tcp-request content accept if { req_ssl_hello_type 1 }",
        "http-request set-header X-A b",
        "maxconn 9",
    ):
        assert asked(imported(SSH, WEB, haproxy=HAPROXY.replace("frontend www\n", f"frontend www\n  {line}\n"))) == []


def test_a_terminators_own_condition_is_asked_for() -> None:
    node = box(SSH, WEB)
    node.files["/etc/stunnel/stunnel.conf"] = b"[www]\naccept = 443\nconnect = 127.0.0.1:81\nverifyChain = yes\n"
    result = importer.convert(Workspace(ROOT), "box", [node])
    assert [words for words in asked(result) if "/etc/stunnel/stunnel.conf:4" in words]


def test_a_limit_that_a_key_says_is_not_asked_for() -> None:
    limits = "  tcp-request connection reject if { src_conn_cur gt 20 }\n"
    table = "  stick-table type ip size 1k store conn_cur\n  tcp-request connection track-sc0 src\n"
    text = HAPROXY.replace("frontend www\n", f"frontend www\n{table}{limits}")
    assert asked(imported(SSH, WEB, haproxy=text)) == []


def test_a_script_of_the_firewall_that_drops_is_asked_for() -> None:
    node = box(SSH, WEB)
    node.files["/etc/firewall.user"] = b"# iptables -j DROP\niptables -I INPUT -s 198.51.100.66 -j DROP\n"
    result = importer.convert(Workspace(ROOT), "box", [node])
    assert [words.split(" ")[0] for words in asked(result)] == ["lb1:/etc/firewall.user:2"]


def test_what_both_nodes_of_a_pair_have_is_asked_once() -> None:
    limited = WEB | {"src_ip": "198.51.100.0/24"}
    haproxy = HAPROXY.replace("203.0.113.11:80", "203.0.113.10:80").replace("www\n", "www\n  http-request deny\n", 1)
    vrrp = b"vrrp_instance E {\n  interface eth0\n  virtual_ipaddress {\n    203.0.113.10/24\n  }\n}\n"
    pair = [box(SSH | {"src_mac": "02:00:00:00:00:01"}, limited, haproxy=haproxy, network=network)
            for network in (NETWORK, NETWORK.replace(".11/24", ".12/24"))]  # fmt: skip
    for node in pair:
        node.files["/etc/keepalived/keepalived.conf"] = vrrp
    both = asked(importer.convert(Workspace(ROOT), "box", pair))
    assert [words.split(" ")[0] for words in both] == ["access.sources:", "services.www:", "who"]
    pair[1].files["/etc/config/firewall"] += rule(WEB | {"name": "other", "dest": "lan", "target": "DROP"}).encode()
    pair[1].files["/etc/haproxy.cfg"] += b"  http-request deny if { src 192.0.2.1 }\n"
    assert len(asked(importer.convert(Workspace(ROOT), "box", pair))) == 4  # what only the second one has


def test_the_profile_is_refused_until_the_comment_is_taken_out(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.profiles.mkdir()
    folder = tmp_path / "box"
    for path, content in box(SSH, WEB | {"src_ip": "198.51.100.0/24"}).files.items():
        target = folder / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    assert import_profile(workspace, str(folder), "shop", None, None, SshOptions()) == 2
    with pytest.raises(NdakitError) as caught:
        load.load(workspace, "shop")
    errors = caught.value.errors if isinstance(caught.value, ErrorGroup) else [caught.value]
    assert [error.code for error in errors] == ["undecided"]
    assert "services.www: who may use it?" in errors[0].what
    assert "everybody there" in errors[0].what  # of the comment's second line
    assert errors[0].fix.endswith("delete this comment")
    profile = workspace.profiles / "shop.yaml"
    profile.write_text(
        "".join(t for t in profile.read_text().splitlines(keepends=True) if "FILL IN: decide: " not in t)
    )
    assert load.load(workspace, "shop").profile.name == "shop"


def test_such_a_comment_further_down_is_only_a_comment(tmp_path: Path) -> None:
    result = imported(SSH, WEB)
    path = tmp_path / "box.yaml"
    path.write_text(result.text.replace("\naccess:", "\n# FILL IN: decide: nothing\naccess:"))
    assert load.load(Workspace(tmp_path), str(path)).profile.name == "box"
