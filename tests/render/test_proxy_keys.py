"""What HAProxy's keys come to: names that cannot meet, time-outs, limits, retries, slow checks; no HAProxy where
nothing needs one. What a real HAProxy makes of them is in test_haproxy_live."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import goldens
from ndakit.core.names import backend_name, frontend_name, pool_of_backend
from ndakit.lint.config_text import Proxy, haproxy
from ndakit.lint.lint import lint
from ndakit.model import Profile, package_plan, rules
from ndakit.render.render import Tree, render

HEAD = goldens.PROFILES["bakery"].read_text().partition("pools:")[0]
SERVERS = "servers: {web1: 192.168.0.21, web2: 192.168.0.22}"


def profile(service: str = "protocol: http", pool: str = "check: http", more: str = "") -> Profile:
    return goldens.parse(
        f"{HEAD}pools: {{web: {{port: 80, {pool}, {SERVERS}}}}}\n"
        f"services: {{web: {{vip: www, port: 80, pool: web, {service}}}}}\nsystem: {{ntp: []}}\n{more}"
    )


def section(tree: Tree, name: str) -> Proxy:
    return next(p for p in haproxy(tree["/etc/haproxy.cfg"].text) if p.name == name)


def rendered(example: Profile) -> Tree:
    return render(example, "lb1", goldens.TEMPLATES)


def codes(example: Profile) -> set[str]:
    return {f.code for f in rules.findings(example)}


NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,31}", fullmatch=True)


@given(NAMES, NAMES, NAMES)
def test_no_service_and_no_pool_have_one_name_in_haproxy(service: str, other: str, pool: str) -> None:
    backends = {backend_name(pool, None), backend_name(pool, other)}
    assert frontend_name(service) not in backends | {"_statistics", "_pools", "_together"}
    assert {pool_of_backend(b) for b in backends} == {pool}


def test_a_service_may_be_called_as_its_pool() -> None:
    names = [p.name for p in haproxy(rendered(profile())["/etc/haproxy.cfg"].text) if p.kind in ("frontend", "backend")]
    assert names == ["_statistics", "service:web", "web"]


@pytest.mark.parametrize(
    ("service", "tunnel"),
    [
        ("protocol: http", "3600s"),
        ("protocol: http, timeouts: {tunnel_s: 60}", "60s"),
        ("protocol: tcp", None),
        ("protocol: tcp, timeouts: {client_s: 28800, server_s: 28800}", None),
        ("protocol: tcp, timeouts: {tunnel_s: 7200}", "7200s"),
    ],
)
def test_the_tunnel_time_out_of_tcp_is_there_only_where_it_is_stated(service: str, tunnel: str | None) -> None:
    line = section(rendered(profile(service, "check: tcp")), "web").first("timeout", "tunnel")
    assert (line.words[2] if line is not None else None) == tunnel


@pytest.mark.parametrize(
    ("service", "code", "mended"),
    [
        ("protocol: tcp, timeouts: {client_s: 28800}", "timeouts-differ",
         "protocol: tcp, timeouts: {client_s: 28800, server_s: 28800}"),
        ("protocol: tcp, timeouts: {server_s: 28800}", "timeouts-differ",
         "protocol: tcp, timeouts: {server_s: 28800, client_s: 28800}"),
        ("protocol: tcp, timeouts: {client_s: 60, tunnel_s: 7200}", "tunnel-overrules",
         "protocol: tcp, timeouts: {tunnel_s: 7200}"),
    ],
)  # fmt: skip
def test_a_time_out_that_another_one_makes_void_is_told_and_the_fix_mends_it(
    service: str, code: str, mended: str
) -> None:
    assert codes(profile(service, "check: tcp")) == {code}
    assert codes(profile(mended, "check: tcp")) == set()


def test_time_outs_that_are_meant_are_not_told() -> None:
    for timeouts in ("{client_s: 10}", "{client_s: 30, server_s: 60}", "{connect_s: 1}"):
        assert codes(profile(f"protocol: tcp, timeouts: {timeouts}", "check: tcp")) == set()
    assert codes(profile("protocol: http, timeouts: {client_s: 600}")) == set()


def test_a_check_that_leaves_a_dead_server_in_for_long_says_for_how_long() -> None:
    slow = profile(pool="check: {type: http, interval_s: 30}")
    (finding,) = rules.findings(slow)
    assert finding.code == "slow-detection"
    assert f"for up to {slow.detection_s('web'):.0f} s more (every 30 s, 3 failures" in finding.what
    assert f"after up to {slow.recovery_s('web'):.0f} s" in finding.what
    assert codes(profile(pool="check: {type: http, interval_s: 5, retry_delay_s: 1}")) == set()
    assert codes(profile(pool="check: {type: http, interval_s: 10}")) == set()


def test_a_limit_and_retries_are_written_where_they_count() -> None:
    tree = rendered(profile("protocol: http, limits: {connections: {count: 200}}", "check: http, retries: 5"))
    assert section(tree, "service:web").first("maxconn") is not None
    assert [line.words for line in section(tree, "service:web").all("maxconn")] == [("maxconn", "200")]
    assert [line.words for line in section(tree, "web").all("retries")] == [("retries", "5")]
    assert [line.words for line in section(tree, "").all("maxconn")] == [("maxconn", "300")]


@pytest.mark.parametrize(
    ("service", "pool", "code"),
    [
        ("topology: dr, protocol: tcp, limits: {connections: {count: 5}}", "check: tcp", "limits-need-proxy"),
        ("topology: dr, protocol: tcp", "check: tcp, retries: 0", "retries-need-proxy"),
    ],
)
def test_what_only_haproxy_has_is_refused_where_the_kernel_balances(service: str, pool: str, code: str) -> None:
    assert code in codes(profile(service, pool))
    assert code not in codes(profile(service.replace("topology: dr, ", ""), pool))


# -- no HAProxy --------------------------------------------------------------------------------------------------------

KERNEL = "topology: dr, protocol: tcp"


def traces(example: Profile) -> dict[str, bool]:
    """Where HAProxy shows."""
    tree = rendered(example)
    firewall = tree["/etc/config/firewall"].text
    return {
        "package": "haproxy" in package_plan.plan(example, "lb1").add,
        "file": "/etc/haproxy.cfg" in tree,
        "kept": "haproxy" in tree["/etc/sysupgrade.conf"].text,
        "firewall": "statistics" in firewall or "8404" in firewall,
        "sysctl": "ip_nonlocal_bind" in tree["/etc/sysctl.conf"].text,
    }


def test_an_image_that_proxies_nothing_has_no_haproxy_unless_its_statistics_are_asked_for() -> None:
    bare = profile(KERNEL, "check: tcp")
    assert not bare.runs_haproxy
    assert set(traces(bare).values()) == {False}
    assert lint(rendered(bare), bare, "lb1") == []
    for example in (
        profile(KERNEL, "check: tcp", "monitoring: {statistics: {}}\n"),
        profile("protocol: tcp", "check: tcp"),
    ):
        assert set(traces(example).values()) == {True}
        assert lint(rendered(example), example, "lb1") == []


def test_a_haproxy_cfg_that_nobody_needs_is_found() -> None:
    bare = profile(KERNEL, "check: tcp")
    tree = rendered(bare)
    extra = rendered(profile("protocol: tcp", "check: tcp"))["/etc/haproxy.cfg"]
    assert "lint-haproxy" in {e.code for e in lint(Tree([*tree.values(), extra]), bare, "lb1")}


# -- files of one's own ------------------------------------------------------------------------------------------------

OWN = {
    "etc/rc.local": "#!/bin/sh\nlogger started\nexit 0\n",
    "etc/uci-defaults/90-own": "#!/bin/sh\nexit 0\n",
    "etc/hotplug.d/iface/90-own": "#!/bin/sh\nlogger $ACTION\n",
    "etc/profile.d/own.sh": "#!/bin/sh\nalias ll='ls -l'\n",
    "etc/own/agent.conf.j2": "# {{ header | comment }}\nserver 192.0.2.1\n",
    "usr/bin/own": "#!/bin/sh\nexit 0\n",
}


@pytest.fixture
def own_templates(tmp_path: Path) -> tuple[Path, ...]:
    for name, text in OWN.items():
        file = tmp_path / "templates/rootfs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return (tmp_path / "templates", *goldens.TEMPLATES)


def test_files_of_ones_own_are_taken_and_kept_without_a_copy_of_ours(own_templates: tuple[Path, ...]) -> None:
    example = profile()
    tree = render(example, "lb1", own_templates)
    assert lint(tree, example, "lb1") == []
    assert oct(tree["/usr/bin/own"].mode) == "0o755"
    listed = re.findall(r"^/.*$", tree["/etc/sysupgrade.conf"].text, re.MULTILINE)
    own = {"/etc/own/agent.conf", "/usr/bin/own", "/etc/hotplug.d/iface/90-own", "/etc/profile.d/own.sh"}
    assert own <= set(listed)
    assert not {"/etc/rc.local", "/etc/uci-defaults/90-own", "/etc/config/network"} & set(listed)
    assert set(listed) < set(tree)


def test_a_program_of_ones_own_in_a_place_without_x_bit_is_still_refused(own_templates: tuple[Path, ...]) -> None:
    (own_templates[0] / "rootfs/etc/own/run.sh").write_text("#!/bin/sh\nexit 0\n")
    example = profile()
    (finding,) = lint(render(example, "lb1", own_templates), example, "lb1")
    assert "a script without the x bit cannot be run" in finding.what


def test_a_list_of_files_beyond_the_tree_is_kept_by_its_own_file(own_templates: tuple[Path, ...]) -> None:
    place = own_templates[0] / "rootfs/lib/upgrade/keep.d/own"
    place.parent.mkdir(parents=True)
    place.write_text("/etc/ssl/private/\n")
    example = profile()
    tree = render(example, "lb1", own_templates)
    assert lint(tree, example, "lb1") == []
    assert "/lib/upgrade/keep.d/own" in tree
    assert "keep.d/own" not in tree["/etc/sysupgrade.conf"].text.partition("\n/")[2]


def test_a_file_that_only_a_list_of_ones_own_keeps_is_no_mistake(own_templates: tuple[Path, ...]) -> None:
    """Where somebody has a sysupgrade.conf of their own, keep.d counts as well."""
    (own_templates[0] / "rootfs/etc/sysupgrade.conf").write_text("/etc/\n")
    place = own_templates[0] / "rootfs/lib/upgrade/keep.d/own"
    place.parent.mkdir(parents=True)
    place.write_text("/usr/\n")
    example = profile()
    assert lint(render(example, "lb1", own_templates), example, "lb1") == []
    place.write_text("/opt/\n")
    assert {e.code for e in lint(render(example, "lb1", own_templates), example, "lb1")} == {"lint-not-kept"}
