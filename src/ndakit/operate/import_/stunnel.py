"""stunnel.conf in front of HAProxy: which addresses and certificates belong to which port of the loopback."""

from __future__ import annotations

import re

from ndakit.operate.import_.draft import address, number
from ndakit.operate.import_.haproxy_tls import BindTls
from ndakit.operate.import_.ledger import SourceFile
from ndakit.operate.import_.pound import PoundListener

PATH = "/etc/stunnel/stunnel.conf"
STUNNEL = "by-stunnel"
"""The word by which a bind's TLS is known to be stunnel's."""
_LOWEST = {"TLSv1": "TLSv1.0", "TLSv1.1": "TLSv1.1", "TLSv1.2": "", "TLSv1.3": "TLSv1.3"}
_WHY = "of stunnel's settings, a profile has the address, the port, the certificates, their names and the policy"


def read(file: SourceFile) -> dict[int, PoundListener]:
    """Port of the loopback → who listens for it; lines that were understood are told as used."""
    result: dict[int, PoundListener] = {}
    section: dict[str, tuple[int, str]] = {}
    for line, text in enumerate([*file.lines, "[end]"], 1):
        if text.lstrip().startswith((";", "#")) or not text.strip():
            if text.lstrip().startswith(";"):
                file.same(line, "a comment")
            continue
        head = re.fullmatch(r"\s*\[([^]]*)\]\s*", text)
        if head is not None:
            _section(file, result, section)
            section = {"head": (line, head[1])}
            file.hint(line, _WHY)
            continue
        key, equals, value = text.partition("=")
        file.hint(line, _WHY)
        if equals:
            section.setdefault(key.strip().lower(), (line, value.strip()))
    return result


def _section(file: SourceFile, result: dict[int, PoundListener], section: dict[str, tuple[int, str]]) -> None:
    nothing = (0, "")
    inner = number(section.get("connect", nothing)[1].rpartition(":")[2], 1, 65535)
    if inner is None or "head" not in section or "cert" not in section:
        return
    one = result.get(inner)
    host, _, port_text = section.get("accept", nothing)[1].rpartition(":")
    ip, port = address(host), number(port_text, 1, 65535)
    if ip is not None and port is not None:
        one = result.setdefault(inner, PoundListener(tls=BindTls(flags=[STUNNEL])))
        if ip not in one.addresses:
            one.addresses.append(ip)
        if port not in one.ports:
            one.ports.append(port)
        lowest = _LOWEST.get(section.get("sslversionmin", nothing)[1])
        if lowest:
            one.tls.values["ssl-min-ver"] = lowest
        if (
            section.get("options", nothing)[1] != "CIPHER_SERVER_PREFERENCE"
            and "prefer-client-ciphers" not in one.tls.flags
        ):
            one.tls.flags.append("prefer-client-ciphers")
    name = section.get("sni", nothing)[1].partition(":")[2]
    if one is None:
        return
    if name and name not in one.tls.names:
        one.tls.names.append(name)
    certificate = section["cert"][1]
    if certificate not in one.tls.certificates:
        one.tls.certificates.append(certificate)
    keys = {"head": "vip", "accept": "vip", "connect": "vip", "cert": "tls.certificates", "sni": "hostnames",
            "sslversionmin": "tls.policy"}  # fmt: skip
    for word, key in keys.items():
        if word in section:
            file.key(section[word][0], f"services.NAME.{key}")
