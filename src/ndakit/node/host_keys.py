"""Host keys of balancers: which ones are pinned, per profile and node, in a file of OpenSSH's known_hosts format.

dropbear makes a box's host keys itself, at its first start; no image holds one (a private key in an image would be in
everybody's copy). So a key is pinned at the first contact, by somebody who has compared its fingerprint.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ndakit.core.files import write_atomic
from ndakit.node.errors import FingerprintMalformed, PinsUnreadable

_HEAD = (
    "# The SSH host keys of {alias}, as somebody compared them at the first contact. Written by ndakit; public, so\n"
    "# share it with your colleagues (git add). A box that is flashed without its configuration gets new ones.\n"
)


@dataclass(frozen=True)
class HostKey:
    """A public host key: its type as SSH calls it (ssh-ed25519), and its data (the blob of RFC 4253, 6.6)."""

    kind: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """`SHA256:` and 43 characters, as OpenSSH and dropbear (since 2020) show it."""
        digest = hashlib.sha256(self.blob).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"

    @property
    def text(self) -> str:
        """Type and data as in a known_hosts file."""
        return f"{self.kind} {base64.b64encode(self.blob).decode()}"


@dataclass(frozen=True)
class Pins:
    """The pinned host keys of one node. `alias` is the name in the file, so that the node's address may change."""

    path: Path
    alias: str

    def read(self) -> tuple[HostKey, ...]:
        """The pinned keys; none if nobody has been there yet. Raises PinsUnreadable, OSError."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except UnicodeDecodeError:
            raise PinsUnreadable(str(self.path), 0, "it is no text") from None
        return parse(text, self.path, self.alias)

    def write(self, keys: Sequence[HostKey]) -> None:
        """Pin these keys and no others, atomically. Raises OSError."""
        lines = [f"{self.alias} {key.text}\n" for key in keys]
        write_atomic(self.path, (_HEAD.format(alias=self.alias) + "".join(lines)).encode())


def parse(text: str, path: Path, alias: str) -> tuple[HostKey, ...]:
    """Read a known_hosts file of ours (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT). Raises PinsUnreadable.

    What OpenSSH would take and we never write (patterns, hashes, @cert-authority, other hosts) is refused: nobody but
    this node's keys belongs there.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        if len(words) != 3 or words[0] != alias:
            raise PinsUnreadable(str(path), number, f"not a line '{alias} TYPE KEY'")
        keys.append(_key(words[1], words[2], path, number))
    return tuple(keys)


def _key(kind: str, encoded: str, path: Path, number: int) -> HostKey:
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise PinsUnreadable(str(path), number, "the key's data is no base64") from None
    name = kind.encode(errors="replace")
    if blob[: 4 + len(name)] != len(name).to_bytes(4, "big") + name:
        raise PinsUnreadable(str(path), number, f"the key's data is not that of a {kind[:40]} key")
    return HostKey(kind, blob)


def checked_fingerprint(given: str) -> str:
    """A fingerprint as `--accept-host-key` takes it. Raises FingerprintMalformed."""
    if not re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", given):
        raise FingerprintMalformed(given)
    return given
