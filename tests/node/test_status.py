"""What of a pair is not well, and that secrets in its logs are not shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

import goldens
from ndakit.cli.nodes import status_text
from ndakit.core.workspace import Workspace
from ndakit.load import load
from ndakit.model import Profile
from ndakit.node.control import ServerLine
from ndakit.node.errors import NodeSilent
from ndakit.node.facts import NodeFacts
from ndakit.node.status import NodeStatus, Pair, daemons_of, masked
from typed import Typed

WEB1 = ServerLine("apache", "web1", "haproxy apache", "up", 2, 3)
WEB2 = ServerLine("apache", "web2", "haproxy apache", "up", 1, 0)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load.load(Workspace(goldens.ROOT), "apache-pair").profile


def node(profile: Profile, name: str, **changes: object) -> NodeStatus:
    """A node that is well; lb1 is master."""
    master = name == "lb1"
    told = NodeStatus(
        node=name,
        address="203.0.113.11",
        hostname=profile.hostname(name),
        release=str(profile.release),
        image="a" * 64,
        image_of=f"{profile.name}/{name}",
        uptime_s=100.0,
        load=(0.1, 0.2, 0.3),
        memory_available_kib=100_000,
        memory_kib=200_000,
        clock_offset_s=0.4,
        vrrp=dict.fromkeys(("wan-main", "lan-main"), "MASTER" if master else "BACKUP"),
        vips=tuple(profile.vips) if master else (),
        daemons=dict.fromkeys(daemons_of(profile), True),
        servers=(WEB1, WEB2),
        errors=(),
    )
    return replace(told, **changes)  # type: ignore[arg-type]


def pair(profile: Profile, first: dict[str, object] | None = None, second: dict[str, object] | None = None) -> Pair:
    return Pair(
        profile, {"lb1": node(profile, "lb1", **(first or {})), "lb2": node(profile, "lb2", **(second or {}))}, {}
    )


def test_a_pair_that_is_well_has_no_trouble(profile: Profile) -> None:
    status = pair(profile)
    assert status.trouble == ()
    text = status_text(status, {"lb1": "a" * 64, "lb2": "b" * 64})
    assert text.startswith("apache-pair: well\n")
    assert "aaaaaaaaaaaa, as in images/" in text
    assert "aaaaaaaaaaaa, another in images/" in text
    assert "up, 3 connections" in text


DOWN = replace(WEB1, state="down")
DRAINED = replace(WEB1, state="drained")


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"hostname": "OpenWrt"}, {}, "lb1: it calls itself OpenWrt, not apache-pair-lb1"),
        ({"release": "23.05.5"}, {}, "lb1: it runs OpenWrt 23.05.5, the profile says 24.10.8"),
        ({}, {"daemons": {"dropbear": True, "haproxy": False, "keepalived": True}}, "lb2: haproxy does not run"),
        ({"clock_offset_s": -7200.0}, {}, "lb1: its clock is off by -7200 s"),
        ({}, {"vrrp": {"wan-main": "FAULT", "lan-main": "BACKUP"}}, "lb2: VRRP instance wan-main is FAULT"),
        ({}, {"vrrp": {"wan-main": "BACKUP"}}, "lb2: VRRP instance lan-main is not there"),
        ({}, {"vrrp": {"wan-main": "MASTER", "lan-main": "BACKUP"}}, "instance wan-main has 2 masters: lb1, lb2"),
        ({"vrrp": {"wan-main": "BACKUP", "lan-main": "MASTER"}}, {}, "VRRP instance wan-main has no master"),
        ({}, {"vips": ("www",)}, "VIP www is on lb1, lb2: both answer for it"),
        ({"vips": ()}, {}, "VIP www is on no node"),
        ({}, {"servers": (DOWN, WEB2)}, "lb2: sees apache/web1 down"),
        (
            {"servers": (DOWN, replace(WEB2, state="drained"))},
            {},
            "lb1: no server of pool apache takes new connections",
        ),
        ({"servers": (DRAINED, WEB2)}, {}, "apache/web1 is drained, but not on lb2"),
        ({"trouble": ("HAProxy does not answer",)}, {}, "lb1: HAProxy does not answer"),
    ],
)
def test_what_is_not_well_is_named(
    profile: Profile, first: dict[str, object], second: dict[str, object], words: str
) -> None:
    status = pair(profile, first, second)
    assert any(words in line for line in status.trouble), status.trouble
    assert status_text(status, {}).startswith("apache-pair: NOT WELL\n  ")


def test_a_server_that_somebody_drained_everywhere_is_no_trouble(profile: Profile) -> None:
    assert pair(profile, {"servers": (DRAINED, WEB2)}, {"servers": (DRAINED, WEB2)}).trouble == ()


def test_a_node_that_does_not_answer_is_trouble_and_nothing_is_guessed_about_it(profile: Profile) -> None:
    status = Pair(profile, {"lb2": node(profile, "lb2")}, {"lb1": NodeSilent("root@203.0.113.11", "timed out", 10)})
    assert len(status.trouble) == 1
    assert status.trouble[0].startswith("lb1: no answer")


def test_one_node_alone_is_asked_without_blaming_it_for_the_other(profile: Profile) -> None:
    assert Pair(profile, {"lb2": node(profile, "lb2")}, {}).trouble == ()


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("daemon.err x: user=monitor password=hunter2 refused", "daemon.err x: user=monitor password=*** refused"),
        ("auth_pass s3cret", "auth_pass ***"),
        ("Authorization: Basic YWJjOmRlZg==", "Authorization: ***"),
        ('token: "a b c" end', "token: *** end"),
        ("Failed password for root", "Failed password for root"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_secrets_in_a_line_of_the_log_are_masked(line: str, shown: str) -> None:
    assert masked(line) == shown


def test_the_clock_the_memory_and_the_log_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    assert NodeFacts(Typed(date="1060\n")).clock_offset_s() == 60.5
    assert NodeFacts(Typed()).clock_offset_s() is None
    meminfo = "MemTotal:         123456 kB\nMemFree:  1 kB\nMemAvailable:      65432 kB\n"
    assert NodeFacts(Typed(cat=meminfo)).memory_kib() == (65432, 123456)
    assert NodeFacts(Typed()).memory_kib() == (0, 0)
    assert NodeFacts(Typed(cat='{"id": "ab", "node": "lb1", "profile": "shop"}')).image()["id"] == "ab"
    assert NodeFacts(Typed()).image() == {}
    assert NodeFacts(Typed(cat="0.52 0.58 0.59 1/389 12345\n")).load() == (0.52, 0.58, 0.59)
    assert NodeFacts(Typed(cat="93784.12 1.0\n")).uptime_s() == 93784.12
