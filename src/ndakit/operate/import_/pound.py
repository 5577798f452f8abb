"""pound.cfg in front of HAProxy: which addresses and certificates belong to which port of the loopback."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from ndakit.model import Address
from ndakit.operate.import_.draft import address, number
from ndakit.operate.import_.haproxy_tls import BindTls
from ndakit.operate.import_.ledger import SourceFile

PATH = "/etc/pound/pound.cfg"
POUND = "by-pound"
"""The word by which a bind's TLS is known to be Pound's."""
_LOWEST = {"TLSv1_2": "TLSv1.3", "TLSv1_1": "", "TLSv1": "TLSv1.1", "SSLv3": "TLSv1.0", "SSLv2": "TLSv1.0"}


@dataclass
class PoundListener:
    """What Pound takes for one port of the loopback."""

    addresses: list[Address] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    tls: BindTls = field(default_factory=lambda: BindTls(flags=[POUND, "prefer-client-ciphers"]))


def read(file: SourceFile) -> dict[int, PoundListener]:
    """Port of the loopback → its listener; lines of a listener that was understood are told as used."""
    result: dict[int, PoundListener] = {}
    stack: list[str] = []
    held: dict[str, tuple[int, str]] = {}
    certificates: list[tuple[int, str]] = []
    for line, text in enumerate(file.lines, 1):
        if file.is_comment(line):
            continue
        try:
            words = shlex.split(text, comments=True)
        except ValueError:
            words = []
        if not words:
            continue
        word, value = words[0].lower(), words[1] if len(words) > 1 else ""
        if word in ("listenhttps", "listenhttp", "service", "backend", "combineheaders", "session", "emergency"):
            stack.append(word)
            if word == "listenhttps":
                held, certificates = {"listen": (line, value)}, []
            file.hint(line, "of Pound's settings, a profile has the address, the port, the certificates and the policy")
        elif word == "end":
            ended = stack.pop() if stack else ""
            if ended == "listenhttps":
                _listener(file, result, held, certificates)
            file.same(line, "it ends a block")
        elif word == "cert":
            certificates.append((line, value))
        else:
            where = "inner " if stack[-1:] == ["backend"] else ""
            held.setdefault(f"{where}{word}", (line, value))
            file.hint(line, "of Pound's settings, a profile has the address, the port, the certificates and the policy")
    return result


def _listener(
    file: SourceFile,
    result: dict[int, PoundListener],
    held: dict[str, tuple[int, str]],
    certificates: list[tuple[int, str]],
) -> None:
    nothing = (0, "")
    ip, port = address(held.get("address", nothing)[1]), number(held.get("port", nothing)[1], 1, 65535)
    inner = number(held.get("inner port", nothing)[1], 1, 65535)
    if ip is None or port is None or inner is None or not certificates:
        return
    one = result.setdefault(inner, PoundListener())
    if ip not in one.addresses:
        one.addresses.append(ip)
    if port not in one.ports:
        one.ports.append(port)
    for line, path in certificates:
        if path not in one.tls.certificates:
            one.tls.certificates.append(path)
        file.key(line, "services.NAME.tls.certificates")
    line, lowest = held.get("disable", nothing)
    if lowest in _LOWEST:
        if _LOWEST[lowest]:
            one.tls.values["ssl-min-ver"] = _LOWEST[lowest]
        file.key(line, "services.NAME.tls.policy")
    for word in ("listen", "address", "port", "inner address", "inner port"):
        if word in held:
            file.key(held[word][0], "services.NAME.vip")
