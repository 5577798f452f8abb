"""Public keys and signatures of usign, OpenWrt's kin of OpenBSD's signify: text in, a yes or no out.

Owns the two formats and the Ed25519 check (`cryptography` computes it). Which keys are believed is the business of
`trust`. Format: a comment line, then base64 of 2 bytes `Ed`, 8 bytes key id, and 32 bytes key or 64 bytes signature
(signify(1), openwrt/usign `main.c`; docs/facts.md, Mirrors).
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

_ALGORITHM = b"Ed"
_COMMENT = "untrusted comment: "
_KEY_BYTES = 42
_SIGNATURE_BYTES = 74


@dataclass(frozen=True)
class PublicKey:
    """A key with its id (16 hex digits, also its file's name in OpenWrt) and its comment."""

    key_id: str
    key: bytes
    comment: str


@dataclass(frozen=True)
class Signature:
    """A detached signature and the id of the key that made it."""

    key_id: str
    value: bytes


def public_key(text: str) -> PublicKey:
    """Read a public key. Raises ValueError with words for people."""
    raw, comment = _decoded(text, _KEY_BYTES)
    return PublicKey(raw[2:10].hex(), raw[10:], comment)


def signature(text: str) -> Signature:
    """Read a signature. Raises ValueError with words for people."""
    raw, _ = _decoded(text, _SIGNATURE_BYTES)
    return Signature(raw[2:10].hex(), raw[10:])


def signed_by(message: bytes, made: Signature, key: PublicKey) -> bool:
    """True if this key made this signature of this message."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if made.key_id != key.key_id:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key.key).verify(made.value, message)
    except InvalidSignature:
        return False
    return True


def _decoded(text: str, length: int) -> tuple[bytes, str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != 2 or not lines[0].startswith(_COMMENT.strip()):
        raise ValueError("two lines are expected, a comment and a line of base64")
    try:
        raw = base64.b64decode(lines[1], validate=True)
    except binascii.Error:
        raise ValueError("its second line is not base64") from None
    if len(raw) != length or raw[:2] != _ALGORITHM:
        raise ValueError(f"{length} bytes that begin with Ed are expected, there are {len(raw)}")
    return raw, lines[0].removeprefix(_COMMENT.strip()).strip()
