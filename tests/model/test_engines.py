"""The engines' rows: each says everything, and nobody else asks which engine a service has."""

from dataclasses import replace
from typing import get_args

import pytest

import goldens
from comparisons import compared_with
from ndakit.core.mistakes import KeyPath
from ndakit.core.release import OLDEST
from ndakit.model import Profile, engines, rules
from ndakit.model.engines import ENGINES, Feature
from ndakit.model.persistence import TYPES as PERSISTENCES
from ndakit.model.traffic import Balance, Service
from places import ROOT

SOURCE = ROOT / "src" / "ndakit"
ROWS = "model/engines.py"
LISTS = "model/profile.py"
"""The module that makes the list of each engine's services."""


def values(model: type, key: str) -> set[str]:
    return set(get_args(model.model_fields[key].annotation))  # type: ignore[attr-defined]


def test_every_topology_has_a_carrier() -> None:
    carried = [name for engine in ENGINES for name in engine.topologies]
    assert set(carried) == values(Service, "topology")
    assert {engines.carrier(name).name for name in carried} == {engine.name for engine in ENGINES}
    with pytest.raises(KeyError):
        engines.carrier("sideways")


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_row_says_everything(engine: engines.Engine) -> None:
    assert set(engine.protocols) == values(Service, "protocol")
    assert set(engine.features) == set(get_args(Feature)), "a feature that nobody mentions would be ignored"
    assert set(engine.persistence) <= set(PERSISTENCES)
    assert set(engine.balance) <= set(get_args(Balance))
    words = set(engine.balance.values())
    assert set(engine.balance_since) | engine.weightless | engine.one_server | engine.refuses <= words
    assert engine.service and engine.packages and all(why for _, why in engine.packages)
    assert bool(engine.missing) == (engine.since != OLDEST), "what a release without it lacks"


def test_every_way_to_keep_a_server_has_an_engine() -> None:
    assert {word for engine in ENGINES for word in engine.persistence} == set(PERSISTENCES)


def test_every_way_to_choose_a_server_has_an_engine() -> None:
    assert {word for engine in ENGINES for word in engine.balance} == set(get_args(Balance))


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_what_an_engine_refuses_can_be_told(engine: engines.Engine) -> None:
    facts = dict.fromkeys(("service", "topology", "pool", "server", "or_topology", "or_write"), "X")
    for refused in (*engine.protocols.values(), *engine.features.values()):
        if refused is not None:
            assert "X" in refused.why.format(**facts) and refused.fix.format(**facts)


def test_a_feature_that_a_row_refuses_is_an_error_with_the_rows_words(monkeypatch: pytest.MonkeyPatch) -> None:
    bakery = goldens.PROFILES["bakery"].read_text()
    assert "protocol: http," in bakery
    profile = goldens.parse(bakery.replace("protocol: http,", "protocol: http, limits: {connections: {count: 9}},"))
    assert told(profile) == []
    refused = engines.Refused("no-limits", "service {service} ({topology}) has no limits{or_write}", "delete them")
    monkeypatch.setitem(engines.HAPROXY.features, "limits", refused)
    what = "service web (proxy) has no limits, or write topology: proxy"
    assert told(profile) == [("no-limits", what, ("services", "web", "limits"))]


def test_a_way_to_keep_a_server_that_a_row_does_not_have_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = (
        goldens.PROFILES["bakery"]
        .read_text()
        .replace("protocol: http,", "protocol: http, persistence: {type: source},")
    )
    profile = goldens.parse(kept)
    assert told(profile) == []
    without = replace(engines.HAPROXY, persistence=("cookie",))
    monkeypatch.setattr(engines, "ENGINES", (without, engines.IPVS))
    what = "service web keeps its clients' servers by source, which IPVS does and HAProxy does not"
    monkeypatch.setattr("ndakit.model.rules.persistence.ENGINES", engines.ENGINES)
    assert told(profile) == [("persistence-of-engine", what, ("services", "web", "persistence", "type"))]


def told(profile: Profile) -> list[tuple[str, str, KeyPath]]:
    return [(f.code, f.what, f.at) for f in rules.findings(profile) if f.severity == "error"]


def asked(source: str) -> list[int]:
    """The lines of a module that compare something with an engine, or with the topology that only one has."""
    return compared_with(source, engines.__name__, [engine.name for engine in ENGINES], more=["proxy"])


def test_a_question_for_an_engine_by_name_is_found() -> None:
    assert asked('if service.carried_by.name == "ipvs":\n    pass') == [1]
    assert asked('x = 1\nif topology in ("proxy", "tproxy"):\n    pass') == [2]
    assert asked("if service.carried_by is engines.HAPROXY:\n    pass") == [1]
    assert asked("from ndakit.model.engines import IPVS as KERNEL\nx = service.carried_by is KERNEL") == [2]
    assert asked('match name:\n    case "haproxy":\n        pass') == [2]
    assert asked('if service.topology == "nat":\n    pass') == []


def test_nobody_else_asks_which_engine_a_service_has() -> None:
    places = {p.relative_to(SOURCE).as_posix(): p.read_text() for p in SOURCE.rglob("*.py")}
    assert {ROWS, LISTS} <= places.keys()
    assert [f"{name}:{n}" for name, text in places.items() if name not in (ROWS, LISTS) for n in asked(text)] == []
