"""No rule ends in a traceback, whatever else is wrong with a profile: each reference broken, each object missing."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

import goldens
from ndakit.model import Profile, rules
from ndakit.model.rules import pair
from ndakit.model.rules.findings import Finding

TABLES = ("networks", "nodes", "vips", "pools", "services")
NOBODY = "nobody"

WHOLE = """\
name: whole
release: 24.10.8
access:
  ssh_keys: {me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}
  sources: {noc: [192.168.0.0/24, "fd00:0:0:1::/64"]}
system: {ntp: [192.168.0.99]}
networks:
  wan: {nics: [eth0], subnet: [203.0.113.0/24, "2001:db8:0:1::/64"], gateway: [203.0.113.1, "2001:db8:0:1::1"]}
  lan: {nics: [eth1], subnet: [192.168.0.0/24, "fd00:0:0:1::/64"], egress: www, vrid: 9,
        routes: [{to: 10.20.0.0/24, via: 192.168.0.254}]}
nodes:
  lb1: {addresses: {wan: [203.0.113.11, "2001:db8:0:1::11"], lan: [192.168.0.11, "fd00:0:0:1::11"]}}
  lb2: {addresses: {wan: [203.0.113.12, "2001:db8:0:1::12"], lan: [192.168.0.12, "fd00:0:0:1::12"]}}
vips:
  www: {network: wan, address: [203.0.113.10, "2001:db8:0:1::10"]}
  gw: {network: lan, address: [192.168.0.1, "fd00:0:0:1::1"], role: gateway}
  intern: {network: lan, address: [192.168.0.10, "fd00:0:0:1::10"]}
vrrp: {prefer: lb1, preempt: true, preempt_delay_s: 1, connection_sync: true, demote_on: [web, media]}
pools:
  web: {check: http, balance: uri, sorry: {pool: spare}, persistence: {type: source}, servers: {web1: 192.168.0.21}}
  spare: {port: 81, servers: {spare1: 192.168.0.29}}
  media: {balance: wlc, check: {type: udp, interval_s: 0.5}, sorry: {pool: spare},
          servers: {med1: {address: [192.168.0.61, "fd00:0:0:1::61"], weight: 3, max_connections: 9}, med2: 10.20.0.9}}
  far: {check: {type: ping}, servers: {far1: 10.20.0.21}}
services:
  web: {vip: [www, intern], port: [80, 8000-8010], protocol: http, hostnames: [a.example], pool: web}
  media: {vip: intern, families: [ipv4], port: 5000, topology: dr, protocol: udp, pool: media}
  natted: {vip: www, families: [ipv4], port: [21, 30000-40000], topology: nat, protocol: tcp, pool: media}
  far: {vip: www, families: [ipv4], port: 22, topology: tun, protocol: tcp, pool: far, persistence: {type: source}}
firewall:
  allow: {ssh: {network: lan, protocol: tcp, port: 5985, sources: [noc, 192.168.0.7]}}
  deny: {bad: {network: wan, protocol: all, sources: [198.51.100.0/24]}}
image: {packages: {uhttpd: add, nginx-ssl: add}}
"""
"""One of everything that refers to something, in a form that lets the rules come to each other."""


def read(text: str) -> Any:
    return yaml.load(text, yaml.BaseLoader)


def profile_of(data: Any) -> Profile | None:
    """The profile, None if the model refuses it (then no rule is asked)."""
    try:
        return Profile.model_validate(data, context={"attach": goldens.attachment})
    except ValidationError:
        return None


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value."""
    if path:
        yield path
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def broken(data: Any) -> Iterator[tuple[str, Any]]:
    """A profile's data with one thing missing, renamed, or naming somebody who is not there; and what that is."""
    names = {name for table in TABLES for name in data.get(table) or {}} | set(data["access"]["sources"])
    for path in places(data):
        dotted = ".".join(map(str, path))
        for how in ("missing", "renamed", NOBODY):
            other = copy.deepcopy(data)
            parent = other
            for part in path[:-1]:
                parent = parent[part]
            if how == "missing":
                del parent[path[-1]]
            elif how == "renamed" and path[-1] in names:
                parent[NOBODY] = parent.pop(path[-1])
            elif how == NOBODY and isinstance(parent[path[-1]], str) and parent[path[-1]] in names:
                parent[path[-1]] = NOBODY
            else:
                continue
            yield f"{dotted}, {how}", other


def variants() -> Iterator[tuple[str, Any]]:
    """What is broken: the profile with everything, as pair and alone, as three; every example."""
    whole = read(WHOLE)
    yield "whole", whole
    alone = copy.deepcopy(whole)
    del alone["nodes"]["lb2"]
    yield "alone", alone
    for topology in ("nat", "dr", "tun"):
        other = copy.deepcopy(whole)
        for service in other["services"].values():
            service.update(topology=topology, protocol="tcp")
        yield topology, other
    proxy = copy.deepcopy(whole)
    for service in proxy["services"].values():
        service.update(topology="proxy", protocol="tcp")
    yield "proxy", proxy
    for name, path in goldens.PROFILES.items():
        yield name, read(path.read_text())


@functools.cache
def rules_that_fail(name: str) -> dict[str, str]:
    data = dict(variants())[name]
    tried = 0
    failures: dict[str, str] = {}
    for what, other in broken(data):
        profile = profile_of(other)
        if profile is None:
            continue
        tried += 1
        for rule in rules.RULES:
            error = outcome(rule, profile)
            if error:
                failures.setdefault(f"{rule.__module__}.{rule.__name__}", f"{what}: {error}")
    assert tried > 5
    return failures


def outcome(rule: Callable[[Profile], Iterator[Finding]], profile: Profile) -> str:
    """ "" if a rule comes to an end, else the exception."""
    try:
        list(rule(profile))
    except Exception as cause:  # noqa: BLE001  (any of them is what is looked for)
        return repr(cause)
    return ""


@pytest.mark.parametrize("name", [name for name, _ in variants()])
def test_no_rule_trips_over_what_is_wrong_elsewhere(name: str) -> None:
    assert rules_that_fail(name) == {}


def test_the_search_reaches_a_pool_that_is_not_there_for_the_rule_that_once_fell_over_it() -> None:
    tried = [p for what, other in broken(read(WHOLE)) if "services.media.pool" in what and (p := profile_of(other))]
    assert [p.services["media"].pool for p in tried] == [NOBODY]
    assert [f.code for f in rules.findings(tried[0])].count("unknown-pool") == 1
    assert list(pair.told_in_time(tried[0])), "the other kernel services are still looked at"


def test_a_rule_that_trips_is_found() -> None:
    def careless(profile: Profile) -> Iterator[Finding]:
        for service in profile.services.values():
            assert profile.pools[service.main_pool]
        yield from ()

    profile = next(
        p for what, o in broken(read(WHOLE)) if what.startswith("pools.media, miss") and (p := profile_of(o))
    )
    assert "KeyError" in outcome(careless, profile)
