"""What a lab server offers follows from its pool's check: every type finds what it looks for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import goldens
from ndakit.cli import tasks
from ndakit.cli.verify import verify_profile
from ndakit.core.workspace import Workspace
from ndakit.lab import server_ports
from ndakit.lab.running_server import RunningServer
from ndakit.lab.server_ports import PageMissing, PageUnusable, ServerPort
from ndakit.model import Profile
from ndakit.model.checks import Page

HEAD = """\
name: made
release: 24.10.8
access:
  ssh_keys: {me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}
  sources: {ops: 192.168.0.0/24}
networks: {lan: {nics: [eth0], subnet: 192.168.0.0/24}}
nodes: {a: {addresses: {lan: 192.168.0.1}}}
vips: {www: {network: lan, address: 192.168.0.10}}
"""
PAGE = b"<p>all well</p>\n"
DIGEST = hashlib.md5(PAGE, usedforsecurity=False).hexdigest()


def pool(check: str, protocol: str = "tcp", topology: str = "dr", port: str = "80") -> Profile:
    return goldens.parse(
        f"{HEAD}pools: {{p: {{check: {check}, servers: {{s1: 192.168.0.21, s2: 192.168.0.22}}}}}}\n"
        f"services: {{s: {{vip: www, port: {port}, topology: {topology}, protocol: {protocol}, pool: p}}}}\n",
        goldens.DATA / "profiles",
    )


def offered(profile: Profile, name: str = "p") -> dict[tuple[int, str], ServerPort]:
    return {(p.number, p.kind): p for p in server_ports.ports_of(profile, name, "s1")}


@pytest.mark.parametrize(
    ("check", "protocol", "ports"),
    [
        ("tcp", "tcp", {(80, "http")}),
        ("http", "tcp", {(80, "http")}),
        ("{type: https, port: 443}", "tcp", {(80, "http"), (443, "http")}),
        ("smtp", "tcp", {(80, "smtp")}),
        ("{type: smtp, port: 25}", "tcp", {(80, "http"), (25, "smtp")}),
        ("redis", "tcp", {(80, "tcp")}),
        ("dns", "tcp", {(80, "http"), (80, "udp")}),
        ("{type: udp, port: 53}", "tcp", {(80, "http"), (53, "udp")}),
        ("ping", "tcp", {(80, "http")}),
        ("ping", "udp", {(80, "udp")}),
        ("dns", "udp", {(80, "udp")}),
        ("tcp", "udp", {(80, "udp"), (80, "tcp")}),
        ("{type: http, port: 8080}", "udp", {(80, "udp"), (8080, "http")}),
        ("{type: script, script: check.sh}", "tcp", {(80, "http")}),
        ("{type: script, script: check.sh}", "udp", {(80, "udp")}),
        ("{type: script, script: check.sh, port: 9}", "tcp", {(80, "http"), (9, "http"), (9, "udp")}),
    ],
)
def test_a_service_of_the_kernel_finds_its_port_and_what_the_check_asks(
    check: str, protocol: str, ports: set[tuple[int, str]]
) -> None:
    assert set(offered(pool(check, protocol))) == ports


@pytest.mark.parametrize(
    ("check", "protocol", "kind"),
    [
        ("tcp", "tcp", "tcp"),
        ("http", "tcp", "http"),
        ("https", "tcp", "http"),
        ("smtp", "tcp", "smtp"),
        ("tcp", "http", "http"),
        ("{type: tcp, expect: {reply: ready}}", "tcp", "tcp"),
        ("{type: tcp, send: 'GET /\\r\\n', expect: {reply: OK}}", "http", "http"),
    ],
)
def test_a_service_of_the_proxy_finds_what_it_speaks(check: str, protocol: str, kind: str) -> None:
    assert set(offered(pool(check, protocol, "proxy"))) == {(80, kind)}


def test_only_https_checks_are_given_tls() -> None:
    assert offered(pool("https", topology="proxy"))[80, "http"].tls
    assert not offered(pool("http", topology="proxy"))[80, "http"].tls


def test_what_a_check_sends_and_expects_is_what_the_server_answers() -> None:
    talk = offered(pool(r"{type: tcp, send: 'a\r\n', expect: {reply: '\x41b'}}", topology="proxy"))[80, "tcp"].exchanges
    assert talk == ((b"a\r\n", b"Ab"),)
    assert offered(pool("{type: udp, expect: {reply: ok}}", "udp"))[80, "udp"].exchanges == ((b"", b"ok"),)
    assert offered(pool("{type: udp, send: who}", "udp"))[80, "udp"].exchanges == ()


def test_what_a_web_check_expects_is_what_the_server_answers() -> None:
    pages = offered(pool("{type: http, path: /h, expect: {status: 404}}"))[80, "http"].pages
    assert pages == (Page("/h", 404),)
    pages = offered(pool(f"{{type: http, expect: {{digest: {DIGEST}}}}}"))[80, "http"].pages
    assert pages == (Page("/", 200, DIGEST),)
    assert offered(pool("{type: http, path: /h}"))[80, "http"].pages == ()


def test_the_lab_asks_for_a_path_on_which_no_check_wants_something_else() -> None:
    assert server_ports.path_asked(pool("{type: http, path: /h, expect: {status: 404}}")) == "/"
    assert server_ports.path_asked(pool("{type: http, expect: {status: 200}}")) == "/"
    assert server_ports.path_asked(pool("{type: http, expect: {status: 404}}")) == "/lab"
    assert server_ports.path_asked(pool(f"{{type: http, expect: {{digest: {DIGEST}}}}}")) == "/lab"


def test_two_pools_on_one_port_get_what_both_need() -> None:
    mail, web = ServerPort(80, "smtp", 2), ServerPort(80, "http", 1, pages=(Page("/", 404),))
    assert server_ports.joined([web, mail]) == server_ports.joined([mail, web])
    assert [(p.kind, p.pages) for p in server_ports.joined([web, mail])] == [("smtp", web.pages)]
    assert len(server_ports.joined([web, ServerPort(80, "udp")])) == 2


def test_a_page_known_by_its_digest_must_be_given() -> None:
    profile = pool(f"{{type: http, expect: {{digest: {DIGEST}}}}}")
    with pytest.raises(PageMissing, match="pool p's check") as missing:
        server_ports.need_pages(profile, server_ports.pages_given(profile, {}))
    assert (missing.value.exit_code, "--page FILE" in missing.value.fix) == (2, True)
    pages = server_ports.pages_given(profile, {Path("page.html"): PAGE})
    server_ports.need_pages(profile, pages)
    assert pages == {DIGEST: PAGE}


def test_a_page_that_no_check_knows_is_refused() -> None:
    with pytest.raises(PageUnusable, match="is in no check") as unusable:
        server_ports.pages_given(pool("http"), {Path("page.html"): PAGE})
    assert (unusable.value.exit_code, unusable.value.where) == (2, "--page page.html")


def test_verify_refuses_at_once_what_it_could_not_answer(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    text = HEAD + (
        f"pools: {{p: {{check: {{type: http, expect: {{digest: {DIGEST}}}}}, servers: {{s1: 192.168.0.21}}}}}}\n"
        "services: {s: {vip: www, port: 80, topology: dr, protocol: tcp, pool: p}}\n"
    )
    (tmp_path / "profiles/made.yaml").write_text(text)
    with pytest.raises(PageMissing):
        verify_profile(Workspace(tmp_path), "made", only=None, json=None, identity=None)
    with pytest.raises(PageUnusable, match="No such file"):
        verify_profile(Workspace(tmp_path), "made", only=None, json=None, identity=None, pages=[tmp_path / "x"])


def test_the_option_takes_several_pages() -> None:
    (page,) = (a for a in tasks.verify.get_arguments() if a.name == "page")
    page.value = "one"
    page.value = "two"
    assert page.value == ["one", "two"]


class Recorder:
    """A host that notes what is asked of it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def web(self, port: int, **more: object) -> str:
        self.told.append(("web", (port, more["certificate"], more["pages"])))
        return "web"

    def run(self, argv: list[str], *, stdin: bytes) -> None:
        self.told.append((" ".join(argv), stdin.decode()))


def test_a_server_gets_its_pages_and_its_certificate() -> None:
    host = Recorder()
    ports = (
        ServerPort(80, "http", pages=(Page("/a", 404), Page("/b", 200, DIGEST))),
        ServerPort(443, "http", tls=True),
    )
    RunningServer(host, "s1", (), "", ports, {DIGEST: PAGE}, "PEM").start()  # type: ignore[arg-type]  # as if a Host
    assert host.told == [
        ("web", (80, "", {"/a": (404, None), "/b": (200, "PHA+YWxsIHdlbGw8L3A+Cg==")})),
        ("web", (443, "PEM", {})),
    ]


@pytest.mark.parametrize(("check", "tls"), [("redis", True), ("tcp", True), ("http", False), ("https", True)])
def test_what_a_pool_with_tls_asks_at_another_port_is_answered_inside_tls(check: str, tls: bool) -> None:
    made = goldens.parse(
        f"{HEAD}pools: {{web: {{check: {{type: {check}, port: 6380}}, to_servers: {{tls: true, verify: none}}, "
        "servers: {w1: {address: 192.168.0.21, port: 443}}}}\n"
        "services: {web: {vip: www, port: 80, protocol: tcp, pool: web}}\n"
    )
    assert {p.number: p.tls for p in server_ports.ports_of(made, "web", "w1")} == {443: True, 6380: tls}
