"""TLS that passes through: the name in a client's hello chooses the pool, and clients see the servers' certificates."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import goldens
from certificate_files import issue
from haproxy_live import attempt
from ndakit.lint.config_text import haproxy
from ndakit.model import Profile, rules
from ndakit.render.render import render

HEAD = goldens.PROFILES["bakery"].read_text().partition("pools:")[0]
SERVERS = {"web": ("web1", "192.168.0.21"), "mail": ("mail1", "192.168.0.31"), "any": ("any1", "192.168.0.41")}
ROUTES = '[{sni: mail.acme.example, pool: mail}, {sni: [many.example, "*.many.example"], pool: any}]'
REFUSE = f"hostnames: [www.acme.example], unknown_hosts: refuse, routes: {ROUTES}"


def profile(more: str = f"routes: {ROUTES}", release: str = "24.10.8", pools: str = "check: tcp") -> Profile:
    listed = "".join(
        f"  {pool}: {{{pools}, servers: {{{name}: {{address: {at}, port: 443}}}}}}\n"
        for pool, (name, at) in SERVERS.items() if pool in more or pool == "web"
    )  # fmt: skip
    service = f"services: {{tls: {{vip: www, port: 443, protocol: tcp, pool: web, {more}}}}}\n"
    return goldens.parse(f"{HEAD.replace('24.10.8', release)}pools:\n{listed}{service}system: {{ntp: []}}\nsizing: "
                         "{sessions_per_second: 1, session_duration_s: 1, memory_mib: 128}\n")  # fmt: skip


def told(more: str, pools: str = "check: tcp") -> dict[str, str]:
    return {f.code: f"{f.what}: {f.fix}" for f in rules.findings(profile(more, pools=pools))}


def connect(shop: Profile, folder: Path, *clients: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """What clients get from servers each of which has a certificate of its own."""
    parties = {pool: issue(pool, names=["whatever.example"]) for pool in shop.pools}
    digests = {}
    for pool, party in parties.items():
        (folder / f"{pool}.pem").write_bytes(party.bundle())
        der = party.certificate.public_bytes(serialization.Encoding.DER)
        digests[hashlib.sha256(der).hexdigest()] = pool
    files = {pool: str(folder / f"{pool}.pem") for pool in parties}
    seen = attempt(shop, folder, "hellos", clients=clients, port=443, certificates=files, **options)
    for one in seen:
        if not one["error"]:
            assert SERVERS[digests[one["certificate"]]][0] == one["server"], "the certificate is not that server's"
    return list(seen)


def by_name(shop: Profile, folder: Path, *names: str, **options: Any) -> dict[str, str]:
    seen = connect(shop, folder, *({"name": name} for name in names), **options)
    return {name: one["error"] or one["server"] for name, one in zip(names, seen, strict=True)}


def test_the_name_chooses_the_pool_and_clients_see_the_servers_own_certificates(tmp_path: Path) -> None:
    asked = {
        "mail.acme.example": "mail1", "MAIL.Acme.Example": "mail1", "x.many.example": "any1", "many.example": "any1",
        "x.y.many.example": "web1", "www.acme.example": "web1", "xmail.acme.example": "web1", "": "web1",
    }  # fmt: skip
    assert by_name(profile(), tmp_path, *asked) == asked


def test_unknown_names_and_clients_without_a_name_are_refused(tmp_path: Path) -> None:
    asked = {
        "www.acme.example": "web1", "mail.acme.example": "mail1", "x.many.example": "any1",
        "x.y.many.example": "refused", "other.example": "refused", "": "refused",
    }  # fmt: skip
    seen = by_name(profile(REFUSE), tmp_path, *asked)
    assert {name: "refused" if one in REFUSALS else one for name, one in seen.items()} == asked


REFUSALS = ("ended", "ConnectionResetError")


@pytest.mark.parametrize("more", [f"routes: {ROUTES}", REFUSE])
def test_a_hello_in_several_segments_is_waited_for(more: str, tmp_path: Path) -> None:
    cuts = ([1], [5], [6, 40], [100], [3, 4, 5, 6, 7, 60, 120])
    clients = [{"name": "mail.acme.example", "segments": cut} for cut in cuts]
    clients += [{"name": "mail.acme.example", "segments": [50], "max": "TLSv1_2"}]
    assert [one.get("server") for one in connect(profile(more), tmp_path, *clients)] == ["mail1"] * 6


@pytest.mark.parametrize(("more", "server"), [(f"routes: {ROUTES}", "web1"), (REFUSE, None)])
def test_of_a_hello_in_several_records_no_name_is_seen(more: str, server: str | None, tmp_path: Path) -> None:
    """HAProxy looks for the name in the first TLS record; no usual client cuts its hello so."""
    (one,) = connect(profile(more), tmp_path, {"name": "mail.acme.example", "records": [20]})
    assert one.get("server") == server


def test_what_is_not_tls_and_who_says_nothing_gets_no_connection(tmp_path: Path) -> None:
    plain, silent = connect(
        profile(), tmp_path, {"plain": "GET / HTTP/1.1\r\n\r\n"}, {"plain": ""},
        changes=[("inspect-delay 5s", "inspect-delay 2s")],
    )  # fmt: skip
    assert plain["error"] in REFUSALS and plain["took_s"] < 1.5
    assert silent["error"] in REFUSALS and 1.5 < silent["took_s"] < 6


def test_without_the_wait_no_name_would_be_seen(tmp_path: Path) -> None:
    """What the two lines are there for: HAProxy takes the configuration, and everybody gets the default pool."""
    gone = [("\ttcp-request inspect-delay 5s\n\ttcp-request content reject unless { req.ssl_hello_type 1 }\n", "")]
    seen = connect(profile(), tmp_path, {"name": "mail.acme.example", "segments": [60]}, changes=gone)
    assert [one.get("server") for one in seen] == ["web1"]


@pytest.mark.parametrize("release", ["18.06.9", "19.07.10", "21.02.7", "25.12.5"])
def test_every_release_has_the_same_words(release: str) -> None:
    def frontend(of: str) -> list[str]:
        text = render(profile(REFUSE, of), "lb1", goldens.TEMPLATES)["/etc/haproxy.cfg"].text
        return [" ".join(line.words) for p in haproxy(text) if p.name == "service:tls" for line in p.lines]

    assert frontend(release) == frontend("24.10.8")


def test_what_cannot_work_is_refused() -> None:
    assert told(REFUSE) == {}
    ended = told(f"routes: {ROUTES}, tls: {{certificates: [{{secret: a.pem}}]}}")
    assert "delete tls, and the servers' own certificates are shown" in ended["sni-and-tls"]
    assert "write unknown_hosts: refuse" in told(f"routes: {ROUTES}, unknown_hosts: tarpit")["tarpit-needs-http"]
    assert "write sni instead of host" in told("routes: [{host: mail.acme.example, pool: mail}]")["routes-need-http"]
    assert "add routes by sni" in told("hostnames: [a.example], unknown_hosts: refuse")["routes-need-http"]
    twice = told(f"routes: {ROUTES}", "check: tcp, to_servers: {tls: true, verify: none}")
    assert "another TLS around it" in twice["tls-twice"]
    assert "write check: https" in told(f"routes: {ROUTES}", "check: http")["check-without-tls"]
    assert told(f"routes: {ROUTES}", "check: https") == {}
    hidden = 'routes: [{sni: "*.acme.example", pool: any}, {sni: mail.acme.example, pool: mail}]'
    assert "takes all its names" in told(hidden)["route-hidden"]


def test_sni_is_for_tcp_and_not_beside_host() -> None:
    text = f"{HEAD}pools: {{web: {{check: tcp, servers: {{web1: 192.168.0.21}}}}}}\n"
    service = (
        "services: {web: {vip: www, port: 80, protocol: http, pool: web, routes: [{sni: a.example, pool: web}]}}\n"
    )
    codes = {f.code: f.fix for f in rules.findings(goldens.parse(text + service))}
    assert codes["sni-needs-tcp"] == "write host instead of sni; or protocol: tcp, and no tls"
    with pytest.raises(ValidationError, match="sni, which is for TLS that passes through, and host, which is for http"):
        profile("routes: [{sni: a.example, host: b.example, pool: web}]")


TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)


@settings(deadline=None)
@given(TEXT)
def test_a_name_stays_in_its_place(name: str) -> None:
    """Whatever characters it has: refused, or one word of one line."""
    quoted = name.replace("'", "''")
    try:
        shop = profile(f"routes: [{{sni: '{quoted}', pool: web}}]")
    except ValidationError:
        return
    text = render(shop, "lb1", goldens.TEMPLATES)["/etc/haproxy.cfg"].text
    (frontend,) = [p for p in haproxy(text) if p.name == "service:tls"]
    (line,) = [line for line in frontend.lines if line.words[:2] == ("acl", "route-1-sni")]
    assert line.words[2:5] == ("req.ssl_sni,lower", "-m", "reg" if name.startswith("*") else "str")
    assert len(line.words) == 6
