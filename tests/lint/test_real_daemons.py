"""The real daemons take what we render, and say where when they do not.

The first run downloads the daemons (the lab's cache); later ones need no network.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import goldens
from ndakit.cli import profiles
from ndakit.core import process
from ndakit.core.errors import NdakitError
from ndakit.core.release import Release
from ndakit.core.workspace import cache
from ndakit.lint import real_daemons
from ndakit.lint.real_daemons import DaemonRefuses, NamespacesRefused, NewHaproxy, check, interfaces, newer_haproxy
from ndakit.model.sorry_pages import BUFFER_BYTES
from ndakit.render.render import RenderedFile, Tree, render

HA, KA, SCRIPT = "/etc/haproxy.cfg", "/etc/keepalived/keepalived.conf", "/usr/libexec/ndakit/daemon-runs"
CT, INIT = "/etc/conntrackd/conntrackd.conf", "/etc/init.d/conntrackd"


def checked(tree: Tree) -> list[NdakitError]:
    return check(tree, cache() / "lab")


def changed(path: str, old: str, new: str, profile: str = "apache-pair") -> Tree:
    file = goldens.tree(profile)[path]
    assert old in file.text
    broken = dataclasses.replace(file, content=file.text.replace(old, new, 1).encode())
    return Tree([*(dict(goldens.tree(profile)) | {path: broken}).values()])


@pytest.mark.parametrize("name", sorted(goldens.PROFILES))
def test_the_daemons_take_every_golden_tree(name: str) -> None:
    assert [e.text() for e in checked(goldens.tree(name))] == []


@pytest.mark.parametrize(
    ("old", "new", "says", "line"),
    [
        ("\txHTTP 2\n", "\txHTTP two\n", "expected number", 31),
        ("\txHTTP 2\n", "\tTProxy 1\n", "unrecognized keyword", 31),
        ("HeaderOption forwarded no-ssl", 'AddHeader "X-SSL-Request: 1"', "deprecated", 33),
        ("private/shops.pem", "private/nowhere.pem", "No such file", 25),
    ],
)
def test_pound_says_what_it_does_not_take_and_what_it_only_warns_of(old: str, new: str, says: str, line: int) -> None:
    errors = checked(changed("/etc/pound/pound.cfg", old, new, "wildcard-shops"))
    assert errors, "Pound took it"
    first = next(one for one in errors if says in one.what)
    assert isinstance(first, DaemonRefuses)
    assert first.program == "pound"
    assert first.where == f"/etc/pound/pound.cfg:{line}:1"
    assert first.fix.startswith("if you changed templates/rootfs/etc/pound/pound.cfg.j2")


@pytest.mark.parametrize(
    ("old", "new", "says", "line"),
    [
        ("renegotiation = no", "renegotiaton = no", "Specified option name is not valid here", 17),
        ("private/shop.pem", "private/nowhere.pem", "No such file", 1),
        ("protocol = proxy", "protocol = prxy", "Protocol not supported", 1),
    ],
)
def test_stunnel_is_started_to_hear_what_it_does_not_take(old: str, new: str, says: str, line: int) -> None:
    errors = checked(changed("/etc/stunnel/stunnel.conf", old, new, "stunnel"))
    first = next(one for one in errors if says in one.what)
    assert isinstance(first, DaemonRefuses) and first.program == "stunnel"
    assert first.where in (f"/etc/stunnel/stunnel.conf:{line}:1", "/etc/stunnel/stunnel.conf")


@pytest.mark.parametrize(
    "changes",
    [
        (
            ("172.31.255.0/29", '"fd00:0:0:9::/64"'),
            ("172.31.255.1", '"fd00:0:0:9::1"'),
            ("172.31.255.2", '"fd00:0:0:9::2"'),
        ),
        (("vrrp: {", "vrrp: {unicast: false, "),),
        (("iot-gw: {network: iot,", "iot-gw: {network: iot, group: things,"),),
        (('[192.168.1.1, "fe80::1"]', '"fe80::1"'),),
    ],
    ids=["ipv6", "multicast", "two-groups", "link-local-alone"],
)
def test_keepalived_takes_every_kind_of_heartbeat_and_link_local_gateways(changes: tuple[tuple[str, str], ...]) -> None:
    text = goldens.PROFILES["heartbeat"].read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    assert [e.text() for e in checked(render(goldens.parse(text), "lb1", goldens.TEMPLATES))] == []


@pytest.mark.parametrize("run_as", ["nobody", "root"])
@pytest.mark.parametrize("used", [False, True], ids=["watched-alone", "of-a-service"])
def test_keepalived_takes_scripts_of_either_user(run_as: str, used: bool) -> None:
    text = goldens.PROFILES["handover"].read_text()
    check = f"check: {{type: script, script: check.sh, run_as: {run_as}}}, "
    alone = (
        ("demote_on: [apache, inner]", "demote_on: [uplink]"),
        ("pools:\n", f"pools:\n  uplink: {{{check}servers: {{router: 203.0.113.1}}}}\n"),
    )
    for old, new in (("inner: {servers", f"inner: {{{check}servers"),) if used else alone:
        assert old in text
        text = text.replace(old, new)
    tree = render(goldens.parse(text, goldens.PROFILES["handover"].parent), "lb1", goldens.TEMPLATES)
    assert f"user {run_as}\n" in tree[KA].text
    assert [e.text() for e in checked(tree)] == []


def test_who_did_not_change_a_template_is_not_told_to_mend_it() -> None:
    (refused,) = [e for e in checked(changed(KA, "advert_int 1", "advert_imt 1")) if "advert_imt" in e.what]
    assert refused.fix is not None
    assert refused.fix.startswith("if you changed ")
    assert refused.fix.endswith("; if not, this is a fault of ndakit: report it with this profile")


@pytest.mark.parametrize(
    ("path", "old", "new", "program", "message"),
    [
        (HA, "balance roundrobin", "balance roundtobin", "haproxy", "balance only supports"),
        (HA, "backend apache\n\tmode http", "backend apache\n\tmode tcp", "haproxy", "incompatible tcp backend"),
        (
            HA,
            "\tmode http\n\tbalance",
            "\tmode tcp\n\tcookie SRV insert\n\tbalance",
            "haproxy",
            "cookie will be ignored",
        ),
        (HA, "weight 1\n", "weight 1", "haproxy", "Missing LF"),
        (HA, "sorry-apache", "sorry-other", "haproxy", "sorry-other"),
        (KA, "advert_int 1", "advert_imt 1", "keepalived", "advert_imt"),
        (KA, "203.0.113.10/32", "203.0.113.10/33", "keepalived", "203.0.113.10/33"),
        (KA, "virtual_router_id 114", "virtual_router_id 300", "keepalived", "300"),
        (SCRIPT, 'exit "$unsteady"', "if true", "shell", ""),
        (SCRIPT, 'exit "$unsteady"', "exit $unsteady", "shell", "SC"),
    ],
)
def test_a_daemon_names_the_line_of_what_it_refuses(path: str, old: str, new: str, program: str, message: str) -> None:
    refusals = [e for e in checked(changed(path, old, new)) if isinstance(e, DaemonRefuses) and e.program == program]
    assert refusals
    assert any(message in e.what for e in refusals)
    assert any(e.location is not None and e.location.file == path and e.location.line for e in refusals)


@pytest.mark.parametrize(
    ("path", "old", "new", "program", "message"),
    [
        (CT, "HashSize", "HashSise", "conntrackd", "HashSise"),
        (CT, "Checksum on", "Checksum maybe", "conntrackd", "maybe"),
        (INIT, "procd_close_instance\n}", "procd_close_instance", "shell", ""),
        (HA, "peer handover-lb1", "peer handover-lb9", "haproxy", "peer"),
        (KA, "weight -20", "weight -2000", "keepalived", "-2000"),
        (KA, "lvs_sync_daemon eth1", "lvs_sync_daemon eth1 inst nobody", "keepalived", ""),
    ],
)
def test_what_makes_a_pair_is_refused_when_it_is_wrong(
    path: str, old: str, new: str, program: str, message: str
) -> None:
    tree = changed(path, old, new, "handover")
    refusals = [e for e in checked(tree) if isinstance(e, DaemonRefuses) and e.program == program]
    assert any(message in e.what for e in refusals)


def test_nft_files_are_read_inside_fw4s_table() -> None:
    good = RenderedFile("/etc/nftables.d/a.nft", b"chain x {\n\ttcp dport 80 accept\n}\n", 0o644, "a")
    bad = RenderedFile("/etc/nftables.d/b.nft", b"chain x {\n\ttcp dport http80 accept\n}\n", 0o644, "b")
    assert checked(Tree([good])) == []
    (error,) = checked(Tree([bad]))
    assert error.where == "/etc/nftables.d/b.nft:2:1"
    assert error.fix == "mend b"


@pytest.mark.parametrize("wrong", [False, True])
def test_what_this_machines_kernel_lacks_is_no_fault_of_the_file_and_the_rest_is_still_read(
    monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    path, asked = "/etc/nftables.d/20-tproxy.nft", real_daemons._run

    def without_nft_socket(root: Path, script: str) -> process.Done:
        done = asked(root, script)
        if not script.startswith("nft") or "socket transparent" not in (root / path.lstrip("/")).read_text():
            return done
        said = f"{path}:6:1-9: Error: Could not process rule: No such file or directory"
        return dataclasses.replace(done, returncode=1, stderr=said)

    monkeypatch.setattr(real_daemons, "_run", without_nft_socket)
    file = goldens.tree("iis-tproxy")[path]
    content = file.content.replace(b"counter accept", b"kounter accept") if wrong else file.content
    errors = checked(Tree([dataclasses.replace(file, content=content)]))
    assert [e.where for e in errors] == ([f"{path}:7:1"] if wrong else [])


def test_a_sorry_page_as_large_as_allowed_is_not_cut_off(tmp_path: Path) -> None:
    (tmp_path / "large.html").write_bytes(b"x" * BUFFER_BYTES)
    text = goldens.PROFILES["bakery"].read_text()
    text = text.replace("{web: {check: http,", "{web: {check: http, sorry: {page: large.html},")
    tree = render(goldens.parse(text, tmp_path), "lb1", goldens.TEMPLATES)
    assert checked(tree) == []
    small = dataclasses.replace(tree[HA], content=tree[HA].content.replace(b"\ttune.bufsize 20480\n", b""))
    (error,) = checked(Tree([*(dict(tree) | {HA: small}).values()]))
    assert "payload size does not match the announced content-length" in error.what


def test_the_cached_root_stays_as_it_was() -> None:
    base = next((cache() / "lab" / "roots").glob("daemons-*"))
    before = {p: p.lstat().st_mtime_ns for p in (base / "etc").rglob("*")}
    checked(goldens.tree("apache-pair"))
    assert {p: p.lstat().st_mtime_ns for p in (base / "etc").rglob("*")} == before


def test_interfaces_are_those_of_instances_and_vips() -> None:
    assert sorted(interfaces(goldens.tree("links")[KA].text)) == [
        "bond-store",
        "br-dmz-a",
        "eth6.20",
        "vlan-officec32f",
    ]


def test_a_machine_without_user_namespaces_gets_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = process.Done(("unshare",), 1, "", "unshare: unshare failed: Operation not permitted\n", 0.0)
    real = process.run

    def run(argv: process.Argv, **options: Any) -> process.Done:
        return refused if argv[0] == "unshare" else real(argv, **options)

    monkeypatch.setattr("ndakit.core.process.run", run)
    with pytest.raises(NamespacesRefused, match="Operation not permitted") as caught:
        checked(goldens.tree("bakery"))
    assert caught.value.exit_code == 3


@pytest.fixture(scope="module")
def newest() -> NewHaproxy:
    program = newer_haproxy(cache() / "lab", (3, 2), download=True)
    if program is None:
        pytest.skip("Debian's testing, with HAProxy 3.2, cannot be reached")
    return program


NEWEST = sorted(n for n in goldens.PROFILES if goldens.profile(n).release.haproxy >= (3, 2))


@pytest.mark.parametrize("name", [*NEWEST, "apache-pair", "handover"])
def test_the_newest_haproxy_takes_every_golden_tree(name: str, newest: NewHaproxy) -> None:
    errors = check(goldens.tree(name), cache() / "lab", haproxy=newest)
    assert [e.text() for e in errors] == []


def test_a_backend_with_a_frontends_name_is_told_by_the_newest_haproxy_only(newest: NewHaproxy) -> None:
    tree = changed(HA, "frontend service:www", "frontend apache")
    assert [e for e in checked(tree) if isinstance(e, DaemonRefuses) and e.program == "haproxy"] == []
    (refused,) = check(tree, cache() / "lab", haproxy=newest)
    assert "apache" in refused.what
    assert refused.location is not None
    assert refused.location.file == HA


def test_a_haproxy_that_is_new_enough_is_looked_for_and_a_future_one_is_not_had(newest: NewHaproxy) -> None:
    assert newest.branch >= (3, 2)
    assert newer_haproxy(cache() / "lab", (99, 0), download=False) is None


def test_without_a_mirror_there_is_no_newer_haproxy(tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    lab.mkdir()
    (lab / "debian.py").write_text("raise SystemExit(3)\n")
    assert newer_haproxy(tmp_path, (3, 2), download=True, lab=lab) is None
    assert newer_haproxy(tmp_path, (3, 2), download=False) is None


@pytest.mark.parametrize(
    ("release", "newer", "words"),
    [
        ("24.10.8", None, "haproxy 3.0, keepalived"),
        ("25.12.5", NewHaproxy(Path("/newer"), (3, 2)), "haproxy 3.2, keepalived"),
        ("25.12.5", None, "haproxy 3.0 (the release has 3.2, and Debian has none as new here), keepalived"),
        ("22.03.7", None, "haproxy 3.0 (the release has 2.4, an older one), keepalived"),
    ],
)
def test_check_says_which_haproxy_was_asked(
    monkeypatch: pytest.MonkeyPatch, release: str, newer: NewHaproxy | None, words: str
) -> None:
    asked: list[NewHaproxy | None] = []
    monkeypatch.setattr(real_daemons, "daemons_root", lambda cache: Path("/base"))
    monkeypatch.setattr(real_daemons, "haproxy_branch", lambda root: (3, 0))
    monkeypatch.setattr(real_daemons, "newer_haproxy", lambda cache, wanted, download: newer)

    def ask(tree: Tree, cache: Path, haproxy: NewHaproxy | None) -> list[NdakitError]:
        asked.append(haproxy)
        return []

    monkeypatch.setattr(real_daemons, "check", ask)
    said = profiles._ask_daemons(goldens.tree("bakery"), [], Release.parse(release), download=True)
    assert said.startswith(words)
    assert asked == [newer]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shop-nat", "keepalived, conntrackd and sh accept what they get"),
        ("standalone", "haproxy 3.0 and sh accept what they get"),
        ("fw3-1907", "haproxy 3.0 (the release has 2.0, an older one), keepalived and sh accept what they get"),
    ],
)
def test_check_names_only_the_programs_that_have_something_to_read(
    monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.setattr(real_daemons, "daemons_root", lambda cache: Path("/base"))
    monkeypatch.setattr(real_daemons, "haproxy_branch", lambda root: (3, 0))
    monkeypatch.setattr(real_daemons, "newer_haproxy", lambda cache, wanted, download: None)
    monkeypatch.setattr(real_daemons, "check", lambda tree, cache, haproxy: [])
    assert profiles._ask_daemons(goldens.tree(name), [], goldens.profile(name).release, download=True) == words
