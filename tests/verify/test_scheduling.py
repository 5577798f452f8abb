"""Draining and quorum: for which pools they are claimed, and what is typed."""

from __future__ import annotations

import pytest

from ndakit.core.workspace import Workspace
from ndakit.lab.network import LabNetwork
from ndakit.load import load
from ndakit.model import Profile
from ndakit.model.checks import SmtpCheck
from ndakit.node import control
from ndakit.node.facts import VirtualServer
from ndakit.verify.claims import all_claims, scheduling
from ndakit.verify.claims.base import targets
from places import DATA


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load.load(Workspace(DATA), str(DATA / "profiles/ipvs-all.yaml")).profile


def command(profile: Profile, service: str, server: str, weight: int, version: int = 4) -> str:
    target = next(t for t in targets(profile, service) if t[0].address.version == version)
    return control.weight_command(profile, service, *target, server, weight)


@pytest.mark.parametrize(
    ("service", "server", "version", "words"),
    [
        ("web", "web1", 4, "-t 203.0.113.10:80 -r 192.168.0.21:8080 -m -w 0 -x 200 -y 150"),
        ("web", "web2", 6, "-t [2001:db8:113::10]:80 -r [fd00:0:0:1::22]:8080 -m -w 0"),
        ("far", "f1", 4, "-t 192.168.0.10:8083 -r 10.20.0.21:8083 -i -w 0"),
    ],
)
def test_a_server_is_drained_by_all_that_says_who_it_is(
    profile: Profile, service: str, server: str, version: int, words: str
) -> None:
    assert command(profile, service, server, 0, version) == f"ipvsadm -e {words}"


@pytest.mark.parametrize("version", [4, 6])
def test_a_server_of_a_service_with_several_ports_is_named_by_mark(profile: Profile, version: int) -> None:
    mark = profile.marks["med"]
    words = command(profile, "med", "m1", 3, version)
    family, address = ("", "192.168.0.35") if version == 4 else (" -6", "[fd00:0:0:1::35]:0")
    assert words == f"ipvsadm -e -f {mark}{family} -r {address} -g -w 3"


def test_draining_and_the_quorum_are_claimed_where_they_can_be_tried(profile: Profile) -> None:
    names = {c.name for c in all_claims(profile)}
    assert {n for n in names if n.startswith("drain/")} == {"drain/web", "drain/med", "drain/far"}
    assert {n for n in names if n.startswith("quorum/")} == {"quorum/web"}


def test_draining_is_not_claimed_where_no_connection_can_be_held_open(profile: Profile) -> None:
    pool = profile.pools["far"]
    smtp = pool.model_copy(update={"check": SmtpCheck()})
    assert scheduling.can_drain(profile, "far")
    assert not scheduling.can_drain(profile.model_copy(update={"pools": profile.pools | {"far": smtp}}), "far")


@pytest.mark.parametrize(
    ("weights", "quorum", "stopped"),
    [((1, 1, 1), 2, ["a", "b"]), ((3, 2, 1), 4, ["a"]), ((1, 5, 2), 2, ["b", "c"]), ((0, 1, 1), 2, ["b"])],
)
def test_as_few_servers_are_stopped_as_it_takes(
    profile: Profile, weights: tuple[int, ...], quorum: int, stopped: list[str]
) -> None:
    one = profile.pools["dns"].servers["d1"]
    servers = {n: one.model_copy(update={"weight": w}) for n, w in zip("abc", weights, strict=True)}
    pool = profile.pools["web"].model_copy(update={"servers": servers, "quorum": quorum})
    assert scheduling.has_quorum(pool)
    assert scheduling.to_stop(pool) == stopped


def test_a_pool_that_is_below_its_quorum_only_without_servers_is_not_tried(profile: Profile) -> None:
    pool = profile.pools["web"]
    assert not scheduling.has_quorum(pool.model_copy(update={"quorum": 1}))
    assert not scheduling.has_quorum(pool.model_copy(update={"quorum": None}))


def in_kernel(profile: Profile, server: str, *weights: int) -> bool | None:
    """Is a server of pool web there, with these weights in the virtual servers for IPv4 and IPv6?"""
    lab = LabNetwork.__new__(LabNetwork)
    lab.profile = profile
    there = [
        VirtualServer("tcp", address, 80, None, {(profile.pools["web"].servers[server].address[i], 8080): weight})
        for i, (address, weight) in enumerate(zip(profile.vips["www"].address, weights, strict=False))
    ]
    return lab._in_ipvs(there, "web", server)


def test_a_server_is_in_or_out_when_all_virtual_servers_agree(profile: Profile) -> None:
    assert in_kernel(profile, "web1", 3, 3) is True
    assert in_kernel(profile, "web1", 0, 0) is False
    assert in_kernel(profile, "web1", 0, 3) is None
    assert in_kernel(profile, "web1", 3) is None, "the one for IPv6 is not there"


def test_a_server_of_a_marked_service_is_looked_for_in_those_of_its_family(profile: Profile) -> None:
    lab = LabNetwork.__new__(LabNetwork)
    lab.profile = profile
    (four, six), mark = profile.pools["med"].servers["m1"].address, profile.marks["med"]
    there = [VirtualServer("", None, 0, mark, {(a, 0): w}) for a, w in ((four, 1), (six, 0))]
    assert lab._in_ipvs(there, "med", "m1") is None
    assert lab._in_ipvs(there[:1], "med", "m1") is True
