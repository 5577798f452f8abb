"""A pair that ends TLS by Pound and by stunnel in front of HAProxy, by HAProxy itself, and that lets TLS pass through:
as clients and servers see it, and while Pound or stunnel is gone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

import planted
from certificate_files import issue
from ndakit.core import json_text
from ndakit.lab.plan import VantagePoint
from pairs import Pair, running

pytestmark = pytest.mark.timed

PROFILE = """\
name: shops
release: 24.10.8
access:
  ssh_keys: {me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}
  sources: {office: 192.168.5.0/25}
networks:
  lan: {nics: [eth0], subnet: [192.168.5.0/24, "2001:db8:5::/64"], gateway: [192.168.5.1, "2001:db8:5::1"]}
system: {ntp: []}
nodes:
  lb1: {addresses: {lan: [192.168.5.11, "2001:db8:5::11"]}}
  lb2: {addresses: {lan: [192.168.5.12, "2001:db8:5::12"]}}
vips: {www: {network: lan, address: [192.168.5.10, "2001:db8:5::10"]}}
pools:
  shops: {port: 80, check: {type: tcp, interval_s: 1}, servers: {web1: 192.168.5.21}}
  tests: {port: 80, check: {type: tcp, interval_s: 1}, servers: {test1: 192.168.5.31}}
  inner:
    check: {type: https, interval_s: 1}
    to_servers: {tls: true, verify: none}
    servers: {in1: {address: 192.168.5.41, port: 443}}
  own: {port: 8443, check: {type: tcp, interval_s: 1}, servers: {own1: 192.168.5.51}}
  own-tests: {port: 8443, check: {type: tcp, interval_s: 1}, servers: {own2: 192.168.5.61}}
services:
  plain: {vip: www, port: 80, protocol: http, pool: shops}
  old: {vip: www, port: 8080, protocol: http, hostnames: [anna.shops.example], redirect: https}
  api:
    vip: www
    port: 8443
    protocol: http
    hostnames: [api.example]
    tls: {certificates: [{secret: api.pem}, {secret: shops.pem}], min_version: "1.3"}
    pool: shops
  mail:
    vip: www
    families: [ipv4]
    port: 993
    protocol: tcp
    hostnames: [mail.staging.shops.example]
    tls: {certificates: [{secret: staging.pem}], unknown_name: refuse}
    pool: inner
  shops:
    vip: www
    port: 443
    protocol: http
    hostnames: ["*.shops.example"]
    unknown_hosts: tarpit
    tls: {terminator: pound, certificates: [{secret: staging.pem}, {secret: shops.pem}]}
    routes: [{host: "*.staging.shops.example", pool: tests}, {host_regex: "^test[0-9]*-", pool: tests}]
    pool: shops
  through:
    vip: www
    port: 9444
    protocol: tcp
    hostnames: [api.example]
    unknown_hosts: refuse
    routes: [{sni: "*.staging.shops.example", pool: own-tests}]
    pool: own
  sealed:
    vip: www
    port: 9443
    protocol: http
    hostnames: ["*.shops.example", "*.staging.shops.example", api.example]
    tls: {terminator: stunnel, certificates: [{secret: shops.pem}, {secret: staging.pem}, {secret: api.pem}]}
    pool: shops
  sealed-mail:
    vip: www
    families: [ipv4]
    port: 995
    protocol: tcp
    hostnames: [api.example]
    tls: {terminator: stunnel, certificates: [{secret: api.pem}], policy: modern}
    pool: tests
vrrp: {preempt: true}
"""
PARTIES = {
    "shops.pem": issue("shops", names=["*.shops.example"]),
    "staging.pem": issue("staging", names=["*.staging.shops.example"]),
    "api.pem": issue("api", names=["api.example"]),
}
CLIENT = """\
import hashlib, json, socket, ssl, sys
asked = json.load(sys.stdin)
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
told = {"sha256": "", "text": "", "error": ""}
try:
    raw = socket.create_connection((asked["address"], asked["port"]), 4, (asked["source"], 0))
    with context.wrap_socket(raw, server_hostname=asked["name"]) as sock:
        told["sha256"] = hashlib.sha256(sock.getpeercert(binary_form=True)).hexdigest()
        sock.sendall(asked["request"].encode())
        while piece := sock.recv(65536):
            told["text"] += piece.decode("latin-1")
except OSError as cause:
    told["error"] = type(cause).__name__
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("shops")
    kept = folder / "secrets" / "shops"
    kept.mkdir(parents=True)
    for name, party in PARTIES.items():
        (kept / name).touch(mode=0o600)
        (kept / name).write_bytes(party.bundle())
    with running(folder, "shops", PROFILE) as booted:
        booted.lab.settle()
        yield booted


def somebody(pair: Pair) -> VantagePoint:
    endpoint = pair.lab.profile.endpoints("shops")[0]
    return pair.lab.client_for(endpoint, "shops")


def ask(pair: Pair, name: str, version: int = 4, *lines: str, port: int = 443, address: str = "") -> dict[str, Any]:
    """One request by https: the certificate's digest, the answer, and what went wrong."""
    endpoint = next(e for e in pair.lab.profile.endpoints("shops") if e.address.version == version)
    point = somebody(pair)
    head = "\r\n".join(("GET / HTTP/1.1", f"Host: {name}", "Connection: close", *lines, "", ""))
    asked = {"address": address or str(endpoint.address), "port": port, "name": name, "request": head,
             "source": str(point.address(version))}  # fmt: skip
    ran = pair.lab.hosts[point.host].run(
        ["python3", "-I", "-c", CLIENT], stdin=json.dumps(asked).encode(), timeout_s=30
    )
    return dict(json_text.mapping(ran.stdout))


def body(told: dict[str, Any]) -> dict[str, Any]:
    """What the lab's server saw of the request."""
    head, _, text = str(told["text"]).partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200"), told
    return dict(json_text.mapping(text))


def headers(told: dict[str, Any]) -> dict[str, str]:
    return {name.lower(): value for name, value in body(told)["headers"]}


def digest(name: str) -> str:
    return hashlib.sha256(PARTIES[name].certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def pool_of(pair: Pair, told: dict[str, Any]) -> str:
    label = next(
        line.partition(": ")[2] for line in str(told["text"]).splitlines() if line.lower().startswith("x-lab-server: ")
    )
    return "/".join(pair.lab.pools_of(label))


@pytest.mark.parametrize(
    "name", ["daemons/lb1", "daemons/lb2", "vips/one-holder", "service/plain", "client-address/plain"]
)
def test_the_claim_holds(shops: Pair, name: str) -> None:
    outcome = shops.outcome(name)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


@pytest.mark.parametrize("version", [4, 6])
def test_servers_see_who_asks_and_that_it_was_by_https(shops: Pair, version: int) -> None:
    forged = ("X-Forwarded-For: 192.0.2.66", "X-Forwarded-For: 192.0.2.67", "X-SSL-Request: 0", "x_ssl_request: 0")
    seen = headers(ask(shops, "anna.shops.example", version, *forged))
    own = str(somebody(shops).address(version))
    assert (seen["x-forwarded-for"], seen["x-forwarded-proto"], seen["x-ssl-request"]) == (own, "https", "1")
    assert not {"192.0.2.66", "192.0.2.67", "0"} & set(seen.values())


def test_the_name_chooses_certificate_and_pool(shops: Pair) -> None:
    wanted = {
        "anna.shops.example": ("shops.pem", "shops"),
        "x.staging.shops.example": ("staging.pem", "tests"),
        "test7-anna.shops.example": ("shops.pem", "tests"),
    }
    for name, (certificate, pool) in wanted.items():
        told = ask(shops, name)
        assert (told["sha256"], pool_of(shops, told)) == (digest(certificate), pool), name


def test_an_unknown_name_gets_a_certificate_and_silence(shops: Pair) -> None:
    told = ask(shops, "unknown.invalid")
    assert (told["sha256"], told["text"], told["error"]) == (digest("staging.pem"), "", "TimeoutError")


def test_pound_is_not_root_and_nobody_outside_reaches_haproxy_behind_it(shops: Pair) -> None:
    for node in ("lb1", "lb2"):
        uids = shops.lab.run(node, "grep ^Uid /proc/$(pidof pound)/status").split()[1:]
        assert uids == ["443"] * 4
        assert "shops-1" in shops.lab.run(node, "poundctl -f /etc/pound/pound.cfg list")
    for address in ("192.168.5.10", "192.168.5.11"):
        assert ask(shops, "anna.shops.example", port=10443, address=address)["error"]


def test_a_master_whose_pound_stops_hands_over(shops: Pair) -> None:
    outcome = shops.outcome("failover/pound-stopped")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


def test_a_master_that_keeps_the_vips_without_pound_is_found_out(shops: Pair) -> None:
    script = "/usr/libexec/ndakit/daemon-runs"
    breaking = f"cp {script} /tmp/good; printf '#!/bin/sh\\nexit 0\\n' > {script}"
    with planted.on_every_node(shops.lab, breaking, f"cp /tmp/good {script}"):
        outcome = shops.outcome("failover/pound-stopped")
    assert not outcome.ok
    assert "the VIPs stayed on lb1" in outcome.detail


def test_pound_that_is_killed_comes_back(shops: Pair) -> None:
    master = shops.lab.one_master()
    before = shops.lab.run(master, "pidof pound")
    shops.lab.order(
        master, "kill -9 $(pidof pound); i=0; until pidof pound || [ $i -ge 50 ]; do i=$((i+1)); sleep 0.2; done"
    )
    assert shops.lab.run(master, "pidof pound") not in ("", before)
    shops.lab.settle()
    assert headers(ask(shops, "anna.shops.example"))["x-ssl-request"] == "1"


@pytest.mark.parametrize("name", ["tls/shops", "service/shops", "client-address/shops", "names/shops"])
def test_the_claim_about_https_holds(shops: Pair, name: str) -> None:
    outcome = shops.outcome(name)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


@pytest.mark.parametrize(
    ("daemon", "edit", "claim", "told"),
    [
        ("pound", "s#private/shops.pem#private/staging.pem#", "tls/shops", "gets another certificate"),
        ("pound", '/SetHeader "X-SSL-Request/d', "client-address/shops", "X-SSL-Request is"),
        ("haproxy", "/use_backend tests /d", "names/shops", "expected tests"),
        ("stunnel", "s#private/staging.pem#private/shops.pem#", "tls/sealed", "gets another certificate"),
        ("haproxy", "/use_backend own-tests /d", "names/through", "expected own-tests"),
        ("haproxy", "/reject unless known-name/d", "names/through", "gets a connection, and should get none"),
    ],
)
def test_the_claim_about_https_finds_the_fault(shops: Pair, daemon: str, edit: str, claim: str, told: str) -> None:
    files = {"pound": "/etc/pound/pound.cfg", "haproxy": "/etc/haproxy.cfg", "stunnel": "/etc/stunnel/stunnel.conf"}
    kept = files[daemon]
    anew = f"/etc/init.d/{daemon} restart"
    breaking = f"cp {kept} /tmp/kept; sed -i '{edit}' {kept}; ! cmp -s {kept} /tmp/kept && {anew}"
    with planted.on_every_node(shops.lab, breaking, f"cp /tmp/kept {kept}; {anew}"):
        outcome = shops.outcome(claim)
    assert not outcome.ok
    assert told in outcome.detail


# -- stunnel, and TLS that passes through ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["tls/sealed", "service/sealed", "client-address/sealed", "tls/sealed-mail", "service/sealed-mail",
     "names/through", "service/through"],
)  # fmt: skip
def test_the_claim_about_stunnel_and_passed_tls_holds(shops: Pair, name: str) -> None:
    outcome = shops.outcome(name)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


def test_stunnel_is_not_root_and_nobody_outside_reaches_haproxy_behind_it(shops: Pair) -> None:
    for node in ("lb1", "lb2"):
        uids = set(shops.lab.run(node, "grep ^Uid /proc/$(pidof stunnel)/status").split()[1:])
        assert len(uids) == 1 and uids != {"0"}
    inner = shops.lab.profile.inner_ports["sealed"]
    for address in ("192.168.5.10", "192.168.5.11"):
        assert ask(shops, "anna.shops.example", port=inner, address=address)["error"]


def test_a_new_certificate_is_served_by_stunnel_after_a_reload(shops: Pair) -> None:
    """What docs/stunnel.md says to do on a running node; a reload without a change leaves it alone."""
    path = "/etc/ndakit/private/api.pem"
    master = shops.lab.one_master()
    before = shops.lab.run(master, "pidof stunnel")
    assert shops.lab.run(master, "/etc/init.d/stunnel reload; sleep 1; pidof stunnel") == before
    again = "/etc/init.d/stunnel reload; sleep 2"
    shops.lab.order(master, f"cp {path} /tmp/good.pem; cat /etc/ndakit/private/staging.pem > {path}; {again}")
    try:
        served = ask(shops, "api.example", port=9443)["sha256"]
        after = shops.lab.run(master, "pidof stunnel")
    finally:
        shops.lab.order(master, f"cat /tmp/good.pem > {path}; rm /tmp/good.pem; {again}")
        shops.lab.settle()
    assert served == digest("staging.pem")
    assert after not in ("", before)
    assert ask(shops, "api.example", port=9443)["sha256"] == digest("api.pem")


# -- HAProxy itself ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["tls/api", "tls/mail", "service/api", "service/mail", "client-address/api", "redirect/old"]
)
def test_the_claim_about_tls_holds(shops: Pair, name: str) -> None:
    outcome = shops.outcome(name)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


def test_a_new_certificate_is_served_after_the_signal_and_a_wrong_one_is_found_out(shops: Pair) -> None:
    """What docs/services.md says to do on a running node."""
    path = "/etc/ndakit/private/api.pem"
    again = 'haproxy -c -q -f /etc/haproxy.cfg && ubus call service signal \'{"name":"haproxy","signal":12}\''
    breaking = f"cp {path} /tmp/good.pem; cat /etc/ndakit/private/staging.pem > {path}; {again}; sleep 2"
    mending = f"cat /tmp/good.pem > {path}; rm /tmp/good.pem; {again}; sleep 2"

    def modes() -> set[str]:
        return {shops.lab.run(node, f"ls -l {path}")[:10] for node in ("lb1", "lb2")}

    assert modes() == {"-rw-------"}
    with planted.on_every_node(shops.lab, breaking, mending):
        outcome, changed = shops.outcome("tls/api"), modes()
    assert not outcome.ok and "api.example gets another certificate" in outcome.detail
    assert changed == {"-rw-------"}
    assert shops.outcome("tls/api").ok


def test_no_key_is_in_what_building_and_trying_wrote(shops: Pair) -> None:
    for name, party in PARTIES.items():
        marker = party.key_pem().splitlines()[1]
        root = shops.workspace.root
        written = [path for path in root.rglob("*") if path.is_file() and marker in path.read_bytes()]
        allowed = {root / "secrets/shops" / name}
        allowed |= {root / f"overlays/shops/{node}/etc/ndakit/private/{name}" for node in ("lb1", "lb2")}
        running_disks = set(root.glob(".ndakit/log/vm/*.qcow2"))  # what the machines write to while they run
        assert set(written) - running_disks == allowed
        assert all(path.stat().st_mode & 0o077 == 0 for path in written)
