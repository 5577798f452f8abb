"""What a real HAProxy does with what is rendered: headers, time-outs, floods, retries, the choice of servers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import goldens
from haproxy_live import attempt
from ndakit.lab.clients import LoadResult
from ndakit.model import Profile
from ndakit.model.claimed_headers import CLAIMS, ClaimGroup
from ndakit.render.render import render
from ndakit.verify.claims.shares import at_once_errors, share_errors

ACCESS = (
    "access: {ssh_keys: {me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}, "
    "sources: {office: 192.168.0.0/24}}"
)
SMALL = "sizing: {sessions_per_second: 1, session_duration_s: 1, memory_mib: 128}"
"""The smallest limits there are: 1000 connections for each service."""


def profile(services: str, pools: str, more: str = SMALL, release: str = "24.10.8") -> Profile:
    return goldens.parse(
        f"name: live\nrelease: {release}\n{ACCESS}\nnetworks: {{lan: {{nics: [eth0], subnet: 192.168.0.0/24}}}}\n"
        "nodes:\n  lb1: {addresses: {lan: 192.168.0.11}}\n  lb2: {addresses: {lan: 192.168.0.12}}\n"
        f"vips: {{www: {{network: lan, address: 192.168.0.10}}}}\npools:\n{pools}\nservices:\n{services}\n{more}\n"
    )


WEB = "  web: {vip: www, port: 80, protocol: http, pool: web}"
POOL = "  web: {check: tcp, servers: {web1: 192.168.0.21, web2: 192.168.0.22}}"


def heads(folder: Path, requests: list[str], **options: Any) -> list[str]:
    """The request heads that a server got (HAProxy's own answer if none did)."""
    example = profile(WEB, POOL, release=options.pop("release", "24.10.8"))
    answers = attempt(example, folder, "requests", requests=requests, port=80, **options)
    return [a.partition("\r\n\r\n")[2] if a.startswith("HTTP/1.1 200") else a for a in answers]


def request(*headers: str) -> str:
    return "\r\n".join(("GET / HTTP/1.1", "Host: www.example", *headers, "", ""))


def names(head: str) -> list[str]:
    return [line.partition(":")[0].lower() for line in head.splitlines()[1:] if line]


# -- what clients claim ------------------------------------------------------------------------------------------------

HONEST = ("host", "x-forwarded-for", "x-forwarded-proto")


FORGED = "192.0.2.66"
SPELLINGS: dict[str, Callable[[str], str]] = {
    "hyphens": str,
    "lower case": str.lower,
    "underscores": lambda name: name.replace("-", "_"),
    "dots, upper case": lambda name: name.replace("-", ".").upper(),
    "tildes": lambda name: name.replace("-", "~"),
    "one of them": lambda name: name.replace("-", "_", 1),
}
"""Ways to write a header's name that a server may take for the same."""
KIN = tuple(star.replace("*", "Any-Thing") for group in CLAIMS.groups for star in group.starred)
"""Names of the families that are on no list."""
RELEASES = ("21.02.7", "24.10.8")
"""One whose HAProxy deletes headers by name, one by pattern; each speaks for the others of its kind (see below)."""


def packed(heads: list[str], most: int = 45) -> list[str]:
    """Requests with all these headers: HAProxy takes about a hundred in one."""
    return [request(*heads[i : i + most]) for i in range(0, len(heads), most)]


def test_every_known_claim_is_gone_in_each_spelling(tmp_path: Path) -> None:
    requests = [
        r for write in SPELLINGS.values() for r in packed([f"{write(n)}: {FORGED}" for n in (*CLAIMS.names, *KIN)])
    ]
    for head in heads(tmp_path, requests, release=RELEASES[1]):
        assert sorted(names(head)) == sorted(HONEST)
        assert FORGED not in head
        assert re.search(r"(?im)^x-forwarded-for: 192\.168\.0\.\d+\r?$", head)
        assert re.search(r"(?im)^x-forwarded-proto: http\r?$", head)


def test_a_haproxy_without_patterns_deletes_the_names_and_refuses_disguised_ones(tmp_path: Path) -> None:
    disguised = [
        f"{write(name)}: {FORGED}"
        for name in CLAIMS.names
        for write in SPELLINGS.values()
        if write(name).lower() != name.lower()
    ] + [f"{write(name)}: {FORGED}" for name in KIN for write in SPELLINGS.values()]
    plain = packed([f"{write(n)}: {FORGED}" for n in CLAIMS.names for write in (str, str.lower)])
    answers = heads(tmp_path, [*plain, *map(request, disguised)], release=RELEASES[0])
    for head in answers[: len(plain)]:
        assert sorted(names(head)) == sorted(HONEST)
    through = [d for d, a in zip(disguised, answers[len(plain) :], strict=True) if not a.startswith("HTTP/1.1 403 ")]
    assert through == []


ONCE_LOST = (
    "X-Client-Fingerprint", "X-Client-Serial", "Client-CN", "X-Source-Host", "X-Remote-Host", "X-Socket-Host",
    "Source-Address", "X-Unifi-External-IP", "X-Zabbix-Source-IP", "device-remote-port", "MQTT-Client-Port",
    "Email-Originating-Address", "sourceIp", "X-Forwarded-App",
)  # fmt: skip
"""Headers of ordinary applications that wide patterns took away."""
ORDINARY = (
    "Authorization", "Proxy-Authorization", "User-Agent", "Cookie", "Origin", "Referer", "Accept", "Accept-Language",
    "Range", "If-Range", "If-None-Match", "Cache-Control", "Via", "From", "DNT", "X-Requested-With",
    "X-HTTP-Method-Override", "X-CSRF-Token", "X-Api-Key", "X_Api_Key", "X-Auth-Token", "X-Auth-User", "X-Auth-Key",
    "X-Auth-Email", "X-User-Name", "X-User-Email", "X-Host-Count", "X-Ssl-Requests", "X-Real-Estate", "Client-Version",
    "X-Client-Version", "X-Client-Data", "X-Client-ID", "Client_Id", "X-Request-Id", "X-Correlation-ID", "traceparent",
    "tracestate", "baggage", "b3", "X-B3-TraceId", "uber-trace-id", "X-Amzn-Trace-Id", "X-Cloud-Trace-Context",
    "Sentry-Trace", "Depth", "Destination", "Overwrite", "If", "Lock-Token", "Translate", "OC-Checksum", "X-Amz-Date",
    "X-Amz-Content-Sha256", "X-Amz-Security-Token", "X-Amz-Meta-Source-Ip-Note", "X-Ms-Blob-Type",
    "X-Ms-Client-Request-Id", "X-Goog-Api-Client", "Git-Protocol", "Docker-Distribution-Api-Version", "X-Registry-Auth",
    "X-GitHub-Event", "X-Hub-Signature-256", "Stripe-Signature", "X-Gitlab-Token", "Sec-WebSocket-Protocol",
    "X-MQTT-Topic", "X-Device-Id", "X-Device-Serial", "X-Sensor-Address", "Impersonate-User", "Remote-Host",
    "X-Remote-Control", "X-Proxy-Hint", "Proxy-Hint", "X-Forwarding-Rule", "X-Originating-Client", "X-Scheme-Version",
    "Cf-Access-Client-Id", "Cf-Access-Jwt-Assertion", "X-Original-Title", "X-Rewrite-Rule", "SSL-Policy",
)  # fmt: skip
"""What browsers, tracing, DAV, object stores, git, hooks and devices send."""


@pytest.mark.parametrize("release", RELEASES)
def test_headers_that_claim_nothing_reach_the_server_unchanged(tmp_path: Path, release: str) -> None:
    sent = [f"{name}: {number} a" for number, name in enumerate(ONCE_LOST + ORDINARY)]
    seen = "\n".join(heads(tmp_path, packed(sent), release=release)).splitlines()
    assert {s.lower() for s in sent} - {line.strip().lower() for line in seen} == set()


def rules(release: str) -> str:
    """What haproxy.cfg says about headers."""
    text = render(profile(WEB, POOL, release=release), "lb1", goldens.TEMPLATES)["/etc/haproxy.cfg"].text
    listed = re.findall(r"(?m)^# The known headers(?:.|\n)*?^$", text)
    return "\n".join([*listed, *re.findall(r"(?m)^\t(?:# The known|# \.\.\.|http-request d).*", text)])


@pytest.mark.parametrize(
    ("first", "others"), [("21.02.7", ("18.06.9", "19.07.10")), ("24.10.8", ("22.03.7", "25.12.1"))]
)
def test_rules_about_headers_are_the_same_for_releases_of_a_kind(first: str, others: tuple[str, ...]) -> None:
    assert {rules(other) for other in others} == {rules(first)}
    assert rules(RELEASES[0]) != rules(RELEASES[1])


@pytest.mark.parametrize("release", RELEASES)
def test_rendered_rules_name_each_claim_and_stay_short(release: str) -> None:
    """Long lines are hard to read at night; a name that is only inside of an expression is not found by its reader."""
    by_pattern = release == RELEASES[1]
    wanted = {n for g in CLAIMS.groups for n in ((*g.alone, *g.starred) if by_pattern else g.names)}
    assert wanted - set(re.findall(r"[\w*-]+", rules(release))) == set()
    assert max(map(len, rules(release).splitlines())) < 1300


def test_each_claim_is_named_once() -> None:
    assert len({n.lower() for n in CLAIMS.names}) == len(CLAIMS.names)
    assert all(any(n.startswith(f"{f}-") for n in g.names) for g in CLAIMS.groups for f in g.families)
    assert not {n.lower() for n in CLAIMS.names} & {n.lower() for n in ONCE_LOST + ORDINARY}


def test_a_client_cannot_have_the_next_proxy_drop_headers(tmp_path: Path) -> None:
    answers = heads(
        tmp_path,
        [
            request("Connection: X-Forwarded-For"),
            request("Connection: close, X-Forwarded-For, Cookie", "Connection: x-forwarded-proto", "Cookie: a=b"),
            request("Connection: keep-alive"),
            request("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
            request("Connection: Upgrade, X-Forwarded-For", "Upgrade: websocke"),
        ],
    )
    for head in answers[:4]:
        assert "x-forwarded-for" in names(head)
        assert not {"upgrade", "http2-settings"} & set(names(head))
        assert set(re.findall(r"(?im)^connection: ([^\r\n]*)", head)) <= {"close", "keep-alive"}
    assert set(re.findall(r"(?im)^connection: ([^\r\n]*)", answers[4])) == {"upgrade"} or "Upgrade" in answers[4]
    assert not re.search(r"(?im)^connection:.*forwarded", answers[4])


def test_a_websocket_still_gets_its_tunnel(tmp_path: Path) -> None:
    answer, echo = attempt(profile(WEB, POOL), tmp_path, "websocket", port=80)
    assert answer.startswith("HTTP/1.1 101 ")
    assert echo == "hello"


def test_without_the_rules_the_claims_would_arrive(tmp_path: Path) -> None:
    """The test of the tests: these requests do reach a server whose HAProxy says nothing about them."""
    (head,) = heads(
        tmp_path, [request("X-Real-IP: 192.0.2.66", "Connection: X-Forwarded-For")],
        changes=[("\thttp-request del-header", "\t# http-request del-header")],
    )  # fmt: skip
    assert "x-real-ip" in names(head)
    assert re.search(r"(?im)^connection: x-forwarded-for", head)


@pytest.mark.parametrize("group", CLAIMS.groups, ids=lambda g: g.about)
def test_an_expression_means_exactly_the_names_of_its_group(group: ClaimGroup) -> None:
    own, kin = {n.lower() for n in group.names}, tuple(f"{f}-".lower() for f in group.families)

    def meant(name: str) -> bool:
        return name.lower() in own or name.lower().startswith(kin)

    for name in (*CLAIMS.names, *KIN, *ONCE_LOST, *ORDINARY):
        for write in SPELLINGS.values():
            assert bool(re.search(group.expression, write(name).lower())) == meant(name), write(name)
        for other in (f"a-{name}", f"{name}-a", f"{name}a", name[:-1], name.replace("-", "a", 1) + "-"):
            assert bool(re.search(group.expression, other.lower())) == meant(other), other
    spelled = ":".join(n.replace("-", "_") for n in group.names[::-1])
    assert not group.disguised or re.search(group.disguised, spelled.lower())


# -- time-outs ---------------------------------------------------------------------------------------------------------


def idle_for(folder: Path, *timeouts: str) -> list[float | None]:
    services = "\n".join(
        f"  db{i}: {{vip: www, port: {5001 + i}, protocol: tcp, pool: db, timeouts: {t}}}"
        for i, t in enumerate(timeouts)
    )
    example = profile(services, "  db: {port: 5000, check: tcp, servers: {db1: 192.168.0.21}}")
    ports = [5001 + i for i in range(len(timeouts))]
    seconds: list[float | None] = attempt(example, folder, "idle", ports=ports, limit_s=6.0)
    return seconds


def test_a_silent_tcp_connection_ends_when_its_own_time_outs_say(tmp_path: Path) -> None:
    both, one, tunnel, longer = idle_for(
        tmp_path,
        "{client_s: 2, server_s: 2}",
        "{client_s: 1, server_s: 60}",
        "{client_s: 60, server_s: 60, tunnel_s: 2}",
        "{client_s: 1, server_s: 1, tunnel_s: 60}",
    )
    assert both is not None and 1.9 <= both < 5  # one statement about one figure
    assert one is not None and 0.9 <= one < 4
    assert tunnel is not None and 1.9 <= tunnel < 5
    assert longer is None, "a stated tunnel_s takes the place of both"


# -- overload ----------------------------------------------------------------------------------------------------------

TWO = WEB + "\n  other: {vip: www, port: 81, protocol: http, pool: web}"
MANY = TWO + "\n  third: {vip: www, port: 82, protocol: tcp, pool: web}"
WATCHED = "  web: {check: tcp, port: 80, servers: {web1: 192.168.0.21, web2: 192.168.0.22}}"
PAIR = SMALL + "\nvrrp: {preempt: true, demote_on: [web]}"
PAGES = [["192.168.0.11", 8404, "/;csv"], ["127.0.0.1", 8404, "/empty/web"]]


@pytest.mark.parametrize(
    ("services", "ports", "count"), [(WEB, [80], 1500), (TWO, [80, 81], 1300), (MANY, [80, 81, 82], 1100)]
)
def test_an_overloaded_haproxy_still_shows_its_statistics_and_answers_keepalived(
    tmp_path: Path, services: str, ports: list[int], count: int
) -> None:
    answers = attempt(profile(services, WATCHED, PAIR), tmp_path, "flood", ports=ports, count=count, pages=PAGES)
    assert [p["status"] for p in answers["pages"]] == [200, 503], "503: no, that pool is not empty"


def test_a_pool_whose_servers_are_dead_is_told_to_keepalived_as_empty(tmp_path: Path) -> None:
    dead = WATCHED.replace("check: tcp", "check: {type: tcp, interval_s: 0.2, fall: 1}")
    answers = attempt(profile(WEB, dead, PAIR), tmp_path, "flood", ports=[80], count=0, pages=PAGES, dead=True)
    assert [p["status"] for p in answers["pages"]] == [200, 200]


def test_without_the_reserve_a_flood_would_silence_them(tmp_path: Path) -> None:
    answers = attempt(
        profile(WEB, WATCHED, PAIR), tmp_path, "flood", ports=[80], count=1500, pages=PAGES,
        changes=[("\tmaxconn 1100\n", "\tmaxconn 1000\n")],
    )  # fmt: skip
    assert [p["status"] for p in answers["pages"]] == [0, 0]


def test_what_services_may_have_together_is_refused_beyond_it(tmp_path: Path) -> None:
    example = profile(MANY, WATCHED, PAIR)
    flood = attempt(example, tmp_path, "flood", ports=[80, 81, 82], count=990, pages=PAGES)
    assert flood["refused"] > 500
    alone = attempt(example, tmp_path, "flood", ports=[80], count=990, pages=[*PAGES, ["192.168.0.10", 81, "/"]])
    assert alone["refused"] == 0
    assert [p["status"] for p in alone["pages"]] == [200, 503, 200], "a flooded service leaves room for the others"


def test_a_service_takes_as_many_connections_as_its_limit_says(tmp_path: Path) -> None:
    limited = WEB.replace("}", ", limits: {connections: {count: 20}}}") + TWO.removeprefix(WEB)
    example = profile(limited, WATCHED, PAIR)
    pages = [["192.168.0.10", 80, "/"], ["192.168.0.10", 81, "/"]]
    few = attempt(example, tmp_path, "flood", ports=[80], count=15, pages=pages)
    assert [p["status"] for p in few["pages"]] == [200, 200]
    many = attempt(example, tmp_path, "flood", ports=[80], count=30, pages=pages)
    assert [p["status"] for p in many["pages"]] == [0, 200], "it waits, and the other service does not"


# -- retries -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stated", "times"), [("retries: 0, ", 0), ("", 3), ("retries: 5, ", 5)])
def test_a_connection_is_tried_anew_as_often_as_the_pool_says(tmp_path: Path, stated: str, times: int) -> None:
    servers = "servers: {web1: 192.168.0.21, web2: 192.168.0.22}"
    pool = f"  web: {{check: {{type: tcp, interval_s: 600}}, {stated}{servers}}}"
    # A retry counts as one or, if it went to another server, as the other: which of them is not the same in every run.
    columns = ["wretr", "wredis"]
    silent = attempt(profile(WEB, pool), tmp_path, "silent", dead=True, port=80, proxy="web", columns=columns)
    assert silent["status"] == 503
    counted = [int(silent["counted"]["BACKEND"][column]) for column in columns]
    assert sum(counted) == times, f"retries {counted[0]}, on another server {counted[1]}"


# -- who gets what -----------------------------------------------------------------------------------------------------

CLIENTS = [f"192.168.0.{n}" for n in range(100, 200)]
PATHS = [f"/{n}" for n in range(100)]
BUSY = {"http": "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n", "tcp": "hello"}


def balanced(balance: str, *weights: int, protocol: str = "http") -> Profile:
    servers = ", ".join(
        f"{name}: {{address: 192.168.0.{21 + i}, weight: {weight}}}"
        for i, (name, weight) in enumerate(zip("abc", weights, strict=False))
    )
    pool = f"  web: {{check: tcp, balance: {balance}, servers: {{{servers}}}}}"
    return profile(f"  web: {{vip: www, port: 80, protocol: {protocol}, pool: web}}", pool)


def in_turn(folder: Path, example: Profile, count: int = 60) -> dict[str, int]:
    answered: dict[str, int] = attempt(example, folder, "shares", port=80, count=count)["shares"]
    assert share_errors(example, "web", LoadResult(count, answered, 0)) == []
    return answered


def at_once(folder: Path, example: Profile, count: int = 20) -> dict[str, int]:
    held = BUSY[example.services["web"].protocol]
    counted: dict[str, int] = attempt(example, folder, "shares", port=80, count=count, held=held)
    return {name: number for name, number in counted.items() if number}


@pytest.mark.parametrize("protocol", ["http", "tcp"])
@pytest.mark.parametrize(("weights", "shares"), [((3, 1, 1), (12, 4, 4)), ((0, 1, 1), (0, 10, 10)), ((1, 1), (10, 10))])
def test_roundrobin_and_leastconn_give_busy_servers_their_weights(
    tmp_path: Path, protocol: str, weights: tuple[int, ...], shares: tuple[int, ...]
) -> None:
    wanted = {name: share for name, share in zip("abc", shares, strict=False) if share}
    for balance in ("roundrobin", "leastconn"):
        example = balanced(balance, *weights, protocol=protocol)
        held = at_once(tmp_path, example)
        assert held == wanted
        assert at_once_errors(example, "web", held) == []


def test_roundrobin_looks_at_weights_and_leastconn_does_not_while_servers_are_idle(tmp_path: Path) -> None:
    assert in_turn(tmp_path, balanced("roundrobin", 3, 1, 1)) == {"a": 36, "b": 12, "c": 12}
    assert in_turn(tmp_path, balanced("leastconn", 3, 1, 1)) == {"a": 20, "b": 20, "c": 20}
    assert in_turn(tmp_path, balanced("leastconn", 0, 1, 1)) == {"b": 30, "c": 30}


@pytest.mark.parametrize("weights", [(3, 1, 1), (1, 1, 1), (1, 1)])
def test_random_comes_near_the_weights_and_spreads_load(tmp_path: Path, weights: tuple[int, ...]) -> None:
    example = balanced("random", *weights)
    answered = in_turn(tmp_path, example, 240)
    assert set(answered) == {n for n, _ in zip("abc", weights, strict=False)}
    assert set(at_once(tmp_path, example)) == set(answered)


def test_random_takes_no_server_of_weight_0(tmp_path: Path) -> None:
    assert set(in_turn(tmp_path, balanced("random", 0, 1, 1), 240)) == {"b", "c"}


@pytest.mark.parametrize(("weights", "server"), [((1, 3, 1), "a"), ((1, 1, 1), "a"), ((0, 1, 1), "b")])
def test_first_fills_the_first_server_whatever_its_weight(
    tmp_path: Path, weights: tuple[int, ...], server: str
) -> None:
    assert in_turn(tmp_path, balanced("first", *weights)) == {server: 60}
    assert at_once(tmp_path, balanced("first", *weights)) == {server: 20}


@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 1, 1), (0, 1, 1)])
@pytest.mark.parametrize("balance", ["source", "uri"])
def test_source_and_uri_keep_a_key_on_its_server_and_share_keys_by_weight(
    tmp_path: Path, balance: str, weights: tuple[int, ...]
) -> None:
    example = balanced(balance, *weights)
    keys: dict[str, Any] = {"sources": CLIENTS} if balance == "source" else {"paths": PATHS}
    more = [f"{client}/32" for client in CLIENTS]
    seen = attempt(example, tmp_path, "shares", port=80, count=2, more=more, **keys)
    assert all(len(set(servers)) == 1 for servers in seen["keys"].values())
    total = sum(seen["shares"].values())
    for name, weight in zip("abc", weights, strict=True):
        share = seen["shares"].get(name, 0) / total
        # A hundred keys on a ring whose parts are chance themselves.
        assert abs(share - weight / sum(weights)) < 0.25
        assert bool(share) == bool(weight)
    other = "uri" if balance == "source" else "source"
    keys = {"paths": PATHS[:10]} if balance == "source" else {"sources": CLIENTS[:10]}
    same = attempt(example, tmp_path, "shares", port=80, count=1, more=more, **keys)
    assert len(same["shares"]) == 1, f"{other} does not matter to {balance}"


def test_leastconn_sends_what_comes_to_the_server_that_is_free(tmp_path: Path) -> None:
    """With every weight at 1: roundrobin would give the same; here one server is full from before."""
    example = balanced("leastconn", 1, 1, 1, protocol="tcp")
    limited = example.pools["web"].servers["a"].model_copy(update={"max_connections": 2})
    pool = example.pools["web"].model_copy(update={"servers": example.pools["web"].servers | {"a": limited}})
    assert at_once(tmp_path, example.model_copy(update={"pools": {"web": pool}}), 22) == {"a": 2, "b": 10, "c": 10}
