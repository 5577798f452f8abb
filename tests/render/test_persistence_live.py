"""How clients keep their servers, with a real HAProxy and what is rendered: every type of persistence, what becomes of
clients whose server dies, drained servers, and the next node that goes on after a failover."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import goldens
from haproxy_live import attempt, configuration, program
from ndakit.lab.host import certificate
from ndakit.model import Profile, rules
from ndakit.model.persistence import CookiePersistence, HeaderPersistence, ParameterPersistence, Persistence
from ndakit.render.render import render

ACCESS = (
    "access: {ssh_keys: {me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}, "
    "sources: {office: 192.168.0.0/24}}"
)
QUICK = "check: {type: tcp, interval_s: 0.2, timeout_s: 0.5, fall: 2, rise: 1}"
SELDOM = "check: {type: tcp, interval_s: 600}"
VIP, OTHER_VIP = "192.168.0.10", "192.168.0.110"


def profile(
    kept: str, protocol: str = "http", release: str = "24.10.8", pool: str = "", service: str = "", check: str = QUICK
) -> Profile:
    stated = f"persistence: {kept}, " if kept else ""
    return goldens.parse(
        f"name: live\nrelease: {release}\n{ACCESS}\nnetworks: {{lan: {{nics: [eth0], subnet: 192.168.0.0/24}}}}\n"
        "nodes:\n  lb1: {addresses: {lan: 192.168.0.11}}\n  lb2: {addresses: {lan: 192.168.0.12}}\n"
        f"vrrp: {{connection_sync: true}}\nvips: {{www: {{network: lan, address: {VIP}}}}}\n"
        "sizing: {sessions_per_second: 1, session_duration_s: 1, memory_mib: 128}\n"
        f"pools:\n  web: {{{check}, {pool}{stated}servers: {{web1: 192.168.0.21, web2: 192.168.0.22, "
        "web3: 192.168.0.23}}\n"
        f"services:\n  web: {{vip: www, port: 80, protocol: {protocol}, pool: web{service}}}\n"
    )


Step = tuple[Any, ...]


def ask(*headers: str, path: str = "/", **options: Any) -> Step:
    text = "\r\n".join((f"GET {path} HTTP/1.1", "Host: a", "Connection: close", *headers, "", ""))
    return ("ask", text, options)


def who(answer: str) -> str:
    """The server that answered, or the status."""
    server = re.search(r"^x-server: (\S+)", answer, re.M | re.I)
    return server[1] if server else answer.split(" ")[1] if answer.startswith("HTTP") else answer or "closed"


def walk(made: Profile, folder: Path, *steps: Step, **options: Any) -> list[str]:
    return [who(one) for one in attempt(made, folder, "steps", steps=steps, port=80, **options)]


def cookies(folder: Path, made: Profile, *more: Step, **options: Any) -> list[str]:
    answers: list[str] = attempt(made, folder, "steps", steps=[ask(), *more], port=80, **options)
    return answers


# -- who keeps whom ----------------------------------------------------------------------------------------------------

RDP = "\x03\x00\x00\x2b\x26\xe0\x00\x00\x00\x00\x00Cookie: mstshash=%s\r\n\x01\x00\x08\x00\x03\x00\x00\x00"
"""A connection request of a Windows client (MS-RDPBCGR, 2.2.1.1)."""


def rdp(name: str) -> Step:
    return ("ask", RDP % name, {"whole": False})


CLIENTS: dict[str, tuple[str, str, Callable[[int], Step]]] = {
    "source": (
        "{type: source%s}",
        "tcp",
        lambda n: ("ask", "hello", {"whole": False, "source": f"192.168.0.{100 + n}"}),
    ),
    "header": ("{type: header, name: X-User%s}", "http", lambda n: ask(f"X-User: {'long' * 40}{n}")),
    "parameter": ("{type: parameter, name: sid%s}", "http", lambda n: ask(path=f"/cart?a=b&sid={n}")),
    "existing": ("{type: cookie, name: ID, mode: existing%s}", "http", lambda n: ask(f"Cookie: x=y; ID={n}; z=1")),
    "rdp-cookie": ("{type: rdp-cookie%s}", "tcp", lambda n: rdp(f"user{n}")),
}
"""Type → how the profile writes it, the protocol, and the n-th client's request."""
SOURCES = [f"192.168.0.{n}/32" for n in range(100, 110)]


@pytest.mark.parametrize("name", CLIENTS)
def test_clients_keep_their_servers_and_get_another_one_when_it_dies(tmp_path: Path, name: str) -> None:
    text, protocol, client = CLIENTS[name]
    first, second = client(0), client(1)
    made = profile(text % "", protocol)
    answers = walk(
        made, tmp_path, first, second, first, first, second, ("die", "web1"), first, second, first, ("live", "web1"),
        first, second, more=SOURCES,
    )  # fmt: skip
    one, two, *again = answers
    assert (one, two) == ("web1", "web2"), "two clients, in turn"
    assert again[:3] == ["web1", "web1", "web2"]
    moved, stayed, kept_new, after, last = again[3:]
    assert moved in ("web2", "web3"), "its server is gone"
    assert [stayed, last] == ["web2", "web2"]
    assert [kept_new, after] == [moved, moved], "it keeps the new one, also when the old one is back"


@pytest.mark.parametrize("name", CLIENTS)
def test_without_its_rule_nobody_is_kept(tmp_path: Path, name: str) -> None:
    text, protocol, client = CLIENTS[name]
    made = profile(text % "", protocol)
    (rule,) = re.findall(r"^\tstick on .*$", render(made, "lb1", goldens.TEMPLATES)["/etc/haproxy.cfg"].text, re.M)
    first = client(0)
    assert set(walk(made, tmp_path, first, first, first, changes=[(rule, "")], more=SOURCES)) == {
        "web1",
        "web2",
        "web3",
    }


@pytest.mark.parametrize("name", CLIENTS)
def test_clients_of_a_dead_server_are_turned_away_where_the_profile_says_so(tmp_path: Path, name: str) -> None:
    text, protocol, client = CLIENTS[name]
    first, second, third = client(0), client(1), client(2)
    made = profile(text % ", on_failure: refuse", protocol)
    answers = walk(
        made, tmp_path, first, second, ("die", "web1"), first, second, third, first, ("live", "web1"), first,
        more=SOURCES,
    )  # fmt: skip
    turned = "503" if protocol == "http" else "closed"
    assert answers == ["web1", "web2", turned, "web2", answers[4], turned, "web1"]
    assert answers[4] in ("web2", "web3"), "new clients get a server that is there"


@pytest.mark.parametrize("name", CLIENTS)
def test_without_the_rules_they_would_get_another_server(tmp_path: Path, name: str) -> None:
    text, protocol, client = CLIENTS[name]
    made = profile(text % ", on_failure: refuse", protocol)
    first = client(0)
    config = render(made, "lb1", goldens.TEMPLATES)["/etc/haproxy.cfg"].text
    changes = [(line, "") for line in re.findall(r"^.*srv_is_up.*$", config, re.M)]
    assert walk(made, tmp_path, first, ("die", "web1"), first, changes=changes, more=SOURCES)[1] in ("web2", "web3")


@pytest.mark.parametrize("name", ["source", "header"])
def test_a_server_that_died_unnoticed_is_not_replaced_where_the_profile_says_so(tmp_path: Path, name: str) -> None:
    """Between its death and the checks' verdict: the connection fails, and must not go elsewhere."""
    text, protocol, client = CLIENTS[name]
    steps = (client(0), ("break", "web1"), client(0))
    refused = profile(text % ", on_failure: refuse", protocol, pool="retries: 1, ", check=SELDOM)
    assert walk(refused, tmp_path, *steps, more=SOURCES)[1] in ("503", "closed")
    elsewhere = walk(refused, tmp_path, *steps, more=SOURCES, changes=[("\tno option redispatch\n", "")])
    assert elsewhere[1] in ("web2", "web3")


def test_a_value_that_the_server_gives_is_known_from_then_on(tmp_path: Path) -> None:
    """A session that begins with the server's answer: an application's cookie, a header such as Mcp-Session-Id."""
    for kept, says, back in (
        ("{type: cookie, name: ID, mode: existing}", "Set-Cookie/ID=77", "Cookie: ID=77"),
        ("{type: header, name: Mcp-Session-Id}", "Mcp-Session-Id/77", "Mcp-Session-Id: 77"),
    ):
        steps = (ask(), ask(path=f"/says/{says}"), *[ask(back)] * 3)
        assert walk(profile(kept), tmp_path, *steps)[1:] == ["web2"] * 4


def test_long_values_that_begin_alike_are_two_and_none_is_kept_in_clear(tmp_path: Path) -> None:
    values = [f"X-User: {'x' * 200}{n}" for n in range(2)]
    steps = (*map(ask, values), *map(ask, values), ("tell", "show table web"))
    *answers, table = attempt(profile("{type: header, name: X-User}"), tmp_path, "steps", steps=steps, port=80)
    assert [who(a) for a in answers] == ["web1", "web2", "web1", "web2"]
    assert "used:2" in table and "xxx" not in table and "7878" not in table


# -- HAProxy's own cookie ----------------------------------------------------------------------------------------------


def test_a_cookie_is_set_once_read_and_not_shown_to_servers(tmp_path: Path) -> None:
    made = profile("{type: cookie, name: SRV, same_site: strict}")
    with_one = ask("Cookie: a=b; SRV=web3; c=d")
    cached = ask(path="/says/Cache-Control/max-age=60")
    answers = cookies(tmp_path, made, cached, with_one, with_one, ask("Cookie: SRV=web9"))
    assert [who(a) for a in answers] == ["web1", "web2", "web3", "web3", "web3"], "an unknown one is as none"
    assert "\r\nset-cookie: SRV=web1; path=/; HttpOnly; SameSite=Strict\r\n" in answers[0]
    assert "\r\ncache-control: private\r\n" in answers[1].lower(), "no cache hands one client's cookie to another"
    assert "set-cookie" not in answers[2].lower()
    head = answers[2].partition("\r\n\r\n")[2].lower()
    assert "srv" not in head and "cookie: a=b; c=d" in head


def test_a_cookie_of_a_dead_server_leads_to_another_one_which_is_kept(tmp_path: Path) -> None:
    made = profile("{type: cookie, name: SRV}")
    answers = cookies(tmp_path, made, ("die", "web2"), ask("Cookie: SRV=web2"))
    new = who(answers[1])
    assert new in ("web1", "web3") and f"set-cookie: SRV={new};" in answers[1]


@pytest.mark.parametrize(
    ("kept", "cookie"),
    [("{type: cookie, name: SRV, on_failure: refuse}", "SRV=web2"),
     ("{type: cookie, name: ID, mode: prefix, on_failure: refuse}", "ID=web2~77")],
    ids=["insert", "prefix"],
)  # fmt: skip
def test_a_cookie_of_a_dead_server_is_refused_where_the_profile_says_so(tmp_path: Path, kept: str, cookie: str) -> None:
    mine, other = ask(f"Cookie: a=b; {cookie}"), ask(f"Cookie: {cookie.replace('web2', 'web3')}")
    steps = (mine, ("die", "web2"), mine, other, ask(), ("live", "web2"), mine)
    answers = walk(profile(kept), tmp_path, *steps)
    assert answers == ["web2", "503", "web3", answers[3], "web2"]
    assert answers[3] in ("web1", "web3")


def test_who_is_refused_sees_the_sorry_page(tmp_path: Path) -> None:
    made = profile("{type: cookie, name: SRV, on_failure: refuse}", pool="sorry: {page: sorry.html}, ")
    steps = (("die", "web2"), ask("Cookie: SRV=web2"))
    (answer,) = attempt(made, tmp_path, "steps", steps=steps, port=80)
    assert answer.startswith(("HTTP/1.1 503", "HTTP/1.0 503"))
    page = made.pools["web"].sorry
    assert page is not None and page.page is not None
    assert page.page.content.decode().strip() in answer


def test_a_cookie_that_is_prefixed_looks_to_the_server_as_it_set_it(tmp_path: Path) -> None:
    made = profile("{type: cookie, name: ID, mode: prefix}")
    steps = (ask(path="/says/Set-Cookie/ID=77"), ask("Cookie: ID=web2~77"), ask("Cookie: ID=web2~77"))
    first, *rest = attempt(made, tmp_path, "steps", steps=steps, port=80)
    assert "\r\nset-cookie: ID=web1~77\r\n" in first.lower().replace("id=", "ID=")
    assert [who(a) for a in rest] == ["web2", "web2"]
    assert "cookie: id=77\r\n" in rest[0].lower()


@pytest.mark.parametrize("key", ["max_idle_s", "max_life_s"])
def test_a_cookie_that_is_too_old_counts_no_more(tmp_path: Path, key: str) -> None:
    made = profile(f"{{type: cookie, name: SRV, {key}: 3}}")
    # The dates in it count four seconds each, so that one of a minute ago is surely too old (HAProxy's dates are
    # seconds since 1970 divided by four, in base64: proto_http.c). One without a date is always taken.
    answers = cookies(tmp_path, made, ask("Cookie: SRV=web2"), ask("Cookie: SRV=web2|AAAAA|AAAAA"))
    assert re.search(r"set-cookie: SRV=web1\|[^;|]+(\|[^;|]*)?; path=/", answers[0])
    assert who(answers[1]) == "web2"
    value = re.findall(r"set-cookie: SRV=(\S+);", answers[1])
    assert value and value[0].startswith("web2|"), "it is refreshed with a date"
    assert "set-cookie: SRV=" in answers[2], "a stale one is replaced"


def test_a_drained_server_keeps_its_clients_and_gets_no_new_ones(tmp_path: Path) -> None:
    cookie = ask("Cookie: SRV=web1")
    steps = (("tell", "set server web/web1 state drain"), cookie, ask(), ask(), ask(), cookie)
    assert walk(profile("{type: cookie, name: SRV, on_failure: refuse}"), tmp_path, *steps)[1:] == [
        "web1", "web2", "web3", "web2", "web1",
    ]  # fmt: skip
    user, other = ask("X-User: me"), ask("X-User: you")
    by_header = (user, ("tell", "set server web/web1 state drain"), user, other, user)
    seen = walk(profile("{type: header, name: X-User, on_failure: refuse}"), tmp_path, *by_header)
    assert (seen[0], seen[2], seen[4]) == ("web1", "web1", "web1")
    assert seen[3] != "web1"


def test_servers_of_a_second_backend_that_only_follows_are_known_to_be_down(tmp_path: Path) -> None:
    """Other time-outs make another backend of the pool, whose servers are not checked there."""
    more = ", timeouts: {server_s: 7}}\n  first: {vip: www, port: 81, protocol: http, pool: web"
    made = profile("{type: cookie, name: SRV, on_failure: refuse}", service=more, pool="port: 80, ")
    both = made.model_copy(update={"services": dict(reversed(made.services.items()))})
    config = render(both, "lb1", goldens.TEMPLATES)["/etc/haproxy.cfg"].text
    assert "\nbackend web.web\n" in config and "srv_is_up(web.web/" not in config
    mine = ask("Cookie: SRV=web2")
    assert walk(both, tmp_path, mine, ("die", "web2"), mine, ask("Cookie: SRV=web3")) == ["web2", "503", "web3"]


# -- TLS sessions ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_text(certificate())
    return str(path)


@pytest.mark.parametrize("on_failure", ["reassign", "refuse"])
def test_a_tls_session_goes_on_at_the_server_that_has_it(tmp_path: Path, pem: str, on_failure: str) -> None:
    made = profile(f"{{type: tls-session, on_failure: {on_failure}}}", "tcp")
    one, two = ("session", "one"), ("session", "two")
    steps = (one, two, one, one, two, ("die", "web1"), one, ("live", "web1"), two)
    answers = attempt(made, tmp_path, "steps", steps=steps, port=80, certificates={"web": pem})
    assert answers[:5] == [["web1", False], ["web2", False], ["web1", True], ["web1", True], ["web2", True]]
    if on_failure == "refuse":
        assert answers[5][1] is None
    else:
        assert answers[5][0] in ("web2", "web3") and answers[5][1] is False
    assert answers[6] == ["web2", True]


@pytest.mark.parametrize("what", [r"stick match", r"stick store-response", r"tcp-response inspect-delay"])
def test_without_one_of_its_rules_no_session_goes_on(tmp_path: Path, pem: str, what: str) -> None:
    one = ("session", "one")
    made = profile("{type: tls-session}", "tcp")
    config = render(made, "lb1", goldens.TEMPLATES)["/etc/haproxy.cfg"].text
    (rule,) = re.findall(rf"^\t{what} .*$", config, re.M)
    answers = attempt(
        made, tmp_path, "steps", steps=[one] * 3, port=80, certificates={"web": pem}, changes=[(rule, "")]
    )
    assert answers == [["web1", False], ["web2", False], ["web3", False]]


# -- RDP's session broker ----------------------------------------------------------------------------------------------


def test_a_brokers_routing_token_names_the_server(tmp_path: Path) -> None:
    token = int.from_bytes(bytes((192, 168, 0, 23)), "little"), int.from_bytes((80).to_bytes(2, "big"), "little")
    text = RDP.replace("mstshash=%s", f"msts={token[0]}.{token[1]}.0000")
    seen = walk(profile("{type: rdp-cookie}", "tcp"), tmp_path, *[("ask", text, {"whole": False})] * 3)
    assert seen == ["web3"] * 3


# -- the next node -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLIENTS)
def test_the_next_node_knows_who_keeps_whom(tmp_path: Path, name: str) -> None:
    text, protocol, client = CLIENTS[name]
    clients = [client(n) for n in range(3)]
    there: list[Step] = [("ask", c[1], {**c[2], "address": OTHER_VIP}) for c in clients]
    # Asked in another order, so that taking turns would give each of them another server.
    steps = (("second",), *clients, ("known", "web", 3), there[2], there[0], there[1])
    made = profile(text % "", protocol)
    options = {"second": {VIP: OTHER_VIP}, "more": SOURCES}
    assert walk(made, tmp_path, *steps, **options) == ["web1", "web2", "web3", "web3", "web1", "web2"]


def test_nodes_that_tell_nothing_know_nobody(tmp_path: Path) -> None:
    user = ask("X-User: me")
    there = ("ask", user[1], {"address": OTHER_VIP})
    made = profile("{type: header, name: X-User}")
    # The other one's first client gets its first server, so that the one who is asked about comes second there.
    stranger = ("ask", ask()[1], {"address": OTHER_VIP})
    steps = (("second",), user, ("pause", 2), stranger, there)
    assert walk(made, tmp_path, *steps, second={VIP: OTHER_VIP})[2] == "web1"
    assert walk(made, tmp_path, *steps, second={VIP: OTHER_VIP}, changes=[(" peers _nodes", "")])[2] == "web2"
    # Images of different ages may call the section differently: tables go by the backend's name, nodes by their own.
    older = [("peers _nodes", "peers nodes")]
    assert walk(made, tmp_path, *steps, second={VIP: OTHER_VIP}, changes=older)[2] == "web1"


# -- names -------------------------------------------------------------------------------------------------------------

NAMED: dict[str, type[Persistence]] = {
    "cookie": CookiePersistence,
    "header": HeaderPersistence,
    "parameter": ParameterPersistence,
}


@pytest.mark.parametrize("kind", ["cookie", "header", "parameter"])
@given(name=st.text(max_size=70))
@settings(max_examples=300, deadline=None)
def test_a_name_that_is_more_than_one_word_is_refused(kind: str, name: str) -> None:
    if re.fullmatch(r"[A-Za-z0-9_.~-]{1,64}", name):
        return
    with pytest.raises(ValidationError):
        NAMED[kind].model_validate({"type": kind, "name": name})


ALPHABETS = {"cookie": "_.-", "prefix": "_.-", "existing": "_.-", "header": "_-", "parameter": "_.~-"}
EXTREMES = ["a", "-", "-dW", "0", "A" * 64, "if", "unless", "insert", "rewrite", "nocache", "domain", "table"]
TYPES = {
    "cookie": "{{type: cookie, on_failure: refuse, name: '{}'}}",
    "prefix": "{{type: cookie, mode: prefix, on_failure: refuse, name: '{}'}}",
    "existing": "{{type: cookie, mode: existing, on_failure: refuse, name: '{}'}}",
    "header": "{{type: header, on_failure: refuse, name: '{}'}}",
    "parameter": "{{type: parameter, on_failure: refuse, name: '{}'}}",
}


@pytest.mark.parametrize("kind", TYPES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_name_that_is_taken_is_one_word_for_the_real_parser(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    letters = st.sampled_from("aZ09" + ALPHABETS[kind])
    name = data.draw(st.sampled_from(EXTREMES) | st.text(letters, min_size=1, max_size=64))
    made = profile(TYPES[kind].format(name))
    config = tmp_path / "haproxy.cfg"
    text = configuration(render(made, "lb1", goldens.TEMPLATES), tmp_path)
    config.write_text(text)
    argv = [*program("haproxy"), "-c", "-dW", "-L", "live-lb1", "-f", str(config)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (name, done.stderr)
    assert text.count("\n\tstick ") + text.count("\n\tcookie ") in (1, 2), "no name makes a line of its own"


@pytest.mark.parametrize("release", ["18.06.9", "19.07.10", "21.02.7", "22.03.7", "23.05.6", "24.10.8", "25.12.5"])
def test_every_release_is_told_what_its_haproxy_knows(release: str) -> None:
    made = profile("{type: cookie, name: SRV, same_site: lax}", release=release)
    told = {f.code for f in rules.findings(made) if f.severity == "error"} - {"ssh-key-of-release", "no-efi"}
    assert told == ({"same-site-of-release"} if release < "21" else set())
