"""What every type of health check has to state about itself."""

from __future__ import annotations

import inspect

import pytest

from ndakit.model.checks import TYPES, Check, Lie, Speaks
from ndakit.model.checks.base import PortCheck
from ndakit.model.checks.text import ExchangeCheck


class Silent(PortCheck):
    """A type that does not say how its server lies."""

    def offered(self, *, datagrams: bool) -> tuple[Speaks, ...]:
        return ()


class Speechless(ExchangeCheck):
    """A type that does not say which reply it wants."""

    def offered(self, *, datagrams: bool) -> tuple[Speaks, ...]:
        return ()

    def lie(self) -> Lie | None:
        return None


@pytest.mark.parametrize(
    ("kind", "lacks"), [(Check, {"lie", "offered"}), (Silent, {"lie"}), (Speechless, {"reply_text"})]
)
def test_a_type_that_leaves_something_out_cannot_be_made(kind: type[Check], lacks: set[str]) -> None:
    assert kind.__abstractmethods__ == lacks
    with pytest.raises(TypeError, match="abstract class"):
        kind()


def test_no_type_of_the_profile_leaves_anything_out() -> None:
    assert TYPES
    assert [word for word, kind in TYPES.items() if inspect.isabstract(kind)] == []
