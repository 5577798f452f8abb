"""What is wrong with the certificates of a profile, found before anything is built.

They are secrets, so that they are looked at here and not in the model. A message tells the certificate's own facts
(subject, names, dates, fingerprint) and nothing of its key. Whether one is out of date depends on the day: the caller
says what time it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from ndakit.core import pem
from ndakit.core.mistakes import KeyPath, ProfileMistake, ProfileWarning, listing, show
from ndakit.load.certificates import (
    DATE,
    CertificateBundle,
    CertificateFault,
    Unusable,
    covers,
    facts,
    load,
    read,
    self_signed,
    signed_by,
)
from ndakit.load.loaded import Loaded
from ndakit.load.pound_certificates import order_fault
from ndakit.load.secrets import Secrets

if TYPE_CHECKING:
    from ndakit.model import Profile

WARN_DAYS = 30
RSA_BITS_LEAST = 2048
"""NIST SP 800-57, part 1: 112 bits of security; below, browsers refuse the certificate as well."""
CURVES = {"secp256r1": "P-256", "secp384r1": "P-384"}
"""The curves of Mozilla's Root Store Policy (2.9, 5.1) and of every browser. CAs may use P-521 as well (CA/Browser
Forum, Baseline Requirements, 6.1.5), and Chrome takes no such certificate."""
_WEAK_HASHES = ("md5", "sha1", "md4", "md2")


def check(
    loaded: Loaded, secrets: Secrets, now: datetime
) -> tuple[tuple[ProfileMistake, ...], tuple[ProfileWarning, ...]]:
    """What is wrong (nothing is built then) and what is doubtful about the certificates of a profile.

    `now` has a time zone. Where the secrets are placeholders, the public files of CAs are still looked at.
    """
    mistakes: list[ProfileMistake] = []
    warnings: list[ProfileWarning] = []
    for place, fault in _faults(loaded.profile, secrets, now):
        at = next(loaded.origins[place[:end]] for end in range(len(place), 0, -1) if place[:end] in loaded.origins)
        if fault.severe:
            mistakes.append(ProfileMistake(fault.code, fault.what, at=at, fix=fault.fix))
        else:
            warnings.append(ProfileWarning(fault.code, fault.what, at, fault.fix))
    return tuple(mistakes), tuple(warnings)


def _faults(profile: Profile, secrets: Secrets, now: datetime) -> Iterator[tuple[KeyPath, CertificateFault]]:
    if secrets.real:
        yield from _secret_faults(profile, secrets, now)
    yield from _file_faults(profile, now)


def _secret_faults(profile: Profile, secrets: Secrets, now: datetime) -> Iterator[tuple[KeyPath, CertificateFault]]:
    looked_at: set[str] = set()
    for name, service in profile.services.items():
        if service.tls is None:
            continue
        at: KeyPath = ("services", name, "tls")
        readable: dict[str, CertificateBundle] = {}
        for number, reference in enumerate(service.tls.certificates):
            place: KeyPath = (*at, "certificates", number)
            try:
                bundle = read(secrets[reference.secret].reveal())
            except Unusable as cause:
                if reference.secret not in looked_at:
                    yield place, _about(reference.secret, cause.fault)
            else:
                readable[reference.secret] = bundle
                for fault in (
                    faults(secrets[reference.secret].reveal(), now) if reference.secret not in looked_at else ()
                ):
                    yield place, _about(reference.secret, fault)
            looked_at.add(reference.secret)
        if len(readable) == len(service.tls.certificates):
            for host in service.client_names:
                if not any(covers(bundle, host) for bundle in readable.values()):
                    of_routes = host not in service.hostnames
                    yield (
                        (*at, "certificates"),
                        _not_covered(name, host, readable, "routes" if of_routes else "hostnames"),
                    )
            hidden = order_fault(name, readable, service.client_names) if service.tls.ended_by.order_counts else None
            if hidden is not None:
                number = [one.secret for one in service.tls.certificates].index(hidden[0])
                yield (*at, "certificates", number), hidden[1]


def _file_faults(profile: Profile, now: datetime) -> Iterator[tuple[KeyPath, CertificateFault]]:
    """What is wrong with the public files: CAs and revocation lists of clients, CAs of servers."""
    for name, service in profile.services.items():
        clients = service.tls.client_certificates if service.tls is not None else None
        if clients is None:
            continue
        for key, file in (("ca", clients.ca), ("revoked", clients.revoked)):
            for fault in _public_file(file.path, file.content, now) if file is not None else ():
                yield ("services", name, "tls", "client_certificates", key), fault
    for name, pool in profile.pools.items():
        trusted = pool.to_servers.ca if pool.to_servers is not None else None
        for fault in _public_file(trusted.path, trusted.content, now) if trusted is not None else ():
            yield ("pools", name, "to_servers", "verify"), fault


def _about(secret: str, fault: CertificateFault) -> CertificateFault:
    return CertificateFault(fault.code, f"certificate {secret}: {fault.what}", fault.fix, fault.severe)


def _not_covered(service: str, host: str, bundles: dict[str, CertificateBundle], key: str) -> CertificateFault:
    has = "; ".join(f"{secret} is for {listing(bundle.names) or 'no name'}" for secret, bundle in bundles.items())
    why = ""
    if any(_one_label_short(name, host) for bundle in bundles.values() for name in bundle.names):
        why = " (the * of a certificate is one whole label)"
    return CertificateFault(
        "certificate-name", f"no certificate of service {service} covers {host}: {has}{why}",
        f"get a certificate that has {host} among its names (subjectAltName), or take {host} out of {key}",
    )  # fmt: skip


def _one_label_short(name: str, host: str) -> bool:
    return name.startswith("*.") and host.endswith(name[1:])


# -- judging -----------------------------------------------------------------------------------------------------------


def faults(text: bytes, now: datetime) -> Iterator[CertificateFault]:
    """What is wrong with a readable secret, apart from the names that it has to cover."""
    bundle = read(text)
    yield from _key_faults(text, bundle)
    yield from _order_faults(bundle)
    yield from _date_faults(bundle, now)
    yield from _strength_faults(bundle)
    if not bundle.names:
        yield CertificateFault(
            "certificate-no-names", f"{facts(bundle.leaf)}: it has no names (subjectAltName), and browsers look at "
            "nothing else",
            "get a certificate with the host names as subjectAltName",
        )  # fmt: skip
    yield from _usage_faults(bundle.leaf)
    if b"\r" in text:
        yield CertificateFault(
            "certificate-line-ends", "it has the line ends of DOS; the image gets it with those of Unix",
            "sed -i 's/\\r$//' its file; or leave it as it is", severe=False,
        )  # fmt: skip


def _key_faults(text: bytes, bundle: CertificateBundle) -> Iterator[CertificateFault]:
    keys = [block for block in pem.blocks(text) if block.is_key]
    own = facts(bundle.leaf)
    if len(keys) != 1:
        what = f"it holds {len(keys)} private keys" if keys else "there is no private key in it"
        fix = "keep the key of the first certificate only" if keys else "add the private key that belongs to it, as PEM"
        yield CertificateFault("certificate-keys", f"{what} ({own})", fix)
        return
    (key,) = keys
    if key.encrypted:
        yield CertificateFault(
            "certificate-key-encrypted",
            f"its private key needs a password, and nobody types one when a balancer starts ({own})",
            "take the password away: openssl pkey -in KEY -out NEWKEY, and put the new key in its place",
        )  # fmt: skip
        return
    try:
        public = serialization.load_pem_private_key(key.text, None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        yield CertificateFault(
            "certificate-key-broken", f"its private key is damaged, or of a kind that is not known ({own})",
            "paste the whole key, from its -----BEGIN line to its -----END line",
        )  # fmt: skip
        return
    if _same_key(public, bundle.leaf):
        return
    other = next((one for one in bundle.chain if _same_key(public, one)), None)
    if other is not None:
        yield CertificateFault(
            "certificate-order", f"the private key belongs to {facts(other)}, and the first certificate is {own}",
            "put the certificate of the key first, then the one that signed it, and so on",
        )  # fmt: skip
    else:
        yield CertificateFault(
            "certificate-key-other", f"its private key belongs to another certificate than {own}",
            "put the key in that the certificate was asked for with, or get a new certificate for this key",
        )  # fmt: skip


def _same_key(public: object, certificate: x509.Certificate) -> bool:
    try:
        return _spki(public) == _spki(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):
        return False


def _spki(key: object) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.DER, form)  # type: ignore[attr-defined,no-any-return]


def _order_faults(bundle: CertificateBundle) -> Iterator[CertificateFault]:
    """A chain from the server's certificate upwards, each signed by the next (RFC 5246, 7.4.2)."""
    everything = (bundle.leaf, *bundle.chain)
    for number, (lower, upper) in enumerate(itertools.pairwise(everything), 1):
        if signed_by(lower, upper):
            continue
        right = next((one for one in everything if one is not lower and signed_by(lower, one)), None)
        issuer = show(lower.issuer.rfc4514_string(), 80)
        if right is not None:
            what, fix = "the chain is in the wrong order", f"put after it the one with SHA-256 {_short(right)}"
        elif self_signed(lower):
            what, fix = "the chain goes on after its root", "delete what comes after it"
        else:
            what, fix = "the chain has a gap", f"put the certificate of {issuer} between the two"
        yield CertificateFault(
            "certificate-chain",
            f"{what}: certificate {number} ({facts(lower)}) was signed by {issuer}, and the next one is {facts(upper)}",
            fix,
        )  # fmt: skip
        return
    last = everything[-1]
    if self_signed(bundle.leaf):
        yield CertificateFault(
            "certificate-self-signed", f"it signs itself ({facts(bundle.leaf)}): browsers warn of it",
            "good enough to begin with; for the public get one from a CA", severe=False,
        )  # fmt: skip
    elif not self_signed(last) and not _known_root(last):
        yield CertificateFault(
            "certificate-chain-open",
            f"the chain ends with {facts(last)}, signed by {show(last.issuer.rfc4514_string(), 80)}, which is no CA "
            "that browsers know",
            "add the intermediate certificates that the CA gave with it; with a CA of your own, give its root to the "
            "clients", severe=False,
        )  # fmt: skip


def _short(certificate: x509.Certificate) -> str:
    return f"{certificate.fingerprint(hashes.SHA256()).hex()[:16]}…"


def _known_root(certificate: x509.Certificate) -> bool:
    """True if one of the CAs that browsers know signed it."""
    import certifi

    with open(certifi.where(), "rb") as source:  # noqa: PTH123  # certifi gives a string
        roots = pem.blocks(source.read())
    for block in roots:
        root = load(block)
        if root.subject == certificate.issuer and signed_by(certificate, root):
            return True
    return False


def _date_faults(bundle: CertificateBundle, now: datetime) -> Iterator[CertificateFault]:
    for number, one in enumerate((bundle.leaf, *bundle.chain)):
        which = facts(one) if number == 0 else f"{facts(one)} of the chain"
        ends, begins = one.not_valid_after_utc, one.not_valid_before_utc
        renew = "renew it at its CA, and put the new certificate and its chain in its place"
        if ends < now:
            yield CertificateFault("certificate-expired", f"it is out of date since {ends:{DATE}} ({which})", renew)
        elif begins > now:
            yield CertificateFault(
                "certificate-early", f"it is not valid before {begins:%Y-%m-%d %H:%M} UTC ({which})",
                "wait until then, or look at this machine's clock: date",
            )  # fmt: skip
        elif ends - now < timedelta(days=WARN_DAYS):
            days = (ends - now).days
            yield CertificateFault("certificate-ends-soon", f"it ends in {days} days ({which})", renew, severe=False)


def _strength_faults(bundle: CertificateBundle) -> Iterator[CertificateFault]:
    for one in (bundle.leaf, *bundle.chain):
        try:
            key = one.public_key()
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if isinstance(key, rsa.RSAPublicKey) and key.key_size < RSA_BITS_LEAST:
            yield _weak(f"an RSA key of {key.key_size} bits can be broken", one)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            yield from _curve_faults(key.curve.name, one)
        elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
            yield _weak("browsers take no Ed25519 and Ed448 certificates", one)
        elif not isinstance(key, rsa.RSAPublicKey):
            yield _weak("its key is neither RSA nor EC", one)
        algorithm = _signature_hash(one)
        if algorithm in _WEAK_HASHES and not self_signed(one):
            yield CertificateFault(
                "certificate-signature", f"it is signed with {algorithm.upper()}, which can be forged ({facts(one)})",
                "let the CA sign it anew, with SHA-256",
            )  # fmt: skip


def _curve_faults(curve: str, certificate: x509.Certificate) -> Iterator[CertificateFault]:
    if curve == "secp521r1":
        yield CertificateFault(
            "certificate-curve", f"its EC key is on the curve P-521, which Chrome does not take ({facts(certificate)})",
            "make a new key (openssl ecparam -name prime256v1 -genkey) and get a certificate for it; or leave it for "
            "clients of your own", severe=False,
        )  # fmt: skip
    elif curve not in CURVES:
        yield _weak(
            f"its EC key is on the curve {curve}, and browsers take {' and '.join(CURVES.values())} only", certificate
        )


def _weak(why: str, certificate: x509.Certificate) -> CertificateFault:
    return CertificateFault(
        "certificate-weak", f"{why} ({facts(certificate)})",
        "make a new key (openssl ecparam -name prime256v1 -genkey, or openssl genrsa 2048) and get a certificate for "
        "it",
    )  # fmt: skip


def _signature_hash(certificate: x509.Certificate) -> str:
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return ""
    return algorithm.name if algorithm is not None else ""


def _usage_faults(leaf: x509.Certificate) -> Iterator[CertificateFault]:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return
    if ExtendedKeyUsageOID.SERVER_AUTH not in usage and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in usage:
        yield CertificateFault(
            "certificate-usage", f"it is not for servers, by its extended key usage ({facts(leaf)})",
            "get a certificate for servers (serverAuth)",
        )  # fmt: skip


def _public_file(path: str, content: bytes, now: datetime) -> Iterator[CertificateFault]:
    """Faults of an attached file of CA certificates or of revocation lists."""
    for block in pem.blocks(content):
        try:
            if block.label == "X509 CRL":
                ends = x509.load_pem_x509_crl(block.text).next_update_utc
                what = "its revocation list" if ends is not None else ""
                about = ""
            elif block.label == "CERTIFICATE":
                certificate = load(block)
                ends, what, about = certificate.not_valid_after_utc, "its CA certificate", f" ({facts(certificate)})"
            else:
                continue
        except (ValueError, UnsupportedAlgorithm):
            yield CertificateFault(
                "ca-broken", f"a block {block.label} in {show(path)} is damaged", "copy the file anew"
            )
            continue
        if ends is not None and ends < now:
            yield CertificateFault(
                "ca-expired", f"{show(path)}: {what} is out of date since {ends:{DATE}}{about}",
                "get the new one from the CA: with this one HAProxy refuses everybody",
            )  # fmt: skip
