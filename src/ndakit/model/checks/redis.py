"""`redis`: the server answers PING."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from ndakit.core.release import OLDEST
from ndakit.model.checks.base import Lie, PortCheck, Speaks
from ndakit.model.engines import HAPROXY, Branch

PING, PONG = b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n"
"""What HAProxy says, and what it waits for (configuration manual, "option redis-check")."""
LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"
"""What a server answers that has just started, and cannot be used yet."""


class RedisCheck(PortCheck):
    """The server answers PING with PONG: it runs, and has loaded its data. A server that wants a password first counts
    as dead. For services of topology proxy: keepalived can only connect."""

    carried: ClassVar[Mapping[str, Branch]] = {HAPROXY.name: OLDEST}

    type: Literal["redis"] = "redis"
    """`redis`"""

    def offered(self, *, datagrams: bool) -> tuple[Speaks, ...]:
        """What a server of the lab that is well says."""
        return (Speaks("tcp", exchanges=((PING, PONG),), quiet=True),)

    def lie(self) -> Lie | None:
        """It still loads its data."""
        return Lie(Speaks("tcp", exchanges=((PING, LOADING),), quiet=True))
