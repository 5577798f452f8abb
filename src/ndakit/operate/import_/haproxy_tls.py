"""TLS on `bind` lines of haproxy.cfg: certificates as secrets, policy, client certificates."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ndakit.core.pem import blocks
from ndakit.operate.import_.draft import Draft
from ndakit.operate.import_.sources import NodeFiles

_WITH_VALUE = {
    "crt",
    "crt-list",
    "alpn",
    "ssl-min-ver",
    "ssl-max-ver",
    "ciphers",
    "ciphersuites",
    "curves",
    "ca-file",
    "verify",
    "crl-file",
    "npn",
    "ecdhe",
    "name",
    "id",
    "maxconn",
    "interface",
    "backlog",
    "mss",
    "nice",
    "process",
    "thread",
    "mode",
    "user",
    "group",
    "uid",
    "gid",
    "level",
    "tcp-ut",
    "ca-verify-file",
    "ca-sign-file",
    "sigalgs",
    "client-sigalgs",
    "severity-output",
    "namespace",
    "shards",
    "proto",
    "defer-accept-time",
}
_FINE = {
    "v4v6",
    "v6only",
    "transparent",
    "ssl",
    "prefer-client-ciphers",
    "strict-sni",
    "tfo",
    "defer-accept",
    "no-sslv3",
    "no-tlsv10",
    "no-tlsv11",
    "no-tls-tickets",
    "force-tlsv12",
}
_PRIVATE = re.compile(r"/etc/ndakit/private/([A-Za-z0-9][A-Za-z0-9._-]*?)(?:/certificate\.pem)?")


@dataclass
class BindTls:
    """What a `bind` line says of TLS."""

    certificates: list[str] = field(default_factory=list)
    crt_list: str = ""
    values: dict[str, str] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """The names that clients ask for, where it says them."""


def of_bind(words: tuple[str, ...]) -> tuple[BindTls | None, list[str]]:
    """TLS of the words behind a bind's address (None if there is none), and the words that no key says."""
    tls, left, at = BindTls(), [], 0
    while at < len(words):
        word = words[at]
        value = words[at + 1] if word in _WITH_VALUE and at + 1 < len(words) else None
        at += 1 if value is None else 2
        if value is None:
            tls.flags.append(word)
            if word not in _FINE:
                left.append(word)
        elif word == "crt":
            tls.certificates.append(value)
        elif word == "crt-list":
            tls.crt_list = value
        else:
            tls.values[word] = value
            if word not in ("alpn", "ssl-min-ver", "ca-file", "verify", "crl-file", "name", "id"):
                left.append(f"{word} {value}")
    if "ssl" not in tls.flags:
        return None, left
    return tls, [w for w in left if not w.startswith(("ciphers ", "ciphersuites ", "curves "))]


def keys(draft: Draft, node: NodeFiles, tls: BindTls, service: str) -> dict[str, Any] | None:
    """The keys of `tls`; None if it has no certificate that can be named."""
    paths = list(tls.certificates)
    if tls.crt_list:
        listed = node.text(tls.crt_list) or ""
        paths += [line.split()[0] for line in listed.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    secrets: list[str] = []
    for path in paths:
        for certificate in _certificates(node, path):
            name = secret_name(certificate)
            draft.secrets.setdefault(name, node.files.get(certificate))
            if name not in secrets:
                secrets.append(name)
    if not secrets:
        return None
    programs = {"by-pound": "pound", "by-stunnel": "stunnel"}
    before = [programs[flag] for flag in tls.flags if flag in programs]
    result: dict[str, Any] = {
        **({"terminator": before[0]} if before else {}),
        "certificates": [{"secret": name} for name in secrets],
    }
    lowest = tls.values.get("ssl-min-ver", "").removeprefix("TLSv")
    if lowest == "1.3":
        result["policy"] = "modern"
    elif lowest == "1.0" and "prefer-client-ciphers" not in tls.flags:
        result["policy"] = "old"
    elif lowest in ("1.0", "1.1"):
        result["min_version"] = lowest
    if "strict-sni" in tls.flags:
        result["unknown_name"] = "refuse"
    if tls.values.get("verify") in ("required", "optional") and "ca-file" in tls.values:
        clients: dict[str, Any] = {"ca": tls.values["ca-file"]}
        if tls.values["verify"] == "optional":
            clients["mode"] = "optional"
        if "crl-file" in tls.values:
            clients["revoked"] = tls.values["crl-file"]
        result["client_certificates"] = clients
    protocols = [p for p in tls.values.get("alpn", "").split(",") if p in ("h2", "http/1.1")]
    if protocols and protocols != ["h2", "http/1.1"]:
        result["alpn"] = protocols
    return result


def _certificates(node: NodeFiles, path: str) -> list[str]:
    """A file, or all files of a folder."""
    inside = sorted(p for p in node.files if p.startswith(f"{path.rstrip('/')}/"))
    return inside or [path]


def secret_name(path: str) -> str:
    """What the secret with a certificate is called: as ndakit called it, else as its file."""
    ours = _PRIVATE.fullmatch(path)
    if ours is not None:
        return ours[1]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", path.rsplit("/", 1)[-1]).strip("._-")[:60]
    return name or "certificate.pem"


def attach(draft: Draft, node: NodeFiles, path: str, what: str) -> str:
    """A file of CAs or revocation lists, put beside the profile; its name there."""
    content = node.files.get(path)
    name = f"{draft.name}-{re.sub(r'[^A-Za-z0-9._-]', '-', path.rsplit('/', 1)[-1]).strip('._-') or 'ca.pem'}"
    if content is None:
        draft.missing(f"{what}: the file {path} is not in what was read; put it beside the profile as {name}")
        return name
    same = next((n for n, other in draft.attachments.items() if other == content), None)
    if same is None:
        draft.attachments[name] = content
    return same or name


def complete(content: bytes) -> bool:
    """True for a PEM text with a certificate and a private key."""
    kinds = [block.label for block in blocks(content)]
    return any("PRIVATE KEY" in k for k in kinds) and "CERTIFICATE" in kinds
