"""`smtp`: the mail server greets and takes HELO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from ndakit.core.names import HostName
from ndakit.core.release import OLDEST
from ndakit.model.checks.base import Lie, PortCheck, Speaks
from ndakit.model.engines import HAPROXY, IPVS, Branch

NO_SERVICE = 554
"""The greeting of a mail server that takes no mail (RFC 5321, 3.1)."""


class SmtpCheck(PortCheck):
    """The mail server greets and takes HELO (behind topology nat, dr and tun with one line each: keepalived takes
    `220-` for a failure)."""

    carried: ClassVar[Mapping[str, Branch]] = {HAPROXY.name: OLDEST, IPVS.name: OLDEST}
    keepalived_answers: ClassVar[int] = 4  # connecting, greeting, HELO, QUIT (check_smtp.c)

    type: Literal["smtp"] = "smtp"
    """`smtp`"""
    helo: HostName | None = None
    """The name in the HELO, default the node's host name."""

    def offered(self, *, datagrams: bool) -> tuple[Speaks, ...]:
        """What a server of the lab that is well says."""
        return (Speaks("smtp"),)

    def lie(self) -> Lie | None:
        """It greets, and says that it serves nobody."""
        return Lie(Speaks("smtp", code=NO_SERVICE))
