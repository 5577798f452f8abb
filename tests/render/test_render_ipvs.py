"""What the kernel balances: virtual servers, marks, checks, times; hostile strings reach real readers unchanged."""

from __future__ import annotations

import dataclasses
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import goldens
from ndakit.core.uci import read
from ndakit.core.workspace import cache
from ndakit.lint.config_text import Block, haproxy, keepalived
from ndakit.lint.real_daemons import check
from ndakit.model import Profile
from ndakit.model import rules as model_rules
from ndakit.model.checks import HttpCheck, ScriptCheck, SmtpCheck, TcpCheck
from ndakit.model.checks.text import raw_bytes
from ndakit.render import filters
from ndakit.render.engines.ipvs import ipvs
from ndakit.render.firewall import MARK_MASK
from ndakit.render.node import NodeView
from ndakit.render.render import Tree, render

KA = "/etc/keepalived/keepalived.conf"
SCRIPT = "/usr/libexec/ndakit/check-script"
PATH_CHARS = "abzAZ019._~!$&()*+,;=:@/?-"


def servers(tree: Tree) -> list[Block]:
    return keepalived(tree[KA].text).inner("virtual_server")


def made(old: str, new: str, name: str = "shop-nat") -> Profile:
    """An example with one thing changed."""
    text = goldens.PROFILES[name].read_text()
    assert old in text
    return goldens.parse(text.replace(old, new), goldens.PROFILES[name].parent)


def codes(profile: Profile) -> set[str]:
    return {f.code for f in model_rules.findings(profile) if f.severity == "error"}


def test_every_node_has_the_same_virtual_servers() -> None:
    for name in ("shop-nat", "mirror-dr", "far-tun", "ipvs-all", "ipvs-1907"):
        profile = goldens.profile(name)
        texts = set()
        for node in profile.nodes:
            text = goldens.tree(name, node)[KA].text
            texts.add(text[text.index("# What the kernel balances") :].replace(profile.hostname(node), "#"))
        assert len(texts) == 1


def test_a_service_with_several_ports_is_one_virtual_server_for_each_family() -> None:
    marked = [b for b in servers(goldens.tree("shop-nat")) if b.name == "fwmark"]
    assert [b.value("ip_family") for b in marked] == [None, "inet6"]
    assert len({b.words for b in marked}) == 1
    assert all(len(s.words) == 2 for b in marked for s in b.inner("real_server"))
    assert all(s.blocks[0].value("connect_port") == "80" for b in marked for s in b.inner("real_server"))


def test_marks_differ_keep_to_their_bits_and_do_not_depend_on_order() -> None:
    more = (f"  s{i}: {{vip: www, port: [{1000 + i}, {3000 + i}], topology: nat, protocol: tcp, pool: shop}}\n"
            for i in range(120))  # fmt: skip
    profile = made("services:\n", f"services:\n{''.join(more)}")
    marks = profile.marks
    assert len(set(marks.values())) == len(marks) == 121
    assert all(mark & ~MARK_MASK == 0 and mark for mark in marks.values())
    turned = profile.model_copy(update={"services": dict(reversed(profile.services.items()))})
    assert turned.marks == marks


def test_the_firewall_marks_before_routing_in_every_zone_that_may_ask() -> None:
    rules = [s for s in read(goldens.tree("shop-nat")["/etc/config/firewall"].text) if s.get("target") == "MARK"]
    assert [(r.get("src"), r.get("dest")) for r in rules] == [("wan", "*"), ("lan", "*")]


def test_answers_of_nat_servers_have_a_rule_and_those_of_others_none() -> None:
    def answers(name: str) -> list[str | None]:
        sections = read(goldens.tree(name)["/etc/config/firewall"].text)
        return [s.get("name") for s in sections if s.type == "rule" and s.get("src_port")]

    assert answers("shop-nat") == ["replies-shop", "replies-mail"]
    assert answers("mirror-dr") == answers("far-tun") == []


def test_the_kernel_forwards_for_nat_and_not_for_dr_or_tun() -> None:
    assert NodeView(goldens.profile("ipvs-1907"), "lb1").forwards
    assert not NodeView(goldens.profile("mirror-dr"), "lb1").forwards
    assert not NodeView(goldens.profile("far-tun"), "lb1").forwards


def test_words_of_the_profile_become_ipvs_schedulers() -> None:
    words = {"roundrobin": "wrr", "leastconn": "wlc", "source": "sh", "destination": "dh", "locality": "lblc",
             "locality-replica": "lblcr", "shortest-delay": "sed"}  # fmt: skip
    words |= {w: w for w in ("rr", "nq", "fo", "ovf")}
    for word, scheduler in words.items():
        profile = made("balance: leastconn", f"balance: {word}")
        assert codes(profile) == set()
        view = ipvs(NodeView(profile, "lb1"))
        assert {v.scheduler for v in view.servers if v.pool == "shop"} == {scheduler}
        assert f"ip_vs_{scheduler}" in view.modules


def test_a_pool_may_serve_haproxy_and_the_kernel() -> None:
    profile = made("services:\n", "services:\n  more: {vip: www, port: 8080, protocol: tcp, pool: mail}\n")
    assert codes(profile) == set()
    tree = render(profile, "lb1", goldens.TEMPLATES)
    (backend,) = [p for p in haproxy(tree["/etc/haproxy.cfg"].text) if p.kind == "backend"]
    assert backend.name == "mail"
    assert all("check" in line.words for line in backend.all("server"))
    assert any("198.51.100.10 25" in " ".join(b.words) for b in servers(tree))


def test_fall_and_retry_delay_become_retries() -> None:
    (checker, *_) = [b for v in servers(goldens.tree("mirror-dr")) for s in v.inner("real_server") for b in s.blocks]
    assert [checker.value(k) for k in ("retry", "delay_before_retry", "connect_timeout", "warmup")] == [
        "2", "0.5", "1", "2"]  # fmt: skip


def test_the_bounds_of_keepalived_s_checks() -> None:
    check = TcpCheck(interval_s=2, timeout_s=1, fall=3, retry_delay_s=0.5)
    assert check.keepalived_detection_s == 2 + 3 * 1 + 2 * 0.5
    assert check.keepalived_recovery_s == 1 + 2 + 1
    assert HttpCheck(interval_s=2, timeout_s=1, fall=1).keepalived_detection_s == 2 + 2
    assert SmtpCheck(interval_s=2, timeout_s=1, fall=1).keepalived_detection_s == 2 + 4  # three answers
    asked = {"type": "script", "script": "c.sh", "interval_s": 2, "timeout_s": 1.2, "fall": 1}
    script = ScriptCheck.model_validate(asked, context={"attach": lambda _: b"#!/bin/sh\n"})
    assert script.keepalived_detection_s == 2 + 2  # whole seconds
    profile = goldens.profile("mirror-dr")
    assert profile.detection_s("mirror") == profile.pools["mirror"].check.keepalived_detection_s


def test_a_retry_delay_shortens_haproxy_s_bounds_as_well() -> None:
    plain, quick = TcpCheck(interval_s=2, fall=3), TcpCheck(interval_s=2, fall=3, retry_delay_s=0.5)
    assert plain.detection_s(5) == 3 * (2 + 2)
    assert quick.detection_s(5) == 2 + 2 + 2 * (0.5 + 2)
    assert quick.recovery_s(5) == 2 + 2 + 2 + 0.5 + 2


POLICY: dict[str, tuple[str, str]] = {
    "another gateway, with nat": (", role: gateway}", "}"),
    "the only gateway, with dr": ("port: 25, topology: nat", "port: 25, topology: dr"),
}


@pytest.mark.parametrize(("old", "new"), POLICY.values(), ids=POLICY)
def test_reply_route_policy_says_that_the_answers_have_a_way(old: str, new: str) -> None:
    text = goldens.PROFILES["shop-nat"].read_text().replace(old, new)
    assert codes(goldens.parse(text)) & {"return-without-gateway", "answers-cross-balancer"}
    text = text.replace("    balance:", "    reply_route: policy\n    balance:")
    assert codes(goldens.parse(text)) == set()


def test_a_tunnel_may_carry_another_family() -> None:
    text = goldens.PROFILES["far-tun"].read_text()
    for old, new in (("subnet: 198.51.100.128/25", 'subnet: [198.51.100.128/25, "2001:db8:113::/64"]'),
                     ("wan: 198.51.100.139", 'wan: [198.51.100.139, "2001:db8:113::11"]'),
                     ("wan: 198.51.100.140", 'wan: [198.51.100.140, "2001:db8:113::12"]'),
                     ("address: 198.51.100.138", 'address: [198.51.100.138, "2001:db8:113::10"]')):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    profile = goldens.parse(text)
    assert codes(profile) == set()
    tree = render(profile, "lb1", goldens.TEMPLATES)
    six = next(b for b in servers(tree) if b.name == "2001:db8:113::10")
    assert [s.name for s in six.inner("real_server")] == ["10.20.1.21", "10.20.1.22", "10.30.1.21"]
    assert check(tree, cache() / "lab") == []


def test_tcp_and_udp_may_share_a_port() -> None:
    both = "  syslog: {vip: www, families: [ipv4], port: 25, topology: nat, protocol: udp, pool: log}\n"
    profile = made("services:\n", f"  log: {{check: udp, servers: {{log1: 192.168.2.41}}}}\n\nservices:\n{both}")
    assert codes(profile) == set()
    tree = render(profile, "lb1", goldens.TEMPLATES)
    assert [b.value("protocol") for b in servers(tree) if b.words[1:] == ("198.51.100.10", "25")] == ["UDP", "TCP"]


@given(st.binary(max_size=60))
def test_bytes_written_with_escapes_are_those_bytes(value: bytes) -> None:
    assert raw_bytes("".join(f"\\x{b:02x}" for b in value)) == value


@given(st.text(st.characters(exclude_characters="\\", codec="utf-8")))
def test_text_without_escapes_is_sent_as_it_is(value: str) -> None:
    assert raw_bytes(value) == value.encode()


@given(st.text(PATH_CHARS, max_size=40))
@settings(deadline=None)
def test_a_path_that_the_checks_take_is_read_back_from_keepalived_s_file(path: str) -> None:
    profile = made("path: /health", f'path: "/{path}"')
    if "path-of-keepalived" in codes(profile):
        with pytest.raises(ValueError, match=r"cannot be written"):
            filters.quoted(f"/{path}")
        return
    check = servers(render(profile, "lb1", goldens.TEMPLATES))[0].inner("real_server")[0].blocks[0]
    assert check.inner("url")[0].value("path") == f"/{path}"


@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30).filter(str.strip),
                min_size=1, max_size=5))  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_script_arguments_reach_the_script_unchanged(arguments: list[str]) -> None:
    profile = goldens.profile("ipvs-all")
    pool = profile.pools["med"].model_copy(
        update={"check": profile.pools["med"].check.model_copy(update={"arguments": tuple(arguments)})}
    )
    tree = render(profile.model_copy(update={"pools": {**profile.pools, "med": pool}}), "lb1", goldens.TEMPLATES)
    text = tree[SCRIPT].text.replace("exec /usr/libexec/ndakit/script-med", "printf '%s\\0'")
    said = subprocess.run(
        ["sh", "-c", text, "sh", "med", "192.168.0.35", "80"], capture_output=True, check=False
    ).stdout
    assert said.decode().split("\0")[:-1] == ["192.168.0.35", "80", *arguments]


def test_the_real_keepalived_takes_the_oddest_path_that_the_checks_take() -> None:
    profile = made("path: /health", 'path: "/!&*()+;=,:@?~a%00.-_//%7E"')
    assert codes(profile) == set()
    assert [e.text() for e in check(render(profile, "lb1", goldens.TEMPLATES), cache() / "lab")] == []


def test_the_real_keepalived_names_each_line_that_it_does_not_take() -> None:
    file = goldens.tree("ipvs-all")[KA]
    text, wanted = file.text, []
    for old, new in (
        ("lb_algo lblcr", "lb_algo lblcx"),
        ("lb_kind TUN", "lb_kind TUNNEL"),
        ("protocol UDP", "protocol UPD"),
        ("DNS_CHECK {", "DNSCHECK {"),
        ("status_code 200", "status_code 2000"),
    ):
        assert old in text
        text = text.replace(old, new, 1)
        wanted.append(next(n for n, line in enumerate(text.splitlines(), 1) if new in line))
    broken = dataclasses.replace(file, content=text.encode())
    errors = check(Tree([*(dict(goldens.tree("ipvs-all")) | {KA: broken}).values()]), cache() / "lab")
    assert set(wanted) <= {e.location.line for e in errors if e.location is not None and e.location.file == KA}


def test_the_check_script_of_the_profile_is_a_program_of_the_image() -> None:
    tree = goldens.tree("ipvs-all")
    file = tree["/usr/libexec/ndakit/script-med"]
    assert file.content == (goldens.DATA / "profiles/check.sh").read_bytes()
    assert file.mode == 0o755
