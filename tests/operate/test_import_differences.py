"""`./inv import` where the old balancer has several of what a profile has one of: nothing is taken from the first one
in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from ndakit.core.workspace import Workspace
from ndakit.operate.import_ import importer
from ndakit.operate.import_.draft import DECIDE
from ndakit.operate.import_.importer import SameSourceTwice
from ndakit.operate.import_.refine import Imported
from ndakit.operate.import_.sources import NodeFiles
from places import ROOT

NETWORK = """\
config interface 'wan'
	option device 'eth0'
	option proto 'static'
	list ipaddr '203.0.113.11/24'
	option gateway '203.0.113.1'
config interface 'lan'
	option device 'eth1'
	option proto 'static'
	list ipaddr '192.168.2.11/24'
"""
HEAD = """\
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
"""
BACKEND = "backend web\n  server w1 192.168.2.51:80 check\n"
VRRP = """\
vrrp_instance E {
  interface eth0
  virtual_router_id 60
  priority 90
  virtual_ipaddress {
    203.0.113.10/24
  }
}
"""


def imported(haproxy: str = "", files: Mapping[str, bytes] | None = None, *, keepalived: str = "") -> Imported:
    texts = {"/etc/config/network": NETWORK, "/etc/haproxy.cfg": haproxy, "/etc/keepalived/keepalived.conf": keepalived}
    node = NodeFiles("lb1", {path: text.encode() for path, text in texts.items() if text} | dict(files or {}))
    return importer.convert(Workspace(ROOT), "box", [node], release="24.10.8")


def front(*binds: str) -> str:
    lines = "".join(f"  bind 203.0.113.11:{bind}\n" for bind in binds)
    return f"{HEAD}frontend www\n{lines}  default_backend web\n{BACKEND}"


def tls(result: Imported) -> dict[str, Any]:
    """Service → its ports, secrets and CA."""
    return {
        name: (s["port"], [c["secret"] for c in s["tls"]["certificates"]], s["tls"].get("client_certificates"))
        for name, s in result.draft.services.items()
    }


def decided(result: Imported) -> list[str]:
    return [words.removeprefix(DECIDE) for words in result.draft.fill_in if words.startswith(DECIDE)]


def test_binds_with_different_tls_are_services_of_their_own() -> None:
    required = "ca-file /etc/haproxy/ca.pem verify required"
    result = imported(front("443 ssl crt /c/b.pem", f"8443 ssl crt /c/a.pem {required}", "9443 ssl crt /c/b.pem"))
    assert tls(result) == {
        "www": ([443, 9443], ["b.pem"], None),
        "www-8443": ([8443], ["a.pem"], {"ca": "box-ca.pem"}),
    }


@pytest.mark.parametrize(
    "difference",
    ["crt /c/other.pem", "crt /c/a.pem ca-file /ca.pem verify required", "crt /c/a.pem ssl-min-ver TLSv1.3",
     "crt /c/a.pem strict-sni", "crt /c/a.pem alpn http/1.1", "crt-list /c/list"],
)  # fmt: skip
def test_every_word_of_tls_makes_another_service(difference: str) -> None:
    result = imported(front("443 ssl crt /c/a.pem", f"8443 ssl {difference}"))
    assert [s["port"] for s in result.draft.services.values()] == [[443], [8443]]


def test_words_about_the_socket_alone_do_not() -> None:
    result = imported(front("443 ssl crt /c/a.pem name one", "8443 ssl crt /c/a.pem name two tfo"))
    assert [s["port"] for s in result.draft.services.values()] == [[443, 8443]]


def test_a_list_of_certificates_with_settings_or_that_is_not_there_is_asked_for() -> None:
    text = front("443 ssl crt-list /etc/list")
    plain = {"/etc/list": b"/c/a.pem www.example.com\n# [x]\n"}
    strict = {"/etc/list": b"/c/a.pem [ca-file /ca.pem verify required] www.example.com\n"}
    assert decided(imported(text, plain)) == []
    assert any("settings of its own" in words for words in decided(imported(text, strict)))
    assert any("is not in what was read" in words for words in decided(imported(text)))


def test_files_with_one_name_and_different_bytes_keep_both() -> None:
    text = front("443 ssl crt /c/a.pem ca-file /etc/haproxy/ca.pem verify required").replace(
        "w1 192.168.2.51:80", "w1 192.168.2.51:443 ssl verify required ca-file /etc/ssl/ca.pem"
    )
    result = imported(text, {"/etc/haproxy/ca.pem": b"clients\n", "/etc/ssl/ca.pem": b"servers\n"})
    clients = result.draft.services["www"]["tls"]["client_certificates"]["ca"]
    servers = result.draft.pools["web"]["to_servers"]["verify"]
    assert (clients, servers) == ("box-etc-haproxy-ca.pem", "box-ca.pem")
    assert [result.draft.attachments[name] for name in (clients, servers)] == [b"clients\n", b"servers\n"]
    alike = imported(text, {"/etc/haproxy/ca.pem": b"one\n", "/etc/ssl/ca.pem": b"one\n"})
    assert alike.draft.attachments == {"box-ca.pem": b"one\n"}
    missing = imported(text)  # neither of them was read: two files are asked for
    assert len({missing.draft.services["www"]["tls"]["client_certificates"]["ca"], "box-ca.pem"}) == 2
    assert sum("is not in what was read; put it beside" in words for words in missing.draft.fill_in) == 2


def test_certificates_with_one_name_and_different_bytes_keep_both() -> None:
    text = front("443 ssl crt /etc/haproxy/a/haproxy.pem", "8443 ssl crt /etc/haproxy/b/haproxy.pem")
    files = {"/etc/haproxy/a/haproxy.pem": b"one\n", "/etc/haproxy/b/haproxy.pem": b"two\n"}
    result = imported(text, files)
    assert result.draft.secrets == {"haproxy.pem": b"one\n", "etc-haproxy-b-haproxy.pem": b"two\n"}
    assert [secrets for _, secrets, _ in tls(result).values()] == [["haproxy.pem"], ["etc-haproxy-b-haproxy.pem"]]
    assert len(imported(text).draft.secrets) == 2  # neither was read: who knows whether they are one
    assert len(imported(text, dict.fromkeys(files, b"one\n")).draft.secrets) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ssl verify none", ""),
        ("", "ssl verify none"),
        ("ssl verify required ca-file /ca.pem", "ssl verify none"),
        ("ssl verify required ca-file /ca.pem", "ssl verify required ca-file /other.pem"),
        ("ssl verify none sni str(a.example.com)", "ssl verify none sni str(b.example.com)"),
        ("check-ssl", ""),
        ("ssl verify none", "ssl verify none no-ssl"),
    ],
)
def test_servers_with_different_tls_are_asked_for(first: str, second: str) -> None:
    pool = f"backend web\n  server w1 192.168.2.51:443 check {first}\n  server w2 192.168.2.52:443 check {second}\n"
    result = imported(front("80").replace(BACKEND, pool))
    assert [words.split(":")[0] for words in decided(result)] == ["pools.web.to_servers"]
    assert any(one.text.startswith("server w2") and "to_servers" in one.why for one in result.unsaid)
    alike = pool.replace(f"check {second}\n", f"check {first}\n").replace(f"check {first}\n", f"check {first}\n")
    assert decided(imported(front("80").replace(BACKEND, alike))) == []


@pytest.mark.parametrize("words", ["port 8081", "inter 5s", "fall 7", "slowstart 10s"])
def test_what_only_a_later_server_says_of_all_is_told(words: str) -> None:
    pool = f"backend web\n  server w1 192.168.2.51:80 check\n  server w2 192.168.2.52:80 check {words}\n"
    result = imported(front("80").replace(BACKEND, pool))
    assert [one.text for one in result.unsaid if "one for all servers" in one.why] == [
        f"server w2 192.168.2.52:80 check {words}"
    ]


def virtual(sorry: str = "", server: str = "weight 1") -> str:
    return VRRP + (
        "virtual_server 203.0.113.10 80 {\n  lb_algo rr\n  lb_kind DR\n  protocol TCP\n"
        f"{sorry}  real_server 203.0.113.51 80 {{ {server} }}\n}}\n"
    )


@pytest.mark.parametrize("own", ["127.0.0.1", "203.0.113.11", "203.0.113.10"])
def test_a_sorry_server_on_the_balancer_itself_is_left_out_and_told(own: str) -> None:
    result = imported(keepalived=virtual(f"  sorry_server {own} 80\n"))
    assert list(result.draft.pools) == ["http"]
    assert "sorry" not in result.draft.pools["http"]
    assert any("the balancer itself" in one.why for one in result.unsaid)
    kept = imported(keepalived=virtual("  sorry_server 203.0.113.99 80\n"))
    assert kept.draft.pools["http"]["sorry"] == {"pool": "http-sorry"}


def test_a_weight_on_the_line_of_a_check_is_read() -> None:
    for weight in (0, 3):
        text = virtual(server=f"weight {weight} TCP_CHECK {{ connect_timeout 4 }}")
        pool = imported(keepalived=text).draft.pools["http"]
        assert pool["servers"]["srv1"]["weight"] == weight
        assert (pool["check"]["type"], str(pool["check"]["timeout_s"])) == ("tcp", "4")


def test_one_box_given_twice_is_refused() -> None:
    files = {"/etc/config/network": NETWORK.encode(), "/etc/keepalived/keepalived.conf": VRRP.encode()}
    with pytest.raises(SameSourceTwice, match="the same files"):
        importer.convert(Workspace(ROOT), "box", [NodeFiles("a", dict(files)), NodeFiles("b", dict(files))])
    later = files | {"/etc/banner": b"changed\n"}
    result = importer.convert(Workspace(ROOT), "box", [NodeFiles("a", files), NodeFiles("b", later)])
    assert [words.split(":")[0] for words in decided(result)] == ["nodes"]  # the profile is refused until then
