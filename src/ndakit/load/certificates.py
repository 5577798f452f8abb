"""Certificates as values: what a PEM text holds, which names it is for, and what tells it from others for people.

Also makes certificates that sign themselves: to begin with, and to stand for one that is not at hand.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID

from ndakit.core import pem
from ndakit.core.mistakes import KeyPath, dotted, listing, show
from ndakit.core.workspace import Workspace
from ndakit.load import secrets
from ndakit.load.loaded import Loaded

if TYPE_CHECKING:
    from ndakit.model import Profile, SecretRef

_LABELS = ("CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE")
DATE = "%Y-%m-%d"


@dataclass(frozen=True)
class CertificateFault:
    """Something about a certificate. `severe`: nothing is built with it."""

    code: str
    what: str
    fix: str
    severe: bool = True


@dataclass(frozen=True)
class CertificateBundle:
    """What a secret holds: the server's certificate and the others of the chain, in the order of the text."""

    leaf: x509.Certificate
    chain: tuple[x509.Certificate, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it is for: DNS names in lower case, and addresses."""
        return names_of(self.leaf)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, in hex."""
        return self.leaf.fingerprint(hashes.SHA256()).hex()


class Unusable(Exception):
    """A text from which nothing can be taken: `fault` says why."""

    def __init__(self, fault: CertificateFault) -> None:
        super().__init__(fault.what)
        self.fault = fault


def read(text: bytes) -> CertificateBundle:
    """The certificates of a secret. Raises Unusable for what cannot be read at all."""
    if not text.strip():
        raise Unusable(CertificateFault("certificate-empty", "it is empty", _PASTE))
    blocks = pem.blocks(text)
    certificates = [
        block for block in blocks if block.label in ("CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE")
    ]
    if not certificates:
        what = "there is no certificate in it" if blocks else "it is no PEM text"
        fix = _PASTE
        if not blocks and text[:1] == b"\x30":
            what += " (it looks like DER or PKCS #12)"
            fix = "turn it into PEM: openssl pkcs12 -in FILE.p12 -nodes, or openssl x509 -inform DER -in FILE"
        raise Unusable(CertificateFault("certificate-missing", what, fix))
    read_ones: list[x509.Certificate] = []
    for number, block in enumerate(certificates, 1):
        try:
            read_ones.append(load(block))
        except (ValueError, UnsupportedAlgorithm):
            raise Unusable(
                CertificateFault(
                    "certificate-broken", f"certificate {number} in it is damaged (cut off, or changed)", _PASTE
                )
            ) from None
    return CertificateBundle(read_ones[0], tuple(read_ones[1:]))


_PASTE = (
    "put into it, one after the other: the certificate, the rest of its chain (without the root), the private key; "
    "all as PEM"
)


def load(block: pem.PemBlock) -> x509.Certificate:
    """The certificate of a block. Raises ValueError and UnsupportedAlgorithm.

    Numbers that RFC 5280 forbids are no news to those who have such a certificate: CAs that browsers know have them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        return x509.load_pem_x509_certificate(block.text)


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names in subjectAltName; browsers look at nothing else (RFC 6125, 6.4.4)."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    dns = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    return (*dns, *(str(address) for address in names.get_values_for_type(x509.IPAddress)))


def names_as_written(certificate: x509.Certificate) -> tuple[str, ...]:
    """The common name of the subject and the DNS names in subjectAltName, as they are written there."""
    common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    names = [str(attribute.value) for attribute in common]
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return tuple(names)
    return tuple(dict.fromkeys((*names, *alternative.get_values_for_type(x509.DNSName))))


def covers(bundle: CertificateBundle, host: str) -> bool:
    """True if a client that asks for this name takes the certificate; `*.x` is covered by the same wildcard only, and
    a certificate's `*` stands for one whole label (RFC 6125, 6.4.3)."""
    first, _, rest = host.partition(".")
    return host in bundle.names or (first != "*" and bool(rest) and f"*.{rest}" in bundle.names)


def facts(certificate: x509.Certificate) -> str:
    """What tells a certificate from others, for people: `CN=shop, for a.example, from … to …, SHA-256 …`."""
    names = names_of(certificate)
    whose = show(certificate.subject.rfc4514_string() or "no subject", 80)
    return (
        f"{whose}{f', for {listing(names, 6)}' if names else ''}, "
        f"from {certificate.not_valid_before_utc:{DATE}} to {certificate.not_valid_after_utc:{DATE}}, "
        f"SHA-256 {certificate.fingerprint(hashes.SHA256()).hex()[:16]}…"
    )


def self_signed(certificate: x509.Certificate) -> bool:
    """True if a certificate is its own issuer."""
    return certificate.issuer == certificate.subject and signed_by(certificate, certificate)


def signed_by(lower: x509.Certificate, upper: x509.Certificate) -> bool:
    """True if the upper one has signed the lower one."""
    if lower.issuer != upper.subject:
        return False
    try:
        lower.verify_directly_issued_by(upper)
    except InvalidSignature:
        return False
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return True  # of a kind that cannot be verified here: the names agree
    return True


# -- making ------------------------------------------------------------------------------------------------------------


def make_self_signed(names: Sequence[str], begins: datetime, days: int) -> bytes:
    """A certificate that signs itself (P-256, SHA-256), and its key, as PEM. `names`: host names and addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0][:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + private


def _general_name(name: str) -> x509.GeneralName:
    if re.fullmatch(r"[0-9.]+|[0-9a-f:.]*:[0-9a-f:.]*", name):
        return x509.IPAddress(ip_address(name))
    return x509.DNSName(name)


def wanted(profile: Profile) -> tuple[SecretRef, ...]:
    """The certificates that services of a profile name, each once."""
    ending = [service.tls for service in profile.services.values() if service.tls is not None]
    return tuple({one.secret: one for tls in ending for one in tls.certificates}.values())


def certificates_of(workspace: Workspace, loaded: Loaded) -> dict[str, CertificateBundle]:
    """What clients are to be shown, by the names of the secrets: public parts only. Raises what resolving secrets
    raises, and Unusable."""
    named = wanted(loaded.profile)
    held = secrets.resolve(workspace, loaded) if named else secrets.NONE
    return {reference.secret: read(held[reference.secret].reveal()) for reference in named}


def names_wanted(profile: Profile, secret: str) -> tuple[str, ...]:
    """The names that a certificate of a profile is to have: the names that clients ask its services for (`hostnames`
    and `routes`), else the addresses of their VIPs."""
    users = [s for s in profile.services.values() if s.tls and secret in [c.secret for c in s.tls.certificates]]
    names = [name for service in users for name in service.client_names]
    names = names or [str(a) for s in users for vip in s.vip for a in profile.vips[vip].address]
    return tuple(dict.fromkeys(names))


def placeholder(profile: Profile, now: datetime, secret: str, place: KeyPath) -> bytes:
    """What stands for a secret that is not at hand, so that daemons can check the rest."""
    if place[2:4] == ("tls", "certificates"):
        return make_self_signed(names_wanted(profile, secret), now - timedelta(days=1), 2)
    return f"placeholder for {dotted(place)}".encode()
