"""An end to an HTTP answer as a whole: a server that sends a byte now and then never meets a socket's own time limit.

requests and urllib3 limit each wait for bytes, not the sum of them (requests, "Timeouts"). Here each piece that comes
is compared with one moment, the status line and the header lines included, which the library reads by itself.
"""

from __future__ import annotations

import http.client
import io
import time
from typing import TYPE_CHECKING, Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

if TYPE_CHECKING:
    from collections.abc import Callable

    import requests


class Limit:
    """When the answer has to be there (`time.monotonic`); None for no such moment. May be changed meanwhile."""

    def __init__(self, until_s: float | None) -> None:
        self.until_s = until_s
        self._answers: list[http.client.HTTPResponse] = []

    def opened(self, answer: http.client.HTTPResponse) -> None:
        """Remember an answer that is read under this limit."""
        self._answers.append(answer)

    def close(self) -> None:
        """Close all answers. requests closes none whose next address it cannot read."""
        for answer in self._answers:
            answer.close()

    def passed(self) -> bool:
        """True if the answer should have been there by now."""
        return self.until_s is not None and time.monotonic() > self.until_s


def bound(session: requests.Session, limit: Limit) -> None:
    """Let all answers of a session end with TimeoutError when the limit has passed (urllib3: ReadTimeoutError)."""
    adapter = _Adapter(limit)
    session.mount("http://", adapter)
    session.mount("https://", adapter)


class _Reader(io.RawIOBase):
    """A socket's file that looks at the clock with each piece."""

    def __init__(self, raw: io.RawIOBase, limit: Limit) -> None:
        self._raw = raw
        self._limit = limit

    def readable(self) -> bool:
        """It is for nothing else."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read what is there. Raises TimeoutError."""
        count = self._raw.readinto(buffer)
        if self._limit.passed():
            raise TimeoutError("the answer as a whole takes too long")
        return count

    def close(self) -> None:
        """Close the socket's file as well."""
        self._raw.close()
        super().close()


def _responses(limit: Limit) -> Callable[..., http.client.HTTPResponse]:
    def response(*args: Any, **more: Any) -> http.client.HTTPResponse:
        made = http.client.HTTPResponse(*args, **more)
        made.fp = io.BufferedReader(_Reader(made.fp.detach(), limit))
        limit.opened(made)
        return made

    return response


class _Adapter(HTTPAdapter):
    """requests' way to connect, with connections whose answers are bounded."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        super().__init__()

    def init_poolmanager(self, *args: Any, **more: Any) -> None:
        """As the base class does, with our connections."""
        super().init_poolmanager(*args, **more)
        _use(self.poolmanager, self._limit)

    def proxy_manager_for(self, *args: Any, **more: Any) -> Any:
        """The same for connections through a proxy."""
        manager = super().proxy_manager_for(*args, **more)
        _use(manager, self._limit)
        return manager


def _use(manager: Any, limit: Limit) -> None:
    """Make a pool manager of urllib3 use connections that read through `_Reader`."""
    bounded = staticmethod(_responses(limit))
    plain = type("_Plain", (HTTPConnection,), {"response_class": bounded})
    tls = type("_Tls", (HTTPSConnection,), {"response_class": bounded})
    manager.pool_classes_by_scheme = {
        "http": type("_PlainPool", (HTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("_TlsPool", (HTTPSConnectionPool,), {"ConnectionCls": tls}),
    }
