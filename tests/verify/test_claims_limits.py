"""The claims about limits, maintenance and pages for errors hold where all is right, and what is not is found out."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

import goldens
from ndakit.lab.clients import LoadResult
from ndakit.lab.network import LabNetwork
from ndakit.lab.plan import plan
from ndakit.model import Profile
from ndakit.verify import claims
from ndakit.verify.claims import limits
from ndakit.verify.claims.base import Outcome

HEAD = goldens.PROFILES["bakery"].read_text().partition("pools:")[0]
PAGE = (goldens.ROOT / "profiles/sorry.html").read_text()
NOBODY = SimpleNamespace(host="client", address=lambda version: "192.168.0.99")


def profile(service: str, sorry: str = "{page: sorry.html}") -> Profile:
    return goldens.parse(
        f"{HEAD}pools:\n  web: {{port: 80, check: http, sorry: {sorry}, servers: {{web1: 192.168.0.21}}}}\n"
        "  spare: {port: 80, check: http, servers: {spare1: 192.168.0.29}}\n"
        f"services: {{web: {{vip: www, port: 80, protocol: http, pool: web, {service}}}}}\n"
    )


class Lab:
    """A lab in which requests are answered by `answer`, and time does not pass."""

    def __init__(self, service: str, sorry: str = "{page: sorry.html}", **changed: Any) -> None:
        self.profile = profile(service, sorry)
        self.plan = plan(self.profile)
        self.path = "/"
        self.changed = changed
        self.asked = 0
        self.calls: list[SimpleNamespace] = []
        self.hosts = {"client": SimpleNamespace(call=self.call)}

    def client_for(self, *_: object) -> Any:
        return NOBODY

    def get(self, *_: object, headers: dict[str, str] | None = None, method: str = "GET") -> Any:
        self.asked += 1
        status, body = self.changed["answer"](self.asked, headers or {}, method)
        took_ms = 5000.0 if not status else 1.0
        error = "" if status else "time-out"
        return SimpleNamespace(status=status, body=body, error=error, server=body, took_ms=took_ms)

    def say(self, *_: object) -> Any:
        return SimpleNamespace(body=self.changed.get("said", "HTTP/1.1 411 Length Required"))

    def load(self, *_: object) -> LoadResult:
        return cast(LoadResult, self.changed["admin"])

    def pools_of(self, label: str) -> tuple[str, ...]:
        return {"spare1": ("spare",), "web1": ("web",)}.get(label, ())

    def call(self, *_: object, **__: object) -> Any:
        """`most` connections are answered; further ones wait for one to end (`beyond` silent), or are closed."""
        ended = [c for c in self.calls if c.ended]
        call = SimpleNamespace(ended=False, number=len(self.calls) - len(ended))
        self.calls.append(call)

        def heard() -> Any:
            place = [c for c in self.calls if not c.ended].index(call)
            if place < self.changed["most"]:
                return SimpleNamespace(heard=1, error="")
            return SimpleNamespace(heard=0, error="closed" if self.changed.get("beyond") == "closed" else "")

        def close(**_: object) -> None:
            call.ended = True

        call.heard, call.close = heard, close
        return call


@pytest.fixture(autouse=True)
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(limits, "time", SimpleNamespace(
        monotonic=lambda: now_s[0], sleep=lambda s: now_s.__setitem__(0, now_s[0] + s)))  # fmt: skip


def tried(name: str, service: str, sorry: str = "{page: sorry.html}", **changed: Any) -> Outcome:
    lab = Lab(service, sorry, **changed)
    claim = {c.name: c for c in claims.all_claims(lab.profile)}[name]
    return claim.run(cast(LabNetwork, lab))


# -- maintenance -------------------------------------------------------------------------------------------------------

WELL = LoadResult(4, {"web1": 4}, 0)


def test_a_page_for_strangers_and_the_site_for_admins_holds() -> None:
    outcome = tried("maintenance/web", "maintenance: true", answer=lambda *_: (503, PAGE), admin=WELL)
    assert outcome.ok, outcome
    assert outcome.figure == "strangers: status 503, the page, access.sources: web1"


@pytest.mark.parametrize(
    ("answer", "admin", "told"),
    [
        ((200, "web1"), WELL, "a stranger at 192.168.0.10: status 200, another text"),
        ((503, "no server"), WELL, "a stranger at 192.168.0.10: status 503, another text"),
        ((503, PAGE), LoadResult(4, {}, 4, "status 503"), "somebody of access.sources at 192.168.0.10: status 503"),
        ((503, PAGE), LoadResult(4, {"spare1": 4}, 0), "somebody of access.sources at 192.168.0.10: spare1"),
    ],
)  # fmt: skip
def test_who_gets_what_is_not_for_him_in_maintenance_is_found_out(
    answer: tuple[int, str], admin: LoadResult, told: str
) -> None:
    outcome = tried("maintenance/web", "maintenance: true", answer=lambda *_: answer, admin=admin)
    assert not outcome.ok and outcome.detail == told


def test_a_service_in_maintenance_is_asked_by_no_other_claim() -> None:
    settings = profile("maintenance: true")
    assert not {c.name for c in claims.all_claims(settings)} & {"service/web", "client-address/web", "sorry/web"}
    reasons = {one.name: one.reason for one in claims.left_out(settings)}
    assert reasons["service/web"] == "it is in maintenance, so that strangers do not reach its servers"
    assert reasons["sorry/web"] == reasons["service/web"]


# -- requests ----------------------------------------------------------------------------------------------------------

LIMIT = "limits: {requests: {count: 20, per_s: 10%s}}"


def after(count: int, excess: tuple[int, str], last: tuple[int, str] = (200, "web1")) -> Any:
    """Answers of which those after `count` are the excess, and one more is well again."""
    return lambda asked, *_: (200, "web1") if asked <= count else excess if asked == count + 1 else last


@pytest.mark.parametrize(
    ("on_excess", "excess"), [("", (429, "")), (", on_excess: tarpit", (0, "")), (", on_excess: sorry", (503, PAGE))]
)
def test_a_limit_of_requests_holds(on_excess: str, excess: tuple[int, str]) -> None:
    for count in (20, 25):
        outcome = tried("requests/web", LIMIT % on_excess, answer=after(count, excess))
        assert outcome.ok and outcome.values == {"passed": count}, outcome


def test_who_asks_too_often_gets_the_sorry_pool() -> None:
    limit = LIMIT % ", on_excess: sorry"
    assert tried("requests/web", limit, "{pool: spare}", answer=after(20, (200, "spare1"))).ok


@pytest.mark.parametrize(
    ("answer", "on_excess", "told"),
    [
        (lambda *_: (200, "web1"), "", "63 requests in a row were answered as if there were no limit"),
        (after(10, (429, "")), "", "request 11 was refused already: status 429"),
        (after(20, (429, ""), (429, "")), "", "the client is still refused after 20 s"),
        (after(20, (503, "other")), ", on_excess: sorry", "who asks too often gets status 503, not what sorry says"),
    ],
)
def test_a_limit_of_requests_that_is_not_kept_is_found_out(answer: Any, on_excess: str, told: str) -> None:
    outcome = tried("requests/web", LIMIT % on_excess, answer=answer)
    assert not outcome.ok and outcome.detail == told


def test_the_page_of_429_is_compared() -> None:
    pages = "error_pages: {'429': sorry.html}, " + LIMIT % ""
    assert tried("requests/web", pages, answer=after(20, (429, PAGE))).ok
    outcome = tried("requests/web", pages, answer=after(20, (429, "too many")))
    assert outcome.detail == "status 429 does not come with sorry.html"


@pytest.mark.parametrize(("count", "asked"), [(19, False), (200, True)])
def test_services_that_take_more_than_the_lab_asks_are_asked_by_all_claims(count: int, asked: bool) -> None:
    names = {c.name for c in claims.all_claims(profile(f"limits: {{requests: {{count: {count}, per_s: 1}}}}"))}
    assert ("service/web" in names) == asked


# -- bodies and pages --------------------------------------------------------------------------------------------------

BODY = "limits: {body_kib: 4}"


def bodies(over: int = 413, none: int = 200, page: str = "") -> Any:
    return lambda _, headers, __: (over, page) if headers.get("Content-Length") == "4097" else (none, "web1")


def test_a_limit_of_bodies_holds() -> None:
    outcome = tried("body/web", BODY, answer=bodies())
    assert outcome.ok and outcome.figure == "4097 bytes: 413, unknown: 411, none: 200"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"answer": bodies(over=0)}, "a body of 4097 bytes at 192.168.0.10 gets status 0"),
        ({"answer": bodies(), "said": "HTTP/1.1 200 OK"}, "a body of unknown size at 192.168.0.10 gets status 200"),
        ({"answer": bodies(), "said": ""}, "a body of unknown size at 192.168.0.10 gets status 0"),
        ({"answer": bodies(none=411)}, "no body at 192.168.0.10 gets status 411"),
    ],
)
def test_a_limit_of_bodies_that_is_not_kept_is_found_out(changed: dict[str, Any], told: str) -> None:
    outcome = tried("body/web", BODY, **changed)
    assert not outcome.ok and outcome.detail == told


def test_a_page_for_an_error_is_compared() -> None:
    service = "error_pages: {'413': sorry.html}, " + BODY
    assert tried("error-page/web/413", service, answer=bodies(page=PAGE)).ok
    assert tried("error-page/web/413", service, answer=bodies(page="413")).detail.endswith("status 413, another text")
    assert tried("error-page/web/413", service, answer=bodies(over=200)).detail.endswith("status 200, another status")
    unknown = "error_pages: {'421': sorry.html, '502': sorry.html}, hostnames: [shop.example], unknown_hosts: refuse"

    def by_name(_: int, headers: dict[str, str], __: str) -> tuple[int, str]:
        return (421, PAGE) if headers == {"Host": limits.UNKNOWN_NAME} else (200, "web1")

    assert tried("error-page/web/421", unknown, answer=by_name).ok
    assert "error-page/web/502" in {one.name for one in claims.left_out(profile(unknown))}


# -- connections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "beyond"), [("count", "silent"), ("per_client", "closed")])
def test_a_limit_of_connections_holds_and_one_more_or_less_is_found_out(key: str, beyond: str) -> None:
    service, name = f"limits: {{connections: {{{key}: 5}}}}", f"connections/web/{key.replace('_', '-')}"
    assert tried(name, service, most=5, beyond=beyond).ok
    assert "connection 6 " in tried(name, service, most=9, beyond=beyond).detail
    assert f"connection 5 of 5 was {beyond}" in tried(name, service, most=4, beyond=beyond).detail
    other = {"silent": "closed", "closed": "silent"}[beyond]
    assert other in tried(name, service, most=5, beyond=other).detail


def test_time_is_not_really_waited_for() -> None:
    started_s = time.monotonic()
    assert tried("requests/web", LIMIT % "", answer=after(20, (429, ""))).ok
    assert time.monotonic() - started_s < 10


def test_servers_that_stay_full_when_all_clients_have_gone_are_found_out() -> None:
    lab = Lab("limits: {queue: {length: 2}}", admin=LoadResult(1, {"spare1": 1}, 0))
    endpoint = lab.profile.endpoints("web")[0]
    assert limits._emptied(cast(LabNetwork, lab), "web", endpoint) is None
    lab.changed["admin"] = LoadResult(1, {"web1": 1}, 0)
    assert limits._emptied(cast(LabNetwork, lab), "web", endpoint) == 0
