"""Files of this machine that become part of an image, where everybody can see them: which are refused.

Owns what makes a file look as if it were kept from others: where it lies, who may read it, and what is in it. Who names
the file, and how the refusal is worded for people, is the business of those who ask.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
from pathlib import Path

_TEXT_KEYS = re.compile(
    rb"-{4,5} ?BEGIN [A-Z0-9 ]*PRIVATE KEY"
    rb"|^PuTTY-User-Key-File-[0-9]+:"
    rb"|AGE-(?:SECRET-KEY|PLUGIN-[A-Z0-9-]{1,40})-1[A-Z0-9]{20}"
    rb"|^untrusted comment: ?[^\n]*\b(?:secret|private) key"
    rb"|^untrusted comment:[^\n]*\nRWRCS[w-z]"
    rb"|^[ \t]*PrivateKey[ \t]*=[ \t]*[A-Za-z0-9+/]{43}="
    rb"|<RSAKeyValue>(?=(?:(?!</RSAKeyValue>).)*<D>)",
    re.MULTILINE | re.DOTALL,
)
"""Private keys as text: PEM (RFC 7468), OpenSSH's, OpenPGP's and SSH2's (RFC 4716's counterpart) of that form; PuTTY's;
age's; those of signify, usign and minisign; WireGuard's (wg(8)); RSA's of XML signatures (RFC 4051)."""

_JWK = tuple(
    (re.compile(rb'"kty"\s*:\s*"' + kind + rb'"'), re.compile(rb'"' + part + rb'"\s*:\s*"[A-Za-z0-9_-]{16}'))
    for kind, part in ((rb"(?:RSA|EC|OKP)", rb"d"), (rb"oct", rb"k"))
)
"""Private and secret keys in JSON: their type, and the part that the public ones do not have (RFC 7518, RFC 8037)."""

_BINARY_KEYS = re.compile(
    rb"\x00\x00\x00[\x07\x0b\x13](?:ssh-rsa|ssh-dss|ssh-ed25519|ecdsa-sha2-nistp[0-9]{3})\x00"
    rb"|\x30[\x80-\x84].{0,4}\x02\x01\x03\x30"
    rb"|\xfe\xed\xfe\xed|\xce\xce\xce\xce",
    re.DOTALL,
)
"""How files of private keys begin that are no text: dropbear's, PKCS #12 (RFC 7292, 4), Java's key stores."""


_ONLY_NAMED = re.compile(rb"-{4,5} ?BEGIN [A-Z0-9 ]*PRIVATE KEY(?!(?: BLOCK)? ?-{4,5}[ \t]*(?:\n|\\nMI))")
"""How a program looks for a key: the beginning of its first line, without the rest."""


def private_key(content: bytes, *, program: bool = False) -> bool:
    """True if a private key is in a content, in one of the forms that programs write them in.

    `program`: it may be a program, which can name the beginning of a key without holding one.
    """
    if program and content.startswith(b"\x7fELF"):
        return False
    text = content.replace(b"\0", b"").replace(b"\r\n", b"\n")  # also what Windows writes as UTF-16
    if program:
        text = _ONLY_NAMED.sub(b"", text)
    return (
        _TEXT_KEYS.search(text) is not None
        or any(kind.search(text) and part.search(text) for kind, part in _JWK)
        or _BINARY_KEYS.match(content) is not None
        or (content.startswith(b"\x30") and _der_key(content))
    )


def _der_key(content: bytes) -> bool:
    """True for PKCS #1, SEC 1 and PKCS #8 without the armour of PEM."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_der_private_key

    try:
        load_der_private_key(content, password=None)
    except TypeError:  # a password is asked for
        return True
    except (ValueError, UnsupportedAlgorithm):
        return False
    return True


class KeptFromOthers(Exception):
    """A file that must not be copied to where others see it. `mode` is set if its mode is the reason."""

    def __init__(self, why: str, mode: int | None = None) -> None:
        super().__init__(why)
        self.mode = mode


def place(path: Path, base: Path) -> Path:
    """The file behind a path, links followed, which has to lie inside `base` and in no folder for secrets there.

    Raises KeptFromOthers, and OSError (also for a link that leads to itself).
    """
    try:
        real, inside = path.resolve(strict=True), base.resolve()
    except RuntimeError as cause:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from cause
    if not real.is_relative_to(inside):
        raise KeptFromOthers(f"lies outside of {base}")
    parts = real.relative_to(inside).parts
    if parts[:1] == ("secrets",) or any(part.startswith(".") for part in parts):
        raise KeptFromOthers("lies in a folder for what nobody may see")
    return real


def read(real: Path, by: Path, limit: int | None = None) -> bytes:
    """The content (at most `limit` bytes) of a plain file that others may see; it belongs to the file or folder `by`.

    Where that is kept from others itself, as by a umask of 077, the mode of a file says nothing. Raises KeptFromOthers,
    IsADirectoryError for whatever is no plain file, OSError.
    """
    fd = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb", buffering=0 if stat.S_ISDIR(os.fstat(fd).st_mode) else -1) as source:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise IsADirectoryError(errno.EISDIR, "it is no plain file", str(real))
        refuse_mode(mode, by)
        content = source.read() if limit is None else source.read(limit)
    if private_key(content):
        raise KeptFromOthers("holds a private key")
    return content


def refuse_mode(mode: int, by: Path) -> None:
    """Raise KeptFromOthers if others may not read a file of this mode, and may read what it belongs to."""
    if not mode & stat.S_IROTH and by.stat().st_mode & stat.S_IROTH:
        raise KeptFromOthers(f"may not be read by others (its mode is {stat.S_IMODE(mode):04o})", mode)


def fix(cause: KeptFromOthers, shown: str, beside: str) -> str:
    """What to do about it; `shown` is the file for people, `beside` the folder for a copy."""
    if cause.mode is not None:
        return f"name another file; or, if everybody may see it: chmod o+r {shlex.quote(shown)}"
    return f"copy what may be seen by everybody to {beside}, and name the copy"
