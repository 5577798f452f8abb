"""`dns`: the name server answers a query."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from ndakit.core.release import OLDEST
from ndakit.model.base import mistake
from ndakit.model.checks.base import Lie, PortCheck, Speaks
from ndakit.model.engines import IPVS, Branch

SERVER_FAILURE = 2
"""RFC 1035, 4.1.1."""


def _dns_name(value: str) -> str:
    if not re.fullmatch(r"\.|([a-z0-9_][a-z0-9_-]{0,62}\.)*[a-z0-9_][a-z0-9_-]{0,62}", value) or len(value) > 253:
        raise mistake(
            "dns-name", "'{got}' is not a name in the DNS", got=value[:60],
            fix="write lower-case letters, digits, '-', '_' and '.', such as example.com, or . for the root",
        )  # fmt: skip
    return value


class DnsCheck(PortCheck):
    """The name server answers a query. For services of topology nat, dr and tun."""

    carried: ClassVar[Mapping[str, Branch]] = {IPVS.name: OLDEST}

    type: Literal["dns"] = "dns"
    """`dns`"""
    query: Annotated[str, AfterValidator(_dns_name)] | None = None
    """The name that is asked for, default `.`, the root."""
    record: Literal["SOA", "A", "AAAA", "NS", "CNAME", "MX", "TXT"] | None = None
    """The kind of record, default SOA."""

    def offered(self, *, datagrams: bool) -> tuple[Speaks, ...]:
        """What a server of the lab that is well says."""
        return (Speaks("udp"),)

    def lie(self) -> Lie | None:
        """It answers that it failed."""
        return Lie(Speaks("udp", code=SERVER_FAILURE))
