"""How a backend of HAProxy keeps clients with their servers: its cookie, or its table of clients, and whom it turns
away while their server is gone.

What clients send is kept as its SHA-1: names of sessions are as good as passwords, and the nodes tell each other of
their tables without encryption. A SHA-1 has one length, so that two long values that begin alike are not one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from ndakit.model.capacity import KEPT_PER_CONNECTION
from ndakit.model.persistence import (
    HASH_BYTES,
    SESSION_BYTES,
    CookiePersistence,
    HeaderPersistence,
    ParameterPersistence,
    Persistence,
    RdpCookiePersistence,
    SourcePersistence,
    TlsSessionPersistence,
)
from ndakit.render.node import NodeView

NUMBERS = 65535
INSPECT_S = 5.0
"""How long it is waited for a client's first words, in seconds, where it is known by them."""
CLIENT_HELLO, SERVER_HELLO = "req.ssl_hello_type 1", "res.ssl_hello_type 2"
SESSION_ID = "payload_lv(43,1)"
"""The session id in both hellos, after its length: behind the headers of record and handshake, version and random
(RFC 5246, 7.4.1.2)."""


@dataclass(frozen=True)
class StickRule:
    """`stick KEYWORD KEY`, and the test that must hold for it."""

    keyword: str
    key: str
    test: str | None = None


@dataclass(frozen=True)
class StickTable:
    """A table of clients and the servers that they keep."""

    type: str
    length: int | None
    """Of a key, in bytes, where the type does not say it."""
    size: int
    expire_s: int
    rules: tuple[StickRule, ...]


@dataclass(frozen=True)
class KeptClients:
    """How the clients of a backend are kept."""

    about: str
    cookie: tuple[str, ...]
    """The words of the cookie line; none for a table."""
    table: StickTable | None
    waits_s: float | None
    """How long HAProxy waits for the client's first words, and for the server's where those count; None if it need
    not."""
    request_test: str | None
    """What the client's first words must be before the connection goes on; others go on as soon as that is sure."""
    response_test: str | None
    broker: bool
    """True if the client's own word about its server (RDP's routing token) comes first."""
    refuses: bool
    known_by: str
    """The sample by which a client is known, for the test whether its server is gone."""
    prefix: bool = False
    """True if a cookie's value only begins with the server's name."""


@dataclass(frozen=True)
class TurnedAway:
    """The clients of one server: they are turned away while it is down."""

    sample: str
    method: str
    pattern: str
    server: str
    """Where the server is checked: `pool/web1`."""


def kept(node: NodeView, service: str, pool: str) -> KeptClients | None:
    """How a service's clients are kept in one pool of its chain; None if they are not."""
    profile = node.profile
    of_service = pool in profile.services[service].pools
    wanted = profile.persistence(service, pool) if of_service else profile.pools[pool].persistence
    if wanted is None:
        return None
    size = KEPT_PER_CONNECTION * node.capacity.connections_max
    match wanted:
        case SourcePersistence():
            return _by_source(wanted, size, {e.address.version for e in profile.endpoints(service)})
        case CookiePersistence():
            return _by_cookie(wanted, size, tls=profile.services[service].tls is not None)
        case HeaderPersistence():
            sample, more = f"req.fhdr({wanted.name}),sha1", f"res.fhdr({wanted.name}),sha1"
            about = f"Requests with the same {wanted.name} get the same server; its SHA-1 is remembered."
            return _by_value(wanted, size, about, StickRule("on", sample), StickRule("store-response", more))
        case ParameterPersistence():
            about = f"Requests with the same parameter {wanted.name} get the same server; its SHA-1 is remembered."
            return _by_value(wanted, size, about, StickRule("on", f"url_param({wanted.name}),sha1"))
        case TlsSessionPersistence():
            about = "The servers end TLS. Who goes on with a TLS session gets the server that began it."
            rules = (
                StickRule("match", SESSION_ID, CLIENT_HELLO),
                StickRule("store-response", SESSION_ID, SERVER_HELLO),
            )
            table = StickTable("binary", SESSION_BYTES, size, wanted.timeout_s, rules)
            return _kept(
                wanted, about, SESSION_ID, table=table, waits_s=INSPECT_S, request_test=CLIENT_HELLO,
                response_test=SERVER_HELLO,
            )  # fmt: skip
        case RdpCookiePersistence():
            about = "Who logs in by RDP under the same name gets the same server; the SHA-1 of the name is remembered."
            rule = StickRule("on", "req.rdp_cookie(mstshash),sha1")
            return _by_value(wanted, size, about, rule, waits_s=INSPECT_S, request_test="req.rdp_cookie_cnt gt 0",
                             broker=True)  # fmt: skip
        case _:
            raise ValueError(f"HAProxy keeps nobody by {wanted.type}")


def _kept(
    wanted: Persistence, about: str, known_by: str, *, cookie: tuple[str, ...] = (), table: StickTable | None = None,
    waits_s: float | None = None, request_test: str | None = None, response_test: str | None = None,
    broker: bool = False, prefix: bool = False,
) -> KeptClients:  # fmt: skip
    return KeptClients(
        about=about, cookie=cookie, table=table, waits_s=waits_s, request_test=request_test,
        response_test=response_test, broker=broker, refuses=wanted.refuses, known_by=known_by, prefix=prefix,
    )  # fmt: skip


def _by_value(
    wanted: Persistence, size: int, about: str, *rules: StickRule, waits_s: float | None = None,
    request_test: str | None = None, broker: bool = False,
) -> KeptClients:  # fmt: skip
    """By something that clients send, of which the SHA-1 is kept; the first rule is about the request."""
    table = StickTable("binary", HASH_BYTES, size, wanted.table_s or 0, rules)
    return _kept(
        wanted, about, rules[0].key, table=table, waits_s=waits_s, request_test=request_test, broker=broker
    )  # fmt: skip


def _by_source(wanted: SourcePersistence, size: int, versions: Iterable[int]) -> KeptClients:
    here = set(versions)
    masked = any(wanted.bits(v) != (32 if v == 4 else 128) for v in here)
    mask = f",ipmask({wanted.netmask},{wanted.netmask_ipv6})" if 6 in here else f",ipmask({wanted.netmask})"
    key = f"src{mask if masked else ''}"
    # IPv4 clients of both are kept as IPv4 addresses in IPv6 form.
    table = StickTable("ipv6" if 6 in here else "ip", None, size, wanted.timeout_s, (StickRule("on", key),))
    return _kept(wanted, "A client keeps its server, known by its address.", key, table=table)


def _by_cookie(wanted: CookiePersistence, size: int, *, tls: bool) -> KeptClients:
    sample = f"req.cook({wanted.name})"
    if wanted.mode == "existing":
        about = f"Whoever comes with {wanted.name} gets the server that set it; its SHA-1 is remembered."
        rules = StickRule("on", f"{sample},sha1"), StickRule("store-response", f"res.cook({wanted.name}),sha1")
        return _by_value(wanted, size, about, *rules)
    if wanted.mode == "prefix":
        about = f"The server's name stands before the value of the application's own {wanted.name}."
        return _kept(wanted, about, sample, cookie=(wanted.name, "prefix", "nocache"), prefix=True)
    words = [wanted.name, "insert", "indirect", "nocache", "httponly"]
    words += ["secure"] if wanted.secure_for(tls=tls) else []
    words += ["attr", f"SameSite={wanted.same_site.capitalize()}"] if wanted.same_site is not None else []
    for keyword, seconds in (("maxidle", wanted.max_idle_s), ("maxlife", wanted.max_life_s)):
        words += [keyword, f"{seconds}s"] if seconds is not None else []
    return _kept(wanted, "A cookie says which server a client keeps.", sample, cookie=tuple(words))


def turned_away(
    keeping: KeptClients | None, backend: str, checked: str, servers: Iterable[str]
) -> tuple[TurnedAway, ...]:
    """Whom a backend turns away while their server is gone. `checked` is the backend in which the servers are checked:
    of one that only follows another HAProxy says that it is up (srv_is_up, src/backend.c)."""
    if keeping is None or not keeping.refuses:
        return ()
    if keeping.cookie:
        method = "-m beg" if keeping.prefix else "-m str"
        return tuple(
            TurnedAway(keeping.known_by, method, f"{server}~" if keeping.prefix else server, f"{checked}/{server}")
            for server in servers
        )
    sample, numbers = f"{keeping.known_by},table_server_id({backend})", server_numbers(servers)
    return tuple(TurnedAway(sample, "eq", str(number), f"{checked}/{server}") for server, number in numbers.items())


def server_numbers(servers: Iterable[str]) -> dict[str, int]:
    """The numbers by which a table calls a backend's servers, from their names alone: nodes with images of different
    age tell each other numbers (and HAProxy 1.8 knows no names there), and their servers may be in another order."""
    names = list(servers)
    numbers: dict[str, int] = {}
    taken: set[int] = set()
    for name in sorted(names):
        number = zlib.crc32(name.encode()) % NUMBERS + 1
        while number in taken:
            number = number % NUMBERS + 1
        taken.add(number)
        numbers[name] = number
    return {name: numbers[name] for name in names}
