"""What is asked of lab hosts, in the form in which they take it: URLs, headers and bytes as plain JSON values."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from urllib.parse import urlsplit

Address = str | IPv4Address | IPv6Address
Headers = Mapping[str, str] | Sequence[tuple[str, str]]


Exchanges = Sequence[tuple[bytes, bytes]]
"""What a client may say to a server first, and what it is answered then; for nothing said it is in the greeting."""


def exchanges(given: Exchanges) -> list[list[str]]:
    """Exchanges as they travel in JSON."""
    return [[text(said), text(answer)] for said, answer in given]


def text(data: bytes) -> str:
    """Bytes as they travel in JSON."""
    return base64.b64encode(data).decode()


@dataclass(frozen=True)
class TlsWanted:
    """How a client speaks TLS: the name that it asks for (SNI), the lowest and highest version ("1.2"; "" for whatever
    it can), the protocols that it offers."""

    name: str = ""
    lowest: str = ""
    highest: str = ""
    alpn: tuple[str, ...] = ()

    def travelling(self) -> dict[str, Any]:
        """As it travels in JSON."""
        return {"name": self.name or None, "lowest": self.lowest, "highest": self.highest, "alpn": list(self.alpn)}


PLAIN_WISH = TlsWanted()
"""TLS as it comes, with no name asked for."""


def _tls(scheme: str, wanted: TlsWanted) -> dict[str, Any]:
    return {"tls": wanted.travelling()} if scheme in ("https", "tls") else {}


def target(
    url: str, source: Address, *, lines: int = 0, payload: bytes = b"", tls: TlsWanted = PLAIN_WISH
) -> dict[str, Any]:
    """tcp://, tls://, udp:// or icmp:// as the lab host wants it."""
    parts = urlsplit(url)
    if parts.scheme not in ("tcp", "tls", "udp", "icmp") or not parts.hostname:
        raise ValueError(f"not tcp://, tls://, udp:// or icmp:// and an address: {url}")
    return {
        **_tls(parts.scheme, tls),
        "kind": "tcp" if parts.scheme == "tls" else parts.scheme,
        "address": parts.hostname,
        "port": parts.port or 0,
        "source": str(source),
        "lines": lines,
        "payload": text(payload),
    }


def http(
    url: str,
    method: str,
    headers: Headers,
    body: bytes,
    address: Address | None,
    source: Address,
    *,
    keep_alive: bool = False,
    accept: tuple[int, int] = (100, 599),
    tls: TlsWanted = PLAIN_WISH,
) -> dict[str, Any]:
    """An HTTP request as the lab host wants it; https:// with `tls`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"not http:// or https:// and a host: {url}")
    given = list(headers.items() if isinstance(headers, Mapping) else headers)
    names = {name.lower() for name, _ in given}
    if "host" not in names:
        given.insert(0, ("Host", parts.netloc))
    if "connection" not in names and not keep_alive:
        given.append(("Connection", "close"))
    where = str(address) if address is not None else parts.hostname
    ip_address(where.partition("%")[0])  # the lab has no name service: a name would fail much later, and unclearly
    return {
        **_tls(parts.scheme, tls),
        "kind": "http",
        "address": where,
        "port": parts.port or (443 if parts.scheme == "https" else 80),
        "path": (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        "method": method,
        "headers": given,
        "payload": text(body),
        "source": str(source),
        "accept": accept,
    }
