"""The claims about TLS and redirects hold where all is right, and each thing that is not is found out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

import goldens
from certificate_files import issue
from ndakit.lab.host import TlsWanted
from ndakit.lab.network import LabNetwork
from ndakit.load.certificates import read
from ndakit.model import Profile
from ndakit.model.tls import VERSIONS
from ndakit.verify.claims import Claim, LeftOut, all_claims, left_out
from ndakit.verify.claims.base import Outcome
from ndakit.verify.claims.tls import passed, redirect, refused, tls

SHOP, OTHER = (read(issue(name, None, [name, f"*.{name}"]).bundle()) for name in ("shop.example", "other.example"))
HEAD = goldens.PROFILES["bakery"].read_text().partition("services:")[0]
WEB = (
    "  web: {vip: www, port: 443, protocol: http, hostnames: [shop.example, '*.other.example'], pool: web, tls: {%s}}\n"
)
TWO = "certificates: [{secret: shop.pem}, {secret: other.pem}]"


def profile(services: str) -> Profile:
    return goldens.parse(f"{HEAD}services:\n{services}")


class Lab:
    """A lab whose handshakes go as they should, but for what a test changes."""

    def __init__(self, services: str, **changed: Any) -> None:
        self.profile = profile(services)
        self.certificates = {"shop.pem": SHOP, "other.pem": OTHER}
        self.changed = changed
        self.asked: list[TlsWanted] = []

    def client_for(self, *_: object) -> None:
        return None

    def name_asked(self, _: str) -> str:
        return "shop.example"

    def handshake(self, _: object, address: object, port: int, wish: TlsWanted) -> Any:
        self.asked.append(wish)
        wanted = self.profile.services["web"].tls
        assert wanted is not None
        spoken = self.changed.get("versions", wanted.versions)
        unknown = wish.name.endswith("invalid")
        if (wish.highest and wish.highest not in spoken) or (unknown and self.changed.get("refuses")):
            return SimpleNamespace(tls={}, error="tls: alert")
        bundle = OTHER if "other" in wish.name else SHOP
        bundle = self.changed.get("certificate", {}).get(wish.name, bundle)
        protocol = self.changed.get("alpn", wanted.protocols[0])
        return SimpleNamespace(
            tls={"sha256": bundle.fingerprint, "version": wish.highest or "1.3", "alpn": protocol}, error=""
        )

    def get(self, _: object, address: object, port: int, **__: object) -> Any:
        answer = self.changed["answer"]
        return SimpleNamespace(status=answer[0], header=lambda _: answer[1], error=answer[2])


def claim(services: str, **changed: Any) -> Outcome:
    return tls(cast(LabNetwork, Lab(services, **changed)), "web")


def test_what_is_right_holds() -> None:
    outcome = claim(WEB % TWO)
    assert outcome.ok, outcome
    assert outcome.figure == "TLS 1.2, 1.3; 2 name(s), 8 handshakes"
    assert claim(WEB % f"{TWO}, unknown_name: refuse", refuses=True).ok


def test_names_of_routes_are_asked_for_too() -> None:
    routed = WEB.replace("pool: web,", "routes: [{host: api.other.example, pool: web}], pool: web,") % TWO
    outcome = claim(routed)
    assert outcome.ok and "3 name(s)" in outcome.figure, outcome
    wrong = claim(routed, certificate={"api.other.example": SHOP})
    assert not wrong.ok and "api.other.example gets another certificate" in wrong.detail


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"certificate": {"shop.example": OTHER}}, "shop.example gets another certificate"),
        ({"certificate": {"any.other.example": SHOP}}, "any.other.example gets another certificate"),
        ({"certificate": {"unknown.invalid": OTHER}}, "unknown.invalid does not get the first certificate"),
        ({"versions": ("1.1", "1.2", "1.3")}, "TLS 1.1 is spoken"),
        ({"versions": ("1.3",)}, "TLS 1.2 is refused (tls: alert)"),
        ({"alpn": "http/1.1"}, "the protocol is 'http/1.1' and not h2"),
        ({"refuses": True}, "unknown.invalid does not get the first certificate"),
    ],
)
def test_what_is_wrong_is_found_out(changed: dict[str, Any], words: str) -> None:
    outcome = claim(WEB % TWO, **changed)
    assert not outcome.ok and words in outcome.detail


def test_a_name_that_is_to_be_refused_and_is_not_is_found_out() -> None:
    outcome = claim(WEB % f"{TWO}, unknown_name: refuse")
    assert not outcome.ok and "unknown.invalid gets a connection" in outcome.detail


def test_every_version_is_tried() -> None:
    lab = Lab(WEB % TWO)
    tls(cast(LabNetwork, lab), "web")
    assert {wish.highest for wish in lab.asked} - {""} == set(VERSIONS)
    assert [wish.alpn for wish in lab.asked if wish.alpn] == [("http/1.1", "h2")]


REDIRECT = "  old: {vip: www, port: 80, protocol: http, redirect: https}\n" + WEB % TWO


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        ((301, "https://192.168.0.10/lab?a=b", ""), True),
        ((302, "https://192.168.0.10/lab?a=b", ""), False),
        ((301, "http://192.168.0.10/lab?a=b", ""), False),
        ((200, None, ""), False),
        ((0, None, "refused"), False),
    ],
)
def test_a_redirect_that_leads_elsewhere_is_found_out(answer: tuple[int, str | None, str], good: bool) -> None:
    assert redirect(cast(LabNetwork, Lab(REDIRECT, answer=answer)), "old").ok is good


@pytest.mark.parametrize(
    ("answer", "good"),
    [((0, None, "tls: alert certificate required"), True), ((0, None, "reset"), True), ((200, None, ""), False),
     ((0, None, "time-out"), False)],
)  # fmt: skip
def test_a_client_without_a_certificate_that_is_answered_is_found_out(
    answer: tuple[int, str | None, str], good: bool
) -> None:
    assert refused(cast(LabNetwork, Lab(WEB % TWO, answer=answer)), "web").ok is good


PASSED = (
    "  web: {vip: www, port: 443, protocol: tcp, pool: web, hostnames: [www.example], unknown_hosts: %s, "
    "routes: [{sni: '*.mail.example', pool: mail}]}\n"
)
PASSED_POOLS = (
    "pools:\n  web: {check: tcp, servers: {web1: 192.168.0.21}}\n  mail: {check: tcp, servers: {m1: 192.168.0.31}}\n"
)


class PassingLab:
    """A lab whose servers speak TLS themselves; `answers`: name asked for → who answers, if not the right one."""

    def __init__(self, unknown: str, answers: dict[str, str], certificate: str = "") -> None:
        head = HEAD.partition("pools:")[0]
        self.profile = goldens.parse(f"{head}{PASSED_POOLS}services:\n{PASSED % unknown}")
        self.answers, self.certificate = answers, certificate

    def client_for(self, *_: object) -> None:
        return None

    def certificate_of(self, label: str) -> str:
        return f"of {label}"

    def pools_of(self, label: str) -> tuple[str, ...]:
        return (label,) if label else ()

    def get(self, _: object, address: object, port: int, *, name: str) -> Any:
        pool = self.answers.get(name, self.profile.services["web"].pool_for(name) or "")
        if not pool:
            return SimpleNamespace(status=0, server="", tls={}, error="reset")
        return SimpleNamespace(status=200, server=pool, tls={"sha256": self.certificate or f"of {pool}"}, error="")


@pytest.mark.parametrize(
    ("unknown", "answers", "certificate", "words"),
    [
        ("pool", {}, "", ""),
        ("refuse", {}, "", ""),
        ("pool", {"any.mail.example": "web"}, "", "any.mail.example at 192.168.0.10:443: web, expected mail"),
        ("pool", {"www.example": ""}, "", "www.example at 192.168.0.10:443: nothing (reset), expected web"),
        ("refuse", {"unknown.invalid": "web"}, "", "unknown.invalid at 192.168.0.10:443 gets a connection"),
        ("refuse", {"": "web"}, "", "no name at 192.168.0.10:443 gets a connection"),
        ("pool", {}, "of a balancer", "gets a certificate that is not that of mail"),
    ],
)
def test_tls_that_does_not_pass_through_to_the_right_server_is_found_out(
    unknown: str, answers: dict[str, str], certificate: str, words: str
) -> None:
    outcome = passed(cast(LabNetwork, PassingLab(unknown, answers, certificate)), "web")
    assert outcome.ok is (words == "") and words in outcome.detail, outcome
    if not words:
        last = "nothing" if unknown == "refuse" else "web"
        assert outcome.figure == (f"any.mail.example: mail, www.example: web, unknown.invalid: {last}, no name: {last}")


def test_what_nobody_in_the_lab_can_try_is_left_out_and_said() -> None:
    profile = goldens.profile("tls")
    everything: list[Claim | LeftOut] = [*all_claims(profile), *left_out(profile)]
    names = {one.name: one for one in everything}
    assert not isinstance(names["service/shop"], LeftOut) and not isinstance(names["tls/shop"], LeftOut)
    api, imaps = names["service/api"], names["service/imaps"]
    assert isinstance(api, LeftOut) and "certificate of their own" in api.reason
    assert isinstance(imaps, LeftOut) and "`verify` believes" in imaps.reason
    assert isinstance(names["check/mail"], LeftOut)
    assert not isinstance(names["names/passed"], LeftOut) and not isinstance(names["service/passed"], LeftOut)
    assert not isinstance(names["tls/api"], LeftOut) and not isinstance(names["redirect/moved"], LeftOut)
