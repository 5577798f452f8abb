"""What a service takes at most, and the pages that its clients get in place of HAProxy's own errors.

Sources: HAProxy's configuration manual, `maxconn`, `rate-limit sessions`, `stick-table`, `queue`, `req.body_size`,
`errorfile`. Which statuses take a page was seen with HAProxy 2.6 (docs/facts.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from ndakit.model.base import AttachedFile, Between, Int, Model, mistake

ERROR_STATUSES: Mapping[int, str] = {
    403: "HAProxy refuses the request: a header in disguise, with a release before 22.03",
    413: "the body is larger than `limits.body_kib`",
    421: "the name is unknown, with `unknown_hosts: refuse`",
    429: "a client asks too often (`limits.requests`)",
    500: "a request ends in the tarpit, or HAProxy fails inside",
    502: "a server's answer cannot be understood, or breaks off before it begins",
    503: "no server is left, or none answers a connection in time",
    504: "a server answers too late (`timeouts.server_s`)",
}
"""Every status that HAProxy sends by itself and whose page a profile can replace, and when HAProxy sends it."""

OWN_TEXT = {
    400: "a request that HAProxy cannot read", 408: "a client that does not finish its request",
}  # fmt: skip
"""Statuses that HAProxy sends before it has a request: with a text of its own, whatever `errorfile` says."""


class ConnectionLimit(Model):
    """How many connections of clients a service has."""

    count: Annotated[Int, Between(1, 1_000_000)] | None = None
    """So many at once, those of all clients together. Further clients wait, without an answer, until a connection
    ends."""
    per_s: Annotated[Int, Between(1, 1_000_000)] | None = None
    """So many new ones in a second, those of all clients together. Further clients wait until the next second."""
    per_client: Annotated[Int, Between(1, 1_000_000)] | None = None
    """So many at once from one address (IPv6: from one /64; OpenWrt 18.06: from one address). Further ones are closed
    at once. Clients behind one NAT are one address. With `terminator: stunnel` they are closed after the handshake of
    TLS. Not with `terminator: pound`."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.count is None and self.per_s is None and self.per_client is None:
            raise mistake("missing-key", "no limit is stated", fix="write count: 1000, per_s: 100 or per_client: 50")
        if self.count is not None and self.per_client is not None and self.per_client > self.count:
            raise mistake(
                "limit-order", "per_client {one} is above count {all}", one=self.per_client, all=self.count,
                fix="write per_client below count, or leave it out",
            )  # fmt: skip
        return self


class RequestLimit(Model):
    """How often one client may ask: `count` requests in `per_s` seconds, by its address (IPv6: by its /64; OpenWrt
    18.06: by its address)."""

    count: Annotated[Int, Between(1, 1_000_000)]
    """So many requests. Those that are refused count as well: who goes on asking stays out."""
    per_s: Annotated[Int, Between(1, 3600, "s")] = 1
    """In so many seconds, which slide: HAProxy takes the part of the period before that still belongs to them."""
    on_excess: Literal["429", "tarpit", "sorry"] = "429"
    """What further requests get: `429` at once (Too Many Requests), `tarpit` a 500 after 30 seconds, `sorry` what the
    pool's `sorry` says."""


class QueueLimit(Model):
    """How many requests may wait for a server that has `max_connections` already (`timeouts.queue_s` says how long)."""

    length: Annotated[Int, Between(1, 1_000_000)]
    """So many wait at most, those of other services that share the pool in the same way included."""
    on_full: Literal["sorry"] = "sorry"
    """What further ones get at once: what the pool's `sorry` says; without one HAProxy's plain 503 (tcp: the
    connection is closed)."""


class Limits(Model):
    """What a service takes at most (topology proxy and tproxy). A request's head may have 15 KiB and 101 lines anyway:
    HAProxy answers a larger one with status 400."""

    connections: ConnectionLimit | None = None
    """Clients' connections to this service; default: as many as HAProxy holds for all services (`sizing`)."""
    requests: RequestLimit | None = None
    """http: requests of one client; default: no limit."""
    queue: QueueLimit | None = None
    """Requests that wait for a server; default: no limit. Needs `max_connections` of the servers: without it nobody
    waits. tcp: connections."""
    body_kib: Annotated[Int, Between(1, 16_777_216, "KiB")] | None = None
    """http: a request whose body is larger gets status 413 and reaches no server. One that does not say how large it is
    (chunked) gets 411, because HAProxy cannot count. OpenWrt 22.03 and later; default: no limit."""


def _error_status(value: str) -> str:
    if value.isascii() and value.isdigit() and int(value) in ERROR_STATUSES:
        return value
    taken = ", ".join(map(str, ERROR_STATUSES))
    if value in map(str, OWN_TEXT):
        raise mistake(
            "error-status", "{got} takes no page: {what} always gets HAProxy's own text", got=value,
            what=OWN_TEXT[int(value)], fix=f"leave it out; statuses with pages are {taken}",
        )  # fmt: skip
    raise mistake(
        "error-status", "'{got}' is no status that HAProxy sends by itself", got=value[:40],
        fix=f"write one of {taken}; pages for a server's own errors belong on the server",
    )  # fmt: skip


ErrorPages = dict[Annotated[str, AfterValidator(_error_status)], AttachedFile]
"""Status → the page that clients get with it."""
