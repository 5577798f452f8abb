"""TLS: what a service needs to end it for its clients, and what a pool needs to speak it with its servers.

Owns the keys of `tls:` and `to_servers:` and the three policies: Mozilla's server side TLS guidelines, version 5.7
(wiki.mozilla.org/Security/Server_Side_TLS; the lists are those of ssl-config.mozilla.org/guidelines/5.7.json). What is
in the certificates is looked at by the loader, because they are secrets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from ndakit.core.names import HostName
from ndakit.model.base import AttachedFile, Attachment, Between, Bool, Int, Model, SecretRef, attach, mistake
from ndakit.model.terminators import TERMINATORS, Terminator

TlsVersion = Literal["1.0", "1.1", "1.2", "1.3"]
VERSIONS: tuple[TlsVersion, ...] = ("1.0", "1.1", "1.2", "1.3")
GUIDELINES = "5.7"
"""The version of Mozilla's guidelines that the policies follow."""
HSTS_LEAST_S = 300
"""A shorter time protects nobody; 0 tells browsers to forget it."""
PEM_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,60})-----")


@dataclass(frozen=True)
class TlsPolicy:
    """What a policy lets clients use, in OpenSSL's words. `suites` are those of TLS 1.3, `ciphers` of the versions
    before; where a policy has no such version, there are none."""

    min_version: TlsVersion
    ciphers: tuple[str, ...]
    suites: tuple[str, ...]
    curves: tuple[str, ...] = ("X25519", "prime256v1", "secp384r1")

    def carries(self, version: TlsVersion) -> bool:
        """True if a client of this TLS version can find a cipher: those of 1.0 and 1.1 are the ones with SHA-1."""
        if version == "1.3":
            return bool(self.suites)
        if version == "1.2":
            return bool(self.ciphers)
        return any(cipher.endswith("-SHA") for cipher in self.ciphers)


_SUITES = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
_INTERMEDIATE = (
    "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305",
    "DHE-RSA-AES128-GCM-SHA256", "DHE-RSA-AES256-GCM-SHA384", "DHE-RSA-CHACHA20-POLY1305",
)  # fmt: skip
_OLD = (
    "ECDHE-ECDSA-AES128-SHA256", "ECDHE-RSA-AES128-SHA256", "ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA384", "ECDHE-RSA-AES256-SHA384", "ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA",
    "DHE-RSA-AES128-SHA256", "DHE-RSA-AES256-SHA256", "AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-SHA256",
    "AES256-SHA256", "AES128-SHA", "AES256-SHA", "DES-CBC3-SHA",
)  # fmt: skip

POLICIES: Mapping[str, TlsPolicy] = {
    "modern": TlsPolicy("1.3", (), _SUITES),
    "intermediate": TlsPolicy("1.2", _INTERMEDIATE, _SUITES),
    "old": TlsPolicy("1.0", _INTERMEDIATE + _OLD, _SUITES),
}


def _holds(file: Attachment, label: bytes, what: str) -> Attachment:
    """The attached file, if it has a PEM block of a label (RFC 7468). Who holds a private key is refused by the reader
    of attachments."""
    if label not in PEM_BEGIN.findall(file.content):
        raise mistake(
            "pem", "{got} holds no {what}", got=file.path, what=what,
            fix=f"name a PEM file: it has a line -----BEGIN {label.decode()}-----",
        )  # fmt: skip
    return file


def _certificates(file: Attachment) -> Attachment:
    return _holds(file, b"CERTIFICATE", "certificate")


def _revocations(file: Attachment) -> Attachment:
    return _holds(file, b"X509 CRL", "list of revoked certificates")


CaFile = Annotated[AttachedFile, AfterValidator(_certificates)]
"""A PEM file of CA certificates."""
CrlFile = Annotated[AttachedFile, AfterValidator(_revocations)]
"""A PEM file of certificate revocation lists."""


class ClientCertificates(Model):
    """Clients show a certificate of their own. Who it was reaches the servers in X-SSL-Client-Verify (SUCCESS, NONE),
    X-SSL-Client-DN, X-SSL-Client-Issuer-DN, X-SSL-Client-Serial and X-SSL-Client-SHA1; what clients themselves write
    there is gone."""

    ca: CaFile
    """A PEM file of the CAs whose certificates are believed, relative to the file that writes it."""
    mode: Literal["required", "optional"] = "required"
    """`required`: without a certificate there is no connection. `optional`: the server decides by X-SSL-Client-Verify.
    A certificate that is not good ends the connection in both."""
    revoked: CrlFile | None = None
    """A PEM file of revocation lists, one of each CA of `ca`. HAProxy refuses everybody when a list is out of date."""


class Tls(Model):
    """TLS ends on the balancer: clients get a certificate, the servers are asked as `to_servers` of their pool says."""

    planned: ClassVar = {"acme": "certificates from a CA by ACME"}

    terminator: Literal["haproxy", "pound", "stunnel"] = "haproxy"
    """The program that ends TLS: `haproxy`; or, in front of HAProxy on the same node, `pound` or `stunnel`. Pound adds
    `X-SSL-Request: 1` to every request (http services only). No release of OpenWrt has it: its package is built once in
    OpenWrt's SDK (docs/pound.md). stunnel is OpenWrt's package, carries tcp as well, and tells HAProxy the client's
    address by the PROXY protocol (docs/stunnel.md). Neither has HTTP/2, client certificates or `unknown_name: refuse`,
    and both hold fewer connections."""
    certificates: Annotated[tuple[SecretRef, ...], Field(min_length=1)]
    """Secrets, each a PEM text: the certificate, its chain, its private key. Which one a client gets is decided by the
    name that it asks for; the first one is for other names."""
    policy: Literal["modern", "intermediate", "old"] = "intermediate"
    """Which versions and ciphers clients may use: Mozilla's guidelines, version 5.7. `modern`: TLS 1.3 only.
    `intermediate`: TLS 1.2 and 1.3, for nearly everybody. `old`: from TLS 1.0 on, for clients of before 2014."""
    min_version: TlsVersion | None = None
    """The lowest TLS version, against the policy's. In quotes: `"1.2"`."""
    unknown_name: Literal["first", "refuse"] = "first"
    """What a client gets that asks for a name of no certificate, or for none: `first`, the first certificate; `refuse`,
    no connection."""
    client_certificates: ClientCertificates | None = None
    """Clients show certificates of their own."""
    hsts_s: Annotated[Int, Between(0, 126_230_400, "s")] | None = None
    """Seconds for which browsers are to use https only with these names (Strict-Transport-Security, RFC 6797). There is
    no way back before that: begin with 300, end with 31536000. 0 tells browsers to forget it."""
    alpn: Annotated[tuple[Literal["h2", "http/1.1"], ...], Field(min_length=1)] | None = None
    """The protocols that are offered to clients, the preferred one first (http services only). Default: `[h2,
    http/1.1]`; Pound and stunnel have http/1.1 only."""

    @property
    def ended_by(self) -> Terminator:
        """The program that ends it."""
        return TERMINATORS[self.terminator]

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols that HAProxy offers to clients."""
        return self.alpn or ("h2", "http/1.1")

    @property
    def rules(self) -> TlsPolicy:
        """The policy's lists."""
        return POLICIES[self.policy]

    @property
    def lowest(self) -> TlsVersion:
        """The lowest TLS version that clients may use."""
        return self.min_version or self.rules.min_version

    @property
    def versions(self) -> tuple[TlsVersion, ...]:
        """The TLS versions that clients may use."""
        return VERSIONS[VERSIONS.index(self.lowest) :]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        names = [one.secret for one in self.certificates]
        if twice := next((n for n in names if names.count(n) > 1), None):
            raise mistake("certificate-twice", "certificate {got} is named twice", got=twice, fix="name it once")
        if len(set(self.alpn or ())) != len(self.alpn or ()):
            raise mistake("alpn-twice", "a protocol of alpn is named twice", fix="write alpn: [h2, http/1.1]")
        if self.hsts_s is not None and 0 < self.hsts_s < HSTS_LEAST_S:
            raise mistake(
                "hsts-short", "hsts_s: {got} is over before it protects anybody", got=self.hsts_s,
                fix=f"write {HSTS_LEAST_S} to try it, 31536000 for good, or 0 to make browsers forget it",
            )  # fmt: skip
        return self


def _trust(value: Any, info: ValidationInfo) -> Any:
    return value if value in ("system", "none") else attach(value, info)


def _ca_or_word(value: Attachment | Literal["system", "none"]) -> Attachment | Literal["system", "none"]:
    return _certificates(value) if isinstance(value, Attachment) else value


Trust = Annotated[
    Attachment | Literal["system", "none"],
    BeforeValidator(_trust),
    AfterValidator(_ca_or_word),
    PlainSerializer(lambda v: v.path if isinstance(v, Attachment) else v, return_type=str),
    WithJsonSchema({"type": "string"}),
]
"""`system`, `none`, or a PEM file of CA certificates."""


class ToServers(Model):
    """How HAProxy speaks to the servers of a pool."""

    planned: ClassVar = {"proxy_protocol": "the PROXY protocol towards servers"}

    tls: Bool = False
    """Connections to the servers are encrypted."""
    verify: Trust | None = None
    """Whom the servers' certificates are believed from: a PEM file of CAs, `system` (the CAs that browsers know, of the
    image), or `none` (nobody is asked, so that who sits between can read everything)."""
    name: HostName | None = None
    """The name that the servers' certificates must have; it is asked for as well (SNI). Default: the first of the
    service's `hostnames`."""

    @property
    def ca(self) -> Attachment | None:
        """The file of CAs that are believed, if there is one."""
        return self.verify if isinstance(self.verify, Attachment) else None

    @model_validator(mode="after")
    def _tls_first(self) -> Self:
        stated = [key for key in ("verify", "name") if getattr(self, key) is not None]
        if not self.tls and stated:
            raise mistake(
                "needs-tls", "{got} needs TLS to the servers, and tls is not true", got=stated[0],
                fix="add tls: true, or delete it",
            )  # fmt: skip
        if self.tls and self.verify is None:
            raise mistake(
                "verify-missing", "tls: true says nothing of whose certificates are believed",
                fix="write verify: system (public CAs), verify: FILE (a PEM file of your CA), or verify: none",
            )  # fmt: skip
        return self
