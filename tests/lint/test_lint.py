"""Every lint rule, shown failing: a right tree gets one thing wrong, and exactly that is found, with its line."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_network

import pytest
import yaml

import goldens
from counting import lines_run
from ndakit.core.errors import NdakitError
from ndakit.lint import admin
from ndakit.lint import firewall as lint_firewall
from ndakit.lint.lint import LintFinding, lint
from ndakit.lint.subject import Subject
from ndakit.render.render import RenderedFile, Tree, render

NET, FW, SSH = "/etc/config/network", "/etc/config/firewall", "/etc/config/dropbear"
HA, KA, KU = "/etc/haproxy.cfg", "/etc/keepalived/keepalived.conf", "/etc/config/keepalived"
CTL, KEYS, SCRIPT = "/etc/sysctl.conf", "/etc/dropbear/authorized_keys", "/usr/libexec/ndakit/daemon-runs"
UP = "/etc/sysupgrade.conf"

CASES: list[dict[str, str]] = yaml.safe_load((goldens.DATA / "lint_cases.yaml").read_text())


def changed(name: str, *files: RenderedFile, without: str = "") -> Tree:
    """An example's tree with some files in place of its own, and one left out."""
    tree = {p: f for p, f in goldens.tree(name).items() if p != without}
    return Tree([*(tree | {f.path: f for f in files}).values()])


def findings(name: str, tree: Tree) -> list[NdakitError]:
    return lint(tree, goldens.profile(name), next(iter(goldens.profile(name).nodes)))


def rules(errors: list[NdakitError]) -> set[str]:
    return {e.code.removeprefix("lint-") for e in errors}


@pytest.mark.parametrize(("name", "node"), goldens.cases())
def test_every_golden_tree_is_clean(name: str, node: str) -> None:
    assert [e.text() for e in lint(goldens.tree(name, node), goldens.profile(name), node)] == []


@pytest.mark.parametrize("case", CASES, ids=[f"{c['rule']}-{i}" for i, c in enumerate(CASES)])
def test_rule_finds_its_mistake(case: dict[str, str]) -> None:
    path, name = case["file"], case["profile"]
    file = goldens.tree(name)[path]
    assert case["old"] in file.text, "the example does not hold what this case changes"
    broken = dataclasses.replace(file, content=file.text.replace(case["old"], case["new"], 1).encode())
    errors = findings(name, changed(name, broken))
    assert case["rule"] in rules(errors)
    for finding in errors:
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
     ("divert", "iis-tproxy", "/etc/nftables.d/20-tproxy.nft"), ("divert", "tproxy-1806", "/etc/firewall.user"),
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

    source = "".join(path.read_text() for path in (goldens.ROOT / "src/ndakit/lint").glob("*.py"))
    stated = set(re.findall(r'finding\(\s*"([a-z-]+)"', source))
    shown = {c["rule"] for c in CASES} | {"uci-missing", "place", "mode", "encoding"}
    assert stated == shown


NFT = "/etc/nftables.d/10-x.nft"
EARLY = "chain early {\n type filter hook input priority -10; %s\n}\n"
ROOT = "root:x:0:0:root:/root:%s\ndaemon:*:1:1:daemon:/var:/bin/false\n"
NO_WAY_IN = [
    ("/etc/sysctl.d/99-x.conf", "net.ipv4.conf.all.arp_ignore=8\n", 1),
    ("/etc/sysctl.d/99-x.conf", "# low\nnet.ipv4.ip_default_ttl = 1\n", 2),
    ("/etc/sysctl.d/99-x.conf", "-net/ipv4/conf/eth0.7/arp_ignore=2\n", 1),
    (NFT, EARLY % "policy drop;", 2),
    (NFT, EARLY % "tcp dport 80 accept\n counter drop", 3),
    (NFT, EARLY % 'tcp dport { 80,\n443 } accept\n log prefix "a; b }" level info reject with tcp reset', 4),
    (NFT, EARLY % "drop; accept;", 2),
    (NFT, "chain a {\n counter jump b\n}\nchain b {\n drop\n}\n" + EARLY % "jump a", 5),
    (NFT, "chain a {\n goto a\n}\n" + EARLY % "policy drop; goto a", 5),
    *((NFT, (EARLY % "policy drop;").replace("input", hook), 2)
      for hook in ("prerouting", "forward", "output", "postrouting")),
    ("/usr/share/nftables.d/ruleset-post/x.nft", "table netdev t {\nchain c {\n type filter hook ingress device eth0 "
     "priority 0; policy drop;\n}\n}\n", 3),
    ("/usr/share/nftables.d/chain-pre/input/x.nft", "# all\ndrop\n", 2),
    ("/etc/passwd", ROOT % "/bin/false", 1),
    ("/etc/passwd", ROOT % "/bin/bash", 1),
    ("/etc/passwd", ROOT % "", 1),
    ("/etc/passwd", (ROOT % "/bin/ash").replace("root:x:0:", "root:x:7:"), 1),
    ("/etc/passwd", "daemon:*:1:1:daemon:/var:/bin/false\n", 0),
    ("/etc/shells", "/bin/bash\n", 0),
]  # fmt: skip


@pytest.mark.parametrize(("path", "text", "line"), NO_WAY_IN, ids=[f"{p}-{i}" for i, (p, *_) in enumerate(NO_WAY_IN)])
def test_a_file_of_ones_own_that_shuts_everybody_out_is_refused(path: str, text: str, line: int) -> None:
    tree = changed("apache-pair", RenderedFile(path, text.encode(), 0o644, f"templates/rootfs{path}"))
    (error,) = [e for e in findings("apache-pair", tree) if e.code == "lint-no-way-in"]
    assert isinstance(error, LintFinding)
    assert (error.path, error.line) == (path, line)
    assert f"templates/rootfs{path}" in error.text()


@pytest.mark.parametrize(
    ("path", "text"),
    [("/etc/sysctl.d/99-x.conf", "net.ipv4.ip_default_ttl=64\n;net.ipv4.ip_default_ttl=1\n"),
     ("/etc/sysctl.d/20-x.conf", "net.ipv4.ip_nonlocal_bind=0\nnet.ipv4.ip_forward=0\n"),  # sysctl.conf comes later
     ("/etc/sysctl.d/20-x", "net.ipv4.ip_default_ttl=1\n"),
     (NFT, EARLY % "policy accept; tcp dport 81 drop; # policy drop;"),
     (NFT, EARLY % 'policy drop; ct state invalid drop comment "drop }"; accept'),
     (NFT, "chain mine {\n drop\n}\n"),
     (NFT, "chain mine {\n drop\n}\n" + EARLY % "tcp dport 81 jump mine"),
     (NFT, "chain mine {\n accept\n}\n" + EARLY % "policy drop; goto mine"),
     ("/etc/nftables.d/10-x.nft.off", EARLY % "policy drop;"),
     ("/usr/share/nftables.d/chain-post/input/x.nft", "drop\n"),
     ("/etc/passwd", ROOT % "/bin/ash"),
     ("/etc/shells", "/bin/sh\n/bin/ash\n")],
)  # fmt: skip
def test_a_file_of_ones_own_that_shuts_nobody_out_is_taken(path: str, text: str) -> None:
    tree = changed("apache-pair", RenderedFile(path, text.encode(), 0o644, f"templates/rootfs{path}"))
    assert rules(findings("apache-pair", tree)) <= {"not-kept"}


def test_of_files_about_one_kernel_value_the_last_counts() -> None:
    files = [
        RenderedFile(f"/etc/sysctl.d/{name}.conf", f"net.ipv4.ip_default_ttl={ttl}\n".encode(), 0o644, "x")
        for name, ttl in (("10-a", 1), ("20-b", 64))
    ]
    assert "no-way-in" not in rules(findings("apache-pair", changed("apache-pair", *files)))


def test_a_kernel_value_that_the_profile_decides_is_refused_in_a_file_of_ones_own() -> None:
    text = b"net.ipv6.conf.eth0.disable_ipv6=1\n"
    file = RenderedFile("/etc/sysctl.d/20-x.conf", text, 0o644, "x")
    assert "sysctl" in rules(findings("apache-pair", changed("apache-pair", file)))


def test_an_included_nft_file_is_looked_into() -> None:
    firewall = goldens.tree("apache-pair")[FW]
    include = "\nconfig include\n\toption type 'nftables'\n\toption path '/etc/x.nft'\n\toption position 'chain-pre'\n"
    more = dataclasses.replace(firewall, content=f"{firewall.text}{include}\toption chain 'input'\n".encode())
    tree = changed("apache-pair", more, RenderedFile("/etc/x.nft", b"counter drop\n", 0o644, "x"))
    assert "no-way-in" in rules(findings("apache-pair", tree))


def test_a_shell_of_a_package_is_one_that_dropbear_takes() -> None:
    base = goldens.profile("apache-pair")
    with_bash = base.model_copy(update={"image": base.image.model_copy(update={"packages": {"bash": "add"}})})
    tree = changed("apache-pair", RenderedFile("/etc/passwd", (ROOT % "/bin/bash").encode(), 0o644, "x"))
    assert "no-way-in" not in rules(lint(tree, with_bash, "lb1"))


def test_ten_times_more_sources_take_no_more_than_their_share_of_work() -> None:
    def steps(count: int) -> int:
        sources = {"many": tuple(ip_network((0x0A000000 + 512 * n, 24)) for n in range(count))}
        base = goldens.profile("apache-pair")
        profile = base.model_copy(update={"access": base.access.model_copy(update={"sources": sources})})
        subject = Subject(render(profile, "lb1", goldens.TEMPLATES), profile, "lb1")
        assert subject.configs
        errors: list[LintFinding] = []
        work = lines_run(lambda: errors.extend([*lint_firewall.rules(subject), *admin.rules(subject)]))
        assert errors == []
        return work

    assert steps(500) < 25 * steps(50)  # quadratic work would be a hundred times as much
