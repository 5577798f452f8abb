"""How large: the load that a profile expects, and sysctl values of its own.

Owns the keys `sizing` and `tuning`; what is computed from them is in `capacity`, what the kernel knows in `sysctls`.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

from ndakit.model.base import Between, Int, Model, Number, mistake


class Sizing(Model):
    """The machine and the load. Limits and kernel values are computed from them; each key can be left out."""

    memory_mib: Annotated[Int, Between(64, 1_048_576, "MiB")] | None = None
    """Memory of each node in MiB; default 1024, on a Dockstar 128."""
    sessions_per_second: Annotated[Number, Between(0.1, 1_000_000)] | None = None
    """New connections of clients per second, over all services, at the busiest time; default 500, on a Dockstar 50."""
    session_duration_s: Annotated[Number, Between(0.001, 86_400, "s")] | None = None
    """How long a client's connection lasts on average, idle time included, in seconds; default 10."""


def _key(value: str) -> str:
    if not re.fullmatch(r"(net|vm|fs|kernel|dev)(\.[A-Za-z0-9_/-]{1,40}){1,6}", value):
        raise mistake(
            "sysctl-key", "'{got}' is not a kernel value that can be set", got=value[:80],
            fix="write its whole name with dots, such as net.ipv4.tcp_fin_timeout",
        )  # fmt: skip
    return value


def _value(value: str) -> str:
    if len(value) > 100 or not re.fullmatch(r"[A-Za-z0-9_.,:-]+([ \t]+[A-Za-z0-9_.,:-]+)*", value):
        raise mistake(
            "sysctl-value", "'{got}' is not a value that a kernel key can have", got=value[:60],
            fix="write numbers or words, with blanks between them: 20, or 4096 87380 6291456",
        )  # fmt: skip
    return " ".join(value.split())


class Tuning(Model):
    """Values that you set yourself instead of the computed ones."""

    sysctl: dict[
        Annotated[str, AfterValidator(_key)],
        Annotated[str, AfterValidator(_value), WithJsonSchema({"type": ["string", "number"]})],
    ] = Field(default={})
    """Kernel values beside, or instead of, the computed ones: `net.ipv4.tcp_fin_timeout: 20`. Values that would shut an
    admin out, such as `net.ipv4.conf.all.arp_ignore: 8`, are refused. If you set `net.ipv4.ip_local_port_range`, ndakit
    counts source ports with it."""
