"""How long a server's death and return may go unnoticed: the bounds that verification holds the balancer to."""

from __future__ import annotations

import pytest

import goldens
from ndakit.load.json_schema import descriptions
from ndakit.model import Check, Profile
from ndakit.model.checks import HttpCheck, TcpCheck
from ndakit.render.engines.haproxy import haproxy
from ndakit.render.node import NodeView

TWO_USERS = """\
services:
  slow: {vip: www, port: 81, protocol: http, pool: first, timeouts: {connect_s: 0.5}}
  web: {vip: www, port: 80, protocol: http, pool: web, timeouts: {connect_s: 9}}
"""


def with_services(services: str) -> Profile:
    text = goldens.PROFILES["bakery"].read_text()
    text = text[: text.index("pools:")]
    return goldens.parse(
        text + "pools:\n"
        "  first: {port: 80, sorry: {pool: web}, servers: {f1: 192.168.0.31}}\n"
        "  web: {port: 80, check: {type: http, interval_s: 2, timeout_s: 3}, servers: {w1: 192.168.0.21}}\n"
        "  idle: {port: 80, servers: {i1: 192.168.0.41}}\n" + services
    )


@pytest.mark.parametrize(
    ("check", "connect_s", "attempt_s"),
    [
        (HttpCheck(interval_s=2, timeout_s=3), 5, 5),  # `inter` bounds connecting, the answer comes on top
        (HttpCheck(interval_s=2, timeout_s=3), 0.5, 3.5),  # `timeout connect` bounds it
        (HttpCheck(interval_s=10, timeout_s=0.25), 5, 5.25),
        (TcpCheck(interval_s=2, timeout_s=3), 5, 2),  # connected is good: no answer to wait for
        (TcpCheck(interval_s=2, timeout_s=3), 0.5, 0.5),
    ],
)
def test_an_attempt_lasts_as_long_as_connecting_and_the_answer_may(
    check: Check, connect_s: float, attempt_s: float
) -> None:
    assert check.attempt_s(connect_s) == attempt_s


def test_a_death_is_noticed_after_fall_intervals_each_with_its_attempt() -> None:
    check = HttpCheck(interval_s=2, timeout_s=3, fall=4)
    assert check.detection_s(5) == 4 * (2 + 2 + 3)
    assert TcpCheck(fall=3).detection_s(5) == 3 * (2 + 2)


def test_a_return_is_noticed_after_the_attempt_that_fails_still_and_rise_good_ones() -> None:
    check = HttpCheck(interval_s=2, timeout_s=3, rise=2)
    assert check.recovery_s(0.5) == 3.5 + 2 * (2 + 3.5)
    assert TcpCheck(rise=1).recovery_s(5) == 2 + (2 + 2)


@pytest.mark.parametrize("services", [TWO_USERS, "\n".join(["services:", *TWO_USERS.splitlines()[:0:-1]])])
def test_the_time_out_for_connecting_is_that_of_the_backend_that_checks(services: str) -> None:
    profile = with_services(services)
    backends = {b.pool: b for b in haproxy(NodeView(profile, "lb1")).backends if b.checked}
    assert set(backends) == {"first", "web"}
    for pool, backend in backends.items():
        assert profile.detection_s(pool) == backend.check.detection_s(backend.timeouts.connect_s)
        assert profile.recovery_s(pool) == backend.check.recovery_s(backend.timeouts.connect_s)


def test_the_first_service_in_the_profile_decides_about_a_shared_pool() -> None:
    assert with_services(TWO_USERS).detection_s("web") == 3 * (2 + 0.5 + 3)
    assert with_services("\n".join(["services:", *TWO_USERS.splitlines()[:0:-1]])).detection_s("web") == 3 * (2 + 2 + 3)


def test_a_pool_that_no_service_uses_has_the_default_time_out() -> None:
    assert with_services(TWO_USERS).detection_s("idle") == 3 * (2 + 2)


def test_the_figures_of_the_documentation() -> None:
    told = " ".join(descriptions(Check)["fall"].split())
    connect_s = 5.0
    for check, words in (
        (TcpCheck(), "12 s (tcp)"),
        (HttpCheck(), "18 s (http)"),
        (TcpCheck(interval_s=30), "105 s"),
        (TcpCheck(interval_s=30, retry_delay_s=1), "47 s (tcp, HAProxy)"),
    ):
        assert f"{check.detection_s(connect_s):.0f} s" == " ".join(words.split()[:2])
        assert words in told
