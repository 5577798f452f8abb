"""Every rendered firewall as nft rules over live interfaces: the real nft takes it, no warning, no hollow zone."""

from __future__ import annotations

from pathlib import Path

import pytest

from labrig import LINKS, NETIFD, MakeRoot
from ndakit.core.release import Release
from places import DATA

GOLDEN = DATA / "golden"


def release_of(tree: Path) -> Release:
    """The release that a rendered banner names."""
    words = (tree / "etc/banner").read_text().split("OpenWrt ", 1)[1]
    return Release.parse(words.split()[0].rstrip(",."))


TREES = [p for p in sorted(GOLDEN.glob("*/*")) if (p / "etc/config/firewall").is_file() and release_of(p).fw4]


def test_there_are_trees_of_both_fw4_families() -> None:
    assert len(TREES) >= 7
    assert {release_of(p).family.value for p in TREES} == {"fw4-opkg", "fw4-apk"}


@pytest.mark.parametrize("tree", TREES, ids=lambda p: "/".join(p.parts[-2:]))
def test_nft_takes_every_rendered_firewall(make_root: MakeRoot, tree: Path) -> None:
    root = make_root(tree, release=str(release_of(tree)))
    said = root.run(
        LINKS + NETIFD + "fw4 print >/tmp/rules && nft -c -f /tmp/rules && cat /tmp/rules /tmp/lab-unsupported"
    )
    assert (said.code, said.err) == (0, "")
    assert "lab: unsupported" not in said.out
    zones = (tree / "etc/config/firewall").read_text().count("\nconfig zone")
    defined = [line for line in said.out.splitlines() if "_devices = {" in line and "{ }" not in line]
    assert len(defined) == zones, "a zone without devices filters nothing"


def test_a_rule_that_nft_does_not_take_would_be_noticed(make_root: MakeRoot) -> None:
    tree = TREES[0]
    root = make_root(tree, release=str(release_of(tree)))
    text = (tree / "etc/config/firewall").read_text()
    bad = ("", "config rule", "\toption src '*'", "\toption proto 'bogus'", "\toption target 'ACCEPT'", "")
    root.put("etc/config/firewall", text + "\n".join(bad))
    said = root.run(LINKS + NETIFD + "fw4 print >/tmp/rules; nft -c -f /tmp/rules")
    assert said.code != 0
