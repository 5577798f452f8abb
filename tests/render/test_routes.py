"""Routes by name, and what becomes of unknown names: what the model refuses, and what a real HAProxy does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import goldens
from haproxy_live import attempt
from ndakit.lint.config_text import haproxy
from ndakit.model import Profile, rules
from ndakit.render.render import render

HEAD = goldens.PROFILES["bakery"].read_text().partition("pools:")[0]
POOLS = (
    "pools:\n  web: {check: tcp, servers: {web1: 192.168.0.21}}\n  api: {check: tcp, servers: {api1: 192.168.0.31}}\n"
    "  img: {check: tcp, servers: {img1: 192.168.0.41}}\n"
)
ROUTES = r"""[{host: [api.shop.example, "*.api.example"], pool: api}, {host_regex: '^img[0-9]+\.', pool: img}]"""


def profile(more: str, pools: str = POOLS) -> Profile:
    service = f"services: {{web: {{vip: www, port: 80, protocol: http, pool: web, {more}}}}}\n"
    return goldens.parse(f"{HEAD}{pools}{service}system: {{ntp: []}}\nsizing: {{sessions_per_second: 1, "
                         "session_duration_s: 1, memory_mib: 128}\n")  # fmt: skip


def told(more: str, pools: str = POOLS) -> dict[str, str]:
    return {f.code: f.what for f in rules.findings(profile(more, pools))}


def server_of(answer: str) -> str:
    """The server that answered, or HAProxy's own status."""
    head = answer.partition("\r\n\r\n")[0]
    own = [line.partition(": ")[2] for line in head.splitlines() if line.lower().startswith("x-server: ")]
    return own[0] if own else head.split()[1]


def ask(shop: Profile, folder: Path, *hosts: str, **options: Any) -> dict[str, str]:
    requests = [f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n" for host in hosts]
    answers = attempt(shop, folder, "requests", requests=requests, port=80, **options)
    return {host: server_of(answer) for host, answer in zip(hosts, answers, strict=True)}


def test_the_name_that_a_client_asks_for_chooses_the_pool(tmp_path: Path) -> None:
    seen = ask(
        profile(f"routes: {ROUTES}"), tmp_path,
        "shop.example", "api.shop.example", "API.shop.Example:80", "x.api.example", "api.example", "x.y.api.example",
        "img7.shop.example", "IMG12.other", "img.shop.example", "ximg7.shop.example", "192.168.0.10",
    )  # fmt: skip
    assert seen == {
        "shop.example": "web1", "api.shop.example": "api1", "API.shop.Example:80": "api1", "x.api.example": "api1",
        "api.example": "web1", "x.y.api.example": "web1", "img7.shop.example": "img1", "IMG12.other": "img1",
        "img.shop.example": "web1", "ximg7.shop.example": "web1", "192.168.0.10": "web1",
    }  # fmt: skip


def test_an_expression_that_begins_with_a_hyphen_is_no_flag(tmp_path: Path) -> None:
    """`-f FILE` would read a file of the node."""
    routes = "[{host_regex: ['-test\\.', '-f'], pool: api}]"
    pools = POOLS.partition("  img:")[0]
    seen = ask(profile(f"routes: {routes}", pools), tmp_path, "shop-test.example", "x-f", "shop.example")
    assert seen == {"shop-test.example": "api1", "x-f": "api1", "shop.example": "web1"}


def test_an_unknown_name_is_refused_and_known_ones_are_not(tmp_path: Path) -> None:
    shop = profile(f"hostnames: [shop.example, www.shop.example], unknown_hosts: refuse, routes: {ROUTES}")
    seen = ask(shop, tmp_path, "shop.example", "www.shop.example", "api.shop.example", "img1.x", "other.example",
               "a.b.shop.example", "192.168.0.10")  # fmt: skip
    assert seen == {
        "shop.example": "web1", "www.shop.example": "web1", "api.shop.example": "api1", "img1.x": "img1",
        "other.example": "421", "a.b.shop.example": "421", "192.168.0.10": "421",
    }  # fmt: skip


NO_NAMES = (
    "shop.example:@evil.example", "shop.example:80@evil.example/", "evil.example,shop.example",
    "shop.example,evil.example", "img1./a", "shop.example:.evil.example", "shop.example:", "shop.example:8o",
    "shop.example/", "a@shop.example",
    "shop.example..", ".shop.example", ".", "", "shop.example evil.example", "shop.example#a", "[::1", "[evil.example]",
    "evil.example\r\nHost: shop.example", "shop.example\r\nHost: evil.example",
)  # fmt: skip
"""What is neither a name nor an address: some servers find another host in it than HAProxy did."""
LENIENT = ("\toption dontlognull\n", "\toption dontlognull\n\toption accept-invalid-http-request\n")
"""HAProxy refuses some of it by itself, depending on its version; with this word it leaves it to the rules."""


@pytest.mark.parametrize("release", ["24.10.8", "21.02.7"])
@pytest.mark.parametrize("more", ["hostnames: [shop.example], unknown_hosts: refuse, routes: ", "routes: "])
def test_a_host_that_is_no_name_reaches_no_server(more: str, release: str, tmp_path: Path) -> None:
    shop = of_release(more + ROUTES, release)
    assert set(ask(shop, tmp_path, *NO_NAMES, changes=[LENIENT]).values()) == {"400"}


@pytest.mark.parametrize("release", ["24.10.8", "21.02.7"])
def test_a_target_with_another_host_reaches_no_server(release: str, tmp_path: Path) -> None:
    targets = ("GET http://evil.example/", "CONNECT evil.example:80", "GET evil://evil.example/")
    requests = [f"{target} HTTP/1.1\r\nHost: shop.example\r\n\r\n" for target in targets]
    shop = of_release("hostnames: [shop.example], unknown_hosts: refuse", release, WEB_ONLY)
    changes = [] if shop.release.haproxy_compares_authority else [LENIENT]
    answers = attempt(shop, tmp_path, "requests", requests=requests, port=80, changes=changes)
    assert {server_of(answer) for answer in answers} == {"400"}


WEB_ONLY = POOLS.partition("  api:")[0]


def of_release(more: str, release: str, pools: str = POOLS) -> Profile:
    made = profile(more, pools)
    return made.model_copy(update={"release": type(made.release).parse(release)})


def test_a_dot_at_the_end_is_the_same_name(tmp_path: Path) -> None:
    shop = profile(f"hostnames: [shop.example], unknown_hosts: refuse, routes: {ROUTES[:-1]}, "
                    "{host_regex: '^old[.]example$', pool: img}]")  # fmt: skip
    asked = {"shop.example.": "web1", "SHOP.example.:80": "web1", "api.shop.example.": "api1",
             "x.api.example.:81": "api1", "img7.x.": "img1", "old.example.": "img1",
             "other.example.": "421", "shop.example..": "400"}  # fmt: skip
    assert ask(shop, tmp_path, *asked) == asked


def test_a_service_that_looks_at_no_name_takes_every_host(tmp_path: Path) -> None:
    asked = dict.fromkeys(("a_b", "shop.example.", "other.example.:80"), "web1")
    assert ask(profile("hostnames: [shop.example]", WEB_ONLY), tmp_path, *asked) == asked


def test_in_a_tarpit_an_unknown_name_waits_and_gets_500(tmp_path: Path) -> None:
    shop = profile(f"hostnames: [shop.example], unknown_hosts: tarpit, routes: {ROUTES}")
    began_s = time.monotonic()
    short = [("timeout tarpit 30s", "timeout tarpit 3s")]
    assert ask(shop, tmp_path, "other.example", changes=short) == {"other.example": "500"}
    assert time.monotonic() - began_s >= 3
    assert ask(shop, tmp_path, "shop.example", changes=short) == {"shop.example": "web1"}


def test_a_pool_of_a_route_has_its_sorry_pool() -> None:
    pools = POOLS.replace("api: {check", "api: {sorry: {pool: img}, check").replace("192.168.0.31", "192.168.0.39")
    shop = profile(f"routes: {ROUTES}", pools)
    text = render(shop, "lb1", goldens.TEMPLATES)["/etc/haproxy.cfg"].text
    assert "use_backend img if route-1-host { nbsrv(api) lt 1 }\n\tuse_backend api if route-1-host\n" in text


@pytest.mark.parametrize("release", ["18.06.9", "21.02.7", "25.12.5"])
def test_pools_of_routes_are_checked_by_the_name_of_their_route(release: str) -> None:
    service = f"{{vip: www, port: 80, protocol: http, pool: web, hostnames: [shop.example], routes: {ROUTES}}}"
    text = HEAD.replace("24.10.8", release) + POOLS.replace("tcp", "http")
    shop = goldens.parse(f"{text}services: {{web: {service}}}\nsystem: {{ntp: []}}\n")
    written = render(shop, "lb1", goldens.TEMPLATES)["/etc/haproxy.cfg"].text
    backends = {
        p.name: "\n".join(" ".join(line.words) for line in p.lines) for p in haproxy(written) if p.kind == "backend"
    }
    assert "shop.example" in backends["web"] and "api.shop.example" in backends["api"]
    assert shop.services_of("api") == shop.services_of("img") == ("web",)


def test_what_cannot_work_is_refused() -> None:
    assert not told(f"routes: {ROUTES}")
    assert told("routes: [{host: a.example, pool: nowhere}]").keys() >= {"unknown-pool"}
    assert "no-known-host" in told("unknown_hosts: tarpit")
    hidden = "routes: [{host: '*.shop.example', pool: api}, {host: api.shop.example, pool: img}]"
    assert "to pool api, takes all its names" in told(hidden)["route-hidden"]
    assert "route-hidden" in told("routes: [{host_regex: '^api', pool: api}, {host: api.shop.example, pool: img}]")
    for fine in (
        "[{host: api.shop.example, pool: img}, {host: '*.shop.example', pool: api}]",
        "[{host: '*.shop.example', pool: api}, {host: [api.shop.example, other.example], pool: img}]",
        "[{host: a.example, host_regex: '^x', pool: api}, {host: a.example, pool: img}]",
    ):
        assert "route-hidden" not in told(f"routes: {fine}"), fine


def test_a_tcp_service_reads_no_names() -> None:
    service = f"services: {{web: {{vip: www, port: 80, protocol: tcp, pool: web, routes: {ROUTES}}}}}\n"
    shop = goldens.parse(f"{HEAD}{POOLS}{service}")
    assert "routes-need-http" in {f.code for f in rules.findings(shop)}
    service = f"services: {{web: {{vip: www, port: 80, topology: dr, protocol: tcp, pool: web, routes: {ROUTES}}}}}\n"
    shop = goldens.parse(f"{HEAD}{POOLS}{service}")
    assert "routes-need-proxy" in {f.code for f in rules.findings(shop)}


TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)


@settings(deadline=None)  # how long it takes is not the question
@given(TEXT)
def test_a_regular_expression_stays_in_its_place(expression: str) -> None:
    """Whatever characters it has: refused, or one word of one line."""
    quoted = expression.replace("'", "''")
    try:
        shop = profile(f"routes: [{{host_regex: '{quoted}', pool: api}}]")
    except ValidationError:
        return
    text = render(shop, "lb1", goldens.TEMPLATES)["/etc/haproxy.cfg"].text
    (frontend,) = [p for p in haproxy(text) if p.kind == "frontend" and p.name == "service:web"]
    (line,) = [line for line in frontend.lines if line.words[:2] == ("acl", "route-1-host-regex")]
    assert line.words == ("acl", "route-1-host-regex", "req.fhdr(host),field(1,:)", "-m", "reg", "-i", "--", expression)
