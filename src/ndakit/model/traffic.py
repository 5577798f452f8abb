"""What the balancer does with traffic: pools of servers with their checks, and the services in front of them."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from ndakit.model.base import (
    Address,
    Addresses,
    AttachedFile,
    Between,
    FamilyName,
    Int,
    Model,
    Number,
    Port,
    UrlPath,
    as_list,
    mistake,
)
from ndakit.names import HostName, Name

Balance = Literal["roundrobin", "leastconn", "source", "first", "uri", "random"]

SORRY_PAGE_MAX = 16 * 1024
"""HAProxy keeps an errorfile in one buffer (tune.bufsize, 16 KiB) and refuses larger ones."""


class Expect(Model):
    """What an http check takes for a good answer."""

    status: Annotated[Int, Between(100, 599)] | None = None
    """The HTTP status; without it any 2xx or 3xx is good."""


class Check(Model):
    """How a pool finds out which of its servers are well."""

    short_form: ClassVar[str | None] = "type"
    planned_values: ClassVar = {"type": {"mysql-replica": "database replicas"}}
    planned: ClassVar = {
        "user": "checks that log in",
        "password": "checks that log in",
        "max_lag_s": "database replicas",
    }

    type: Literal["tcp", "http"] = "tcp"
    """`tcp`: a connection is accepted. `http`: a request is answered as expected."""
    path: UrlPath | None = None
    """http: the path that is asked for, default `/`."""
    host: HostName | None = None
    """http: the Host header; by default the first of the service's `hostnames`."""
    expect: Expect = Expect()
    """http: what counts as a good answer."""
    port: Port | None = None
    """The port that is checked, where it is not the server's own."""
    interval_s: Annotated[Number, Between(0.1, 3600, "s")] = 2.0
    """Seconds between two checks of a server, by each node."""
    timeout_s: Annotated[Number, Between(0.1, 600, "s")] = 2.0
    """http: seconds that a server has for its answer once it is connected. Connecting may take as long as the service's
    `timeouts.connect_s`, at most `interval_s`, and that is all there is to a tcp check."""
    rise: Annotated[Int, Between(1, 100)] = 2
    """Good checks in a row after which a server is in the pool again."""
    fall: Annotated[Int, Between(1, 100)] = 3
    """Failed checks in a row after which a server is out of the pool."""

    @model_validator(mode="after")
    def _http_only(self) -> Self:
        if self.type == "tcp":
            for key, value in (("path", self.path), ("host", self.host), ("expect.status", self.expect.status)):
                if value is not None:
                    raise mistake(
                        "http-only", "'{key}' belongs to an http check, and this one is tcp", key=key,
                        fix=f"write type: http, or leave {key} out",
                    )  # fmt: skip
        return self

    @property
    def request_path(self) -> str:
        """http: the path that is asked for."""
        return self.path or "/"

    def attempt_s(self, connect_s: float) -> float:
        """The longest time, in seconds, that one check takes. `connect_s` is the backend's `timeout connect`.

        Connecting may take min(`timeout connect`, `inter`), and `timeout check` comes on top, for the answer once
        connected (HAProxy's configuration manual, "timeout check"); a tcp check ends with the connection.
        """
        return min(connect_s, self.interval_s) + (self.timeout_s if self.type == "http" else 0.0)

    def detection_s(self, connect_s: float) -> float:
        """The longest time, in seconds, from a server's death to its leaving the pool (one node's view).

        It dies right after a good check; the interval runs from the end of one check to the start of the next.
        """
        return self.fall * (self.interval_s + self.attempt_s(connect_s))

    def recovery_s(self, connect_s: float) -> float:
        """The longest time, in seconds, from a server's recovery to its return to the pool (one node's view).

        It comes back while a check is running that still fails, and `rise` good ones follow.
        """
        return self.attempt_s(connect_s) + self.rise * (self.interval_s + self.attempt_s(connect_s))


class Sorry(Model):
    """What clients get when no server of a pool is left: a page, or another pool."""

    page: AttachedFile | None = None
    """An HTML file of at most 16 KiB, relative to the file that writes it; sent with status 503."""
    pool: Name | None = None
    """Another pool, checked like any other."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if self.page is None and self.pool is None:
            raise mistake("one-of", "neither 'page' nor 'pool' is stated", fix="write {page: sorry.html}, or {pool: …}")
        if self.page is not None and self.pool is not None:
            raise mistake("one-of", "both 'page' and 'pool' are stated", fix="keep one of the two")
        return self


class Server(Model):
    """One real server of a pool."""

    short_form: ClassVar[str | None] = "address"

    address: Addresses
    """Where it is; the first one stated is used by services of topology proxy."""
    port: Port | None = None
    """Its own port; default: the pool's, else the service's."""
    weight: Annotated[Int, Between(0, 256)] = 1
    """Its share compared with the others'; 0 takes no new connections."""
    max_connections: Annotated[Int, Between(1, 1_000_000)] | None = None
    """More connections than this wait in the balancer's queue."""


class Pool(Model):
    """Servers that can stand in for each other."""

    planned: ClassVar = {
        "persistence": "a client keeps its server",
        "reply_route": "the way of the servers' answers",
        "raw": "the escape hatch",
    }
    planned_values: ClassVar = {
        "balance": dict.fromkeys(("destination", "locality", "locality-replica", "shortest-delay"), "IPVS's schedulers")
    }

    port: Port | None = None
    """The servers' port where they do not state their own; default: the service's."""
    balance: Balance = "roundrobin"
    """How a server is chosen: `roundrobin`, `leastconn`, `source`, `first`, `uri`, `random`."""
    check: Check = Check()
    """How the servers are watched: a type, or a mapping."""
    sorry: Sorry | None = None
    """What clients get when no server is left; without it HAProxy's plain 503."""
    servers: Annotated[dict[Name, Server], Field(min_length=1)]
    """The servers by name: an address, or a mapping."""

    @property
    def total_weight(self) -> int:
        """The sum of the servers' weights."""
        return sum(s.weight for s in self.servers.values())


class Timeouts(Model):
    """How long HAProxy waits, in seconds."""

    connect_s: Annotated[Number, Between(0.1, 3600, "s")] = 5.0
    """For a server to accept a connection."""
    client_s: Annotated[Number, Between(0.1, 86400, "s")] = 60.0
    """For a silent client."""
    server_s: Annotated[Number, Between(0.1, 86400, "s")] = 60.0
    """For a silent server."""
    queue_s: Annotated[Number, Between(0.1, 3600, "s")] = 30.0
    """In the queue when all servers are full."""
    tunnel_s: Annotated[Number, Between(0.1, 604800, "s")] = 3600.0
    """For a silent connection that became a tunnel (WebSocket, CONNECT)."""


PortRange = tuple[int, int]


def _ports(value: Any) -> Any:
    found: list[PortRange] = []
    for item in as_list(value):
        if isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(i, int) for i in item):
            found.append((item[0], item[1]))
            continue
        words = str(item).split("-")
        if not 1 <= len(words) <= 2 or not all(w.isascii() and w.isdigit() and len(w) <= 5 for w in words):
            raise mistake(
                "port", "'{got}' is not a port", got=str(item)[:40], fix="write 80, 10000-10100, or a list of them"
            )
        low, high = int(words[0]), int(words[-1])
        if low < 1 or high > 65535:
            raise mistake("port", "'{got}' is not a port", got=str(item)[:40], fix="choose ports from 1 to 65535")
        if low > high:
            raise mistake("port", "'{got}' ends before it begins", got=str(item)[:40], fix=f"write {high}-{low}")
        found.append((low, high))
    if not found:
        raise mistake("empty", "an empty list", fix="state at least one port")
    ordered = sorted(found)
    for before, after in itertools.pairwise(ordered):
        if after[0] <= before[1]:
            raise mistake("port-twice", "port {got} is stated twice", got=after[0], fix="state every port once")
    if sum(high - low + 1 for low, high in found) > 4096:
        raise mistake(
            "too-many-ports", "more than 4096 ports in one service", fix="split the service, or narrow the range"
        )
    return tuple(ordered)


_PORT_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, {"type": "string"}]}
Ports = Annotated[
    tuple[PortRange, ...],
    BeforeValidator(_ports),
    PlainSerializer(
        lambda spans: [f"{low}-{high}" if low != high else str(low) for low, high in spans], return_type=list[str]
    ),
    WithJsonSchema({"anyOf": [*_PORT_SCHEMA["anyOf"], {"type": "array", "items": _PORT_SCHEMA}]}),
]


def _families(value: tuple[FamilyName, ...]) -> tuple[FamilyName, ...]:
    if not value or len(set(value)) != len(value):
        raise mistake("families", "each family once, and at least one", fix="write [ipv4], [ipv6] or leave the key out")
    return value


_NAME_OR_LIST = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}


class Service(Model):
    """Something clients reach on a VIP: address, port, topology and the pool behind it."""

    planned: ClassVar = {
        "redirect": "redirects",
        "tls": "TLS termination",
        "routes": "choosing the pool by host or path",
        "headers": "changing headers",
        "persistence": "a client keeps its server",
        "engine": "the program that carries the service",
        "raw": "the escape hatch",
    }
    planned_values: ClassVar = {
        "topology": {
            "tproxy": "servers see the clients' addresses",
            "nat": "IPVS with address translation",
            "dr": "IPVS with direct return",
            "tun": "IPVS through tunnels",
        },
        "protocol": {"udp": "services without connections"},
    }

    vip: Annotated[tuple[Name, ...], BeforeValidator(as_list), Field(min_length=1), WithJsonSchema(_NAME_OR_LIST)]
    """The VIP, or a list of them."""
    families: Annotated[tuple[FamilyName, ...], AfterValidator(_families)] | None = None
    """`ipv4`, `ipv6`; default: those of the VIP."""
    port: Ports
    """The port on the VIP: one, a range such as 10000-10100, or a list."""
    topology: Literal["proxy"] = "proxy"
    """How traffic reaches the servers: `proxy` ends connections in HAProxy and opens its own to the server."""
    protocol: Literal["http", "tcp"]
    """What is spoken; always stated."""
    hostnames: tuple[HostName, ...] = ()
    """The names clients use; the first is the default Host of the pool's http check."""
    pool: Name
    """Where requests go."""
    timeouts: Timeouts = Timeouts()
    """How long HAProxy waits."""

    @property
    def ports(self) -> tuple[int, ...]:
        """Every single port."""
        return tuple(p for low, high in self.port for p in range(low, high + 1))


def server_port(server: Server, pool: Pool) -> int | None:
    """The port of a server as the pool sees it; None = the port the client asked for."""
    return server.port or pool.port


def first_address(server: Server) -> Address:
    """The address that proxies use."""
    return server.address[0]
