"""A connection that a lab host keeps open, as this side sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ndakit.lab_host.measure import Answer

_QUICK_S = 20.0
_MARGIN_S = 15.0
_NEW, _ENDED = 0, -1


class Held:
    """A connection over which a host asked once (HTTP, keep-alive), and asks again when told.

    Nothing goes over it in between. `first` is the answer that came when it was opened; `is_open` says whether there is
    a connection still, as far as the host has noticed.
    """

    def __init__(self, ask: Callable[..., Any], target: dict[str, Any], timeout_s: float) -> None:
        self._ask = ask
        self._target = target
        self._number = _NEW
        self.first = self._request(timeout_s)

    @property
    def is_open(self) -> bool:
        """False once it was closed, or a request over it has failed."""
        return self._number > 0

    @property
    def server(self) -> str:
        """Who answered at first; "" if nobody did."""
        return self.first.server

    def again(self, timeout_s: float = 5.0) -> Answer:
        """Another request over the same connection. Raises LabHostRefused if it has ended."""
        return self._request(timeout_s)

    def close(self, *, reset: bool = False) -> None:
        """End it: by FIN, or with `reset` by RST."""
        if self.is_open:
            self._ask("let_go", within_s=_QUICK_S, held=self._number, reset=reset)
            self._number = _ENDED

    def _request(self, timeout_s: float) -> Answer:
        within_s = timeout_s + _MARGIN_S
        given = self._ask("hold", within_s=within_s, **self._target, held=self._number, timeout_s=timeout_s)
        self._number = given["held"] or _ENDED
        return Answer.of(given)
