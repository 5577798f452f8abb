"""Health checks: one file for each type, and the union of them all, told apart by `type`.

A new type is a file here, a line in `AnyCheck`, and a template for each engine that carries it (templates/checks/).
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import Discriminator, Tag

from ndakit.core.release import Release
from ndakit.model.checks.base import Check, Lie, Page, Speaks
from ndakit.model.checks.dns import DnsCheck
from ndakit.model.checks.http import HttpCheck, HttpExpect, HttpsCheck
from ndakit.model.checks.ping import PingCheck
from ndakit.model.checks.redis import RedisCheck
from ndakit.model.checks.script import ScriptCheck
from ndakit.model.checks.smtp import SmtpCheck
from ndakit.model.checks.tcp import TcpCheck, TcpExpect
from ndakit.model.checks.udp import UdpCheck, UdpExpect
from ndakit.model.engines import Engine

__all__ = [
    "TYPES",
    "AnyCheck",
    "Check",
    "DnsCheck",
    "HttpCheck",
    "HttpExpect",
    "HttpsCheck",
    "Lie",
    "Page",
    "PingCheck",
    "RedisCheck",
    "ScriptCheck",
    "SmtpCheck",
    "Speaks",
    "TcpCheck",
    "TcpExpect",
    "UdpCheck",
    "UdpExpect",
    "types_of",
]


def _class_of(value: Any) -> str:
    """The name of the class for a check as it is written: its type alone, or a mapping, whose type is tcp by
    default."""
    if isinstance(value, Check):
        return type(value).__name__
    kind = value.get("type", "tcp") if isinstance(value, dict) else value
    known = TYPES.get(kind) if isinstance(kind, str) else None
    return known.__name__ if known is not None else f"no type: {kind}"


# The tags are no words of a profile, so that nobody takes them for keys: `script` is a type and a key of it.
AnyCheck = Annotated[
    Annotated[TcpCheck, Tag("TcpCheck")]
    | Annotated[HttpCheck, Tag("HttpCheck")]
    | Annotated[HttpsCheck, Tag("HttpsCheck")]
    | Annotated[SmtpCheck, Tag("SmtpCheck")]
    | Annotated[RedisCheck, Tag("RedisCheck")]
    | Annotated[DnsCheck, Tag("DnsCheck")]
    | Annotated[UdpCheck, Tag("UdpCheck")]
    | Annotated[PingCheck, Tag("PingCheck")]
    | Annotated[ScriptCheck, Tag("ScriptCheck")],
    Discriminator(_class_of),
]
"""A check of any type."""

TYPES: dict[str, type[Check]] = {
    check.model_fields["type"].default: check for check in (get_args(t)[0] for t in get_args(get_args(AnyCheck)[0]))
}
"""Every type by its word in the profile."""


def types_of(engine: Engine, release: Release | None = None) -> tuple[str, ...]:
    """The types that an engine carries, in a release or in any."""
    return tuple(
        word
        for word, kind in TYPES.items()
        if engine.name in kind.carried and (release is None or kind.carried[engine.name] <= release.branch)
    )
