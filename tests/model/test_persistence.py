"""Ways to keep a client's server: what is refused is right once its fix was followed, and the numbers that tables know
servers by."""

from __future__ import annotations

import itertools
import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import goldens
from ndakit.model import Profile, capacity_of, rules
from ndakit.model.persistence import TYPES
from ndakit.render.engines.persistence import NUMBERS, server_numbers

HEAD = goldens.PROFILES["bakery"].read_text().partition("pools:")[0].replace("24.10.8", "{release}")
SERVERS = "port: 80, servers: {web1: 192.168.0.21, web2: 192.168.0.22}"


def profile(kept: str, service: str, *, release: str = "24.10.8", more: str = "") -> Profile:
    pool = f"persistence: {kept}, " if kept else ""
    return goldens.parse(
        HEAD.replace("{release}", release) + f"pools:\n  web: {{{pool}{SERVERS}}}\n  other: {{{pool}{SERVERS}}}\n"
        f"services:\n  web: {{vip: www, port: 80, pool: web, {service}}}\n{more}",
        goldens.DATA / "profiles",
    )


def told(made: Profile) -> set[str]:
    return {f.code for f in rules.findings(made) if f.severity == "error" and f.code != "ssh-key-of-release"}


HTTP, TCP, DR = "protocol: http", "protocol: tcp", "protocol: tcp, topology: nat"
TLS = "protocol: http, tls: {certificates: [{secret: a.pem}]}"
KNOWN = TLS.replace("a.pem}]", "a.pem}], client_certificates: {ca: test-ca.pem}")
DN = "{type: header, name: X-SSL-Client-DN}"
SRV, HOST = "{type: cookie, name: SRV}", "{type: cookie, name: __Host-A}"


@pytest.mark.parametrize(
    ("code", "wrong", "mended"),
    [
        ("persistence-of-protocol", (SRV, TCP), ("{type: source}", TCP)),
        ("persistence-of-protocol", (SRV, TCP), (SRV, HTTP)),
        ("persistence-of-protocol", (SRV, TCP), (SRV, f"{TCP}, persistence: {{type: source}}")),
        ("persistence-of-protocol", ("{type: rdp-cookie}", HTTP), (SRV, HTTP)),
        ("cookie-not-secure", ("{type: cookie, name: SRV, secure: false}", TLS), (SRV, TLS)),
        ("same-site-without-tls", ("{type: cookie, name: A, same_site: none}", HTTP),
         ("{type: cookie, name: A, same_site: lax}", HTTP)),
        ("same-site-without-tls", ("{type: cookie, name: A, same_site: none}", HTTP),
         ("{type: cookie, name: A, same_site: none}", TLS)),
        ("cookie-prefix-without-tls", (HOST, HTTP), (HOST, TLS)),
        ("header-not-there", ("{type: header, name: X_Real_IP}", HTTP), ("{type: header, name: X-User}", HTTP)),
        ("header-not-there", (DN, TLS), (DN, KNOWN)),
        ("header-not-there", ("{type: header, name: Upgrade}", HTTP), ("{type: header, name: X-Forwarded-For}", HTTP)),
        ("tls-session-of-ours", ("{type: tls-session}", TLS.replace("http", "tcp")), ("{type: tls-session}", TCP)),
    ],
)  # fmt: skip
def test_what_is_refused_is_right_once_it_is_done_as_told(
    code: str, wrong: tuple[str, str], mended: tuple[str, str]
) -> None:
    assert code in told(profile(*wrong))
    assert told(profile(*mended)) == set()


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_ipvs_keeps_clients_by_their_address_only(kind: str) -> None:
    kept = f"{{type: {kind}{', name: a' if 'name' in TYPES[kind].model_fields else ''}}}"
    assert ("persistence-of-engine" in told(profile(kept, DR))) == (kind != "source")


def test_a_sorry_pools_own_way_counts_for_whom_it_answers() -> None:
    text = HEAD.replace("{release}", "24.10.8") + (
        f"pools:\n  web: {{sorry: {{pool: other}}, {SERVERS}}}\n  other: {{persistence: {SRV}, {SERVERS}}}\n"
        "services:\n  web: {vip: www, port: 80, pool: web, protocol: tcp}\n"
    )
    (finding,) = [f for f in rules.findings(goldens.parse(text)) if f.code == "persistence-of-protocol"]
    assert finding.at == ("pools", "other", "persistence", "type") and "take a pool of its own" in finding.fix
    assert told(goldens.parse(text.replace(SRV, "{type: source}"))) == set()


@pytest.mark.parametrize(
    ("ours", "theirs", "severity"),
    [
        ("hostnames: [a.example]", "hostnames: [a.example]", "error"),
        ("hostnames: [a.example]", 'hostnames: ["*.example"]', "error"),
        ("hostnames: [a.example]", "hostnames: [b.example]", ""),
        ("hostnames: [a.example]", "", "warning"),
        ("", "", "warning"),
    ],
)
def test_two_pools_with_one_cookie_name_lose_clients_under_one_host_name(ours: str, theirs: str, severity: str) -> None:
    other = f"  other: {{vip: www, port: 81, pool: other, protocol: http, {theirs}}}\n"
    made = profile(SRV, f"{HTTP}, {ours}", more=other)
    assert [f.severity for f in rules.findings(made) if f.code == "cookie-name-twice"] == (
        [severity] if severity else []
    )
    apart = profile(SRV, f"{HTTP}, persistence: {{type: cookie, name: MINE}}, {ours}", more=other)
    assert "cookie-name-twice" not in {f.code for f in rules.findings(apart)}


NAMES = st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True), min_size=1, max_size=30, unique=True)


@given(NAMES)
def test_a_servers_number_does_not_depend_on_the_order(names: list[str]) -> None:
    mixed = sorted(names, key=lambda name: zlib.crc32(name[::-1].encode()))
    assert server_numbers(names) == server_numbers(mixed)
    assert list(server_numbers(names)) == names
    numbers = server_numbers(names).values()
    assert len(set(numbers)) == len(names) and all(1 <= n <= NUMBERS for n in numbers)


def test_servers_whose_names_fall_to_one_number_get_two() -> None:
    seen: dict[int, str] = {}
    for name in (f"s{n}" for n in itertools.count()):
        number = zlib.crc32(name.encode()) % NUMBERS
        if number in seen:
            pair = [seen[number], name]
            break
        seen[number] = name
    assert len(set(server_numbers(pair).values())) == 2


def test_the_memory_of_the_tables_is_counted_as_they_are_made() -> None:
    for name in ("kept", "tproxy-2512", "handover", "bakery"):
        made = goldens.profile(name)
        size = capacity_of(made)
        config = goldens.tree(name)["/etc/haproxy.cfg"].text
        tables = re.findall(r"^\tstick-table (.*)$", config, re.M)
        sizes = [int(line.split(" size ")[1].split()[0]) for line in tables if " store " not in line]
        assert size.kept_entries == sum(sizes), "those that count something are not of this kind"
    assert capacity_of(goldens.profile("kept")).kept_entries > 0
