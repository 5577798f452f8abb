"""Every lint rule, shown failing: a right tree gets one thing wrong, and exactly that is found, with its line."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_network

import pytest
import yaml

import goldens
from counting import lines_run
from ndakit import lint_admin, lint_firewall
from ndakit.errors import NdakitError
from ndakit.lint import LintFinding, lint
from ndakit.lint_subject import Subject
from ndakit.render import RenderedFile, Tree, render

NET, FW, SSH = "/etc/config/network", "/etc/config/firewall", "/etc/config/dropbear"
HA, KA, KU = "/etc/haproxy.cfg", "/etc/keepalived/keepalived.conf", "/etc/config/keepalived"
CTL, KEYS, SCRIPT = "/etc/sysctl.conf", "/etc/dropbear/authorized_keys", "/usr/libexec/ndakit/haproxy-runs"
UP = "/etc/sysupgrade.conf"

CASES: list[dict[str, str]] = yaml.safe_load((goldens.ROOT / "tests" / "lint_cases.yaml").read_text())


def changed(name: str, *files: RenderedFile, without: str = "") -> Tree:
    """An example's tree with some files in place of its own, and one left out."""
    tree = {p: f for p, f in goldens.tree(name).items() if p != without}
    return Tree([*(tree | {f.path: f for f in files}).values()])


def findings(name: str, tree: Tree) -> list[NdakitError]:
    return lint(tree, goldens.profile(name), next(iter(goldens.profile(name).nodes)))


def rules(found: list[NdakitError]) -> set[str]:
    return {e.code.removeprefix("lint-") for e in found}


@pytest.mark.parametrize(("name", "node"), goldens.cases())
def test_every_golden_tree_is_clean(name: str, node: str) -> None:
    assert [e.text() for e in lint(goldens.tree(name, node), goldens.profile(name), node)] == []


@pytest.mark.parametrize("case", CASES, ids=[f"{c['rule']}-{i}" for i, c in enumerate(CASES)])
def test_rule_finds_its_mistake(case: dict[str, str]) -> None:
    path, name = case["file"], case["profile"]
    file = goldens.tree(name)[path]
    assert case["old"] in file.text, "the example does not hold what this case changes"
    broken = dataclasses.replace(file, content=file.text.replace(case["old"], case["new"], 1).encode())
    found = findings(name, changed(name, broken))
    assert case["rule"] in rules(found)
    for finding in found:
        assert isinstance(finding, LintFinding)
        assert finding.path in finding.where
        assert finding.line == 0 or finding.line <= broken.text.count("\n") + 1 or finding.path != path


@pytest.mark.parametrize(
    ("rule", "name", "path"),
    [("uci-missing", "apache-pair", NET), ("uci-missing", "apache-pair", FW), ("uci-missing", "apache-pair", SSH),
     ("uci-missing", "apache-pair", "/etc/config/system"), ("haproxy", "apache-pair", HA),
     ("keepalived", "apache-pair", KA), ("keepalived", "apache-pair", KU), ("keepalived-script", "apache-pair", SCRIPT),
     ("ssh-key", "apache-pair", KEYS), ("haproxy-file", "apache-pair", "/etc/ndakit/sorry-apache.http"),
     ("sysctl", "apache-pair", CTL), ("not-kept", "apache-pair", UP), ("respawn", "fw3-1806", "/etc/init.d/haproxy"),
     ("vips-watch", "bakery", "/etc/init.d/ndakit-vips"), ("vips-watch", "bakery", "/usr/libexec/ndakit/vips-watch")],
)  # fmt: skip
def test_rule_finds_a_missing_file(rule: str, name: str, path: str) -> None:
    assert rule in rules(findings(name, changed(name, without=path)))


@pytest.mark.parametrize(
    ("rule", "file"),
    [("place", RenderedFile("/tmp/x", b"", 0o644, "x")), ("place", RenderedFile("/etc/.git/x", b"", 0o644, "x")),
     ("mode", RenderedFile("/etc/x", b"", 0o666, "x")), ("mode", RenderedFile("/etc/x", b"#!/bin/sh\n", 0o644, "x")),
     ("mode", RenderedFile(KEYS, b"ssh-ed25519 AAAA\n", 0o644, "x")),
     ("encoding", RenderedFile("/etc/x", b"\xe4\n", 0o644, "x")),
     ("not-kept", RenderedFile("/etc/x", b"", 0o644, "x"))],
)  # fmt: skip
def test_rule_finds_a_wrong_file(rule: str, file: RenderedFile) -> None:
    assert rule in rules(findings("apache-pair", changed("apache-pair", file)))


def test_a_lonely_node_with_vrrp_files_is_noticed() -> None:
    file = goldens.tree("bakery")[KA]
    assert "keepalived" in rules(findings("standalone", changed("standalone", file)))


def test_a_script_without_the_x_bit_is_noticed_by_keepalived() -> None:
    file = dataclasses.replace(goldens.tree("bakery")[SCRIPT], mode=0o644)
    assert {"mode", "keepalived-script"} <= rules(findings("bakery", changed("bakery", file)))


def test_a_finding_names_rule_file_line_and_fix() -> None:
    file = goldens.tree("bakery")[FW]
    broken = dataclasses.replace(file, content=file.text.replace("dest_port '80'", "dport '80'").encode())
    line = broken.text.splitlines().index("\toption dport '80'") + 1
    error = next(e for e in findings("bakery", changed("bakery", broken)) if e.code == "lint-unknown-option")
    assert error.text() == (
        "error: unknown option 'dport' in a section of type 'rule' [unknown-option]\n"
        f"  where: lb1:/etc/config/firewall:{line}:1\n"
        "  fix:   if you changed templates/rootfs/etc/config/firewall.j2, mend it there; if not, this is a fault of "
        "ndakit: report it with this profile"
    )
    assert error.exit_code == 4


def test_every_rule_of_the_source_is_shown_failing() -> None:
    import re

    modules = ("lint", "lint_uci", "lint_firewall", "lint_admin", "lint_daemons", "lint_pair", "lint_ipvs")
    source = "".join((goldens.ROOT / "src" / "ndakit" / f"{m}.py").read_text() for m in modules)
    stated = set(re.findall(r'finding\(\s*"([a-z-]+)"', source))
    shown = {c["rule"] for c in CASES} | {"uci-missing", "place", "mode", "encoding"}
    assert stated == shown


def test_ten_times_more_sources_take_no_more_than_their_share_of_work() -> None:
    def steps(count: int) -> int:
        sources = {"many": tuple(ip_network((0x0A000000 + 512 * n, 24)) for n in range(count))}
        base = goldens.profile("apache-pair")
        profile = base.model_copy(update={"access": base.access.model_copy(update={"sources": sources})})
        subject = Subject(render(profile, "lb1", goldens.TEMPLATES), profile, "lb1")
        assert subject.configs
        found: list[LintFinding] = []
        work = lines_run(lambda: found.extend([*lint_firewall.rules(subject), *lint_admin.rules(subject)]))
        assert found == []
        return work

    assert steps(500) < 25 * steps(50)  # quadratic work would be a hundred times as much
