"""How a client keeps its server: one class for each type of persistence, and the union of them all, told apart by
`type`. No I/O.

Sources: HAProxy's configuration manual ("cookie", "stick-table", "stick on", "persist rdp-cookie"), RFC 6265 (cookies)
and RFC 9110, 5.6.2 (names of headers and cookies).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, Discriminator, Tag, model_validator

from ndakit.model.base import Between, Bool, Int, Model, mistake

LONGEST_S = 1_209_600
"""Two weeks: HAProxy keeps times as milliseconds in 31 bits, which end after 24 days."""
COOKIE_TABLE_S = 3600
"""How long an application's own cookie is remembered unless the profile says otherwise, in seconds."""
HASH_BYTES = 20
"""Length of a SHA-1, which stands for a client's words in tables."""
SESSION_BYTES = 32
"""The longest id of a TLS session (RFC 5246, 7.4.1.2)."""


def _word(code: str, kind: str, example: str, pattern: str) -> AfterValidator:
    """A name that is one plain word in every place of haproxy.cfg in which it is written."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise mistake(code, "'{got}' is not taken as the name of a {kind}", got=value[:60], kind=kind, fix=example)
        return value

    return AfterValidator(check)


CookieName = Annotated[
    str,
    _word("cookie-name", "cookie", "write 1 to 64 letters, digits and . _ -, such as SRV", r"[A-Za-z0-9_.-]{1,64}"),
]
HeaderName = Annotated[
    str,
    _word("header-name", "header", "write 1 to 64 letters, digits, _ and -, such as X-User", r"[A-Za-z0-9_-]{1,64}"),
]
ParameterName = Annotated[
    str,
    _word(
        "parameter-name", "parameter", "write 1 to 64 letters, digits and . _ ~ -, such as session",
        r"[A-Za-z0-9_.~-]{1,64}",
    ),
]  # fmt: skip


class Persistence(Model):
    """A client keeps its server. These are the keys of every type; each type has more."""

    protocols: ClassVar[tuple[str, ...]] = ("http", "tcp", "udp")
    """The protocols in which clients show what they are known by."""
    by_address: ClassVar[bool] = False
    """True if a client is known by its address alone, whatever it sends."""

    type: str
    """By what a client is known."""
    on_failure: Literal["reassign", "refuse"] = "reassign"
    """What becomes of a client whose server has left the pool. `reassign`: it gets another one, and keeps that.
    `refuse`: it is turned away until its server is back (http: status 503, with the sorry page of the pool; tcp: the
    connection is closed), because no other server knows what it was doing. When all servers are gone, `sorry` counts
    for everybody. `refuse` needs topology proxy or tproxy."""

    @model_validator(mode="before")
    @classmethod
    def _type_is_stated(cls, value: Any) -> Any:
        if isinstance(value, dict) and "type" not in value:
            raise mistake("missing-key", "'type' is missing", fix=f"add type: {', '.join(TYPES)}; for example source")
        return value

    @property
    def table_s(self) -> int | None:
        """Seconds for which the balancers remember a client after its last connection; None if they need not."""
        return None

    @property
    def refuses(self) -> bool:
        """True if a client whose server has left the pool is turned away."""
        return self.on_failure == "refuse"


class TablePersistence(Persistence):
    """A client is remembered in a table, by something that it says."""

    timeout_s: Annotated[Int, Between(1, LONGEST_S, "s")] = 3600
    """Seconds for which it is remembered after its last connection or request."""

    @property
    def table_s(self) -> int | None:
        return self.timeout_s


class SourcePersistence(TablePersistence):
    """Who comes from the same address gets the same server."""

    by_address: ClassVar[bool] = True

    type: Literal["source"] = "source"
    """`source`: who comes from the same address gets the same server. Clients behind one NAT are one client."""
    timeout_s: Annotated[Int, Between(1, 86400, "s")] = 300
    """Seconds for which this is remembered, counted from the beginning of the client's last connection. With topology
    nat, dr and tun at least as long as the kernel remembers a connection of the client: two minutes after its end."""
    netmask: Annotated[Int, Between(8, 32, "bits")] = 32
    """How many bits of an IPv4 address count: with 24, all of a /24 get the same server."""
    netmask_ipv6: Annotated[Int, Between(16, 128, "bits")] = 128
    """How many bits of an IPv6 address count."""

    def bits(self, version: int) -> int:
        """How many bits of an address of an IP version count."""
        return self.netmask if version == 4 else self.netmask_ipv6


class CookiePersistence(Persistence):
    """A cookie says which server it is."""

    protocols: ClassVar[tuple[str, ...]] = ("http",)

    type: Literal["cookie"] = "cookie"
    """`cookie`: a cookie says which server it is; http only. It is the only one that tells clients behind one NAT apart
    and needs no table: any balancer reads it, also after a failover and a restart."""
    name: CookieName
    """The cookie's name: with `insert` one that your application does not have, else one of its own (JSESSIONID). Upper
    and lower case differ."""
    mode: Literal["insert", "prefix", "existing"] = "insert"
    """`insert`: HAProxy sets a cookie of its own, which servers do not see (`indirect`) and scripts in the page do not
    either (`httponly`); answers with it are not for caches (`nocache`). `prefix`: HAProxy writes the server's name
    before the value of a cookie that the application sets, and takes it off again; for clients that take one cookie
    only. `existing`: a cookie that the application sets stays as it is, and the balancers remember who set it, in a
    table, as its SHA-1; the nodes tell each other with `vrrp.connection_sync`."""
    max_idle_s: Annotated[Int, Between(1, LONGEST_S, "s")] | None = None
    """Seconds without a request after which a client may get another server. `insert`: default none, the cookie counts
    until the browser is closed. `existing`: the time in the table, default 3600."""
    max_life_s: Annotated[Int, Between(1, LONGEST_S, "s")] | None = None
    """`insert`: seconds after its first request at which a client may get another server, however busy it is."""
    secure: Bool | None = None
    """`insert`: browsers send the cookie over TLS only. Default: true where the service has `tls`, and false is then
    refused. True without `tls` is for a TLS proxy before the balancer, and is told."""
    same_site: Literal["lax", "strict", "none"] | None = None
    """`insert`: whether the cookie comes along with requests that another site's page makes (SameSite). `none` needs
    TLS. Releases before 21.02 cannot say it; browsers take `lax` where nothing is said."""

    @model_validator(mode="after")
    def _keys_of_mode(self) -> Self:
        ours = {"max_idle_s", "max_life_s", "secure", "same_site"} - (
            {"max_idle_s"} if self.mode == "existing" else set()
        )
        stated = sorted(key for key in ours if getattr(self, key) is not None)
        if self.mode != "insert" and stated:
            raise mistake(
                "cookie-mode", "mode {mode} leaves the cookie to the application, and '{key}' is about one of "
                "HAProxy's own", mode=self.mode, key=stated[0], fix=f"leave {stated[0]} out, or write mode: insert",
            )  # fmt: skip
        if self.refuses and self.mode == "insert" and (self.max_idle_s or self.max_life_s):
            key = "max_idle_s" if self.max_idle_s else "max_life_s"
            raise mistake(
                "refuse-for-ever", "on_failure: refuse and {key} do not go together: a client whose cookie is too old "
                "would be turned away for the server that it no longer belongs to",
                key=key, fix=f"leave {key} out, or write on_failure: reassign",
            )  # fmt: skip
        if self.same_site == "none" and self.secure is False:
            raise mistake(
                "same-site-none", "browsers drop a cookie with SameSite=None that is not secure",
                fix="leave secure out, or write same_site: lax",
            )  # fmt: skip
        return self

    @property
    def table_s(self) -> int | None:
        return (self.max_idle_s or COOKIE_TABLE_S) if self.mode == "existing" else None

    def secure_for(self, *, tls: bool) -> bool:
        """True if browsers send the cookie over TLS only, for clients of a service with or without TLS."""
        return self.mode == "insert" and (tls if self.secure is None else self.secure)


class TlsSessionPersistence(TablePersistence):
    """Who goes on with a TLS session comes to the server that has it."""

    protocols: ClassVar[tuple[str, ...]] = ("tcp",)

    type: Literal["tls-session"] = "tls-session"
    """`tls-session`: who goes on with a TLS session comes to the server that has it; for tcp services whose servers end
    TLS themselves. It needs clients and servers that use session ids: TLS 1.2, without tickets. With TLS 1.3 each
    connection has another id, and nobody is kept."""
    timeout_s: Annotated[Int, Between(1, LONGEST_S, "s")] = 3600
    """Seconds for which a session is remembered after its last connection: as long as the servers keep theirs."""


class RdpCookiePersistence(TablePersistence):
    """Who logs in by RDP under the same name gets the same server."""

    protocols: ClassVar[tuple[str, ...]] = ("tcp",)

    type: Literal["rdp-cookie"] = "rdp-cookie"
    """`rdp-cookie`: who logs in by RDP under the same name (mstshash, of which Windows sends nine characters) gets the
    same server. What a session broker says (msts, a routing token with the server's address) counts more."""
    timeout_s: Annotated[Int, Between(1, LONGEST_S, "s")] = 28800
    """Seconds for which a name is remembered after its last connection."""


class HeaderPersistence(TablePersistence):
    """Requests with the same value in a header get the same server."""

    protocols: ClassVar[tuple[str, ...]] = ("http",)

    type: Literal["header"] = "header"
    """`header`: requests with the same value in a header get the same server, also if the value comes from a server's
    answer first. Requests without it are balanced as if there were no persistence."""
    name: HeaderName
    """The header: X-User, Mcp-Session-Id. Values are kept as their SHA-1."""


class ParameterPersistence(TablePersistence):
    """Requests with the same value of a parameter get the same server."""

    protocols: ClassVar[tuple[str, ...]] = ("http",)

    type: Literal["parameter"] = "parameter"
    """`parameter`: requests with the same value of a parameter in the address (`/cart?session=7`) get the same server.
    Requests without it are balanced as if there were no persistence."""
    name: ParameterName
    """The parameter's name. Values are kept as their SHA-1."""


def _class_of(value: Any) -> str:
    """The name of the class for a persistence as it is written. Without a type any of them will do: it says so."""
    if isinstance(value, Persistence):
        return type(value).__name__
    kind = value.get("type", "source") if isinstance(value, dict) else "source"
    known = TYPES.get(kind) if isinstance(kind, str) else None
    return known.__name__ if known is not None else f"no type: {kind}"


AnyPersistence = Annotated[
    Annotated[SourcePersistence, Tag("SourcePersistence")]
    | Annotated[CookiePersistence, Tag("CookiePersistence")]
    | Annotated[TlsSessionPersistence, Tag("TlsSessionPersistence")]
    | Annotated[RdpCookiePersistence, Tag("RdpCookiePersistence")]
    | Annotated[HeaderPersistence, Tag("HeaderPersistence")]
    | Annotated[ParameterPersistence, Tag("ParameterPersistence")],
    Discriminator(_class_of),
]
"""A persistence of any type."""

TYPES: dict[str, type[Persistence]] = {
    kind.model_fields["type"].default: kind for kind in (get_args(t)[0] for t in get_args(get_args(AnyPersistence)[0]))
}
"""Every type by its word in the profile."""
