"""`ping`: the host answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from ndakit.model.checks.base import Check, Lie, Speaks
from ndakit.model.engines import IPVS, Branch


class PingCheck(Check):
    """The host answers. For services of topology nat, dr and tun, and for a pool that no service uses and
    `vrrp.demote_on` names."""

    carried: ClassVar[Mapping[str, Branch]] = {IPVS.name: (21, 2)}  # PING_CHECK is new in keepalived 2.2.0
    needs_port: ClassVar[bool] = False
    stands_alone: ClassVar[bool] = True

    type: Literal["ping"] = "ping"
    """`ping`"""

    def offered(self, *, datagrams: bool) -> tuple[Speaks, ...]:
        """Nothing: no port is asked."""
        return ()

    def lie(self) -> Lie | None:
        """Everything is answered but pings."""
        return Lie(deaf=True)
