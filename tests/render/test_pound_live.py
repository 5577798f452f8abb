"""What a real Pound in front of a real HAProxy does with what is rendered. Nothing boots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import goldens
from certificate_files import issue
from front_live import digest, peer_of, seen, server_of
from haproxy_live import attempt
from ndakit.load.certificates import read
from ndakit.load.pound_certificates import shown_for
from ndakit.model import Profile

HEAD = goldens.PROFILES["bakery"].read_text().partition("pools:")[0]
POOL = "  web1: {port: 80, check: tcp, servers: {a: 192.168.0.21}}\n"
MORE = "  web2: {port: 80, check: tcp, servers: {c: 192.168.0.31}}\n"
SHOP, OTHER = "shop.pem", "other.pem"
PARTIES = {
    SHOP: issue("shop", names=["shop.example", "*.shop.example"]),
    OTHER: issue("other", names=["other.example"]),
}
SECRETS = {name: party.bundle() for name, party in PARTIES.items()}
CLIENT = "192.168.0.10"
"""All addresses lie on the loopback there, and a connection to the VIP comes from it."""


def profile(tls: str = "", more: str = "") -> Profile:
    pools = "pools:\n" + POOL + (MORE if "web2" in more else "")
    ended = f"{{terminator: pound, certificates: [{{secret: {SHOP}}}, {{secret: {OTHER}}}]{tls}}}"
    service = f"services: {{shops: {{vip: www, port: 443, protocol: http, pool: web1, tls: {ended}{more}}}}}\n"
    sizing = "sizing: {sessions_per_second: 1, session_duration_s: 1, memory_mib: 256}"
    return goldens.parse(f"{HEAD}{pools}{service}system: {{ntp: []}}\n{sizing}\n")


def ask(shops: Profile, folder: Path, *heads: str, **options: Any) -> list[str]:
    requests = [f"{head}\r\nConnection: close\r\n\r\n" for head in heads]
    given: dict[str, Any] = {"secrets": SECRETS, "tls_name": "shop.example", "port": 443} | options
    return [str(answer) for answer in attempt(shops, folder, "requests", requests=requests, **given)]


def test_servers_learn_who_asks_and_that_it_was_by_https_whatever_clients_claim(tmp_path: Path) -> None:
    claims = (
        ("X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 192.0.2.2, 192.0.2.3"),
        ("X-Forwarded-For: 192.0.2.1,", " 192.0.2.2", "x-forwarded-for: 192.0.2.3"),
        ("x-ssl-request: 0", "X_SSL_Request: 0", "X-SSL-Request: 0", "X-SSL-REQUEST: 0"),
        ("X-Forwarded-Proto: http", "X-SSL-Cipher: forged", "X-Real-IP: 192.0.2.1"),
        ("X-Forwarded-For:",),
    )
    head = "GET / HTTP/1.1\r\nHost: shop.example"
    honest, *forged = ask(profile(), tmp_path, head, *("\r\n".join((head, *lines)) for lines in claims))
    wanted = {"x-forwarded-for": [CLIENT], "x-forwarded-proto": ["https"], "x-ssl-request": ["1"]}
    for answer in (honest, *forged):
        there = seen(answer)
        assert {name: there.get(name) for name in wanted} == wanted, answer
        assert set(there) == {"host", *wanted}
        assert "192.0.2." not in answer


def test_without_one_line_of_it_a_client_could_name_its_address(tmp_path: Path) -> None:
    """What CombineHeaders and HAProxy's count of the lines are there for."""
    forged = "GET / HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.9"
    apart = [('CombineHeaders\n\t"X-Forwarded-For"\nEnd\n', "")]
    (refused,) = ask(profile(), tmp_path, forged, pound_changes=apart)
    assert server_of(refused) == "400"
    blind = [("\thttp-request deny deny_status 400 unless { req.fhdr_cnt(X-Forwarded-For) eq 1 }\n", "")]
    (fooled,) = ask(profile(), tmp_path, forged, pound_changes=apart, changes=blind)
    assert seen(fooled)["x-forwarded-for"] == ["192.0.2.9"]


def test_the_name_chooses_the_pool_and_an_unknown_one_waits(tmp_path: Path) -> None:
    """The talk's form: regular expressions choose, what is not known gets nothing but time."""
    more = ", hostnames: [shop.example], unknown_hosts: tarpit, routes: [{host_regex: '^anna\\.', pool: web2}]"
    answers = ask(
        profile(more=more), tmp_path, *(f"GET / HTTP/1.1\r\nHost: {h}" for h in ("shop.example", "anna.shop.example")),
        *(f"GET / HTTP/1.1\r\nHost: {h}" for h in ("other.example", CLIENT)),
        changes=[("timeout tarpit 30s", "timeout tarpit 2s")],
    )  # fmt: skip
    assert [server_of(answer) for answer in answers] == ["a", "c", "500", "500"]


def test_certificates_are_chosen_by_name_and_old_versions_refused(tmp_path: Path) -> None:
    tried = [["shop.example", "", []], ["x.shop.example", "", []], ["other.example", "", []], ["who.example", "", []],
             ["shop.example", "TLSv1_2", []], ["shop.example", "TLSv1_1", []],
             ["shop.example", "", ["h2", "http/1.1"]]]  # fmt: skip
    answers = attempt(profile(), tmp_path, "handshakes", handshakes=tried, port=443, secrets=SECRETS)
    shop, other = digest(PARTIES[SHOP]), digest(PARTIES[OTHER])
    assert [one[0] for one in answers] == [shop, shop, other, shop, shop, "", shop]
    assert [one[1] for one in answers[:5]] == ["TLSv1.3"] * 4 + ["TLSv1.2"]
    assert answers[6][2] in (None, "http/1.1")


@pytest.mark.parametrize(("first", "second", "shown"), [(SHOP, OTHER, SHOP), (OTHER, SHOP, OTHER)])
def test_an_asterisk_takes_dots_so_the_narrower_certificate_must_come_first(
    tmp_path: Path, first: str, second: str, shown: str
) -> None:
    """Pound compares names with fnmatch(3), in the order of its file (4.16, 4.19: config.c, SNI_server_name)."""
    parties = {SHOP: issue("wide", names=["*.shop.example"]), OTHER: issue("narrow", names=["*.test.shop.example"])}
    secrets = {SHOP: parties[first].bundle(), OTHER: parties[second].bundle()}
    tried = [["a.test.shop.example", "", []], ["a.shop.example", "", []]]
    narrow, wide = attempt(profile(), tmp_path, "handshakes", handshakes=tried, port=443, secrets=secrets)
    assert (narrow[0], wide[0]) == (digest(parties[shown]), digest(parties[SHOP]))


@pytest.mark.parametrize("turned", [False, True])
def test_what_check_thinks_that_pound_shows_is_what_pound_shows(tmp_path: Path, turned: bool) -> None:
    """Common names, letters' case, dots, question marks and brackets."""
    some = issue("anna.example", names=["*.shop.example", "Case.example", "[ab].x.example"])
    other = issue("*.common", names=["*.test.shop.example", "case.example", "a?c.example", "*.x.example"])
    parties = dict(zip((SHOP, OTHER), (other, some) if turned else (some, other), strict=True))
    names = [
        "anna.example", "a.common", "a.b.common", "a.shop.example", "a.test.shop.example", "case.example",
        "Case.example", "abc.example", "a.x.example", "c.x.example", "shop.example", "no.invalid",
    ]  # fmt: skip
    secrets = {name: party.bundle() for name, party in parties.items()}
    tried = [[name, "", []] for name in names]
    answers = attempt(profile(), tmp_path, "handshakes", handshakes=tried, port=443, secrets=secrets)
    bundles = {name: read(text) for name, text in secrets.items()}
    thought = [bundles[shown_for(name, (SHOP, OTHER), bundles)].fingerprint for name in names]
    assert dict(zip(names, (one[0] for one in answers), strict=True)) == dict(zip(names, thought, strict=True))


@pytest.mark.parametrize(
    ("tls", "versions"),
    [(", policy: modern", {"TLSv1_3"}), (", policy: old", {"TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"}),
     (', policy: old, min_version: "1.1"', {"TLSv1_1", "TLSv1_2", "TLSv1_3"})],
)  # fmt: skip
def test_a_policy_decides_the_versions(tmp_path: Path, tls: str, versions: set[str]) -> None:
    names = ("TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3")
    tried = [["shop.example", version, []] for version in names]
    answers = attempt(profile(tls), tmp_path, "handshakes", handshakes=tried, port=443, secrets=SECRETS)
    assert {name for name, one in zip(names, answers, strict=True) if one[0]} == versions


def test_methods_other_than_get_and_post_get_through_and_haproxys_words_reach_the_client(tmp_path: Path) -> None:
    methods = ("OPTIONS", "PUT", "DELETE", "PATCH", "PROPFIND")
    answers = ask(profile(", hsts_s: 300"), tmp_path, *(f"{m} / HTTP/1.1\r\nHost: shop.example" for m in methods))
    assert [server_of(answer) for answer in answers] == ["a"] * len(methods)
    assert all("strict-transport-security: max-age=300" in answer.lower() for answer in answers)
    (sorry,) = ask(profile(), tmp_path, "GET / HTTP/1.1\r\nHost: shop.example", dead=True)
    assert server_of(sorry) == "503"


def test_with_tproxy_the_server_sees_the_client_itself(tmp_path: Path) -> None:
    """Transparent end to end, as in the talk: Pound is not, but HAProxy takes the client's address from it."""
    shops = profile(more=", topology: tproxy")
    (answer,) = ask(shops, tmp_path, "GET /client HTTP/1.1\r\nHost: shop.example", source="203.0.113.50",
                    more=["203.0.113.50/32"])  # fmt: skip
    assert seen(answer)["x-forwarded-for"] == ["203.0.113.50"]
    assert peer_of(answer) == "203.0.113.50"
    (answer,) = ask(profile(), tmp_path, "GET /client HTTP/1.1\r\nHost: shop.example", source="203.0.113.50",
                    more=["203.0.113.50/32"])  # fmt: skip
    assert seen(answer)["x-forwarded-for"] == ["203.0.113.50"]
    assert peer_of(answer) != "203.0.113.50"


def test_behind_pound_each_client_has_its_own_limit_of_requests(tmp_path: Path) -> None:
    shops = profile(more=", limits: {requests: {count: 2, per_s: 60}}")
    clients = ["203.0.113.7", "203.0.113.8"]
    requests = ["GET / HTTP/1.1\r\nHost: shop.example"] * 6
    answers = ask(shops, tmp_path, *requests, sources=clients, more=[f"{client}/32" for client in clients])
    assert [answer.split()[1] for answer in answers] == [*["200"] * 4, *["429"] * 2]
    tracked = "http-request track-sc1 src\n"
    everybody = [
        (f"\t{tracked}", ""),
        (
            "\thttp-request deny deny_status 400 unless { req.fhdr_cnt(X-F",
            f"\t{tracked}\thttp-request deny deny_status 400 unless {{ req.fhdr_cnt(X-F",
        ),
    ]
    folder = tmp_path / "early"
    folder.mkdir()
    early = ask(shops, folder, *requests, sources=clients, more=[f"{c}/32" for c in clients], changes=everybody)
    assert [answer.split()[1] for answer in early] == [*["200"] * 2, *["429"] * 4]


def test_behind_pound_only_access_sources_are_spared_from_maintenance(tmp_path: Path) -> None:
    shops = profile(more=", maintenance: true")
    clients = ["203.0.113.7", "192.168.0.99"]
    requests = ["GET / HTTP/1.1\r\nHost: shop.example"] * 2
    answers = ask(shops, tmp_path, *requests, sources=clients, more=[f"{client}/32" for client in clients])
    assert [answer.split()[1] for answer in answers] == ["503", "200"]
