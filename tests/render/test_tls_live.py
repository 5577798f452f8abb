"""What clients and servers of a real HAProxy see of TLS: certificates, versions, protocols, headers, redirects."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import certifi
import pytest
import yaml
from cryptography.hazmat.primitives import hashes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import goldens
from certificate_files import CLIENT_AUTH, Party, issue, revoked, rsa_key
from haproxy_live import attempt
from ndakit.core.workspace import cache
from ndakit.lint import real_daemons
from ndakit.lint.lint import lint
from ndakit.load.secrets import Secret, Secrets
from ndakit.model import Profile
from ndakit.render.render import Tree, render

BEGINS = datetime.now(UTC) - timedelta(days=1)
CA = issue("Test CA", ca=True, begins=BEGINS)
SHOP = issue("shop", CA, ["shop.example", "*.shop.example"], begins=BEGINS)
SHOP_RSA = issue("shop rsa", CA, ["shop.example", "*.shop.example"], begins=BEGINS, key=rsa_key())
API = issue("api", CA, ["api.example"], begins=BEGINS)
CERTIFICATES = {"shop.pem": SHOP, "shop-rsa": SHOP_RSA, "api.pem": API}
TEXTS = {name: party.bundle(CA) for name, party in CERTIFICATES.items()}
CLIENT = issue("client 7", CA, begins=BEGINS, usage=CLIENT_AUTH)
GONE = issue("who left", CA, begins=BEGINS, usage=CLIENT_AUTH)
FILES = {"ca.pem": CA.pem, "crl.pem": revoked(CA, GONE, begins=BEGINS)}

HEAD = """\
name: live
release: {release}
access:
  ssh_keys: {{me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}}
  sources: {{office: 192.168.0.0/24}}
networks: {{lan: {{nics: [eth0], subnet: [192.168.0.0/24, "fd00::/64"]}}}}
nodes:
  lb1: {{addresses: {{lan: [192.168.0.11, "fd00::11"]}}}}
  lb2: {{addresses: {{lan: [192.168.0.12, "fd00::12"]}}}}
vips: {{www: {{network: lan, address: [192.168.0.10, "fd00::10"]}}}}
sizing: {{sessions_per_second: 1, session_duration_s: 1, memory_mib: 256}}
"""
POOL = "pools: {web: {check: tcp, servers: {web1: {address: 192.168.0.21, port: 80}}}}\n"
ASK = "GET /a?b=c HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n"


def profile(services: str, pools: str = POOL, release: str = "24.10.8") -> Profile:
    text = HEAD.format(release=release) + pools + services
    return Profile.model_validate(yaml.load(text, yaml.BaseLoader), context={"attach": FILES.__getitem__})


def web(tls: str = "certificates: [{secret: shop.pem}]", more: str = "") -> str:
    return f"services:\n  web: {{vip: www, port: 443, protocol: http, pool: web, {more} tls: {{{tls}}}}}\n"


def clients(
    services: str, folder: Path, *ask: dict[str, Any], pools: str = POOL, **options: Any
) -> list[dict[str, Any]]:
    for one in ask:
        one.setdefault("address", "192.168.0.10")
        one.setdefault("port", 443)
    release = options.pop("release", "24.10.8")
    answers = attempt(profile(services, pools, release), folder, "tls", secrets=TEXTS, clients=list(ask), **options)
    return [dict(one) for one in answers]


def fingerprint(party: Party) -> str:
    return party.certificate.fingerprint(hashes.SHA256()).hex()


def test_a_client_gets_the_certificate_of_the_name_that_it_asks_for(tmp_path: Path) -> None:
    names = ["shop.example", "www.shop.example", "api.example", "other.example", "a.b.shop.example", None]
    services = web("certificates: [{secret: shop.pem}, {secret: api.pem}]")
    answers = clients(services, tmp_path, *({"name": name} for name in names))
    wanted = [SHOP, SHOP, API, SHOP, SHOP, SHOP]
    assert [one["certificate"] for one in answers] == [fingerprint(party) for party in wanted]


def test_unknown_names_are_refused_where_the_profile_says_so(tmp_path: Path) -> None:
    services = web("certificates: [{secret: shop.pem}, {secret: api.pem}], unknown_name: refuse")
    good, unknown, none = clients(services, tmp_path, {"name": "api.example"}, {"name": "x.example"}, {"name": None})
    assert good["certificate"] == fingerprint(API)
    assert "error" in unknown and "error" in none


def test_an_rsa_certificate_stands_beside_an_elliptic_one(tmp_path: Path) -> None:
    services = web("certificates: [{secret: shop.pem}, {secret: shop-rsa}]")
    (answer,) = clients(services, tmp_path, {"name": "shop.example", "max": "1.2"})
    assert "ECDSA" in answer["cipher"]


POLICIES = {
    "intermediate": ["1.2", "1.3"],
    "modern": ["1.3"],
    "old": ["1.0", "1.1", "1.2", "1.3"],
}


@pytest.mark.parametrize("strict", [False, True])
def test_sixty_certificates_are_shown_by_name_and_the_first_one_to_others(strict: bool, tmp_path: Path) -> None:
    """HAProxy takes 64 words in a line."""
    texts = {"first.pem": TEXTS["api.pem"]} | {f"c{n}": TEXTS["shop-rsa"] for n in range(58)} | {"z": TEXTS["shop.pem"]}
    several = ", ".join(f"{{secret: {name}}}" for name in texts)
    shop = profile(web(f"certificates: [{several}]{', unknown_name: refuse' if strict else ''}"))
    tree = render(shop, "lb1", goldens.TEMPLATES, secrets=Secrets({n: Secret(v, "a test") for n, v in texts.items()}))
    listed = tree["/etc/ndakit/private/_certificates-of-web"]
    assert listed.mode == 0o600 and "/etc/ndakit/private/_certificates-of-web" in tree["/etc/sysupgrade.conf"].text
    assert lint(tree, shop, "lb1") == [] and real_daemons.check(tree, cache() / "lab") == []
    asked = [{"address": "192.168.0.10", "port": 443, "name": name} for name in ("www.shop.example", "x.example", None)]
    known, *others = attempt(shop, tmp_path, "tls", secrets=texts, clients=asked)
    assert known["certificate"] in (fingerprint(SHOP), fingerprint(SHOP_RSA))
    for other in others:
        assert "error" in other if strict else other["certificate"] == fingerprint(API)


def test_a_list_of_certificates_is_looked_into() -> None:
    texts = {f"c{n}": TEXTS["shop-rsa"] for n in range(9)}
    shop = profile(web(f"certificates: [{', '.join(f'{{secret: {name}}}' for name in texts)}]"))
    tree = render(shop, "lb1", goldens.TEMPLATES, secrets=Secrets({n: Secret(v, "a test") for n, v in texts.items()}))
    path = "/etc/ndakit/private/_certificates-of-web"
    for content in (tree[path].content.replace(b"/c3/", b"/gone/"), b"# nothing\n"):
        broken = Tree([*({**tree, path: dataclasses.replace(tree[path], content=content)}).values()])
        assert {one.code for one in lint(broken, shop, "lb1")} == {"lint-haproxy-file"}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_takes_its_versions_and_no_others(policy: str, tmp_path: Path) -> None:
    asked = ["1.0", "1.1", "1.2", "1.3"]
    services = web(f"certificates: [{{secret: shop.pem}}, {{secret: shop-rsa}}], policy: {policy}")
    answers = clients(services, tmp_path, *({"name": "shop.example", "min": v, "max": v} for v in asked))
    assert [v for v, one in zip(asked, answers, strict=True) if "error" not in one] == POLICIES[policy], answers


def test_the_lowest_version_goes_against_the_policy(tmp_path: Path) -> None:
    services = web('certificates: [{secret: shop.pem}], policy: old, min_version: "1.1"')
    answers = clients(services, tmp_path, *({"min": v, "max": v} for v in ("1.0", "1.1")))
    assert ["error" in one for one in answers] == [True, False]


def test_protocols_are_offered_in_the_order_of_the_profile(tmp_path: Path) -> None:
    both = {"alpn": ["http/1.1", "h2"]}
    old = {"alpn": ["http/1.1"]}
    answers = clients(web(), tmp_path, dict(both), dict(old))
    assert [one["alpn"] for one in answers] == ["h2", "http/1.1"]
    (one,) = clients(web("certificates: [{secret: shop.pem}], alpn: [http/1.1]"), tmp_path, dict(both))
    assert one["alpn"] == "http/1.1"


def test_servers_learn_that_it_was_https_and_browsers_to_stay_with_it(tmp_path: Path) -> None:
    request = ASK.format(host="shop.example", more="X-Forwarded-Proto: http\r\nX-SSL-Client-Verify: SUCCESS\r\n")
    (answer,) = clients(web("certificates: [{secret: shop.pem}], hsts_s: 300"), tmp_path, {"request": request})
    head, _, seen = answer["answer"].partition("\r\n\r\n")
    assert "strict-transport-security: max-age=300" in head.lower()
    assert "x-forwarded-proto: https" in seen.lower() and "proto: http\r" not in seen.lower()
    assert "x-ssl-client" not in seen.lower()
    (answer,) = clients(
        web("certificates: [{secret: shop.pem}], hsts_s: 300"), tmp_path, {"request": request}, dead=True
    )
    assert answer["answer"].startswith("HTTP/1.1 503") and "strict-transport" in answer["answer"].lower()


# -- client certificates -----------------------------------------------------------------------------------------------


def mutual(folder: Path, mode: str, *who: Party | None, more: str = "") -> list[dict[str, Any]]:
    """What clients with these certificates get."""
    asked = []
    for number, party in enumerate(who):
        path = folder / f"client-{number}.pem"
        if party is not None:
            path.write_bytes(party.bundle())
        forged = "X-SSL-Client-Verify: SUCCESS\r\nX-SSL-Client-DN: CN=admin\r\nX_SSL_Client_DN: CN=admin\r\n"
        request = ASK.format(host="shop.example", more=forged)
        asked.append({"request": request, "certificate": str(path) if party is not None else None})
    tls = f"certificates: [{{secret: shop.pem}}], client_certificates: {{ca: ca.pem, mode: {mode}{more}}}"
    return clients(web(tls), folder, *asked)


def test_a_client_certificate_is_required_and_servers_learn_whose_it_is(tmp_path: Path) -> None:
    stranger = issue("stranger", issue("Other CA", ca=True, begins=BEGINS), begins=BEGINS)
    good, none, other = mutual(tmp_path, "required", CLIENT, None, stranger)
    seen = good["answer"].lower()
    assert "x-ssl-client-verify: success\r" in seen and "x-ssl-client-dn: /cn=client 7\r" in seen
    assert "x-ssl-client-issuer-dn: /cn=test ca\r" in seen
    assert f"x-ssl-client-sha1: {CLIENT_SHA1}" in seen and "admin" not in seen
    assert f"x-ssl-client-serial: {CLIENT.certificate.serial_number:040x}\r" in seen
    for refused in (none, other):
        assert "error" in refused or refused["answer"] == ""


def _sha1(party: Party) -> str:
    return party.certificate.fingerprint(hashes.SHA1()).hex()


CLIENT_SHA1 = _sha1(CLIENT)


def test_where_it_is_optional_servers_decide(tmp_path: Path) -> None:
    with_one, without = mutual(tmp_path, "optional", CLIENT, None)
    assert "x-ssl-client-verify: success\r" in with_one["answer"].lower()
    assert "x-ssl-client-verify: none" in without["answer"].lower()
    assert "x-ssl-client-dn" not in without["answer"].lower()


def test_a_revoked_certificate_is_refused(tmp_path: Path) -> None:
    good, gone = mutual(tmp_path, "required", CLIENT, GONE, more=", revoked: crl.pem")
    assert good["answer"].startswith("HTTP/1.1 200")
    assert "error" in gone or gone["answer"] == ""


@pytest.mark.parametrize("name", ["a\r\nX-Evil: 1", "a\nX-Evil: 1", "a\x00b"])
def test_a_name_in_a_certificate_cannot_begin_a_header(name: str, tmp_path: Path) -> None:
    hostile = issue(name, CA, begins=BEGINS)
    (answer,) = mutual(tmp_path, "required", hostile)
    assert answer["answer"].startswith("HTTP/1.1 200")
    seen = answer["answer"].partition("\r\n\r\n")[2].split("\r\n")
    assert not [line for line in seen if line.lower().startswith("x-evil") or "\n" in line or "\x00" in line]
    assert [line for line in seen if line.startswith("x-ssl-client-dn: /CN=a%0")]


# -- towards servers ---------------------------------------------------------------------------------------------------

TLS_POOL = (
    "pools: {web: {check: https, to_servers: {tls: true, verify: %s, name: %s}, "
    "servers: {web1: {address: 192.168.0.21, port: 443}}}}\n"
)
PLAIN = "services: {web: {vip: www, port: 80, protocol: http, pool: web}}\n"


@pytest.mark.parametrize(
    ("verify", "name", "status"),
    [("ca.pem", "api.example", 200), ("ca.pem", "other.example", 503), ("system", "api.example", 503),
     ("none", "other.example", 200)],
)  # fmt: skip
def test_servers_are_asked_over_tls_and_verified(verify: str, name: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "server.pem").write_bytes(API.bundle())
    here = [("/etc/ssl/certs/ca-certificates.crt", certifi.where())] if verify == "system" else []
    shop = profile(PLAIN, TLS_POOL % (verify, name))
    request = ASK.format(host="x", more="")
    wait = [request] * 40  # until the check has failed, if it is to
    answers = attempt(
        shop, tmp_path, "requests", requests=wait, port=80, certificates={"web": str(tmp_path / "server.pem")},
        changes=here,
    )  # fmt: skip
    assert answers[-1].startswith(f"HTTP/1.1 {status}"), answers[-1]


@pytest.mark.parametrize("check", ["redis", "tcp, send: hello, expect: {reply: web1}"])
def test_a_check_at_a_port_of_its_own_goes_over_tls_as_well(check: str, tmp_path: Path) -> None:
    """HAProxy takes `ssl` over for a check only if no port is stated; without TLS such a server hangs up."""
    (tmp_path / "server.pem").write_bytes(API.bundle())
    pools = (
        f"pools: {{web: {{check: {{type: {check}, port: 443, interval_s: 0.2, timeout_s: 0.5, fall: 1}}, "
        "to_servers: {tls: true, verify: ca.pem, name: api.example}, "
        "servers: {web1: {address: 192.168.0.21, port: 443}}}}\n"
    )
    shop = profile("services: {web: {vip: www, port: 80, protocol: tcp, pool: web}}\n", pools)
    own = {"web": str(tmp_path / "server.pem")}
    answers = attempt(shop, tmp_path, "requests", requests=["hello"] * 400, port=80, certificates=own)
    assert answers[-1] == "web1", answers[-1]


# -- redirects ---------------------------------------------------------------------------------------------------------

REDIRECT = "services:\n  old: {vip: www, port: 80, protocol: http, redirect: %s}\n"


def locations(folder: Path, redirect: str, *hosts: str, port: int = 443, **options: Any) -> list[str]:
    services = (REDIRECT % redirect) + web().replace("services:\n", "").replace("443", str(port))
    asked = [ASK.format(host=host, more="") for host in hosts]
    shop = profile(services, release=options.pop("release", "24.10.8"))
    answers = attempt(shop, folder, "requests", requests=asked, port=80, secrets=TEXTS, **options)
    wanted = (
        line for answer in answers for line in answer.split("\r\n") if line.lower().startswith(("location", "http/"))
    )
    return [line.partition(": ")[2] or line.split()[1] for line in wanted]


@pytest.mark.parametrize("release", ["24.10.8", "18.06.9"])
def test_http_is_sent_to_https_with_name_path_and_query(release: str, tmp_path: Path) -> None:
    hosts = ("shop.example", "shop.example:80", "[fd00::10]", "192.168.0.10")
    assert locations(tmp_path, "https", *hosts, address="fd00::10", release=release) == [
        "301", "https://shop.example/a?b=c", "301", "https://shop.example/a?b=c",
        "301", "https://[fd00::10]/a?b=c", "301", "https://192.168.0.10/a?b=c",
    ]  # fmt: skip
    assert locations(tmp_path, "https", "shop.example:8000", port=8443)[1] == "https://shop.example:8443/a?b=c"


def test_a_redirect_leads_where_the_profile_says(tmp_path: Path) -> None:
    to = "{to: 'https://new.example/shop/', status: 308}"
    assert locations(tmp_path, to, "x") == ["308", "https://new.example/shop/a?b=c"]
    to = "{to: 'https://new.example/shop/', status: 302, keep_path: false}"
    assert locations(tmp_path, to, "x") == ["302", "https://new.example/shop/"]
    to = "{to: https, keep_path: false}"
    assert locations(tmp_path, to, "x.example") == ["301", "https://x.example/"]


def test_a_host_cannot_break_out_of_the_answer(tmp_path: Path) -> None:
    hosts = ("a/../b", "a%0d%0aX: 1", "[", "@evil.example", "a:@evil.example", "a,evil.example", "a.example:80/x", "")
    assert locations(tmp_path, "https", *hosts) == ["400"] * len(hosts)
    assert locations(tmp_path, "https", "a.example.:80")[1] == "https://a.example/a?b=c"


@pytest.mark.parametrize("to", ["https", "{to: 'https://new.example/'}"])
def test_a_redirect_is_for_known_names_only_where_the_profile_says_so(to: str, tmp_path: Path) -> None:
    more = f"{to}, hostnames: [shop.example], unknown_hosts: refuse"
    hosts = ("evil.example", "shop.example:@evil.example", "evil.example.")
    assert locations(tmp_path, more, *hosts) == ["421", "400", "421"]
    assert locations(tmp_path, more, "shop.example.")[0] == "301"


def test_over_http2_a_name_is_the_authority(tmp_path: Path) -> None:
    services = web(more="hostnames: [shop.example], unknown_hosts: refuse,")
    refused = {"400", "reset"}  # HAProxy itself ends a request whose authority is none
    asked = {
        "shop.example": {"200"}, "SHOP.example.:443": {"200"}, "evil.example": {"421"},
        "shop.example:@evil.example": refused, "evil.example,shop.example": refused,
        "shop.example:.evil.example": refused, "shop.example/": refused,
    }  # fmt: skip
    answers = clients(services, tmp_path, *({"alpn": ["h2"], "h2": [[":authority", name]]} for name in asked))
    assert [name for name, one in zip(asked, answers, strict=True) if one["answer"] not in asked[name]] == [], answers
    both = [[":authority", "evil.example"], ["host", "shop.example"]]
    (one,) = clients(services, tmp_path, {"alpn": ["h2"], "h2": both})
    assert one["answer"] != "200"


# -- hostile values ----------------------------------------------------------------------------------------------------

HOSTILE = st.text(st.sampled_from("ab.*-_:/[]{}()%$\"'\\#; \t\n\r,@=é"), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(HOSTILE, min_size=1, max_size=3), HOSTILE, HOSTILE)
def test_hostile_names_are_refused_or_inert(names: list[str], secret: str, target: str) -> None:
    """Host names, secret names, redirect targets: what the model takes, HAProxy's own parser takes as one word."""
    good = profile(web() + "  old: {vip: www, port: 80, protocol: http, redirect: https}\n")
    data = json.loads(json.dumps(good.model_dump(mode="json", exclude_none=True)))
    for path, value in (
        (("web", "hostnames"), names), (("web", "tls", "certificates"), [{"secret": secret}]),
        (("old", "redirect"), f"https://{target}"),
    ):  # fmt: skip
        changed = json.loads(json.dumps(data))
        place = changed["services"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        try:
            taken = Profile.model_validate(changed)
        except ValidationError:
            continue
        held = Secrets({name: Secret(SHOP.bundle(CA), "a test") for name in ("shop.pem", secret)})
        tree = render(taken, "lb1", goldens.TEMPLATES, secrets=held)
        assert real_daemons.check(tree, cache() / "lab") == [], value
