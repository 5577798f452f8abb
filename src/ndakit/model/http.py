"""HTTP: which requests of a service go to which pool, by the name that the client asked for (the Host header)."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from ndakit.core.addresses import literal
from ndakit.core.names import HostName, Name, ServiceName
from ndakit.model import host_regex
from ndakit.model.base import Bool, Model, as_list, mistake

HOST_REGEX_MAX = 200
TARPIT_S = 30.0
"""How long a request for an unknown host waits for its 500 with `unknown_hosts: tarpit`. It holds a connection."""


def _host_regex(value: str) -> str:
    """An expression that Python and PCRE read alike and that no name keeps busy (`host_regex`)."""
    if not value or len(value) > HOST_REGEX_MAX:
        raise mistake(
            "regex-length", "a regular expression of {got} characters", got=len(value),
            fix=f"write 1 to {HOST_REGEX_MAX} characters; several expressions make a list",
        )  # fmt: skip
    if not value.isascii() or not value.isprintable() or " " in value:
        raise mistake(
            "regex-text", "'{got}' has characters that no host name has", got=value[:60],
            fix="host names are letters, digits, '-' and '.' (of others their ASCII form, xn--…)",
        )  # fmt: skip
    try:
        host_regex.check(value)
    except host_regex.HostRegexFault as cause:
        raise mistake(
            "regex", "'{got}' is not taken as an expression for a host name: it has {why}", got=value[:60],
            why=cause.what, fix=cause.fix,
        ) from None  # fmt: skip
    return value


_ONE_OR_LIST = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
Hosts = Annotated[tuple[ServiceName, ...], BeforeValidator(as_list), Field(min_length=1), WithJsonSchema(_ONE_OR_LIST)]
HostRegexes = Annotated[
    tuple[Annotated[str, AfterValidator(_host_regex)], ...],
    BeforeValidator(as_list), Field(min_length=1), WithJsonSchema(_ONE_OR_LIST),
]  # fmt: skip


def covers(pattern: str, name: str) -> bool:
    """True if a name, or all names of a wildcard, are among those of a host name or wildcard."""
    first, _, rest = name.partition(".")
    return pattern == name or (first != "*" and pattern == f"*.{rest}")


def matches(expressions: tuple[str, ...], name: str) -> bool:
    """True if one of the expressions is in a name, as HAProxy looks for it."""
    return any(re.search(expression, name, re.IGNORECASE | re.ASCII) for expression in expressions)


def _status(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3 else value


class HostRoute(Model):
    """Requests for some names go to a pool of their own: `host` and `host_regex` with protocol http, `sni` with tcp."""

    planned: ClassVar = {
        "path_prefix": "choosing the pool by path",
        "path_regex": "choosing the pool by path",
        "method": "choosing the pool by method",
        "header": "choosing the pool by header",
        "cookie": "choosing the pool by cookie",
        "query": "choosing the pool by parameter",
        "sources": "choosing the pool by client",
        "not": "conditions that must not hold",
        "respond": "answers of the balancer's own",
        "redirect": "redirects",
        "map": "choosing the pool by a file",
    }

    host: Hosts | None = None
    """The name that the client asked for, or a list of them: any of it holds. `"*.shop.example"` stands for every name
    with one label more (write it in quotes)."""
    host_regex: HostRegexes | None = None
    """A regular expression for that name, or a list of them: `^img[0-9]+\\.`. It is looked for anywhere in the name, so
    that it needs `^` and `$` to be about the whole of it; upper and lower case are the same. It may have letters,
    digits, `-`, `\\.`, `.`, `\\d`, `\\w`, classes (`[a-z0-9-]`, `[^x]`), groups, `|`, `^`, `$` and the repeats `?` `*`
    `+` `{m}` `{m,}` `{m,n}`. Refused are what not every library reads alike (look-arounds, back references,
    `[[:alpha:]]`, `\\p{L}` …), a repeat of what has a repeat or alternatives inside, and three repeats that compete for
    the same characters: names exist for which they would never end. With `host` too, both must hold."""
    sni: Hosts | None = None
    """TLS that passes through (protocol tcp, no `tls`): the name for which the client asks before anything is encrypted
    (Server Name Indication), or a list of them; wildcards as in `host`. The certificates are the servers' own."""
    pool: Name
    """The pool that these requests go to."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names and wildcards of `host` or `sni`."""
        return self.host or self.sni or ()

    def holds(self, name: str) -> bool:
        """True if a request for this name takes the route."""
        by_name = not self.names or any(covers(pattern, name) for pattern in self.names)
        return by_name and (self.host_regex is None or matches(self.host_regex, name))

    @property
    def example(self) -> str | None:
        """A name that takes the route; None if there are only expressions."""
        examples = (pattern.replace("*", "any", 1) for pattern in self.names)
        return next((name for name in examples if self.holds(name)), None)

    @model_validator(mode="after")
    def _some_condition(self) -> Self:
        by_host = self.host is not None or self.host_regex is not None
        if not by_host and self.sni is None:
            raise mistake(
                "route-open", "the route to pool {got} says no name", got=self.pool,
                fix="add host: NAME or host_regex: EXPRESSION, or sni: NAME for TLS that passes through; the pool for "
                "all other names is the service's own",
            )  # fmt: skip
        if by_host and self.sni is not None:
            raise mistake(
                "route-of-both", "the route to pool {got} has sni, which is for TLS that passes through, and "
                "{other}, which is for http", got=self.pool, other="host" if self.host is not None else "host_regex",
                fix="keep one of the two",
            )  # fmt: skip
        for values in (self.names, self.host_regex or ()):
            if twice := next((v for v in values if values.count(v) > 1), None):
                raise mistake("route-twice", "'{got}' is there twice", got=twice, fix="name it once")
        return self


_URL = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?(/[A-Za-z0-9._~!$&()*+,;=:@/-]{0,200})?")
_HOST_NAME: TypeAdapter[str] = TypeAdapter(HostName)


def _host(text: str) -> str | None:
    """A URL's host as it is compared: a name, or an address in its usual spelling; None for what is neither.

    A name whose last label is a number is an address for browsers (WHATWG URL, 3.5).
    """
    if text.startswith("[") or re.fullmatch(r"[0-9]+|0x[0-9a-f]*", text.rpartition(".")[2]):
        try:
            address = IPv6Address(text[1:-1]) if text.startswith("[") else IPv4Address(text)
        except ValueError:
            return None
        nobody = address.is_unspecified or address.is_multicast or address.is_loopback
        return None if nobody else literal(address)
    try:
        return _HOST_NAME.validate_python(text)
    except ValidationError:
        return None


def _target(value: str) -> str:
    """`https`, or a URL of plain characters: everything else would have to be written for HAProxy's log format."""
    if value == "https":
        return value
    url = _URL.fullmatch(value)
    if url is None or (url[3] is not None and not 1 <= int(url[3]) <= 65535):
        raise mistake(
            "redirect-target", "'{got}' is no place to redirect to", got=value[:60],
            fix="write https, or a URL such as https://www.example.com, in lower case and without % and ?",
        )  # fmt: skip
    if _host(url[2]) is None:
        raise mistake(
            "redirect-target", "'{got}' is no place to redirect to: '{host}' is neither a host name nor an address "
            "that clients can reach", got=value[:60], host=url[2][:60],
            fix="write a URL such as https://www.example.com, or https://[2001:db8::10] with an address of yours",
        )  # fmt: skip
    return value


class Redirect(Model):
    """Where all requests of a service are sent to."""

    short_form: ClassVar[str | None] = "to"

    to: Annotated[str, AfterValidator(_target)]
    """`https`: the name that the client asked for, over TLS, at the port of the service with `tls` on the same VIP. Or
    a URL: `https://www.example.com`, with a path if need be."""
    keep_path: Bool = True
    """The path and query of the request go behind `to`."""
    status: Annotated[Literal[301, 302, 303, 307, 308], BeforeValidator(_status)] = 301
    """301 and 308: for good, browsers remember it. 302, 303 and 307: for now. 307 and 308 keep method and body."""

    @property
    def to_https(self) -> bool:
        """True if the same name is asked for again, over TLS."""
        return self.to == "https"

    @property
    def goal(self) -> tuple[str, str, int]:
        """Scheme, host and port of a URL. Raises ValueError for `https`."""
        url = _URL.fullmatch(self.to)
        host = _host(url[2]) if url is not None else None
        if url is None or host is None:
            raise ValueError("no URL")
        return url[1], host, int(url[3] or {"http": 80, "https": 443}[url[1]])
