"""Connections that a lab host keeps, as this side sees them: asked over again and again, or open for anything."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ndakit.lab.host import request
from ndakit.lab.host.channel import MARGIN_S
from ndakit.lab.host.closing import Lasting
from ndakit.lab.host.measure import Answer

_NEW, _ENDED = 0, -1


class Kept(Lasting):
    """A connection that lasts until it fails or is closed; a context manager that closes it at its end."""

    def __init__(self, ask: Callable[..., Any]) -> None:
        self._ask = ask
        self._number = _NEW

    def close(self, *, reset: bool = False) -> None:
        """End it: by FIN, or with `reset` by RST; nothing happens if it has ended."""
        if self._number > 0:
            self._ask("close", connection=self._number, reset=reset)
            self._number = _ENDED


class Held(Kept):
    """A connection over which a host asked once (HTTP, keep-alive), and asks again when told.

    Nothing goes over it in between. `first` is the answer that came when it was opened; `is_open` says whether there is
    a connection still, as far as the host has noticed.
    """

    def __init__(self, ask: Callable[..., Any], target: dict[str, Any], timeout_s: float) -> None:
        super().__init__(ask)
        self._target = target
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

    def _request(self, timeout_s: float) -> Answer:
        within_s = timeout_s + MARGIN_S
        given = self._ask("hold", within_s=within_s, **self._target, connection=self._number, timeout_s=timeout_s)
        self._number = given["connection"] or _ENDED
        return Answer.of(given)


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


class Call(Kept):
    """A TCP connection over which anything can be said at any time."""

    def __init__(
        self, ask: Callable[..., Any], target: dict[str, Any], timeout_s: float, *, unread: bool = False
    ) -> None:
        super().__init__(ask)
        self._number = ask("call", **target, timeout_s=timeout_s, unread=unread)["connection"]

    def say(self, data: bytes) -> None:
        """Send something. Raises LabHostRefused if the connection has ended."""
        self._ask("say", connection=self._number, payload=request.text(data))

    def read(self) -> tuple[bytes, str]:
        """All that came since this was asked last (if the call was made with `unread`), and why it ended ("": it did
        not)."""
        came = self._ask("read", connection=self._number)
        return base64.b64decode(came["payload"]), came["error"] or ""

    def heard(self, *, anew: bool = False) -> Heard:
        """What came so far; with `anew` the longest silence counts from now on. Raises LabHostRefused once closed."""
        return Heard(**self._ask("heard", connection=self._number, anew=anew))
