"""Certificates in an order in which Pound shows clients the wrong one are refused, and what the fix says works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from certificate_files import NOW, Party, issue
from ndakit.core.mistakes import ProfileMistake
from ndakit.core.workspace import Workspace
from ndakit.load import certificate_checks, load, secrets

WIDE = issue("wide", names=["*.shop.example"])
NARROW = issue("narrow", names=["*.test.shop.example"])
COMMON = issue("anna.shop.example", names=["other.example"])
CAPITAL = issue("capital", names=["API.shop.example"])
CROSS_A = issue("a", names=["*.example", "*.b.c.test"])
CROSS_B = issue("b", names=["*.b.example", "*.c.test"])
HEAD = """\
name: shop
release: 24.10.8
access:
  ssh_keys: {me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}
  sources: {office: 192.168.0.0/24}
system: {ntp: []}
networks: {lan: {nics: [eth0], subnet: 192.168.0.0/24, gateway: 192.168.0.254}}
nodes: {lb1: {addresses: {lan: 192.168.0.11}}, lb2: {addresses: {lan: 192.168.0.12}}}
vips: {www: {network: lan, address: 192.168.0.10}}
pools: {web: {check: http, servers: {web1: 192.168.0.21, web2: 192.168.0.22}}}
services:
  web:
    vip: www
    port: 443
    protocol: http
    pool: web
"""


def refusals(
    folder: Path, parties: dict[str, Party], rest: str = "", terminator: str = "pound"
) -> list[ProfileMistake]:
    listed = ", ".join(f"{{secret: {name}}}" for name in parties)
    return refused(folder, parties, f"terminator: {terminator}, certificates: [{listed}]", rest)


def refused(folder: Path, parties: dict[str, Party], tls: str, rest: str = "") -> list[ProfileMistake]:
    (folder / "profiles").mkdir(exist_ok=True)
    (folder / "profiles/shop.yaml").write_text(f"{HEAD}{rest}    tls: {{{tls}}}\n")
    loaded = load.load(Workspace(folder), "shop")
    held = secrets.Secrets({name: secrets.Secret(party.bundle(), "a test") for name, party in parties.items()})
    return list(certificate_checks.check(loaded, held, NOW)[0])


def test_a_wide_wildcard_before_a_narrow_one_is_refused_and_the_order_of_the_fix_is_right(tmp_path: Path) -> None:
    parties = {"wide.pem": WIDE, "narrow.pem": NARROW}
    (mistake,) = refusals(tmp_path, parties)
    assert mistake.text() == (
        "error: clients of service web that ask for any.test.shop.example do not get narrow.pem, which is for that "
        "name: Pound takes the first one that fits, its * takes dots too, and wide.pem (for wide, *.shop.example) "
        "stands before it\n"
        "  where: profiles/shop.yaml:17:65, services.web.tls.certificates[1]\n"
        "  fix:   write certificates: [{secret: narrow.pem}, {secret: wide.pem}] (the first one is for names that "
        "none has, too); or write terminator: haproxy, for which a * is one whole label"
    )
    order = re.search(r"certificates: \[.*\]", mistake.fix)
    assert order is not None
    assert refused(tmp_path, parties, f"terminator: pound, {order[0]}") == []
    assert refusals(tmp_path, parties, terminator="haproxy") == []


@pytest.mark.parametrize(
    ("parties", "why", "orders"),
    [
        ({"x.pem": COMMON, "wide.pem": WIDE}, "x.pem (for anna.shop.example, other.example) stands before it", True),
        ({"x.pem": WIDE, "api.pem": CAPITAL}, "", None),
        ({"x.pem": COMMON, "api.pem": CAPITAL}, "its names have capital letters", False),
        ({"a.pem": CROSS_A, "b.pem": CROSS_B}, "stands before it", False),
        ({"b.pem": CROSS_B, "a.pem": CROSS_A}, "stands before it", False),
    ],
    ids=["common name", "another covers it", "capitals", "no order, a first", "no order, b first"],
)
def test_what_else_pound_would_show_wrongly(
    tmp_path: Path, parties: dict[str, Party], why: str, orders: bool | None
) -> None:
    mistakes = refusals(tmp_path, parties, "    hostnames: [anna.shop.example]\n" if "wide.pem" in parties else "")
    if orders is None:
        assert mistakes == []
        return
    (mistake,) = mistakes
    assert why in mistake.what
    assert ("write certificates:" in mistake.fix) is orders
    assert refusals(tmp_path, parties, terminator="haproxy") == []


def test_certificates_in_a_good_order_and_one_alone_are_not_refused(tmp_path: Path) -> None:
    assert refusals(tmp_path, {"narrow.pem": NARROW, "wide.pem": WIDE}) == []
    assert refusals(tmp_path, {"wide.pem": WIDE}, '    hostnames: ["*.shop.example"]\n') == []
