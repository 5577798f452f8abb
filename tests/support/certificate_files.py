"""Certificates for tests, made anew each time: a CA, what it signs, and every way in which that can be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)


def ec_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@dataclass(frozen=True)
class Party:
    """Somebody with a key and a certificate."""

    certificate: x509.Certificate
    key: Any

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: bytes = b"") -> bytes:
        form = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        return bytes(self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, form))

    def bundle(self, *chain: Party) -> bytes:
        """Certificate, chain, key: as HAProxy wants it."""
        return b"".join([self.pem, *(one.pem for one in chain), self.key_pem()])


def issue(
    subject: str,
    signer: Party | None = None,
    names: Sequence[str] = (),
    *,
    begins: datetime = NOW - timedelta(days=1),
    days: float = 90,
    key: Any = None,
    ca: bool = False,
    usage: Any = None,
    algorithm: Any = None,
) -> Party:
    """A certificate for names, signed by somebody or by itself."""
    own = key or ec_key()
    subject_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject_name)
        .issuer_name(signer.certificate.subject if signer else subject_name)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return Party(builder.sign(signer.key if signer else own, algorithm or hashes.SHA256()), own)


def revoked(ca: Party, *parties: Party, begins: datetime = NOW - timedelta(days=1), days: float = 30) -> bytes:
    """The CA's list of revoked certificates, as PEM."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(ca.certificate.subject)
    builder = builder.last_update(begins).next_update(begins + timedelta(days=days))
    for party in parties:
        entry = x509.RevokedCertificateBuilder().serial_number(party.certificate.serial_number)
        builder = builder.add_revoked_certificate(entry.revocation_date(begins).build())
    return builder.sign(ca.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
