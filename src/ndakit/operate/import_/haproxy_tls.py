"""TLS on `bind` lines of haproxy.cfg: certificates as secrets, policy, client certificates."""

from __future__ import annotations

import re
from collections.abc import Collection
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
_OF_THE_SOCKET = {"name", "id", "maxconn", "interface", "backlog", "mss", "nice", "process", "thread", "tcp-ut", "mode"}
_OF_THE_SOCKET |= {"user", "group", "uid", "gid", "level", "shards", "v4v6", "v6only", "transparent", "tfo"}
_OF_THE_SOCKET |= {"defer-accept", "severity-output", "namespace"}
"""Words of a bind that are about its socket, and not about TLS."""
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

    @property
    def meaning(self) -> object:
        """What clients see of it: what two binds of one service have in common."""
        kept = {name: value for name, value in self.values.items() if name not in _OF_THE_SOCKET}
        return self.certificates, self.crt_list, kept, sorted({*self.flags} - _OF_THE_SOCKET), self.names


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
        if tls.crt_list not in node.files:
            draft.decide(
                f"services.{service}.tls: which certificates has it, and may clients without one come? {tls.crt_list} "
                "(crt-list) is not in what was read"
            )
        if re.search(r"^[^#\n]*\[", listed, re.M):
            draft.decide(
                f"services.{service}.tls: {tls.crt_list} has settings of its own for some certificates (in brackets), "
                "and no key says them: write client_certificates, if only clients with a certificate may come"
            )
        paths += [line.split()[0] for line in listed.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    secrets: list[str] = []
    for path in paths:
        for certificate in _certificates(node, path):
            name = _secret(draft, node, certificate)
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


def _secret(draft: Draft, node: NodeFiles, path: str) -> str:
    """The secret that a file becomes: two files are one only if their bytes are the same."""
    if (known := draft.secret_of.get(path)) is not None:
        return known
    name, content = secret_name(path), node.files.get(path)
    if name in draft.secrets and not _PRIVATE.fullmatch(path):
        same = content is not None and draft.secrets[name] == content
        name = name if same else _free(_long_name(path), draft.secrets)
    draft.secrets.setdefault(name, content)
    draft.secret_of[path] = name
    return name


def is_secret(draft: Draft, path: str, name: str) -> bool:
    """True if a file of the box is what a secret holds."""
    return draft.secret_of.get(path) == name or (_PRIVATE.fullmatch(path) is not None and secret_name(path) == name)


def _long_name(path: str) -> str:
    """A file's name with its folders."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path).strip("._-")[-60:].strip("._-") or "certificate.pem"


def _free(name: str, taken: Collection[str]) -> str:
    """A name that is not taken yet."""
    return next(n for n in (name, *(f"{name[:56]}-{number}" for number in range(2, 10_000))) if n not in taken)


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
    same = next((n for n, other in draft.attachments.items() if content is not None and other == content), None)
    if same is not None:
        return same
    if (known := draft.beside.get(path)) is not None:
        return known
    base = re.sub(r"[^A-Za-z0-9._-]", "-", path.rsplit("/", 1)[-1]).strip("._-") or "ca.pem"
    taken = {*draft.attachments, *draft.beside.values()}
    name = f"{draft.name}-{base}"
    name = _free(f"{draft.name}-{_long_name(path)}", taken) if name in taken else name
    draft.beside[path] = name
    if content is None:
        draft.missing(f"{what}: the file {path} is not in what was read; put it beside the profile as {name}")
    else:
        draft.attachments[name] = content
    return name


def complete(content: bytes) -> bool:
    """True for a PEM text with a certificate and a private key."""
    kinds = [block.label for block in blocks(content)]
    return any("PRIVATE KEY" in k for k in kinds) and "CERTIFICATE" in kinds
