"""PEM (RFC 7468): the blocks of a text, and the text of some blocks. Pure; what is inside is nobody's business here."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,60})-----\s*\n(.*?)-----END \1-----", re.DOTALL)


@dataclass(frozen=True)
class PemBlock:
    """One block: its label (`CERTIFICATE`, `PRIVATE KEY`), and its whole text with Unix line ends."""

    label: str
    text: bytes

    @property
    def is_key(self) -> bool:
        """True for a private key of any kind."""
        return self.label.endswith("PRIVATE KEY")

    @property
    def encrypted(self) -> bool:
        """True for a private key that needs a password (RFC 5958; RFC 1421, 4.6.1.1)."""
        return self.is_key and ("ENCRYPTED" in self.label or b"Proc-Type: 4,ENCRYPTED" in self.text)

    def __repr__(self) -> str:
        return f"Block({self.label})"


def blocks(content: bytes) -> tuple[PemBlock, ...]:
    """The blocks in the order of the text; what stands between them is left out."""
    unix = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return tuple(PemBlock(match[1].decode(), match[0] + b"\n") for match in _BLOCK.finditer(unix))


def only_blocks(content: bytes, *labels: str) -> bytes:
    """The blocks alone, without remarks between them; with `labels`, those of these labels."""
    return b"".join(block.text for block in blocks(content) if not labels or block.label in labels)
