"""A connection of a lab host over which anything can be said at any time, as this side sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from ndakit.errors import NdakitError
from ndakit.lab_host import request

_QUICK_S = 20.0


@dataclass(frozen=True)
class Heard:
    """What came over a call: `heard` bytes in all, of which the first and the last ones are kept as text.

    `silent_ms` is how long nothing has come up to now, `longest_ms` how long at most since that was last begun anew.
    `error` is "" while the connection lasts, as far as the host has noticed.
    """

    heard: int
    first: str
    last: str
    silent_ms: float
    longest_ms: float
    error: str


class Call:
    """A TCP connection that lasts; a context manager that hangs up at its end."""

    def __init__(self, ask: Callable[..., Any], target: dict[str, Any], timeout_s: float) -> None:
        self._ask = ask
        self._number = ask("call", within_s=_QUICK_S, **target, timeout_s=timeout_s)["call"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.hang_up()
        else:  # what went wrong is told, not that the call could not be ended after it
            with contextlib.suppress(NdakitError):
                self.hang_up()

    def say(self, data: bytes) -> None:
        """Send something. Raises LabHostRefused if the connection has ended."""
        self._ask("say", within_s=_QUICK_S, call=self._number, payload=request.text(data))

    def heard(self, *, anew: bool = False) -> Heard:
        """What came so far; with `anew` the longest silence counts from now on."""
        return Heard(**self._ask("heard", within_s=_QUICK_S, call=self._number, anew=anew))

    def hang_up(self) -> None:
        """End it."""
        self._ask("hang_up", within_s=_QUICK_S, call=self._number)
