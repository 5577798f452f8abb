"""Files encrypted to public keys, in the format of age (age-encryption.org/v1), by its Rust implementation (pyrage).

Owns which recipients and identities are taken, and that whole files only come out: age proves each piece, and a file
that was cut off is noticed at its end. Reads and writes in pieces.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO, cast

import pyrage

from ndakit.core.errors import InputError

SUFFIX = ".age"
_MAX_IDENTITY_BYTES = 1 << 16


class RecipientUnusable(InputError):
    """What --encrypt was given is no public key that age takes."""

    def __init__(self, given: str, why: str) -> None:
        super().__init__(
            f"'{given[:60]}' is no recipient: {why}",
            where="--encrypt",
            fix="give an age public key (age1…, as age-keygen shows it), an SSH public key of type ssh-ed25519 or "
            "ssh-rsa, or a file that holds one of them",
        )


class DecryptionKeyUnusable(InputError):
    """What --identity was given cannot decrypt anything."""

    def __init__(self, path: Path, why: str, fix: str = "") -> None:
        super().__init__(
            f"this key cannot decrypt: {why}",
            where=f"--identity {path}",
            fix=fix
            or "name the private half of a recipient: a file of age-keygen, or an SSH private key (ed25519, "
            "RSA) without a passphrase",
        )


class NotDecrypted(InputError):
    """A file that none of the keys opens, or that is damaged."""


def recipients(given: Sequence[str]) -> tuple[str, ...]:
    """The public keys that were given, each as text or as the name of a file with some (one a line, # comments).

    Raises RecipientUnusable, also for a private key.
    """
    keys: list[str] = []
    for one in given:
        if one.startswith(("age1", "ssh-")):
            keys.append(_checked(one, one))
            continue
        try:
            text = Path(one).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, ValueError):
            raise RecipientUnusable(one, "neither a public key nor a file that can be read") from None
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if not lines:
            raise RecipientUnusable(one, "the file holds no key")
        keys += [_checked(line, one) for line in lines]
    return tuple(dict.fromkeys(keys))


def _checked(key: str, given: str) -> str:
    if "PRIVATE KEY" in key or key.startswith("AGE-SECRET-KEY"):
        raise RecipientUnusable("(not shown)", f"{given if given != key else 'it'} is a private key")
    _recipient(key, given)
    return " ".join(key.split()[:2]) if key.startswith("ssh-") else key


def _recipient(key: str, given: str) -> Any:
    try:
        return (pyrage.ssh if key.startswith("ssh-") else pyrage.x25519).Recipient.from_str(key)
    except pyrage.RecipientError as cause:
        raise RecipientUnusable(given, str(cause)) from None


class _Sink:
    """A file that remembers what the system refused: the library tells of it as a text only."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self.refused: OSError | None = None

    def write(self, piece: bytes) -> int:
        try:
            return self._sink.write(piece)
        except OSError as cause:
            self.refused = cause
            raise

    def flush(self) -> None:
        try:
            self._sink.flush()
        except OSError as cause:
            self.refused = cause
            raise


def encrypt(source: BinaryIO, sink: BinaryIO, to: Sequence[str]) -> None:
    """Encrypt a file to these public keys (as `recipients` gives them); any one of them opens it. Raises OSError."""
    guarded = _Sink(sink)
    try:
        pyrage.encrypt_io(source, cast(BinaryIO, guarded), [_recipient(key, key) for key in to])
    except pyrage.EncryptError:
        if guarded.refused is not None:
            raise guarded.refused from None
        raise


def identities(paths: Sequence[Path]) -> list[Any]:
    """The private keys in these files. Raises DecryptionKeyUnusable; also for files that others can read."""
    return [key for path in paths for key in _identities(path)]


def _identities(path: Path) -> list[Any]:
    try:
        facts = path.stat()
        content = path.read_bytes() if facts.st_size <= _MAX_IDENTITY_BYTES and stat.S_ISREG(facts.st_mode) else b""
    except OSError as cause:
        raise DecryptionKeyUnusable(path, cause.strerror or str(cause), "name a file that you can read") from None
    if facts.st_mode & 0o077 and content:
        raise DecryptionKeyUnusable(
            path, f"others can read it (mode {stat.S_IMODE(facts.st_mode):04o})", f"chmod 600 {quote(str(path))}"
        )
    try:
        if b"PRIVATE KEY" in content:
            return [pyrage.ssh.Identity.from_buffer(content)]
        lines = [line.strip() for line in content.decode("ascii").splitlines()]
        keys = [pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")]
    except pyrage.IdentityError as cause:
        if "decrypted first" in str(cause):
            copy = f"{path.name}.plain"
            raise DecryptionKeyUnusable(
                path,
                "it has a passphrase, which is not asked for here",
                f"take the passphrase off a copy, which you remove afterwards: (umask 077; cp {quote(str(path))} "
                f"{quote(copy)}) && ssh-keygen -p -N '' -f {quote(copy)}; then --identity {quote(copy)}",
            ) from None
        raise DecryptionKeyUnusable(path, str(cause)) from None
    except UnicodeDecodeError:
        keys = []
    if not keys:
        raise DecryptionKeyUnusable(path, "it holds no private key")
    return keys


def decrypt(source: BinaryIO, sink: BinaryIO, keys: Sequence[Any], where: str) -> None:
    """Decrypt a whole file. Raises NotDecrypted, OSError; what was written until then is worthless."""
    guarded = _Sink(sink)
    try:
        pyrage.decrypt_io(source, cast(BinaryIO, guarded), list(keys))
    except pyrage.DecryptError as cause:
        if guarded.refused is not None:
            raise guarded.refused from None
        raise _not_decrypted(where, str(cause)) from None
    except OSError as cause:
        if cause is guarded.refused or cause.errno is not None:
            raise
        raise _not_decrypted(where, "it is damaged or cut off") from None


def _not_decrypted(where: str, why: str) -> NotDecrypted:
    if "No matching keys" in why:
        return NotDecrypted(
            "none of the keys opens this file",
            where=where,
            fix="name the private half of one of its recipients (./inv backups --json lists them): --identity FILE",
        )
    return NotDecrypted(f"this file cannot be decrypted: {why}", where=where, fix="take another backup: ./inv backups")
