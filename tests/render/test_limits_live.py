"""Limits of services, what clients get beyond them, pages for errors, maintenance: with a real HAProxy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import goldens
from haproxy_live import attempt, program
from ndakit.core import process
from ndakit.core.release import Release
from ndakit.model import Attachment, Profile, rules, sorry_pages
from ndakit.model.limits import ERROR_STATUSES
from ndakit.render.render import render

HEAD = goldens.PROFILES["bakery"].read_text().partition("pools:")[0]
TWO = "{web1: {address: 192.168.0.21, max_connections: 1}, web2: {address: 192.168.0.22, max_connections: 1}}"
EQUAL = "{web1: 192.168.0.21, web2: 192.168.0.22}"
ONE = "{web1: 192.168.0.21}"
SORRY = "sorry: {page: sorry.html}"
SPARE = "\n  spare: {port: 80, check: tcp, servers: {spare1: 192.168.0.29}}"
PAGE = (goldens.ROOT / "profiles/sorry.html").read_text()
ADMIN, STRANGER = "192.168.0.99", "203.0.113.7"
"""In `access.sources` of the profile below, and not."""


def profile(
    service: str, *, pool: str = SORRY, servers: str = TWO, more: str = "", protocol: str = "http",
    release: str = "24.10.8",
) -> Profile:  # fmt: skip
    return goldens.parse(
        f"{HEAD.replace('24.10.8', release)}pools:\n"
        f"  web: {{port: 80, check: tcp, {pool}{', ' if pool else ''}servers: {servers}}}{more}\n"
        f"services: {{web: {{vip: www, port: 80, protocol: {protocol}, pool: web, {service}}}}}\nsystem: {{ntp: []}}\n"
        "sizing: {sessions_per_second: 1, session_duration_s: 1, memory_mib: 128}\n"
    )


def told(limited: Profile) -> dict[str, str]:
    return {f.code: f.what for f in rules.findings(limited)}


def get(path: str = "/", *headers: str, body: str = "", method: str = "GET") -> str:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: shop.example", *headers, "", "")) + body


def seen(answer: str) -> str:
    """The server that answered, `sorry` for the page, else the status; nothing for a connection that was closed."""
    head, _, body = answer.partition("\r\n\r\n")
    own = [line.partition(": ")[2] for line in head.splitlines() if line.lower().startswith("x-server: ")]
    if own:
        return own[0]
    if body.strip() == PAGE.strip():
        assert head.startswith("HTTP/1.1 503"), head
        return "sorry"
    return head.split()[1] if head.startswith("HTTP/") else head


def ask(limited: Profile, folder: Path, *requests: str, what: str = "requests", **options: Any) -> list[str]:
    return [seen(a) for a in attempt(limited, folder, what, requests=list(requests), port=80, **options)]


# -- maintenance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "expected"), [(STRANGER, "sorry"), (ADMIN, "web1")])
def test_in_maintenance_only_the_admins_reach_the_servers(source: str, expected: str, tmp_path: Path) -> None:
    limited = profile("maintenance: true")
    assert ask(limited, tmp_path, get(), source=source, more=[f"{source}/32"]) == [expected]


@pytest.mark.parametrize("release", ["18.06.9", "25.12.5"])
@pytest.mark.parametrize("protocol", ["http", "tcp"])
def test_in_maintenance_strangers_get_the_sorry_pool(protocol: str, release: str, tmp_path: Path) -> None:
    limited = profile("maintenance: true", pool="sorry: {pool: spare}", more=SPARE, protocol=protocol, release=release)
    for source, server in {STRANGER: "spare1", ADMIN: "web1"}.items():
        assert ask(limited, tmp_path, get(), source=source, more=[f"{source}/32"]) == [server]


def test_maintenance_without_its_rule_would_show_the_site_to_strangers(tmp_path: Path) -> None:
    rule = "\tuse_backend _sorry:web if !access-sources\n"
    limited = profile("maintenance: true")
    assert ask(limited, tmp_path, get(), source=STRANGER, more=[f"{STRANGER}/32"], changes=[(rule, "")]) == ["web1"]


def test_in_maintenance_the_pools_of_routes_show_their_own_sorry(tmp_path: Path) -> None:
    more = "\n  api: {port: 80, check: tcp, sorry: {pool: spare}, servers: {api1: 192.168.0.31}}" + SPARE
    limited = profile("maintenance: true, routes: [{host: api.example, pool: api}]", more=more)
    requests = (get(), get().replace("shop.example", "api.example"))
    assert ask(limited, tmp_path, *requests, source=STRANGER, more=[f"{STRANGER}/32"]) == ["sorry", "spare1"]


# -- the queue ---------------------------------------------------------------------------------------------------------


def held(count: int) -> dict[str, Any]:
    """Requests that no server answers: the first two occupy the servers, the others wait."""
    return {"what": "overload", "held": [get("/slow")] * count, "frontend": "service:web"}


def test_when_the_queue_is_full_clients_get_the_page_at_once(tmp_path: Path) -> None:
    limited = profile("limits: {queue: {length: 3}}")
    assert ask(limited, tmp_path, get(), **held(5)) == ["sorry"]


def test_while_the_queue_has_room_clients_wait(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="TimeoutError"):
        ask(profile("limits: {queue: {length: 3}}"), tmp_path, get(), **held(4))


def test_clients_that_have_gone_away_leave_no_full_queue_behind(tmp_path: Path) -> None:
    limited = profile("limits: {queue: {length: 1}}")
    assert ask(limited, tmp_path, get(), gone=True, **held(3)) in (["web1"], ["web2"])
    without = [("\toption abortonclose\n", "")]
    assert ask(limited, tmp_path, get(), gone=True, changes=without, **held(3)) == ["sorry"]


def test_a_full_queue_leads_to_the_sorry_pool_and_beyond(tmp_path: Path) -> None:
    limited = profile("limits: {queue: {length: 1}}", pool="sorry: {pool: spare}", more=SPARE)
    assert ask(limited, tmp_path, get(), **held(3)) == ["spare1"]
    more = SPARE.replace("check: tcp", "check: tcp, sorry: {page: sorry.html}")
    limited = profile("limits: {queue: {length: 1}}", pool="sorry: {pool: spare}", more=more)
    assert ask(limited, tmp_path, get(), absent=["spare1"], **held(3)) == ["sorry"]


def test_a_full_queue_of_tcp_closes_or_leads_to_the_sorry_pool(tmp_path: Path) -> None:
    held: dict[str, Any] = {"what": "overload", "held": ["hello"] * 3, "frontend": "service:web"}
    limited = profile("limits: {queue: {length: 1}}", pool="", protocol="tcp")
    assert ask(limited, tmp_path, get(), **held) == [""]
    limited = profile("limits: {queue: {length: 1}}", pool="sorry: {pool: spare}", more=SPARE, protocol="tcp")
    assert ask(limited, tmp_path, get(), **held) == ["spare1"]


# -- a failed server does not lead to the page -------------------------------------------------------------------------

LATE = [("inter 2s", "inter 60s")]
"""No check finds a dead server while the test runs."""


def test_a_server_that_has_just_died_shows_nobody_the_page(tmp_path: Path) -> None:
    limited = profile("hostnames: [shop.example]", servers=EQUAL)
    assert ask(limited, tmp_path, *[get()] * 12, absent=["web2"], changes=LATE) == ["web1"] * 12


def test_without_retries_a_server_that_has_just_died_shows_the_page_and_check_says_so(tmp_path: Path) -> None:
    limited = profile("hostnames: [shop.example]", pool=f"{SORRY}, retries: 0", servers=EQUAL)
    assert "sorry" in ask(limited, tmp_path, *[get()] * 12, absent=["web2"], changes=LATE)
    assert "sorry-without-retries" in told(limited)


def test_with_all_servers_dead_everybody_gets_the_page(tmp_path: Path) -> None:
    assert ask(profile("hostnames: [shop.example]", servers=EQUAL), tmp_path, get(), dead=True) == ["sorry"]


BACKUPS = (
    "{web1: 192.168.0.21, web2: {address: 192.168.0.22, backup: true}, web3: {address: 192.168.0.23, backup: true}}"
)


@pytest.mark.parametrize(
    ("absent", "expected"),
    [([], {"web1"}), (["web1"], {"web2", "web3"}), (["web1", "web2"], {"web3"}), (["web1", "web2", "web3"], {"sorry"})],
)
def test_backups_answer_only_while_no_other_server_is_left(
    absent: list[str], expected: set[str], tmp_path: Path
) -> None:
    limited = profile("hostnames: [shop.example]", servers=BACKUPS)
    quick = [("inter 2s rise 2 fall 3", "inter 100ms rise 2 fall 1")]
    assert set(ask(limited, tmp_path, *[get()] * 6, absent=absent, changes=quick, wait_s=1)) == expected


def test_no_table_keeps_clients_at_a_backup() -> None:
    for kept, words in (("persistence: {type: source}", ["backup", "non-stick"]), ("balance: roundrobin", ["backup"])):
        limited = profile("hostnames: [shop.example]", pool=f"{SORRY}, {kept}", servers=BACKUPS)
        text = render(limited, "lb1", goldens.TEMPLATES)["/etc/haproxy.cfg"].text
        (line,) = [line.split() for line in text.splitlines() if line.startswith("\tserver web3 ")]
        assert [word for word in line if word in ("backup", "non-stick")] == words


def test_without_its_option_only_one_of_the_backups_would_answer(tmp_path: Path) -> None:
    limited = profile("hostnames: [shop.example]", servers=BACKUPS)
    changes = [("inter 2s rise 2 fall 3", "inter 100ms rise 2 fall 1"), ("\toption allbackups\n", "")]
    assert set(ask(limited, tmp_path, *[get()] * 6, absent=["web1"], changes=changes, wait_s=1)) == {"web2"}


# -- requests of one client --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("excess", "status"), [("429", "429"), ("tarpit", "500"), ("sorry", "sorry")])
@pytest.mark.parametrize("more", ["", ", connections: {per_client: 5}"])
def test_a_client_that_asks_too_often_gets_what_is_stated(excess: str, status: str, more: str, tmp_path: Path) -> None:
    limited = profile(f"limits: {{requests: {{count: 20, per_s: 60, on_excess: {excess}}}{more}}}", servers=EQUAL)
    changes = [("timeout tarpit 30s", "timeout tarpit 1s")] if excess == "tarpit" else []
    answered = ask(limited, tmp_path, *[get()] * 22, changes=changes)
    assert set(answered[:20]) == {"web1", "web2"}
    assert answered[20:] == [status] * 2


def test_each_client_is_counted_by_itself(tmp_path: Path) -> None:
    limited = profile("limits: {requests: {count: 2, per_s: 60}}", servers=ONE)
    more = [f"{ADMIN}/32", f"{STRANGER}/32"]
    answered = attempt(limited, tmp_path, "shares", port=80, count=3, sources=[ADMIN, STRANGER], more=more)["keys"]
    for client in (ADMIN, STRANGER):
        *first, last = answered[f"{client} /"]
        assert first == ["web1", "web1"] and last.startswith("HTTP/1.1 429")


def test_ipv6_clients_are_their_64_where_the_release_can() -> None:
    for release, key in (("24.10.8", "src,ipmask(32,64)"), ("18.06.9", "src")):
        limited = goldens.profile("limits").model_copy(update={"release": Release.parse(release)})
        text = render(limited, "lb1", goldens.TEMPLATES)["/etc/haproxy.cfg"].text
        assert f"\thttp-request track-sc1 {key}\n" in text and "stick-table type ipv6 size" in text


# -- connections -------------------------------------------------------------------------------------------------------


def test_one_connection_too_many_waits_until_another_one_ends(tmp_path: Path) -> None:
    limited = profile("limits: {connections: {count: 3}}", servers=EQUAL)
    assert attempt(limited, tmp_path, "waits", port=80, count=3) == [["HTTP/1.1 200"] * 3, "", "HTTP/1.1 200"]
    higher = [("\tmaxconn 3\n", "\tmaxconn 4\n")]
    assert attempt(limited, tmp_path, "waits", port=80, count=3, changes=higher)[1] == "HTTP/1.1 200"


def test_new_connections_wait_for_their_second(tmp_path: Path) -> None:
    limited = profile("limits: {connections: {per_s: 5}}", servers=EQUAL)
    assert attempt(limited, tmp_path, "paced", port=80, count=16) >= 2
    none = [("\trate-limit sessions 5\n", "")]
    assert attempt(limited, tmp_path, "paced", port=80, count=16, changes=none) < 2


def test_a_slow_client_holds_no_more_connections_than_one_may_have(tmp_path: Path) -> None:
    limited = profile("limits: {connections: {count: 20, per_client: 5}}", servers=EQUAL)
    answer = attempt(limited, tmp_path, "slow", port=80, count=40, source=STRANGER, more=[f"{STRANGER}/32"])
    assert (answer["status"], answer["refused"]) == (200, 35)
    assert answer["seconds"] < 2


def test_slow_clients_without_that_limit_hold_others_up_until_their_time_is_over(tmp_path: Path) -> None:
    limited = profile("limits: {connections: {count: 20}}", servers=EQUAL)
    short = [("timeout http-request 10s", "timeout http-request 3s")]
    more = [f"{STRANGER}/32"]
    answer = attempt(limited, tmp_path, "slow", port=80, count=20, source=STRANGER, more=more, changes=short)
    assert (answer["status"], answer["refused"]) == (200, 0)
    assert 1 < answer["seconds"] < 8


# -- bodies ------------------------------------------------------------------------------------------------------------


def post(size: int) -> str:
    return get("/", f"Content-Length: {size}", "Connection: close", body="x" * size, method="POST")


def chunked(size: int) -> str:
    return get("/", "Transfer-Encoding: chunked", body=f"{size:x}\r\n{'x' * size}\r\n0\r\n\r\n", method="POST")


def test_a_body_above_the_limit_reaches_no_server(tmp_path: Path) -> None:
    limited = profile("limits: {body_kib: 4}", servers=ONE)
    requests = (get(), get(method="HEAD"), post(0), post(4096), post(4097), chunked(10), chunked(5000))
    assert ask(limited, tmp_path, *requests) == ["web1", "web1", "web1", "web1", "413", "411", "411"]
    without = [("\thttp-request deny deny_status 413 if { req.body_size gt 4096 }\n", "")]
    assert ask(limited, tmp_path, post(4097), changes=without) == ["web1"]


def test_a_websocket_is_not_held_up_by_the_limit_for_bodies(tmp_path: Path) -> None:
    limited = profile("limits: {body_kib: 4}", servers=ONE)
    assert attempt(limited, tmp_path, "websocket", port=80)[1] == "hello"


def test_a_request_head_is_limited_without_being_asked(tmp_path: Path) -> None:
    limited = profile("hostnames: [shop.example]", servers=ONE)
    requests = (
        get("/", f"X-Large: {'x' * 14_000}"), get("/", f"X-Large: {'x' * 16_000}"),
        get("/", *(f"X-{n}: 1" for n in range(98))), get("/", *(f"X-{n}: 1" for n in range(110))),
    )  # fmt: skip
    assert ask(limited, tmp_path, *requests) == ["web1", "400", "web1", "400"]


# -- pages for errors --------------------------------------------------------------------------------------------------


def with_pages(limited: Profile, pages: dict[int, bytes]) -> Profile:
    its = {str(status): Attachment(path=f"{status}.html", content=content) for status, content in pages.items()}
    service = limited.services["web"].model_copy(update={"error_pages": its})
    return limited.model_copy(update={"services": {"web": service}})


def answers(limited: Profile, folder: Path, *requests: str, **options: Any) -> list[str]:
    return [str(a) for a in attempt(limited, folder, "requests", requests=list(requests), port=80, **options)]


@pytest.mark.parametrize(
    ("status", "service", "requests", "options"),
    [
        (413, "limits: {body_kib: 1}", [post(2000)], {}),
        (421, "hostnames: [other.example], unknown_hosts: refuse", [get()], {}),
        (429, "limits: {requests: {count: 1, per_s: 60}}", [get()] * 2, {}),
        (500, "limits: {requests: {count: 1, per_s: 60, on_excess: tarpit}}", [get()] * 2,
         {"changes": [("timeout tarpit 30s", "timeout tarpit 1s")]}),
        (503, "hostnames: [shop.example]", [get()], {"dead": True}),
        (504, "timeouts: {server_s: 0.5}", [get("/slow")], {}),
    ],
)  # fmt: skip
def test_an_error_of_haproxy_comes_with_our_page(
    status: int, service: str, requests: list[str], options: dict[str, Any], tmp_path: Path
) -> None:
    limited = with_pages(profile(service, pool="", servers=EQUAL), {status: b"<p>ours</p>"})
    assert not {c for c in told(limited) if c.startswith("error-page")}
    answer = answers(limited, tmp_path, *requests, **options)[-1]
    assert answer.startswith(f"HTTP/1.1 {status} ") and answer.endswith("\r\n\r\n<p>ours</p>")
    plain = answers(with_pages(limited, {}), tmp_path, *requests, **options)[-1]
    assert plain.startswith(f"HTTP/1.1 {status} ") and "ours" not in plain


def test_the_sorry_page_goes_before_a_page_for_503(tmp_path: Path) -> None:
    limited = with_pages(profile("hostnames: [shop.example]"), {503: b"<p>ours</p>"})
    assert [seen(a) for a in answers(limited, tmp_path, get(), dead=True)] == ["sorry"]
    assert "the pool's sorry page takes its place" in told(limited)["error-page-unused"]


EVIL = b'HTTP/1.1 200 OK\r\n\r\n%[src] "quoted" ${HOME} \\ # \xff\xfe\n\ttune.bufsize 1\n'


def test_whatever_is_in_a_page_is_only_text(tmp_path: Path) -> None:
    limited = with_pages(profile("hostnames: [other.example], unknown_hosts: refuse", pool=""), {421: EVIL})
    (answer,) = answers(limited, tmp_path, get())
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 421 ") and body == EVIL.decode("latin-1")


@given(st.sampled_from(sorted(ERROR_STATUSES)), st.binary(max_size=300))
def test_a_page_is_refused_or_is_the_whole_body(status: int, content: bytes) -> None:
    if sorry_pages.fault(content) is None:
        head, _, body = sorry_pages.response(content, status).partition(b"\r\n\r\n")
        assert body == content and f"Content-Length: {len(content)}".encode() in head.split(b"\r\n")
    else:
        assert not content.strip() or b"\0" in content


def test_the_real_parser_takes_the_largest_page_and_check_refuses_a_larger_one(tmp_path: Path) -> None:
    large = b"x" * sorry_pages.PAGE_BYTES_MAX
    pages = dict.fromkeys((403, 413, 421, 429, 500, 502, 503, 504), large)
    service = "hostnames: [other.example], unknown_hosts: refuse"
    limited = with_pages(profile(service, pool=""), pages)
    (answer,) = answers(limited, tmp_path, get())
    assert answer.startswith("HTTP/1.1 421 ")
    ran = process.run([*program("haproxy"), "-c", "-dW", "-f", tmp_path / "haproxy.cfg"], timeout_s=20, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "error-page-too-big" in told(with_pages(limited, {421: large + b"x"}))


# -- what check refuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "options", "code", "mended"),
    [
        ("maintenance: true", {"pool": ""}, "sorry-missing", {"pool": SORRY}),
        ("limits: {requests: {count: 9, on_excess: sorry}}", {"pool": ""}, "sorry-missing", {"pool": SORRY}),
        ("limits: {queue: {length: 9}}", {"servers": EQUAL}, "queue-of-nobody", {"servers": TWO}),
        ("limits: {requests: {count: 9}}", {"protocol": "tcp", "pool": ""}, "limit-needs-http", {"protocol": "http"}),
        ("limits: {body_kib: 9}", {"protocol": "tcp", "pool": ""}, "limit-needs-http", {"protocol": "http"}),
        ("limits: {body_kib: 9}", {"release": "21.02.7"}, "body-limit-of-release", {"release": "22.03.7"}),
        ("error_pages: {'429': sorry.html}", {"pool": ""}, "error-page-unused", None),
        ("error_pages: {'403': sorry.html}", {"pool": ""}, "error-page-unused", {"release": "21.02.7"}),
        ("error_pages: {'503': sorry.html}", {"pool": "", "protocol": "tcp"}, "limit-needs-http", {"protocol": "http"}),
    ],
)  # fmt: skip
def test_what_does_nothing_is_told_and_the_fix_mends_it(
    service: str, options: dict[str, str], code: str, mended: dict[str, str] | None
) -> None:
    assert code in told(profile(service, **options))
    if mended is not None:
        assert code not in told(profile(service, **{**options, **mended}))


def test_with_the_clients_addresses_each_family_has_its_own_backend_and_the_same_page() -> None:
    """A server of IPv6 is spoken to from IPv6 addresses: the rules of a family stand before the way to its backend."""
    iis = goldens.profile("iis-tproxy")
    services = {name: s.model_copy(update={"maintenance": True}) for name, s in iis.services.items()}
    limited = iis.model_copy(update={"services": services})
    text = render(limited, "lb1", goldens.TEMPLATES)["/etc/haproxy.cfg"].text
    ways = [line.split()[1:] for line in text.splitlines() if line.startswith(("\tuse_backend", "\tdefault_backend"))]
    v6 = ["{", "dst", *map(str, (e.address for e in limited.endpoints("iis") if e.address.version == 6)), "}"]
    assert ways == [
        ["_sorry:iis", "if", "!access-sources", *v6],
        ["iis.iis.ipv6", "if", *v6],
        ["_sorry:iis", "if", "!access-sources"],
        ["iis"],
    ]
