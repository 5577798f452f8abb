"""What tests of the programs that end TLS in front of HAProxy read from the answers of servers behind them."""

from __future__ import annotations

import hashlib
import re

from cryptography.hazmat.primitives import serialization

from certificate_files import Party


def seen(answer: str) -> dict[str, list[str]]:
    """The request headers that a server saw."""
    assert answer.startswith("HTTP/1.1 200"), answer[:300]
    values_of: dict[str, list[str]] = {}
    for line in answer.partition("\r\n\r\n")[2].splitlines()[1:]:
        name, _, value = line.partition(": ")
        if name:
            values_of.setdefault(name.lower(), []).append(value)
    return values_of


def server_of(answer: str) -> str:
    header = re.search(r"(?im)^x-server: (\S+)", answer.partition("\r\n\r\n")[0])
    return header[1] if header else answer.split()[1]


def peer_of(answer: str) -> str:
    """Whom a server had its connection with."""
    header = re.search(r"(?im)^x-peer: (\S+)", answer.partition("\r\n\r\n")[0])
    return header[1] if header else ""


def digest(party: Party) -> str:
    return hashlib.sha256(party.certificate.public_bytes(serialization.Encoding.DER)).hexdigest()
