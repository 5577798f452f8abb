"""Profile, rendered for all its nodes, imported: the same profile again, and not a line that no key says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imported import boxes, load_again, meaning, settings, trees
from ndakit.core.workspace import Workspace
from ndakit.load import load
from ndakit.model import Profile
from ndakit.operate.import_ import importer
from ndakit.operate.import_.draft import DECIDE
from ndakit.operate.import_.refine import Imported
from ndakit.render.render import Tree
from places import DATA, ROOT

PROFILES = {
    f"{path.parent.name}/{path.stem}": path
    for folder in (ROOT / "profiles", DATA / "profiles", DATA / "valid")
    for path in sorted(folder.glob("*.yaml"))
    if not path.name.startswith("_")
}
SIZED = "sizing: the kernel's and Pound's numbers are computed from it, and no file says from which numbers"
UNCHOSEN = "stunnel.conf does not name a certificate that no name leads to; here all certificates are for all names"
LOST = {
    "profiles/handover": SIZED,
    "valid/pound-small": SIZED,
    "valid/stunnel-small": SIZED,
    **dict.fromkeys(("profiles/stunnel", "profiles/stunnel-1907", "profiles/stunnel-2512"), UNCHOSEN),
    "valid/egress-node-nowhere": "egress: node, where nothing leads out, writes nothing but a kernel value",
}
"""Profiles of which the rendering loses something that `meaning` and the rendered files show, with the reason."""


CHANGED = {
    *("/etc/sysctl.conf", "/etc/pound/pound.cfg", "/etc/stunnel/stunnel.conf", "/etc/init.d/stunnel"),
    "/etc/sysupgrade.conf",
}
"""The files in which it shows."""
UNTOLD = {
    **dict.fromkeys(
        ("profiles/stunnel", "profiles/stunnel-1907", "profiles/stunnel-2512"),
        (("services", "shop", "tls", "certificates"), UNCHOSEN),
    ),
    "valid/egress-node-nowhere": (("networks", "lan", "egress"), "it leads nowhere: nothing is written for it"),
    "valid/heartbeat-alone": (("networks", "hb", "role"), "a node that is alone has no adverts to hear"),
    "valid/own-ports-range": (("vips",), "a gateway that is the node's own address is in no file"),
    "valid/tproxy-warnings": (
        ("services", "own", "pool", "reply_route"),
        "no file shows it",
    ),
}
"""Profiles of which one fact is in no file of a node: where it is in `meaning`, and why."""


def of(name: str) -> tuple[Profile, dict[str, Tree], Imported]:
    """A profile, what is rendered of it, and what is imported of that."""
    profile = load.load(Workspace(DATA), str(PROFILES[name])).profile
    rendered = trees(profile)
    return profile, rendered, importer.convert(Workspace(ROOT), profile.name, boxes(profile, rendered))


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_that_was_rendered_and_imported_is_the_same_again(name: str, tmp_path: Path) -> None:
    profile, before, result = of(name)
    loaded = load_again(result, tmp_path)
    # It means the same.
    again, wanted = meaning(loaded), meaning(profile)
    if profile.sizing.model_fields_set:  # what the size came to is an explicit limit now
        for service in (*again["services"].values(), *wanted["services"].values()):
            service.pop("limits", None)
    if name in UNTOLD:
        where, _ = UNTOLD[name]
        assert _taken(wanted, where) != _taken(again, where)
    assert again == wanted
    # It is rendered to the same files.
    after = trees(loaded)
    assert list(before) == list(after)
    for node, tree in before.items():
        was, now = settings(tree), settings(after[node])
        if name == "valid/access-warnings":  # one key under two names is two lines of authorized_keys
            was["/etc/dropbear/authorized_keys"] = was["/etc/dropbear/authorized_keys"][:1]
        differ = {path for path in {*was, *now} if was.get(path) != now.get(path)}
        assert bool(differ) == (name in LOST), differ
        assert differ <= CHANGED
    # No line is left over.
    assert [words for words in result.draft.fill_in if words.startswith(DECIDE)] == []
    left = {one.path for one in result.unsaid}
    assert bool(left) == (name in LOST), result.unsaid
    assert left <= CHANGED | {"/etc/ndakit/private/tests/certificate.pem"}
    if PROFILES[name].parent == ROOT / "profiles":
        assert [loaded.customer, loaded.description] == [profile.customer, profile.description]
        assert _roles(loaded) == _roles(profile)
        assert loaded.access.ssh_keys == profile.access.ssh_keys
        assert (loaded.device, loaded.platform) == (profile.device, profile.platform)
        assert list(loaded.services) == list(profile.services)


def _roles(profile: Profile) -> dict[str, str]:
    return {name: vip.role for name, vip in profile.vips.items() if vip.role}


def _taken(facts: dict[str, Any], where: tuple[str, ...]) -> object:
    for key in where[:-1]:
        facts = facts[key]
    return facts.pop(where[-1])


def test_the_exceptions_are_profiles() -> None:
    assert PROFILES.keys() >= {*LOST, *UNTOLD}


def test_a_node_that_was_changed_by_hand_is_seen() -> None:
    profile, rendered, _ = of("profiles/apache-pair")
    nodes = boxes(profile, rendered)
    files = nodes[0].files
    files["/etc/haproxy.cfg"] = files["/etc/haproxy.cfg"].replace(
        b"\toption httplog\n\t# Time", b"\toption contstats\n\t# Time"
    )
    result = importer.convert(Workspace(ROOT), "apache-pair", nodes)
    assert [(one.place, one.text) for one in result.unsaid if one.node == "lb1"] == [
        ("lb1:/etc/haproxy.cfg:96", "option contstats")
    ]


def test_a_line_that_only_the_other_node_has_is_told() -> None:
    profile, rendered, _ = of("profiles/apache-pair")
    nodes = boxes(profile, rendered)
    nodes[1].files["/etc/haproxy.cfg"] = nodes[1].files["/etc/haproxy.cfg"].replace(b"retries 3", b"retries 5")
    nodes[1].files["/etc/config/system"] = nodes[1].files["/etc/config/system"].replace(b"Europe/Berlin", b"Asia/Tokyo")
    result = importer.convert(Workspace(ROOT), "apache-pair", nodes)
    assert [(one.node, one.text, one.why) for one in result.unsaid] == [
        ("lb2", "option zonename 'Asia/Tokyo'", "the nodes of a profile have one time zone"),
        ("lb2", "retries 5", "lb1 has another line here: the nodes of a profile are alike"),
    ]


def test_kernel_values_come_from_sysctl_d_too_and_openwrts_own_do_not() -> None:
    profile, rendered, _ = of("profiles/bakery")
    nodes = boxes(profile, rendered)
    for node in nodes:
        node.files["/etc/sysctl.d/99-own.conf"] = b"net.ipv4.tcp_fin_timeout = 20\nnet.ipv4.conf.all.arp_ignore=8\n"
        node.files["/etc/sysctl.d/10-default.conf"] = b"kernel.panic=3\n"
        node.files["/etc/rc.local"] = b"# Put your commands here\n\nexit 0\n"
    result = importer.convert(Workspace(ROOT), "bakery", nodes)
    assert result.draft.sysctl == {"net.ipv4.tcp_fin_timeout": "20"}
    assert [(one.path, one.first) for one in result.unsaid if one.node == "lb1"] == [("/etc/sysctl.d/99-own.conf", 2)]
