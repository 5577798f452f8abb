"""The terminators' rows: each says everything, and nobody else asks which terminator a service has."""

from typing import get_args

import pytest

import goldens
from comparisons import compared_with
from ndakit.core.release import OLDEST
from ndakit.model import package_needs, terminators
from ndakit.model.terminators import HAPROXY, IN_FRONT, TERMINATORS, Terminator, Wanted
from ndakit.model.tls import Tls
from places import ROOT

SOURCE = ROOT / "src" / "ndakit"
ROWS, LISTS = "model/terminators.py", "model/profile.py"


def asked(source: str) -> list[int]:
    """The lines of a module that compare something with a terminator in front of HAProxy."""
    return compared_with(source, terminators.__name__, [row.name for row in IN_FRONT])


def test_every_word_of_the_profile_has_a_row() -> None:
    assert set(TERMINATORS) == set(get_args(Tls.model_fields["terminator"].annotation))
    assert [row for row in TERMINATORS.values() if not row.in_front] == [HAPROXY]


@pytest.mark.parametrize("row", IN_FRONT, ids=lambda row: row.name)
def test_a_row_says_everything(row: Terminator) -> None:
    assert row.lacks.keys() <= set(get_args(Wanted)), "a lack that nobody mentions would be ignored"
    assert all(HAPROXY.carries(wanted) for wanted in row.lacks), "HAProxy is what errors name instead"
    assert row.service and row.configuration.startswith("/etc/") and row.tells_client and row.connection_bytes
    assert row.packages and all(why for _, why in row.packages)
    assert bool(row.missing) == (row.since != OLDEST), "what a release without it lacks"


def test_each_terminator_brings_its_own_package_and_port_and_no_other() -> None:
    profile = goldens.profile("stunnel")
    assert [row.name for row in profile.terminators] == ["pound", "stunnel"]
    assert {"pound", "stunnel"} <= package_needs.needed(profile).keys()
    assert {"pound", "stunnel"}.isdisjoint(package_needs.needed(goldens.profile("tls")))
    assert package_needs.place_of(profile, "stunnel") == ("services", "shop", "tls", "terminator")
    assert dict(profile.inner_ports) == {"shop": 10443, "imaps": 10444, "old": 10445, "marked": 10446}


def test_a_question_for_a_terminator_by_name_is_found() -> None:
    assert asked('if tls.terminator == "pound":\n    pass') == [1]
    assert asked("x = 1\nif tls.ended_by is terminators.STUNNEL:\n    pass") == [2]
    assert asked("from ndakit.model.terminators import POUND as P\nx = tls.ended_by is P") == [2]
    assert asked('if tls.ended_by.carries("h2"):\n    pass') == []


def test_nobody_else_asks_which_terminator_a_service_has() -> None:
    places = {p.relative_to(SOURCE).as_posix(): p.read_text() for p in SOURCE.rglob("*.py")}
    assert {ROWS, LISTS} <= places.keys()
    assert [f"{name}:{n}" for name, text in places.items() if name not in (ROWS, LISTS) for n in asked(text)] == []
