"""What a real stunnel in front of a real HAProxy does with what is rendered. Nothing boots."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import goldens
from certificate_files import ec_key, issue
from front_live import digest, peer_of, seen, server_of
from haproxy_live import attempt
from ndakit.lint.config_text import STUNNEL
from ndakit.lint.stunnel import sections
from ndakit.load.secrets import Secret, Secrets
from ndakit.model import Profile
from ndakit.render.render import render

HEAD = goldens.PROFILES["bakery"].read_text().partition("pools:")[0]
POOL = "  web1: {port: 80, check: tcp, servers: {a: 192.168.0.21}}\n"
MORE = "  web2: {port: 80, check: tcp, servers: {c: 192.168.0.31}}\n"
SHOP, OTHER, NARROW = "shop.pem", "other.pem", "narrow.pem"
PARTIES = {
    SHOP: issue("shop", names=["shop.example", "*.shop.example"]),
    OTHER: issue("other", names=["*.other.example", "other.example"]),
    NARROW: issue("narrow", names=["*.test.shop.example", "one.other.example"]),
}
SECRETS = {name: party.bundle() for name, party in PARTIES.items()}
SIZING = "sizing: {sessions_per_second: 1, session_duration_s: 1, memory_mib: 256}"
CLIENT = "192.168.0.10"
"""All addresses lie on the loopback there, and a connection to the VIP comes from it."""


def profile(
    tls: str = "", more: str = "", protocol: str = "http", names: tuple[str, ...] = (SHOP, OTHER, NARROW),
    release: str = "24.10.8",
) -> Profile:  # fmt: skip
    pools = "pools:\n" + POOL + (MORE if "web2" in more else "")
    listed = ", ".join(f"{{secret: {name}}}" for name in names)
    ended = f"{{terminator: stunnel, certificates: [{listed}]{tls}}}"
    service = f"services: {{shops: {{vip: www, port: 443, protocol: {protocol}, pool: web1, tls: {ended}{more}}}}}\n"
    head = HEAD.replace("release: 24.10.8", f"release: {release}")
    return goldens.parse(f"{head}{pools}{service}system: {{ntp: []}}\n{SIZING}\n")


def ask(settings: Profile, folder: Path, *heads: str, **options: Any) -> list[str]:
    requests = [f"{head}\r\nConnection: close\r\n\r\n" for head in heads]
    given: dict[str, Any] = {"secrets": SECRETS, "tls_name": "shop.example", "port": 443} | options
    return [str(answer) for answer in attempt(settings, folder, "requests", requests=requests, **given)]


def shown(settings: Profile, folder: Path, *tried: list[Any], **options: Any) -> list[list[Any]]:
    """Certificate (by its secret; empty for none), version and protocol of each handshake."""
    names = {digest(party): name for name, party in PARTIES.items()}
    given: dict[str, Any] = {"secrets": SECRETS, "port": 443} | options
    answers = attempt(settings, folder, "handshakes", handshakes=[[*one, "", []][:3] for one in tried], **given)
    return [[names.get(one[0], ""), *one[1:]] for one in answers]


@pytest.mark.parametrize("version", [4, 6])
def test_servers_learn_who_asks_and_that_it_was_by_https_whatever_clients_claim(tmp_path: Path, version: int) -> None:
    head = "GET / HTTP/1.1\r\nHost: shop.example"
    forged = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\nX-SSL-Client-Verify: SUCCESS"
    settings = profile()
    options: dict[str, Any] = {}
    if version == 6:
        text = HEAD.replace("subnet: 192.168.0.0/24", 'subnet: [192.168.0.0/24, "2001:db8::/64"]')
        text = text.replace("lan: 192.168.0.11", 'lan: [192.168.0.11, "2001:db8::11"]')
        text = text.replace("lan: 192.168.0.12", 'lan: [192.168.0.12, "2001:db8::12"]')
        text = text.replace("address: 192.168.0.10", 'address: [192.168.0.10, "2001:db8::10"]')
        settings = goldens.parse(
            f"{text}pools:\n{POOL}services: {{shops: {{vip: www, port: 443, protocol: http, pool: web1, "
            f"tls: {{terminator: stunnel, certificates: [{{secret: {SHOP}}}]}}}}}}\nsystem: {{ntp: []}}\n{SIZING}\n"
        )
        options = {"address": "2001:db8::10"}
    own = CLIENT if version == 4 else "2001:db8::10"
    for answer in ask(settings, tmp_path, head, f"{head}\r\n{forged}", **options):
        there = seen(answer)
        assert there == {"host": ["shop.example"], "x-forwarded-for": [own], "x-forwarded-proto": ["https"]}


def test_each_name_gets_its_certificate_in_whatever_order_the_profile_has_them(tmp_path: Path) -> None:
    """stunnel's * takes dots too, and of two sni in one section only the second counts."""
    wanted = {
        "shop.example": SHOP, "SHOP.example": SHOP, "a.shop.example": SHOP, "a.test.shop.example": NARROW,
        "a.other.example": OTHER, "one.other.example": NARROW, "other.example": OTHER,
    }  # fmt: skip
    for names in ((SHOP, OTHER, NARROW), (NARROW, OTHER, SHOP)):
        settings = profile(names=names)
        answers = shown(settings, tmp_path, *([name] for name in wanted), ["unknown.invalid"])
        assert [one[0] for one in answers] == [*wanted.values(), names[0]]


def test_services_whose_names_look_like_a_section_of_another_keep_their_certificates(tmp_path: Path) -> None:
    """A section for a name refers to the one that listens: no two have one name."""
    tls = f"tls: {{terminator: stunnel, certificates: [{{secret: {SHOP}}}, {{secret: {OTHER}}}]}}"
    service = "{{vip: www, port: {}, protocol: http, pool: web1, {}}}"
    named = {"a": 443, "a-1": 444, "a-1-1": 445}
    services = "".join(f"  {name}: {service.format(port, tls)}\n" for name, port in named.items())
    settings = goldens.parse(f"{HEAD}pools:\n{POOL}services:\n{services}system: {{ntp: []}}\n{SIZING}\n")
    for port in named.values():
        answers = shown(settings, tmp_path, ["other.example"], ["shop.example"], port=port)
        assert [one[0] for one in answers] == [OTHER, SHOP]


def test_of_two_names_in_one_section_only_the_second_would_count(tmp_path: Path) -> None:
    """Why each name has a section of its own."""
    joined = [("sni = shops-1:*.test.shop.example", "sni = shops-1:*.test.shop.example\nsni = shops-1:x.invalid")]
    (answer,) = shown(profile(), tmp_path, ["a.test.shop.example"], stunnel_changes=joined)
    assert answer[0] == SHOP


@pytest.mark.parametrize(
    ("tls", "versions"),
    [("", {"TLSv1_2", "TLSv1_3"}), (", policy: modern", {"TLSv1_3"}),
     (", policy: old", {"TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"}),
     (', policy: old, min_version: "1.1"', {"TLSv1_1", "TLSv1_2", "TLSv1_3"})],
)  # fmt: skip
def test_a_policy_decides_the_versions(tmp_path: Path, tls: str, versions: set[str]) -> None:
    names = ("TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3")
    for host in ("shop.example", "a.other.example"):  # the section that listens, and one for a name
        answers = shown(profile(tls), tmp_path, *([host, version] for version in names))
        assert {name for name, one in zip(names, answers, strict=True) if one[0]} == versions


def test_http_2_is_not_offered(tmp_path: Path) -> None:
    (answer,) = shown(profile(), tmp_path, ["shop.example", "", ["h2", "http/1.1"]])
    assert answer[2] is None


def test_the_name_chooses_the_pool_and_haproxys_words_reach_the_client(tmp_path: Path) -> None:
    more = ", hostnames: [shop.example], unknown_hosts: refuse, routes: [{host_regex: '^anna\\.', pool: web2}]"
    hosts = ("shop.example", "anna.shop.example", "other.example")
    heads = [f"GET / HTTP/1.1\r\nHost: {host}" for host in hosts]
    answers = ask(profile(", hsts_s: 300", more), tmp_path, *heads)
    assert [server_of(answer) for answer in answers] == ["a", "c", "421"]
    assert all("strict-transport-security: max-age=300" in answer.lower() for answer in answers)
    (sorry,) = ask(profile(), tmp_path, "GET / HTTP/1.1\r\nHost: shop.example", dead=True)
    assert server_of(sorry) == "503"


def test_tcp_inside_of_tls_reaches_a_server(tmp_path: Path) -> None:
    settings = profile(protocol="tcp", names=(SHOP,))
    (answer,) = attempt(settings, tmp_path, "tls", secrets=SECRETS, port=443, clients=[
        {"address": CLIENT, "port": 443, "name": "shop.example", "request": "hello", "once": True},
    ])  # fmt: skip
    assert answer["answer"] == "a"


@pytest.mark.parametrize("protocol", ["http", "tcp"])
def test_with_tproxy_the_server_sees_the_client_itself(tmp_path: Path, protocol: str) -> None:
    settings = profile(more=", topology: tproxy", protocol=protocol)
    (answer,) = ask(settings, tmp_path, "GET /client HTTP/1.1\r\nHost: shop.example", source="203.0.113.50",
                    more=["203.0.113.50/32"], inside="http", once=True)  # fmt: skip
    assert peer_of(answer) == "203.0.113.50"


@pytest.mark.parametrize("release", ["19.07.10", "25.12.5"])
@pytest.mark.parametrize("protocol", ["http", "tcp"])
def test_one_client_has_no_more_connections_than_it_may_and_others_have_theirs(
    tmp_path: Path, protocol: str, release: str
) -> None:
    """HAProxy counts clients, and not stunnel, whose connections all come from 127.0.0.1."""
    more = ", limits: {connections: {per_client: 2}}"
    limited = profile(more=more, protocol=protocol, names=(SHOP,), release=release)
    one, two = "203.0.113.50", "203.0.113.51"
    options: dict[str, Any] = {
        "secrets": SECRETS, "port": 443, "tls_name": "shop.example", "more": [f"{one}/32", f"{two}/32"],
        "request": "GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n", "sources": [one, one, one, two, two, two],
    }  # fmt: skip
    answered = attempt(limited, tmp_path, "side_by_side", **options)
    assert answered == [True, True, False, True, True, False]
    early = [("tcp-request session track-sc1", "tcp-request connection track-sc1")]  # before it knows who asks
    assert attempt(limited, tmp_path, "side_by_side", changes=early, **options)[3:] != [True, True, False]


def test_without_the_proxy_protocol_nobody_is_answered(tmp_path: Path) -> None:
    """HAProxy believes nobody who does not say who the client is."""
    silent = [("protocol = proxy\n", "")]
    (answer,) = ask(profile(names=(SHOP,)), tmp_path, "GET / HTTP/1.1\r\nHost: shop.example", stunnel_changes=silent)
    assert answer == ""


KEY = ec_key()
HOSTILE = st.text(st.characters(min_codepoint=1, max_codepoint=126), min_size=1, max_size=30)


@settings(deadline=None, max_examples=60)
@given(st.lists(HOSTILE, max_size=3))
def test_names_of_certificates_stay_in_their_place(names: list[str]) -> None:
    """Whatever a CA wrote into one: a section for a name that clients can ask for, or none."""
    party = issue("shop", names=["good.example", *names], key=KEY)
    given_secrets = Secrets({name: Secret(party.bundle(), "a test") for name in (SHOP, OTHER)})
    text = render(profile(names=(SHOP, OTHER)), "lb1", goldens.TEMPLATES, secrets=given_secrets)[STUNNEL].text
    others = sections(text)[1:]
    assert {line.words[0] for section in others for line in section.lines} <= {
        "accept", "sni", "cert", "sslVersionMin", "ciphers", "connect", "protocol", "TIMEOUTconnect", "TIMEOUTidle",
    }  # fmt: skip
    asked = [section.value("sni").partition(":")[2] for section in others if section.all("sni")]
    assert "good.example" in asked
    assert {name.lower() for name in asked} <= {name.lower() for name in ("good.example", *names)}
    assert not any(re.search(r"[^a-z0-9*._-]", name) for name in asked)
